"""Lognormal showers: their distribution by formula, against scipy's and against what is generated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import lognorm

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import precipitation
from hookloop.plugins.downscaling.precipitation import Recipe

RECIPES = [Recipe(), Recipe(sigma=0.7, median=1.5, dry=0.4), Recipe(sigma=2.0, median=0.05, dry=0.95)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_distribution_is_that_of_the_lognormal_less_its_threshold(recipe: Recipe) -> None:
    """Share of dry cells, mean and quantiles are those of scipy's lognormal variable above the threshold."""
    variable = lognorm(recipe.sigma, scale=recipe.median)
    threshold = variable.ppf(recipe.dry)
    excess = quad(lambda p: max(variable.ppf(p) - threshold, 0), recipe.dry, 1, limit=200)[0]

    found = precipitation.distribution(recipe)

    assert recipe.threshold == pytest.approx(threshold)
    assert found["dry"] == pytest.approx(variable.cdf(recipe.threshold))
    assert found["mean"] == pytest.approx(excess, rel=1e-4)
    for p in (0.9, 0.99, 0.999, 0.9999):
        assert found[f"quantile_{p:g}"] == pytest.approx(max(variable.ppf(p) - threshold, 0))
    assert precipitation.quantile(recipe, recipe.dry / 2) == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_generated_is_distributed_so(recipe: Recipe) -> None:
    """Share of dry cells, mean and exceedances of the quantiles agree within what so many times can tell."""
    rain = precipitation.generate(recipe, 2000, 3)
    assert rain.shape == (2000, recipe.n, recipe.n)
    assert rain.min() == 0

    shares = {"dry": (rain == 0, recipe.dry), "mean": (rain, precipitation.mean(recipe))}
    for p in (0.96, 0.99, 0.999):
        shares[f"above {p}"] = (rain > precipitation.quantile(recipe, p), 1 - p)
    for name, (values, expected) in shares.items():
        by_time = values.mean((1, 2), dtype=float)  # times are independent, cells are not
        error = by_time.std(ddof=1) / math.sqrt(len(by_time))
        assert abs(by_time.mean() - expected) < 4 * error, name
        assert error < 0.15 * expected, name  # or the comparison would say little


def test_logarithm_is_the_random_field_with_its_spectrum() -> None:
    """Without a threshold the logarithm is Gaussian with the given std, mean, and a spectrum that falls as k^-slope."""
    recipe = Recipe(n=16, factor=4, slope=3.0, sigma=1.2, median=0.4, dry=1e-9)
    logarithm = np.log(precipitation.generate(recipe, 4000, 5) + recipe.threshold)
    normal = (logarithm - math.log(0.4)) / 1.2
    np.testing.assert_allclose(normal.std(0), 1, atol=0.06)
    assert abs(normal.mean()) < 0.01
    power = (np.abs(np.fft.fft2(normal)) ** 2).mean(0)
    assert power[0, 2] / power[0, 1] == pytest.approx(2**-3, rel=0.15)
    assert power[4, 0] / power[2, 0] == pytest.approx(2**-3, rel=0.15)


def test_seeds_tell_fields_apart() -> None:
    """Equal seeds give equal fields, others others, and so do times."""
    one, same, other = (precipitation.generate(Recipe(), 2, seed) for seed in ([1, 0], [1, 0], [1, 1]))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (one[0] != one[1]).any()


@pytest.mark.parametrize("dry", [0.0, 1.0, -0.1, math.nan])
def test_a_share_of_dry_cells_lies_between_none_and_all(dry: float) -> None:
    """No threshold makes all cells wet, none all dry."""
    with pytest.raises(ValueError, match="dry"):
        Recipe(dry=dry)


def test_factor_must_divide() -> None:
    """A grid that the factor does not divide is refused."""
    with pytest.raises(HookloopError, match="fine grid of 32 cells cannot be made coarser by 5"):
        Recipe(n=32, factor=5)
