"""Runs that are sent signals: at random instants, and at named points."""

from __future__ import annotations

from functools import partial
from itertools import count
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from typing import TYPE_CHECKING

from faults.plans import Plan
from faults.points import Point
from faults.server import Shot
from faults.shim import Action, Operation, Trap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from faults.bench import Bench, Trial

_SOON = 0.05


def at_random(bench: Bench, random: Random) -> Iterator[Plan]:
    """Send signals at random instants, to one to three starts of a run, in every way they are sent; without end."""
    for number in count():
        job = random.choice(["downscaling", "downscaling", "synchronous", "workers"])
        seconds = bench.wholes[job].seconds
        volleys = [_volley(random, seconds) for _ in range(random.randint(1, 3))]
        yield Plan(f"random-{number}", job, partial(_shoot, volleys=volleys))


def _volley(random: Random, seconds: float) -> list[Shot]:
    """One start's signals: -9, -15 or -2, to it or to its group, perhaps two of them in quick succession."""
    when, group = random.uniform(0, seconds), random.random() < 0.25
    signal = random.choice([SIGKILL, SIGKILL, SIGTERM, SIGINT])
    shots = [Shot(when, signal, group)]
    if signal != SIGKILL and random.random() < 0.25:
        again = random.choice([SIGTERM, SIGINT, SIGKILL])
        shots.append(Shot(when + random.uniform(0, _SOON), again, group))
    return shots


def _shoot(trial: Trial, volleys: list[list[Shot]]) -> None:
    for shots in volleys:
        end = trial.start(shots=shots)
        if end.code != 0:  # else it was faster
            signals = {shot.signal for shot in shots}
            allowed = {-signal for signal in signals} | {128 + signal for signal in signals - {SIGKILL}}
            trial.died(end, allowed, at_once=len(shots) > 1 or SIGKILL in signals)
    trial.finish()


_POINTS = {
    "before_run": [1],
    "before_epoch": [1, 2],
    "before_batch": [1, 2, 7],
    "update": [1, 2, 4],
    "updated": [1, 3],
    "after_batch": [1, 4, 6, 12],
    "snapshot": [1, 2, 5, 9],
    "validate": [1, 2],
    "infer": [1, 2],
    "after_epoch": [1, 2],
    "shutdown": [1],
}
"""Where, and at which times of getting there."""
_WRITING = {
    "writing": (Operation.WRITE, ".tmp", [1, 30, 100]),
    "syncing": (Operation.SYNC, ".tmp", [1, 4]),
    "previous": (Operation.RENAME, "previous.ckpt", [1, 3]),
    "latest": (Operation.RENAME, "latest.ckpt", [1, 2, 5]),
    "best": (Operation.RENAME, "best.ckpt", [1, 2]),
    "config": (Operation.RENAME, "config.yaml", [1]),
    "environment": (Operation.RENAME, "environment.json", [1]),
}
"""Between the steps of writing a file: before such an operation on such a path."""
_WORKER = [1, 5]


def at_points(_: Bench, random: Random) -> Iterator[Plan]:
    """Send each signal inside each hook, inside saves and restorations, and in a data loader's worker."""
    plans = list(_all_points())
    random.shuffle(plans)
    yield from plans


def _all_points() -> Iterator[Plan]:
    for signal in (SIGKILL, SIGTERM, SIGINT):
        kind = Signals(signal).name
        for job in ("downscaling", "synchronous"):
            for name, occurrences in _POINTS.items():
                for occurrence in occurrences:
                    point = Point(name, occurrence, signal)
                    yield Plan(
                        f"{job}-{name}-{occurrence}-{kind}",
                        job,
                        partial(_strike, point=point),
                    )
            yield Plan(f"{job}-restore-{kind}", job, partial(_strike_restore, signal=signal))
        for name, (operation, suffix, numbers) in _WRITING.items():
            for number in numbers:
                action = Action.KILL_BEFORE if signal == SIGKILL else Action.SIGNAL_BEFORE
                trap = Trap(action, number, signal, [operation], suffix)
                yield Plan(
                    f"{name}-{number}-{kind}",
                    "downscaling",
                    partial(_interrupt, trap=trap, signal=signal),
                )
        for occurrence in _WORKER:
            for job, group in (("workers", True), ("unshielded", True), ("unshielded", False)):
                point = Point("worker", occurrence, signal, group)
                yield Plan(
                    f"{job}-{occurrence}-{kind}{'-group' * group}",
                    job,
                    partial(_strike_worker, point=point),
                )


def _strike(trial: Trial, point: Point) -> None:
    end = trial.start(point=point)
    trial.died(
        end, _answers(point.signal, handled=point.name != "before_run"), at_once=point.signal == SIGKILL
    )
    trial.finish()


def _answers(signal: int, *, handled: bool = True) -> set[int]:
    """The one code that tells what happened; where no handler is installed yet, the signal itself does too."""
    if signal == SIGKILL:
        return {-signal}
    return {128 + signal} if handled else {128 + signal, -signal}


def _strike_restore(trial: Trial, signal: int) -> None:
    trial.died(trial.start(point=Point("after_batch", 5, SIGKILL)), {-SIGKILL}, at_once=True)
    point = Point("restore", 1, signal)
    trial.died(trial.start(point=point), _answers(signal), at_once=signal == SIGKILL)
    trial.finish()


def _interrupt(trial: Trial, trap: Trap, signal: int) -> None:
    trial.died(trial.start(trap), _answers(signal), at_once=signal == SIGKILL)
    trial.finish()


def _strike_worker(trial: Trial, point: Point) -> None:
    """Signal a worker, or all processes.

    A loader whose worker dies raises an error wherever the run is, so only workers that leave signals to the run
    let it save.
    """
    end = trial.start(point=point)
    if trial.job == "workers":
        trial.died(end, _answers(point.signal), at_once=point.signal == SIGKILL)
    else:
        trial.died(end, {1, *(_answers(point.signal) if point.group else ())}, at_once=True)
        trial.expect(end.code != 1 or "Error" in end.text, f"nobody said why it ended: {end.last}")
    trial.finish()
