"""Noise levels by their formulae."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from hookloop.diffusion.schedules import karras_schedule, log_linear_schedule

SCHEDULE = (18, 0.002, 80.0, 7.0)


def test_schedule_by_its_formula() -> None:
    """It descends from sigma_max over Eq. 5 to sigma_min, and ends in exactly 0."""
    sigmas = karras_schedule(*SCHEDULE)
    ramp = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18) ** 7
    np.testing.assert_allclose(sigmas[:-1], ramp, rtol=1e-12)
    assert sigmas[0] == pytest.approx(80.0)
    assert sigmas[-2] == pytest.approx(0.002)
    assert sigmas[-1] == 0.0
    assert all(a > b for a, b in pairwise(sigmas))
    assert len(sigmas) == 19


@pytest.mark.parametrize(
    ("steps", "low", "high", "message"),
    [
        (1, 0.002, 80.0, "at least 2 steps, found 1"),
        (18, 0.0, 80.0, "0 < sigma_min"),
        (18, 80.0, 0.002, "found 80.0 and 0.002"),
        (18, math.nan, 80.0, "0 < sigma_min"),
        (18, 0.002, math.inf, "found 0.002 and inf"),
    ],
)
def test_impossible_schedules_are_refused(steps: int, low: float, high: float, message: str) -> None:
    """Too few steps and ranges that do not ascend say what was found."""
    with pytest.raises(ValueError, match=message):
        karras_schedule(steps, low, high, 7.0)
    with pytest.raises(ValueError, match=message):
        log_linear_schedule(steps, low, high)


def test_log_linear_levels_have_one_ratio() -> None:
    """From sigma_max to sigma_min in equal ratios, then 0."""
    sigmas = log_linear_schedule(5, 0.01, 100.0)
    np.testing.assert_allclose(sigmas, [100.0, 10.0, 1.0, 0.1, 0.01, 0.0], rtol=1e-12)


@pytest.mark.parametrize("rho", [0.001, 0.0, -7.0, 1e4, math.inf, math.nan])
def test_exponents_that_overflow_or_round_levels_to_one_are_refused(rho: float) -> None:
    """Before any power is taken, with what was found."""
    with pytest.raises(ValueError, match=f"rho from 1 to 1000, found {rho}"):
        karras_schedule(18, 0.002, 80.0, rho)


def test_log_linear_is_the_limit_of_large_rho() -> None:
    """What Eq. 5 lacks to equal ratios goes with 1/rho: a tenth of it with ten times the rho."""
    limit = np.log(log_linear_schedule(9, 0.002, 80.0)[1:-2])
    gaps = [np.log(karras_schedule(9, 0.002, 80.0, rho)[1:-2]) - limit for rho in (100.0, 1000.0)]
    np.testing.assert_allclose(gaps[1], gaps[0] / 10, rtol=0.05)
    assert np.abs(gaps[1]).max() < 0.02
