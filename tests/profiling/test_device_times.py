"""Marks in a queue, read without waiting: with a queue of our own, and with a GPU's where there is one."""

from __future__ import annotations

import pytest
import torch
from attrs import define, field

from hookloop.profiling.device_times import DeviceSummary, Event, HostOnly, QueueTimes, times_of


@define(eq=False)
class Queue:
    """A device with a clock of its own, which is told when it has reached a mark."""

    now: float = 0.0
    """Milliseconds on the device where its queue ends."""
    done: float = 0.0
    """How far it has come."""
    waited: int = 0

    def mark(self) -> Mark:
        """Make a mark."""
        return Mark(self)


@define(eq=False)
class Mark:
    """One mark."""

    queue: Queue
    at: float = field(default=-1.0)

    def record(self) -> None:
        """Stand at the end of the queue."""
        self.at = self.queue.now

    def query(self) -> bool:
        """Whether it is reached."""
        return self.at <= self.queue.done

    def synchronize(self) -> None:
        """Go there."""
        self.queue.waited += 1
        self.queue.done = max(self.queue.done, self.at)

    def elapsed_time(self, end_event: Event) -> float:
        """The time between two marks that are reached."""
        assert isinstance(end_event, Mark)
        assert self.query()
        assert end_event.query()
        return end_event.at - self.at


def steps(times: QueueTimes, queue: Queue, *idle_and_busy: tuple[float, float]) -> None:
    """Steps, each after some idle time of the device."""
    for idle, busy in idle_and_busy:
        queue.now += idle
        times.begin()
        queue.now += busy
        times.end()


def test_busy_and_idle() -> None:
    """Steps of 6, 8 and 6 ms with 2 and 4 between them: 14 of the 20 ms before the last one begins are busy."""
    times = QueueTimes((queue := Queue()).mark)
    steps(times, queue, (5, 6), (2, 8), (4, 6))
    assert times.all() is None  # nothing was reached yet, and nobody waits
    times.settle()
    found = times.all()
    assert found is not None
    assert queue.waited == 1
    assert found.steps == 3
    assert found.mean == pytest.approx(20e-3 / 3)
    assert found.idle_share == pytest.approx(1 - 14 / 20)
    assert found.starved_share == 0  # the device was behind whenever a step began


def test_windows_are_what_was_read_since_the_last() -> None:
    """Steps of 2 and 4 ms, then of 6 and 8 after 1 ms each; all of them in the end, and nothing new."""
    times = QueueTimes((queue := Queue()).mark)
    steps(times, queue, (0, 2), (0, 4))
    times.settle()
    assert times.window() == DeviceSummary(2, pytest.approx(3e-3), 0.0, 0.0)
    steps(times, queue, (1, 6), (1, 8))
    times.settle()
    # From the beginning of the second step to that of the fourth pass 4 + 1 + 6 + 1 ms, of which 10 are busy. The
    # device was done with the second step when the third began.
    assert times.window() == DeviceSummary(2, pytest.approx(7e-3), pytest.approx(2 / 12), 0.5)
    assert times.window() is None
    found = times.all()
    assert found is not None
    assert (found.steps, found.mean) == (4, pytest.approx(5e-3))


def test_marks_are_read_once_they_are_reached() -> None:
    """Without anybody waiting for them."""
    times = QueueTimes((queue := Queue()).mark)
    steps(times, queue, (0, 6), (0, 6))
    queue.done = 6
    steps(times, queue, (0, 6))
    found = times.all()
    assert found is not None
    assert (found.steps, queue.waited) == (1, 0)


def test_a_device_that_has_caught_up_is_starved() -> None:
    """Of four steps that follow another, it was done with the one before in three."""
    times = QueueTimes((queue := Queue()).mark)
    for caught_up in (True, True, False, True, False):
        steps(times, queue, (1, 3))
        queue.done = queue.now if caught_up else queue.done
    times.settle()
    found = times.all()
    assert found is not None
    assert found.starved_share == 3 / 4


def test_what_comes_between_is_no_idle_time() -> None:
    """An evaluation of a second between two steps leaves nothing to compare."""
    times = QueueTimes((queue := Queue()).mark)
    steps(times, queue, (0, 5))
    times.interrupt()
    steps(times, queue, (1000, 7))
    times.settle()
    found = times.all()
    assert found is not None
    assert found.mean == pytest.approx(6e-3)
    assert (found.idle_share, found.starved_share) == (None, None)


def test_an_end_without_a_beginning_is_none() -> None:
    """As of the first steps, which are not looked at."""
    times = QueueTimes(Queue().mark)
    times.end()
    times.settle()
    assert times.all() is None


def test_the_host_needs_no_marks() -> None:
    """It works while it counts."""
    times = times_of(torch.device("cpu"))
    assert isinstance(times, HostOnly)
    times.begin()
    times.end()
    times.interrupt()
    times.settle()
    assert times.all() is None
    assert times.window() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu() -> None:
    """Ten products of 4096³ take it longer than nothing, and it is never idle while they are queued."""
    device = torch.device("cuda")
    times, matrix = times_of(device), torch.randn(4096, 4096, device=device)
    for _ in range(10):
        times.begin()
        matrix @ matrix
        times.end()
    times.settle()
    found = times.all()
    assert found is not None
    assert found.steps == 10
    assert found.mean > 0
    assert found.idle_share is not None
    assert found.idle_share < 0.5
