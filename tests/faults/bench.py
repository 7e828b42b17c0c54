"""Where trials are made: sample data, servers, the undisturbed runs that everything is compared with."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from faults import comparison, disk, points, shim
from faults.server import Shot, Start

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

EVERY = 2
"""Batches between checkpoints."""
_LIMIT = 60.0
"""Seconds after which a start counts as hung."""
_BATCHES = {
    "run.max_epochs": 2,
    "run.validate_every": "1 epoch",
    "optimization.accumulate": 3,
    "optimization.scheduler": "{name: CosineAnnealingLR, warmup: 2}",
    "checkpoint.every_n_batches": EVERY,
    "checkpoint.epochs": '"::1"',
    "checkpoint.ema_epochs": '"-1:"',
    "progress.every_n_batches": 1,
}
_FIELDS = {
    **_BATCHES,
    "downscaling.train.batch_size": 2,
    "downscaling.train.coarse": "[DATA/train_coarse.nc]",
    "downscaling.train.fine": "[DATA/train_fine.nc]",
    "downscaling.validation.batch_size": 1,
    "downscaling.model.backbone": (
        "{name: unet, channels: 4, multipliers: [1], blocks: 1, attention: false, dropout: 0.1}"
    ),
    "downscaling.sampler.steps": 2,
    "generation.epochs": '"::1"',
    "generation.members": 2,
    "generation.windows": 1,
}
_FEW = {**_FIELDS, "generation.figures": 0, "generation.metrics": "[ensemble]"}


@frozen
class Job:
    """The plugins and options of a kind of run, and in how many processes it is done."""

    plugins: str
    options: Mapping[str, object]
    processes: int = 1


JOBS = {
    "downscaling": Job("downscaling,ema,chaos", _FEW),
    "figures": Job(
        "downscaling,ema,chaos", {**_FIELDS, "generation.figures": 1, "generation.epochs": '"-1:"'}
    ),
    "synchronous": Job("downscaling,ema,chaos", {**_FEW, "checkpoint.asynchronous": "false"}),
    "workers": Job("workers,ema,chaos", {**_BATCHES, "workers.shielded": "true"}),
    "unshielded": Job("workers,ema,chaos", {**_BATCHES, "workers.shielded": "false"}),
    "ranks": Job("downscaling,ema,chaos", _FEW, 2),
    "sharded": Job("downscaling,ema,chaos", {**_FEW, "distributed.strategy": "fully_shard"}, 2),
}
"""12 batches in 2 epochs, 11 samples making the last one short: of two ranks one then has none."""


@frozen
class Ended:
    """How a start ended."""

    code: int | None
    seconds: float
    text: str
    """What it printed."""

    @property
    def last(self) -> str:
        """The end of it, on one line."""
        return " | ".join(self.text.splitlines()[-3:])[-300:]

    @property
    def resumed(self) -> int | None:
        """The step it went on from, if it said so."""
        return self._step("resumed")

    @property
    def stopped(self) -> int | None:
        """The step at which it stopped in order, if it said so."""
        return self._step("stopped")

    def _step(self, what: str) -> int | None:
        found = re.search(rf" run\.{what} .*\bstep=(\d+)", self.text)
        return int(found[1]) if found else None


@define(eq=False)
class Trial:
    """One run directory and everything that happens to it."""

    bench: Bench
    server: Server
    name: str
    job: str = "downscaling"
    cuts: int = 0
    """Power cuts."""
    kills: int = 0
    """Starts that did not end by themselves."""
    starts: int = 0
    redone: int = 0
    """The most steps that a resume had to do again."""
    reached: int = 0
    """The step that a resume would go on from, had everything been saved."""
    bound: int | None = 0
    """The most steps that the next resume may have to do again; ``None`` where nothing is promised."""
    problems: list[str] = field(factory=list)
    excused: set[str] = field(factory=set)
    """Files that were said to be missing."""
    ignored: set[str] = field(factory=set)
    """Parts of checkpoints that may differ."""

    @property
    def place(self) -> Path:
        """Where it all lies."""
        return self.bench.base / "trials" / self.name

    @property
    def processes(self) -> int:
        """How many processes do each start."""
        return JOBS[self.job].processes

    @property
    def killed(self) -> int:
        """What the command answers where a process that does the work is killed."""
        return -SIGKILL if self.processes == 1 else 1

    @property
    def top(self) -> Path:
        """What stands for the disk; the run is in ``run`` below it."""
        return self.place / "disk"

    @property
    def run(self) -> Path:
        """The run's own directory."""
        return self.top / "run"

    @property
    def records(self) -> Path:
        """The operations of the last start: of its first rank, where there are several."""
        return self.place / f"operations.{self.starts}"

    def replay(self) -> disk.Disk:
        """Do again what all starts did to a new directory."""
        paths = [self.place / f"operations.{number}" for number in range(1, self.starts + 1)]
        return disk.Disk.replay(self.top, (record for path in paths for record in shim.read_all(path)))

    def expect(self, holds: object, otherwise: str) -> None:
        """Note a problem where something does not hold."""
        if not holds:
            self.problems.append(otherwise)

    def start(
        self,
        trap: shim.Trap | None = None,
        point: points.Point | None = None,
        shots: Sequence[Shot] = (),
    ) -> Ended:
        """Call the command once and wait for its end."""
        return self.start_together(1, trap, point, shots)[0]

    def start_together(
        self,
        copies: int,
        trap: shim.Trap | None = None,
        point: points.Point | None = None,
        shots: Sequence[Shot] = (),
    ) -> list[Ended]:
        """Call the command so many times at once."""
        self.top.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        starts = [
            Start(
                arguments=self.bench.command(self.job),
                directory=str(self.top),
                console=str(self.place / f"console.{self.starts}{suffix}"),
                records=f"{self.records}{suffix}",
                trap=trap or shim.Trap(),
                point=point,
                shots=shots,
                processes=self.processes,
            )
            for suffix in ("", *(f".{copy}" for copy in range(1, copies)))
        ]
        codes, seconds, left = self.server.ask(starts)
        ended = [
            Ended(code, seconds, _text(Path(start.console)))
            for start, code in zip(starts, codes, strict=True)
        ]
        for end in ended:
            self.expect(end.code is not None, f"start {self.starts} hung for {_LIMIT:g} s")
            self.expect(not left, f"start {self.starts} left {left} processes over")
            if end.code == 0:
                self.expect("run.finished" in end.text, f"start {self.starts} ended with 0, unfinished")
            self._count_redone(end)
        return ended

    def _count_redone(self, end: Ended) -> None:
        """Compare the step that a start went on from with the one that those before had reached."""
        went_on = end.resumed
        if went_on is None and "metrics.set_aside" in end.text:
            went_on = 0
        if went_on is not None:
            redone = self.reached - went_on
            self.redone = max(self.redone, redone)
            if self.bound is not None:
                problem = f"start {self.starts} did {redone} steps again, expected at most {self.bound}"
                self.expect(redone <= self.bound, problem)
                self.bound = 0
        if end.stopped is not None:
            self.reached = end.stopped
        else:
            self.reached = max(self.reached, comparison.last_step(self.run / "metrics.jsonl"))

    def died(self, end: Ended, allowed: Collection[int], *, at_once: bool) -> None:
        """Note that a start was ended from outside, and how it had to answer.

        :param at_once: it could not save.
        """
        self.kills += 1
        self.expect(
            end.code in allowed,
            f"start {self.starts} ended with {end.code}, expected one of {sorted(allowed)}: {end.last}",
        )
        if at_once and self.bound is not None:
            self.bound = max(self.bound, redoable(self.job))

    def finish(self) -> None:
        """Start once more, undisturbed, and compare the end with that of the undisturbed run."""
        end = self.start()
        self.expect(end.code == 0, f"the last start ended with {end.code}: {end.last}")
        self.problems += self.bench.wholes[self.job].compare(self.run, self.excused, self.ignored)

    def close(self) -> None:
        """Remove everything where all is well; else leave it, with the reasons."""
        if self.problems:
            (self.place / "problems.txt").write_text("\n".join(self.problems) + "\n", encoding="utf-8")
        else:
            shutil.rmtree(self.place, ignore_errors=True)


