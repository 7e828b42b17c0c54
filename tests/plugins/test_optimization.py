from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field

from hookloop import files
from hookloop.core import Run, train
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.optimization import Optimization
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.schedules import (
    ConstantLR,
    CosineAnnealingLR,
    MultiStepLR,
    PolynomialLR,
    ReduceLROnPlateau,
    Schedule,
    SequentialLR,
)
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
    from collections.abc import Mapping
    from pathlib import Path


class TestLifeCycle(LifeCycle):
    plugin = OptimizationPlugin


class TestLifeCycleOfPlateaus(LifeCycle):
    plugin = OptimizationPlugin
    options = {"scheduler": {"name": "ReduceLROnPlateau", "patience": 0, "cooldown": 1}}


class TestLifeCycleOfEverything(LifeCycle):
    plugin = OptimizationPlugin
    options = {
        "optimizer": "Adam",
        "precision": "bf16",
        "clip_norm": 1.0,
        "accumulate": 3,
        "betas": [0.8, 0.9],
        "weight_decay": 0.1,
        "scheduler": {"name": "CosineAnnealingLR", "warmup": 2, "step": "batch", "eta_min": 1e-5},
    }


def sgd(lr: float = 0.25, **options: object) -> OptimizationPlugin:
    """Plain gradient descent."""
    return OptimizationPlugin(optimizer="SGD", lr=lr, **options)  # type: ignore[arg-type]


def rates(tmp_path: Path, schedule: Schedule, epochs: int, lr: float = 2.0) -> list[float]:
    """The learning rate of every batch of a run of *epochs* epochs of 8 batches."""
    plugin = sgd(lr, scheduler=schedule)
    run = prepared(tmp_path, plugin, max_epochs=epochs)
    found = []
    for run.progress.step in range(8 * epochs):
        run.progress.epoch = run.progress.step // 8
        found.append(plugin.rate(run))
    return found


@define(eq=False)
class Noting:
    """Notes weight, rate and losses after each batch."""

    weights: list[float] = field(factory=list)
    rates: list[float] = field(factory=list)
    losses: list[dict[str, float]] = field(factory=list)

    @hookimpl
    def after_batch(self, run: Run, losses: Mapping[str, torch.Tensor]) -> None:
        """Note them."""
        assert not any(loss.requires_grad for loss in losses.values())
        self.weights.append(run.task.model.get_parameter("weight").item())
        self.rates.append(run.optimization.learning_rate)
        self.losses.append({name: loss.item() for name, loss in losses.items()})


def test_gradient_descent_by_arithmetic(tmp_path: Path) -> None:
    """With rate 1/4 each step is w ← (w + x) / 2, for x = 0, 1, 2, 3; the losses are those before the step."""
    noting = Noting()
    task = TinyTask(data={"train": TinyData(4)})
    train(fake_run(tmp_path, sgd(), noting, task=task))
    assert noting.weights == [0.0, 0.5, 1.25, 2.125]
    assert noting.losses == [{"loss": 0.0}, {"loss": 1.0}, {"loss": 2.25}, {"loss": 1.75**2}]


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    """Four batches of two that are accumulated are one of eight."""
    one, other = Noting(), Noting()
    train(fake_run(tmp_path / "a", sgd(accumulate=4), one, task=TinyTask(data={"train": TinyData(8, 2)})))
    train(fake_run(tmp_path / "b", sgd(), other, task=TinyTask(data={"train": TinyData(8, 8)})))
    assert one.weights == [0.0, 0.0, 0.0, 1.75]
    assert other.weights == [1.75]


def test_clipping_adds_the_norm_to_the_losses(tmp_path: Path) -> None:
    """For x = 0, 1 the gradients at w = 0 are 0 and -2; the norm is told as it was before clipping."""
    noting = Noting()
    train(fake_run(tmp_path, sgd(clip_norm=1.0), noting, task=TinyTask(data={"train": TinyData(2)})))
    assert [losses["grad_norm"] for losses in noting.losses] == [0.0, 2.0]
    assert noting.weights[-1] == pytest.approx(0.25, rel=1e-5)


def test_constant(tmp_path: Path) -> None:
    """Without a schedule the rate is what was asked for."""
    assert rates(tmp_path, ConstantLR(), 2) == [2.0] * 16


