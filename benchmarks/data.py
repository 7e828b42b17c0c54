"""What feeding costs: patches from files, by hookloop, by plain zarr, by xbatcher and by fme's loader.

Each feeder lives in a process of its own and serves the same tiles of the same fields in random order. All of
them take turns, so that a busy machine slows all alike; while one is measured the others rest with full queues,
and what waited in its own is served before its window starts. After each window patches are compared with the
files, at the places that they themselves name. The peers need an environment of their own:

    python3.11 -m venv peers && peers/bin/pip install fme==2026.10.0 xbatcher torch==2.13.0
    python benchmarks/data.py --peers peers/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from attrs import define, field
from data_pair import Job, describe, files, make, stored_bytes

BUDGET_SHARE = 10
"""The data are so many times the budget of the memory test."""
SHUFFLE = 16
"""In the memory test, so that even the budget is more than one shuffle buffer."""
NO_LIMIT = 2**62


@define(eq=False)
class Feeder:
    """One row of the table: its process, and what that answered."""

    name: str
    job: Job
    process: subprocess.Popen[str] = field(init=False)
    start: dict[str, Any] = field(factory=dict)
    windows: list[dict[str, float]] = field(factory=list)
    _errors: Any = field(init=False)

    def open(self, python: str) -> None:
        """Start the process and wait for its first batch."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("data_serve.py")), json.dumps(self.job._asdict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        self.start = self._answer() | self._answer()

    def measure(self, seconds: float, patches: int = NO_LIMIT) -> None:
        """Serve for so long, at most so many patches."""
        assert self.process.stdin is not None
        print(json.dumps({"seconds": seconds, "patches": patches}), file=self.process.stdin, flush=True)
        self.windows.append(self._answer())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.process.wait()
        self._errors.seek(0)
        raise SystemExit(f"{self.name} ended with {self.process.returncode}:\n{self._errors.read()[-3000:]}")

    def rates(self) -> list[float]:
        """Patches a second, of each window."""
        return self.per_second("patches")

    def per_second(self, key: str) -> list[float]:
        """What was counted, by the seconds of each window."""
        return [window[key] / window["seconds"] for window in self.windows]

    def cpu(self) -> float:
        """Processor seconds that a patch takes, of all processes: the median of the windows."""
        return statistics.median(window["cpu"] / window["patches"] for window in self.windows)


def feeders(job: Job, peers: str | None, workers_of_peers: tuple[int, ...]) -> list[tuple[Feeder, str]]:
    """The rows, with the Python that each runs in."""
    here = sys.executable
    rows = [
        (Feeder(f"plain {job.format}, all times at once", job._replace(feeder="plain_whole")), here),
        (Feeder(f"plain {job.format}, field by field", job._replace(feeder="plain_fields")), here),
    ]
    if peers:
        rows += [
            (Feeder(f"{name}, {workers} workers", job._replace(feeder=name, workers=workers)), peers)
            for name in ("xbatcher", "fme")
            for workers in workers_of_peers
        ]
    own = job._replace(feeder="hookloop")
    rows.append((Feeder("hookloop, cache: ram", own._replace(cache="ram")), here))
    rows += [
        (Feeder(f"hookloop, cache: none, {n} workers", own._replace(workers=n)), here) for n in (0, 1, 2)
    ]
    return rows


def compare(rows: list[tuple[Feeder, str]], rounds: int, seconds: float, *, cold: bool) -> None:
    """Open all feeders, let them take turns, and close them."""
    job = rows[0][0].job
    try:
        for feeder, python in rows:
            feeder.open(python)
        for n in range(rounds):
            for feeder, _ in rows[:: -1 if n % 2 else 1]:
                if cold:
                    forget(job)
                # What a second epoch reads would come from memory again.
                feeder.measure(seconds, job.times * job.per_sample if cold else NO_LIMIT)
    finally:
        for feeder, _ in rows:
            if hasattr(feeder, "process"):
                feeder.close()


def forget(job: Job) -> None:
    """Drop the files from the page cache."""
    for path in files(job):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def remember(job: Job) -> None:
    """Read every file once, so that all feeders find them in the page cache."""
    for path in files(job):
        path.read_bytes()


