"""A crash before, within and after every file operation of a whole run, with the power on and cut."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING

from faults import disk
from faults.announced import announced, broken
from faults.bench import Trial
from faults.disk import Disk, Survivors, Tree
from faults.plans import Plan
from faults.shim import CHANGES, Action, Operation, Record, Trap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from faults.bench import Bench

_LAST = 3
"""So many operations, at most, may be missing at the end of a run whose threads take turns in another way."""


def everywhere(bench: Bench, random: Random) -> Iterator[Plan]:
    """Crash a run without figures anywhere, one with a data loader's worker too, and one that is drawing."""
    plans = [
        plan
        for job, suffix in (("downscaling", ""), ("workers", ""), ("figures", ".png"))
        for plan in _crashes(job, bench.wholes[job].records, suffix)
    ]
    random.shuffle(plans)
    yield from plans


def by_rank_0(bench: Bench, random: Random) -> Iterator[Plan]:
    """The same with two processes, of which the first does all that counts."""
    plans = [plan for job in ("ranks", "sharded") for plan in _crashes(job, bench.wholes[job].records, "")]
    random.shuffle(plans)
    yield from plans


def _crashes(job: str, records: Sequence[Record], suffix: str) -> Iterator[Plan]:
    """Before each operation; within each that writes; after each that does more than write, and the last."""
    counted = [
        record
        for record in records
        if record.operation in CHANGES and (record.second or record.first).endswith(suffix)
    ]
    for number, record in enumerate(counted, 1):
        writes = record.operation is Operation.WRITE
        actions = (
            [Action.KILL_BEFORE, Action.KILL_WITHIN] if writes else [Action.KILL_BEFORE, Action.KILL_AFTER]
        )
        if number == len(counted):
            actions.append(Action.KILL_AFTER)
        for action in dict.fromkeys(actions):
            trap = Trap(action, number, suffix=suffix)
            may_be_spared = number > len(counted) - _LAST
            yield Plan(
                f"sweep-{job}-{number}-{action.name}",
                job,
                partial(_crash, trap=trap, spared=may_be_spared),
            )


def _crash(trial: Trial, trap: Trap, *, spared: bool) -> None:
    end = trial.start(trap)
    if end.code == 0 and spared:
        trial.finish()
        return
    trial.died(end, {trial.killed}, at_once=True)
    after = trial.replay()
    there = after.after("all")
    if there != disk.look(trial.top):
        trial.problems.append("the record of operations does not explain what is on the disk")
        return
    promises = announced(there)
    trial.problems += broken(promises, there)
    trial.finish()
    whole = trial.replay()
    trial.problems += [
        f"power cut in the end: {problem}"
        for problem in broken(announced(whole.after("all")), whole.after("lost"))
    ]
    for survivors in ("lost", "kept", "zeroed"):
        _cut_power(trial, after, survivors, promises)


def _cut_power(trial: Trial, after: Disk, survivors: Survivors, promises: dict[str, int]) -> None:
    """Go on from what the power cut has left."""
    left = after.after(survivors)
    key = f"{trial.job} {_digest(left)}"
    other = Trial(trial.bench, trial.server, f"{trial.name}-{survivors}", trial.job, bound=None)
    other.problems += broken(promises, left)
    if key not in trial.bench.proven or other.problems:
        disk.put(left, other.top)
        other.finish()
        if not other.problems:
            trial.bench.proven.add(key)
    trial.starts += other.starts
    trial.cuts += 1
    trial.problems += [f"power cut, {survivors}: {problem}" for problem in other.problems]
    other.close()


_INCIDENTAL = re.compile(
    rb'"(?:time|[^"]*_seconds|[^"]*samples_per_second)": [^,}]*|"pid": \d+|"born": "\d+"'
)


def _digest(tree: Tree) -> str:
    """One text for trees that differ in times, process numbers and how many zeros a file ends with only."""
    digest = hashlib.sha256()
    for path, content in sorted(tree.items()):
        digest.update(re.sub(r"\d+\.tmp$", ".tmp", path).encode() + (b"/" if content is None else b"="))
        if content is not None and path not in ("run/log.jsonl", "run/environment.json"):
            plain = _INCIDENTAL.sub(b"", content) if path.endswith((".jsonl", ".lock")) else content
            filled = plain.rstrip(b"\0")
            digest.update(hashlib.sha256(filled).digest() + (b"0" if filled != plain else b""))
    return digest.hexdigest()
