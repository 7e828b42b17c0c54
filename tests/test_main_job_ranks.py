"""The main job in two processes as a user runs it: beside one process, disturbed, streamed, in parts."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from attrs import define, field, frozen
from conftest import Site
from faults.comparison import Whole, names, read_metrics
from linear_forecast import LinearModel, section, six_hourly, write_states

from hookloop.files import load

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.xdist_group("main job of several ranks")  # runs are shared

STRIKE = """
import os
import signal
import time
import attrs
from hookloop import hookimpl

@attrs.define(eq=False)
class Strike:
    "One rank sends itself a signal within a hook, or is slow in it; at step 0 never."
    hook: str = "after_batch"
    step: int = 0
    rank: int = 1
    signal: str = "SIGTERM"
    seconds: float = 0.0

    def reach(self, run, hook):
        if (hook, run.progress.step, run.ranks.rank) == (self.hook, self.step, self.rank):
            if self.seconds:
                time.sleep(self.seconds)
            else:
                os.kill(os.getpid(), signal.Signals[self.signal])

    @hookimpl
    def after_batch(self, run):
        self.reach(run, "after_batch")

    @hookimpl
    def validate(self, run):
        self.reach(run, "validate")

    @hookimpl
    def infer(self, run):
        self.reach(run, "infer")
"""
SMALL = {
    "run.max_epochs": 2,
    "run.device": "cpu",
    "run.validate_every": "1 epoch",
    "optimization.precision": "fp32",
    "downscaling.train.batch_size": 4,
    "downscaling.validation.batch_size": 3,
    "downscaling.model.backbone": "{name: unet, channels: 8, multipliers: [1, 2], blocks: 1}",
    "downscaling.patch.coarse": "[3, 3]",
    "downscaling.sampler.steps": 2,
    "generation.members": 2,
    "generation.sets": (
        "{validation: {windows: 2}, large: {split: validation, windows: 1, members: 3, weight: 0.5}}"
    ),
    "generation.epochs": '"::1"',
    "generation.metrics": "[ensemble]",
    "checkpoint.every_n_batches": 3,
    "progress.every_n_batches": 1,
}
"""Float32 without dropout: 14 batches in an epoch, of 53 samples; the last batch of one leaves a rank without any."""
STEPS = 14
PLENTY = 300.0
"""Seconds for what takes ten on an idle machine."""


@frozen
class Done:
    """A command that has ended."""

    code: int
    printed: str
    told: str
    """What it showed on the console."""


@define
class Place:
    """A folder of its own with a run in it, named alike everywhere, so that files are alike too."""

    folder: Path
    config: Path
    environment: Mapping[str, str]
    plugins: str = "downscaling,ema,strike"
    options: Mapping[str, object] = field(factory=lambda: SMALL)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self, processes: int = 2, **options: object) -> Done:
        """Call the command, and wait until it and all that it has started has ended."""
        head = ["run", "--plugins", self.plugins, "--dir", "run", str(self.config)]
        return self.call(head, processes, {**self.options, **options})

    def strike(
        self,
        processes: int = 2,
        options: Mapping[str, object] = MappingProxyType({}),
        limit: str = "null",
        **point: object,
    ) -> Done:
        """Call it with a rank that strikes."""
        struck = {**options, "run.time_limit": limit, "strike": json.dumps(point)}
        return self.start(processes=processes, **struck)

    def call(self, words: list[str], processes: int, options: Mapping[str, object]) -> Done:
        several = ["--nproc", str(processes)] if processes > 1 else []
        sets = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "hookloop", words[0], *several, *words[1:], *sets]
        with (self.folder / "told").open("w+") as told, (self.folder / "printed").open("w+") as printed:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=printed, stderr=told
            )
            descendants = Descendants(process.pid)
            try:
                code = process.wait(PLENTY)
                descendants.expect_none()
            finally:
                descendants.end()
                if process.poll() is None:
                    process.kill()
                    process.wait()
            return Done(code, *(Path(file.name).read_text() for file in (printed, told)))

    def step(self) -> int:
        """Where the same command goes on."""
        progress = load(self.run / "checkpoints" / "latest.ckpt")["progress"]
        assert isinstance(progress, dict)
        return int(progress["step"])


@define
class Descendants:
    """Every process that one has started, and those that they have, seen while they live."""

    root: int
    seen: set[tuple[int, str]] = field(factory=set)
    """With the time at which they began: a number may be given anew."""
    done: threading.Event = field(factory=threading.Event)
    watch: threading.Thread = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.watch = threading.Thread(target=self.look)
        self.watch.start()

    def look(self) -> None:
        while not self.done.wait(0.2):
            tree = alive()
            found, new = {self.root}, True
            while new:
                new = {pid for pid, (parent, _) in tree.items() if parent in found} - found
                found |= new
            self.seen |= {(pid, tree[pid][1]) for pid in found - {self.root} if pid in tree}

    def expect_none(self) -> None:
        """Give those that are left a while to end; none may stay."""
        deadline = time.monotonic() + 30
        while left := self.left():
            assert time.monotonic() < deadline, f"left over: {left}"
            time.sleep(0.05)

    def left(self) -> set[int]:
        tree = alive()
        return {pid for pid, began in self.seen if pid in tree and tree[pid][1] == began}

    def end(self) -> None:
        self.done.set()
        self.watch.join()
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)


def alive() -> dict[int, tuple[int, str]]:
    """Every process that is not a zombie, with its parent and when it began."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[0] not in "ZX":
            found[int(stat.parent.name)] = int(words[1]), words[19]
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    site = Site(tmp_path_factory.mktemp("site"))
    site.install("strike", STRIKE, {"hookloop": {"strike": "strike:Strike"}})
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site.path)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Place:
    """A place with the configuration that ``init`` writes, for 53 hours of 16x16 fields."""
    directory = tmp_path_factory.mktemp("ranks") / "data"
    words = ["--size", "16", "--times", "53", "--validation-times", "4"]
    subprocess.run(
        [sys.executable, "-m", "hookloop", "init", "downscaling", str(directory), *words],
        check=True,
        capture_output=True,
    )
    return Place(directory, directory / "cfg.yaml", environment)


