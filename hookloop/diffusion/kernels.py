"""What a residual network does between its convolutions, and who does it best on which device."""

from __future__ import annotations

import math
import warnings
from functools import cache
from itertools import starmap
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from attrs import frozen
from torch import Tensor, nn
from torch.nn.utils import skip_init

if TYPE_CHECKING:
    from collections.abc import Sequence


class Passes(Protocol):
    """Normalisation, activation, modulation and residual sums of fields ``[batch, channel, lat, lon]``."""

    def normalised(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Give silu(norm(x))."""

    def joined(self, norm: nn.GroupNorm, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Give silu(norm(x)) and x, the *parts* joined along their channels."""

    def modulated(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm, modulation: Tensor) -> Tensor:
        """Give silu(norm(conv(x))·(1 + scale) + shift), *modulation* ``[batch, 2·channel]`` being scale and shift."""

    def merged(self, conv: nn.Conv2d, h: Tensor, skip: nn.Module, x: Tensor) -> Tensor:
        """Give (skip(x) + conv(h))·√½, *skip* the identity or a convolution."""


@frozen
class Plain:
    """Torch's own operations, for every device."""

    def normalised(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """See ``Passes``."""
        return F.silu(norm(x))

    def joined(self, norm: nn.GroupNorm, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See ``Passes``."""
        x = torch.cat([*parts], 1) if len(parts) > 1 else parts[0]
        return self.normalised(norm, x), x

    def modulated(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm, modulation: Tensor) -> Tensor:
        """See ``Passes``."""
        scale, shift = modulation[:, :, None, None].chunk(2, 1)
        return F.silu(norm(conv(x)) * (1 + scale) + shift)

    def merged(self, conv: nn.Conv2d, h: Tensor, skip: nn.Module, x: Tensor) -> Tensor:
        """See ``Passes``."""
        out: Tensor = (skip(x) + conv(h)).mul_(math.sqrt(0.5))
        return out


TOLERANCE = 0.02
"""How far bfloat16 may be from float32, relative to the whole: convolutions and passes differ by less than 0.01."""


def passes_for(weight: Tensor) -> Passes:
    """Give the best for a network with such weights: kernels compute in float32, float64 is left to torch."""
    return Plain() if weight.dtype == torch.float64 else passes_on(weight.device.type)


@cache
def passes_on(device: str) -> Passes:
    """Give the best for this type of device; on CUDA only after a comparison, once in a process.

    Warns where that fails: the network then computes the same, several times slower.
    """
    if device != "cuda":
        return Plain()
    try:
        from hookloop.diffusion.fused import Fused

        fused = Fused()
        far = deviation(fused, torch.device(device), torch.bfloat16)
    except Exception as error:  # noqa: BLE001 - whatever a compiler may raise
        reason = f"do not run: {type(error).__name__}: {error}".splitlines()[0]
    else:
        if far <= TOLERANCE:
            return fused
        reason = f"differ from torch by {far:.2g}; expected {TOLERANCE} at most"
    warnings.warn(
        f"the fused kernels of the U-Net {reason}; torch's own are used, which are slower", stacklevel=2
    )
    return Plain()


_EXAMPLES = (
    (torch.contiguous_format, 24, (130, 131)),
    (torch.contiguous_format, 24, (3, 86)),
    (torch.channels_last, 72, (33, 70)),
    (torch.channels_last, 72, (3, 86)),
)
"""Layouts, channels and fields: several tiles of channels and chunks of tiles, the last not full; and few chunks."""


def deviation(passes: Passes, device: torch.device, dtype: torch.dtype) -> float:
    """Give the largest relative difference between *passes* under autocast to *dtype* and torch in float32.

    Over both layouts and all gradients; ``inf`` where anything is not finite.
    """

    def apart(layout: torch.memory_format, channels: int, size: tuple[int, int]) -> float:
        given = layout, channels, size, device
        exact, found = _example(Plain(), torch.float32, *given), _example(passes, dtype, *given)
        return max(
            float((a.double() - b.double()).norm() / b.double().norm()) if a.isfinite().all() else math.inf
            for a, b in zip(found, exact, strict=True)
        )

    return max(starmap(apart, _EXAMPLES))


def _example(
    passes: Passes,
    dtype: torch.dtype,
    layout: torch.memory_format,
    channels: int,
    size: tuple[int, int],
    device: torch.device,
) -> list[Tensor]:
    """A block's passes over fields that are far from 0, as in training: the answer and every gradient."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        value = mean + std * torch.randn(shape, generator=generator)
        return value.bfloat16().float().to(device)  # the same numbers, whatever the dtype

    def fields(width: int, mean: float) -> Tensor:
        value = drawn(2, width, *size, mean=mean).to(dtype)
        return value.contiguous(memory_format=layout).requires_grad_()

    def convolution() -> nn.Conv2d:
        conv: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, channels, channels, 1, device=device
        )
        conv.weight = nn.Parameter(drawn(channels, channels, 1, 1, std=channels**-0.5))
        conv.bias = nn.Parameter(drawn(channels))
        return conv

    norms = [nn.GroupNorm(2, channels, device=device) for _ in range(2)]
    for norm in norms:
        norm.weight = nn.Parameter(drawn(channels, mean=1.0, std=0.3))
        norm.bias = nn.Parameter(drawn(channels, std=0.3))
    first, second, skip = (convolution() for _ in range(3))
    parts = [fields(channels // 3, 2.0), fields(channels - channels // 3, 0.0)]
    modulation = drawn(2, 2 * channels, std=0.3).to(dtype).requires_grad_()
    mixed = torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)
    with torch.enable_grad(), mixed:
        h, x = passes.joined(norms[0], parts)
        h = passes.modulated(first, h, norms[1], modulation)
        out = passes.merged(second, h, skip, x)
    weight = drawn(*out.shape).to(out.dtype).contiguous(memory_format=layout)
    leaves = [*parts, modulation]
    for module in (*norms, first, second, skip):
        leaves += module.parameters()
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]
