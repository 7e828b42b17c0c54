from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hookloop.optimization import Optimization

if TYPE_CHECKING:
    from collections.abc import Sequence


def optimization(*weights: nn.Parameter, lr: float = 0.25, **options: float) -> Optimization:
    """Plain gradient descent on *weights*."""
    made = Optimization(torch.optim.SGD(weights, lr=lr), torch.device("cpu"))
    for name, value in options.items():
        setattr(made, name, value)
    return made


def weight(value: float = 0.0) -> nn.Parameter:
    """One weight."""
    return nn.Parameter(torch.tensor(value))


def test_a_step_of_gradient_descent() -> None:
    """From w = 1 with loss (w - 4)² and rate 0.25: the gradient is -6, so w becomes 2.5."""
    w = weight(1.0)
    assert optimization(w).update((w - 4).square()) == {}
    assert w.item() == 2.5
    assert w.grad is None


def test_accumulating_equals_one_large_batch() -> None:
    """The mean over k equal batches moves the weight as one batch of k times the size does."""
    batches = torch.tensor([[1.0, 3.0], [5.0, 7.0], [2.0, 4.0], [0.0, 6.0]])
    small, large = weight(), weight()
    accumulated = optimization(small, accumulate=4)
    for i, batch in enumerate(batches):
        assert small.item() == 0.0
        assert accumulated.pending == i
        accumulated.update((small - batch).square().mean())
    optimization(large).update((large - batches.flatten()).square().mean())
    assert small.item() == large.item() == 0.5 * 3.5  # half-way to the mean of all
    assert accumulated.pending == 0


def test_stopping_while_accumulating_loses_no_gradient() -> None:
    """Saved after two batches of three and loaded elsewhere, the update is the same bit for bit."""
    batches = torch.randn(6, generator=torch.Generator().manual_seed(0))

    def learn(into: Optimization, w: nn.Parameter, samples: Sequence[torch.Tensor]) -> None:
        for x in samples:
            into.update((w - x).pow(4))

    through, before, after = weight(), weight(), weight()
    learn(optimization(through, accumulate=3), through, list(batches))
    first, second = optimization(before, accumulate=3), optimization(after, accumulate=3)
    learn(first, before, list(batches[:5]))
    with torch.no_grad():
        after.copy_(before)
    second.load_state_dict(first.state_dict())
    assert second.pending == 2
    learn(second, after, list(batches[5:]))
    assert through.item() == after.item() != before.item()


def test_loading_forgets_gradients_that_wait() -> None:
    """A state without waiting gradients is loaded over some: they do not add to the next update."""
    w = weight()
    made = optimization(w, accumulate=2)
    state = made.state_dict()
    made.update((w - 100.0).square())
    made.load_state_dict(state)
    assert (made.pending, w.grad) == (0, None)
    for _ in range(2):
        made.update((w - 4.0).square())
    assert w.item() == 2.0  # half-way to 4


def test_clipping_reports_the_norm_before_it() -> None:
    """A gradient (-6, 8) has norm 10; clipped to 1 and at rate 0.5 the weights move by (0.3, -0.4)."""
    w = nn.Parameter(torch.zeros(2))
    measured = optimization(w, lr=0.5, clip_norm=1.0).update((w * torch.tensor([-6.0, 8.0])).sum())
    assert measured["grad_norm"].item() == 10.0
    assert w.tolist() == pytest.approx([0.3, -0.4], rel=1e-5)


def test_a_small_gradient_is_not_clipped() -> None:
    """Below the limit the step is as without it."""
    w = weight()
    assert optimization(w, clip_norm=7.0).update((w - 3).square())["grad_norm"].item() == 6.0
    assert w.item() == 1.5


def test_loaded_moments_but_configured_options() -> None:
    """A checkpoint gives Adam's moments and the last rate; weight decay and betas are those configured now."""
    w = weight(1.0)
    saved = Optimization(torch.optim.AdamW([w], lr=0.1, weight_decay=0.5), torch.device("cpu"))
    saved.update(w.square())
    now = Optimization(
        torch.optim.AdamW([w], lr=0.2, weight_decay=0.0, betas=(0.5, 0.6)), torch.device("cpu")
    )
    now.load_state_dict(saved.state_dict())
    (group,) = now.optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.0, (0.5, 0.6))
    assert now.optimizer.state[w]["exp_avg"].item() == pytest.approx(0.2)  # (1 - 0.9) · 2w


def test_learning_rate_is_that_of_every_group() -> None:
    """Setting it sets all groups."""
    groups: list[dict[str, object]] = [{"params": [weight()]}, {"params": [weight()], "lr": 3.0}]
    made = Optimization(torch.optim.SGD(groups, lr=1.0), torch.device("cpu"))
    made.learning_rate = 0.125
    assert [group["lr"] for group in made.optimizer.param_groups] == [0.125, 0.125]
    assert made.learning_rate == 0.125


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_autocast(precision: torch.dtype) -> None:
    """Products are computed in the precision asked for, on the CPU too."""
    made = Optimization(torch.optim.SGD([weight()], lr=1.0), torch.device("cpu"), precision=precision)
    with made.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision
