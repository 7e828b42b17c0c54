"""Stopped anywhere, in any way, and resumed: the same bits as without a stop."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field
from torch import Tensor, nn

from hookloop import files
from hookloop.core import Run, train
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.plugins.train_evaluation import TrainEvaluation
from hookloop.schedules import CosineAnnealingLR
from hookloop.testing import Recorder, TinyData, TinyTask, events_of, fake_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from hookloop.task import Order

EPOCHS = 2
BATCHES = 5
"""Batches an epoch; fourteen samples, three in a batch, so the last batch is short."""


@define(eq=False)
class Shuffled:
    """Fourteen samples of noise, in another order in each epoch."""

    seed: int
    n_samples: int = 14
    batch_size: int = 3
    n_batches: int = BATCHES

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[Tensor]:
        """Rows of three inputs and one output."""
        rows = torch.randn(self.n_samples, 4, generator=torch.Generator().manual_seed(self.seed))
        draw = torch.Generator().manual_seed(1000 * epoch + (order == "alternate"))
        yield from torch.split(rows[torch.randperm(self.n_samples, generator=draw)], self.batch_size)[
            start:stop
        ]


@define(eq=False)
class NetTask:
    """A small net with dropout and batch statistics learns them by heart."""

    model: nn.Module
    data: Mapping[str, Shuffled] = field(factory=lambda: {"train": Shuffled(1), "validation": Shuffled(2)})

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """The mean squared error."""
        return {"loss": (self.model(batch[:, :3]) - batch[:, 3:]).square().mean()}


class Net:
    """Makes the net's task, its initial weights a function of the run's seed."""

    @hookimpl
    def make_task(self, run: Run) -> NetTask:
        """The task."""
        torch.manual_seed(run.seed("model"))
        layers = (nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8))
        return NetTask(nn.Sequential(*layers, nn.Linear(8, 1)))


@define(eq=False)
class Memory:
    """A third party's plugin whose state matters: it keeps a running mean of the losses and changes training."""

    mean: Tensor = field(factory=lambda: torch.zeros(()), init=False)
    worst: list[tuple[int, float]] = field(factory=list, init=False)

    @hookimpl
    def before_batch(self, run: Run, batch: Tensor) -> None:
        """Nudge the batch by what is remembered."""
        batch.add_(0.01 * self.mean)

    @hookimpl
    def after_batch(self, run: Run, losses: Mapping[str, Tensor]) -> None:
        """Remember."""
        self.mean = 0.9 * self.mean + 0.1 * losses["loss"]
        self.worst = sorted([*self.worst, (run.progress.step, losses["loss"].item())], key=lambda w: w[1])[
            -3:
        ]

    def state_dict(self) -> dict[str, object]:
        """What is remembered."""
        return {"mean": self.mean, "worst": self.worst}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Remember it again."""
        mean, worst = state["mean"], state["worst"]
        assert isinstance(mean, Tensor)
        assert isinstance(worst, list)
        self.mean, self.worst = mean, worst


@define(eq=False)
class StopAt:
    """Asks the run to stop after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop there."""
        if run.progress.step == self.step:
            run.stop("enough", 75)


@define(eq=False)
class FailAt:
    """Breaks down after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Fail there."""
        if run.progress.step == self.step:
            raise RuntimeError(f"broken at {self.step}")


def net_run(directory: Path, *extra: object, every: int = 1000) -> Run:
    """A run with everything whose state could be forgotten."""
    optimization = OptimizationPlugin(
        lr=0.02,
        clip_norm=1.0,
        accumulate=3,
        weight_decay=0.1,
        scheduler=CosineAnnealingLR(warmup=3),
    )
    plugins = (Net(), optimization, EMA(decay=0.8), Memory(), TrainEvaluation(batches=2))
    return fake_run(directory, *plugins, *extra, Checkpoint(every_n_batches=every), max_epochs=EPOCHS)


def tiny_run(directory: Path, *extra: object, every: int = 1000) -> Run:
    """The tiny task with noise."""
    task = TinyTask(data={"train": TinyData(14, 3), "validation": TinyData(4)}, noise=1.0)
    return fake_run(
        directory, EMA(decay=0.8), *extra, Checkpoint(every_n_batches=every), task=task, max_epochs=EPOCHS
    )


RUNS = pytest.mark.parametrize("make", [net_run, tiny_run])
STEPS = pytest.mark.parametrize("step", range(1, EPOCHS * BATCHES + 1))


def assert_same(one: object, other: object, place: str = "state") -> None:
    """Every number in two nested states is equal, bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert isinstance(other, Tensor)
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), f"{place}: {one} and {other}"
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other), place
        for key in one:
            assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        assert len(one) == len(other), place
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}[{i}]")
    else:
        assert one == other, f"{place}: {one} and {other}"


