"""Rain over mountains: each factor of the linear model by quadrature, the terrain, and what the terrain tells."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from scipy.integrate import quad

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import orographic
from hookloop.plugins.downscaling.orographic import Air, Recipe, linear_rain
from hookloop.plugins.downscaling.synthetic import bicubic, block_mean

HOUR = 3600
UPSLOPE = Air(sensitivity=0.01, depth=0, conversion=0, fallout=0)


def ridges(cells: int, cell: float, waves: tuple[int, int]) -> tuple[np.ndarray, float, float, np.ndarray]:
    """A plane wave of 100 m, its wave numbers, and its phase in each cell."""
    k, l = (2 * np.pi * number / (cells * cell) for number in waves)  # noqa: E741
    y, x = np.mgrid[:cells, :cells] * cell
    phase = k * x + l * y
    return 100 * np.cos(phase), k, l, phase


def test_without_delay_and_depth_it_rains_where_the_air_is_lifted() -> None:
    """The upslope model: C_w times wind times slope, for winds along and across."""
    heights, k, l, phase = ridges(32, 1000, (3, 2))  # noqa: E741
    rain = linear_rain(heights, 1000, (8, -5), UPSLOPE)
    slope = -100 * np.sin(phase)
    np.testing.assert_allclose(rain, HOUR * 0.01 * (8 * k - 5 * l) * slope, atol=1e-9)
    np.testing.assert_allclose(linear_rain(heights, 1000, (l, -k), UPSLOPE), 0, atol=1e-12)


def test_rain_falls_where_the_wind_has_carried_it() -> None:
    """With delays it rains what was lifted upwind, weighted by two exponential waits one after the other."""
    heights, k, _, phase = ridges(32, 1000, (2, 0))
    air = Air(sensitivity=0.01, depth=0, conversion=700, fallout=300)
    rain = linear_rain(heights, 1000, (10, 0), air)

    def waits(s: float) -> float:
        return (math.exp(-s / 700) - math.exp(-s / 300)) / (700 - 300)

    for column in (0, 5, 11):
        here = phase[0, column]
        upwind = quad(
            lambda s, here=here: -100 * k * math.sin(here - 10 * k * s) * waits(s), 0, 20_000, limit=500
        )[0]
        assert rain[0, column] == pytest.approx(HOUR * 0.01 * 10 * upwind, abs=1e-5)


@pytest.mark.parametrize(("waves", "wind"), [(1, 10.0), (1, -10.0), (12, 10.0), (12, -10.0)])
def test_lifting_fades_and_tilts_with_height(waves: int, wind: float) -> None:
    """Rain is C_w / H_w times the integral of w e^(-z/H_w); w by the Scorer parameter N²/U² - k².

    Long waves tilt against the wind with height, short ones fade.
    """
    heights, k, _, phase = ridges(32, 1000, (waves, 0))
    scorer = (0.005 / wind) ** 2 - k**2
    assert (scorer > 0) == (waves == 1)

    def lifted(z: float, here: float) -> float:
        if scorer > 0:
            return -100 * wind * k * math.sin(here + math.copysign(math.sqrt(scorer), wind) * z)
        return -100 * wind * k * math.sin(here) * math.exp(-math.sqrt(-scorer) * z)

    air = Air(sensitivity=0.01, stability=0.005, depth=2500, conversion=0, fallout=0)
    rain = linear_rain(heights, 1000, (wind, 0), air)
    for column in (1, 6):
        integral = quad(
            lambda z, here=phase[0, column]: lifted(z, here) * math.exp(-z / 2500) / 2500,
            0,
            60_000,
            limit=500,
        )[0]
        assert rain[0, column] == pytest.approx(HOUR * 0.01 * integral, abs=1e-6)


def test_the_windward_side_is_wet_and_the_lee_is_dry() -> None:
    """A hill takes as much rain from its lee as it makes upwind; the wind turned round mirrors the rain."""
    y, x = np.mgrid[-32:32, -32:32] * 2000.0
    hill = 1000 * np.exp(-(x**2 + y**2) / 2 / 12_000**2)
    rain = linear_rain(hill, 2000, (12, 0), Air(conversion=300, fallout=300))
    assert abs(rain.mean()) < 1e-12
    assert rain[24:41, 20:32].mean() > 0.3
    assert rain[24:41, 36:48].mean() < -0.3
    turned = linear_rain(hill[::-1, ::-1], 2000, (-12, 0), Air(conversion=300, fallout=300))
    np.testing.assert_allclose(turned[::-1, ::-1], rain, atol=1e-9)


def test_terrain_is_the_elevation_model_north_up() -> None:
    """Each cell is three times the height of the cell of the file that is there, rows from the south."""
    with np.load(Path(mpl.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz") as data:
        elevation, north, south = data["elevation"], float(data["ymin"]), float(data["ymax"])
    assert north > south  # the file's names are the wrong way round: its first row is the northern one
    recipe = Recipe(n=128)
    heights = orographic.terrain(recipe)
    assert (recipe.coarsening, recipe.cell, heights.shape) == (1, 500, (128, 128))
    rows, columns = (344 - 192) // 2 + 32, (403 - 192) // 2 + 32
    np.testing.assert_array_equal(heights[::-1], 3.0 * elevation[rows : rows + 128, columns : columns + 128])
    coarse = orographic.terrain(Recipe(n=32))  # 7 cells of the file in one
    rows, columns = (344 - 336) // 2 + 7 * 8, (403 - 336) // 2 + 7 * 8
    assert coarse[-1, 0] == pytest.approx(3 * elevation[rows : rows + 7, columns : columns + 7].mean())


def test_the_window_is_tapered_and_its_seam_does_not_matter() -> None:
    """The domain keeps its terrain, the edge is flat, and rain in the domain is that of an island in a plain."""
    recipe = Recipe(n=32)
    window, inside = orographic.window(recipe), slice(16, 48)
    terrain = orographic.terrain(recipe)
    np.testing.assert_allclose(window[inside, inside], terrain - terrain.mean())
    assert window.shape == (64, 64)
    assert not window[:8].any()
    assert not window[:, -8:].any()
    assert np.abs(window[8]).max() < 50  # no cliff where the plain ends
    for wind in ((15.0, 0.0), (-8.0, 12.0), (3.0, -14.0)):
        rain = linear_rain(window, recipe.cell, wind, recipe.air)[inside, inside]
        island = linear_rain(np.pad(window, 64), recipe.cell, wind, recipe.air)[80:112, 80:112]
        assert np.sqrt(((rain - island) ** 2).mean()) < 0.03 * island.std()


def test_weather_is_what_was_asked_for() -> None:
    """Rain is dry or wet, never negative; the wind that coarse cells are told differs from the true by eddies."""
    recipe = Recipe(n=16, factor=4, wind=(6.0, 4.0), gusts=5.0, eddies=0.5)
    weather = orographic.generate(recipe, 500, [3, 0])
    assert weather.rain.shape == (500, 16, 16)
    assert weather.rain.min() == 0
    assert 0.2 < (weather.rain == 0).mean() < 0.7
    for wind, mean in ((weather.u, 6.0), (weather.v, 4.0)):
        assert wind.shape == (500, 4, 4)
        assert wind.mean() == pytest.approx(mean, abs=4 * 5 / math.sqrt(500))
        assert wind.mean((1, 2)).std() == pytest.approx(5.0, rel=4 / math.sqrt(1000))
        assert wind.std((1, 2), ddof=1).mean() == pytest.approx(0.5, rel=0.05)
    again = orographic.generate(recipe, 500, [3, 0])
    np.testing.assert_array_equal(again.rain, weather.rain)
    assert (orographic.generate(recipe, 500, [3, 1]).rain != weather.rain).any()


def test_still_or_dry_air_leaves_the_showers_alone() -> None:
    """Without wind nothing is lifted: rain is the background, whatever the terrain."""
    calm = Recipe(n=16, factor=4, wind=(0.0, 0.0), gusts=0.0)
    arid = Recipe(n=16, factor=4, air=Air(sensitivity=0.0))
    np.testing.assert_array_equal(orographic.generate(calm, 5, 1).rain, orographic.generate(arid, 5, 1).rain)
    assert (orographic.generate(calm, 200, 1).rain == 0).mean() == pytest.approx(0.6, abs=0.05)


def explained(terrain: np.ndarray) -> float:
    """Share of the variance within coarse cells that least squares explain in other hours than those fitted.

    They are given interpolated rain, wind, and both times the *terrain* of the cell and the eight around it.
    """
    weather = orographic.generate(Recipe(), 120, 11)
    rain = bicubic(block_mean(weather.rain, 4), 4)
    u, v = (wind.mean((1, 2))[:, None, None] + np.zeros_like(rain) for wind in (weather.u, weather.v))
    around = [np.roll(terrain, shift, (0, 1)) for shift in itertools.product((-1, 0, 1), repeat=2)]
    states = [np.ones_like(rain), u, v, rain, rain * u, rain * v]
    predictors = [rain, *(state * height / 1000 for state in states for height in around)]
    matrix = np.stack([_within(field).ravel() for field in predictors], 1)
    target = _within(weather.rain).ravel()
    half = len(target) // 2
    weights = np.linalg.lstsq(matrix[:half], target[:half], rcond=None)[0]
    missed = target[half:] - matrix[half:] @ weights
    return 1 - float((missed**2).mean() / (target[half:] ** 2).mean())


def _within(field: np.ndarray) -> np.ndarray:
    return field - np.kron(block_mean(field, 4), np.ones((1, 4, 4)))


def test_terrain_tells_what_coarse_fields_do_not() -> None:
    """With the terrain least squares explain much more of the small scales than without, another's is no help."""
    terrain = orographic.terrain(Recipe())
    without = explained(np.zeros_like(terrain))
    assert explained(terrain) > without + 0.1
    assert explained(np.roll(terrain, 16, (0, 1))) < without + 0.02


