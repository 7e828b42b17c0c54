"""Writes that fail: a full disk and a broken one, for once and from then on, at every file operation."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager
from functools import partial
from signal import SIGTERM
from typing import TYPE_CHECKING

from faults import disk
from faults.announced import announced, broken, failed
from faults.plans import Plan
from faults.points import Point
from faults.shim import Action, Operation, Trap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random

    from faults.bench import Bench, Ended, Trial

_REFUSED = {
    "full": (
        errno.ENOSPC,
        [
            Operation.OPEN,
            Operation.WRITE,
            Operation.SYNC,
            Operation.RENAME,
            Operation.LINK,
            Operation.MKDIR,
        ],
    ),
    "broken": (errno.EIO, [Operation.WRITE, Operation.SYNC]),
    "unsynced": (errno.EIO, [Operation.SYNC]),
    "late": (errno.EDQUOT, [Operation.CLOSE]),
}
"""What a full disk refuses, a broken one, one that does not sync, and one behind a network that tells at the end."""
_READ_ONLY = sorted(set(Operation) - {Operation.LOOK, Operation.CLOSE, Operation.SYNC})


def everywhere(bench: Bench, random: Random) -> Iterator[Plan]:
    """Refuse each operation, and each and all that follow."""
    plans = []
    for job, suffix in (("downscaling", ""), ("workers", ""), ("figures", ".png")):
        for name, (code, operations) in _REFUSED.items():
            records = bench.wholes[job].records
            counted = sum(
                record.operation in operations and (record.second or record.first).endswith(suffix)
                for record in records
            )
            for number in range(1, counted + 1):
                for action in (Action.FAIL_ONCE, Action.FAIL_FROM):
                    trap = Trap(action, number, code, operations, suffix)
                    plans.append(
                        Plan(f"fail-{job}-{name}-{number}-{action.name}", job, partial(_refuse, trap=trap))
                    )
    random.shuffle(plans)
    yield from plans


def _refuse(trial: Trial, trap: Trap) -> None:
    _expect_told(trial, trial.start(trap), os.strerror(trap.argument))
    trial.finish()


def _expect_told(trial: Trial, end: Ended, reason: str) -> None:
    """It goes on, or ends with a line that says why; what it has saved is there; what it has not, it says."""
    trial.bound = None
    trial.kills += end.code != 0
    trial.expect(end.code in (0, 2), f"ended with {end.code}, expected 0 or 2: {end.last}")
    trial.expect("Traceback" not in end.text, f"answered with a traceback: {end.last}")
    if end.code == 2:
        trial.expect(reason in end.text, f"did not say {reason!r}: {end.last}")
    there = disk.look(trial.top)
    promises = announced(there)
    trial.problems += broken(promises, there)
    left = trial.replay().after("lost")
    trial.problems += [f"power cut: {problem}" for problem in broken(promises, left)]
    trial.excused = failed(end.text)
    trial.ignored = {"plugins.jsonl.lines"}  # what waits for the disk is in the checkpoint


def read_only(_bench: Bench, _random: Random) -> Iterator[Plan]:
    """Refuse every change, to a new directory and to one with a run in it."""
    trap = Trap(Action.FAIL_FROM, 1, errno.EROFS, _READ_ONLY)
    yield Plan("read-only-new", "downscaling", partial(_refuse_all, trap=trap, stopped=False))
    yield Plan("read-only-resumed", "downscaling", partial(_refuse_all, trap=trap, stopped=True))


def _refuse_all(trial: Trial, trap: Trap, *, stopped: bool) -> None:
    if stopped:
        trial.died(trial.start(point=Point("after_batch", 5, SIGTERM)), {143}, at_once=False)
    end = trial.start(trap)
    trial.expect(end.code == 2, f"ended with {end.code}, expected 2")
    _expect_told(trial, end, os.strerror(errno.EROFS))
    trial.finish()


_SIZES = [4, 16, 64, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 1000, 1200, 1400]


def really_full(bench: Bench, random: Random) -> Iterator[Plan]:
    """Run on disks of so many KiB, then on larger ones; nothing where none can be mounted."""
    if not _can_mount(bench.base / "probe"):
        return
    for size in random.sample(_SIZES, len(_SIZES)):
        yield Plan(f"full-{size}", "figures", partial(_fill, size=size))


def _can_mount(directory: Path) -> bool:
    directory.mkdir(exist_ok=True)
    try:
        with _mounted(directory, "64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _mounted(directory: Path, size: str) -> Iterator[None]:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(directory)],
        check=True,
        capture_output=True,
    )
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True, capture_output=True)


def _fill(trial: Trial, size: int) -> None:
    trial.top.mkdir(parents=True)
    with _mounted(trial.top, f"{size}k"):
        _expect_told(trial, trial.start(), os.strerror(errno.ENOSPC))
        subprocess.run(["mount", "-o", "remount,size=64m", str(trial.top)], check=True, capture_output=True)
        trial.finish()
