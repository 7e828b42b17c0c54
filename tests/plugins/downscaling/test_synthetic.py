from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import synthetic
from hookloop.plugins.downscaling.synthetic import Recipe


def dense(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of all cells, summed cosine by cosine, and the matrix of block means."""
    n, factor = recipe.n, recipe.factor
    spectrum = synthetic.power(recipe)
    lag = np.arange(n)[:, None] - np.arange(n)
    covariance = np.zeros((n, n, n, n))
    for a, b in itertools.product(range(n), repeat=2):
        phase = 2 * np.pi / n * (a * lag[:, None, :, None] + b * lag[None, :, None, :])
        covariance += spectrum[a, b] / n**2 * np.cos(phase)
    m = n // factor
    blocks = np.zeros((m, m, n, n))
    for i, j in itertools.product(range(m), repeat=2):
        blocks[i, j, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor] = 1 / factor**2
    return covariance.reshape(n * n, n * n), blocks.reshape(m * m, n * n)


@pytest.mark.parametrize("factor", [2, 4])
def test_posterior_is_that_of_dense_linear_algebra(factor: int) -> None:
    """Mean and std equal those of conditioning all cells on all block means at once."""
    recipe = Recipe(n=8, factor=factor)
    hours = np.array([0.0, 7.0, 15.0])
    coarse = 285 + np.random.default_rng(1).standard_normal((3, 8 // factor, 8 // factor))
    covariance, blocks = dense(recipe)
    gain = covariance @ blocks.T @ np.linalg.inv(blocks @ covariance @ blocks.T)
    known = synthetic.expected(recipe, hours).reshape(3, -1)
    expected_mean = known + (coarse.reshape(3, -1) - known @ blocks.T) @ gain.T
    expected_variance = np.diag(covariance - gain @ blocks @ covariance)
    mean, std = synthetic.posterior(recipe, coarse, hours)
    np.testing.assert_allclose(mean.reshape(3, -1), expected_mean, atol=1e-8, rtol=0)
    np.testing.assert_allclose(std.reshape(-1), np.sqrt(expected_variance), atol=1e-8, rtol=0)


def test_block_mean_of_the_posterior_is_the_coarse_field() -> None:
    """What is certain is kept: the mean of the exact answer over a coarse cell is that cell."""
    recipe = Recipe(n=16, factor=4)
    coarse = 285 + np.random.default_rng(2).standard_normal((2, 4, 4))
    mean, _ = synthetic.posterior(recipe, coarse, np.array([3.0, 4.0]))
    np.testing.assert_allclose(synthetic.block_mean(mean, 4), coarse, atol=1e-9)


def test_variance_of_the_fields_is_the_recipe() -> None:
    """Around what is expected, fields have the pointwise std of the recipe and no mean."""
    recipe = Recipe(n=16, factor=4, std=2.0)
    rest = synthetic.generate(recipe, 2000, 3) - synthetic.expected(recipe, synthetic.hours_of(2000))
    np.testing.assert_allclose(rest.std(0), 2.0, rtol=0.1)
    assert np.abs(rest.mean(0)).max() < 5 * 2 / math.sqrt(2000)


def test_spectrum_falls_as_asked() -> None:
    """Power at twice the wave number is 2^-slope of it, and its mean is the variance."""
    spectrum = synthetic.power(Recipe(n=16, factor=4, slope=3, std=2))
    assert spectrum[0, 4] / spectrum[0, 2] == pytest.approx(1 / 8)
    assert spectrum.mean() == pytest.approx(4)
    assert spectrum.min() > 0


def test_day_is_warmest_over_land_at_three() -> None:
    """The daily cycle is a cosine with its top at 15 UTC, scaled by the land, above lapse times terrain."""
    recipe = Recipe(n=16, factor=4, amplitude=4.0, mean=288.0, lapse=-0.0065)
    fields = synthetic.expected(recipe, np.array([15.0, 3.0, 9.0]))
    land = synthetic.land(recipe)
    np.testing.assert_allclose(fields[0] - fields[1], 8 * land)
    np.testing.assert_allclose(fields[2], 288 - 0.0065 * synthetic.terrain(recipe), atol=1e-9)
    assert (land.min(), land.max()) == (0, 1)
    assert (synthetic.terrain(recipe).min(), synthetic.terrain(recipe).max()) == (0, 1500)


def test_crps_of_a_normal_is_the_integral() -> None:
    """The closed form equals the integral of (F - 1{x ≥ y})² over x."""
    x = np.linspace(-20, 30, 200_000)
    for mean, std, truth in ((0.0, 1.0, 0.0), (1.0, 2.0, 4.5), (-1.0, 0.5, -2.0)):
        integral = ((norm.cdf(x, mean, std) - (x >= truth)) ** 2).sum() * (x[1] - x[0])
        closed = synthetic.gaussian_crps(np.array([mean]), np.array([std]), np.array([truth]))
        assert closed[0] == pytest.approx(integral, abs=5e-4)


def test_exact_answer_is_calibrated_and_beats_bicubic() -> None:
    """On data of the recipe, spread equals error, CRPS is what theory expects, and bicubic is worse."""
    recipe = Recipe(n=32, factor=4)
    fine = synthetic.generate(recipe, 200, 4)
    scores = synthetic.exact_scores(recipe, fine, synthetic.block_mean(fine, 4), synthetic.hours_of(200))
    assert scores["spread_skill"] == pytest.approx(1, abs=0.02)
    assert scores["crps"] == pytest.approx(scores["expected_crps"], rel=0.02)
    assert scores["rmse"] < scores["bicubic_rmse"]
    assert scores["crps"] < scores["bicubic_mae"]
    assert scores["crps_relative"] == pytest.approx(scores["crps"] / scores["bicubic_mae"])


@pytest.mark.parametrize(("n", "factor"), [(32, 5), (8, 8)])
def test_factor_must_divide(n: int, factor: int) -> None:
    """A grid that the factor does not divide into two cells or more is refused."""
    with pytest.raises(HookloopError, match=f"fine grid of {n} cells cannot be made coarser by {factor}"):
        Recipe(n=n, factor=factor)
