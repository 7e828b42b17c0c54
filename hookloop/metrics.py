"""Finding a metric to decide by among those that were measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hookloop.errors import HookloopError
from hookloop.words import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hookloop.core import Run


def measured(run: Run, metrics: Mapping[str, float], key: str, option: str) -> float | None:
    """Find the metric *key*, which *option* has named; where it is NaN, say so.

    :returns: ``None`` for a score of an inference that was not due, as in epochs without generation.
    :raises HookloopError: where it was not measured, with what there is.
    """
    if is_not_due(metrics, key):
        return None
    if key not in metrics:
        there = names_in(metrics)
        raise HookloopError(
            f"{option}: {key} was not measured in this evaluation; there are {', '.join(there) or 'none'}"
            f"{suggestion(key, there)}"
        )
    value = float(metrics[key])
    if math.isnan(value):
        run.events.warning("metric.undefined", metric=key, value="NaN", hint="it counts as no improvement")
    return value


def is_not_due(metrics: Mapping[str, float], key: str) -> bool:
    """Whether *key* is a score of an inference, and there was none among *metrics*."""
    return key.startswith("inference/") and not any(name.startswith("inference/") for name in metrics)


def names_in(metrics: Mapping[str, float]) -> list[str]:
    """What one may decide by: everything but times."""
    return sorted(name for name in metrics if not name.startswith("epoch/"))
