"""Scores as pure functions: nothing here knows a hook, a run or a logger."""
