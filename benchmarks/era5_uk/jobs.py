"""Commands of hookloop side by side on one machine, until a deadline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from attrs import define, field

EXAMPLE = Path(__file__).parents[2] / "examples" / "era5_uk.yaml"


@define
class Job:
    """One command, whose output goes to a file."""

    name: str
    arguments: list[str]
    """Of ``python -m hookloop``."""
    output: Path
    process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def start(self) -> None:
        """Begin, on one thread: several share the cores."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hookloop", *self.arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    @property
    def ended(self) -> bool:
        """Whether it has begun and ended."""
        return self.process is not None and self.process.poll() is not None

    @property
    def succeeded(self) -> bool:
        """Whether it has ended with 0."""
        return self.process is not None and self.process.poll() == 0


def run_all(jobs: list[Job], slots: int, deadline: float) -> None:
    """Run *jobs* in order, so many at once; those that have not ended by the *deadline* are stopped.

    :param deadline: on the clock of :func:`time.monotonic`.
    """
    waiting, running = list(jobs), list[Job]()
    while waiting or running:
        for job in [job for job in running if job.ended]:
            running.remove(job)
            if not job.succeeded:
                print(f"{job.name}: failed, see {job.output}:\n{_end(job.output)}", flush=True)
        if time.monotonic() > deadline:
            break
        while waiting and len(running) < slots:
            running.append(waiting.pop(0))
            running[-1].start()
        time.sleep(0.1)
    for job in running:
        assert job.process is not None
        job.process.terminate()
        print(f"{job.name}: stopped by the deadline", flush=True)
    for job in running:
        assert job.process is not None
        job.process.wait()
    if waiting:
        print(f"not begun before the deadline: {', '.join(job.name for job in waiting)}", flush=True)


def _end(output: Path) -> str:
    return "\n".join(output.read_text(errors="replace").splitlines()[-5:])


def overrides(options: dict[str, object]) -> list[str]:
    """``--set`` arguments for *options*, which JSON, being YAML, writes."""
    return [part for key, value in options.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def _texts(given: list[str]) -> list[str]:
    """``--set`` arguments as they were given: last, since the last of an option counts."""
    return [part for text in given for part in ("--set", text)]


def training(name: str, directory: Path, options: dict[str, object], outputs: Path, given: list[str]) -> Job:
    """Train as the example does, but for *options* and what is *given* as text, in *directory*."""
    arguments = ["run", "--dir", str(directory), *overrides(options), *_texts(given), str(EXAMPLE)]
    return Job(name, arguments, outputs / f"{name}.txt")


def evaluation(
    name: str,
    runs: list[Path],
    directory: Path,
    options: dict[str, object],
    outputs: Path,
    given: list[str],
) -> Job:
    """Generate and score with the averages of all *runs* together: each draws its share of the members."""
    first, *others = [str((run / "checkpoints" / "latest.ckpt").resolve()) for run in runs]
    options = {**options, "downscaling.sampler.ensemble": others} if others else options
    where = ["--dir", str(directory)]
    arguments = ["evaluate", first, *where, *overrides(options), *_texts(given), str(EXAMPLE)]
    return Job(name, arguments, outputs / f"{name}.txt")


def inferences(directory: Path) -> list[dict[str, float]]:
    """Lines of ``metrics.jsonl`` that hold scores of generated fields, in order."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "inference/crps/t2m" in line]
