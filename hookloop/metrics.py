"""Finding a metric to decide by among those that were measured."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING

from hookloop.errors import HookloopError
from hookloop.words import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hookloop.core import Run

_FEW = 5
"""So many names are told."""


def measured(run: Run, metrics: Mapping[str, float], key: str, option: str) -> float | None:
    """Find the metric *key*, which *option* has named; where it is NaN, say so.

    :returns: ``None`` for a score of an inference that was not due, as in epochs without generation.
    :raises HookloopError: where it was not measured, with what there is.
    """
    if is_not_due(metrics, key):
        return None
    if key not in metrics:
        raise HookloopError(
            f"{option}: {key} was not measured in this evaluation; there are {near(key, metrics)}"
        )
    value = float(metrics[key])
    if math.isnan(value):
        run.events.warning("metric.undefined", metric=key, value="NaN", hint="it counts as no improvement")
    return value


def is_not_due(metrics: Mapping[str, float], key: str) -> bool:
    """Whether *key* is a score of an inference, and there was none among *metrics*."""
    return key.startswith("inference/") and not any(name.startswith("inference/") for name in metrics)


def near(key: str, metrics: Mapping[str, float]) -> str:
    """Tell what one may decide by instead of *key*: everything but times, or the few names nearest to it."""
    there = sorted(name for name in metrics if not name.startswith("epoch/"))
    if len(there) <= _FEW:
        told = ", ".join(there) or "none"
    else:
        told = f"{', '.join(get_close_matches(key, there, _FEW, cutoff=0))} and {len(there) - _FEW} more"
    return f"{told}{suggestion(key, there)}"