def assert_same_runs(one: Path, other: Path) -> None:
    """The last state and the best weights in two directories are equal; the first is finished."""
    for name in ("latest.ckpt", "best.ckpt"):
        first, second = (files.load(path / "checkpoints" / name) for path in (one, other))
        first.pop("config"), second.pop("config")  # the plugin that stopped it is in one of them
        assert_same(first, second, name)
    progress = files.load(one / "checkpoints" / "latest.ckpt")["progress"]
    assert progress == {"epoch": EPOCHS, "batch": 0, "step": EPOCHS * BATCHES}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[..., Run]], Path]:
    """The directory of a run of each kind that nobody stopped."""
    directories: dict[Callable[..., Run], Path] = {}

    def directory(make: Callable[..., Run]) -> Path:
        if make not in directories:
            directories[make] = tmp_path_factory.mktemp("uninterrupted")
            train(make(directories[make]))
        return directories[make]

    return directory


@RUNS
@STEPS
def test_stopped_after_any_batch(
    tmp_path: Path, make: Callable[..., Run], step: int, uninterrupted: Callable[[Callable[..., Run]], Path]
) -> None:
    """Weights, averages, optimizer, everybody's state and the best are those of the run that was not stopped."""
    train(make(tmp_path, StopAt(step)))
    assert files.load(tmp_path / "checkpoints" / "latest.ckpt")["progress"] == {
        "epoch": (step - 1) // BATCHES,
        "batch": (step - 1) % BATCHES + 1,
        "step": step,
    }
    train(make(tmp_path))
    assert_same_runs(tmp_path, uninterrupted(make))


@RUNS
@STEPS
def test_failed_after_any_batch(
    tmp_path: Path, make: Callable[..., Run], step: int, uninterrupted: Callable[[Callable[..., Run]], Path]
) -> None:
    """The batch that failed is learnt again from the state before it, and the end is the same."""
    with pytest.raises(RuntimeError, match=f"broken at {step}"):
        train(make(tmp_path, FailAt(step), every=1))
    train(make(tmp_path))
    assert_same_runs(tmp_path, uninterrupted(make))


def test_stopped_after_every_batch(
    tmp_path: Path, uninterrupted: Callable[[Callable[..., Run]], Path]
) -> None:
    """A run that never gets further than one batch at a time ends the same."""
    for step in range(1, EPOCHS * BATCHES + 1):
        train(net_run(tmp_path, StopAt(step)))
    train(net_run(tmp_path))
    assert_same_runs(tmp_path, uninterrupted(net_run))


def test_stopped_while_validating_or_inferring(
    tmp_path: Path, uninterrupted: Callable[[Callable[..., Run]], Path]
) -> None:
    """Stopped there, the resumed run trains nothing twice, validates again and ends the same."""

    class Validating:
        @hookimpl
        def validate(self, run: Run) -> None:
            run.stop("enough", 75)

    class Inferring:
        @hookimpl
        def infer(self, run: Run) -> None:
            run.stop("enough", 75)

    for plugin in (Validating(), Inferring()):
        run = net_run(tmp_path, plugin)
        train(run)
        assert (run.progress.epoch, run.progress.batch) == (0, BATCHES)
    train(net_run(tmp_path, recorder := Recorder()))
    assert recorder.names.count("train_step") == BATCHES
    assert recorder.names.count("validate") == EPOCHS
    assert_same_runs(tmp_path, uninterrupted(net_run))


