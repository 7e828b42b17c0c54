"""Measuring where the time of a run goes: the parts of the plugin ``profile``."""
