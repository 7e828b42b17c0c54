"""Fields whose downscaling is known exactly: the reference that a trained model is measured against.

A field is a mean, a share that follows the terrain, a daily cycle that follows the land, and a Gaussian
random field on a doubly periodic grid, independent from time to time. The coarse field is its block mean, so
that what it leaves open is Gaussian too, in closed form: Gaussian conditioning (Rasmussen & Williams 2006,
*Gaussian Processes for Machine Learning*, Eq. A.6) falls apart into one small problem for each coarse wave
number κ, since block means alias factor² fine waves onto it and leave different κ independent.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from attrs import Attribute, field, frozen
from attrs.validators import ge, gt

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.dataset import upsample, with_halo

Floats = npt.NDArray[np.float64]
Waves = npt.NDArray[np.complex128]

_TERRAIN_SEED, _LAND_SEED = 7001, 7002
"""The landscape is part of the recipe: training and validation share it."""


class _Square(Protocol):
    @property
    def n(self) -> int: ...


def divides(instance: _Square, _attribute: Attribute[int], value: int) -> None:
    """Refuse a factor that leaves no grid of whole coarse cells, two at least along each side."""
    if instance.n % value or instance.n // value < 2:  # noqa: PLR2004 - a grid needs two cells
        raise HookloopError(
            f"a fine grid of {instance.n} cells cannot be made coarser by {value}: "
            "expected a factor that divides it into two or more coarse cells"
        )


@frozen
class Recipe:
    """What the fields are made of."""

    n: int = field(default=32, validator=ge(4))
    """Fine cells along each side."""
    factor: int = field(default=4, validator=[ge(2), divides])
    """Fine cells to a coarse one along each side."""
    slope: float = 3.0
    """Power of the random field falls as k^-slope (density over the plane of wave numbers)."""
    std: float = field(default=3.0, validator=gt(0))
    """Pointwise standard deviation of the random field, K."""
    mean: float = 288.0
    """K, at sea level."""
    lapse: float = -0.0065
    """K a metre of terrain."""
    height: float = 1500.0
    """Highest terrain, m."""
    amplitude: float = 4.0
    """Of the daily cycle over land, K; warmest at 15 UTC."""


def terrain(recipe: Recipe) -> Floats:
    """Terrain height, m: a smooth random field from 0 to ``recipe.height``, ``[lat, lon]``."""
    return np.asarray(recipe.height * _unit(_landscape(recipe, _TERRAIN_SEED)))


def land(recipe: Recipe) -> Floats:
    """Share of land, 0 … 1, with coasts: ``[lat, lon]``."""
    smooth = _landscape(recipe, _LAND_SEED)
    return _unit(1 / (1 + np.exp(-3 * smooth / smooth.std())))


def _landscape(recipe: Recipe, seed: int) -> Floats:
    noise = np.random.default_rng(seed).standard_normal((1, recipe.n, recipe.n))
    (smooth,) = colour(noise, power(recipe))
    return np.asarray(smooth)


def _unit(values: Floats) -> Floats:
    return np.asarray((values - values.min()) / np.ptp(values))


def power(recipe: Recipe) -> Floats:
    """Spectrum of the random field, ``[k lat, k lon]`` in numpy's order; its mean is the variance, K².

    The mean over the domain gets the power of the smallest scale, so that it is small but not certain.
    """
    k = np.fft.fftfreq(recipe.n, 1 / recipe.n)
    squared = k[:, None] ** 2 + k**2
    squared[0, 0] = squared.max()
    spectrum = squared ** (-recipe.slope / 2)
    return np.asarray(spectrum * (recipe.std**2 / spectrum.mean()))


def colour(noise: Floats, spectrum: Floats) -> Floats:
    """White noise ``[…, lat, lon]`` with the *spectrum* instead of a flat one."""
    return np.asarray(np.fft.ifft2(np.sqrt(spectrum) * np.fft.fft2(noise)).real)


def hours_of(n_times: int) -> Floats:
    """Hours of the day, UTC, of hourly times from midnight: ``[time]``."""
    return np.arange(n_times, dtype=np.float64) % 24


def expected(recipe: Recipe, hours: Floats) -> Floats:
    """Give what is known without any coarse field, K: ``[time, lat, lon]``."""
    cycle = recipe.amplitude * np.cos(2 * np.pi * (hours - 15) / 24)
    return np.asarray(recipe.mean + recipe.lapse * terrain(recipe) + cycle[:, None, None] * land(recipe))


def generate(recipe: Recipe, n_times: int, seed: int | list[int]) -> Floats:
    """Hourly fine fields from midnight on, K: ``[time, lat, lon]``."""
    noise = np.random.default_rng(seed).standard_normal((n_times, recipe.n, recipe.n))
    return expected(recipe, hours_of(n_times)) + colour(noise, power(recipe))


def block_mean(fine: Floats, factor: int) -> Floats:
    """Exact means of blocks of factor² cells, ``[…, lat, lon]``."""
    *lead, lat, lon = fine.shape
    return np.asarray(fine.reshape(*lead, lat // factor, factor, lon // factor, factor).mean((-3, -1)))


def transfer(recipe: Recipe) -> Waves:
    """Amplitude with which each fine wave enters the coarse wave it is aliased onto, ``[k lat, k lon]``."""
    k = np.fft.fftfreq(recipe.n, 1 / recipe.n)
    within = np.arange(recipe.factor)
    along = np.exp(2j * np.pi * np.outer(k, within) / recipe.n).mean(1)
    # Taking every factor-th value divides the amplitudes of numpy's transform, a sum, by the factor.
    return np.asarray(along[:, None] * along / recipe.factor**2)


def posterior(recipe: Recipe, coarse: Floats, hours: Floats) -> tuple[Floats, Floats]:
    """Mean and pointwise standard deviation of the fine fields, given the coarse ones.

    :param coarse: block means ``[time, coarse lat, coarse lon]``, K.
    :param hours: of the day, UTC, ``[time]``.
    :returns: mean ``[time, lat, lon]`` and std ``[lat, lon]`` (the same at all times), K.
    """
    gain, coarse_power = _gain(recipe)
    known = expected(recipe, hours)
    waves = np.fft.fft2(coarse - block_mean(known, recipe.factor))
    mean = known + np.fft.ifft2(gain * np.tile(waves, (1, recipe.factor, recipe.factor))).real
    return mean, np.sqrt(power(recipe).mean() - _explained(recipe, gain, coarse_power))


def _gain(recipe: Recipe) -> tuple[Waves, Floats]:
    """Regression of each fine wave on its coarse wave, and the power of the coarse waves."""
    spectrum, amplitude = power(recipe), transfer(recipe)
    coarse_power = _fold(recipe, np.abs(amplitude) ** 2 * spectrum)
    tiled = np.tile(coarse_power, (recipe.factor, recipe.factor))
    return np.asarray(spectrum * amplitude.conj() / tiled), np.asarray(coarse_power.real)


def _fold(recipe: Recipe, waves: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Sum the fine waves that are aliased onto each coarse one."""
    m = recipe.n // recipe.factor
    return np.asarray(waves.reshape(recipe.factor, m, recipe.factor, m).sum((0, 2)))


