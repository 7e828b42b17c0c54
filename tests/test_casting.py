"""Each weight is cast once, and the fields are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hookloop.casting import cast_once
from hookloop.diffusion.edm import Precondition
from hookloop.diffusion.solvers import heun
from hookloop.diffusion.unet import UNet

SIGMAS = [10.0, 3.0, 1.0, 0.1, 0.0]
EVALUATIONS = 2 * (len(SIGMAS) - 1) - 1


def network() -> Precondition:
    """A small denoiser whose every weight matters."""
    torch.manual_seed(0)
    net = UNet(1, 2, channels=8, multipliers=[1, 2], blocks=1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return Precondition(net).eval()


def generation(denoiser: Precondition, noise: Tensor, condition: Tensor) -> Tensor:
    """Sample, as the tasks do."""
    return heun(lambda x, sigma: denoiser(x, x.new_full((len(x),), sigma), condition), noise, SIGMAS)


class Casts(TorchDispatchMode):
    """Counts what is cast to bfloat16 from the memory of certain tensors."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.memory = {tensor.data_ptr() for tensor in tensors}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one."""
        own = func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.memory
        self.count += own and (kwargs or {}).get("dtype") == torch.bfloat16
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("trained", [True, False])
def test_each_weight_is_cast_once(trained: bool) -> None:  # noqa: FBT001
    """Of frozen weights as of others, however often the network is asked; the fields are the same bit for bit."""
    denoiser = network()
    noise, condition = torch.randn(2, 1, 8, 8), torch.randn(2, 2, 8, 8)
    weights = [m.weight for m in denoiser.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    def generate() -> tuple[Tensor, int]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Casts(weights) as casts:
            return generation(denoiser, noise, condition), casts.count

    denoiser.requires_grad_(requires_grad=False)
    fields, as_it_is = generate()
    assert as_it_is == EVALUATIONS * len(weights)
    denoiser.requires_grad_(requires_grad=trained)
    with cast_once([denoiser]):
        same, once = generate()
    assert once == len(weights)
    assert torch.equal(fields, same)
    assert all(p.requires_grad == trained for p in denoiser.parameters())


def test_weights_are_frozen_again_after_an_error() -> None:
    """Whatever happens, only those that were frozen."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).requires_grad_(requires_grad=False))
    with pytest.raises(RuntimeError, match="lost"), cast_once([net, net[1]]):
        assert all(p.requires_grad for p in net.parameters())
        raise RuntimeError("lost")
    assert [p.requires_grad for p in net.parameters()] == [True, True, False, False]
