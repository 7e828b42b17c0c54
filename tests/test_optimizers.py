"""Optimizers without torch's compiler learn what torch's own do."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from hookloop.optimizers import eager

if TYPE_CHECKING:
    from pathlib import Path

KINDS = [
    pytest.param(torch.optim.SGD, {"weight_decay": 0.1}, id="SGD"),
    pytest.param(torch.optim.Adam, {"fused": True}, id="Adam"),
    pytest.param(torch.optim.AdamW, {"fused": True, "weight_decay": 0.1}, id="AdamW"),
    pytest.param(torch.optim.AdamW, {}, id="AdamW, not fused"),
]
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS)


def learner(kind: Any, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, kind(model.named_parameters(), lr=0.1, **options)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        model(torch.full((2, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@every_kind
def test_the_weights_are_those_of_torchs_own(
    kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    """Bit for bit, after several steps; nor does a step leave a graph behind."""
    own, its = learner(eager(kind), **options), learner(kind, **options)
    learn(*own, 0, 5)
    learn(*its, 0, 5)
    torch.testing.assert_close(own[0].state_dict(), its[0].state_dict(), rtol=0, atol=0)
    assert all(parameter.is_leaf and parameter.grad is None for parameter in own[0].parameters())


@every_kind
def test_states_go_from_one_to_the_other(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    """A state of torch's own is gone on with, and the other way round, as if nothing had happened."""
    through = learner(kind, **options)
    learn(*through, 0, 6)
    for first, second in ((kind, eager(kind)), (eager(kind), kind)):
        before, after = learner(first, **options), learner(second, **options)
        learn(*before, 0, 3)
        for one, other in zip(before, after, strict=True):
            other.load_state_dict(one.state_dict())
        learn(*after, 3, 6)
        torch.testing.assert_close(after[0].state_dict(), through[0].state_dict(), rtol=0, atol=0)


def test_it_is_still_an_optimizer_of_its_kind() -> None:
    """Its name, its class, the hooks around a step and a closure are torch's."""
    model, optimizer = learner(eager(torch.optim.SGD))
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure() -> float:
        called.append("closure")
        loss: torch.Tensor = model(torch.ones(2, 3)).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) > 0
    assert called == ["before", "closure", "after"]
    assert isinstance(optimizer, torch.optim.SGD)
    assert type(optimizer).__name__ == "SGD"


@every_kind
def test_it_can_be_pickled_and_copied(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    """With its weights, after which it goes on as if nothing had happened; its class is the same."""
    model, optimizer = learner(eager(kind), **options)
    learn(model, optimizer, 0, 2)
    others = pickle.loads(pickle.dumps((model, optimizer))), copy.deepcopy((model, optimizer))  # noqa: S301 - our own
    learn(model, optimizer, 2, 4)
    for other in others:
        assert type(other[1]) is type(optimizer)
        learn(*other, 2, 4)
        torch.testing.assert_close(other[0].state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_run_goes_without_torchs_compiler(tmp_path: Path) -> None:
    """Where importing it is impossible, a run with averages and checkpoints finishes and can be resumed."""
    script = f"""
import sys
sys.modules["torch._dynamo"] = None  # importing it is an error from now on
from pathlib import Path
from hookloop.core import train
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.plugins.progress import ProgressReport
from hookloop.testing import fake_run
for epochs in (1, 2):
    plugins = OptimizationPlugin(lr=0.1, clip_norm=1.0), EMA(), ProgressReport(), Checkpoint()
    run = fake_run(Path({str(tmp_path)!r}), *plugins, max_epochs=epochs)
    train(run)
    print(run.progress.step)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["8", "16"], done.stderr
