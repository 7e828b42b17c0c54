"""Which times a split uses: ranges, one time in so many, blocks that repeat, and a gap to other splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hookloop.data.calendars import minutes_since, span, within
from hookloop.data.options import minutes
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hookloop.data.calendars import Times
    from hookloop.data.options import RepeatConfig, SplitOptions

Ints = npt.NDArray[np.int64]
Range = tuple[str, str]


def chosen(times: Times, split: SplitOptions, where: str) -> Ints:
    """Choose from ascending *times* by ``time``, ``every`` and ``repeat`` of *split*; ``[chosen]``, ascending.

    ``every`` and ``repeat`` count from the first time that lies in a range.

    :param where: what to call the files in an error.
    :raises HookloopError: where a date or duration makes no sense, or a range or all of them leave nothing.
    """
    inside = _in_ranges(times, _ranges(split), where)
    since = minutes_since(times[inside], times[inside[0]])
    keep = np.ones(len(inside), np.bool_)
    if split.every is not None:
        keep &= since % _interval("every", split.every) == 0
    if split.repeat is not None:
        keep &= _in_blocks(since, split.repeat)
    if not keep.any():
        raise HookloopError(
            f"{_asked(split)} leaves none of {len(inside)} times: {where} has {span(times[inside])}; "
            "expected some to be left"
        )
    return inside[keep]


def in_ranges(times: Times, split: SplitOptions) -> npt.NDArray[np.bool_]:
    """Which of *times* lie in a range of *split*; all, where it has none.

    :raises HookloopError: where a date makes no sense.
    """
    ranges = _ranges(split)
    inside = np.full(len(times), not ranges)
    for first, last in ranges:
        inside[_numbers(times, first, last)] = True
    return inside


def without_neighbours(times: Times, others: Times, gap: str) -> Ints:
    """Choose those of *times* that are at least *gap* before or after each of *others*; all ascend."""
    if not len(times) or not len(others):
        return np.arange(len(times))
    here, there = (minutes_since(these, times[0]) for these in (times, others))
    after = np.searchsorted(there, here)
    distances = [np.abs(here - there[n.clip(0, len(there) - 1)]) for n in (after - 1, after)]
    return np.flatnonzero(np.minimum(*distances) >= minutes(gap))


def _ranges(split: SplitOptions) -> Sequence[Range]:
    if split.time is None:
        return []
    return [split.time] if isinstance(split.time, tuple) else split.time


def _in_ranges(times: Times, ranges: Sequence[Range], where: str) -> Ints:
    """Choose the times in any of *ranges*, each time once; all times where there are none."""
    if not len(times):
        raise HookloopError(f"no times: {where} has none at all")
    if not ranges:
        return np.arange(len(times))
    return np.unique(np.concatenate([_in_range(times, one, where) for one in ranges]))


def _in_range(times: Times, ends: Range, where: str) -> Ints:
    first, last = ends
    inside = _numbers(times, first, last)
    if not len(inside):
        raise HookloopError(f"no times in {first} to {last}: {where} has {span(times)}")
    return inside


def _numbers(times: Times, first: str, last: str) -> Ints:
    try:
        return np.arange(len(times))[within(times, first, last)]
    except ValueError as problem:
        raise HookloopError(f"time: {problem}") from problem


def _in_blocks(since: Ints, repeat: RepeatConfig) -> npt.NDArray[np.bool_]:
    every, take, start = minutes(repeat.every), minutes(repeat.take), minutes(repeat.start)
    return (since >= start) & ((since - start) % every < take)


def _interval(option: str, duration: str) -> int:
    length = minutes(duration)
    if length == 0:
        raise HookloopError(f"{option}: expected a duration longer than nothing, found {duration}")
    return length


def _asked(split: SplitOptions) -> str:
    asked = [] if split.every is None else [f"every {split.every}"]
    if (repeat := split.repeat) is not None:
        asked.append(f"repeat ({repeat.take} of every {repeat.every} from {repeat.start} on)")
    return " and ".join(asked)
