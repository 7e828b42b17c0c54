"""Steps and waits by a clock that is told."""

from __future__ import annotations

import pytest
from clocks import Clock

from hookloop.profiling import step_times
from hookloop.profiling.step_times import StepTimes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the times are measured with."""
    made = Clock()
    monkeypatch.setattr(step_times, "now", made)
    return made


def step(times: StepTimes, clock: Clock, wait: int, work: int) -> None:
    """Wait for a batch, then learn it."""
    left = clock.at
    clock.spend(wait)
    times.begin(left)
    clock.spend(work)


def test_no_step_is_no_summary() -> None:
    """Neither of all nor of a window."""
    assert StepTimes().all() is None
    assert StepTimes().window() is None


def test_eleven_steps(clock: Clock) -> None:
    """Of 1, 2, … 11 s the median is 6, the ninth decile 10 and the mean 6; a fifth of each is wait."""
    times = StepTimes()
    for seconds in range(1, 12):
        step(times, clock, wait=seconds * 200_000_000, work=seconds * 800_000_000)
        times.end()
    found = times.all()
    assert found is not None
    assert (found.steps, found.median, found.p90, found.mean) == pytest.approx((11, 6.0, 10.0, 6.0))
    assert found.wait == pytest.approx(1.2)
    assert found.wait_share == pytest.approx(0.2)
    assert times.waited == 66 * 200_000_000


def test_a_window_holds_what_came_since_the_last(clock: Clock) -> None:
    """Two steps of 1 s, then one of 3 s; then none."""
    times = StepTimes()
    for _ in range(2):
        step(times, clock, 0, 1_000_000_000)
        times.end()
    first = times.window()
    step(times, clock, 0, 3_000_000_000)
    times.end()
    second = times.window()
    assert first is not None
    assert second is not None
    assert (first.mean, second.mean, times.window()) == (1.0, 3.0, None)


def test_what_is_left_out_is_seen_but_not_counted(clock: Clock) -> None:
    """Its wait is part of the run's time all the same."""
    times = StepTimes()
    step(times, clock, 50, 50)
    times.leave_out()
    step(times, clock, 10, 30)
    times.end()
    found = times.all()
    assert found is not None
    assert (times.seen, found.steps, times.waited) == (2, 1, 60)
    assert found.mean == pytest.approx(40e-9)
