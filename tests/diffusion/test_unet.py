"""The U-Net as a function of fields of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from hookloop.diffusion.unet import UNet

if TYPE_CHECKING:
    from collections.abc import Sequence


def perturbed(net: UNet) -> UNet:
    """Wake the layers that start at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def fields(height: int = 8, width: int = 8, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Two noisy channels, three of condition and a label."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 2, height, width, generator=generator),
        torch.randn(batch, 3, height, width, generator=generator),
        torch.randn(batch, generator=generator),
    )


def small(channels: int = 8, multipliers: Sequence[int] = (1, 2), *, attention: bool = True) -> UNet:
    """Give a network that is quick to run, with every layer awake."""
    torch.manual_seed(0)
    return perturbed(UNet(2, 3, channels=channels, multipliers=multipliers, blocks=1, attention=attention))


def test_it_starts_as_nothing() -> None:
    """The untouched network answers 0, so that training starts from the preconditioning alone."""
    assert torch.equal(UNet(2, 3, channels=8, blocks=1)(*fields()), torch.zeros(2, 2, 8, 8))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 7), (8, 8), (13, 6)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2, 2)])
def test_any_size_comes_back_as_it_was(size: tuple[int, int], multipliers: tuple[int, ...]) -> None:
    """Sizes that the levels do not divide are padded inside, and the answer is finite."""
    out = small(multipliers=multipliers)(*fields(*size))
    assert out.shape == (2, 2, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("channels", [2, 6, 9, 10, 34, 100])
def test_any_width_is_built(channels: int) -> None:
    """Groups and heads divide the channels, also where 32 and 64 do not."""
    out = small(channels, (1, 2, 3))(*fields(4, 4))
    assert out.isfinite().all()


@pytest.mark.parametrize("attention", [True, False])
def test_the_gradient_reaches_every_parameter(attention: bool) -> None:  # noqa: FBT001
    """No layer is left out of the answer."""
    net = small(multipliers=(1, 2, 2), attention=attention)
    net(*fields()).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize("changed", [0, 1, 2], ids=["noisy", "condition", "label"])
def test_every_input_matters(changed: int) -> None:
    """Another noisy field, condition or noise label gives another answer."""
    net, inputs = small(), list(fields())
    before = net(*inputs)
    inputs[changed] = inputs[changed] + 0.5
    assert (net(*inputs) - before).abs().max() > 1e-3


def test_the_samples_of_a_batch_do_not_mix() -> None:
    """A field's answer is the same alone, with its own label."""
    net, inputs = small(), fields(batch=3)
    alone = net(*(part[1:2] for part in inputs))
    torch.testing.assert_close(net(*inputs)[1:2], alone, rtol=1e-4, atol=1e-5)


def test_attention_sees_the_whole_grid() -> None:
    """With attention a pixel answers to one far outside the convolutions' reach; without, hardly."""
    reach = {}
    for attention in (True, False):
        net = small(multipliers=(1,), attention=attention)
        for module in list(net.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.GroupNorm):  # it too sees the whole grid, so it is put aside
                    setattr(module, name, nn.Identity())
        noisy, condition, label = fields(64, 1, batch=1)
        noisy.requires_grad_()
        net(noisy, condition, label)[..., 0, 0].sum().backward()
        assert noisy.grad is not None
        reach[attention] = noisy.grad[..., -1, 0].abs().max().item()
    assert reach[True] > 0
    assert reach[False] == 0


def test_dropout_acts_in_training_only() -> None:
    """Two passes differ while training and agree in evaluation."""
    torch.manual_seed(0)
    net = perturbed(UNet(2, 3, channels=8, multipliers=(1,), blocks=1, dropout=0.5))
    assert not torch.equal(net(*fields()), net(*fields()))
    net.eval()
    assert torch.equal(net(*fields()), net(*fields()))


def test_channels_last_changes_nothing() -> None:
    """The memory format is a matter of speed alone."""
    net, inputs = small(), fields()
    expected = net(*inputs)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    out = net(
        *(part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part for part in inputs)
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def padded(padding: str, multipliers: Sequence[int] = (1, 2)) -> UNet:
    """Give a small network with that padding, with every layer awake."""
    torch.manual_seed(0)
    return perturbed(UNet(2, 3, channels=8, multipliers=multipliers, blocks=1, padding=padding))  # type: ignore[arg-type]


@pytest.mark.parametrize("padding", ["zeros", "replicate", "circular"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (8, 8)])
def test_any_padding_takes_any_size(padding: str, size: tuple[int, int]) -> None:
    """Also sizes that the levels do not divide, and those of a single cell; weights have the same names."""
    net = padded(padding, (1, 2, 2))
    out = net(*fields(*size))
    assert out.shape == (2, 2, *size)
    assert out.isfinite().all()
    assert list(net.state_dict()) == list(padded("zeros", (1, 2, 2)).state_dict())


def test_zeros_are_the_default() -> None:
    """An option left out changes nothing."""
    inputs = fields()
    assert torch.equal(small()(*inputs), padded("zeros")(*inputs))


@pytest.mark.parametrize(("rows", "columns"), [(4, 0), (0, 4), (8, 12)])
def test_a_circular_network_does_not_know_where_a_field_begins(rows: int, columns: int) -> None:
    """Fields rolled by what the levels divide come back rolled; with zeros beyond the edges they do not."""
    noisy, condition, label = fields(16, 16)
    for padding, tells in (("circular", False), ("zeros", True), ("replicate", True)):
        net = padded(padding, (1, 2, 2))
        rolled = net(*(part.roll((rows, columns), (-2, -1)) for part in (noisy, condition)), label)
        error = (rolled - net(noisy, condition, label).roll((rows, columns), (-2, -1))).abs().max()
        assert (error > 1e-3) == tells, padding
        assert tells or error < 1e-4


def test_edges_are_no_edges_of_a_constant_field_where_they_are_repeated() -> None:
    """What is the same everywhere comes back the same everywhere, unless zeros lie beyond the edges."""
    noisy, condition, label = fields(7, 5)
    same = noisy[..., :1, :1].expand_as(noisy), condition[..., :1, :1].expand_as(condition), label
    for padding, flat in (("replicate", True), ("circular", True), ("zeros", False)):
        out = padded(padding)(*same)
        assert ((out.amax((-2, -1)) - out.amin((-2, -1))).max() < 1e-4) == flat, padding
