"""Sums of one score, day by day: what its results and their intervals are made of."""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, cast

import torch
from attrs import define, field
from torch import Tensor

from hookloop.scores.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from hookloop.scores.score import Score, Sum

    Sums = Mapping[str, Sum]

_DRAWS = 1000
_TAIL = 0.025
"""Of the draws, beyond either end of an interval: 95 % lie within."""
_NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_FEWEST = 5
"""Days: resampling fewer tells nothing."""
_MOST = 400
"""Sums by day: with more days, neighbours share one, so that years take no more room than months."""


@define(eq=False)
class Tally:
    """What a score has counted; by day if intervals are wanted of any of its results."""

    score: Score
    _days: dict[str, dict[str, Sum]] = field(init=False, factory=dict)
    _shared: dict[str, str] = field(init=False, factory=dict)
    """By day, the earlier one whose sums it shares."""

    def know(self, days: Iterable[str]) -> None:
        """Put *days* in this order, before any case of them is counted.

        Tallies that know the same days let the same ones share their sums: only those can be merged to what one
        alone would have counted.
        """
        for day in days if self.score.headline else ():
            self._of(day)

    def add(self, day: str, sums: Sums) -> None:
        """Count more cases of *day*."""
        _add(self._of(day if self.score.headline else ""), sums)

    def merge(self, days: Mapping[str, Sums]) -> None:
        """Count what another has counted too: its :meth:`to_host`."""
        for day, sums in days.items():
            self.add(day, sums)

    def order(self, places: Mapping[str, tuple[int, int]]) -> None:
        """Put the days that have *places* in their order; those that share sums are where the first of them is."""
        self._days = dict(sorted(self._days.items(), key=lambda item: places.get(item[0], ())))

    def to_host(self) -> Mapping[str, Sums]:
        """Bring the sums to the host; give them by day, without the score, which need not be pickled."""
        self._days = {
            day: {name: value.cpu() for name, value in sums.items()} for day, sums in self._days.items()
        }
        return self._days

    def _of(self, day: str) -> dict[str, Sum]:
        """Give the sums that cases of *day* are added to."""
        if len(self._days) == _MOST and day not in self._days and day not in self._shared:
            self._join_neighbours()
        return self._days.setdefault(self._shared.get(day, day), {})

    def _join_neighbours(self) -> None:
        """Let every second day share the sums of the one before it."""
        days = list(self._days)
        joined = dict(zip(days[1::2], days[::2], strict=True))
        for day, before in joined.items():
            _add(self._days[before], self._days.pop(day))
        self._shared = {day: joined.get(before, before) for day, before in self._shared.items()} | joined

    @property
    def totals(self) -> dict[str, Sum]:
        """Sums over all days."""
        total: dict[str, Sum] = {}
        for sums in self._days.values():
            _add(total, sums)
        return total

    def results(self) -> Mapping[str, float]:
        """Scores of everything counted so far."""
        return self.score.results(self.totals)

    def intervals(self, seed: int) -> dict[str, tuple[float, float]]:
        """95 % intervals of the headline results, by block bootstrap over the days.

        Days are drawn with replacement, as many as there are, and scored together; the interval holds the
        middle of those scores, and is widened for few days. Hours of one day depend on each other, so whole days
        are drawn (Künsch 1989, Ann. Stat. 17, 1217). Days that depend on each other too make it too narrow. Of more
        than 400 days, neighbours are drawn together. With fewer than five days, or where a score is undefined
        for some draw, there is none.

        :param seed: of what is drawn.
        """
        n = len(self._days)
        if n < _FEWEST:
            return {}
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(n, (_DRAWS, n), generator=generator)
        times = torch.zeros(_DRAWS, n, dtype=torch.int64).scatter_add_(1, drawn, torch.ones_like(drawn))
        found = [self.score.results(sums) for sums in _resampled(list(self._days.values()), times)]
        estimate = self.results()
        return {
            name: _interval(estimate[name], [result[name] for result in found], n)
            for name in self.score.headline
            if name in estimate and all(name in result for result in found)
        }


def _add(total: dict[str, Sum], sums: Sums) -> None:
    for name, value in sums.items():
        total[name] = total[name] + value if name in total else value


def _resampled(days: Sequence[Mapping[str, Sum]], times: Tensor) -> Iterator[dict[str, Sum]]:
    """Sums of every draw, on the CPU.

    :param times: how often each draw holds each day, ``[draw, day]``.
    """
    names = list(dict.fromkeys(name for day in days for name in day))
    each = []
    for name in names:
        own = [i for i, day in enumerate(days) if name in day]
        each.append(_added([days[i][name].cpu() for i in own], times[:, own]))
    for totals in zip(*each, strict=True):
        yield dict(zip(names, totals, strict=True))


def _added(values: Sequence[Sum], times: Tensor) -> Iterator[Sum]:
    """Add up *values* for each draw, each as often as ``times[draw]`` says."""
    if isinstance(values[0], Tensor):
        stacked = torch.stack(cast("list[Tensor]", values))
        flat = times.to(torch.float64) @ stacked.reshape(len(values), -1).to(torch.float64)
        yield from cast("Sequence[Sum]", flat.to(stacked.dtype).view(len(times), *stacked.shape[1:]))
    elif isinstance(values[0], Histogram):
        yield from cast("Iterator[Sum]", Histogram.resampled(cast("list[Histogram]", values), times))
    else:
        for row in times.tolist():
            yield reduce(add, [value * n for value, n in zip(values, row, strict=True)])


def _interval(estimate: float, values: Sequence[float], days: int) -> tuple[float, float]:
    """The middle 95 % of *values*, made wider about *estimate* as a t interval of so many *days* is.

    Without it, 8 independent days would be covered 88 % of the time instead of 95 % (Hesterberg 2015, Am. Stat.
    69, 371: the percentile interval is too narrow by √((n-1)/n) and by normal instead of t quantiles).
    """
    ends = torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)
    low, high = (float(end) for end in torch.tensor(values, dtype=torch.float64).quantile(ends))
    wider = math.sqrt(days / (days - 1)) * _student(days - 1) / _NORMAL
    return estimate - wider * (estimate - low), estimate + wider * (high - estimate)


def _student(freedom: int) -> float:
    """Give the 97.5 % quantile of Student's t, to 0.3 % for 4 degrees of *freedom* or more.

    Source: Abramowitz & Stegun 1964, 26.7.5.
    """
    z, v = _NORMAL, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / v ** (i + 1) for i, term in enumerate(terms))
