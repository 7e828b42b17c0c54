"""Rain that is mostly absent and sometimes heavy: a lognormal field above a threshold.

R = max(exp(σG + μ) - c, 0) for a standard normal random field G, independent from time to time. What a
cell's rain is distributed like is known in closed form: how often it is dry, its mean and its quantiles. What
a coarse field leaves open is not, since the block mean of R is no linear function of G.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, gt, lt

from hookloop.plugins.downscaling import synthetic
from hookloop.plugins.downscaling.synthetic import Floats, divides

_STANDARD = NormalDist()
_QUANTILES = (0.9, 0.99, 0.999, 0.9999)


@frozen
class Recipe:
    """What the rain is made of."""

    n: int = field(default=32, validator=ge(4))
    """Fine cells along each side."""
    factor: int = field(default=4, validator=[ge(2), divides])
    """Fine cells to a coarse one along each side."""
    slope: float = 3.0
    """Power of G falls as k^-slope (density over the plane of wave numbers)."""
    sigma: float = field(default=1.2, validator=gt(0))
    """Standard deviation of the logarithm: how heavy the upper tail is."""
    median: float = field(default=0.4, validator=gt(0))
    """exp(μ), mm/h: median of the lognormal variable from which the threshold is taken off."""
    dry: float = field(default=0.7, validator=[gt(0), lt(1)])
    """Probability that a cell is dry."""

    @property
    def threshold(self) -> float:
        """c, mm/h: that quantile of the lognormal variable below which a cell is dry."""
        return self.median * math.exp(self.sigma * _STANDARD.inv_cdf(self.dry))


def generate(recipe: Recipe, n_times: int, seed: int | list[int] | np.random.Generator) -> Floats:
    """Fine fields of rain, mm/h: ``[time, lat, lon]``."""
    noise = np.random.default_rng(seed).standard_normal((n_times, recipe.n, recipe.n))
    standard = synthetic.Recipe(n=recipe.n, factor=recipe.factor, slope=recipe.slope, std=1.0)
    lognormal = recipe.median * np.exp(recipe.sigma * synthetic.colour(noise, synthetic.power(standard)))
    return np.asarray(np.maximum(lognormal - recipe.threshold, 0))


def quantile(recipe: Recipe, probability: float) -> float:
    """Rain of a cell that is exceeded with one minus this *probability*, mm/h."""
    lognormal = recipe.median * math.exp(recipe.sigma * _STANDARD.inv_cdf(probability))
    return max(lognormal - recipe.threshold, 0.0)


def mean(recipe: Recipe) -> float:
    """Expected rain of a cell, mm/h.

    E max(X - c, 0) of a lognormal X is the price of an option to buy (Black & Scholes 1973, J. Polit. Econ. 81, 637,
    Eq. 13, without interest): e^(μ+σ²/2) Φ(σ - z) - c Φ(-z), where P(X < c) = Φ(z).
    """
    z = _STANDARD.inv_cdf(recipe.dry)
    whole = recipe.median * math.exp(recipe.sigma**2 / 2)
    return whole * _STANDARD.cdf(recipe.sigma - z) - recipe.threshold * _STANDARD.cdf(-z)


def distribution(recipe: Recipe) -> dict[str, float]:
    """What is known about the rain of a cell: probability of none, mean and quantiles, mm/h."""
    tail = {f"quantile_{p:g}": quantile(recipe, p) for p in _QUANTILES}
    return {"dry": recipe.dry, "mean": mean(recipe), **tail}