def test_warm_up_then_constant(tmp_path: Path) -> None:
    """The rate rises linearly over the warm-up, then stays."""
    assert rates(tmp_path, ConstantLR(warmup=4), 1) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_cosine_with_warm_up_by_batch(tmp_path: Path) -> None:
    """After the warm-up, half a cosine over the rest of all batches, which ends one step above eta_min."""
    found = rates(tmp_path, CosineAnnealingLR(warmup=4, eta_min=0.5), 2)
    rest = [0.5 + 1.5 * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)]
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.0, *rest])


def test_cosine_by_epoch(tmp_path: Path) -> None:
    """The rate moves at epochs, and T_max counts them."""
    found = rates(tmp_path, CosineAnnealingLR(step="epoch"), 2)
    assert found == pytest.approx([2.0] * 8 + [1.0] * 8)
    found = rates(tmp_path, CosineAnnealingLR(step="epoch", T_max=1), 2)
    assert found == pytest.approx([2.0] * 8 + [0.0] * 8)


@pytest.mark.parametrize("warmup", [8, 16])
def test_warm_up_as_long_as_the_cosine(tmp_path: Path, warmup: int) -> None:
    """A short run that never leaves its warm-up still learns."""
    found = rates(tmp_path, CosineAnnealingLR(warmup=warmup), 1)
    assert found == pytest.approx([2.0 * (i + 1) / warmup for i in range(8)])


def test_steps(tmp_path: Path) -> None:
    """At each milestone the rate is multiplied, batches or epochs counted."""
    found = rates(tmp_path, MultiStepLR(milestones=[2, 6], gamma=0.5), 1)
    assert found == [2.0] * 2 + [1.0] * 4 + [0.5] * 2
    found = rates(tmp_path, MultiStepLR(step="epoch", milestones=[1], gamma=0.5), 2)
    assert found == [2.0] * 8 + [1.0] * 8


def test_the_rate_told_is_the_one_used(tmp_path: Path) -> None:
    """After each batch the weight has moved by the rate that the optimization tells times the gradient."""
    noting = Noting()
    task = TinyTask(data={"train": TinyData(8)})
    train(fake_run(tmp_path, sgd(scheduler=ConstantLR(warmup=4)), noting, task=task))
    assert noting.rates[:5] == [0.0625, 0.125, 0.1875, 0.25, 0.25]
    w = 0.0
    for x, (rate, found) in enumerate(zip(noting.rates, noting.weights, strict=True)):
        w -= rate * 2 * (w - x)
        assert found == pytest.approx(w)


def test_every_epoch_logs_the_rate_it_used_last(tmp_path: Path) -> None:
    """With two batches an epoch and a warm-up of three; step 0 has no rate, even where it is evaluated."""
    plugin = sgd(scheduler=ConstantLR(warmup=3))
    task = TinyTask(data={"train": TinyData(2), "validation": TinyData(2)})
    options = {"max_epochs": 2, "evaluate_before_training": True}
    train(fake_run(tmp_path, plugin, recorder := Recorder(), task=task, **options))
    assert recorder.metrics("val/loss").keys() == {0, 2, 4}
    assert recorder.metrics("epoch/lr") == {2: 0.25 * 2 / 3, 4: 0.25}


@define(eq=False)
class Scores:
    """Answers ``score``, by the number of batches learnt."""

    values: Mapping[int, float]

    @hookimpl
    def validate(self, run: Run) -> dict[str, float]:
        """The value of this step."""
        return {"score": self.values[run.progress.step]}


PLATEAU = ReduceLROnPlateau(metric="score", factor=0.5, patience=1, cooldown=1, min_lr=0.05)
SCORES = [3.0, 3.0, 2.0, 2.0, math.nan, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]


