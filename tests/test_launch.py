"""Several real processes, asked to stop, killed and mistaken: they end together, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attrs import define, field

from hookloop import launch
from hookloop.errors import HookloopError
from hookloop.files import load
from hookloop.launch import Processes
from hookloop.locking import lock
from hookloop.logs import events_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Site

SLOWLY = """
import os
import signal
import time
import attrs
from hookloop import hookimpl
from hookloop.errors import HookloopError

@attrs.define(eq=False)
class Slowly:
    "A tiny task whose every batch takes a while, and in which something may happen to a rank."
    seconds: float = 0.05
    what: str = "nothing"
    rank: int = 1
    step: int = 5

    @hookimpl
    def make_task(self, run):
        from hookloop.testing import TinyData, TinyTask
        return TinyTask({"train": TinyData(400, 4), "validation": TinyData(4, 4)})

    @hookimpl
    def after_batch(self, run):
        time.sleep(self.seconds)
        at = run.progress.step
        os.write(1, f"rank {run.ranks.rank} of {run.ranks.world} is {os.getpid()} step {at}\\n".encode())
        if (run.ranks.rank, at) == (self.rank, self.step):
            self.happen()

    @hookimpl
    def shutdown(self, error):
        if isinstance(error, ZeroDivisionError):
            os.write(2, b"closing after the crash\\n")

    def happen(self):
        if self.what == "mistake":
            raise HookloopError("somebody's mistake")
        if self.what == "crash" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            raise ZeroDivisionError("on purpose")
