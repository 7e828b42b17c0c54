"""Rain that mountains make: the linear model of Smith & Barstad 2004 (J. Atmos. Sci. 61, 1377) on real terrain.

Wind blows moist air over the terrain, which lifts it in the form of mountain waves; what condenses is carried on while
it turns into rain and falls. All of it is linear, so that each wave of the terrain has its own share of rain. A
background of showers is added, and what is below zero is cut off: the lee is dry.

The terrain is the elevation model around Jacksboro, Tennessee, that matplotlib ships as sample data, with cells of 3″.
Mountain waves need more room than its 30 km: cells are stretched to 500 m and heights multiplied by 3, so that
slopes are about half the real ones. More cells show much the same landscape in more detail.

A wave model is periodic, the terrain is not. So the terrain is tapered to its mean height within a margin of a
quarter of the domain, a plain as wide is put around that, and of the rain only the domain inside is taken. What
still comes round is a few percent of what the domain makes itself.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from attrs import Attribute, field, frozen
from attrs.validators import ge

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import precipitation
from hookloop.plugins.downscaling.synthetic import Floats, Waves, block_mean, divides

_FILE = "jacksboro_fault_dem.npz"
_ROWS = 344
"""Of the elevation model; it has more columns."""
_CELL = 500.0
"""What its cells, 90 m, are stretched to, m."""
_HEIGHTS = 3.0
"""What its heights are multiplied by."""
_HOUR = 3600.0


@frozen
class Air:
    """The parameters of Smith & Barstad 2004, with values typical of the middle latitudes."""

    sensitivity: float = 0.008
    """C_w, of rain to uplift, where the air is saturated, kg m⁻³."""
    stability: float = 0.005
    """N_m, moist buoyancy frequency, s⁻¹."""
    depth: float = 2500.0
    """H_w, of the moist layer, m."""
    conversion: float = 500.0
    """τ_c, time in which cloud water turns into rain, s."""
    fallout: float = 500.0
    """τ_f, time in which rain falls, s."""


def _fits(_instance: Recipe, _attribute: Attribute[int], value: int) -> None:
    most = max(n for n in range(_ROWS) if n + 2 * _margin(n) <= _ROWS)
    if value > most:
        raise HookloopError(
            f"a fine grid of {value} cells is more than the terrain has: expected {most} at most"
        )


def _margin(n: int) -> int:
    return n // 4


@frozen
class Recipe:
    """What the rain is made of."""

    n: int = field(default=32, validator=[ge(4), _fits])
    """Fine cells along each side."""
    factor: int = field(default=4, validator=[ge(2), divides])
    """Fine cells to a coarse one along each side."""
    air: Air = field(factory=Air)
    wind: tuple[float, float] = (6.0, 4.0)
    """Mean wind eastwards and northwards, m/s."""
    gusts: float = 5.0
    """Standard deviation of each component from time to time, m/s; it is the same everywhere."""
    eddies: float = 0.5
    """Standard deviation of what coarse cells are told of it from what it is, m/s."""
    background: float = 0.8
    """Median of the lognormal showers, mm/h: see :mod:`.precipitation`."""

    @property
    def margin(self) -> int:
        """Cells around the domain."""
        return _margin(self.n)

    @property
    def coarsening(self) -> int:
        """Cells of the elevation model to a fine one along each side."""
        return _ROWS // (self.n + 2 * self.margin)

    @property
    def cell(self) -> float:
        """Size of a fine cell, m."""
        return _CELL * self.coarsening

    @property
    def showers(self) -> precipitation.Recipe:
        """The background: smoother than showers alone, so that small scales are the terrain's."""
        return precipitation.Recipe(
            n=self.n, factor=self.factor, slope=4.0, sigma=0.7, median=self.background, dry=0.6
        )


@frozen(eq=False)
class Weather:
    """The fields of some hours."""

    rain: Floats
    """``[time, lat, lon]``, mm/h."""
    u: Floats
    """Wind eastwards as coarse cells have it, ``[time, coarse lat, coarse lon]``, m/s."""
    v: Floats
    """Northwards."""