def elsewhere(place: Place, folder: Path) -> Place:
    return Place(folder, place.config, place.environment)


def whole(place: Place, folder: Path, processes: int, **options: object) -> Place:
    made = elsewhere(place, folder)
    done = made.start(processes=processes, **options)
    assert done.code == 0, done.told
    return made


@pytest.fixture(scope="module")
def alone(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run in one process, never disturbed."""
    return whole(place, tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module")
def two(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same in two."""
    return whole(place, tmp_path_factory.mktemp("two"), 2)


def clockless(run: Path) -> dict[tuple[int, str], float]:
    """Every number of a run by step and key, each once, but for those that a clock gives."""
    metrics, problems = read_metrics(run / "metrics.jsonl")
    assert problems == []
    clock = re.compile(r".*_seconds|.*per_second")
    return {key: value for key, value in metrics.items() if not clock.fullmatch(key[1])}


def assert_close(run: Path, other: Path, relative: float = 1e-5) -> None:
    """The same metrics, weights, averages and best states, but for the rounding of sums in another order."""
    ours, theirs = clockless(run), clockless(other)
    assert ours.keys() == theirs.keys()
    apart = {
        key: (value, theirs[key])
        for key, value in ours.items()
        if not math.isclose(value, theirs[key], rel_tol=relative, abs_tol=1e-7)
    }
    assert apart == {}
    for name in ("latest", "best", "best_inference"):
        one, another = (load(at / "checkpoints" / f"{name}.ckpt") for at in (run, other))
        assert one["progress"] == another["progress"]
        torch.testing.assert_close(one["model"], another["model"], rtol=1e-3, atol=1e-5)


def events(run: Path, rank: int = 0) -> list[dict[str, object]]:
    name = f"log.rank{rank}.jsonl" if rank else "log.jsonl"
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_two_processes_give_what_one_gives(alone: Place, two: Place) -> None:
    """The same metrics and weights to rounding, the same best epochs; sets and members are spread over ranks."""
    assert_close(two.run, alone.run)
    metrics = clockless(two.run)
    assert {key for step, key in metrics if step == STEPS and key.endswith("crps/t2m")} == {
        "inference/validation/crps/t2m",
        "inference/large/crps/t2m",
    }
    assert max(step for step, _ in metrics) == 2 * STEPS


def test_files_are_written_once(alone: Place, two: Place) -> None:
    """The same as by one process, and a log of the second; the leader told everything on the console, once."""
    ours, theirs = set(names(two.run)), set(names(alone.run))
    assert ours - theirs == {"log.rank1.jsonl"}
    assert theirs <= ours
    assert {"figures/loss_by_noise.png", "metrics.jsonl"} <= ours
    assert any(re.fullmatch(r"figures/.*t2m.*\.png", name) for name in ours)
    assert (two.run / "config.yaml").read_bytes() == (alone.run / "config.yaml").read_bytes()
    told = (two.folder / "told").read_text()
    assert told.count(" run.finished ") == 1
    assert [event["event"] for event in events(two.run, 1)].count("run.finished") == 1
    assert "checkpoint.saved" not in {event["event"] for event in events(two.run, 1)}
    (start,) = json.loads((two.run / "environment.json").read_text())["starts"]
    assert start["ranks"] == 2


@pytest.mark.long
def test_from_one_process_to_two_and_back(place: Place, alone: Place, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, by SIGTERM and by its time limit, it ends as if it had not been."""
    moving = elsewhere(place, tmp_path)
    assert moving.strike(processes=1, step=4, rank=0).code == 143
    assert moving.step() == 4
    stopped = moving.strike(limit="1s", step=9, rank=1, seconds=1.1)
    assert stopped.code == 75, stopped.told
    assert 4 < moving.step() <= 10  # all ranks know one batch later
    done = moving.start(processes=1)
    assert done.code == 0, done.told
    assert_close(moving.run, alone.run)


STREAMED = {"downscaling.train.cache": "none", "downscaling.train.workers": "1"}


@pytest.mark.long
def test_two_processes_disturbed_give_the_same_bits(place: Place, two: Place, tmp_path: Path) -> None:
    """Stopped in training, validation and inference, and killed while readers work: nothing differs, nothing stays."""
    choose = random.Random(7)  # noqa: S311 - a test
    run = elsewhere(place, tmp_path)
    expected = Whole.of(two.run, [], 0.0)

    step = choose.randint(2, 6)
    done = run.strike(step=step, rank=1, signal="SIGTERM")
    assert done.code == 143, done.told
    assert step <= run.step() <= step + 1
    before = run.step()

    step = choose.randint(9, 11)
    done = run.strike(options=STREAMED, step=step, rank=1, signal="SIGKILL")
    assert done.code == 1, done.told
    assert "rank 1 was killed by SIGKILL" in done.told
    assert before <= run.step() <= step

    done = run.strike(hook="validate", step=STEPS, rank=0, signal="SIGINT")
    assert done.code == 130, done.told
    assert run.step() == STEPS

    done = run.strike(hook="infer", step=STEPS, rank=1, signal="SIGTERM")
    assert done.code == 143, done.told
    assert run.step() == STEPS

    done = run.start()
    assert done.code == 0, done.told
    assert expected.compare(run.run) == []


@pytest.mark.long
def test_in_parts_the_same_is_learnt_and_evaluated(place: Place, two: Place, tmp_path: Path) -> None:
    """``fully_shard`` gives what ``replicate`` gives to rounding, and its checkpoint evaluates to what it logged."""
    sharded = {"distributed.strategy": "fully_shard"}
    parts = whole(place, tmp_path / "parts", 2, **sharded)
    assert_close(parts.run, two.run, 1e-4)

    checkpoint = parts.run / "checkpoints" / "latest.ckpt"
    words = ["evaluate", "--plugins", parts.plugins, str(checkpoint), str(parts.config)]
    done = parts.call([*words, "--dir", "evaluation"], 2, {**SMALL, **sharded})
    assert done.code == 0, done.told
    printed = dict(line.split() for line in done.printed.splitlines())
    logged = {key: value for (step, key), value in clockless(parts.run).items() if step == 2 * STEPS}
    compared = {key for key in printed if key.startswith(("val/", "inference/")) and key in logged}
    assert {"val/loss", "inference/error", "inference/large/crps/t2m"} <= compared
    for key in compared:
        assert float(printed[key]) == pytest.approx(logged[key], rel=1e-6), key


@pytest.mark.long
def test_forecasts_of_two_processes_are_those_of_one(environment: dict[str, str], tmp_path: Path) -> None:
    """Training, windows that go on from one another, and members: the same metrics to rounding."""
    linear = LinearModel()
    write_states(tmp_path / "train.zarr", linear.history(30), six_hourly(30))
    write_states(tmp_path / "validation.zarr", linear.history(12, seed=1), six_hourly(12, "2021-01-01T00"))
    learnt = {"fields": [str(tmp_path / "train.zarr")], "batch_size": 4}
    chains = {"starts": 3, "n_forward_steps": 2, "windows_per_start": 2}
    forecast = section(tmp_path, train=learnt, sampler={"steps": 2}, **chains)
    document = {
        "plugins": ["forecast", "ema"],
        "run": {"max_epochs": 1, "device": "cpu"},
        "optimization": {"optimizer": "AdamW", "lr": 1e-3, "precision": "fp32"},
        "generation": {"members": 3, "metrics": ["ensemble"], "figures": 0, "max_batch": 3},
        "forecast": forecast,
    }
    config = tmp_path / "cfg.yaml"
    config.write_text(yaml.safe_dump(document))
    ended = []
    for processes in (1, 2):
        made = Place(tmp_path / f"{processes}", config, environment, "forecast,ema", {})
        done = made.start(processes=processes)
        assert done.code == 0, done.told
        ended.append(made.run)
    assert_close(*ended)
    assert any(key.startswith("inference/lead/24h/crps/") for _, key in clockless(ended[1]))
