"""How many examples of a property are tried: ``HOOKLOOP_EXAMPLES=100000`` tries that many, others at each start."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("HOOKLOOP_EXAMPLES", "0"))
"""How many of each; 0 is few, the same at each start."""


def many(few: int) -> settings:
    """Try *few* examples, always the same, or as many as were asked for."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
