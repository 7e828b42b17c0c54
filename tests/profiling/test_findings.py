"""Verdicts, shares and the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from hookloop.profiling.device_times import DeviceSummary
from hookloop.profiling.findings import (
    Arithmetic,
    Findings,
    HookRow,
    RankSteps,
    Speed,
    bound_by,
    checkpoint_stalls,
    hook_rows,
    phases_of,
    slowest,
)
from hookloop.profiling.hook_times import HookTimes
from hookloop.profiling.step_times import StepSummary, StepTimes
from hookloop.profiling.table import duration, facts, percent, plain, rows, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def steps(wait: float) -> StepSummary:
    """Ten steps of a second, of which they wait so much."""
    return StepSummary(10, 1.0, 1.0, 1.0, wait)


def device(starved: float | None) -> DeviceSummary:
    """A GPU that was found without work so often."""
    return DeviceSummary(10, 0.5, 0.1, starved)


@pytest.mark.parametrize(
    ("wait", "compute", "verdict"),
    [
        (0.0, 1.0, "compute-bound"),
        (0.09, 0.85, "compute-bound"),
        (0.2, 0.7, "data-bound"),
        (0.2, 0.5, "host-bound"),
        (0.05, 0.8, "host-bound"),
    ],
)
def test_without_a_gpu_it_is_what_takes_a_tenth_or_more(wait: float, compute: float, verdict: str) -> None:
    """Of a step: the wait for the batch, or all hooks but train_step; the larger one counts."""
    assert bound_by(steps(wait), compute, None, gpu=False) == verdict


@pytest.mark.parametrize(
    ("wait", "starved", "verdict"),
    [
        (0.9, 0.0, "GPU-bound"),  # the host waits for data while the GPU still has work
        (0.9, 0.49, "GPU-bound"),
        (0.5, 0.9, "data-bound"),
        (0.01, 0.9, "host-bound"),
        (0.5, None, "data-bound"),
    ],
)
def test_with_a_gpu_it_is_whether_that_is_out_of_work(
    wait: float, starved: float | None, verdict: str
) -> None:
    """As long as it has work when the host begins a step, nothing on the host matters."""
    assert bound_by(steps(wait), 1.0 - wait, device(starved), gpu=True) == verdict


def test_the_wall_time_is_divided_without_overlap() -> None:
    """Waits 1 s, a step's hooks 2 s, validation 3 s, logs 4 s within validation and 5 s by themselves, the rest 9 s."""
    times, waits = HookTimes(), StepTimes()
    waits.waited = 1_000_000_000
    spent = {"train_step": 2, "validate": 3, "log": 5}
    for hook, seconds in spent.items():
        row = times.row(hook, "one")
        row.calls, row.outermost, row.total = 1, seconds * 1_000_000_000, seconds * 1_000_000_000
    times.row("log", "one").total += 4_000_000_000
    phases = phases_of(times, waits, 20.0)
    assert phases == {
        "waiting for batches": 1.0,
        "training": 2.0,
        "validation": 3.0,
        "inference": 0.0,
        "other hooks": 5.0,
        "the rest": 9.0,
    }


def test_rows_are_shares_of_the_wall_time() -> None:
    """The most expensive first; what was never called is left out."""
    times = HookTimes()
    for plugin, own in (("a", 1), ("b", 3)):
        row = times.row("log", plugin)
        row.calls, row.total, row.own, row.longest = 2, own * 10**9, own * 10**9, 10**9
    times.row("infer", "c")
    assert hook_rows(times, 10.0) == [
        HookRow("log", "b", 2, 3.0, 3.0, 1.0, 0.3),
        HookRow("log", "a", 2, 1.0, 1.0, 1.0, 0.1),
    ]


def test_stalls_are_those_of_training() -> None:
    """What restores or ends is none, and what others take neither."""
    found = [
        HookRow(hook, plugin, 1, own, own, own, 0.0)
        for hook, plugin, own in [
            ("before_run", "checkpoint", 100.0),
            ("after_batch", "checkpoint", 2.0),
            ("after_epoch", "checkpoint", 3.0),
            ("after_batch", "ema", 50.0),
            ("shutdown", "checkpoint", 100.0),
        ]
    ]
    assert checkpoint_stalls(found) == (5.0, 3.0)
    assert checkpoint_stalls(found[:1]) == (0.0, 0.0)


def test_the_slowest_of_several_ranks() -> None:
    """By the median of its steps; one alone is not compared."""
    ranks = [RankSteps(0, 1.0, 0.0), RankSteps(1, 3.0, 0.0), RankSteps(2, None, None)]
    assert slowest(ranks) == ranks[1]
    assert slowest(ranks[:1]) is None
    assert slowest(ranks[2:] * 2) is None


def test_utilisation() -> None:
    """30 TFLOP in 0.1 s are 300 of 1000 TFLOP/s."""
    assert Arithmetic(30 * 10**12, 1e15, "").mfu(0.1) == pytest.approx(0.3)
    assert Arithmetic(None, 1e15, "").mfu(0.1) is None
    assert Arithmetic(1, None, "").mfu(0.1) is None


