from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define
from ranks import on_ranks
from torch import Tensor, nn

from hookloop import files
from hookloop.core import Run, train
from hookloop.distributed import Ranks, Stop
from hookloop.errors import Diverged, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.distributed import Distributed
from hookloop.plugins.ema import EMA
from hookloop.plugins.lr_tuning import LRTuning, better
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.plugins.train_evaluation import TrainEvaluation
from hookloop.schedules import CosineAnnealingLR
from hookloop.testing import (
    LifeCycle,
    Recorder,
    TinyData,
    TinyTask,
    _assert_same,
    events_of,
    fake_run,
    prepared,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path


class TestLifeCycle(LifeCycle):
    plugin = LRTuning


class TestLifeCycleOfEverything(LifeCycle):
    plugin = LRTuning
    options = {"epochs": "::1", "factor": 2.0, "batches": 3, "threshold": 0.0}


def decisions(run: Run) -> dict[int, str]:
    """What was decided, by epoch."""
    return {
        int(str(event["epoch"])): str(event["event"]).removeprefix("lr_tuning.")
        for event in events_of(run)
        if str(event["event"]).startswith("lr_tuning.")
    }


def two(samples: int = 2) -> TinyTask:
    """Samples 0 and 1, in training and in validation: 0.5 is best."""
    return TinyTask(data={"train": TinyData(samples), "validation": TinyData(2)})


def after(w: float, rate: float) -> float:
    """The weight after an epoch of samples 0 and 1."""
    for x in (0.0, 1.0):
        w -= rate * 2 * (w - x)
    return w


def loss(w: float) -> float:
    """The validation loss."""
    return (w**2 + (w - 1) ** 2) / 2


def test_adopts_what_validates_better(tmp_path: Path) -> None:
    """By hand: from w = 0.5 a rate of 1/4 leads to 5/8, of 1/8 to 17/32, which is nearer to 1/2."""
    run = fake_run(tmp_path, LRTuning(), recorder := Recorder(), task=two(), max_epochs=2)
    train(run)
    assert recorder.metrics("lr_tuning/baseline") == {2: loss(0.625)}
    assert recorder.metrics("lr_tuning/candidate") == {2: loss(0.53125)}
    assert decisions(run) == {2: "adopted"}
    assert run.optimization.scale == 0.5
    assert run.task.model.get_parameter("weight").item() == after(after(0.0, 0.25), 0.125) == 0.53125


def test_keeps_the_rate_where_the_gain_is_below_the_threshold(tmp_path: Path) -> None:
    """The gain is 5.5 %, so a threshold of 10 % keeps the rate, and one of 5 % does not."""
    gain = 1 - loss(0.53125) / loss(0.625)
    assert 0.05 < gain < 0.1
    for threshold, decided in ((0.1, "declined"), (0.05, "adopted")):
        tuning = LRTuning(threshold=threshold)
        run = fake_run(tmp_path / decided, tuning, task=two(), max_epochs=2)
        train(run)
        assert decisions(run) == {2: decided}
        assert run.optimization.scale == {"declined": 1.0, "adopted": 0.5}[decided]


@pytest.mark.parametrize(
    ("candidate", "baseline", "adopted"),
    [
        (0.9989, 1.0, True),
        (0.999, 1.0, False),
        (1.0, 1.0, False),
        (math.nan, 1.0, False),
        (1.0, math.nan, True),
        (1.0, math.inf, True),
        (math.nan, math.nan, False),
        (-1.1, -1.0, True),
        (-1.0, -1.0, False),
    ],
)
def test_what_is_better(candidate: float, baseline: float, adopted: bool) -> None:  # noqa: FBT001
    """Lower by more than a thousandth; what is not a finite number loses."""
    assert better(candidate, baseline, 0.001) is adopted


@pytest.mark.parametrize(("epochs", "tuned"), [("2:", [2, 3, 4]), ("::1", [1, 2, 3, 4]), ("-2::2", [3])])
def test_only_in_the_epochs_asked_for(tmp_path: Path, epochs: str, tuned: list[int]) -> None:
    """Epochs are numbered from 1, as everywhere."""
    run = fake_run(tmp_path, LRTuning(epochs=epochs), task=two(), max_epochs=4)
    train(run)
    assert sorted(decisions(run)) == tuned


@pytest.mark.parametrize(("batches", "tried"), [(3, 3), (8, 8), (200, 8)])
def test_trains_on_as_many_batches_as_asked_for(tmp_path: Path, batches: int, tried: int) -> None:
    """Exactly, twice, or as many as the epoch has; they are nobody's batches and no progress."""
    tuning = LRTuning(epochs="1:2", batches=batches)
    run = fake_run(tmp_path, tuning, recorder := Recorder(), task=two(8))
    train(run)
    assert recorder.names.count("train_step") == 2 * tried + 8
    assert recorder.names.count("before_batch") == recorder.names.count("after_batch") == 8
    assert run.progress.step == 8
    assert [key for step, metrics in recorder.logged if step == 0 for key in metrics] == [
        "lr_tuning/baseline",
        "lr_tuning/candidate",
    ]


class Net:
    """Makes a task with everything that could be forgotten: dropout, batch statistics, moments, averages."""

    @hookimpl
    def make_task(self, run: Run) -> TinyTask:
        """Its initial weights are a function of the run's seed."""
        torch.manual_seed(run.seed("model"))
        layers = (nn.Linear(1, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
        return NetTask(
            data={"train": TinyData(14, 3), "validation": TinyData(5)}, model=nn.Sequential(*layers)
        )


@define(eq=False)
class NetTask(TinyTask):
    """Learn the square of the samples' numbers."""

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """The mean squared error, of numbers of order one."""
        x = batch[:, None] / 14
        return {"loss": (self.model(x) - x.square()).square().mean()}


def net_run(directory: Path, *extra: object, tuning: LRTuning | None = None, **options: object) -> Run:
    """Three epochs of five batches, with gradients that wait over the epochs' ends."""
    optimization = OptimizationPlugin(
        lr=0.02, clip_norm=1.0, accumulate=3, weight_decay=0.1, scheduler=CosineAnnealingLR(warmup=3)
    )
    chosen = tuning or LRTuning(epochs="::1", batches=4, factor=2.0)
    plugins = (Net(), optimization, EMA(decay=0.8), TrainEvaluation(batches=2), chosen)
    return fake_run(directory, *plugins, *extra, Checkpoint(), **{"max_epochs": 3, **options})


def last_state(directory: Path) -> dict[str, object]:
    """What ``latest.ckpt`` holds, but for the configuration."""
    state = files.load(directory / "checkpoints" / "latest.ckpt")
    for options in ("config", "learned"):
        del state[options]
    return state


def test_a_trial_leaves_no_trace(tmp_path: Path) -> None:
    """Where nothing is adopted, weights, buffers, moments, averages and gradients are those of a run without."""
    train(net_run(tmp_path / "a", tuning=LRTuning(epochs="::1", threshold=0.99)))
    train(net_run(tmp_path / "b", tuning=LRTuning(epochs="9:")))
    _assert_same(last_state(tmp_path / "a"), last_state(tmp_path / "b"))


def test_a_trial_leaves_the_generators_alone(tmp_path: Path) -> None:
    """What is drawn next is what would have been drawn without."""
    run = net_run(tmp_path, tuning=LRTuning(epochs="::1"))
    from hookloop.core import prepare

    prepare(run)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run.hook.before_epoch(run=run)
    assert decisions(run).keys() == {1}
    assert torch.equal(torch.rand(3), expected)


def test_a_trial_foretells_the_epoch(tmp_path: Path) -> None:
    """Over all batches the trial as it is ends where the epoch does: same batches, noise, weights and averages."""
    tuning = LRTuning(epochs="::1", threshold=0.99)
    run = net_run(tmp_path, recorder := Recorder(), tuning=tuning)
    train(run)
    assert set(decisions(run).values()) == {"declined"}
    foretold, found = recorder.metrics("lr_tuning/baseline"), recorder.metrics("val/loss")
    assert list(foretold) == [0, 5, 10]
    assert list(foretold.values()) == list(found.values())
    assert list(foretold.values()) != list(recorder.metrics("lr_tuning/candidate").values())


def test_averages_that_are_not_lent_do_not_count(tmp_path: Path) -> None:
    """The trials are validated as the run is: with the weights themselves."""
    found = []
    for lend in (True, False):
        recorder = Recorder()
        ema = EMA(decay=0.9, faster_decay_at_start=False, validate=lend)
        train(fake_run(tmp_path, ema, LRTuning(epochs="1:2", threshold=0.99), recorder, task=two()))
        assert recorder.metrics("lr_tuning/baseline")[0] == recorder.metrics("val/loss")[2]
        found.append(recorder.metrics("lr_tuning/baseline")[0])
    averaged = 0.9 * 0.0 + 0.1 * after(0.0, 0.25)  # the first of the two steps leaves 0
    assert found == pytest.approx([loss(averaged), loss(after(0.0, 0.25))])


@define(eq=False)
class Cliff(TinyTask):
    """Beyond a weight the loss is no number."""

    edge: float = math.inf

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """The tiny loss, on this side."""
        (found,) = TinyTask.loss(self, batch).values()
        beyond = self.model.get_parameter("weight") > self.edge
        return {"loss": torch.where(beyond, math.nan, found)}


def test_nan_loses(tmp_path: Path) -> None:
    """As it is the weight would go to 5/8, over an edge at 0.6; the other rate does not, and is adopted."""
    run = fake_run(tmp_path, LRTuning(threshold=0.9), task=Cliff(data=two().data, edge=0.6), max_epochs=2)
    train(run)
    assert decisions(run) == {2: "adopted"}
    assert run.task.model.get_parameter("weight").item() == 0.53125


def test_nan_in_both_is_loud(tmp_path: Path) -> None:
    """With the edge at 0.51 both go over it."""
    run = fake_run(tmp_path, LRTuning(), task=Cliff(data=two().data, edge=0.51), max_epochs=2)
    with pytest.raises(Diverged, match=r"lr_tuning: epoch 2: val/loss is nan .* nan at 0.5 times that"):
        train(run)


def test_who_diverges_in_a_trial_loses_it(tmp_path: Path) -> None:
    """A plugin that guards the training step ends that trial, not the run."""

    class Guard:
        @hookimpl(wrapper=True)
        def train_step(self, run: Run) -> Generator[None, object, object]:
            if run.optimization.scale == 1.0 and run.progress.step == 3:
                raise Diverged("too far")
            return (yield)

    run = fake_run(tmp_path, Guard(), LRTuning(), task=two(), max_epochs=2)
    train(run)
    assert decisions(run) == {2: "adopted"}


@define(eq=False)
class StopAt:
    """Asks the run to stop after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop there."""
        if run.progress.step == self.step:
            run.stop("enough", 75)


class InTrial:
    """Does something after so many training steps, those of trials counted."""

    def __init__(self, act: Callable[[Run], None], at: int) -> None:
        self.act, self.at, self.steps = act, at, 0

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Remember the run itself."""
        self.run = run

    @hookimpl(wrapper=True)
    def train_step(self) -> Generator[None, object, object]:
        """Count, and act."""
        answer = yield
        self.steps += 1
        if self.steps == self.at:
            self.act(self.run)
        return answer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The last state of a run that nobody stopped, which has adopted a rate and declined one."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    run = net_run(directory)
    train(run)
    assert set(decisions(run).values()) == {"adopted", "declined"}
    return last_state(directory)


def stop(run: Run) -> None:
    """As a signal does."""
    run.stop("enough", 143)


def fail(_: Run) -> None:
    """As a crash does."""
    raise RuntimeError("broken")


@pytest.mark.parametrize("step", range(1, 15))
def test_stopped_after_any_batch(tmp_path: Path, step: int, uninterrupted: dict[str, object]) -> None:
    """Resumed, it ends the same; within an epoch there is no trial anew."""
    train(net_run(tmp_path, StopAt(step)))
    run = net_run(tmp_path)
    train(run)
    assert sorted(decisions(run)) == [n for n in (1, 2, 3) if 5 * (n - 1) >= step]
    _assert_same(last_state(tmp_path), uninterrupted)


# Each trial trains four batches, each epoch five: the second epoch's trials are steps 14 to 21.
@pytest.mark.parametrize("at", [14, 17, 18, 20, 21])
def test_stopped_in_a_trial(tmp_path: Path, at: int, uninterrupted: dict[str, object]) -> None:
    """It is abandoned and leaves no trace; resumed, the run tries again and ends the same."""
    run = net_run(tmp_path, InTrial(stop, at), recorder := Recorder())
    train(run)
    assert run.progress.step == 5
    assert decisions(run).keys() == {1}
    assert list(recorder.metrics("lr_tuning/baseline")) == [0]
    saved, now = last_state(tmp_path), run.task.model.state_dict()
    _assert_same(now, saved["model"])
    train(net_run(tmp_path))
    _assert_same(last_state(tmp_path), uninterrupted)


def test_stopped_while_a_trial_is_validated(tmp_path: Path) -> None:
    """Half a validation decides nothing, and nothing is kept of the trial."""

    class Stopping:
        @hookimpl
        def validate(self, run: Run) -> None:
            if (
                run.progress.step == 2 and run.progress.batch == 0
            ):  # of the trial: the epoch's own has batches
                run.stop("enough", 75)

    run = fake_run(tmp_path, Stopping(), LRTuning(), recorder := Recorder(), task=two(), max_epochs=2)
    train(run)
    assert run.progress.step == 2
    assert run.task.model.get_parameter("weight").item() == after(0.0, 0.25)
    assert run.optimization.scale == 1.0
    assert decisions(run) == {}
    assert recorder.metrics("lr_tuning/baseline") == {}


def test_killed_in_a_trial(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    """The next run tries again, with the same result."""
    with pytest.raises(RuntimeError, match="broken"):
        train(net_run(tmp_path, InTrial(fail, 19)))
    train(net_run(tmp_path))
    _assert_same(last_state(tmp_path), uninterrupted)


def test_a_step_that_asks_to_stop_is_heard(tmp_path: Path) -> None:
    """Also where it asks the run of the trial, and with its code."""

    class Stopping:
        @hookimpl(wrapper=True)
        def train_step(self, run: Run) -> Generator[None, object, object]:
            run.stop("mine", 3)
            return (yield)

    run = fake_run(tmp_path, Stopping(), LRTuning(epochs="::1"), task=two())
    train(run)
    assert run.progress.step == 0
    assert run.stopping is not None
    assert (run.stopping.why, run.stopping.code) == ("mine", 3)


def test_a_rank_tries_its_own_rows(tmp_path: Path) -> None:
    """The second of two those with odd numbers of each batch, in both trials."""
    seen: list[list[float]] = []

    class Watching:
        @hookimpl(wrapper=True)
        def train_step(self, batch: Tensor) -> Generator[None, object, object]:
            seen.append(batch.tolist())
            return (yield)

    task = TinyTask(data={"train": TinyData(8, 4), "validation": TinyData(2)})
    run = prepared(tmp_path, Watching(), LRTuning(epochs="::1"), task=task)
    run.ranks = Ranks(rank=1, world=2)
    run.hook.before_epoch(run=run)
    assert seen == [[1, 3], [5, 7]] * 2


def test_whoever_diverges_in_a_trial_of_several_ranks_ends_the_run(tmp_path: Path) -> None:
    """The others may train on, and would wait for ever for one that has left the trial."""

    class Guard:
        @hookimpl(wrapper=True)
        def train_step(self) -> Generator[None, object, object]:
            raise Diverged("too far")
            yield

    run = prepared(tmp_path, Guard(), LRTuning(epochs="::1"), task=two())
    run.ranks = Ranks(rank=1, world=2)
    with pytest.raises(Diverged, match="too far"):
        run.hook.before_epoch(run=run)


def on_a_rank(ranks: Ranks, directory: Path, at: int) -> tuple[object, ...]:
    """Asked to stop on rank 1 after so many training steps, those of trials counted: what a rank has made of it."""
    stopping = [InTrial(stop, at)] if ranks.rank == 1 else [InTrial(lambda _: None, at)]
    tuning, recorder = LRTuning(epochs="::1"), Recorder()
    task = TinyTask(data={name: TinyData(5, 3) for name in ("train", "validation")})
    plugins = [Distributed(), tuning, recorder, *stopping]
    run = fake_run(directory / str(ranks.rank), *plugins, task=task, max_epochs=2)
    run.ranks = ranks
    train(run)
    weight = run.task.model.get_parameter("weight").item()
    logged = {key: recorder.metrics(f"lr_tuning/{key}") for key in ("baseline", "candidate")}
    return stopping[0].steps, run.progress.step, decisions(run), run.stopping, logged, weight


@pytest.mark.parametrize("at", [1, 2, 3, 99])
def test_ranks_try_together(tmp_path: Path, at: int) -> None:
    """Both leave a trial before the same batch or its validation, and keep nothing of it; or decide as one does."""
    first, second = on_ranks(2, on_a_rank, tmp_path, at)
    assert first == second
    steps, step, decided, stopped, *_ = first
    if at == 99:
        *one, weight = on_a_rank(Ranks(), tmp_path / "one", at)
        assert one[:4] == [12, 4, decided, None] == [steps, step, decided, stopped]
        assert set(decided) == {1, 2}
        assert first[5] == pytest.approx(weight, rel=1e-6)
    else:
        assert (steps, step, decided) == (at, 0, {})
        assert stopped == Stop("enough (rank 1)", 143)


def test_the_time_limit_holds_in_trials(tmp_path: Path) -> None:
    """They may take long, so the limit is looked at between their batches."""
    run = fake_run(tmp_path, LRTuning(epochs="::1"), recorder := Recorder(), task=two(), time_limit="1h")
    run.started -= 3600
    train(run)
    assert run.progress.step == 0
    assert "train_step" not in recorder.names
    assert run.stopping is not None
    assert run.stopping.code == 75


def test_the_adopted_scale_is_in_the_next_checkpoint(tmp_path: Path) -> None:
    """And is what a resumed run goes on with."""
    plugins = (LRTuning(epochs="2:3"), Checkpoint(every_n_batches=1))
    train(fake_run(tmp_path, *plugins, StopAt(3), task=two(), max_epochs=3))
    state = files.load(tmp_path / "checkpoints" / "latest.ckpt")
    assert state["optimization"]["scale"] == 0.5  # type: ignore[index]
    run = fake_run(tmp_path, *plugins, task=two(), max_epochs=3)
    train(run)
    assert run.optimization.learning_rate == 0.125


def test_without_validation_there_is_nothing_to_judge_by(tmp_path: Path) -> None:
    """It says so, and what is measured instead."""
    task = TinyTask(data={"train": TinyData(2)})
    run = fake_run(tmp_path, LRTuning(epochs="::1"), TrainEvaluation(), task=task)
    with pytest.raises(HookloopError, match=r"nobody measures val/loss; there are train/loss"):
        train(run)


def test_averages_that_cannot_be_put_back_are_refused(tmp_path: Path) -> None:
    """Before anything is learnt."""

    class Forgetful:
        def averaged_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
            return model.state_dict()

        validation_weights = averaged_weights

        def average_facts(self) -> dict[str, object]:
            return {}

    with pytest.raises(HookloopError, match="forgetful: averages weights but has no state_dict"):
        prepared(tmp_path, Forgetful(), LRTuning())


@define(eq=False)
class Replacing(nn.Module):
    """A layer that puts new tensors in the place of its buffers, and has one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)


def test_buffers_are_put_back_whatever_a_layer_does(tmp_path: Path) -> None:
    """Replaced ones and those that are in no checkpoint too: they are the same tensors with the same values."""

    class Counting(TinyTask):
        def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
            self.model.seen = self.model.seen + 1
            self.model.hidden.add_(1)
            return TinyTask.loss(self, batch)

    model = Replacing()
    before = dict(model.named_buffers())
    run = prepared(tmp_path, LRTuning(epochs="::1"), task=Counting(data=two().data, model=model))
    run.hook.before_epoch(run=run)
    assert decisions(run).keys() == {1}
    assert dict(model.named_buffers()) == before
    assert [model.get_buffer(name) is buffer for name, buffer in before.items()] == [True, True]
    assert [buffer.item() for buffer in before.values()] == [0.0, 0.0]
