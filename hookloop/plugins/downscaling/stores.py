"""Where a split lives: held in memory and gathered there, or streamed from its files as it is needed."""

from __future__ import annotations

from collections import deque
from itertools import count, pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from attrs import define, field, frozen
from torch import Tensor

from hookloop.data.fields import Gaps, Ints, whole
from hookloop.data.places import at_once
from hookloop.data.readers import open_reading
from hookloop.data.reading import Cut, Job, Slab
from hookloop.plugins.downscaling.patches import cells, fine_corner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

    from hookloop.data.places import Place
    from hookloop.data.readers import Reading, Tell
    from hookloop.data.reading import Shape as SlabShape
    from hookloop.plugins.downscaling.pairs import Pair
    from hookloop.plugins.downscaling.patches import Plan, Shape

HALO = 2
"""Coarse cells around each patch: bicubic interpolation of a patch then equals that of the whole field."""
_READS = 4
"""Reads of a job at least: zarr works at them at the same time."""

Sides = tuple[Tensor, Tensor]
"""Coarse patches with their halo, fine patches."""


class Store(Protocol):
    """A split, to be served in patches or whole."""

    @property
    def place(self) -> torch.device:
        """Where it serves them, and wants to be told which."""

    def patches(self, plan: Plan, patch: Shape, batch_size: int, start: int, stop: int) -> Iterator[Sides]:
        """Yield the batches ``start … stop - 1`` of *plan*; nothing before them is read."""

    def fields(self, cases: Tensor) -> Sides:
        """Whole fields, the coarse ones with their halo."""


