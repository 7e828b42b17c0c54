"""Finding a metric to decide by among those that were measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hookloop.errors import HookloopError
from hookloop.words import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hookloop.core import Run


def measured(run: Run, metrics: Mapping[str, float], key: str, option: str) -> float:
    """Find the metric *key*, which *option* has named; where it is NaN, say so.

    :raises HookloopError: where it was not measured, with what there is.
    """
    if key not in metrics:
        there = sorted(name for name in metrics if not name.startswith("epoch/"))  # those are times
        raise HookloopError(
            f"{option}: {key} was not measured in this evaluation; there are {', '.join(there) or 'none'}"
            f"{suggestion(key, there)}"
        )
    value = float(metrics[key])
    if math.isnan(value):
        run.events.warning("metric.undefined", metric=key, value="NaN", hint="it counts as no improvement")
    return value
