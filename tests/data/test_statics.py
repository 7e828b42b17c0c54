from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr

from hookloop.data.grids import Grid
from hookloop.data.options import StaticConfig
from hookloop.data.statics import load_statics
from hookloop.errors import HookloopError

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
    with pytest.raises(HookloopError, match="z has dimensions time, lat, lon"):
        load_statics([StaticConfig(str(tmp_path / "z.nc"), "z")], GRID)


COUNTED = Grid(np.arange(3.0), np.arange(4.0), gridded=False)


def save_projected(path: Path) -> str:
    """Write a field of rows and columns, without coordinates."""
    xr.Dataset({"z": (("y", "x"), HEIGHT)}).to_netcdf(path, engine="h5netcdf")
    return str(path)


def test_projected_grid_by_row_and_column(tmp_path: Path) -> None:
    """On a grid without latitudes a field of its shape is taken as it is stored."""
    (loaded,) = load_statics([StaticConfig(save_projected(tmp_path / "z.nc"), "z")], COUNTED)
    np.testing.assert_allclose(loaded, (HEIGHT - HEIGHT.mean()) / HEIGHT.std(), rtol=1e-5, atol=1e-6)


def save_rows(path: Path, *, descending: bool, known: bool) -> str:
    """Write HEIGHT northwards, or turned round, on rows and columns with or without coordinates."""
    y, x = np.arange(3) * 5e3, np.arange(4) * 5e3
    data = xr.Dataset({"z": (("y", "x"), HEIGHT)}, {"y": y, "x": x} if known else {})
    turn = slice(None, None, -1)
    data = data.isel(y=turn, x=turn) if descending else data
    data.to_netcdf(path, engine="h5netcdf")
    return str(path)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("order", ["northwards", "southwards", "unknown"])
@pytest.mark.parametrize("descending", [True, False])
def test_rows_and_columns_that_run_either_way(
    tmp_path: Path, order: str, *, descending: bool, known: bool
) -> None:
    """Its own coordinates put it north where those of the fine file do; else it is stored as the fine file is."""
    path = save_rows(tmp_path / "z.nc", descending=descending, known=known)
    rows, columns = np.arange(3), np.arange(4)
    orders = {
        "northwards": (rows, columns),
        "southwards": (rows[::-1], columns[::-1]),
        "unknown": (None, None),
    }
    (loaded,) = load_statics([StaticConfig(path, "z")], Grid(rows * 1.0, columns * 1.0, False, orders[order]))  # noqa: FBT003
    stored = HEIGHT[::-1, ::-1] if descending else HEIGHT
    as_the_fine_file = stored[::-1, ::-1] if order == "southwards" else stored
    truth = HEIGHT if known and order != "unknown" else as_the_fine_file
    np.testing.assert_allclose(loaded, (truth - truth.mean()) / truth.std(), rtol=1e-5, atol=1e-6)


def test_projected_grid_of_another_shape(tmp_path: Path) -> None:
    """A field of another shape is refused with both."""
    path = save_projected(tmp_path / "z.nc")
    other = Grid(np.arange(3.0), np.arange(5.0), gridded=False)
    with pytest.raises(HookloopError, match=r"z\.nc: \(3, 4\) cells do not match the fine grid, \(3, 5\)"):
        load_statics([StaticConfig(path, "z")], other)


def test_field_without_coordinates(tmp_path: Path) -> None:
    """A field without latitudes could lie upside down on a grid that has them, so it is refused."""
    path = save_projected(tmp_path / "z.nc")
    with pytest.raises(
        HookloopError, match=r"z\.nc: no latitude and longitude .*expected those of the fine grid"
    ):
        load_statics([StaticConfig(path, "z")], GRID)
