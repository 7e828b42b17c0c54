"""What is to be read for a batch, and reading it into memory that processes share; no torch here."""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from attrs import frozen

from hookloop.data.fields import Wanted
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hookloop.data.fields import Fields, Floats, Ints

_LIMIT = Path("/sys/fs/cgroup/memory.max")
_TOLD = 5
"""How many problems of a job are told: the answer must stay small."""

Shape = tuple[int, int, int, int]
"""Rows of a slab, variables, cells in latitude and longitude."""


@frozen(eq=False)
class Cut:
    """Patches of one side of a pair: whose, where they lie, and into which rows of a slab they go."""

    rows: Ints
    times: Ints
    members: Ints
    corner: Ints
    """``[patch, 2]``, south-west corners in cells of this side."""
    size: tuple[int, int]
    halo: int
    wraps: bool
    """Whether columns go on at the other side of the grid; rows never do: there the edge is repeated."""

    def wanted(self, grid: tuple[int, int]) -> Wanted:
        """Name every cell."""
        rows = neighbours(self.corner[:, 0], self.size[0], self.halo, grid[0], wraps=False)
        columns = neighbours(self.corner[:, 1], self.size[1], self.halo, grid[1], wraps=self.wraps)
        return Wanted(self.times, self.members, rows, columns)


@frozen(eq=False)
class Job:
    """Both sides of some patches, to be read into one slab."""

    number: int
    slab: int
    cuts: tuple[Cut, Cut]
    """Coarse and fine."""


def neighbours(start: Ints, count: int, halo: int, size: int, *, wraps: bool) -> Ints:
    """Cells ``start - halo … start + count + halo - 1`` of an axis of *size* cells: ``[patch, count + 2·halo]``.

    Beyond the edge it is the edge cell again, or where the axis *wraps* the cell on the other side.
    """
    cells = start[:, None] + np.arange(-halo, count + halo)
    return cells % size if wraps else cells.clip(0, size - 1)


@frozen(eq=False)
class Slab:
    """Memory for the patches of a block, coarse and fine, that other processes can write to."""

    number: int
    handle: int
    """A file descriptor; nothing has a name, so nothing is left behind by a process that is killed."""
    shapes: tuple[Shape, Shape]
    memory: mmap.mmap

    @classmethod
    def new(cls, number: int, shapes: tuple[Shape, Shape]) -> Slab:
        """Reserve the memory; where there is not enough that is a ``HookloopError``."""
        expect_room(shapes)
        size = _bytes(shapes)
        handle = _anonymous_file()
        try:
            os.posix_fallocate(handle, 0, size) if hasattr(os, "posix_fallocate") else os.ftruncate(
                handle, size
            )
        except OSError as problem:
            os.close(handle)
            raise HookloopError(
                f"no memory for {size / 2**20:.3g} MiB of samples: {problem.strerror}"
            ) from problem
        return cls.mapped(number, handle, shapes)

    @classmethod
    def mapped(cls, number: int, handle: int, shapes: tuple[Shape, Shape]) -> Slab:
        """Map the memory behind a file descriptor."""
        return cls(number, handle, shapes, mmap.mmap(handle, _bytes(shapes)))

    def sides(self) -> tuple[Floats, Floats]:
        """The coarse and the fine patches, ``[row, variable, lat, lon]``; valid as long as the slab is."""
        coarse, fine = self.shapes
        n = int(np.prod(coarse))
        values: npt.NDArray[np.float32] = np.frombuffer(self.memory, np.float32)
        return values[:n].reshape(coarse), values[n:].reshape(fine)

    def close(self) -> None:
        """Give up the file descriptor; the memory goes with the last array on it."""
        os.close(self.handle)


def expect_room(shapes: tuple[Shape, Shape]) -> None:
    """Refuse a slab that takes more than half of the memory with a ``HookloopError``."""
    size, memory = _bytes(shapes), memory_of_machine()
    if size > memory / 2:
        raise HookloopError(
            f"{shapes[0][0]} samples are read together, "
            f"{size / 2**30:.3g} GiB of the {memory / 2**30:.3g} GiB that there are; "
            "lower batch_size, or of patches patch.shuffle or patch.per_sample"
        )


def memory_of_machine() -> int:
    """Bytes of memory that this process may have: those of the machine, or of its control group if they are fewer."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no control groups, or no limit
        memory = min(memory, int(_LIMIT.read_text()))
    return memory


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("hookloop")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _bytes(shapes: tuple[Shape, Shape]) -> int:
    return 4 * sum(int(np.prod(shape)) for shape in shapes)


def carry_out(job: Job, sides: Sequence[Fields], slab: Slab) -> list[str]:
    """Read what *job* asks for into *slab*; what had to be read again is what comes back.

    :raises HookloopError: where files cannot be read or values are not finite.
    """
    retried: list[str] = []
    for fields, cut, into in zip(sides, job.cuts, slab.sides(), strict=True):
        into[cut.rows] = fields.read(cut.wanted(fields.shape), retried=retried)
    return retried[:_TOLD]
