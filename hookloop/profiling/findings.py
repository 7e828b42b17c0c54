"""What was found out about a run: plain numbers, from which the table, the file and the page are made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hookloop.profiling.device_times import DeviceSummary
    from hookloop.profiling.hook_times import HookTimes
    from hookloop.profiling.step_times import StepSummary, StepTimes

_WAITS = 0.1
"""From this share of a step on, what it waits for is what it is bound by."""
_STALLS = ("after_batch", "validate", "after_evaluation", "after_epoch")
"""The hooks in which training waits for its checkpoint."""

Verdict = Literal["data-bound", "host-bound", "GPU-bound", "compute-bound"]


@frozen
class HookRow:
    """One hook of one plugin, in seconds."""

    hook: str
    plugin: str
    calls: int
    total: float
    own: float
    longest: float
    share: float
    """Own time of the wall time."""


@frozen
class Arithmetic:
    """What a step computes, beside what the device can."""

    flops_per_step: int | None
    """Of this process, forward and backward."""
    peak: float | None
    """Floating-point operations a second."""
    note: str
    """Where the peak comes from, or why there is none."""

    def mfu(self, seconds: float) -> float | None:
        """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B) of steps that take so long."""
        if not self.flops_per_step or not self.peak:
            return None
        return self.flops_per_step / seconds / self.peak


@frozen
class Speed:
    """How fast a process has trained."""

    steps: StepSummary
    """Of every batch but those that were skipped."""
    samples_per_second: float
    compute_share: float
    """Of the time of a step, what ``train_step`` takes on the host."""
    verdict: Verdict
    mfu: float | None


@frozen
class RankSteps:
    """How fast a rank was."""

    rank: int
    median: float | None
    """Seconds a step."""
    wait_share: float | None


@frozen
class Findings:
    """Of one process, from before ``before_run`` to the end of the run; times in seconds."""

    step: int
    """Of the run, at the end."""
    device: str
    precision: str
    wall: float
    to_first_batch: float | None
    """From where the run was made."""
    seen: int
    """Batches of this process, with those that were skipped."""
    speed: Speed | None
    """``None`` where all of them were."""
    device_steps: DeviceSummary | None
    arithmetic: Arithmetic
    memory: Mapping[str, int]
    """The most bytes, by kind: host, allocated, reserved."""
    phases: Mapping[str, float]
    """The wall time divided, without overlap."""
    checkpoint_stalls: float
    longest_checkpoint_stall: float
    timing_cost: float
    """What measuring has cost while the run went on, as far as it can be told."""
    at_end: float
    """What measuring has cost after it."""
    ranks: Sequence[RankSteps]
    hooks: Sequence[HookRow]
    """The most expensive first."""


def bound_by(steps: StepSummary, compute_share: float, device: DeviceSummary | None, *, gpu: bool) -> Verdict:
    """Say what a faster run would need.

    On a GPU nothing else counts while it always has work: as long as it has not been found without any at the
    beginning of half of the steps, a step is bound by it.
    """
    starved = device.starved_share if device else None
    if gpu and starved is not None and starved < 0.5:  # noqa: PLR2004 - the half of it
        return "GPU-bound"
    rest = 1.0 - steps.wait_share - compute_share
    if steps.wait_share >= max(_WAITS, rest):
        return "data-bound"
    if gpu or rest >= _WAITS:
        return "host-bound"
    return "compute-bound"


def hook_rows(times: HookTimes, wall: float) -> list[HookRow]:
    """Every hook that was called, the most expensive first."""
    rows = [
        HookRow(
            row.hook,
            row.plugin,
            row.calls,
            row.total / 1e9,
            row.own / 1e9,
            row.longest / 1e9,
            row.own / 1e9 / wall if wall else math.nan,
        )
        for row in times
        if row.calls
    ]
    return sorted(rows, key=lambda row: -row.own)


def phases_of(times: HookTimes, steps: StepTimes, wall: float) -> dict[str, float]:
    """Divide the wall time; the rest is the loop itself, and whatever no hook does."""
    spent = {
        "waiting for batches": steps.waited / 1e9,
        "training": times.outermost("before_batch", "train_step", "after_batch") / 1e9,
        "validation": times.outermost("validate") / 1e9,
        "inference": times.outermost("infer") / 1e9,
    }
    others = times.rows.keys() - {"before_batch", "train_step", "after_batch", "validate", "infer"}
    spent["other hooks"] = times.outermost(*others) / 1e9
    return {**spent, "the rest": max(0.0, wall - sum(spent.values()))}


def checkpoint_stalls(rows: Sequence[HookRow]) -> tuple[float, float]:
    """How long training has waited for its checkpoints, in all and at most."""
    stalls = [row for row in rows if row.plugin == "checkpoint" and row.hook in _STALLS]
    return sum(row.own for row in stalls), max((row.longest for row in stalls), default=0.0)


def awaited(ranks: Sequence[RankSteps]) -> RankSteps | None:
    """The rank that the first one waits for: it waits for clearly less itself, since ranks go in step."""
    waiting = [rank for rank in ranks if rank.wait_share is not None]
    least = min(waiting, key=lambda rank: rank.wait_share or 0.0, default=None)
    if least is None or ranks[0].wait_share is None or least.wait_share is None:
        return None
    return least if ranks[0].wait_share - least.wait_share >= _WAITS else None


def slowest(ranks: Sequence[RankSteps]) -> RankSteps | None:
    """The rank with the longest steps, where there are several."""
    timed = [rank for rank in ranks if rank.median is not None]
    return max(timed, key=lambda rank: rank.median or 0.0) if len(ranks) > 1 and timed else None