def test_a_plateau_lowers_the_rate_as_torch_does(tmp_path: Path) -> None:
    """Evaluated after each of twelve epochs of two batches, the rates are those of torch's scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.25)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, cooldown=1, min_lr=0.05
    )
    expected = []
    for score in SCORES:
        expected += [optimizer.param_groups[0]["lr"]] * 2
        oracle.step(score)
    noting = Noting()
    scores = Scores({2 * (i + 1): score for i, score in enumerate(SCORES)})
    task = TinyTask(data={"train": TinyData(2)})
    run = fake_run(tmp_path, sgd(scheduler=PLATEAU), scores, noting, task=task, max_epochs=12)
    train(run)
    assert noting.rates == expected
    assert expected[-1] == 0.05  # so it has reached its floor
    reduced = [event["step"] for event in events_of(run) if event["event"] == "rate.reduced"]
    assert reduced == [2 * (i + 1) for i in range(11) if expected[2 * i + 2] < expected[2 * i]]


def test_a_plateau_is_seen_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """The batch after the evaluation has the lower rate."""
    noting = Noting()
    schedule = ReduceLROnPlateau(metric="score", factor=0.5, patience=0)
    scores = Scores({2: 1.0, 4: 1.0, 6: 1.0, 8: 1.0})
    run = fake_run(tmp_path, sgd(scheduler=schedule), scores, noting, validate_every="2 batches")
    train(run)
    assert noting.rates == [0.25] * 4 + [0.125] * 2 + [0.0625] * 2
    assert run.optimization.scale == 0.125


@pytest.mark.parametrize(("unit", "warmup"), [("batch", 4), ("epoch", 2)])
def test_a_plateau_after_a_warm_up(tmp_path: Path, unit: str, warmup: int) -> None:
    """While the rate rises nothing is judged: the low score in it is not the one to beat."""
    noting = Noting()
    schedule = ReduceLROnPlateau(metric="score", factor=0.5, patience=0, warmup=warmup, step=unit)
    scores = Scores({2: 0.1, 4: 3.0, 6: 2.0, 8: 2.0, 10: 1.0})
    task = TinyTask(data={"train": TinyData(2)})
    train(fake_run(tmp_path, sgd(scheduler=schedule), scores, noting, task=task, max_epochs=5))
    assert noting.rates[4:] == [0.25] * 4 + [0.125] * 2
    assert noting.rates[0] < noting.rates[3] == 0.25


def test_a_plateau_of_what_nobody_measures(tmp_path: Path) -> None:
    """The option and the metrics there are."""
    plugin = sgd(scheduler=ReduceLROnPlateau(metric="val/score"))
    with pytest.raises(HookloopError, match=r"optimization\.scheduler\.metric: val/score .* are val/loss"):
        train(fake_run(tmp_path, plugin))


def test_a_plateau_of_nan_is_told(tmp_path: Path) -> None:
    """And counts as no improvement."""
    plugin = sgd(scheduler=ReduceLROnPlateau(metric="score", patience=0))
    run = fake_run(tmp_path, plugin, Scores({8: math.nan}))
    train(run)
    assert run.optimization.scale == pytest.approx(0.1)
    assert [e["metric"] for e in events_of(run) if e["event"] == "metric.undefined"] == ["score"]


@define(eq=False)
class StopAt:
    """Asks the run to stop after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop there."""
        if run.progress.step == self.step:
            run.stop("enough", 75)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The last state of a run that nobody stopped."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    train(plateau_run(directory))
    return last_state(directory)


def plateau_run(directory: Path, *extra: object) -> Run:
    """Three epochs of five batches, evaluated every second, whose score comes to plateaus."""
    scores = Scores(
        {n: [3.0, 2.0, 2.5, 2.0, 1.0, 1.0, 1.0, math.nan][n // 2] for n in (*range(2, 15, 2), 15)}
    )
    plugin = OptimizationPlugin(
        lr=0.1, scheduler=ReduceLROnPlateau(metric="score", factor=0.5, patience=1, warmup=1, cooldown=1)
    )
    task = TinyTask(data={"train": TinyData(5), "validation": TinyData(2)}, noise=1.0)
    options = {"max_epochs": 3, "validate_every": "2 batches"}
    return fake_run(directory, plugin, scores, *extra, Checkpoint(), task=task, **options)


def last_state(directory: Path) -> dict[str, object]:
    """What ``latest.ckpt`` holds, but for the configuration."""
    state = files.load(directory / "checkpoints" / "latest.ckpt")
    del state["config"]
    return state


@pytest.mark.parametrize("step", range(1, 15))
def test_a_plateau_survives_a_stop(tmp_path: Path, step: int, uninterrupted: dict[str, object]) -> None:
    """Stopped after any batch and resumed, the state in the end is that of a run in one go."""
    train(plateau_run(tmp_path, StopAt(step)))
    train(plateau_run(tmp_path))
    _assert_same(last_state(tmp_path), uninterrupted)
    assert uninterrupted["optimization"]["scale"] < 0.5  # type: ignore[index]


def test_the_lengths_that_follow_the_run_are_learnt(tmp_path: Path) -> None:
    """A longer run would bend them, so a resumed run refuses; what is given stays what it is."""
    last = PolynomialLR()
    sequence = SequentialLR(step="epoch", schedulers=[ConstantLR(), last], milestones=[1])
    run = prepared(tmp_path, max_epochs=5)
    assert sgd(scheduler=sequence).learned_values(run) == {"scheduler.schedulers.1.total_iters": 4}
    assert sgd(scheduler=CosineAnnealingLR()).learned_values(run) == {"scheduler.T_max": 40}
    assert sgd(scheduler=CosineAnnealingLR(T_max=7)).learned_values(run) == {"scheduler.T_max": 7}
    assert sgd().learned_values(run) == {}


@define(eq=False)
class Products(TinyTask):
    """Notes the precision of a product."""

    seen: list[torch.dtype] = field(factory=list)

    def loss(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The tiny loss, with a product beside it."""
        self.seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return TinyTask.loss(self, batch)