"""

LINE = re.compile(r"rank (\d+) of (\d+) is (\d+) step (\d+)")
PLENTY = 120.0
"""Seconds for what takes ten on an idle machine."""


@define
class Started:
    """A command under way: what it prints is read as it comes."""

    process: subprocess.Popen[str]
    directory: Path
    pids: dict[int, int] = field(factory=dict)
    steps: dict[int, int] = field(factory=dict)
    errors: list[str] = field(factory=list)
    readers: list[threading.Thread] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.readers += [threading.Thread(target=target) for target in (self.read, self.read_errors)]
        for reader in self.readers:
            reader.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if found := LINE.match(line):
                    rank, _, pid, step = map(int, found.groups())
                    self.pids[rank], self.steps[rank] = pid, step

    def read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.errors.append(line.rstrip())

    def reaches(self, step: int, world: int = 2) -> Started:
        """Wait until every rank has done so many steps."""
        end = time.monotonic() + PLENTY
        while len(self.steps) < world or min(self.steps.values()) < step:
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < end, self.errors
            time.sleep(0.005)
        return self

    def starts(self, world: int = 2) -> Started:
        """Wait until so many workers have been started, which are importing then."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        end = time.monotonic() + PLENTY
        while len(self.pids) < world:
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < end, self.errors
            workers = [
                pid for pid in map(int, children.read_text().split()) if "spawn_main" in command_of(pid)
            ]
            self.pids = dict(enumerate(workers))
            time.sleep(0.005)
        return self

    def ends(self, seconds: float = PLENTY) -> int:
        """Wait for the end, after which no rank is left."""
        code = self.process.wait(seconds)
        end = time.monotonic() + seconds
        while any(lives(pid) for pid in self.pids.values()):
            assert time.monotonic() < end, "orphans"
            time.sleep(0.01)
        for reader in self.readers:
            reader.join(seconds)
        return code

    def told(self, text: str) -> int:
        """Count the lines on the console that hold *text*."""
        return sum(text in line for line in self.errors)

    def stopped(self, rank: int) -> dict[str, object]:
        """What the last run's log of a rank says of its stop."""
        name = "log.jsonl" if rank == 0 else f"log.rank{rank}.jsonl"
        events = [json.loads(line) for line in (self.directory / name).read_text().splitlines()]
        return next(event for event in reversed(events) if event["event"] == "run.stopped")

    def saved(self) -> int:
        """The step from which the same command goes on."""
        progress = load(self.directory / "checkpoints" / "latest.ckpt")["progress"]
        assert isinstance(progress, dict)
        return int(progress["step"])


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@define
class Job:
    """The command, and where it runs."""

    directory: Path
    config: Path
    started: list[Started] = field(factory=list)

    def start(self, *options: str, launcher: tuple[str, ...] = ("-m", "hookloop"), world: int = 2) -> Started:
        ours = ("--nproc", str(world)) if launcher == ("-m", "hookloop") else ()
        command = [sys.executable, *launcher, "run", *ours, *options, str(self.config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return self._started(command, environment)

    def start_ranks(self, *options: str) -> list[Started]:
        """Start a process for each of two ranks, as Slurm would: without a launcher of ours."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "hookloop", "run", *options, str(self.config)]
        names = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        return [
            self._started(command, {**os.environ, **names, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(2)
        ]

    def _started(self, command: list[str], environment: dict[str, str]) -> Started:
        process = subprocess.Popen(
            command, stdout=-1, stderr=-1, text=True, start_new_session=True, env=environment
        )
        self.started.append(Started(process, self.directory))
        return self.started[-1]


@pytest.fixture
def job(site: Site, tmp_path: Path) -> Iterator[Job]:
    """A job that takes long enough to be disturbed; whatever of it is left is killed."""
    site.install("slowly", SLOWLY, {"hookloop": {"slowly": "slowly:Slowly"}})
    directory = tmp_path / "run"
    config = tmp_path / "cfg.yaml"
    config.write_text(
        f"plugins: [slowly]\nrun: {{dir: {directory}, device: cpu}}\n"
        "optimization: {optimizer: SGD, lr: 0.25}\ncheckpoint: {every_n_batches: 100000}\n"
    )
    made = Job(directory, config)
    yield made
    for started in made.started:
        for pid in (started.process.pid, *started.pids.values()):
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        started.process.wait()
        for reader in started.readers:
            reader.join()


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_signal_to_any_rank_stops_all_after_the_same_batch(job: Job, seed: int) -> None:
    """At whatever instant it comes, and to whomever: state saved, one line told, the rank that was asked named."""
    choose = random.Random(seed)  # noqa: S311 - a test
    run = job.start().reaches(choose.randint(1, 6))
    rank = choose.randrange(2)
    time.sleep(choose.uniform(0.0, 0.1))
    os.kill(run.pids[rank], signal.SIGTERM)
    assert run.ends() == 143, run.errors
    stops = [run.stopped(0), run.stopped(1)]
    assert {stop["why"] for stop in stops} == {f"SIGTERM (rank {rank})"}
    assert {stop["step"] for stop in stops} == set(run.steps.values()) == {run.saved()}
    assert run.told("stopping at the next boundary") == (rank == 0)
    assert run.told("run.stopped") == 1


@pytest.mark.parametrize(
    ("number", "send", "code"),
    [
        (signal.SIGTERM, os.kill, 143),
        (signal.SIGINT, os.killpg, 130),
        pytest.param(signal.SIGHUP, os.kill, 129, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, os.killpg, 129, marks=pytest.mark.long),
    ],
)
def test_a_signal_to_the_launcher_or_to_all_stops_all(
    job: Job, number: int, send: Callable[[int, int], None], code: int
) -> None:
    """The launcher passes it on; from the keyboard each process gets it twice, which counts once."""
    run = job.start().reaches(2)
    send(run.process.pid, number)
    assert run.ends() == code, run.errors
    assert set(run.steps.values()) == {run.saved()}
    assert run.told("stopping at the next boundary") == 1
    assert not (job.directory / "run.lock").exists()


def test_a_killed_rank_ends_the_job_which_goes_on_from_the_last_state(job: Job) -> None:
    """A state is saved on SIGUSR1; the one line after the kill names its step, and the same command goes on there."""
    run = job.start().reaches(2)
    os.kill(run.process.pid, signal.SIGUSR1)
    while not (job.directory / "checkpoints" / "latest.ckpt").exists():
        time.sleep(0.01)
    run.reaches(max(run.steps.values()) + 2)
    killed = time.monotonic()
    os.kill(run.pids[1], signal.SIGKILL)
    assert run.ends() == 1
    assert time.monotonic() - killed < 30.0
    step = run.saved()
    told = "rank 1 was killed by SIGKILL, perhaps for want of memory; run the same command to go on from step"
    assert run.told(f"{told} {step}") == 1, run.errors
    assert run.told("lost another rank") == 0

    again = job.start("--set", "run.time_limit=1s")
    assert again.ends() == 75, again.errors
    assert again.stopped(1)["code"] == 75
    assert set(again.steps.values()) == {again.saved()}
    assert again.saved() > step
    (environment,) = json.loads((job.directory / "environment.json").read_text())["starts"][1:]
    assert (environment["ranks"], len(environment["hosts"])) == (2, 2)


@pytest.mark.long
def test_asked_again_it_ends_at_once_also_where_a_rank_does_not_answer(job: Job) -> None:
    """Nothing is said of a rank that was killed, since that was what one asked for."""
    run = job.start().reaches(2)
    os.kill(run.pids[1], signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    time.sleep(5.5)
    run.process.send_signal(signal.SIGINT)
    assert run.ends() == 130, run.errors
    assert run.told("killed") == 0


def test_workers_do_not_outlive_a_killed_launcher(job: Job) -> None:
    """They stop as at Ctrl-C, their state saved."""
    run = job.start().reaches(2)
    os.kill(run.process.pid, signal.SIGKILL)
    assert run.ends() == -signal.SIGKILL
    assert run.stopped(0)["code"] == 130
    assert set(run.steps.values()) == {run.saved()}


@pytest.mark.long
def test_nor_while_they_still_import(job: Job) -> None:
    """They end as soon as they look."""
    run = job.start().starts()
    os.kill(run.process.pid, signal.SIGKILL)
    assert run.ends() == -signal.SIGKILL
    assert not job.directory.exists()


@pytest.mark.parametrize(
    ("number", "send", "code"), [(signal.SIGINT, os.killpg, 130), (signal.SIGTERM, os.kill, 143)]
)
def test_asked_to_end_while_workers_import_it_does_in_silence(
    job: Job, number: int, send: Callable[[int, int], None], code: int
) -> None:
    """The signals wait until workers are ready to hear them."""
    run = job.start().starts()
    send(run.process.pid, number)
    assert run.ends() == code
    assert run.errors == []


@pytest.mark.long
def test_what_asks_nothing_of_a_beginning_run_does_not_end_it(job: Job) -> None:
    """There is no state to save yet; and under nohup nobody hangs up."""
    command = f"trap '' HUP; exec {sys.executable} -m hookloop run --nproc 2 {job.config}"
    run = job._started(["/bin/sh", "-c", command], {**os.environ, "OMP_NUM_THREADS": "1"}).starts()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        os.killpg(run.process.pid, number)
    run.reaches(2)
    os.killpg(run.process.pid, signal.SIGHUP)
    step = max(run.steps.values())
    run.reaches(step + 3)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.ends() == 143, run.errors
    assert run.stopped(0)["why"] == "SIGTERM"


@pytest.mark.long
@pytest.mark.parametrize(("what", "code"), [("crash", 1), ("mistake", 2)])
@pytest.mark.parametrize("rank", [0, 1])
def test_who_has_lost_another_answers_although_asked_to_end(
    job: Job, what: str, code: int, rank: int
) -> None:
    """As a scheduler does where one has ended; of rank 0's mistake nobody is left to tell the other."""
    ranks = job.start_ranks("--set", f"slowly.what={what}", "--set", f"slowly.rank={rank}")
    assert ranks[rank].ends() == code, ranks[rank].errors
    log = job.directory / f"log{'' if rank else '.rank1'}.jsonl"
    while '"run.failed"' not in log.read_text():
        time.sleep(0.01)
    time.sleep(0.1)  # it waits for its end
    ranks[1 - rank].process.terminate()
    assert ranks[1 - rank].ends() == (1 if rank == 0 else code), ranks[1 - rank].errors
    assert ranks[1 - rank].told("Traceback") == 0


def test_a_mistake_of_rank_0_is_told_once(job: Job) -> None:
    """The others wait for its word, and are silent."""
    job.directory.mkdir()
    with lock(job.directory, events_to(None)):
        run = job.start()
        assert run.ends() == 2
    (line,) = run.errors
    assert line.startswith(f"{job.directory}/run.lock: another run writes here: process {os.getpid()} on ")


def test_a_mistake_that_one_rank_finds_ends_all(job: Job) -> None:
    """It is told once, the code is that of a mistake, and no restart would help."""
    run = job.start("--set", "slowly.what=mistake", "--max-restarts", "3")
    assert run.ends() == 2
    assert run.told("somebody's mistake") == 1
    assert run.told("") == run.told("somebody's mistake") + run.told("ranks.joined") + run.told(
        "generation.idle"
    )


def test_a_mistake_in_the_configuration_needs_no_processes(job: Job) -> None:
    """It is found before any is started, without torch."""
    run = job.start("--set", "slowly.wat=1")
    assert run.ends() == 2
    assert run.errors == ["--set slowly.wat: slowly.wat: unknown option; did you mean 'what'?"]


def test_after_a_crash_all_start_anew_from_the_last_state(job: Job) -> None:
    """The traceback is told once, with its rank; with a restart left the run finishes by itself."""
    run = job.start(
        "--set", "slowly.what=crash", "--set", "checkpoint.every_n_batches=2", "--max-restarts", "1",
        "--set", "slowly.seconds=0.01", "--fresh",
    )  # fmt: skip
    assert run.ends() == 0, run.errors
    assert run.told("rank 1 of 2:") == 1
    assert run.told("ZeroDivisionError: on purpose") == 1
    assert run.errors.index("ZeroDivisionError: on purpose") < run.errors.index("closing after the crash")
    assert run.told("run.restarted") == 1
    assert run.told("lost another rank") == 0
    events = [json.loads(line) for line in (job.directory / "log.jsonl").read_text().splitlines()]
    resumed = [event["step"] for event in events if event["event"] == "run.resumed"]
    assert resumed == [4]


def test_under_torchrun_all_stop_together_too(job: Job) -> None:
    """Its own exit code is always 1 then; the state is saved."""
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "hookloop")
    run = job.start(launcher=torchrun).reaches(2)
    os.kill(run.pids[1], signal.SIGTERM)
    assert run.ends() == 1
    assert run.stopped(0)["why"] == run.stopped(1)["why"] == "SIGTERM (rank 1)"
    assert set(run.steps.values()) == {run.saved()}


@pytest.mark.parametrize("nproc", [None, "1", "auto"])
def test_one_process_needs_no_launcher(nproc: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do several ask for another where they have one; automatic is a process for each GPU, if there is any."""
    monkeypatch.setattr(launch, "_gpus", lambda: 1)
    assert Processes.asked(nproc, 1, None, "hookloop", 0) is None
    monkeypatch.setattr(launch, "_gpus", lambda: 4)
    assert Processes.asked("auto", 1, None, "hookloop", 0) == Processes(4)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert Processes.asked("auto", 1, None, "hookloop", 0) is None


def test_several_nodes_must_know_where_to_meet() -> None:
    """There is no guess."""
    with pytest.raises(HookloopError, match="--nnodes 2: no --rdzv-endpoint"):
        Processes.asked("4", 2, None, "hookloop", 0)
