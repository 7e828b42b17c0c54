"""Where splits live: on the GPU, in memory, or in their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch

from hookloop.data.reading import memory_of_machine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hookloop.data.options import SplitOptions

AT_ONCE = 64
"""Times that are read together where a whole split is read, at most."""
_BLOCK = 2**26
"""Bytes that are read together there, unless one time has more."""

Place = Literal["device", "ram", "none"]
"""On the GPU, in memory, or in its files."""


class Sized(Protocol):
    """What takes memory."""

    @property
    def nbytes(self) -> int:
        """Memory of all values."""


def places(
    splits: Mapping[str, SplitOptions], sizes: Mapping[str, Sized], device: torch.device, processes: int = 1
) -> dict[str, Place]:
    """Decide where each split lives: the GPU or memory where all that live there take less than a quarter of it.

    :param processes: how many on this machine hold all of them, each in memory of its own.
    """
    taken = {"device": 0, "ram": 0, "none": 0}
    chosen: dict[str, Place] = {}
    for name, split in splits.items():
        size = sizes[name].nbytes
        place = _roomy(size, taken, device, processes) if split.cache == "auto" else split.cache
        taken[place] += size
        chosen[name] = place
    return chosen


def fitting(nbytes: int) -> int:
    """How many arrays of *nbytes* are small together; at least one."""
    return max(1, _BLOCK // nbytes)


def at_once(nbytes: int) -> int:
    """How many times of *nbytes* each are read together: what sizes alone say, so that sums have the same bits."""
    return min(AT_ONCE, fitting(nbytes))


def _roomy(size: int, taken: Mapping[str, int], device: torch.device, processes: int) -> Place:
    if device.type == "cuda":
        memory: int = torch.cuda.get_device_properties(device).total_memory
        if taken["device"] + size < memory / 4:
            return "device"
    return "ram" if processes * (taken["ram"] + size) < memory_of_machine() / 4 else "none"
