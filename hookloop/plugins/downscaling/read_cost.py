"""What reading costs, from the chunks of the files: how much is decoded for what is used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hookloop.data.fields import Fields, Ints, Wanted
    from hookloop.data.reading import Job
    from hookloop.data.stored import Part

_JOBS = 32
"""Enough of them to tell."""
_CELL = {"time": 1, "member": 1, "latitude": 1, "longitude": 1}


@frozen
class Cost:
    """What some patches need, and what is decoded for them, in values of all variables."""

    patches: int
    used: int
    """Of the patches, with the halo of the coarse ones; what patches of a job share, such as the fine field of
    several members, is counted once."""
    decoded: int
    """Of all chunks that hold some of them, each counted once for every job that needs it; it is decoded more often
    where patches of a job lie so far apart that they are read one by one."""

    @property
    def ratio(self) -> float:
        """How many values are decoded for each one used, 1 or more."""
        return self.decoded / self.used

    @property
    def bytes_a_patch(self) -> float:
        """Bytes decoded for a patch, as float32."""
        return 4 * self.decoded / self.patches


def cost_of(jobs: Sequence[Job], sides: tuple[Fields, Fields]) -> Cost:
    """Add up the first of *jobs*, which read coarse and fine *sides*."""
    patches = used = decoded = 0
    for job in jobs[:_JOBS]:
        patches += len(job.cuts[0].rows)
        for fields, cut in zip(sides, job.cuts, strict=True):
            wanted = cut.wanted(fields.shape)
            for some in _parts(fields, wanted):
                sizes = _sizes(fields, some.part)
                used += _chunks(fields, wanted, some, _CELL)
                decoded += _chunks(fields, wanted, some, sizes) * _values(some.part, sizes)
    return Cost(patches, used, decoded)


def times_in_a_chunk(fields: Fields) -> int:
    """Most used times that one chunk holds; 1 where times can be had one by one."""
    return max(
        int(np.bincount(part.index // part.chunks["time"]).max()) if "time" in part.chunks else 1
        for parts in fields.parts.values()
        for part in parts
        if len(part.index)
    )


@frozen(eq=False)
class _Some:
    """Items of what is wanted that lie in one part."""

    part: Part
    items: Ints
    at: Ints
    """Their times in the file."""


def _parts(fields: Fields, wanted: Wanted) -> Iterator[_Some]:
    """Divide what is wanted of all variables by the part that holds it."""
    for parts in fields.parts.values():
        ends = np.cumsum([len(part.index) for part in parts])
        number = np.searchsorted(ends, wanted.times, side="right")
        for p in np.unique(number):
            items = np.flatnonzero(number == p)
            at = parts[p].index[wanted.times[items] - (ends[p] - len(parts[p].index))]
            yield _Some(parts[p], items, at)


def _chunks(fields: Fields, wanted: Wanted, some: _Some, sizes: Mapping[str, int]) -> int:
    """Count the chunks of these *sizes* that hold a cell of *some* of what is wanted."""
    rows = fields.latitude.index[wanted.rows[some.items]] // sizes["latitude"]
    columns = fields.longitude.index[wanted.columns[some.items]] // sizes["longitude"]
    place = np.stack([some.at // sizes["time"], wanted.members[some.items] // sizes["member"]])
    _, group = np.unique(place, axis=1, return_inverse=True)
    count = 0
    for own in range(int(group.max()) + 1):
        held = np.zeros((int(rows.max()) + 1, int(columns.max()) + 1), np.bool_)
        for n in np.flatnonzero(group == own):
            held[np.ix_(rows[n], columns[n])] = True
        count += int(held.sum())
    return count


def _sizes(fields: Fields, part: Part) -> dict[str, int]:
    """Cells of a chunk along each dimension, which are all used ones where nothing is said."""
    everything = {
        "time": int(part.index.max()) + 1,
        "member": 1,
        "latitude": int(fields.latitude.index.max()) + 1,
        "longitude": int(fields.longitude.index.max()) + 1,
    }
    return {**everything, **part.chunks}


def _values(part: Part, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes.get(name, 1) for name in part.dims)
