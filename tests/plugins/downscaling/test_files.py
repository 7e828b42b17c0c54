from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.files import Source, open_source, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOURS = np.datetime64("2019-03-22T00", "ns") + np.arange(48) * np.timedelta64(1, "h")
LAT, LON = np.arange(50, 54.0), np.arange(5, 10.0)


def data(times: np.ndarray = HOURS, name: str = "t2m", lat: np.ndarray = LAT) -> xr.Dataset:
    """Make a dataset whose values are hours since the first time."""
    hours = (times - HOURS[0]) / np.timedelta64(1, "h")
    values = np.broadcast_to(hours[:, None, None], (len(times), len(lat), len(LON)))
    return xr.Dataset(
        {name: (("time", "latitude", "longitude"), values.copy())},
        {"time": times, "latitude": lat, "longitude": LON},
    )


def save(dataset: xr.Dataset, path: Path) -> str:
    """Write *dataset* as what the suffix says."""
    if path.suffix == ".zarr":
        dataset.to_zarr(path, zarr_format=2)
    else:
        dataset.to_netcdf(path, engine="h5netcdf")
    return str(path)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test opens."""
    with ExitStack() as opened:
        yield opened


def values(source: Source, name: str) -> np.ndarray:
    """Read all of a variable, ``[time, lat, lon]``."""
    return np.concatenate([read(part, source.latitude, source.longitude) for part in source.parts[name]])


def test_files_are_joined_in_time_and_merged_by_variable(tmp_path: Path, stack: ExitStack) -> None:
    """Two days in the wrong order and a second variable in its own file make one source."""
    paths = [
        save(data(HOURS[24:]), tmp_path / "second.nc"),
        save(data(HOURS[:24]), tmp_path / "first.zarr"),
        save(-data(name="z500"), tmp_path / "other.nc"),
    ]
    source = open_source(paths, ["z500", "t2m"], None, stack)
    np.testing.assert_array_equal(source.times, HOURS)
    np.testing.assert_array_equal(values(source, "t2m")[:, 1, 2], np.arange(48))
    np.testing.assert_array_equal(values(source, "z500")[:, 1, 2], -np.arange(48))


def test_short_coordinate_names_and_single_dimensions(tmp_path: Path, stack: ExitStack) -> None:
    """Coordinates may be called lat, lon and valid_time, and a height of one level is dropped."""
    names = {"latitude": "lat", "longitude": "lon", "time": "valid_time"}
    path = save(data().expand_dims("height").rename(names), tmp_path / "short.nc")
    source = open_source([path], ["t2m"], None, stack)
    np.testing.assert_array_equal(source.latitude.values, LAT)
    assert values(source, "t2m").shape == (48, 4, 5)


def test_file_of_a_single_time(tmp_path: Path, stack: ExitStack) -> None:
    """A file whose time is a scalar has one time."""
    path = save(data().isel(time=7), tmp_path / "one.nc")
    source = open_source([path], ["t2m"], None, stack)
    np.testing.assert_array_equal(source.times, HOURS[7:8])
    assert values(source, "t2m")[0, 0, 0] == 7


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_of_either_format(tmp_path: Path, stack: ExitStack, zarr_format: int) -> None:
    """Stores of both formats are read, with or without consolidated metadata."""
    path = tmp_path / "store.zarr"
    data().to_zarr(path, zarr_format=zarr_format, consolidated=zarr_format == 2)
    np.testing.assert_array_equal(open_source([str(path)], ["t2m"], None, stack).times, HOURS)


def test_missing_file(tmp_path: Path, stack: ExitStack) -> None:
    """A file that is not there is named."""
    with pytest.raises(HookloopError, match=r"no\.nc: no such file"):
        open_source([str(tmp_path / "no.nc")], ["t2m"], None, stack)


@pytest.mark.parametrize("name", ["text.nc", "empty.zarr"])
def test_unreadable_file(tmp_path: Path, stack: ExitStack, name: str) -> None:
    """Something that is no netCDF and no zarr store is named."""
    path = tmp_path / name
    if path.suffix == ".zarr":
        path.mkdir()
    else:
        path.write_text("no netCDF")
    with pytest.raises(HookloopError, match=f"{name}: expected a netCDF-4 file or a zarr store, found"):
        open_source([str(path)], ["t2m"], None, stack)


def test_missing_variable_says_what_there_is(tmp_path: Path, stack: ExitStack) -> None:
    """A variable that is not there is named beside those that are."""
    path = save(data(), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=r"no variable tp in .*a\.nc; there is t2m"):
        open_source([path], ["t2m", "tp"], None, stack)


def test_projected_grid(tmp_path: Path, stack: ExitStack) -> None:
    """Latitudes that are no dimension of their own are refused with what there is."""
    flat = data().rename_dims(latitude="y").drop_indexes("latitude")
    path = save(flat, tmp_path / "projected.nc")
    with pytest.raises(HookloopError, match=r"projected\.nc: no coordinate latitude along a dimension"):
        open_source([path], ["t2m"], None, stack)


def test_single_latitude(tmp_path: Path, stack: ExitStack) -> None:
    """A grid of one row has no cell size."""
    path = save(data(lat=LAT[:1]), tmp_path / "row.nc")
    with pytest.raises(HookloopError, match=r"row\.nc: expected two or more different values of latitude"):
        open_source([path], ["t2m"], None, stack)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (HOURS[[0, 1, 1, 2]], "1 times occur more than once, the first 2019-03-22T01:00"),
        (HOURS[[0, 2, 1, 3]], "1 times are before .* the first 2019-03-22T01:00"),
    ],
)
def test_times_out_of_order(tmp_path: Path, stack: ExitStack, times: np.ndarray, message: str) -> None:
    """Duplicate and unsorted times are counted and named."""
    path = save(data(times), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=rf"a\.nc: {message}"):
        open_source([path], ["t2m"], None, stack)


def test_files_that_overlap_in_time(tmp_path: Path, stack: ExitStack) -> None:
    """The same times in two files are duplicates."""
    paths = [save(data(HOURS[a : a + 5]), tmp_path / f"{a}.nc") for a in (0, 3)]
    with pytest.raises(HookloopError, match="2 times occur more than once"):
        open_source(paths, ["t2m"], None, stack)


def test_no_times_in_the_range(tmp_path: Path, stack: ExitStack) -> None:
    """An empty range names what there is."""
    path = save(data(), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=r"no times .*a\.nc has 2019-03-22T00:00 to 2019-03-23T23:00"):
        open_source([path], ["t2m"], ("2020-01-01", "2020-01-02"), stack)


def test_time_range_that_is_none(tmp_path: Path, stack: ExitStack) -> None:
    """A range of something else than dates is the user's mistake."""
    path = save(data(), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=r"expected two dates .* found spring, summer"):
        open_source([path], ["t2m"], ("spring", "summer"), stack)


