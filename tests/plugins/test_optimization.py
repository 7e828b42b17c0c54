from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field

from hookloop.core import Run, train
from hookloop.hookspecs import hookimpl
from hookloop.optimization import Optimization
from hookloop.plugins.optimization import OptimizationPlugin, Schedule
from hookloop.testing import LifeCycle, TinyData, TinyTask, fake_run, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class TestLifeCycle(LifeCycle):
    plugin = OptimizationPlugin


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
    assert rates(tmp_path, Schedule(), 2) == [2.0] * 16


def test_warm_up_then_constant(tmp_path: Path) -> None:
    """The rate rises linearly over the warm-up, then stays."""
    assert rates(tmp_path, Schedule(warmup=4), 1) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_cosine_with_warm_up_by_batch(tmp_path: Path) -> None:
    """After the warm-up, half a cosine over the rest of all batches, which ends one step above eta_min."""
    found = rates(tmp_path, Schedule(name="CosineAnnealingLR", warmup=4, eta_min=0.5), 2)
    rest = [0.5 + 1.5 * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)]
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.0, *rest])


def test_cosine_by_epoch(tmp_path: Path) -> None:
    """The rate moves at epochs, and T_max counts them."""
    found = rates(tmp_path, Schedule(name="CosineAnnealingLR", step="epoch"), 2)
    assert found == pytest.approx([2.0] * 8 + [1.0] * 8)
    found = rates(tmp_path, Schedule(name="CosineAnnealingLR", step="epoch", T_max=1), 2)
    assert found == pytest.approx([2.0] * 8 + [0.0] * 8)


@pytest.mark.parametrize("warmup", [8, 16])
def test_warm_up_as_long_as_the_cosine(tmp_path: Path, warmup: int) -> None:
    """A short run that never leaves its warm-up still learns."""
    found = rates(tmp_path, Schedule(name="CosineAnnealingLR", warmup=warmup), 1)
    assert found == pytest.approx([2.0 * (i + 1) / warmup for i in range(8)])


def test_steps(tmp_path: Path) -> None:
    """At each milestone the rate is multiplied, batches or epochs counted."""
    found = rates(tmp_path, Schedule(name="MultiStepLR", milestones=[2, 6], gamma=0.5), 1)
    assert found == [2.0] * 2 + [1.0] * 4 + [0.5] * 2
    found = rates(tmp_path, Schedule(name="MultiStepLR", step="epoch", milestones=[1], gamma=0.5), 2)
    assert found == [2.0] * 8 + [1.0] * 8


def test_the_rate_told_is_the_one_used(tmp_path: Path) -> None:
    """After each batch the weight has moved by the rate that the optimization tells times the gradient."""
    noting = Noting()
    task = TinyTask(data={"train": TinyData(8)})
    train(fake_run(tmp_path, sgd(scheduler=Schedule(warmup=4)), noting, task=task))
    assert noting.rates[:5] == [0.0625, 0.125, 0.1875, 0.25, 0.25]
    w = 0.0
    for x, (rate, found) in enumerate(zip(noting.rates, noting.weights, strict=True)):
        w -= rate * 2 * (w - x)
        assert found == pytest.approx(w)


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
    assert type(made.optimizer) is torch.optim.AdamW
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
