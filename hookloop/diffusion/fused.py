"""What lies between convolutions in as few passes over memory as its bytes need, for GPUs; see ``kernels.Passes``."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import hookloop.diffusion.kernels_launch  # noqa: F401 - defines the operators

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.autograd.function import FunctionCtx

_HALF = math.sqrt(0.5)


def _forward(
    ctx: FunctionCtx,
    norm: tuple[int, float],
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    modulation: Tensor | None,
    *parts: Tensor,
) -> tuple[Tensor, Tensor]:
    """The activated and what was normalised."""
    y, joined, coefficient, rstd = torch.ops.hookloop.norm_silu(
        parts, weight, bias, before, modulation, *norm
    )
    x = joined if len(parts) > 1 else parts[0]
    ctx.save_for_backward(x, coefficient, rstd, weight, bias, before, modulation)  # type: ignore[arg-type]
    return y, x


def _backward(ctx: FunctionCtx, gradient: Tensor, beside: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of all that ``_forward`` takes, the parts as one."""
    x, coefficient, rstd, weight, bias, before, modulation = ctx.saved_tensors  # type: ignore[attr-defined]
    dx, d_weight, d_bias, d_before, d_modulation = torch.ops.hookloop.norm_silu_backward(
        gradient, beside, x, coefficient, rstd, weight, bias, before, modulation
    )
    return (
        None,
        d_weight,
        d_bias,
        None if before is None else d_before,
        None if modulation is None else d_modulation,
        dx,
    )


class _NormSiLU(torch.autograd.Function):
    """silu(norm(x + before)·(1 + scale) + shift)."""

    @staticmethod
    def forward(ctx: FunctionCtx, *given: object) -> Tensor:
        return _forward(ctx, *given)[0]  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, gradients[0], None)


class _NormSiLUBeside(torch.autograd.Function):
    """The same beside x itself, so that both gradients of x are added up in the pass that writes one of them."""

    @staticmethod
    def forward(ctx: FunctionCtx, *given: object) -> tuple[Tensor, Tensor]:
        ctx.widths = [part.shape[1] for part in given[5:]]  # type: ignore[attr-defined]
        return _forward(ctx, *given)  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *small, dx = _backward(ctx, *gradients)
        assert dx is not None
        widths: list[int] = ctx.widths  # type: ignore[attr-defined]
        return *small, *(dx.split(widths, 1) if len(widths) > 1 else [dx])


class _Merge(torch.autograd.Function):
    """(x + h + bias)·√½."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return cast("Tensor", torch.ops.hookloop.merge(x, h, bias, _HALF))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (bias,) = ctx.saved_tensors  # type: ignore[attr-defined]
        dx, d_bias = torch.ops.hookloop.merge_backward(gradient, bias, _HALF)
        return dx, dx, d_bias


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve, and leave the bias to the next pass."""
    out: Tensor = conv._conv_forward(x, conv.weight, None)  # noqa: SLF001 - it knows how to pad
    return out


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


@frozen
class Fused:
    """Passes for GPUs: activations keep the dtype that convolutions give them, everything inside is float32.

    Each normalisation reads twice and writes once, forward, and reads four times and writes once, backward. Biases of
    convolutions, concatenation, residual sums and the sum of two gradients cost no pass of their own.
    """

    def normalised(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """See ``Passes``."""
        return cast(
            "Tensor",
            _NormSiLU.apply((norm.num_groups, norm.eps), norm.weight, norm.bias, None, None, x),
        )

    def joined(self, norm: nn.GroupNorm, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See ``Passes``."""
        y, x = _NormSiLUBeside.apply((norm.num_groups, norm.eps), norm.weight, norm.bias, None, None, *parts)
        return y, x

    def modulated(self, conv: nn.Conv2d, x: Tensor, norm: nn.GroupNorm, modulation: Tensor) -> Tensor:
        """See ``Passes``."""
        h = _convolved(conv, x)
        given = norm.weight, norm.bias, _bias(conv), modulation.contiguous(), h
        return cast("Tensor", _NormSiLU.apply((norm.num_groups, norm.eps), *given))

    def merged(self, conv: nn.Conv2d, h: Tensor, skip: nn.Module, x: Tensor) -> Tensor:
        """See ``Passes``."""
        h, bias = _convolved(conv, h), _bias(conv)
        if isinstance(skip, nn.Conv2d):
            x, bias = _convolved(skip, x), bias + _bias(skip)
        return cast("Tensor", _Merge.apply(x, h, bias))
