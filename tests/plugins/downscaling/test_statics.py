from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.pairs import Grid
from hookloop.plugins.downscaling.statics import StaticConfig, load_statics

if TYPE_CHECKING:
    from pathlib import Path

GRID = Grid(np.array([50.25, 50.75, 51.25]), np.array([-0.75, -0.25, 0.25, 0.75]))
HEIGHT = np.arange(12.0).reshape(3, 4) ** 2


def save(path: Path, values: np.ndarray, lat: np.ndarray, lon: np.ndarray) -> str:
    """Write one static field."""
    data = xr.Dataset({"z": (("lat", "lon"), values)}, {"lat": lat, "lon": lon})
    data.to_netcdf(path, engine="h5netcdf")
    return str(path)


def test_normalised_and_turned_to_the_grid(tmp_path: Path) -> None:
    """A larger file, north first and from 0 to 360, gives the cells of the grid with mean 0 and std 1."""
    lat = np.arange(52.25, 49.5, -0.5)
    lon = np.arange(0.25, 360, 0.5)
    values = np.full((len(lat), len(lon)), 999.0)
    rows = [int(np.flatnonzero(lat == a)[0]) for a in GRID.latitude]
    columns = [int(np.flatnonzero(lon == b)[0]) for b in GRID.longitude % 360]
    values[np.ix_(rows, columns)] = HEIGHT
    path = save(tmp_path / "z.nc", values, lat, lon)
    (loaded,) = load_statics([StaticConfig(path, "z")], GRID)
    np.testing.assert_allclose(loaded, (HEIGHT - HEIGHT.mean()) / HEIGHT.std(), rtol=1e-5, atol=1e-6)


def test_constant_field_is_zero(tmp_path: Path) -> None:
    """A field that does not vary says nothing, and does not divide by zero."""
    path = save(tmp_path / "z.nc", np.full((3, 4), 0.1), GRID.latitude, GRID.longitude)
    assert load_statics([StaticConfig(path, "z")], GRID).tolist() == [[[0.0] * 4] * 3]


def test_no_statics() -> None:
    """Without statics there are zero channels of the right size."""
    assert load_statics([], GRID).shape == (0, 3, 4)


@pytest.mark.parametrize("shift", [(0.1, 0.0), (0.0, 0.1), (2.0, 0.0)])
def test_other_grid(tmp_path: Path, shift: tuple[float, float]) -> None:
    """Cells elsewhere than those of the fine grid are refused."""
    path = save(tmp_path / "z.nc", HEIGHT, GRID.latitude + shift[0], GRID.longitude + shift[1])
    with pytest.raises(HookloopError, match=r"z\.nc: .* does not match the fine grid"):
        load_statics([StaticConfig(path, "z")], GRID)


def test_not_finite(tmp_path: Path) -> None:
    """NaN is counted and named."""
    values = HEIGHT.copy()
    values[0, 1] = np.nan
    path = save(tmp_path / "z.nc", values, GRID.latitude, GRID.longitude)
    with pytest.raises(HookloopError, match=r"z\.nc: 1 of 12 values of z are NaN"):
        load_statics([StaticConfig(path, "z")], GRID)


def test_missing_variable(tmp_path: Path) -> None:
    """A variable that is not there is named beside those that are."""
    path = save(tmp_path / "z.nc", HEIGHT, GRID.latitude, GRID.longitude)
    with pytest.raises(HookloopError, match=r"no variable land .* there is z"):
        load_statics([StaticConfig(path, "land")], GRID)


def test_field_that_changes(tmp_path: Path) -> None:
    """A field with times is no static one."""
    data = xr.Dataset(
        {"z": (("time", "lat", "lon"), np.stack([HEIGHT, HEIGHT]))},
        {"lat": GRID.latitude, "lon": GRID.longitude},
    )
    data.to_netcdf(tmp_path / "z.nc", engine="h5netcdf")
    with pytest.raises(HookloopError, match="z has dimensions time, latitude, longitude"):
        load_statics([StaticConfig(str(tmp_path / "z.nc"), "z")], GRID)
