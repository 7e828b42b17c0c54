"""Samplers of the probability-flow ODE as pure functions: float32 state, noise levels on the host.

Sources: Karras et al. 2022 (arXiv:2206.00364) for the schedule (Eq. 5) and Heun's method (Algorithm 1);
Lu et al. 2022 (arXiv:2211.01095) for DPM-Solver++(2M) (Algorithm 2, data prediction, in the
variance-exploding parametrisation α = 1, so that λ = -ln σ).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hookloop.diffusion.edm import Denoiser


def karras_schedule(steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Noise levels σ_0 = sigma_max … σ_{steps-1} = sigma_min, 0, as host floats (Eq. 5).

    :raises ValueError: with fewer than two steps or a range that is not positive and ascending.
    """
    if steps <= 1:
        raise ValueError(f"a schedule needs at least 2 steps, found {steps}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"expected 0 < sigma_min < sigma_max, found {sigma_min} and {sigma_max}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)] + [0.0]


def heun(denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Second-order Heun steps down *sigmas* (Algorithm 1): 2·steps - 1 evaluations.

    :param denoiser: ``D(x, sigma)`` with *sigma* ``[batch]``.
    :param noise: standard normal, ``[batch, channel, lat, lon]``, float32; it is scaled by the first sigma.
    :param sigmas: descending, ending in 0.
    """
    x = noise.float() * sigmas[0]
    for now, after in pairwise(sigmas):
        slope = (x - _at(denoiser, x, now)) / now
        euler = x + (after - now) * slope
        if after > 0:
            slope = (slope + (euler - _at(denoiser, euler, after)) / after) / 2
            x = x + (after - now) * slope
        else:
            x = euler
    return x


def dpmpp_2m(denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """DPM-Solver++(2M) down *sigmas*: one evaluation a step, the last step is first order.

    Parameters as for :func:`heun`.
    """
    x = noise.float() * sigmas[0]
    before: Tensor | None = None
    for i, (now, after) in enumerate(pairwise(sigmas)):
        denoised = _at(denoiser, x, now)
        if after == 0:
            return denoised
        h = math.log(now / after)
        target = denoised
        if before is not None:
            r = math.log(sigmas[i - 1] / now) / h
            target = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * before
        x = (after / now) * x - math.expm1(-h) * target
        before = denoised
    return x


def _at(denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
    return denoiser(x, torch.full((len(x),), sigma, device=x.device))
