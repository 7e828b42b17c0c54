"""Samplers of the reverse diffusion as pure functions: float32 state, noise levels on the host.

Sources: Karras et al. 2022 (arXiv:2206.00364) for Euler's and Heun's method (Algorithm 1) and the stochastic
one (Algorithm 2); Lu et al. 2022 (arXiv:2211.01095) for DPM-Solver++(2M) (Algorithm 2, data prediction) and
its SDE form, in the variance-exploding parametrisation α = 1, so that λ = -ln σ.

Every solver takes

- ``denoiser``: ``D(x, sigma)`` with *sigma* a host float, the same for the whole batch: what depends on the noise
  level, such as which network is asked, is decided without waiting for the device;
- ``noise``: standard normal, ``[batch, channel, lat, lon]``; it is scaled by the first sigma;
- ``sigmas``: descending, ending in 0 (see :mod:`hookloop.diffusion.schedules`);
- ``keep``: given the number of a step and the state after it, where intermediate states are wanted;

and those that add noise take ``draw``, which gives standard normal noise of the shape of *noise*, newly drawn:
it is called only for noise that is used.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Denoiser = Callable[[Tensor, float], Tensor]
    """``denoised = D(x, sigma)``."""
    Draw = Callable[[], Tensor]
    Keep = Callable[[int, Tensor], None]


def euler(denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], *, keep: Keep | None = None) -> Tensor:
    """First-order steps down *sigmas*: one evaluation a step (Algorithm 1 without its correction)."""
    x = _scaled(noise, sigmas[0])
    for i, (now, after) in enumerate(pairwise(sigmas)):
        x = x + (after - now) * ((x - denoiser(x, now)) / now)
        if keep is not None:
            keep(i, x)
    return x


def heun(denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], *, keep: Keep | None = None) -> Tensor:
    """Second-order Heun steps down *sigmas* (Algorithm 1): 2·steps - 1 evaluations."""
    x = _scaled(noise, sigmas[0])
    for i, (now, after) in enumerate(pairwise(sigmas)):
        x = _heun_step(denoiser, x, now, after)
        if keep is not None:
            keep(i, x)
    return x


@frozen
class Churn:
    """How much noise is added and removed again in each step of :func:`stochastic_heun` (Algorithm 2)."""

    amount: float
    """S_churn, in all steps together: in one the noise level is raised by the share S_churn / steps."""
    minimum: float = 0.0
    """S_tmin: nothing is added below this noise level,"""
    maximum: float = math.inf
    """S_tmax: and nothing above this one."""
    noise: float = 1.0
    """S_noise, the standard deviation of what is added."""

    def gamma(self, sigma: float, steps: int) -> float:
        """By which share the noise level is raised at *sigma*, never by more than √2 - 1."""
        if not self.minimum <= sigma <= self.maximum:
            return 0.0
        return min(self.amount / steps, math.sqrt(2) - 1)


def stochastic_heun(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Sequence[float],
    draw: Draw,
    churn: Churn,
    *,
    keep: Keep | None = None,
) -> Tensor:
    """Heun steps, each from a noise level that is raised before by fresh noise (Algorithm 2)."""
    x = _scaled(noise, sigmas[0])
    steps = len(sigmas) - 1
    for i, (now, after) in enumerate(pairwise(sigmas)):
        raised = now * (1 + churn.gamma(now, steps))
        if raised > now:
            x = x + math.sqrt(raised**2 - now**2) * churn.noise * draw()
        x = _heun_step(denoiser, x, raised, after)
        if keep is not None:
            keep(i, x)
    return x


def _heun_step(denoiser: Denoiser, x: Tensor, now: float, after: float) -> Tensor:
    slope = (x - denoiser(x, now)) / now
    end = x + (after - now) * slope
    if after == 0:
        return end
    slope = (slope + (end - denoiser(end, after)) / after) / 2
    return x + (after - now) * slope


def dpmpp_2m(
    denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], *, keep: Keep | None = None
) -> Tensor:
    """DPM-Solver++(2M) down *sigmas*: one evaluation a step, the last step is first order."""
    return dpmpp_2m_sde(denoiser, noise, sigmas, _never, 0.0, keep=keep)


def dpmpp_2m_sde(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Sequence[float],
    draw: Draw,
    eta: float,
    *,
    keep: Keep | None = None,
) -> Tensor:
    """DPM-Solver++(2M) of the stochastic equation: as many evaluations, fresh noise in every step but the last.

    With t = -ln σ the reverse diffusions that share their marginals are, for any η ≥ 0,
    dx = -(1 + η)(x - D) dt + √(2η) σ dW. Over a step h with D held at its linear extrapolation to the
    middle of the step this is an Ornstein-Uhlenbeck process, solved exactly: x shrinks by e^(-(1+η)h) towards D and
    gains noise of variance σ_after² (1 - e^(-2ηh)).

    :param eta: η; 0 is the ordinary equation, 1 the reverse of the forward diffusion.
    """
    x = _scaled(noise, sigmas[0])
    before: Tensor | None = None
    for i, (now, after) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, now)
        if after == 0:
            x = denoised
        else:
            h = math.log(now / after)
            target = denoised
            if before is not None:
                r = math.log(sigmas[i - 1] / now) / h
                target = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * before
            x = (after / now) * math.exp(-eta * h) * x - math.expm1(-(1 + eta) * h) * target
            if eta > 0:
                x = x + after * math.sqrt(-math.expm1(-2 * eta * h)) * draw()
        before = denoised
        if keep is not None:
            keep(i, x)
    return x


def _never() -> Tensor:
    raise AssertionError("an ordinary differential equation draws nothing")


def _scaled(noise: Tensor, sigma: float) -> Tensor:
    """The state to start from: float32, or float64 where the noise is."""
    return noise.to(torch.promote_types(noise.dtype, torch.float32)) * sigma
