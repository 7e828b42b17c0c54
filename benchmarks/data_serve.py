"""One process of ``data.py``: opens a feeder, then measures a window whenever it is told to.

It answers in JSON, a line for the imports, one for the first batch and one for each window.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from data_feeders import FEEDERS, MODULES, arrays, cut
from data_pair import FACTOR, PLACE, Job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from data_feeders import Batch

SETTLING = 0.5
"""Seconds before each window: what waited in queues since the last one does not count."""
PERIOD = 64
"""Times after which all feeders are where they were: hookloop shuffles so many, fme loads a batch of them."""
PACKAGES = ("hookloop", "fme", "xbatcher", "zarr", "xarray", "h5py", "netCDF4", "torch", "numpy")


class Usage(NamedTuple):
    """What this process and its descendants have used."""

    cpu: float
    """Seconds."""
    read: int
    """Bytes that were read by those who read data: the workers, where there are any."""
    resident: int
    """Most bytes in memory at a time, added over the processes; shared pages count in each."""


def descendants() -> list[int]:
    """Processes started by this one, by those, and so on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(_after_name(path.read_text())[1])
        except (OSError, IndexError):  # it has just ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, ahead = [], [os.getpid()]
    while ahead:
        new = children.get(ahead.pop(), [])
        found += new
        ahead += new
    return found


def usage(workers: int) -> Usage:
    """Ask the kernel; ``getrusage`` would not see workers that live, and inherits the peak of who started us."""
    others = descendants()
    pids = [os.getpid(), *others]
    times = [_after_name(Path(f"/proc/{pid}/stat").read_text())[11:13] for pid in pids]
    ticks = sum(int(part) for parts in times for part in parts)
    readers = others if workers else pids
    return Usage(
        ticks / os.sysconf("SC_CLK_TCK"),
        sum(_number(f"/proc/{pid}/io", "rchar:") for pid in readers),
        1024 * sum(_number(f"/proc/{pid}/status", "VmHWM:") for pid in pids),
    )


def _after_name(stat: str) -> list[str]:
    """The words after the name of the process, which may hold blanks."""
    return stat.rpartition(")")[2].split()


def _number(path: str, key: str) -> int:
    """The number beside *key*."""
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return int(next(words[1] for words in lines if words[0] == key))


def check(job: Job, batch: Batch) -> None:
    """Compare up to 16 patches of *batch* with the files, at the places that they themselves name."""
    coarse, fine = arrays(job._replace(format="zarr"))
    cells = job.size // FACTOR
    seen = set()
    for above, below in islice(zip(*batch, strict=True), 16):
        corner = int(above[PLACE][0, 0])
        t, row, column = corner // cells**2, corner % cells**2 // cells, corner % cells
        expected = cut([a[t] for a in coarse], row, column, job.patch // FACTOR)
        under = cut([b[t] for b in fine], row * FACTOR, column * FACTOR, job.patch)
        if t >= job.times or (row, column) not in job.tiles or corner in seen:
            raise SystemExit(
                f"{job.feeder}: a patch at time {t}, cell {row}, {column} is none of those planned"
            )
        for found, truth in zip((*above, *below), (*expected, *under), strict=True):
            if not np.array_equal(np.asarray(found), truth):
                raise SystemExit(
                    f"{job.feeder}: the patch at time {t}, cell {row}, {column} is not as in the files"
                )
        seen.add(corner)


def window(job: Job, batches: Iterator[Batch], seconds: float, patches: int) -> dict[str, float]:
    """Serve for so long after settling, then compare the last batch with the files.

    It goes on to a whole number of periods, since patches come in bursts, but for twice as long at most.

    :param patches: at most so many; with no seconds, exactly so many.
    """
    settled = time.perf_counter() + (SETTLING if seconds else 0)
    left = patches
    while settled > time.perf_counter() and left > 0:
        left -= len(next(batches)[1])
    before, began, count, took = usage(job.workers), time.perf_counter(), 0, 0.0
    period = PERIOD * job.per_sample
    while not count or (
        count < left and not (seconds and took >= seconds and (count % period == 0 or took >= 2 * seconds))
    ):
        batch = next(batches)
        count += len(batch[1])
        took = time.perf_counter() - began
    after = usage(job.workers)
    check(job, batch)
    return {
        "patches": count,
        "seconds": took,
        "cpu": after.cpu - before.cpu,
        "read": after.read - before.read,
        "resident": after.resident,
    }


def main() -> None:
    """Open what the command line names and obey standard input until it ends."""
    job = Job(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    began = time.perf_counter()
    for module in MODULES[job.feeder]:
        importlib.import_module(module)
    imports = time.perf_counter() - began
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    answer(imports=imports, resident=usage(0).resident, versions=versions)
    began = time.perf_counter()
    batches = FEEDERS[job.feeder](job)
    first = next(batches)
    answer(first=time.perf_counter() - began)
    check(job, first)
    for line in sys.stdin:
        answer(**window(job, batches, **json.loads(line)))
    answers.close()
    # Workers of torch's loaders are its daemons; those of the others end with their iterator.
    batches.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
