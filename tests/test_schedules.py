"""The learning rate's course, beside torch's own schedulers stepped one by one."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from hookloop.config import build, options_of
from hookloop.errors import ConfigError
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.schedules import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    InverseSqrtLR,
    LinearLR,
    MultiStepLR,
    Plateau,
    PolynomialLR,
    ReduceLROnPlateau,
    Schedule,
    SequentialLR,
    StepLR,
    cosine,
    improves,
    warm_up,
)
from hookloop.yamlfile import Document, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from hookloop.yamlfile import Plain

TOP = 2.0
"""The highest rate."""

Oracle = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler] if TYPE_CHECKING else object


def sgd() -> torch.optim.SGD:
    """An optimizer to schedule."""
    return torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=TOP)


def stepped(make: Oracle, n: int) -> list[float]:
    """The rates of a torch scheduler, stepped one by one."""
    optimizer = sgd()
    scheduler = make(optimizer)
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def rates(schedule: Schedule, n: int, length: int = 1000) -> list[float]:
    """Ours."""
    return [TOP * schedule.factor_at(i, length, TOP) for i in range(n)]


AS_TORCH = [
    (CosineAnnealingLR(T_max=10, eta_min=0.5), lambda o: lr_scheduler.CosineAnnealingLR(o, 10, 0.5), 11),
    (
        CosineAnnealingWarmRestarts(T_0=4, eta_min=0.5),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, eta_min=0.5),
        30,
    ),
    (
        CosineAnnealingWarmRestarts(T_0=3, T_mult=2),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, T_mult=2),
        70,
    ),
    (LinearLR(total_iters=5), lr_scheduler.LinearLR, 9),
    (
        LinearLR(start_factor=1.0, end_factor=0.25, total_iters=7),
        lambda o: lr_scheduler.LinearLR(o, 1.0, 0.25, 7),
        12,
    ),
    (PolynomialLR(total_iters=5), lr_scheduler.PolynomialLR, 9),
    (PolynomialLR(total_iters=8, power=2.5), lambda o: lr_scheduler.PolynomialLR(o, 8, 2.5), 12),
    (ExponentialLR(gamma=0.75), lambda o: lr_scheduler.ExponentialLR(o, 0.75), 20),
    (StepLR(step_size=3, gamma=0.5), lambda o: lr_scheduler.StepLR(o, 3, 0.5), 20),
    (StepLR(step_size=4), lambda o: lr_scheduler.StepLR(o, 4), 20),
    (MultiStepLR(milestones=[2, 5, 5], gamma=0.5), lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5], 0.5), 9),
    (MultiStepLR(milestones=[]), lambda o: lr_scheduler.MultiStepLR(o, []), 3),
    (ConstantLR(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0), 8),
    (
        SequentialLR(
            schedulers=[
                LinearLR(start_factor=0.25, total_iters=4),
                ConstantLR(),
                CosineAnnealingLR(T_max=6, eta_min=0.5),
            ],
            milestones=[4, 9],
        ),
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, 0.25, total_iters=4),
                lr_scheduler.ConstantLR(o, factor=1.0),
                lr_scheduler.CosineAnnealingLR(o, 6, 0.5),
            ],
            [4, 9],
        ),
        16,
    ),
]


@pytest.mark.parametrize(("schedule", "make", "n"), AS_TORCH, ids=lambda v: getattr(v, "chosen_as", ""))
def test_the_rates_are_those_of_torch(schedule: Schedule, make: Oracle, n: int) -> None:
    """Step by step, past its end, as the scheduler of the same name with the same options."""
    assert rates(schedule, n) == pytest.approx(stepped(make, n), rel=1e-9, abs=1e-12)


def test_a_milestone_takes_torch_s_own_shape() -> None:
    """Each in a sequence starts from its own 0 at its milestone, whatever went before."""
    steps = StepLR(step_size=2, gamma=0.5)
    sequence = SequentialLR(schedulers=[ConstantLR(), steps], milestones=[5])
    assert rates(sequence, 12)[5:] == rates(steps, 7)


def test_constant_may_be_ended_by_the_first_milestone() -> None:
    """Torch's own milestone is the first position of the next schedule."""
    sequence = SequentialLR(schedulers=[ConstantLR(), ExponentialLR(gamma=0.5)], milestones=[3])
    assert rates(sequence, 6) == [2.0, 2.0, 2.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize("reference", [1, 70, 400])
def test_inverse_square_root(reference: int) -> None:
    """α(t) = α_ref / √max(t/t_ref, 1): flat until t_ref, then half at four times, a tenth at a hundred times."""
    schedule = InverseSqrtLR(t_ref=reference)
    found = rates(schedule, 100 * reference + 1)
    assert set(found[: reference + 1]) == {TOP}
    assert found[4 * reference] == TOP / 2
    assert found[100 * reference] == pytest.approx(TOP / 10)
    assert all(a >= b for a, b in pairwise(found))


def test_inverse_square_root_warms_up_as_edm2_does() -> None:
    """min(t/t_rampup, 1) and the decay multiply, both counted from the beginning."""
    found = rates(InverseSqrtLR(t_ref=4, warmup=8), 20)
    assert found == pytest.approx(
        [TOP * min((t + 1) / 8, 1.0) / math.sqrt(max(t / 4, 1.0)) for t in range(20)]
    )


def test_trapezoid() -> None:
    """Monotone up, flat, down: where no lengths are given, each fills its own part of the run."""
    schedule = SequentialLR(
        schedulers=[LinearLR(start_factor=0.2), ConstantLR(), LinearLR(start_factor=1.0, end_factor=0.0)],
        milestones=[4, 10],
    )
    found = rates(schedule, 21, length=20)
    assert found[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert found[4:10] == [2.0] * 6
    assert found[10:] == pytest.approx([2.0 - 0.2 * i for i in range(11)])
    assert schedule.lengths(20) == {"schedulers.2.total_iters": 10}


def test_sequences_may_hold_sequences() -> None:
    """An inner milestone counts from where the inner sequence begins."""
    inner = SequentialLR(schedulers=[ConstantLR(), ExponentialLR(gamma=0.5)], milestones=[2])
    outer = SequentialLR(schedulers=[ConstantLR(warmup=2), inner], milestones=[3])
    assert rates(outer, 8) == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 0.5]


def test_warm_up() -> None:
    """Four positions of warm-up are a quarter, a half, three quarters and all; none is none."""
    assert [warm_up(i, 4) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0, 0) == 1.0


@pytest.mark.parametrize(
    "make", [CosineAnnealingLR, LinearLR, PolynomialLR, lambda warmup: StepLR(step_size=5, warmup=warmup)]
)
def test_after_a_warm_up_the_shape_begins(make: Callable[..., Schedule]) -> None:
    """It is that of a run that is shorter by the warm-up, and ends where the run does."""
    with_warmup, without = make(warmup=6), make(warmup=0)
    assert rates(with_warmup, 20, length=20)[6:] == rates(without, 14, length=14)


@pytest.mark.parametrize("total", [0, -3])
def test_cosine_without_length(total: int) -> None:
    """With no length left after a warm-up, the warm-up still learns at the full rate, then the floor holds."""
    assert [cosine(i, total, 0.1) for i in range(5)] == pytest.approx([1.0, 0.1, 0.1, 0.1, 0.1])


@given(
    st.lists(
        st.one_of(st.floats(0.01, 10.0), st.sampled_from([float("nan"), float("inf"), 1.0, 0.9999])),
        max_size=60,
    ),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([0.0, 1e-4, 0.1]),
    st.sampled_from([0.0, 0.3]),
)
def test_plateaus_are_those_of_torch(
    values: list[float], patience: int, cooldown: int, threshold: float, min_lr: float
) -> None:
    """Whatever the metric does, NaN too, the rate falls when torch's does."""
    optimizer = sgd()
    oracle = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=threshold, cooldown=cooldown, min_lr=min_lr
    )
    options = ReduceLROnPlateau(
        factor=0.5, patience=patience, threshold=threshold, cooldown=cooldown, min_lr=min_lr
    )
    plateau, rate = Plateau(), TOP
    for value in values:
        oracle.step(value)
        if plateau.sees(value, options):
            rate = max(rate * 0.5, min_lr)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-7)  # its eps is 1e-8


