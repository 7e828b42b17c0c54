"""How long a GPU works on a step, and whether it waits for the host, without the host waiting for it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

from attrs import astuple, define, evolve, field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@frozen
class DeviceSummary:
    """Of some steps."""

    steps: int
    mean: float
    """Seconds from the first to the last kernel of a step."""
    idle_share: float | None
    """Of the time between the beginnings of steps, what lies behind the last kernel; ``None`` for a single step."""
    starved_share: float | None
    """Of the steps, those that the host began when the GPU had nothing left to do; ``None`` for a single step."""


class Event(Protocol):
    """A mark in a GPU's queue: :class:`torch.cuda.Event` with timing."""

    def record(self) -> None:
        """Put it at the end of the queue."""

    def query(self) -> bool:
        """Whether the GPU has come so far; nobody waits."""

    def synchronize(self) -> None:
        """Wait until it has."""

    def elapsed_time(self, end_event: Event, /) -> float:
        """Milliseconds from this mark to *end_event*, both of them passed."""


class DeviceTimes(Protocol):
    """Told of the beginning and the end of every step."""

    def begin(self) -> None:
        """A step begins."""

    def end(self) -> None:
        """Everything that belongs to the step has been given to the device."""

    def interrupt(self) -> None:
        """Something else comes before the next step."""

    def settle(self) -> None:
        """Wait until every step can be read."""

    def all(self) -> DeviceSummary | None:
        """Sum up the steps that have been read; ``None`` where nothing was measured."""

    def window(self) -> DeviceSummary | None:
        """Sum up those that have been read since the last window."""


class HostOnly:
    """Of a device that works when the host does."""

    def begin(self) -> None:
        """Nothing to mark."""

    def end(self) -> None:
        """Nothing to mark."""

    def interrupt(self) -> None:
        """Nothing to mark."""

    def settle(self) -> None:
        """Nothing to wait for."""

    def all(self) -> DeviceSummary | None:
        """Nothing was measured."""
        return None

    def window(self) -> DeviceSummary | None:
        """Nothing was measured."""
        return None


@define
class _Sums:
    """Over steps, in milliseconds."""

    steps: int = 0
    took: float = 0.0
    follows: int = 0
    """Steps that follow another."""
    starved: int = 0
    period: float = 0.0
    """From the beginnings of steps to those of the steps that follow them."""
    busy: float = 0.0
    """What those steps took themselves."""

    def since(self, earlier: _Sums) -> _Sums:
        """Sums over what has come after *earlier* ones."""
        return _Sums(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))

    def summary(self) -> DeviceSummary | None:
        if not self.steps:
            return None
        idle = max(0.0, 1.0 - self.busy / self.period) if self.period else None
        starved = self.starved / self.follows if self.follows else None
        return DeviceSummary(self.steps, self.took / self.steps / 1e3, idle, starved)


@define(eq=False)
class QueueTimes:
    """Marks each step in the GPU's queue, and reads the marks once they have been passed."""

    _mark: Callable[[], Event]
    _begun: Event | None = field(default=None, init=False)
    _ended: Event | None = field(default=None, init=False)
    """The end of the step before, unless something else came between."""
    _pending: deque[tuple[Event, Event, bool]] = field(factory=deque, init=False)
    """Beginnings and ends of steps that have not been read, and whether the step follows the one before."""
    _read: tuple[Event, float] | None = field(default=None, init=False)
    """The beginning of the step that was read last, and how long it took."""
    _sums: _Sums = field(factory=_Sums, init=False)
    _told: _Sums = field(factory=_Sums, init=False)
    """What was in earlier windows."""

    def begin(self) -> None:
        """A step begins."""
        if self._ended is not None:
            self._sums.follows += 1
            self._sums.starved += self._ended.query()
        self._begun = self._mark()
        self._begun.record()

    def end(self) -> None:
        """Everything that belongs to the step is in the queue."""
        if self._begun is None:
            return
        end = self._mark()
        end.record()
        self._pending.append((self._begun, end, self._ended is not None))
        self._begun, self._ended = None, end
        while self._pending and self._pending[0][1].query():
            self._take(*self._pending.popleft())

    def interrupt(self) -> None:
        """Something else comes before the next step."""
        self._ended = None

    def _take(self, begin: Event, end: Event, follows: bool) -> None:  # noqa: FBT001 - a fact of the step
        took = begin.elapsed_time(end)
        if follows and self._read is not None:
            before, busy = self._read
            self._sums.period += before.elapsed_time(begin)
            self._sums.busy += busy
        self._sums.steps += 1
        self._sums.took += took
        self._read = begin, took

    def settle(self) -> None:
        """Wait for the last step and read them all."""
        if self._pending:
            self._pending[-1][1].synchronize()
        while self._pending:
            self._take(*self._pending.popleft())

    def all(self) -> DeviceSummary | None:
        """Sum up the steps that have been read."""
        return self._sums.summary()

    def window(self) -> DeviceSummary | None:
        """Sum up those that have been read since the last window."""
        told, self._told = self._told, evolve(self._sums)
        return self._told.since(told).summary()


def times_of(device: torch.device) -> DeviceTimes:
    """Choose how to measure *device*."""
    if device.type != "cuda":
        return HostOnly()
    import torch

    return QueueTimes(lambda: cast("Event", torch.cuda.Event(enable_timing=True)))  # type: ignore[no-untyped-call]