@pytest.mark.parametrize(
    ("asked", "used"), [("bf16", torch.bfloat16), ("fp32", torch.float32), ("auto", torch.float32)]
)
def test_precision_on_the_cpu(tmp_path: Path, asked: str, used: torch.dtype) -> None:
    """Training and validation run in bfloat16 exactly if it is asked for; weights stay single."""
    task = Products()
    train(fake_run(tmp_path, sgd(precision=asked), task=task))
    assert len(task.seen) == 10
    assert set(task.seen) == {used}
    assert task.model.get_parameter("weight").dtype == torch.float32


def test_randomness_is_a_function_of_the_step(tmp_path: Path) -> None:
    """The same seed and step give the same loss whatever was drawn before; another step or seed another."""

    def loss(seed: int, step: int) -> float:
        run = prepared(tmp_path, sgd(), task=TinyTask(noise=1.0), seed=seed)
        run.task.model.get_parameter("weight").data.fill_(1.0)
        run.progress.step = step
        torch.rand(3)
        losses: Mapping[str, torch.Tensor] = run.hook.train_step(run=run, batch=torch.zeros(1))
        return losses["loss"].item()

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0)}) == 3


def test_builds_what_the_options_say(tmp_path: Path) -> None:
    """The optimizer's class and numbers are those of the options, and frozen weights are left out."""
    task = TinyTask()
    task.model.register_parameter("frozen", torch.nn.Parameter(torch.zeros(3), requires_grad=False))
    plugin = OptimizationPlugin(lr=0.5, betas=(0.5, 0.75), weight_decay=0.125, clip_norm=2.0, accumulate=3)
    made = prepared(tmp_path, plugin, task=task).optimization
    assert isinstance(made.optimizer, torch.optim.AdamW)
    (group,) = made.optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.5, 0.75), 0.125)
    assert made.parameters == [task.model.get_parameter("weight")]
    assert (made.clip_norm, made.accumulate) == (2.0, 3)


def test_trains_in_training_mode(tmp_path: Path) -> None:
    """Whoever left the model in evaluation mode, an epoch begins in training mode."""
    run = prepared(tmp_path, sgd())
    run.task.model.eval()
    run.hook.before_epoch(run=run)
    assert run.task.model.training


def test_others_answer_first(tmp_path: Path) -> None:
    """A plugin that makes an optimization does so instead, wherever it is listed."""

    class Own:
        @hookimpl
        def make_optimization(self, run: Run) -> Optimization:
            return Optimization(torch.optim.Adagrad(run.task.model.parameters()), run.device)

    for i, plugins in enumerate([(Own(), sgd()), (sgd(), Own())]):
        run = prepared(tmp_path / str(i), *plugins)
        assert type(run.optimization.optimizer) is torch.optim.Adagrad


@pytest.mark.parametrize(
    "option",
    [{"lr": 0.0}, {"weight_decay": -1.0}, {"clip_norm": 0.0}, {"accumulate": 0}, {"betas": (0.9, 1.0)}],
)
def test_impossible_options_are_refused(option: dict[str, object]) -> None:
    """What cannot be learnt with is refused when the plugin is constructed."""
    with pytest.raises(ValueError, match=next(iter(option))):
        OptimizationPlugin(**option)  # type: ignore[arg-type]