def test_a_negative_value_that_stands_still_does_not_improve() -> None:
    """A likelihood may be negative: what is asked for is a share of its size, downwards."""
    assert not improves(-1.0, -1.0, 0.1)
    assert not improves(-1.05, -1.0, 0.1)
    assert improves(-1.2, -1.0, 0.1)


def problems(scheduler: str) -> list[str]:
    """Tell what is wrong with a scheduler, without its place in the file."""
    with pytest.raises(ConfigError) as refused:
        build(OptimizationPlugin, read(f"s: {{scheduler: {scheduler}}}", "c"), "s")
    return [problem.removeprefix("c:1: s.scheduler") for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("scheduler", "problem"),
    [
        ("{name: CosineAnnealingLR, gamma: 0.5}", ".gamma: unknown option"),
        ("{gamma: 0.5}", ".gamma: unknown option"),
        ("{name: ExponentialLR}", ".gamma: missing; expected a number"),
        ("{name: StepLR, step_size: 0}", ".step_size: 'step_size' must be > 0: 0"),
        ("{step: minute}", ".step: expected one of batch, epoch, found"),
        ("[constant]", ": expected a name ("),
        ("constant", ".name: expected one of ConstantLR, "),
        (
            "{name: SequentialLR, schedulers: [{name: ConstantLR}], milestones: [3]}",
            ": milestones: found 1 for 1 schedulers, expected 0: where each but the first begins",
        ),
        (
            "{name: SequentialLR, schedulers: [{name: ConstantLR}, {name: StepLR, stepsize: 1}], milestones: [3]}",
            ".schedulers[1].stepsize: unknown option; did you mean 'step_size'?",
        ),
        (
            "{name: SequentialLR, schedulers: [{warmup: 3}], milestones: []}",
            ".schedulers[0]: expected a name (",
        ),
        ("{name: SequentialLR, schedulers: {name: StepLR}, milestones: []}", ".schedulers: expected a list"),
        (
            "{name: SequentialLR, schedulers: [{name: ConstantLR, step: epoch}], milestones: []}",
            ".schedulers: ConstantLR: found step 'epoch', expected none",
        ),
        (
            "{name: SequentialLR, schedulers: [{name: ReduceLROnPlateau}], milestones: []}",
            ".schedulers: ReduceLROnPlateau: expected schedules that follow progress alone",
        ),
        (
            "{name: SequentialLR, schedulers: [], milestones: [3, 3]}",
            ".milestones: expected each milestone after the one before, found [3, 3]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(scheduler: str, problem: str) -> None:
    """Options of another scheduler too: nothing is ignored."""
    assert any(found.startswith(problem) for found in problems(scheduler)), problems(scheduler)


def test_a_name_that_is_near_another() -> None:
    """It is suggested."""
    (found,) = problems("{name: CosineAnealingLR}")
    assert found.endswith("did you mean 'CosineAnnealingLR'?")


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"warmup": 3}, ConstantLR(warmup=3)),
        ({"name": "ConstantLR", "step": "epoch"}, ConstantLR(step="epoch")),
        (
            {"name": "CosineAnnealingLR", "step": "batch", "warmup": 2, "eta_min": 1e-5},
            CosineAnnealingLR(step="batch", warmup=2, eta_min=1e-5),
        ),
        (
            {
                "name": "SequentialLR",
                "step": "epoch",
                "schedulers": [{"name": "ConstantLR"}, {"name": "StepLR", "step_size": 2}],
                "milestones": [3],
            },
            SequentialLR(step="epoch", schedulers=[ConstantLR(), StepLR(step_size=2)], milestones=[3]),
        ),
    ],
)
def test_what_is_written_is_what_is_built(scheduler: Plain, expected: Schedule) -> None:
    """And written down again it builds the same."""
    plugin = build(OptimizationPlugin, Document({"s": {"scheduler": scheduler}}), "s")
    assert plugin.scheduler == expected
    assert build(OptimizationPlugin, Document({"s": options_of(plugin)}), "s").scheduler == expected
