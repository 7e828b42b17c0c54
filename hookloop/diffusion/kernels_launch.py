"""The kernels of ``kernels_triton`` as operators ``torch.ops.hookloop.*``, functions of their arguments alone.

They take any layout and keep it, and give the same bits for the same arguments; ``torch.compile``, fake tensors and
counters see their shapes. ``fused`` gives them gradients.
"""

# mypy: disable-error-code="no-untyped-call,untyped-decorator"
# ruff: noqa: ARG001, PLR0913, PLR0917 - what an operator takes

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from hookloop.diffusion import kernels_triton as kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAMS = 1024
"""Enough to fill any GPU (an H100 has 132 multiprocessors): fewer rows than this are divided into chunks."""
_MOST_CHUNKS = 64
_BY_PIXEL, _BY_CHANNEL = (8, 256), (64, 32)
"""Channels and pixels of a tile, where pixels and where channels are neighbours in memory."""


def _merged(group: int) -> dict[str, int]:
    """Channels, chunks and samples of the tile that merges sums of a *group*: bounded, since a compiler unrolls it."""
    channels = 1 << (group - 1).bit_length()
    chunks = max(1, 256 // channels)
    return {"C": channels, "K": chunks, "B": max(1, min(16, 2048 // (channels * chunks)))}


def _format(x: Tensor) -> torch.memory_format:
    """The layout in which the answer is laid out."""
    last = x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _steps(x: Tensor) -> tuple[int, int, int]:
    """Strides of sample, channel and pixel; the last is 0 where rows do not follow one another evenly."""
    sample, channel, row, column = x.stride()
    height, width = x.shape[2:]
    if width == 1:
        return sample, channel, row
    return sample, channel, column if height == 1 or row == width * column else 0


def _even(x: Tensor) -> Tensor:
    """*x*, copied only where a pixel's place is no multiple of its number."""
    return x if _steps(x)[2] or x.shape[2:].numel() == 1 else x.contiguous(memory_format=_format(x))


@frozen
class _Tiles:
    """How the programs divide tensors of one shape and layout."""

    samples: int
    channels: int
    pixels: int
    shape: tuple[int, int]

    @classmethod
    def over(cls, x: Tensor) -> _Tiles:
        """Tiles whose longer side is along what is contiguous."""
        samples, channels, height, width = x.shape
        last = _format(x) == torch.channels_last
        return cls(samples, channels, height * width, _BY_CHANNEL if last else _BY_PIXEL)

    @property
    def rows(self) -> int:
        """Tiles above one another."""
        return -(-self.channels // self.shape[0])

    @property
    def each(self) -> tuple[int, int, int]:
        """One program a tile."""
        return -(-self.pixels // self.shape[1]), self.rows, self.samples

    @property
    def tiles(self) -> int:
        """Tiles that a program sums over, so that there are programs enough for the whole GPU and few sums to merge."""
        across = self.each[0]
        chunks = min(across, max(1, -(-_PROGRAMS // (self.rows * self.samples))), _MOST_CHUNKS)
        return -(-across // chunks)

    @property
    def chunks(self) -> int:
        """Programs beside one another."""
        return -(-self.each[0] // self.tiles)

    @property
    def chunked(self) -> tuple[int, int, int]:
        """One program a chunk."""
        return self.chunks, self.rows, self.samples


_LIBRARY = "hookloop"
torch.library.define(
    f"{_LIBRARY}::norm_silu",
    "(Tensor[] parts, Tensor weight, Tensor bias, Tensor? before, Tensor? modulation, int groups, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    f"{_LIBRARY}::norm_silu_backward",
    "(Tensor gradient, Tensor? beside, Tensor x, Tensor coefficient, Tensor rstd, Tensor weight, Tensor bias,"
    " Tensor? before, Tensor? modulation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(f"{_LIBRARY}::merge", "(Tensor x, Tensor h, Tensor bias, float factor) -> Tensor")
torch.library.define(
    f"{_LIBRARY}::merge_backward", "(Tensor gradient, Tensor bias, float factor) -> (Tensor, Tensor)"
)


def _like(x: Tensor, channels: int | None = None) -> Tensor:
    """An empty tensor of the same layout, with so many channels."""
    shape = (x.shape[0], x.shape[1] if channels is None else channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


@torch.library.impl(f"{_LIBRARY}::norm_silu", "default")
def _norm_silu(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    modulation: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise and activate *parts* as if joined: the answer, what was joined, coefficients, 1/std.

    Where there is one part, nothing is joined and the second is empty.
    """
    parts = [_even(part) for part in parts]
    channels = sum(part.shape[1] for part in parts)
    join = len(parts) > 1
    x = _like(parts[0], channels) if join else parts[0]
    y, tiles = _like(x), _Tiles.over(x)
    partial = x.new_empty((2, tiles.samples, channels, tiles.chunks), dtype=torch.float32)
    coefficient = x.new_empty((4, tiles.samples, channels), dtype=torch.float32)
    rstd = x.new_empty((tiles.samples, groups), dtype=torch.float32)
    chunk, group, first = tiles.tiles * tiles.shape[1], channels // groups, 0
    merged = _merged(group)
    with torch.cuda.device_of(x):
        for part in parts:
            rows = -(-part.shape[1] // tiles.shape[0])
            kernels.statistics[tiles.chunks, rows, tiles.samples](
                part,
                x,
                partial,
                part.shape[1],
                tiles.pixels,
                tiles.tiles,
                tiles.chunks,
                first,
                channels,
                *_steps(part),
                *_steps(x),
                JOIN=join,
                C=tiles.shape[0],
                P=tiles.shape[1],
            )
            first += part.shape[1]
        kernels.coefficients[groups, tiles.samples](
            partial,
            weight,
            bias,
            before,
            modulation,
            coefficient,
            rstd,
            channels,
            tiles.pixels,
            chunk,
            tiles.chunks,
            group,
            0 if modulation is None else modulation.stride(0),
            eps,
            BEFORE=before is not None,
            MODULATION=modulation is not None,
            C=merged["C"],
            K=merged["K"],
        )
        kernels.activate[tiles.each](
            x,
            y,
            coefficient,
            channels,
            tiles.pixels,
            *_steps(x),
            *_steps(y),
            C=tiles.shape[0],
            P=tiles.shape[1],
        )
    return y, x if join else x.new_empty(0), coefficient, rstd


@torch.library.register_fake(f"{_LIBRARY}::norm_silu")
def _(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    modulation: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, channels = parts[0], sum(part.shape[1] for part in parts)
    return (
        _like(x, channels),
        _like(x, channels) if len(parts) > 1 else x.new_empty(0),
        x.new_empty((4, x.shape[0], channels), dtype=torch.float32),
        x.new_empty((x.shape[0], groups), dtype=torch.float32),
    )


@torch.library.impl(f"{_LIBRARY}::norm_silu_backward", "default")
def _norm_silu_backward(
    gradient: Tensor,
    beside: Tensor | None,
    x: Tensor,
    coefficient: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    modulation: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (with that of *beside* added), weight, bias, before and modulation; empty where there is none."""
    x, gradient = _even(x), _even(gradient)
    beside = None if beside is None else _even(beside)
    tiles, dx = _Tiles.over(x), _like(x)
    samples, channels, groups = tiles.samples, tiles.channels, rstd.shape[1]
    partial = x.new_empty((2, samples, channels, tiles.chunks), dtype=torch.float32)
    correction = x.new_empty((2, samples, channels), dtype=torch.float32)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    d_before = x.new_empty(0) if before is None else torch.empty_like(before)
    d_modulation = (
        x.new_empty(0)
        if modulation is None
        else torch.empty_like(modulation, memory_format=torch.contiguous_format)
    )
    tile = {"C": tiles.shape[0], "P": tiles.shape[1]}
    with torch.cuda.device_of(x):
        kernels.reduce_gradient[tiles.chunked](
            x,
            gradient,
            coefficient,
            partial,
            channels,
            tiles.pixels,
            tiles.tiles,
            tiles.chunks,
            *_steps(x),
            *_steps(gradient),
            **tile,
        )
        kernels.finish_gradient[groups,](
            partial,
            coefficient,
            rstd,
            weight,
            bias,
            modulation,
            correction,
            d_weight,
            d_bias,
            None if before is None else d_before,
            None if modulation is None else d_modulation,
            samples,
            channels,
            tiles.pixels,
            tiles.chunks,
            channels // groups,
            0 if modulation is None else modulation.stride(0),
            BEFORE=before is not None,
            MODULATION=modulation is not None,
            **_merged(channels // groups),
        )
        kernels.differentiate[tiles.each](
            x,
            gradient,
            beside,
            coefficient,
            correction,
            dx,
            channels,
            tiles.pixels,
            *_steps(x),
            *_steps(gradient),
            *((0, 0, 0) if beside is None else _steps(beside)),
            *_steps(dx),
            BESIDE=beside is not None,
            **tile,
        )
    return dx, d_weight, d_bias, d_before, d_modulation


@torch.library.register_fake(f"{_LIBRARY}::norm_silu_backward")
def _(
    gradient: Tensor,
    beside: Tensor | None,
    x: Tensor,
    coefficient: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    modulation: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        _like(x),
        torch.empty_like(weight),
        torch.empty_like(bias),
        x.new_empty(0) if before is None else torch.empty_like(before),
        x.new_empty(0)
        if modulation is None
        else torch.empty_like(modulation, memory_format=torch.contiguous_format),
    )


@torch.library.impl(f"{_LIBRARY}::merge", "default")
def _merge(x: Tensor, h: Tensor, bias: Tensor, factor: float) -> Tensor:
    """(x + h + bias)·factor, in the layout of *h*."""
    x, h = _even(x), _even(h)
    out, tiles = _like(h), _Tiles.over(h)
    with torch.cuda.device_of(x):
        kernels.merge[tiles.each](
            x,
            h,
            bias,
            out,
            factor,
            tiles.channels,
            tiles.pixels,
            *_steps(x),
            *_steps(h),
            *_steps(out),
            C=tiles.shape[0],
            P=tiles.shape[1],
        )
    return out


@torch.library.register_fake(f"{_LIBRARY}::merge")
def _(x: Tensor, h: Tensor, bias: Tensor, factor: float) -> Tensor:
    return _like(h)


@torch.library.impl(f"{_LIBRARY}::merge_backward", "default")
def _merge_backward(gradient: Tensor, bias: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The gradient of either addend, and that of the bias."""
    gradient = _even(gradient)
    dx, tiles = _like(gradient), _Tiles.over(gradient)
    partial = gradient.new_empty((tiles.samples * tiles.chunks, tiles.channels), dtype=torch.float32)
    with torch.cuda.device_of(gradient):
        kernels.divide_gradient[tiles.chunked](
            gradient,
            dx,
            partial,
            factor,
            tiles.channels,
            tiles.pixels,
            tiles.tiles,
            tiles.chunks,
            *_steps(gradient),
            *_steps(dx),
            C=tiles.shape[0],
            P=tiles.shape[1],
        )
    return dx, partial.sum(0).to(bias.dtype)


@torch.library.register_fake(f"{_LIBRARY}::merge_backward")
def _(gradient: Tensor, bias: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    return _like(gradient), torch.empty_like(bias)
