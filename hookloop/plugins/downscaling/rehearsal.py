"""A split served without being read, to learn what a run would ask for, and what that would cost."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from hookloop.data.readers import default_workers
from hookloop.data.reading import Slab, expect_room
from hookloop.plugins.downscaling.dataset import PairedData
from hookloop.plugins.downscaling.read_cost import Cost, cost_of, times_in_a_chunk
from hookloop.plugins.downscaling.splits import order_seed
from hookloop.plugins.downscaling.stores import HALO, Streamed

if TYPE_CHECKING:
    from hookloop.core import Run
    from hookloop.data.reading import Job
    from hookloop.data.reading import Shape as SlabShape
    from hookloop.plugins.downscaling.data_options import PatchConfig, SplitConfig
    from hookloop.plugins.downscaling.pairs import Pair

_TOO_MUCH = 2.0
"""Decoding more than this for each value used is worth a hint."""
_WORTH_IT = 1.5
"""What a hint recommends is cheaper by this, at least."""


@define(eq=False)
class Asked:
    """A :class:`hookloop.data.readers.Reading` that notes what is asked for, and reads nothing."""

    slabs: list[Slab] = field(factory=list)
    jobs: list[Job] = field(factory=list)

    def borrow(self, shapes: tuple[SlabShape, SlabShape]) -> Slab:
        """A slab without memory."""
        self.slabs.append(Slab(len(self.slabs), -1, shapes, mmap.mmap(-1, 1)))
        return self.slabs[-1]

    def give_back(self, slab: Slab) -> None:
        """Keep it: how many are borrowed at once is what one wants to know."""

    def submit(self, job: Job) -> None:
        """Note *job*."""
        self.jobs.append(job)

    def wait(self, number: int) -> None:
        """Go no further: all that the first batch needs has been asked for, and what is read ahead of it."""
        raise _EnoughError(number)

    def expect_room(self) -> None:
        """Refuse slabs for which a run would find no memory, with its ``HookloopError``."""
        for slab in self.slabs:
            expect_room(slab.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of the slabs."""
        return 4 * sum(math.prod(shape) for slab in self.slabs for shape in slab.shapes)

    def corners(self, count: int) -> list[tuple[int, int]]:
        """South-west corners, in coarse cells, of the first *count* patches; a slab holds them in their order."""
        found = {
            (job.slab, int(row)): (int(corner[0]), int(corner[1]))
            for job in self.jobs
            for row, corner in zip(job.cuts[0].rows, job.cuts[0].corner, strict=True)
        }
        return [found[place] for place in sorted(found)[:count]]


class _EnoughError(Exception):
    pass


@frozen(eq=False)
class Rehearsal:
    """A split of a run, and how its patches are asked for."""

    name: str
    config: SplitConfig
    patch: PatchConfig
    pair: Pair
    run: Run

    @property
    def workers(self) -> int:
        """Processes that would read it, 0 for the run's own."""
        return default_workers() if self.config.workers == "auto" else self.config.workers

    def data(self, asked: Asked) -> PairedData:
        """Serve it in the run's own order, from files that are not read.

        :raises HookloopError: where the patch is larger than the grid, or its region outside.
        """
        store = Streamed(self.pair, asked, self.workers, self.patch.together, pinned=False)
        seed = order_seed(self.run) if self.name == "train" else None
        return PairedData(self.pair, store, self.patch, self.config.batch_size, seed, store.place)

    def asked(self) -> Asked:
        """What is asked for at the beginning of the first epoch."""
        asked = Asked()
        with suppress(_EnoughError):
            next(self.data(asked).batches(0))
        return asked

    def cost(self, asked: Asked) -> Cost:
        """What reading that costs."""
        return cost_of(asked.jobs, (self.pair.coarse, self.pair.fine))

    def hint(self, cost: Cost) -> str | None:
        """Say how reading would be cheaper, where much is decoded that is not used."""
        if cost.ratio <= _TOO_MUCH:
            return None
        wasted = f"{self.name}: {cost.ratio:.3g} values are decoded for each one used"
        together = max(times_in_a_chunk(fields) for fields in (self.pair.coarse, self.pair.fine))
        if together > self.patch.together:
            other = evolve(self, patch=evolve(self.patch, together=together))
            better = other.cost(other.asked()).ratio
            if cost.ratio >= _WORTH_IT * better:
                return (
                    f"{wasted}, since chunks hold {together} of its times and a read takes "
                    f"{self.patch.together}; downscaling.patch.together: {together} makes that {better:.3g}, or rechunk"
                )
        height, width = self.patch.coarse or self.pair.coarse_grid.shape
        more = (
            "" if self.patch.coarse is None else "take more of each field (downscaling.patch.per_sample), or "
        )
        times = "one time" if self.patch.together == 1 else f"{self.patch.together} times"
        coarse = f"{height + 2 * HALO} x {width + 2 * HALO}"
        fine = f"{height * self.pair.factor} x {width * self.pair.factor}"
        return f"{wasted}; {more}rechunk towards {coarse} coarse and {fine} fine cells of {times}"
