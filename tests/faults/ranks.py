"""Runs in two processes that are sent signals: a rank, the launcher or all, at random instants and named points."""

from __future__ import annotations

from functools import partial
from itertools import count
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from typing import TYPE_CHECKING

from faults.plans import Plan
from faults.points import Point
from faults.server import Shot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from faults.bench import Bench, Trial

_SOON = 0.05
_JOBS = ["ranks", "ranks", "sharded"]


def at_random(bench: Bench, random: Random) -> Iterator[Plan]:
    """Send signals at random instants to either rank, to the launcher or to all of them; without end."""
    for number in count():
        job = random.choice(_JOBS)
        volleys = [_volley(random, bench.wholes[job].seconds) for _ in range(random.randint(1, 3))]
        yield Plan(f"ranks-random-{number}", job, partial(_shoot, volleys=volleys))


def _volley(random: Random, seconds: float) -> list[Shot]:
    """One start's signals, perhaps two in quick succession, to the same or to another."""
    when = random.uniform(0, seconds)
    signal = random.choice([SIGKILL, SIGKILL, SIGTERM, SIGINT])
    shots = [_shot(random, when, signal)]
    if signal != SIGKILL and random.random() < 0.25:
        again = random.choice([SIGTERM, SIGINT, SIGKILL])
        shots.append(_shot(random, when + random.uniform(0, _SOON), again))
    return shots


def _shot(random: Random, when: float, signal: int) -> Shot:
    rank = random.choice([0, 1, 1, None, None])
    return Shot(when, signal, group=rank is None and random.random() < 0.5, rank=rank)


def _shoot(trial: Trial, volleys: list[list[Shot]]) -> None:
    for shots in volleys:
        end = trial.start(shots=shots)
        if end.code != 0:  # else it was faster
            allowed = {code for shot in shots for code in _answers(trial, shot)}
            at_once = len(shots) > 1 or shots[0].signal == SIGKILL
            trial.died(end, allowed, at_once=at_once)
            trial.expect("Traceback" not in end.text, f"start {trial.starts} told a traceback: {end.last}")
    trial.finish()


def _answers(trial: Trial, shot: Shot) -> set[int]:
    """What the command may answer; the launcher dies of a signal where it does not yet pass it on."""
    if shot.rank is not None:
        return {trial.killed if shot.signal == SIGKILL else 128 + shot.signal}
    return {-shot.signal} if shot.signal == SIGKILL else {-shot.signal, 128 + shot.signal}


_POINTS = {
    "before_run": [1],
    "before_epoch": [1, 2],
    "before_batch": [1, 7],
    "update": [1, 4],
    "updated": [3],
    "after_batch": [1, 6, 12],
    "snapshot": [1, 5],
    "validate": [1, 2],
    "infer": [1, 2],
    "after_epoch": [1, 2],
    "shutdown": [1],
}
"""Where, and at which times of getting there."""


def at_points(_: Bench, random: Random) -> Iterator[Plan]:
    """Send each signal to a rank inside each hook, inside saves and restorations: mostly to the second."""
    plans = list(_all_points())
    random.shuffle(plans)
    yield from plans


def _all_points() -> Iterator[Plan]:
    for signal in (SIGKILL, SIGTERM, SIGINT):
        for job, rank in (("ranks", 1), ("sharded", 1), ("ranks", 0)):
            kind = f"{rank}-{Signals(signal).name}"
            for name, occurrences in _POINTS.items():
                for occurrence in occurrences:
                    point = Point(name, occurrence, signal, rank=rank)
                    yield Plan(f"{job}-{name}-{occurrence}-{kind}", job, partial(_strike, point=point))
            yield Plan(f"{job}-restore-{kind}", job, partial(_strike_restore, signal=signal, rank=rank))


def _strike(trial: Trial, point: Point) -> None:
    _strike_at(trial, point)
    trial.finish()


def _strike_at(trial: Trial, point: Point) -> None:
    allowed = _answers(trial, Shot(0.0, point.signal, rank=point.rank))
    trial.died(trial.start(point=point), allowed, at_once=point.signal == SIGKILL)


def _strike_restore(trial: Trial, signal: int, rank: int) -> None:
    _strike_at(trial, Point("after_batch", 5, SIGKILL, rank=1 - rank))
    _strike_at(trial, Point("restore", 1, signal, rank=rank))
    trial.finish()
