"""The exact answer for Gaussian modes, and noise that belongs to members."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hookloop.diffusion.gaussian import generated_variance, independent_modes
from hookloop.diffusion.noise import MemberNoise
from hookloop.diffusion_options import SolverConfig

MODES = [1.0, 0.1, 0.01, 1e-3]


def deviation(modes: list[float] = MODES, **options: object) -> list[float]:
    """Generated standard deviation over the true one, mode by mode."""
    sampler = SolverConfig(**options)  # type: ignore[arg-type]
    variance = torch.tensor(modes, dtype=torch.float64)
    return (generated_variance(sampler.sample, variance, sampler.draws) / variance).sqrt().tolist()


def worst(**options: object) -> float:
    """Largest bias of the power over variances from 0.001 to 10, in percent."""
    modes = torch.logspace(-3, 1, 81, dtype=torch.float64).tolist()
    return max((100 * (ratio**2 - 1) for ratio in deviation(modes, **options)), key=abs)


def test_the_denoiser_is_the_conditional_mean() -> None:
    """λ/(λ + σ²) x is what linear regression of the clean on the noisy values gives."""
    generator = torch.Generator().manual_seed(0)
    variance = torch.tensor([4.0, 0.25], dtype=torch.float64)
    clean = torch.randn(200_000, 2, generator=generator, dtype=torch.float64) * variance.sqrt()
    noisy = clean + 0.7 * torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    slope = (clean * noisy).mean(0) / noisy.square().mean(0)
    torch.testing.assert_close(independent_modes(variance)(torch.ones(2), 0.7), slope, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("options", "ratios", "digits"),
    [
        ({"solver": "heun"}, [1.045, 1.064, 1.090, 1.127], 3),
        ({"solver": "heun", "sigma_max": 800.0}, [1.107, 1.153, 1.220, 1.309], 3),
        ({"solver": "heun", "steps": 9}, [1.23, 1.34, 1.45, 1.74], 2),
        ({"solver": "heun", "steps": 36}, [1.010, 1.014, 1.019, 1.026], 3),
        ({"steps": 12}, [1.12, 1.13, 1.11, 1.01], 2),
        ({}, [1.051, 1.070, 1.081, 1.059], 3),
        ({"steps": 35}, [1.011, 1.016, 1.022, 1.026], 3),
        ({"sigma_max": 800.0}, [1.115, 1.130, 1.105, 1.015], 3),
        ({"solver": "euler", "steps": 9}, [0.73, 0.68, 0.63, 0.61], 2),
        ({"solver": "euler"}, [0.86, 0.84, 0.81, 0.78], 2),
    ],
    ids=str,
)
def test_samplers_in_use_are_wrong_by_so_much(
    options: dict[str, object], ratios: list[float], digits: int
) -> None:
    """A table that was worked out independently, at ρ = 7 and λ = 1, 0.1, 0.01, 0.001, to the digits it has."""
    assert deviation(**options, rho=7.0) == pytest.approx(ratios, abs=0.52 * 10**-digits)


@pytest.mark.parametrize(
    ("options", "percent"),
    [
        ({"rho": 7.0}, 17),
        ({"rho": 12.0}, 9.6),
        ({"solver": "heun", "rho": 7.0}, 27),
        ({"solver": "heun", "rho": 12.0}, 18),
    ],
    ids=str,
)
def test_a_larger_rho_is_better_at_few_evaluations(options: dict[str, object], percent: float) -> None:
    """The worst bias of the power over four decades, as it was worked out independently."""
    assert worst(**options) == pytest.approx(percent, abs=0.5)


def test_levels_even_in_the_logarithm_are_better_still() -> None:
    """At 18 evaluations a quarter of the bias of ρ = 7, and less than 5 %: hence the default."""
    assert worst(schedule="log_linear") < min(5.0, worst(rho=7.0) / 3)
    assert worst() == worst(schedule="log_linear")


@pytest.mark.parametrize(
    "options",
    [{"solver": "heun", "churn": 4.0}, {"solver": "dpmpp_2m_sde"}, {"solver": "dpmpp_2m_sde", "eta": 0.5}],
    ids=str,
)
def test_the_variance_of_a_stochastic_sampler_is_that_of_its_fields(options: dict[str, object]) -> None:
    """Worked out without a random number it is what 40,000 random numbers find, to five standard errors."""
    sampler = SolverConfig(steps=8, **options)  # type: ignore[arg-type]
    variance = torch.tensor(0.5, dtype=torch.float64)
    exact = generated_variance(sampler.sample, variance, sampler.draws)
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(40_000, generator=generator, dtype=torch.float64)

    found = sampler.sample(independent_modes(variance), draw(), draw)
    assert found.var().item() == pytest.approx(exact.item(), rel=5 * math.sqrt(2 / 40_000))


def test_the_sampler_asks_as_often_as_it_says() -> None:
    """Evaluations of the denoiser, and draws of noise."""
    for options in (
        {"solver": "euler"},
        {"solver": "heun"},
        {"solver": "heun", "churn": 1.0},
        {"solver": "dpmpp_2m"},
        {"solver": "dpmpp_2m_sde"},
        {"solver": "dpmpp_2m_sde", "eta": 0.0},
    ):
        sampler = SolverConfig(steps=7, **options)  # type: ignore[arg-type]
        asked: list[float] = []
        drawn: list[int] = []

        def denoise(x: Tensor, sigma: float, asked: list[float] = asked) -> Tensor:
            asked.append(sigma)
            return 0.5 * x

        def draw(drawn: list[int] = drawn) -> Tensor:
            drawn.append(0)
            return torch.zeros(1, 1, 2, 2)

        sampler.sample(denoise, torch.zeros(1, 1, 2, 2), draw)
        assert len(asked) == sampler.evaluations
        assert len(drawn) <= sampler.draws <= len(drawn) + 1


def test_each_member_has_a_stream_of_its_own() -> None:
    """The first and the second draw of a member are the same with others beside it, and differ."""
    together = MemberNoise([1, 2, 3], (2, 4, 4), torch.device("cpu"))
    alone = MemberNoise([2], (2, 4, 4), torch.device("cpu"))
    for _ in range(2):
        assert torch.equal(together()[1:2], alone())
    assert not torch.equal(together(), together())
    generator = torch.Generator().manual_seed(2)
    assert torch.equal(MemberNoise([2], (3,), torch.device("cpu"))()[0], torch.randn(3, generator=generator))