def test_calendar_of_a_model(tmp_path: Path, stack: ExitStack) -> None:
    """Times of a calendar without leap days are refused by name."""
    dataset = data().drop_vars("time")
    dataset["time"] = ("time", np.arange(48), {"units": "hours since 2019-03-22", "calendar": "noleap"})
    path = save(dataset, tmp_path / "odd.nc")
    with pytest.raises(HookloopError, match=r"odd\.nc: .*expected dates of the standard calendar"):
        open_source([path], ["t2m"], None, stack)


def test_no_time(tmp_path: Path, stack: ExitStack) -> None:
    """A file without times is refused with what it has."""
    path = save(data().isel(time=0, drop=True), tmp_path / "static.nc")
    with pytest.raises(HookloopError, match=r"static\.nc: no coordinate time, found latitude, longitude"):
        open_source([path], ["t2m"], None, stack)


def test_files_of_different_grids(tmp_path: Path, stack: ExitStack) -> None:
    """Files of one side must share their grid."""
    paths = [save(data(HOURS[[n]], lat=LAT + n), tmp_path / f"{n}.nc") for n in (0, 1)]
    with pytest.raises(HookloopError, match=r"1\.nc: latitudes or longitudes differ from those of .*0\.nc"):
        open_source(paths, ["t2m"], None, stack)


def test_variable_with_levels(tmp_path: Path, stack: ExitStack) -> None:
    """A variable on several levels is refused with its dimensions."""
    path = save(xr.concat([data(), data()], "level"), tmp_path / "levels.nc")
    with pytest.raises(HookloopError, match="t2m has dimensions level, time, latitude, longitude"):
        open_source([path], ["t2m"], None, stack)


def test_variables_of_different_times(tmp_path: Path, stack: ExitStack) -> None:
    """All variables of a side must have the same times."""
    paths = [save(data(), tmp_path / "a.nc"), save(data(HOURS[:5], "tp"), tmp_path / "b.nc")]
    with pytest.raises(HookloopError, match="tp and t2m have different times"):
        open_source(paths, ["t2m", "tp"], None, stack)
