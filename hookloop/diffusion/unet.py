"""A residual U-Net with noise and condition inputs, for fields of any size.

Sources: Ronneberger et al. 2015 (U-Net, arXiv:1505.04597); Ho et al. 2020 (noise embedding,
arXiv:2006.11239); Dhariwal & Nichol 2021 (scale-shift normalisation, residual scaling by 1/√2 after
Song et al. 2021, arXiv:2105.05233 and arXiv:2011.13456).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from torch import Tensor, nn

from hookloop.diffusion.kernels import passes_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from hookloop.diffusion.kernels import Passes


Padding = Literal["zeros", "replicate", "circular"]
"""What the convolutions see beyond the edges of a field."""


def _conv(inputs: int, outputs: int, padding: Padding, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, padding_mode=padding)


def _norm(channels: int) -> nn.GroupNorm:
    """Normalise groups of four channels or more, of any number of channels."""
    return nn.GroupNorm(math.gcd(32, channels // 4 or 1, channels), channels)


def _zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """Start a residual branch as nothing, so that every block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise label, through two linear layers."""

    frequencies: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        octaves = torch.arange(channels // 2, dtype=torch.float32) / (channels // 2)
        self.register_buffer("frequencies", 32.0 * (1e-3**octaves), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(channels // 2 * 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, label: Tensor) -> Tensor:
        """Embed a ``[batch]`` label as ``[batch, width]``."""
        angles = label[:, None] * self.frequencies
        embedded: Tensor = self.layers(torch.cat([angles.cos(), angles.sin()], 1))
        return embedded


class Block(nn.Module):
    """Two normalised 3 by 3 convolutions with the noise embedding as scale and shift between them."""

    def __init__(
        self, inputs: int, outputs: int, width: int, dropout: float, padding: Padding = "zeros"
    ) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = _conv(inputs, outputs, padding)
        self.modulation = nn.Linear(width, 2 * outputs)
        self.norm2 = _norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(_conv(outputs, outputs, padding))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, parts: Sequence[Tensor], embedding: Tensor, passes: Passes) -> Tensor:
        """Map *parts*, together ``[batch, inputs, lat, lon]``, to ``[batch, outputs, lat, lon]``."""
        h, x = passes.joined(self.norm1, parts)
        h = passes.modulated(self.conv1, h, self.norm2, self.modulation(embedding))
        return passes.merged(self.conv2, self.dropout(h), self.skip, x)


class Attention(nn.Module):
    """Self-attention over all points of the (coarsest) grid."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, channels, lat, lon]`` to the same shape."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
        out: Tensor = (x + self.out(mixed)) * math.sqrt(0.5)
        return out


class _Stage(nn.Module):
    """One block, with attention after it where asked."""

    def __init__(
        self, inputs: int, outputs: int, width: int, dropout: float, padding: Padding, heads: int
    ) -> None:
        super().__init__()
        self.block = Block(inputs, outputs, width, dropout, padding)
        self.attention = Attention(outputs, heads) if heads else nn.Identity()

    def forward(self, parts: Sequence[Tensor], embedding: Tensor, passes: Passes) -> Tensor:
        out: Tensor = self.attention(self.block(parts, embedding, passes))
        return out


class UNet(nn.Module):
    """The backbone F of the preconditioning: fields of any size, padded inside to what the levels need.

    What it computes with follows its weights: their device, and their layout, of which
    ``to(memory_format=torch.channels_last)`` is the other. On a GPU fused kernels do what lies between convolutions.
    They take the weights of convolutions and norms in a block: its parts are not called there, so that forward hooks on
    them, and what wraps a convolution (LoRA, weight normalisation by hooks), work on other devices only.

    :param outputs: channels of the noisy field and of the answer.
    :param condition: channels of the condition.
    :param channels: channels of the first level.
    :param multipliers: width of each level, in units of *channels*; each level halves the grid.
    :param blocks: residual blocks a level.
    :param attention: whether the coarsest level attends over all its points.
    :param dropout: share of activations dropped inside each block while training.
    :param padding: what lies beyond the edges; ``circular`` is for fields that wrap both ways, on grids that the
        levels divide.
    """

    def __init__(  # noqa: PLR0913 - options of a network
        self,
        outputs: int,
        condition: int,
        *,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: bool = True,
        dropout: float = 0.0,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        width = 4 * channels
        widths = [channels * m for m in multipliers]
        self.levels = len(widths)
        self.padding = padding
        self.embedding = NoiseEmbedding(channels, width)
        self.stem = _conv(outputs + condition, widths[0], padding)

        def stage(inputs: int, out: int, level: int) -> _Stage:
            heads = math.gcd(max(1, out // 64), out) if attention and level == self.levels - 1 else 0
            return _Stage(inputs, out, width, dropout, padding, heads)

        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        skips, last = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            stages = nn.ModuleList(stage(last if i == 0 else out, out, level) for i in range(blocks))
            self.down.append(stages)
            skips += [out] * blocks
            last = out
            if level < self.levels - 1:
                self.shrink.append(_conv(out, out, padding, stride=2))
                skips.append(out)
        self.middle = stage(last, last, self.levels - 1)
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level in reversed(range(self.levels)):
            out = widths[level]
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(stage(last + skips.pop(), out, level))
                last = out
            self.up.append(stages)
            if level:
                self.grow.append(_conv(out, out, padding))
        self.head = nn.Sequential(_norm(last), nn.SiLU(), _zeroed(_conv(last, outputs, padding)))
        self.passes = passes_for(self.stem.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's
        """Choose again who computes between the convolutions, whenever the weights may have moved."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.passes = passes_for(self.stem.weight)
        return self

    def forward(self, noisy: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        """Map *noisy* and *condition* ``[batch, ·, lat, lon]`` and *label* ``[batch]`` to *noisy*'s shape."""
        height, width = noisy.shape[-2:]
        unit = 2 ** (self.levels - 1)
        x = torch.cat([noisy, condition], 1)
        x = self._extended(x, -height % unit, -width % unit)
        embedding = self.embedding(label)
        x = self.stem(x)
        skips = [x]
        for level, stages in enumerate(self.down):
            for stage in stages:  # type: ignore[attr-defined]
                x = stage((x,), embedding, self.passes)
                skips.append(x)
            if level < self.levels - 1:
                x = self.shrink[level](x)
                skips.append(x)
        x = self.middle((x,), embedding, self.passes)
        for level, stages in enumerate(self.up):
            for stage in stages:  # type: ignore[attr-defined]
                x = stage((x, skips.pop()), embedding, self.passes)
            if level < self.levels - 1:
                x = self.grow[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        norm, _, last = self.head
        out: Tensor = last(self.passes.normalised(norm, x))  # type: ignore[arg-type]
        return out[..., :height, :width]

    def _extended(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Add so many rows and columns at the ends: the last one again, or those that come first."""
        if not rows and not columns:
            return x
        if self.padding != "circular":
            return F.pad(x, (0, columns, 0, rows), mode="replicate")
        height, width = x.shape[-2:]
        if rows:
            x = x[..., torch.arange(height + rows, device=x.device) % height, :]
        return x[..., torch.arange(width + columns, device=x.device) % width] if columns else x