def _explained(recipe: Recipe, gain: Waves, coarse_power: Floats) -> Floats:
    """Variance of the posterior mean, ``[lat, lon]``: the same in every coarse cell."""
    k = np.fft.fftfreq(recipe.n, 1 / recipe.n)
    cell = np.empty((recipe.factor, recipe.factor))
    for i in range(recipe.factor):
        for j in range(recipe.factor):
            phase = np.exp(2j * np.pi * (k[:, None] * i + k * j) / recipe.n)
            response = np.abs(_fold(recipe, gain * phase)) ** 2
            cell[i, j] = (coarse_power * response).sum() / recipe.n**2
    m = recipe.n // recipe.factor
    return np.tile(cell, (m, m))


def gaussian_crps(mean: Floats, std: Floats, truth: Floats) -> Floats:
    """CRPS of a normal forecast, pointwise (Gneiting et al. 2005, Mon. Weather Rev. 133, 1098, Eq. 5)."""
    z = torch.from_numpy((truth - mean) / std)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    score = z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)
    return np.asarray(std * score.numpy())


def bicubic(coarse: Floats, factor: int) -> Floats:
    """Interpolate as a model's baseline does, which sees a limited area, ``[time, lat, lon]``."""
    return np.asarray(upsample(with_halo(torch.from_numpy(coarse)[:, None]), factor)[:, 0].numpy())


def exact_scores(recipe: Recipe, fine: Floats, coarse: Floats, hours: Floats) -> dict[str, float]:
    """Score the exact answer and the bicubic baseline on *fine* ``[time, lat, lon]``; K except for ratios.

    ``crps`` is what no model can beat but by luck; ``expected_crps`` is its mean over all such data.
    """
    mean, std = posterior(recipe, coarse, hours)
    interpolated = bicubic(coarse, recipe.factor)
    crps = float(gaussian_crps(mean, std, fine).mean())
    rmse = float(np.sqrt(((mean - fine) ** 2).mean()))
    bicubic_mae = float(np.abs(interpolated - fine).mean())
    return {
        "crps": crps,
        "crps_relative": crps / bicubic_mae,
        "expected_crps": float(std.mean()) / math.sqrt(math.pi),
        "rmse": rmse,
        "spread_skill": float(np.sqrt((std**2).mean())) / rmse,
        "bicubic_mae": bicubic_mae,
        "bicubic_rmse": float(np.sqrt(((interpolated - fine) ** 2).mean())),
    }
