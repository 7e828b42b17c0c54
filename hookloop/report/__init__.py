"""A run as one page: ``hookloop report RUN_DIR`` writes a self-contained ``report.html``."""
