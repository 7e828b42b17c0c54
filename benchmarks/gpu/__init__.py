"""The parts of ``benchmarks/gpu.py``; as a package it is found before that script."""
