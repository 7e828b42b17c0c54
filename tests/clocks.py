"""A clock that only goes when it is told to."""

from __future__ import annotations

from attrs import define


@define
class Clock:
    """Nanoseconds, as ``time.perf_counter_ns`` counts them."""

    at: int = 1_000

    def __call__(self) -> int:
        """Tell the time."""
        return self.at

    def spend(self, time: int) -> None:
        """Let so much time pass."""
        self.at += time
