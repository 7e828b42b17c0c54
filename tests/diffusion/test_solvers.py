"""The samplers against an exact Gaussian denoiser, with scalar recursions in float64 as the oracle."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from hookloop.diffusion.solvers import dpmpp_2m, heun, karras_schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Recursion = Callable[[Sequence[float], float], float]
    Solver = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Sequence[float]], Tensor]

SCHEDULE = (18, 0.002, 80.0, 7.0)


class Gaussian:
    """The exact denoiser λ/(λ + σ²) x of fields of variance λ; it counts its evaluations."""

    def __init__(self, variance: float = 1.0) -> None:
        self.variance = variance
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise, with one noise level for each field."""
        assert sigma.shape == x.shape[:1]
        self.sigmas.append(sigma[0].item())
        return x * (self.variance / (self.variance + sigma**2)).view(-1, 1, 1, 1)


def heun_recursion(sigmas: Sequence[float], variance: float) -> float:
    """Gain of Heun's method: dx/dσ = σ/(λ + σ²) x by the trapezoid of Euler's end, and Euler to 0."""
    gain = sigmas[0]
    for a, b in pairwise(sigmas):
        f = a / (variance + a * a)
        euler = 1 + (b - a) * f
        gain *= euler if b == 0 else 1 + (b - a) / 2 * (f + b / (variance + b * b) * euler)
    return gain


def dpmpp_recursion(sigmas: Sequence[float], variance: float) -> float:
    """Gain of the two-step method: in t = -ln σ the data prediction is extrapolated to the half step."""
    x, previous = sigmas[0], None
    for i, (a, b) in enumerate(pairwise(sigmas)):
        data = variance / (variance + a * a) * x
        if b == 0:
            return data
        slope = 0.0
        if previous is not None:
            slope = (data - previous) / math.log(sigmas[i - 1] / a)
        x = b / a * x + (1 - b / a) * (data + slope * math.log(a / b) / 2)
        previous = data
    return x


SOLVERS = [
    pytest.param(heun, heun_recursion, id="heun"),
    pytest.param(dpmpp_2m, dpmpp_recursion, id="dpmpp_2m"),
]


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
    ],
)
def test_impossible_schedules_are_refused(steps: int, low: float, high: float, message: str) -> None:
    """Too few steps and ranges that do not ascend say what was found."""
    with pytest.raises(ValueError, match=message):
        karras_schedule(steps, low, high, 7.0)


@pytest.mark.parametrize(("solver", "recursion"), SOLVERS)
@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0])
def test_solvers_follow_the_scalar_recursion(solver: Solver, recursion: Recursion, variance: float) -> None:
    """Every pixel is the noise times the recursion's gain, to float32."""
    noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    sigmas = karras_schedule(*SCHEDULE)
    x = solver(Gaussian(variance), noise, sigmas)
    torch.testing.assert_close(x.double(), noise.double() * recursion(sigmas, variance), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("solver", "ratio", "evaluations"), [(heun, 1.045, 35), (dpmpp_2m, 1.051, 18)], ids=["heun", "dpmpp_2m"]
)
def test_eighteen_steps_overestimate_the_deviation_by_so_much(
    solver: Solver, ratio: float, evaluations: int
) -> None:
    """The known bias of the default schedule for λ = 1, at the known number of evaluations."""
    denoiser = Gaussian()
    x = solver(denoiser, torch.ones(1, 1, 1, 1), karras_schedule(*SCHEDULE))
    assert x.item() == pytest.approx(ratio, abs=5e-4)
    assert len(denoiser.sigmas) == evaluations
    assert min(denoiser.sigmas) == pytest.approx(0.002)


@pytest.mark.parametrize(("solver", "recursion"), SOLVERS)
def test_halving_the_step_quarters_the_error(solver: Solver, recursion: Recursion) -> None:
    """Second order: between two positive noise levels the exact gain is √((λ + σ_b²)/(λ + σ_a²))."""
    a, b = 5.0, 1.0
    exact = a * math.sqrt((1 + b * b) / (1 + a * a))
    errors = []
    for steps in (16, 32, 64):
        sigmas = [a * (b / a) ** (i / steps) for i in range(steps + 1)]
        gain = solver(Gaussian(), torch.ones(1, 1, 1, 1), sigmas).item()
        assert gain == pytest.approx(recursion(sigmas, 1.0), rel=3e-6)
        errors.append(abs(gain - exact))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("solver", [heun, dpmpp_2m])
def test_a_field_does_not_depend_on_its_neighbours_in_the_batch(solver: Solver) -> None:
    """Each field is sampled as if it were alone, and half-precision noise becomes a float32 field."""
    noise = torch.randn(3, 1, 4, 4)
    sigmas = karras_schedule(*SCHEDULE)
    alone = solver(Gaussian(), noise[1:2], sigmas)
    assert torch.equal(solver(Gaussian(), noise, sigmas)[1:2], alone)
    assert solver(Gaussian(), noise.half(), sigmas).dtype == torch.float32
