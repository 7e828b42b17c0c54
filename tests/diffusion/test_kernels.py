"""What lies between convolutions, in torch's own operations, and how the fused kernels are admitted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hookloop.diffusion import kernels
from hookloop.diffusion.kernels import Plain, deviation, passes_on
from hookloop.diffusion.unet import Block, UNet

CPU = torch.device("cpu")


class Forgetful(Plain):
    """Leaves out the activation's modulation."""

    def modulated(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm, modulation: Tensor) -> Tensor:
        return super().modulated(conv, x, norm, 0 * modulation)


class WrongGradient(Plain):
    """Answers right, but tells the residual sum nothing of the way back."""

    def merged(self, conv: nn.Conv2d, h: Tensor, skip: nn.Module, x: Tensor) -> Tensor:
        return super().merged(conv, h, skip, x.detach())


class Broken(Plain):
    """Answers NaN."""

    def normalised(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return super().normalised(norm, x) * math.nan


def test_other_devices_than_gpus_use_torch() -> None:
    """Nothing is compiled or compared for them."""
    assert isinstance(passes_on("cpu"), Plain)
    assert isinstance(UNet(1, 1, channels=8, blocks=1).passes, Plain)


def test_float64_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels compute in float32: a network chooses again when its weights change their dtype."""
    monkeypatch.setattr(kernels, "passes_on", lambda _device: Forgetful())
    net = UNet(1, 1, channels=8, blocks=1)
    assert isinstance(net.passes, Forgetful)
    assert type(net.double().passes) is Plain
    assert isinstance(net.bfloat16().passes, Forgetful)


def test_bfloat16_is_within_what_is_tolerated_and_float32_far_within() -> None:
    """Rounding alone must never put the kernels aside."""
    assert deviation(Plain(), CPU, torch.float32) == 0
    assert 0 < deviation(Plain(), CPU, torch.bfloat16) < kernels.TOLERANCE / 2


@pytest.mark.parametrize("passes", [Forgetful(), WrongGradient(), Broken()], ids=lambda p: type(p).__name__)
def test_what_is_wrong_is_far_from_what_is_tolerated(passes: Plain) -> None:
    """A wrong answer, a wrong gradient and NaN are seen, in float32 as in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        assert deviation(passes, CPU, dtype) > 5 * kernels.TOLERANCE


def test_comparing_draws_nothing() -> None:
    """The global generator is left alone: a run is the same with and without a comparison."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    deviation(Plain(), CPU, torch.float32)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the kernels run")
def test_kernels_that_do_not_run_are_put_aside_aloud() -> None:
    """Without a GPU or Triton the reason is told once, in one line, and torch's operations are used."""
    passes_on.cache_clear()
    with pytest.warns(UserWarning, match="the fused kernels of the U-Net do not run: .*slower") as told:
        assert isinstance(passes_on("cuda"), Plain)
    assert isinstance(passes_on("cuda"), Plain)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    passes_on.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_network_on_a_gpu_uses_the_kernels_and_back_on_the_cpu_does_not() -> None:
    """Moving the weights chooses again."""
    net = UNet(1, 1, channels=8, blocks=1)
    assert not isinstance(net.to("cuda").passes, Plain)
    assert isinstance(net.to("cpu").passes, Plain)


def normal(x: Tensor, groups: int) -> Tensor:
    """Zero mean and unit variance within each sample's groups of channels, written out."""
    grouped = x.reshape(x.shape[0], groups, -1)
    away = grouped - grouped.mean(-1, keepdim=True)
    return (away / (away.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)


def test_a_block_is_what_it_says() -> None:
    """Both residual convolutions with what lies between, in float64 as written in the papers."""
    torch.manual_seed(0)
    block = Block(12, 8, 5, 0.0).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    parts = [torch.randn(2, c, 6, 7, dtype=torch.float64) for c in (4, 8)]
    embedding = torch.randn(2, 5, dtype=torch.float64)

    def silu(z: Tensor) -> Tensor:
        return z / (1 + (-z).exp())

    def affine(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return normal(x, norm.num_groups) * norm.weight[:, None, None] + norm.bias[:, None, None]

    x = torch.cat(parts, 1)
    scale, shift = (
        block.modulation(embedding)[:, :8, None, None],
        block.modulation(embedding)[:, 8:, None, None],
    )
    h = block.conv1(silu(affine(block.norm1, x)))
    h = block.conv2(silu(affine(block.norm2, h) * (1 + scale) + shift))
    expected = (block.skip(x) + h) / math.sqrt(2)
    torch.testing.assert_close(block(parts, embedding, Plain()), expected, rtol=1e-12, atol=1e-12)
