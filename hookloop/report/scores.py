"""Scores of an inference, taken from the keys of the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_BASELINES = {"crps": "mae_baseline"}
"""What a result is compared with, where that is not called ``<result>_baseline``."""
_MAIN = (
    *("error", "crps_relative", "crps", "rmse", "bias", "spread_skill"),
    *("energy_score", "tail_error", "lsd_radial", "small_scale_energy"),
)
"""Results that are shown first, whether or not there are intervals of them."""
_COUNT = 10
"""Whole numbers from here are counts."""
_LONG, _LONGEST = 1e4, 1e7
"""Numbers between these have more than four digits before the point, and are written out all the same."""


@frozen
class Key:
    """Where a number stands: ``inference/[<set>/][lead/<lead>/]<result>[/<variable>]``."""

    set: str
    """Of the inference; empty where there is only one."""
    lead: str
    """Lead time; empty for all together."""
    result: str
    variable: str
    """Empty for the mean over variables."""


@frozen
class Result:
    """A score with its interval and its baseline, where there are any."""

    key: Key
    value: float
    interval: tuple[float, float] | None
    baseline: float | None
    relative: tuple[float, float] | None
    """The interval of its ratio to the baseline on the same cases, where there is one: what a verdict needs."""


def keys_in(metrics: Mapping[str, float]) -> dict[Key, float]:
    """Numbers of inferences, by where they stand."""
    paths = {key: key.split("/")[1:] for key in metrics if key.startswith("inference/")}
    deeper = {path[0] for path in paths.values() if len(path) > 2}  # noqa: PLR2004 - a result and a variable, and more
    sets = {path[0] for path in paths.values() if path[1:] == ["error"]} & deeper
    found: dict[Key, float] = {}
    for name, path in paths.items():
        own, rest = (path[0], path[1:]) if path[0] in sets and len(path) > 1 else ("", path)
        ahead, rest = (rest[1], rest[2:]) if rest[0] == "lead" and len(rest) > 2 else ("", rest)  # noqa: PLR2004
        if rest:
            found[Key(own, ahead, rest[0], "/".join(rest[1:]))] = metrics[name]
    return found


def inferred(metrics: Mapping[str, float]) -> list[Result]:
    """Join each score with its interval and its baseline."""
    found = keys_in(metrics)
    results = []
    for key, value in found.items():
        if not _is_part(key, found):
            ratio = "crps_relative" if key.result in {"crps", "crps_relative"} else f"{key.result}_relative"
            results.append(
                Result(
                    key,
                    value,
                    _interval(key, found),
                    _baseline(key, found),
                    _interval(_like(key, ratio), found),
                )
            )
    return results


def _interval(key: Key, found: Mapping[Key, float]) -> tuple[float, float] | None:
    low, high = (found.get(_like(key, f"{key.result}_{end}")) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


def _like(key: Key, result: str) -> Key:
    return Key(key.set, key.lead, result, key.variable)


def _is_part(key: Key, found: Mapping[Key, float]) -> bool:
    """Whether it is the end of an interval, or the baseline, of another."""
    whole, _, part = key.result.rpartition("_")
    if part in {"low", "high", "baseline"} and _like(key, whole) in found:
        return True
    return any(key.result == base and _like(key, whole) in found for whole, base in _BASELINES.items())


def _baseline(key: Key, found: Mapping[Key, float]) -> float | None:
    if key.result == "crps_relative":
        return 1.0
    return found.get(_like(key, _BASELINES.get(key.result, f"{key.result}_baseline")))


def headline(results: Sequence[Result], chosen: Iterable[str] = ()) -> list[str]:
    """Results to show first: the main ones, then those that choose checkpoints and those with intervals.

    :param chosen: keys of metrics, or names of results, by which checkpoints are chosen.
    """
    there = dict.fromkeys(result.key.result for result in results)
    wanted = {result.key.result for result in results if result.interval}
    wanted |= {part for key in chosen for part in key.split("/")}
    return [name for name in _MAIN if name in there] + [
        name for name in there if name in wanted and name not in _MAIN
    ]


def is_repeated(result: Result, results: Sequence[Result]) -> bool:
    """Whether it is the mean over variables of which there is only one."""
    key = result.key
    alike = [
        own.key.variable for own in results if own.key == Key(key.set, key.lead, key.result, own.key.variable)
    ]
    return not key.variable and len(alike) == 2  # noqa: PLR2004 - it, and the one variable


def numeral(value: float) -> str:
    """A number of four significant digits, zeros among them; a count as it is."""
    if value != value:  # noqa: PLR0124 - NaN
        return "NaN"
    if _COUNT <= abs(value) < _LONGEST and value.is_integer():
        written = f"{value:,.0f}"
    elif _LONG <= abs(value) < _LONGEST:
        written = f"{float(f'{value:.3e}'):,.0f}"
    else:
        written = f"{value:#.4g}".rstrip(".")
    return written.replace("-", "−")
