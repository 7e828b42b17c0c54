"""Noise levels to step down, as host floats: descending, ending in exactly 0."""

from __future__ import annotations

import math


def karras_schedule(steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Noise levels σ_0 = sigma_max … σ_{steps-1} = sigma_min, 0, even in σ^(1/rho).

    Source: Karras et al. 2022 (arXiv:2206.00364), Eq. 5.

    :raises ValueError: with fewer than two steps, a range that is not positive, ascending and finite, or a rho outside
        of 1 … 1000.
    """
    _expect_possible(steps, sigma_min, sigma_max)
    if not 1 <= rho <= 1000:  # noqa: PLR2004 - beyond, the power overflows or rounds all levels to one
        raise ValueError(f"expected rho from 1 to 1000, found {rho}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)] + [0.0]


def log_linear_schedule(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Noise levels as those of :func:`karras_schedule`, but even in ln σ: its limit for large rho.

    :raises ValueError: as there, but for rho.
    """
    _expect_possible(steps, sigma_min, sigma_max)
    ratio = sigma_min / sigma_max
    return [sigma_max * ratio ** (i / (steps - 1)) for i in range(steps)] + [0.0]


def _expect_possible(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps <= 1:
        raise ValueError(f"a schedule needs at least 2 steps, found {steps}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"expected 0 < sigma_min < sigma_max < inf, found {sigma_min} and {sigma_max}")