def generate(recipe: Recipe, n_times: int, seed: int | list[int] | np.random.Generator) -> Weather:
    """Draw wind, humidity and background of each time, independent of the others, and let it rain."""
    random = np.random.default_rng(seed)
    wind = np.array(recipe.wind) + recipe.gusts * random.standard_normal((n_times, 2))
    humidity = random.uniform(0, 1, n_times)
    rain = precipitation.generate(recipe.showers, n_times, random)
    heights = window(recipe)
    for total, (u, v), share in zip(rain, wind, humidity, strict=True):
        lifted = share * linear_rain(heights, recipe.cell, (u, v), recipe.air)
        total += _middle(lifted, recipe.n)  # noqa: PLW2901 - in place
    cells = recipe.n // recipe.factor
    u, v = wind.T[:, :, None, None] + recipe.eddies * random.standard_normal((2, n_times, cells, cells))
    return Weather(np.maximum(rain, 0), u, v)


def linear_rain(heights: Floats, cell: float, wind: tuple[float, float], air: Air) -> Floats:
    """Rain of saturated air over periodic terrain, without background and before anything is cut off.

    The transfer function is Smith & Barstad 2004, Eq. 49: C_w iσ / [(1 - i m H_w)(1 + iστ_c)(1 + iστ_f)], where
    σ = Uk + Vl is the intrinsic frequency.

    :param heights: ``[y, x]``, m.
    :param cell: size of a cell, m.
    :param wind: eastwards and northwards, m/s.
    :returns: ``[y, x]``, mm/h, with mean 0: what falls somewhere is missing elsewhere.
    """
    l, k = np.meshgrid(*(2 * np.pi * np.fft.fftfreq(n, cell) for n in heights.shape), indexing="ij")  # noqa: E741
    sigma = wind[0] * k + wind[1] * l
    uplift = air.sensitivity * 1j * sigma / (1 - 1j * air.depth * vertical(k, l, sigma, air.stability))
    response = uplift / ((1 + 1j * sigma * air.conversion) * (1 + 1j * sigma * air.fallout))
    return np.asarray(_HOUR * np.fft.ifft2(response * np.fft.fft2(heights)).real)


def vertical(k: Floats, l: Floats, sigma: Floats, stability: float) -> Waves:  # noqa: E741
    """Vertical wave number m, m⁻¹: Smith et al. 2005 (J. Atmos. Sci. 62, 177), Eq. 6, without rotation.

    It has the sign of σ where waves carry energy upwards, is imaginary where they decay with height, and 0 where
    σ is 0 and nothing is lifted.
    """
    moving = np.where(sigma == 0, 1.0, sigma)
    squared = (stability**2 / moving**2 - 1) * (k**2 + l**2)
    root = np.sqrt(np.abs(squared))
    return np.where(sigma == 0, 0, np.where(squared > 0, np.sign(sigma) * root, 1j * root))


def terrain(recipe: Recipe) -> Floats:
    """Height of the domain, m: ``[lat, lon]``."""
    return _middle(_heights(recipe), recipe.n)


def window(recipe: Recipe) -> Floats:
    """Heights above the mean of the domain, m: the domain in the middle, a margin, a plain of 0, ``[y, x]``."""
    heights = _heights(recipe) - terrain(recipe).mean()
    rise = np.sin(np.pi / 2 * (np.arange(recipe.margin) + 0.5) / recipe.margin) ** 2
    taper = np.concatenate([rise, np.ones(recipe.n), rise[::-1]])
    return np.pad(heights * taper[:, None] * taper, recipe.margin)


def _middle(values: Floats, n: int) -> Floats:
    """Take the *n* by *n* cells in the middle of ``[y, x]``."""
    first = (len(values) - n) // 2
    return values[first : first + n, first : first + n]


def _heights(recipe: Recipe) -> Floats:
    """Cut domain and margin out of the middle of the elevation model."""
    elevation = read_elevation()
    cells = recipe.n + 2 * recipe.margin
    south, west = ((n - cells * recipe.coarsening) // 2 for n in elevation.shape)
    size = cells * recipe.coarsening
    return _HEIGHTS * block_mean(elevation[south : south + size, west : west + size], recipe.coarsening)


def read_elevation() -> Floats:
    """Heights of the elevation model that comes with matplotlib, m, south to north: ``[lat, lon]``.

    :raises HookloopError: where this matplotlib has come without its sample data.
    """
    path = Path(mpl.get_data_path()) / "sample_data" / _FILE
    try:
        with np.load(path) as data:
            north_to_south = data["elevation"]
    except OSError as error:
        raise HookloopError(
            f"{path}: cannot be read: {error.strerror}; expected the sample data of matplotlib, which its wheels on "
            "PyPI have: reinstall it from there, or make data of another kind"
        ) from error
    return np.asarray(north_to_south[::-1], np.float64)
