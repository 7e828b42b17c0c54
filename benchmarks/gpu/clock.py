"""Time on a device that works on its own: from idle to idle, one contestant after the other."""

from __future__ import annotations

import gc
import math
import statistics
import time
from typing import TYPE_CHECKING

import torch
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BLOCK = 0.05
"""Seconds that a block lasts at least, so that launching and waiting are spread over enough calls."""
_LONG = 1.0
"""Seconds of a call that is warm after one."""


@frozen
class Times:
    """Seconds a call, of several blocks."""

    seconds: list[float] = field(factory=list)

    @property
    def median(self) -> float:
        """Of the blocks."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the blocks lie between."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@define(eq=False)
class Clock:
    """Times calls on *device*; after the *deadline* in two blocks each, however many were asked for."""

    device: torch.device
    deadline: float = math.inf
    """On ``time.monotonic``."""

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.deadline

    def idle(self) -> float:
        """Wait for the device; the time then."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def block(self, call: Callable[[], object], calls: int) -> float:
        """Seconds a call, of so many after one another without a pause."""
        began = self.idle()
        for _ in range(calls):
            call()
        return (self.idle() - began) / calls

    def interleaved(self, contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
        """Time a block of each in turn, round after round, after each has warmed up."""
        calls = {name: self._calls(call) for name, call in contestants.items()}
        times = {name: Times() for name in contestants}
        for turn in range(rounds):
            for name, call in contestants.items():
                times[name].seconds.append(self.block(call, calls[name]))
            if self.late and turn:
                break
        return times

    def _calls(self, call: Callable[[], object]) -> int:
        """How many fill a block, once the first ones are behind it."""
        if self.block(call, 1) > _LONG:
            return 1
        return max(1, math.ceil(_BLOCK / self.block(call, 3)))

    def release(self) -> None:
        """Give the memory of what is no longer used back, and begin to measure its highest mark anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def allocation_retries(self) -> int:
        """How often so far memory ran short, and everything cached was given back first: what costs time then."""
        return torch.cuda.memory_stats(self.device)["num_alloc_retries"] if self.device.type == "cuda" else 0

    def peak_gigabytes(self) -> float | None:
        """Most memory that tensors took since :meth:`release`, on a GPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / 1e9