@frozen(eq=False)
class Held:
    """A split in memory, of the machine or of its GPU."""

    coarse: Tensor
    """``[case, input, lat, lon]``."""
    fine: Tensor
    """``[time, output, factor·lat, factor·lon]``."""
    factor: int
    wraps: bool

    @property
    def place(self) -> torch.device:
        """Where they are."""
        return self.fine.device

    def patches(self, plan: Plan, patch: Shape, batch_size: int, start: int, stop: int) -> Iterator[Sides]:
        """Gather them where they are."""
        for n in range(start, stop):
            own = slice(n * batch_size, (n + 1) * batch_size)
            yield self._gathered(plan.cases[own], plan.corner[own], patch)

    def fields(self, cases: Tensor) -> Sides:
        """Gather them where they are."""
        shape = self.coarse.shape[2], self.coarse.shape[3]
        corner = torch.zeros(len(cases), 2, dtype=torch.int64, device=self.place)
        return self._gathered(cases, corner, shape)

    def _gathered(self, cases: Tensor, corner: Tensor, patch: Shape) -> Sides:
        members = len(self.coarse) // len(self.fine)
        size = patch[0] * self.factor, patch[1] * self.factor
        return (
            _cut(self.coarse, cases, corner, patch, HALO, wraps=self.wraps),
            _cut(self.fine, cases // members, fine_corner(corner, self.factor), size, 0, wraps=self.wraps),
        )


def _cut(fields: Tensor, cases: Tensor, corner: Tensor, size: Shape, halo: int, *, wraps: bool) -> Tensor:
    """Cut one patch of *fields* ``[case, variable, lat, lon]`` for each case."""
    height, width = fields.shape[-2:]
    if not halo and size == (height, width):
        return fields[cases]
    rows = cells(corner[:, 0], size[0], halo, height, wraps=False)
    columns = cells(corner[:, 1], size[1], halo, width, wraps=wraps)
    if fields.device.type == "cpu":
        return _copied(fields, cases, rows, columns)
    variables = torch.arange(fields.shape[1], device=fields.device)
    return fields[
        cases[:, None, None, None],
        variables[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _copied(fields: Tensor, cases: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Copy patch by patch, on a CPU faster than all in one indexing, where they lie inside."""
    patches = torch.empty(len(cases), fields.shape[1], rows.shape[1], columns.shape[1])
    spans = torch.stack([rows[:, 0], rows[:, -1] + 1, columns[:, 0], columns[:, -1] + 1], 1)
    inside = _are_neighbours(rows) & _are_neighbours(columns)
    for n, (case, (south, north, west, east), simple) in enumerate(
        zip(cases.tolist(), spans.tolist(), inside.tolist(), strict=True)
    ):
        if simple:
            patches[n] = fields[case, :, south:north, west:east]
        else:
            patches[n] = fields[case][:, rows[n]][:, :, columns[n]]
    return patches


def _are_neighbours(cells: Tensor) -> Tensor:
    return (cells.diff(dim=1) == 1).all(1)


def held(pair: Pair, device: torch.device) -> Held:
    """Read the whole of *pair* into the memory of *device*, a block of times after another.

    :raises HookloopError: where a value is not finite; it says how many are not, and where the first is.
    """
    coarse = torch.empty(pair.n_cases, len(pair.inputs), *pair.coarse.shape, device=device)
    fine = torch.empty(len(pair.times), len(pair.outputs), *pair.fine.shape, device=device)
    done = 0
    for some_coarse, some_fine in blocks(pair):
        coarse[done * pair.members :][: len(some_coarse)] = some_coarse
        fine[done:][: len(some_fine)] = some_fine
        done += len(some_fine)
    return Held(coarse, fine, pair.factor, pair.periodic)


def times_at_once(pair: Pair) -> int:
    """How many times of *pair* are read together."""
    return at_once(pair.nbytes // len(pair.times))


def blocks(pair: Pair) -> Iterator[Sides]:
    """Read all of *pair*, some times at once: ``[case, input, lat, lon]``, ``[time, output, lat, lon]``.

    :raises HookloopError: at the end, where a value is not finite; it says how many are not.
    """
    gaps, together = (Gaps(), Gaps()), times_at_once(pair)
    for first in range(0, len(pair.times), together):
        times = np.arange(first, min(first + together, len(pair.times)))
        cases = np.arange(first * pair.members, (times[-1] + 1) * pair.members)
        coarse = whole(pair.coarse, cases // pair.members, cases % pair.members)
        fine = whole(pair.fine, times, np.zeros_like(times))
        yield (
            torch.from_numpy(pair.coarse.read(coarse, gaps=gaps[0])),
            torch.from_numpy(pair.fine.read(fine, gaps=gaps[1])),
        )
    for found in gaps:
        found.refuse()


@define(eq=False)
class _Block:
    """Items of a plan that are read into one slab."""

    begin: int
    end: int
    slab: Slab
    jobs: Ints
    """``[item - begin]``, the number of the job that reads it."""
    waited: set[int] = field(factory=set)


@define(eq=False)
class Streamed:
    """A split in its files: patches are read into slabs, a block ahead of those that are learnt.

    :param workers: how many jobs are carried out at once.
    :param together: neighbouring times that one job reads, as in the plan.
    :param pinned: whether to put batches where a GPU can copy them from while it computes.
    """

    pair: Pair
    reading: Reading
    workers: int
    together: int
    pinned: bool
    _numbers: Iterator[int] = field(factory=count, init=False)

    def patches(self, plan: Plan, patch: Shape, batch_size: int, start: int, stop: int) -> Iterator[Sides]:
        """Read them, block after block."""
        begin, end = start * batch_size, min(stop * batch_size, len(plan.cases))
        rows = max((last - first for first, last in pairwise(plan.blocks)), default=0)
        shapes = self._shapes(rows, patch)
        coming = (
            (max(first, begin), min(last, end))
            for first, last in pairwise(plan.blocks)
            if first < end and last > begin
        )
        asked: deque[_Block] = deque()
        most = -(-batch_size // max(rows, 1)) + 1
        try:
            for first in range(begin, end, batch_size):
                last = min(first + batch_size, end)
                while len(asked) < most or asked[-1].end < last:
                    if (following := next(coming, None)) is None:
                        break
                    slab = self.reading.borrow(shapes)
                    asked.append(
                        _Block(*following, slab, self._asked(plan, patch, following, slab, batch_size))
                    )
                yield self._joined([block for block in asked if block.begin < last], first, last)
                while asked and asked[0].end <= last:
                    self.reading.give_back(asked.popleft().slab)
        finally:
            for block in asked:
                self.reading.give_back(block.slab)

    @property
    def place(self) -> torch.device:
        """Memory of the machine."""
        return torch.device("cpu")

    def fields(self, cases: Tensor) -> Sides:
        """Read them, in this process."""
        pair = self.pair
        times, members = np.divmod(cases.numpy(), pair.members)
        corner = np.zeros((len(times), 2), np.int64)
        cut = Cut(times, times, members, corner, pair.coarse.shape, HALO, pair.periodic)
        coarse = pair.coarse.read(cut.wanted(pair.coarse.shape))
        fine = pair.fine.read(whole(pair.fine, times, np.zeros_like(times)))
        return torch.from_numpy(coarse), torch.from_numpy(fine)

    def _shapes(self, rows: int, patch: Shape) -> tuple[SlabShape, SlabShape]:
        pair, (height, width) = self.pair, patch
        return (
            (rows, len(pair.inputs), height + 2 * HALO, width + 2 * HALO),
            (rows, len(pair.outputs), height * pair.factor, width * pair.factor),
        )

    def _asked(self, plan: Plan, patch: Shape, items: tuple[int, int], slab: Slab, batch_size: int) -> Ints:
        """Submit jobs for *items*, those of one read in one job, the first that are needed first.

        :returns: ``[item]``, the number of the job that reads it.
        """
        own = slice(*items)
        times, members = np.divmod(plan.cases[own].numpy(), self.pair.members)
        corner = plan.corner[own].numpy()
        _, begin, read, size = np.unique(
            times // self.together, return_index=True, return_inverse=True, return_counts=True
        )
        order = begin.argsort()
        before = np.empty(len(size), np.int64)
        before[order] = size[order].cumsum() - size[order]
        share = max(-(-batch_size // max(self.workers, 1)), _READS * int(size.max()))
        job = (before // share)[read]
        numbers = np.empty_like(job)
        for which in np.unique(job):
            rows = np.flatnonzero(job == which)
            numbers[rows] = number = next(self._numbers)
            self.reading.submit(
                Job(number, slab.number, self._cuts(rows, times[rows], members[rows], corner[rows], patch))
            )
        return numbers

    def _cuts(self, rows: Ints, times: Ints, members: Ints, corner: Ints, patch: Shape) -> tuple[Cut, Cut]:
        pair, (height, width) = self.pair, patch
        fine = height * pair.factor, width * pair.factor
        return (
            Cut(rows, times, members, corner, patch, HALO, pair.periodic),
            Cut(rows, times, np.zeros_like(members), corner * pair.factor, fine, 0, pair.periodic),
        )

    def _joined(self, here: Sequence[_Block], first: int, last: int) -> Sides:
        """Wait for the jobs that read the items *first … last - 1*, and copy these out of the slabs."""
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for block in here:
            own = slice(max(first, block.begin) - block.begin, min(last, block.end) - block.begin)
            for number in np.unique(block.jobs[own]):
                if number not in block.waited:
                    self.reading.wait(int(number))
                    block.waited.add(int(number))
            for part, side in zip(parts, block.slab.sides(), strict=True):
                part.append(torch.from_numpy(side[own]))
        coarse, fine = (self._put_together(part) for part in parts)
        return coarse, fine

    def _put_together(self, parts: Sequence[Tensor]) -> Tensor:
        shape = sum(len(part) for part in parts), *parts[0].shape[1:]
        return torch.cat(list(parts), out=torch.empty(shape, pin_memory=self.pinned))


def open_store(
    pair: Pair,
    place: Place,
    workers: int | Literal["auto"],
    together: int,
    device: torch.device,
    tell: Tell,
    cleanup: ExitStack,
) -> Store:
    """Read *pair* where it is to live, or start what reads it as it is needed.

    :param together: neighbouring times that are read at once.
    """
    if place != "none":
        return held(pair, device if place == "device" else torch.device("cpu"))
    sides = pair.coarse, pair.fine
    reading, count = open_reading(sides, workers, tell, cleanup)
    return Streamed(pair, reading, count, together, pinned=device.type == "cuda")