def table(rows: list[Feeder], job: Job) -> None:
    """Print medians; ratios are those within each round, and the spread is the slowest and the fastest one."""
    stored = job.times * job.field_bytes / stored_bytes(job)
    plain = rows[1].rates()
    peers = [row.rates() for row in rows if row.job.feeder == "fme"]
    best = [max(speeds) for speeds in zip(*peers, strict=True)] or [float("nan")] * len(plain)
    print(
        f"\n{job.per_sample} of {len(job.tiles)} patches a time, batches of {job.batch}. MB/s decoded: what was read "
        f"from files, times {stored:.1f}, the ratio of decoded to stored bytes\n"
    )
    print(
        "| feeder | patches/s | spread | of plain, by field | × best of fme | MB/s delivered | MB/s decoded "
        "| CPU ms a patch | imports (s) | then first batch (s) | peak memory (MB) |\n" + "|---" * 11 + "|"
    )
    for row in rows:
        speeds = row.rates()
        speed = statistics.median(speeds)
        print(
            f"| {row.name} | {speed:,.0f} | {min(speeds):,.0f}–{max(speeds):,.0f} "
            f"| {middle_ratio(speeds, plain):.0%} | {middle_ratio(speeds, best):.2f} "
            f"| {speed * job.patch_bytes / 1e6:,.0f} "
            f"| {statistics.median(row.per_second('read')) * stored / 1e6:,.0f} | {row.cpu() * 1e3:.3f} "
            f"| {row.start['imports']:.1f} | {row.start['first']:.2f} "
            f"| {max(window['resident'] for window in row.windows) / 1e6:,.0f} |"
        )


def middle_ratio(speeds: list[float], others: list[float]) -> float:
    """The median over the rounds, of which a busy machine slows both alike."""
    return statistics.median(here / there for here, there in zip(speeds, others, strict=True))


def memory(job: Job) -> None:
    """Print the most memory that a whole epoch takes, of as much data as the budget and of all of them."""
    budget = job.times // BUDGET_SHARE
    print(
        f"\nPeak memory after {job.times * job.per_sample} patches: once around all data, "
        f"or {BUDGET_SHARE} times around the first {budget} times; patch.shuffle: {SHUFFLE}\n\n"
        f"| hookloop | after imports | data of {budget * job.field_bytes / 1e6:.0f} MB "
        f"| data of {job.times * job.field_bytes / 1e6:.0f} MB |\n|---|---|---|---|"
    )
    for cache, workers in (("ram", 0), ("none", 0), ("none", 2)):
        peaks = []
        for times in (budget, job.times):
            own = job._replace(feeder="hookloop", cache=cache, workers=workers, times=times, shuffle=SHUFFLE)
            feeder = Feeder(f"hookloop, cache: {cache}", own)
            feeder.open(sys.executable)
            feeder.measure(0, job.times * job.per_sample)
            feeder.close()
            peaks.append(feeder.windows[0]["resident"] / 1e6)
        after = feeder.start["resident"] / 1e6
        print(
            f"| cache: {cache}, {workers} workers | {after:,.0f} MB | {peaks[0]:,.0f} MB | {peaks[1]:,.0f} MB |"
        )


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--peers", help="python of an environment with fme and xbatcher; without: hookloop alone"
    )
    parser.add_argument("--format", choices=("zarr", "netcdf"), default="zarr")
    parser.add_argument("--times", type=int, default=384, help="best a multiple of 64")
    parser.add_argument("--size", type=int, default=512, help="fine cells of a field along each axis")
    parser.add_argument("--patch", type=int, default=128, help="fine cells of a patch along each axis")
    parser.add_argument(
        "--chunk", type=int, default=0, help="fine cells of a chunk along each axis; 0: whole fields"
    )
    parser.add_argument("--batch", type=int, default=16, help="patches of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a window")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each window")
    parser.add_argument("--quick", action="store_true", help="small fields, one round, peers without workers")
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "hookloop-benchmark", help="kept there"
    )
    asked = parser.parse_args()
    if asked.size % asked.patch or asked.patch % 8:
        raise SystemExit(
            f"patches of {asked.patch} do not tile {asked.size} cells; expected multiples of 8 that do"
        )
    if asked.quick:
        asked.times, asked.size, asked.rounds, asked.seconds = 192, 256, 1, 0.5
    folder = asked.data / f"{asked.times}x{asked.size}c{asked.chunk}"
    job = Job(
        "",
        str(folder),
        asked.format,
        asked.times,
        asked.size,
        asked.patch,
        per_sample=1,
        batch=asked.batch,
        chunk=asked.chunk,
    )
    every = job._replace(per_sample=len(job.tiles))
    began = time.perf_counter()
    make(job)
    make(job._replace(format="zarr"))  # what patches are compared with
    if not asked.cold:
        remember(job)
    print(f"`python benchmarks/data.py {' '.join(sys.argv[1:])}`, {os.cpu_count()} cores, OMP_NUM_THREADS=1")
    print(f"{describe(job)} (made or read in {time.perf_counter() - began:.0f} s)")
    print(f"page cache: {'dropped before each window' if asked.cold else 'warm for all'}")
    versions: dict[str, str] = {"Python": platform.python_version()}
    for some in [every] if asked.quick else [every, job]:
        load = os.getloadavg()[0]
        opened = feeders(some, asked.peers, (0,) if asked.quick else (0, 2))
        compare(opened, asked.rounds, asked.seconds, cold=asked.cold)
        rows = [feeder for feeder, _ in opened]
        table(rows, some)
        print(f"\nload of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after", flush=True)
        versions |= {name: number for row in rows for name, number in row.start["versions"].items()}
    memory(every)
    print(f"\n{', '.join(f'{name} {number}' for name, number in versions.items())}")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