def _text(console: Path) -> str:
    """What was printed; nothing where a start was killed before it could."""
    return console.read_text(errors="replace") if console.exists() else ""


def redoable(job: str) -> int:
    """Steps that a kill may cost: an interval, and another one if a thread is writing the state before it."""
    synchronous = JOBS[job].options.get("checkpoint.asynchronous") == "false"
    return EVERY if synchronous else 2 * EVERY


@define(eq=False)
class Server:
    """The client's side of :mod:`faults.server`."""

    process: subprocess.Popen[bytes]
    channel: socket.socket

    def ask(self, starts: Sequence[Start]) -> tuple[list[int | None], float, int]:
        """Have children do *starts* at the same time, wait for them, and count processes left over."""
        request = {"starts": [start.plain() for start in starts], "limit": _LIMIT}
        self.channel.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(_line(self.channel))
        return answer["codes"], answer["seconds"], answer["left"]


def _line(channel: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        some = channel.recv(65536)
        if not some:
            raise RuntimeError("the fork server has ended: see server.log")
        line += some
    return line


@define(eq=False)
class Bench:
    """A folder with sample data, plugins and trials, which should be on a fast file system."""

    base: Path
    tools: Path
    """Where the library is made: a file system from which it can be executed."""
    proven: set[str] = field(factory=set, init=False)
    """What has been left by power cuts, and ended equal when it was resumed."""
    wholes: dict[str, comparison.Whole] = field(factory=dict, init=False)
    """The undisturbed runs, by job."""

    def prepare(self) -> None:
        """Make what all trials share.

        :raises faults.shim.NoCompilerError: where operations cannot be intercepted.
        """
        self.base.mkdir(parents=True, exist_ok=True)
        shim.compile_in(self.tools)
        points.install(self.base / "site")
        subprocess.run(
            [sys.executable, "-c", _SAMPLE, str(self.data)],
            check=True,
            capture_output=True,
            env=self.environment,
        )

    @property
    def data(self) -> Path:
        """The sample data."""
        return self.base / "data"

    @cached_property
    def environment(self) -> dict[str, str]:
        """Variables of every process: one thread, and our modules on the path."""
        path = [str(Path(__file__).parents[1]), str(self.base / "site"), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
            "PYTHONPATH": os.pathsep.join(part for part in path if part),
        }

    def command(self, job: str, directory: str = "run") -> list[str]:
        """Give the arguments of ``hookloop`` for a kind of run; the directory is relative, so files are alike."""
        sets = [
            part
            for key, value in JOBS[job].options.items()
            for part in ("--set", f"{key}={str(value).replace('DATA', str(self.data))}")
        ]
        several = ["--nproc", str(JOBS[job].processes)] if JOBS[job].processes > 1 else []
        return [
            *("run", *several, "--plugins", JOBS[job].plugins, "--dir", directory),
            *(*sets, str(self.data / "cfg.yaml")),
        ]

    @contextmanager
    def server(self) -> Iterator[Server]:
        """Start a fork server, and stop it in the end."""
        ours, theirs = socket.socketpair()
        number = len(list(self.base.glob("warm.*")))
        warm = self.base / f"warm.{number}"
        warm.mkdir()
        lines = [self.command(name, name) for name, job in JOBS.items() if job.processes == 1]
        with (warm / "server.log").open("wb") as log, ours, theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "faults.server", str(theirs.fileno()), json.dumps(lines)],
                env={**self.environment, "LD_PRELOAD": str(self.tools / "shim.so")},
                cwd=warm,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, not for it
            )
            theirs.close()
            try:
                if _line(ours) != b"ready\n":
                    raise RuntimeError(f"{log.name}: no fork server")
                yield Server(process, ours)
            finally:
                ours.close()
                try:
                    process.wait(timeout=_LIMIT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def run_undisturbed(self, server: Server) -> None:
        """Make the run of each job that the others are compared with."""
        for job in JOBS:
            trial = Trial(self, server, f"whole-{job}", job)
            end = trial.start()
            if end.code != 0:
                raise RuntimeError(f"the undisturbed run of {job} ended with {end.code}:\n{end.text}")
            records = list(shim.read(trial.records))
            self.wholes[job] = comparison.Whole.of(trial.run, records, end.seconds)


_SAMPLE = """
import sys
from pathlib import Path

import xarray as xr

from hookloop.cli import cli

data = Path(sys.argv[1])
sizes = {"size": 8, "factor": 2, "times": 11, "validation-times": 2}
arguments = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
cli.main(["init", "downscaling", *arguments, str(data)], standalone_mode=False)
for store in data.glob("*.zarr"):  # whose threads would not survive a fork
    xr.open_zarr(store).load().to_netcdf(store.with_suffix(".nc"), engine="h5netcdf")
"""
