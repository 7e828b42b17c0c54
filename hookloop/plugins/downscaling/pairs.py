"""Pairs of coarse and fine fields: chosen and checked once, at opening, and not read yet."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from attrs import evolve, frozen

from hookloop.data.calendars import (
    calendar_of,
    dates,
    hour_of_day,
    labels,
    minutes_since,
    only_in,
    same,
    span,
)
from hookloop.data.files import open_fields, select
from hookloop.data.selection import chosen, in_ranges, without_neighbours
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.alignment import by_cells, by_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hookloop.data.calendars import Times
    from hookloop.data.fields import Fields, Ints
    from hookloop.data.grids import Grid
    from hookloop.data.options import SourceConfig
    from hookloop.plugins.downscaling.data_options import SplitConfig

    Pairing = Literal["cells", "index"]

_DAY = 1440
"""Minutes."""


@frozen(eq=False)
class Pair:
    """Coarse and fine fields of the same times and extent, in physical units, south to north.

    A case is one time of one member: number time · members + member.
    """

    coarse: Fields
    """The input variables."""
    fine: Fields
    """The output variables."""
    times: Times
    coarse_grid: Grid
    fine_grid: Grid
    factor: int
    """Fine cells to a coarse cell along each axis."""
    inputs: list[str]
    outputs: list[str]
    units: dict[str, str]
    """By variable; empty where the files say nothing."""
    members: int
    """Of the coarse fields; each of them has the same fine field."""
    periodic: bool
    """Whether the coarse region is a whole circle of longitudes, so that its last column is beside its first."""
    notes: list[str]
    """What a user should know of how the two were brought together, a sentence each."""

    @property
    def n_cases(self) -> int:
        """Count the times of all members."""
        return len(self.times) * self.members

    @property
    def nbytes(self) -> int:
        """Bytes of all fields, as float32."""
        coarse = self.n_cases * len(self.inputs) * math.prod(self.coarse.shape)
        return 4 * (coarse + len(self.times) * len(self.outputs) * math.prod(self.fine.shape))


def open_pair(
    split: SplitConfig,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    fill: Mapping[str, float] | None = None,
    pairing: Pairing = "cells",
) -> Pair:
    """Open the *inputs* of the coarse and the *outputs* of the fine files of *split*; no field is read.

    :param fill: by variable, what stands in for missing values.
    :param pairing: ``cells``: fine cells fill coarse ones; ``index``: by row and column, in roughly the same
        place, and by day where both sides have one time a day, always at the same hour.
    :raises HookloopError: where a file or variable is missing, or times or grids do not match or lie outside
        of what was asked for; it says what, where and how many.
    """
    fill = fill or {}
    coarse = _open(split.coarse, inputs, split, fill)
    fine = _open(split.fine, outputs, split, fill)
    if fine.members > 1:
        raise HookloopError(
            f"{fine.where}: {fine.members} ensemble members of the fine fields; expected one, "
            "ensembles are of coarse fields"
        )
    notes = _match_times(coarse, fine, pairing)
    aligned = {"cells": by_cells, "index": by_index}[pairing](coarse, fine, split)
    return Pair(
        coarse=aligned.coarse,
        fine=aligned.fine,
        times=coarse.times,
        coarse_grid=aligned.coarse.grid,
        fine_grid=aligned.fine.grid,
        factor=aligned.factor,
        inputs=list(inputs),
        outputs=list(outputs),
        units={**coarse.units, **fine.units},
        members=coarse.members,
        periodic=aligned.periodic,
        notes=[*coarse.notes, *fine.notes, *notes, *aligned.notes, *_other_units(coarse, fine)],
    )


def gap_between(train: Pair, seen: Iterable[Pair], gap: str) -> Pair:
    """Leave out the times of *train* that are nearer than *gap* to a time of the pairs that are only looked at.

    Times of another calendar are no neighbours.

    :raises HookloopError: where none is left.
    """
    keep = np.arange(len(train.times))
    for other in seen:
        if calendar_of(other.times) == calendar_of(train.times):
            keep = np.intersect1d(keep, without_neighbours(train.times, other.times, gap))
    found, left = len(train.times), len(keep)
    if left == found:
        return train
    counted = f"{found - left} of {found} training times are nearer than {gap} to one that is only looked at"
    if not left:
        raise HookloopError(f"gap: {counted}, {span(train.times)}; expected some to be left")
    return evolve(
        train,
        coarse=select(train.coarse, keep),
        fine=select(train.fine, keep),
        times=train.times[keep],
        notes=[*train.notes, f"gap: {counted}, and left out"],
    )


def overlap(train: Pair, seen: Pair) -> int:
    """Count the times of *seen* that are also learnt."""
    if calendar_of(seen.times) != calendar_of(train.times):
        return 0
    return len(seen.times) - len(only_in(seen.times, train.times))


def _open(
    sources: Sequence[str | SourceConfig],
    variables: Sequence[str],
    split: SplitConfig,
    fill: Mapping[str, float],
) -> Fields:
    own = {v: fill[v] for v in variables if v in fill}
    fields = open_fields(sources, variables, fill=own, among=partial(in_ranges, split=split))
    return select(fields, chosen(fields.times, split, fields.where))


def _match_times(coarse: Fields, fine: Fields, pairing: Pairing) -> list[str]:
    """Check that both have the same times, or the same days; what is not the same is noted."""
    calendars = [calendar_of(fields.times) for fields in (coarse, fine)]
    if len(set(calendars)) > 1:
        raise HookloopError(
            f"calendars do not match: {calendars[0]} in {coarse.where}, {calendars[1]} in {fine.where}; "
            "expected the same in both"
        )
    if same(coarse.times, fine.times):
        return []
    lonely = only_in(coarse.times, fine.times), only_in(fine.times, coarse.times)
    notes: list[str] = []
    if pairing == "index" and _is_daily(coarse.times) and _is_daily(fine.times):
        here, there = (_days(fields.times, coarse.times[:1]) for fields in (coarse, fine))
        lonely = coarse.times[~np.isin(here, there)], fine.times[~np.isin(there, here)]
        first = [f"{labels(fields.times[:1])[0]} in {fields.where}" for fields in (coarse, fine)]
        notes = [
            f"times are matched by day: {' with '.join(first)}, and so on; those of the coarse fields count"
        ]
    problems = [
        f"{len(times)} only in {fields.where}, the first {dates(times)}"
        for times, fields in zip(lonely, (coarse, fine), strict=True)
        if len(times)
    ]
    if problems:
        raise HookloopError(f"times do not match: {'; '.join(problems)}; expected the same in both")
    return notes


def _is_daily(times: Times) -> bool:
    """Whether there is one time a day at most, always at the same hour."""
    return not (minutes_since(times, times[0]) % _DAY).any()


def _days(times: Times, first: Times) -> Ints:
    """Number the days of *times*, counted from that of *first*, a single time."""
    minute = round(60 * float(hour_of_day(first)[0]))
    return (minutes_since(times, first[0]) + minute) // _DAY


def _other_units(coarse: Fields, fine: Fields) -> list[str]:
    return [
        f"units of {name}: {unit} in {coarse.where}, {fine.units[name]} in {fine.where}"
        for name, unit in coarse.units.items()
        if unit and fine.units.get(name) and fine.units[name] != unit
    ]