@pytest.fixture
def found() -> Findings:
    """A run on a GPU, with everything."""
    hooks = [HookRow("log", f"plugin{n}", 2, 4.0, 2.0, 1.5, 0.02) for n in range(22)]
    return Findings(
        step=1010,
        device="NVIDIA H100",
        precision="bfloat16",
        wall=100.0,
        to_first_batch=12.5,
        seen=1010,
        speed=Speed(StepSummary(1000, 0.065, 0.06, 0.07, 0.0013), 246.15, 0.9, "GPU-bound", 0.251),
        device_steps=DeviceSummary(1000, 0.058, 0.021, 0.03),
        arithmetic=Arithmetic(16_000_000_000_000, 795e12, "what a large matrix product reached here"),
        memory={"host": 3 * 2**30, "allocated": 10 * 2**30, "reserved": 12 * 2**30},
        phases={"training": 60.0, "inference": 0.0, "the rest": 40.0},
        checkpoint_stalls=0.5,
        longest_checkpoint_stall=0.06,
        timing_cost=0.04,
        at_end=1.5,
        ranks=[RankSteps(0, 0.06, 0.02), RankSteps(1, 0.063, 0.02)],
        hooks=hooks,
    )


def test_everything_is_told_in_words(found: Findings) -> None:
    """The numbers above, with their units."""
    told: Mapping[str, str] = dict(facts(found))
    assert told == {
        "verdict": "GPU-bound: the GPU has nothing left to do when 3 % of the steps begin",
        "step": "median 60 ms, 90 % below 70 ms, mean 65 ms (1,000 steps, 10 at the start or in a trace left out)",
        "samples": "246.2 a second",
        "data wait": "1.3 ms a step, 2 % of it",
        "slowest rank": "1 of 2: median 63 ms",
        "device": "NVIDIA H100, bfloat16",
        "device time": "58 ms a step, idle 2.1 % between steps",
        "arithmetic": "16 TFLOP a step, forward and backward",
        "MFU": "25 % of 795 TFLOP/s, what a large matrix product reached here",
        "most memory": "3.00 GiB resident, 10.00 GiB allocated on the GPU, 12.00 GiB reserved on the GPU",
        "to the first batch": "12.5 s",
        "wall time": "100 s: training 60 s (60 %), the rest 40 s (40 %)",
        "checkpoints": "training waited 500 ms, 60 ms at most at once",
        "this profile": "about 40 ms (0.04 %) while the run went on, 1.5 s after it",
    }


def test_what_was_not_measured_is_said(found: Findings) -> None:
    """Without a step to speak of, and without a peak."""
    told = dict(facts(evolve(found, speed=None, arithmetic=Arithmetic(None, None, "not measured: because"))))
    assert told["steps"].startswith("1010 batches")
    assert told["MFU"] == "not measured: because"
    assert dict(facts(evolve(found, speed=None, seen=0)))["steps"] == "none"


def test_each_verdict_says_what_it_rests_on(found: Findings) -> None:
    """The share of the wait, or of the hooks; and who may be waited for, where another rank waits clearly less."""

    def verdict(name: str, ranks: Sequence[RankSteps] = ()) -> str:
        speed = evolve(found.speed, verdict=name, steps=steps(0.3), compute_share=0.5)
        return dict(facts(evolve(found, speed=speed, device_steps=None, ranks=ranks)))["verdict"]

    assert verdict("data-bound") == "data-bound: 30 % of a step waits for its batch"
    even = [RankSteps(0, 1.0, 0.3), RankSteps(1, 1.0, 0.25)]
    assert verdict("data-bound", even) == "data-bound: 30 % of a step waits for its batch"
    uneven = [*even, RankSteps(2, 1.0, 0.15), RankSteps(3, None, None)]
    expected = "30 % of a step waits for its batch, or for rank 2, which waits for 15 %: it is slower"
    assert verdict("data-bound", uneven) == f"data-bound: {expected}"
    assert verdict("host-bound") == "host-bound: train_step is 50 % of a step, the other hooks are 20 %"


def test_rows_that_are_not_shown_are_summed_up(found: Findings) -> None:
    """Twenty rows, then two others of 2 s each."""
    shown = rows(found)
    assert len(shown) == 21
    assert shown[0] == ("log", "plugin0", "2", "4 s", "2 s", "1 s", "1.5 s", "2 %")
    assert shown[-1] == ("2 others", "", "", "", "4 s", "", "", "4 %")


def test_the_text_is_in_columns(found: Findings) -> None:
    """Numbers end where their header ends."""
    lines = plain(found).splitlines()
    header = next(line for line in lines if line.startswith("hook"))
    row = next(line for line in lines if line.startswith("log"))
    assert len(header) == len(row)
    assert row.endswith("2 %")


def test_a_table_on_a_terminal(
    found: Findings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn with lines there, in plain text elsewhere; the same numbers."""
    show(found)
    text = capsys.readouterr().err
    assert text == plain(found)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    show(found)
    drawn = capsys.readouterr().err
    assert "│" in drawn
    assert "GPU-bound: the GPU has nothing left to do when 3 % of the steps begin" in drawn
    assert "plugin19" in drawn


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 µs"), (2e-6, "2 µs"), (1.5e-3, "1.5 ms"), (1.0, "1 s"), (599.0, "599 s"), (900.0, "15.0 min")],
)
def test_times_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    """Three digits."""
    assert duration(seconds) == text


def test_shares_have_digits_where_they_are_small() -> None:
    """Two of them."""
    shares = (1.0, 0.333, 0.0123, 1e-5, 0.0)
    assert [percent(share) for share in shares] == ["100 %", "33 %", "1.2 %", "<0.01 %", "0 %"]
