"""Diffusion in pure functions and modules: preconditioning, loss, solvers, networks.

Nothing here knows a hook, a run or a logger.
"""
