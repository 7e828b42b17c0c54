"""Exact denoisers of Gaussian fields: with one in the network's place, what is wrong is the sampler's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hookloop.diffusion.solvers import Denoiser, Draw

    Sample = Callable[[Denoiser, Tensor, Draw], Tensor]
    """A solver with all but denoiser, noise and draw given."""


def independent_modes(variance: Tensor) -> Denoiser:
    """Denoise modes of the given *variance* each, which know nothing of each other: λ / (λ + σ²) x.

    Modes of an orthonormal basis, such as the waves of a homogeneous field, whose noise has variance σ² each.
    """
    return lambda x, sigma: variance / (variance + sigma**2) * x


def generated_variance(sample: Sample, variance: Tensor, draws: int) -> Tensor:
    """Variance that *sample* gives to modes of the true *variance*, ``[…]``, exactly: without any random number.

    With an exact denoiser of Gaussian modes a generated value is a linear function of the initial noise and of
    all noise drawn later, which are independent: their coefficients, got by giving each in turn the value 1
    and the others 0, add up squared.

    :param draws: at least as many as *sample* draws.
    """
    units = iter(torch.eye(1 + draws, dtype=variance.dtype, device=variance.device))

    def draw() -> Tensor:
        unit: Tensor = next(units)
        return unit.view(-1, *[1] * variance.ndim).expand(-1, *variance.shape)

    generated = sample(independent_modes(variance), draw(), draw)
    return generated.square().sum(0)