def test_losses_are_those_of_the_uninterrupted_run(tmp_path: Path) -> None:
    """Batch by batch the losses and rates before and after a stop are those of one run in one go."""

    @define(eq=False)
    class Losses:
        seen: dict[int, tuple[float, float]] = field(factory=dict)

        @hookimpl
        def after_batch(self, run: Run, losses: Mapping[str, Tensor]) -> None:
            self.seen[run.progress.step] = (losses["loss"].item(), run.optimization.learning_rate)

    whole, first, second = Losses(), Losses(), Losses()
    train(net_run(tmp_path / "a", whole))
    train(net_run(tmp_path / "b", first, StopAt(4)))
    train(net_run(tmp_path / "b", second))
    assert list(second.seen) == list(range(5, EPOCHS * BATCHES + 1))
    assert {**first.seen, **second.seen} == whole.seen


def test_other_trained_parameters_are_refused(tmp_path: Path) -> None:
    """Moments belong to parameters: a run that trains others says which, before it loads any."""

    class Frozen(Net):
        @hookimpl
        def make_task(self, run: Run) -> NetTask:
            task = Net.make_task(self, run)
            task.model.get_parameter("5.bias").requires_grad_(requires_grad=False)
            return task

    train(fake_run(tmp_path, Net(), StopAt(1), Checkpoint()))
    with pytest.raises(HookloopError, match=r"latest\.ckpt: .* 5\.bias was trained there, not here"):
        train(fake_run(tmp_path, Frozen(), Checkpoint()))


def test_segments(tmp_path: Path, uninterrupted: Callable[[Callable[..., Run]], Path]) -> None:
    """A run in segments of one epoch ends as the run in one go."""
    for _ in range(EPOCHS):
        run = net_run(tmp_path)
        run.config = type(run.config)(dir=tmp_path, max_epochs=EPOCHS, segment_epochs=1)
        train(run)
    assert_same_runs(tmp_path, uninterrupted(net_run))


def test_from_the_one_before(tmp_path: Path, uninterrupted: Callable[[Callable[..., Run]], Path]) -> None:
    """Resumed from ``previous.ckpt`` because the latest is damaged, the end is the same."""
    train(net_run(tmp_path, StopAt(7), every=1))
    latest = tmp_path / "checkpoints" / "latest.ckpt"
    latest.write_bytes(latest.read_bytes()[:-100])
    run = net_run(tmp_path)
    train(run)
    assert [e["step"] for e in events_of(run) if e["event"] == "run.resumed"] == [6]
    assert_same_runs(tmp_path, uninterrupted(net_run))


PROCESSES = """
import importlib.util, os, random, signal, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("resume", sys.argv[1])
resume = sys.modules["resume"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(resume)
from hookloop.core import train
from hookloop.plugins.signals import Signals

directory, number = Path(sys.argv[2]), int(sys.argv[3])
draw = random.Random(number)

class Slow:
    @resume.hookimpl
    def after_batch(self):
        time.sleep(0.02)

def child():
    run = resume.net_run(directory, Slow(), Signals(), every=1)
    train(run)
    os._exit(run.stopping.code if run.stopping else 0)

statuses = []
while 0 not in statuses and len(statuses) < 20:
    process = os.fork()
    if process == 0:
        child()
    if len(statuses) < 6:
        deadline = time.monotonic() + 30
        while not (directory / "checkpoints" / "latest.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.02, 0.15))
        os.kill(process, number)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(statuses)
"""


@pytest.mark.parametrize(("number", "ends"), [(9, {-9, 0}), (15, {143, -15, 0})])
def test_real_processes_killed_at_random(
    tmp_path: Path,
    number: int,
    ends: set[int],
    uninterrupted: Callable[[Callable[..., Run]], Path],
) -> None:
    """Processes killed (9) or terminated (15) at any instant, again and again, end as one that was left alone."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES, __file__, str(tmp_path), str(number)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    statuses = [int(status) for status in done.stdout.strip("[]\n").split(",")]
    assert set(statuses) <= ends, done.stderr
    assert len(statuses) > 1
    assert_same_runs(tmp_path, uninterrupted(net_run))