@pytest.mark.parametrize(("n", "fits"), [(228, True), (230, True), (232, False), (344, False)])
def test_terrain_ends_somewhere(n: int, fits: bool) -> None:  # noqa: FBT001
    """A domain that with its margin is larger than the elevation model is refused, saying what would fit."""
    if fits:
        assert orographic.terrain(Recipe(n=n, factor=2)).shape == (n, n)
    else:
        with pytest.raises(HookloopError, match=f"fine grid of {n} cells .* expected 230 at most"):
            Recipe(n=n, factor=2)


def test_matplotlib_without_its_sample_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matplotlib that was packed without sample data is told of, with the way out."""
    monkeypatch.setattr(mpl, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(HookloopError, match=r"jacksboro_fault_dem\.npz: cannot be read: .* wheels on PyPI"):
        orographic.read_elevation()


@pytest.mark.parametrize("n", [8, 16, 64, 100])
def test_any_size_shows_the_same_landscape(n: int) -> None:
    """More cells show about the same heights in more detail."""
    heights = orographic.terrain(Recipe(n=n, factor=2))
    assert heights.shape == (n, n)
    assert heights.mean() == pytest.approx(orographic.terrain(Recipe()).mean(), rel=0.15)
    assert 3 * 236 <= heights.min() < heights.max() <= 3 * 1076
