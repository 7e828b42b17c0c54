"""Networks are compiled in place: found, called the same, the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from hookloop.compiling import compile_networks
from hookloop.errors import HookloopError
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import TinyPlugin, TinyTask, events_of, prepared

if TYPE_CHECKING:
    from pathlib import Path


class Twice(nn.Module):
    """A network of one layer."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(*sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, twice as large."""
        out: Tensor = self.layer(x) * 2
        return out


class Parts(nn.Module):
    """Cannot be called itself: a list of networks, one of which holds another, and one without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Identity()
        self.nets = nn.ModuleList([Twice(2, 2), nn.Sequential(Twice(2, 1))])


@torch.no_grad()
def test_the_outermost_networks_are_compiled_in_place() -> None:
    """Names, parameters and what is computed stay; the backend gets each network once it is called."""
    model = Parts()
    names, x = list(model.state_dict()), torch.ones(3, 2)
    before = model.nets[1](model.nets[0](x))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    assert compile_networks(model, backend) == ["nets.0", "nets.1.0"]  # type: ignore[arg-type]
    assert not graphs
    assert torch.equal(model.nets[1](model.nets[0](x)), before)
    assert len(graphs) == 2
    assert list(model.state_dict()) == names


def test_compiled_networks_take_lent_weights(tmp_path: Path) -> None:
    """What computes with averages while they are lent computes with them, and with the own weights again."""
    torch.manual_seed(0)
    net = Twice(2, 1)
    ema = EMA()
    run = prepared(tmp_path, TinyPlugin(TinyTask(model=net)), ema)
    assert compile_networks(run.task.model, "aot_eager") == ["Twice"]
    x = torch.ones(1, 2)
    own = net(x)
    for average in ema.averages:
        average.zero_()
    with ema.lent():
        assert net(x).item() == 0.0
    assert torch.equal(net(x), own)
    assert own.item() != 0.0


def test_a_model_without_a_network_is_refused() -> None:
    """There is nothing to call."""
    with pytest.raises(HookloopError, match="TinyModel holds no module"):
        compile_networks(TinyTask().model)


def test_what_torch_would_pass_over_is_refused() -> None:
    """A module of its own stays as it is where it is, and would do so silently."""
    with pytest.raises(HookloopError, match=r"Sequential holds no module .* that is not one of torch's"):
        compile_networks(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # what is imported to compile
def test_a_run_compiles_its_networks(tmp_path: Path) -> None:
    """If asked to, before the first batch, and tells which."""
    plugin = OptimizationPlugin(compile="inductor")
    run = prepared(tmp_path, plugin, TinyPlugin(TinyTask(model=Twice(2, 1))))
    assert [e["networks"] for e in events_of(run) if e["event"] == "step.compiled"] == [["Twice"]]
