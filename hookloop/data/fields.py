"""Fields on a grid: which file holds what, and how the cells of many patches are read with few reads.

Nothing of torch is imported here, so that the processes that read start quickly.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from itertools import chain, product
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from attrs import define, field, frozen

from hookloop.data.calendars import dates
from hookloop.data.grids import Grid
from hookloop.data.stored import Box, Floats, Ints, Part, fetch
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hookloop.data.calendars import Times
    from hookloop.data.grids import Axis

_Runs: TypeAlias = "tuple[list[slice], list[slice], list[slice]]"
_View: TypeAlias = "slice | Ints"

__all__ = ["Fields", "Floats", "Gaps", "Ints", "Part", "Wanted", "whole"]


@frozen(eq=False)
class Wanted:
    """Which cells to read: of each item one time, one member, and the same number of rows and columns."""

    times: Ints
    """``[item]``, numbers of times."""
    members: Ints
    """``[item]``."""
    rows: Ints
    """``[item, row]``, northwards; a row may occur more than once."""
    columns: Ints
    """``[item, column]``, eastwards."""


@define(eq=False)
class Gaps:
    """Values that are not finite, counted over many reads; the first of them is remembered."""

    bad: dict[str, int] = field(factory=lambda: defaultdict(int))
    seen: dict[str, int] = field(factory=lambda: defaultdict(int))
    first: dict[str, str] = field(factory=dict)

    def refuse(self, option: str = "fill: {{{name}: …}}") -> None:
        """Raise a ``HookloopError`` if there were any.

        :param option: what puts a value in their place, with ``{name}`` where the variable is named.
        """
        for name, bad in self.bad.items():
            raise HookloopError(
                f"variable {name}: {bad} of {self.seen[name]} values ({bad / self.seen[name]:.2%}) are NaN or "
                f"infinite, the first at {self.first[name]}; expected none; "
                f"{option.format(name=name)} puts a value in their place"
            )


@frozen(eq=False)
class Fields:
    """Variables on one grid at the same times, to be read from files."""

    where: str
    """What to call the files in an error."""
    parts: Mapping[str, Sequence[Part]]
    """By variable; the times of its parts, one after another, are ``times``."""
    times: Times
    latitude: Axis
    longitude: Axis
    members: int = 1
    fill: Mapping[str, float] = field(factory=dict)
    """What stands in for missing values, by variable."""
    units: Mapping[str, str] = field(factory=dict)
    levels: Mapping[str, str] = field(factory=dict)
    """Of variables that were asked for at one, such as ``850 hPa``."""
    notes: Sequence[str] = ()
    """What a user should know of the files, a sentence each."""
    gridded: bool = True
    """Whether there are latitudes and longitudes; else the axes count rows and columns."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells in latitude and longitude."""
        return len(self.latitude.values), len(self.longitude.values)

    @property
    def grid(self) -> Grid:
        """Where the cells lie."""
        order = [axis.index if axis.oriented else None for axis in (self.latitude, self.longitude)]
        return Grid(self.latitude.values, self.longitude.values, self.gridded, (order[0], order[1]))

    def read(self, wanted: Wanted, *, gaps: Gaps | None = None, retried: list[str] | None = None) -> Floats:
        """Read the cells, ``[item, variable, row, column]``; what several items share is read once.

        :param gaps: counts values that are not finite instead of refusing them.
        :param retried: collects what could be read only at a second attempt.
        :raises HookloopError: where files cannot be read or values are not finite.
        """
        shape = (len(wanted.times), len(self.parts), wanted.rows.shape[1], wanted.columns.shape[1])
        values = np.empty(shape, np.float32)
        pieces = [(layout, piece) for layout in self._layouts for piece in self._pieces(layout[0], wanted)]
        fetched = fetch([box for layout, piece in pieces for box in self._boxes(layout, piece)])
        found = iter(fetched.values)
        for layout, piece in pieces:
            for variable in layout:
                piece.place(found, values[:, variable])
        if retried is not None:
            retried.extend(fetched.retried)
        self._check(values, wanted, gaps)
        return values

    @cached_property
    def _layouts(self) -> list[list[int]]:
        """Numbers of variables, those together that are stored alike: what is worked out for one is true for all."""
        layouts: list[tuple[Sequence[Part], list[int]]] = []
        for variable, parts in enumerate(self.parts.values()):
            for others, numbers in layouts:
                if _stored_alike(parts, others):
                    numbers.append(variable)
                    break
            else:
                layouts.append((parts, [variable]))
        return [numbers for _, numbers in layouts]

    def _boxes(self, layout: Sequence[int], piece: _Piece) -> Iterator[Box]:
        every = list(self.parts.values())
        selections = piece.selections()
        for variable in layout:
            for selection in selections:
                yield Box(every[variable][piece.part], selection)

    def _pieces(self, variable: int, wanted: Wanted) -> Iterator[_Piece]:
        """Divide what is wanted of one variable into what is best read together."""
        parts = list(self.parts.values())[variable]
        ends = np.cumsum([len(part.index) for part in parts])
        number = np.searchsorted(ends, wanted.times, side="right")
        for p in np.unique(number):
            part = parts[p]
            items = np.flatnonzero(number == p)
            at = part.index[wanted.times[items] - (ends[p] - len(part.index))]
            chunk = at // part.chunks.get("time", int(at.max()) + 1)
            _, group = np.unique(chunk * self.members + wanted.members[items], return_inverse=True)
            for own in np.split(group.argsort(kind="stable"), np.bincount(group).cumsum()[:-1]):
                cells = _Cells(
                    items[own],
                    at[own],
                    self.latitude.index[wanted.rows[items[own]]],
                    self.longitude.index[wanted.columns[items[own]]],
                )
                member = int(wanted.members[items[own[0]]])
                for chosen in cells.together_or_apart(part.chunks):
                    yield _Piece(int(p), member, chosen, chosen.runs(part.chunks))

    def _check(self, values: Floats, wanted: Wanted, gaps: Gaps | None) -> None:
        """Fill what is missing, and count what is still not finite."""
        if gaps is None and np.isfinite(values).all():
            return
        tally = gaps or Gaps()
        for v, name in enumerate(self.parts):
            own = values[:, v]
            if name in self.fill:
                own[np.isnan(own)] = self.fill[name]
            tally.seen[name] += own.size
            bad = ~np.isfinite(own)
            if bad.any():
                tally.bad[name] += int(bad.sum())
                tally.first.setdefault(name, self._place(bad, wanted, name))
        if gaps is None:
            tally.refuse()

    def _place(self, bad: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], wanted: Wanted, name: str) -> str:
        n, i, j = np.unravel_index(int(bad.argmax()), bad.shape)
        time = wanted.times[[n]]
        ends = np.cumsum([len(part.index) for part in self.parts[name]])
        part = self.parts[name][int(np.searchsorted(ends, time[0], side="right"))]
        return (
            f"time {dates(self.times[time])}, latitude {self.latitude.values[wanted.rows[n, i]]:g}, "
            f"longitude {self.longitude.values[wanted.columns[n, j]]:g} in {part.path}"
        )


