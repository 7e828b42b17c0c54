"""Where the states of a split live: held in memory and gathered there, or read from their files when needed."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from attrs import define, field, frozen
from torch import Tensor

from hookloop.data.fields import Gaps, whole
from hookloop.data.places import at_once
from hookloop.data.readers import open_reading
from hookloop.data.reading import Cut, Job, Slab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from hookloop.data.fields import Fields, Ints
    from hookloop.data.places import Place
    from hookloop.data.readers import Reading, Tell
    from hookloop.plugins.forecast.states import States

_AHEAD = 3
"""Batches that are read at the same time, that at hand included."""

Sides = tuple[Tensor, Tensor]
"""Present and following fields, ``[case, variable, lat, lon]`` each, physical."""


class Store(Protocol):
    """The fields of a split, by number of time."""

    @property
    def place(self) -> torch.device:
        """Where it serves them."""

    def steps(self, present: Ints, following: Ints, batch_size: int) -> Iterator[Sides]:
        """Yield the fields of the times with these numbers, ``[step]``, in batches; nothing else is read."""

    def at(self, times: Ints) -> Tensor:
        """The fields of some times, ``[time, variable, lat, lon]``."""


@frozen(eq=False)
class Held:
    """A split in memory, of the machine or of its GPU."""

    values: Tensor
    """``[time, variable, lat, lon]``."""

    @property
    def place(self) -> torch.device:
        """Where they are."""
        return self.values.device

    def steps(self, present: Ints, following: Ints, batch_size: int) -> Iterator[Sides]:
        """Gather them where they are; the numbers are brought there all at once."""
        there = torch.from_numpy(np.stack([present, following])).to(self.place)
        for own, after in torch.split(there, batch_size, 1):
            yield self.values[own], self.values[after]

    def at(self, times: Ints) -> Tensor:
        """Gather them where they are."""
        return self.values[torch.from_numpy(times).to(self.place)]


@define(eq=False)
class Streamed:
    """A split in its files: batches are read into slabs, some ahead of the one that is learnt.

    :param reading: carries out jobs, whose two sides are the present and the following fields.
    :param workers: how many jobs are carried out at once.
    :param pinned: whether to put batches where a GPU can copy them from while it computes.
    """

    fields: Fields
    reading: Reading
    workers: int
    pinned: bool
    _numbers: Iterator[int] = field(factory=count, init=False)

    @property
    def place(self) -> torch.device:
        """Memory of the machine."""
        return torch.device("cpu")

    def steps(self, present: Ints, following: Ints, batch_size: int) -> Iterator[Sides]:
        """Read them, a few batches ahead."""
        cut = (slice(first, first + batch_size) for first in range(0, len(present), batch_size))
        coming = ((present[own], following[own]) for own in cut)
        asked: deque[tuple[Slab, list[int]]] = deque()
        try:
            while True:
                while len(asked) < _AHEAD and (batch := next(coming, None)) is not None:
                    asked.append(self._asked(batch))
                if not asked:
                    return
                slab, jobs = asked[0]
                while jobs:
                    self.reading.wait(jobs.pop())
                sides = self._copied(slab)
                asked.popleft()
                self.reading.give_back(slab)
                yield sides
        finally:
            for slab, _ in asked:
                self.reading.give_back(slab)

    def at(self, times: Ints) -> Tensor:
        """Read them, in this process."""
        return torch.from_numpy(self.fields.read(whole(self.fields, times, np.zeros_like(times))))

    def _asked(self, step: tuple[Ints, Ints]) -> tuple[Slab, list[int]]:
        """Submit the jobs that read *step*, as many as can be carried out at once."""
        rows = np.arange(len(step[0]))
        shape = (len(rows), len(self.fields.parts), *self.fields.shape)
        slab = self.reading.borrow((shape, shape))
        jobs = []
        for own in np.array_split(rows, min(len(rows), max(self.workers, 1))):
            jobs.append(number := next(self._numbers))
            present, following = (self._cut(own, times[own]) for times in step)
            self.reading.submit(Job(number, slab.number, (present, following)))
        return slab, jobs[::-1]

    def _cut(self, rows: Ints, times: Ints) -> Cut:
        corner = np.zeros((len(rows), 2), np.int64)
        return Cut(rows, times, np.zeros_like(times), corner, self.fields.shape, 0, wraps=False)

    def _copied(self, slab: Slab) -> Sides:
        present, following = (
            torch.empty(side.shape, pin_memory=self.pinned).copy_(torch.from_numpy(side))
            for side in slab.sides()
        )
        return present, following


def open_store(
    states: States,
    place: Place,
    workers: int | Literal["auto"],
    device: torch.device,
    tell: Tell,
    cleanup: ExitStack,
) -> Store:
    """Read *states* where they are to live, or start what reads them as they are needed.

    :raises HookloopError: where a value that is held is not finite.
    """
    fields = states.fields
    if place != "none":
        return held(fields, device if place == "device" else torch.device("cpu"))
    reading, number = open_reading((fields, fields), workers, tell, cleanup)
    return Streamed(fields, reading, number, pinned=device.type == "cuda")


def held(fields: Fields, device: torch.device) -> Held:
    """Read all of *fields* into the memory of *device*.

    :raises HookloopError: where a value is not finite; it says how many are not, and where the first is.
    """
    values = torch.empty(len(fields.times), len(fields.parts), *fields.shape, device=device)
    for times, block in blocks(fields):
        values[times.start : times.stop] = block
    return Held(values)


def blocks(fields: Fields) -> Iterator[tuple[range, Tensor]]:
    """Read all of *fields*, some times at once: their numbers and ``[time, variable, lat, lon]``.

    :raises HookloopError: at the end, where a value is not finite; it says how many are not.
    """
    gaps, together = Gaps(), times_at_once(fields)
    for first in range(0, len(fields.times), together):
        times = np.arange(first, min(first + together, len(fields.times)))
        values = fields.read(whole(fields, times, np.zeros_like(times)), gaps=gaps)
        yield range(int(times[0]), int(times[-1]) + 1), torch.from_numpy(values)
    gaps.refuse()


def times_at_once(fields: Fields) -> int:
    """How many times of *fields* are read together."""
    return at_once(4 * len(fields.parts) * int(np.prod(fields.shape)))
