"""Operations by arithmetic, and rates by a clock that is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field
from torch import Tensor, nn

from hookloop.hookspecs import hookimpl
from hookloop.profiling import compute
from hookloop.profiling.memory import high_water
from hookloop.testing import TinyData, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BATCH = 5


@define(eq=False)
class Layers:
    """Two layers, 3 → 4 → 2, with batch statistics between them."""

    model: nn.Module = field(
        factory=lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    )
    data: Mapping[str, TinyData] = field(factory=lambda: {"train": TinyData(20, BATCH)})

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """Of anything."""
        return {"loss": self.model(batch[:, None].expand(-1, 3)).square().mean()}

    @hookimpl
    def make_task(self) -> Layers:
        """This one."""
        return self


def test_the_operations_of_two_layers(tmp_path: Path) -> None:
    """Forward 2·5·(12 + 8); backward the weights' 2·5·(12 + 8), and 2·5·8 for what lies before the second layer."""
    run = prepared(tmp_path, Layers())
    assert compute.flops_of_step(run) == 2 * BATCH * (2 * (12 + 8) + 8)


def test_what_is_frozen_is_not_counted(tmp_path: Path) -> None:
    """With the first layer frozen and no gradient before it: forward, and the second layer's weights."""
    layers = Layers()
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        layers.model.get_parameter(name).requires_grad = False
    assert compute.flops_of_step(prepared(tmp_path, layers)) == 2 * BATCH * (12 + 8 + 8)


def test_counting_changes_nothing(tmp_path: Path) -> None:
    """Weights, gradients, batch statistics and the mode are what they were."""
    run = prepared(tmp_path, layers := Layers())
    layers.model.train()
    (layers.model(torch.ones(4, 3)).sum()).backward()
    before = {name: value.clone() for name, value in layers.model.state_dict().items()}
    gradients = [p.grad.clone() for p in layers.model.parameters() if p.grad is not None]
    compute.flops_of_step(run)
    assert layers.model.training
    for name, value in layers.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    after = [p.grad for p in layers.model.parameters()]
    assert all(
        grad is not None and torch.equal(grad, old) for grad, old in zip(after, gradients, strict=True)
    )


def test_weights_that_are_not_whole_are_not_counted(tmp_path: Path) -> None:
    """As those of which this rank has a shard."""
    run = prepared(tmp_path, layers := Layers())
    layers.model.get_parameter("0.weight").full_tensor = None  # type: ignore[assignment]
    assert compute.flops_of_step(run) is None


def test_the_peak_is_operations_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of 1024³ that takes half a second by the clock: 4 GFLOP/s; the global generator is left alone."""
    ticks = iter(range(1000))
    monkeypatch.setattr(compute.time, "perf_counter", lambda: next(ticks) / 2)
    state = torch.get_rng_state()
    assert compute.gemm_peak(torch.device("cpu"), torch.float32) == 2 * 1024**3 / 0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_the_high_water_mark_of_memory() -> None:
    """It holds at least what was just written, and never falls."""
    block = torch.ones(64 << 20, dtype=torch.uint8)
    high = high_water(torch.device("cpu"))
    del block
    assert high.keys() == {"host"}
    assert high["host"] > 64 << 20
    assert high_water(torch.device("cpu"))["host"] >= high["host"]