def _stored_alike(some: Sequence[Part], others: Sequence[Part]) -> bool:
    return len(some) == len(others) and all(
        dict(one.chunks) == dict(other.chunks) and np.array_equal(one.index, other.index)
        for one, other in zip(some, others, strict=True)
    )


@frozen(eq=False)
class _Cells:
    """Items that want cells of the same chunk of times of one part, by their place in the file."""

    items: Ints
    times: Ints
    rows: Ints
    columns: Ints

    def together_or_apart(self, chunks: Mapping[str, int]) -> list[_Cells]:
        """All items together, or each by itself, whatever decodes fewer cells of a field."""
        if len(self.items) == 1:
            return [self]
        together, apart = 1, np.ones(len(self.items), np.int64)
        for name, cells in (("latitude", self.rows), ("longitude", self.columns)):
            chunk = chunks.get(name, int(cells.max()) + 1)
            together *= len(np.unique(cells // chunk)) * chunk
            apart *= (cells.max(1) // chunk - cells.min(1) // chunk + 1) * chunk
        if together <= apart.sum():
            return [self]
        every = (self.items, self.times, self.rows, self.columns)
        return [_Cells(*(values[n : n + 1] for values in every)) for n in range(len(self.items))]

    def runs(self, chunks: Mapping[str, int]) -> _Runs:
        """Cover the cells with runs of neighbours along each dimension."""
        times, rows, columns = (
            _runs(cells, chunks.get(name, int(cells.max()) + 1))
            for name, cells in (("time", self.times), ("latitude", self.rows), ("longitude", self.columns))
        )
        return times, rows, columns


@frozen(eq=False)
class _Piece:
    """What is read together of a part, and where its cells belong."""

    part: int
    member: int
    cells: _Cells
    runs: _Runs

    def selections(self) -> list[dict[str, slice]]:
        """Every combination of runs."""
        member = slice(self.member, self.member + 1)
        return [
            {"time": time, "member": member, "latitude": rows, "longitude": columns}
            for time, rows, columns in product(*self.runs)
        ]

    @cached_property
    def _views(self) -> list[tuple[int, int, _View, _View]]:
        """Of each item its number, and its time, rows and columns within what is read."""
        own, (times, rows, columns) = self.cells, self.runs
        return list(
            zip(
                own.items.tolist(),
                _positions(own.times, times).tolist(),
                _as_views(_positions(own.rows, rows)),
                _as_views(_positions(own.columns, columns)),
                strict=True,
            )
        )

    def place(self, found: Iterator[Floats], values: Floats) -> None:
        """Put what was read of one variable where the items want it."""
        times, rows, columns = self.runs
        block = next(found)
        if len(times) * len(rows) * len(columns) > 1:
            boxes = chain([block], found)
            block = np.block([[[next(boxes) for _ in columns] for _ in rows] for _ in times])
        for item, time, own_rows, own_columns in self._views:
            values[item] = block[time, own_rows][:, own_columns]


def whole(fields: Fields, times: Ints, members: Ints) -> Wanted:
    """Want whole fields of these times and members."""
    rows, columns = (np.broadcast_to(np.arange(n), (len(times), n)) for n in fields.shape)
    return Wanted(times, members, rows, columns)


def _runs(cells: Ints, slack: int) -> list[slice]:
    """Cover *cells* with slices; gaps of less than *slack* cells are read too."""
    flat = cells.ravel()
    if (np.abs(np.diff(flat)) <= slack).all():
        return [slice(int(flat.min()), int(flat.max()) + 1)]
    ordered = np.unique(flat)
    breaks = np.flatnonzero(np.diff(ordered) > slack) + 1
    return [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(ordered, breaks)]


def _positions(cells: Ints, runs: Sequence[slice]) -> Ints:
    """Where *cells* lie in what the slices *runs* cover."""
    if len(runs) == 1:
        return cells - int(runs[0].start)
    found: Ints = np.searchsorted(np.concatenate([np.arange(run.start, run.stop) for run in runs]), cells)
    return found


def _as_views(cells: Ints) -> list[_View]:
    """The cells of each item as a slice, where they are neighbours in order."""
    if cells.shape[1] == 1:
        return [slice(int(cell), int(cell) + 1) for cell in cells[:, 0]]
    step = cells[:, 1] - cells[:, 0]
    even = (np.diff(cells, axis=1) == step[:, None]).all(1) & (np.abs(step) == 1)
    views: list[_View] = []
    for own, is_even, each in zip(cells, even, step.tolist(), strict=True):
        end = int(own[-1]) + each
        views.append(slice(int(own[0]), None if end < 0 else end, each) if is_even else own)
    return views
