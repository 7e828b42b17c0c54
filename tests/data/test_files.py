from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import cftime
import fsspec
import h5py
import numpy as np
import pytest
import xarray as xr
from fsspec.implementations.memory import MemoryFileSystem

from hookloop.data import files
from hookloop.data.calendars import calendar_of, labels
from hookloop.data.fields import Fields, Wanted
from hookloop.data.files import open_fields, read_static, select
from hookloop.data.opening import open_datasets
from hookloop.data.options import SourceConfig
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOURS = np.datetime64("2019-03-22T00", "ns") + np.arange(48) * np.timedelta64(1, "h")
LAT, LON = np.arange(50, 54.0), np.arange(5, 10.0)


def data(times: np.ndarray = HOURS, name: str = "t2m", lat: np.ndarray = LAT) -> xr.Dataset:
    """Make a dataset whose values are hours since the first time, and a hundredth of the cell's number."""
    hours = (times - HOURS[0]) / np.timedelta64(1, "h")
    cells = np.arange(len(lat) * len(LON)).reshape(len(lat), len(LON)) / 100
    return xr.Dataset(
        {name: (("time", "latitude", "longitude"), hours[:, None, None] + cells)},
        {"time": times, "latitude": lat, "longitude": LON},
    ).astype({name: "float32"})


def save(dataset: xr.Dataset, path: Path) -> str:
    """Write *dataset* as what the suffix says."""
    if path.suffix == ".zarr":
        dataset.to_zarr(path, zarr_format=2)
    else:
        dataset.to_netcdf(path, engine="h5netcdf")
    return str(path)


def values(fields: Fields, name: str, member: int = 0) -> np.ndarray:
    """Read all of a variable, ``[time, lat, lon]``, ascending."""
    n, (rows, columns) = len(fields.times), fields.shape
    wanted = Wanted(
        np.arange(n),
        np.full(n, member),
        np.broadcast_to(np.arange(rows), (n, rows)),
        np.broadcast_to(np.arange(columns), (n, columns)),
    )
    return fields.read(wanted)[:, list(fields.parts).index(name)]


def expected(times: np.ndarray = HOURS, lat: np.ndarray = LAT) -> np.ndarray:
    """Return the values of :func:`data`, south to north."""
    return data(times, lat=lat).sortby("latitude").t2m.to_numpy()


def test_files_are_joined_in_time_and_merged_by_variable(tmp_path: Path) -> None:
    """Two days in the wrong order and a second variable in its own file make one set of fields."""
    paths = [
        save(data(HOURS[24:]), tmp_path / "second.nc"),
        save(data(HOURS[:24]), tmp_path / "first.zarr"),
        save(-data(name="z500"), tmp_path / "other.nc"),
    ]
    fields = open_fields(paths, ["z500", "t2m"])
    np.testing.assert_array_equal(fields.times, HOURS)
    np.testing.assert_array_equal(values(fields, "t2m"), expected())
    np.testing.assert_array_equal(values(fields, "z500"), -expected())


def test_narrowed_to_some_times(tmp_path: Path) -> None:
    """The times that are kept are those that are read; a file without any of them is not opened again."""
    paths = [save(data(HOURS[a : a + 16]), tmp_path / f"{a}.nc") for a in (0, 16, 32)]
    keep = np.array([3, 7, 33, 47])
    narrow = select(open_fields(paths, ["t2m"]), keep)
    assert [part.path for part in narrow.parts["t2m"]] == [paths[0], paths[2]]
    np.testing.assert_array_equal(narrow.times, HOURS[keep])
    np.testing.assert_array_equal(values(narrow, "t2m"), expected()[keep])
    np.testing.assert_array_equal(values(select(narrow, np.array([1, 2])), "t2m"), expected()[[7, 33]])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_north_to_south(tmp_path: Path, suffix: str) -> None:
    """Latitudes that descend in the file ascend in the fields."""
    fields = open_fields([save(data(lat=LAT[::-1]), tmp_path / f"a{suffix}")], ["t2m"])
    np.testing.assert_array_equal(fields.latitude.values, LAT)
    np.testing.assert_array_equal(values(fields, "t2m"), expected(lat=LAT[::-1]))


def test_short_coordinate_names_and_single_dimensions(tmp_path: Path) -> None:
    """Coordinates may be called lat, lon and valid_time, and a height of one level is dropped."""
    names = {"latitude": "lat", "longitude": "lon", "time": "valid_time"}
    path = save(data().expand_dims("height").rename(names), tmp_path / "short.nc")
    fields = open_fields([path], ["t2m"])
    np.testing.assert_array_equal(fields.latitude.values, LAT)
    np.testing.assert_array_equal(values(fields, "t2m"), expected())


def test_coordinates_are_found_by_their_attributes(tmp_path: Path) -> None:
    """Whatever they are called: by standard names, by units, and by axes."""
    odd = data().rename(latitude="b", longitude="l", time="when")
    odd["b"].attrs = {"standard_name": "latitude"}
    odd["l"].attrs = {"units": "degrees_east"}
    odd["when"].attrs = {"axis": "T"}
    fields = open_fields([save(odd, tmp_path / "odd.nc")], ["t2m"])
    assert fields.gridded
    np.testing.assert_array_equal(fields.times, HOURS)
    np.testing.assert_array_equal(fields.longitude.values, LON)
    np.testing.assert_array_equal(values(fields, "t2m"), expected())


def test_latitudes_along_a_dimension_of_another_name(tmp_path: Path) -> None:
    """A latitude along y is one; the number of the row is not."""
    flat = data().rename_dims(latitude="y").drop_indexes("latitude").assign_coords(y=np.arange(4) * 1e3)
    fields = open_fields([save(flat, tmp_path / "y.nc")], ["t2m"])
    assert fields.gridded
    np.testing.assert_array_equal(fields.latitude.values, LAT)


def test_when_a_forecast_is_valid(tmp_path: Path) -> None:
    """Its time is when it is valid; when it began, only where the file does not say more."""
    forecast = data().assign_coords(valid_time=("time", HOURS + np.timedelta64(6, "h")))
    forecast["time"].attrs["standard_name"] = "forecast_reference_time"
    fields = open_fields([save(forecast, tmp_path / "forecast.nc")], ["t2m"])
    np.testing.assert_array_equal(fields.times, HOURS + np.timedelta64(6, "h"))
    began = save(forecast.drop_vars("valid_time"), tmp_path / "began.nc")
    np.testing.assert_array_equal(open_fields([began], ["t2m"]).times, HOURS)


def test_file_of_a_single_time(tmp_path: Path) -> None:
    """Files whose time is a scalar have one time each."""
    paths = [save(data().isel(time=n), tmp_path / f"{n}.nc") for n in (7, 3)]
    fields = open_fields(paths, ["t2m"])
    np.testing.assert_array_equal(fields.times, HOURS[[3, 7]])
    np.testing.assert_array_equal(values(fields, "t2m"), expected()[[3, 7]])


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:UserWarning")
def test_zarr_of_either_format(tmp_path: Path, zarr_format: int, consolidated: bool) -> None:  # noqa: FBT001
    """Stores of both formats are read, with or without consolidated metadata."""
    path = tmp_path / "store.zarr"
    encoding = {"t2m": {"chunks": (6, 2, 5)}}
    data().to_zarr(path, zarr_format=zarr_format, consolidated=consolidated, encoding=encoding)
    fields = open_fields([str(path)], ["t2m"])
    (part,) = fields.parts["t2m"]
    assert part.format == "zarr"
    assert part.chunks == {"time": 6, "latitude": 2, "longitude": 5}
    np.testing.assert_array_equal(values(fields, "t2m"), expected())


def packed(path: Path, **more: object) -> np.ndarray:
    """Write data of which one value is missing in 16 bits, and return what they are read as."""
    gap = data()
    gap.t2m[5, 1, 2] = np.nan
    encoding = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 20.0, "_FillValue": -32768, **more}
    if path.suffix == ".nc":
        gap.to_netcdf(path, engine="h5netcdf", encoding={"t2m": encoding})
    else:
        gap.to_zarr(path, zarr_format=3, consolidated=False, encoding={"t2m": encoding})
    truth = expected()
    truth[5, 1, 2] = -1
    return truth


def test_shards_of_packed_values(tmp_path: Path) -> None:
    """What is read at once is an inner chunk; scale, offset and missing values are those of the store."""
    truth = packed(tmp_path / "a.zarr", chunks=(1, 2, 5), shards=(24, 4, 5))
    fields = open_fields([str(tmp_path / "a.zarr")], ["t2m"], fill={"t2m": -1.0})
    (part,) = fields.parts["t2m"]
    assert (part.format, part.scale, part.offset, part.missing) == ("zarr", 0.01, 20.0, (-32768.0,))
    assert part.chunks == {"time": 1, "latitude": 2, "longitude": 5}
    np.testing.assert_allclose(values(fields, "t2m"), truth, atol=0.006)


def test_packed_netcdf(tmp_path: Path) -> None:
    """The same of a chunk of netCDF-4; without fill the missing value is refused."""
    truth = packed(tmp_path / "a.nc", chunksizes=(4, 4, 5))
    fields = open_fields([str(tmp_path / "a.nc")], ["t2m"], fill={"t2m": -1.0})
    (part,) = fields.parts["t2m"]
    assert (part.format, part.missing) == ("hdf5", (-32768.0,))
    assert part.chunks == {"time": 4, "latitude": 4, "longitude": 5}
    np.testing.assert_allclose(values(fields, "t2m"), truth, atol=0.006)
    with pytest.raises(HookloopError, match=r"t2m: 1 of 960 values .* the first at time 2019-03-22T05:00"):
        values(open_fields([str(tmp_path / "a.nc")], ["t2m"]), "t2m")


def test_two_marks_of_missing_values(tmp_path: Path) -> None:
    """A double that marks what single precision stores is recognised, and so is a second mark."""
    marked = data()
    marked.t2m[0, 0, :2] = np.array([1e20, -999], np.float32)
    marked.t2m.attrs["missing_value"] = np.array([1e20, -999.0])
    marked.t2m.encoding["_FillValue"] = None
    fields = open_fields([save(marked, tmp_path / "a.nc")], ["t2m"], fill={"t2m": 7.0})
    np.testing.assert_array_equal(values(fields, "t2m")[0, 0, :3], np.float32([7, 7, 0.02]))


def with_marks(path: Path, stored: np.ndarray, **marks: object) -> str:
    """Write *stored*, a value for each of the first cells, with marks of missing values as they are given."""
    hours = data(HOURS[:1])
    everywhere = np.zeros((1, 4, 5), stored.dtype)
    everywhere.reshape(-1)[: len(stored)] = stored
    hours["t2m"] = (hours.t2m.dims, everywhere)
    hours.t2m.encoding["_FillValue"] = None
    save(hours, path)
    with h5py.File(path, "r+") as file:
        file["t2m"].attrs.update(marks)
    return str(path)


@pytest.mark.parametrize(
    ("stored", "marks", "kept"),
    [
        (np.array([0, 5], "i2"), {"missing_value": 1e20}, ()),
        (np.array([0, -32768], "i2"), {"missing_value": -32768.0}, (-32768,)),
        (np.array([-1, 255], "i2").astype("u1"), {"missing_value": np.int8(-1)}, ()),
        (np.array([1, 2], "i2"), {"missing_value": np.array([1.5, np.nan, np.inf, 2])}, (2,)),
        (
            np.array([-(2**63) + 2, -(2**63) + 3, 2**62], "i8"),
            {"_FillValue": np.int64(-(2**63) + 2)},
            (-(2**63) + 2,),
        ),
        (np.array([2**64 - 1, 2**64 - 2], "u8"), {"_FillValue": np.uint64(2**64 - 1)}, (2**64 - 1,)),
        (np.array([np.inf, -np.inf, 1], "f4"), {"_FillValue": np.float32(np.inf)}, (np.inf,)),
        (np.array([1, 2], "f4"), {"missing_value": "none"}, ()),
        (np.array([1, -999], "i2"), {"missing_value": "none", "_FillValue": np.int16(-999)}, (-999,)),
        (np.array([np.inf, 1], "f4"), {"missing_value": 1e300}, ()),
        (np.array([np.nan, 1], "f4"), {"_FillValue": np.float32(np.nan)}, ()),
    ],
)
@pytest.mark.filterwarnings("ignore:variable .* has multiple fill values")
def test_marks_are_those_that_can_be_stored(
    tmp_path: Path, stored: np.ndarray, marks: dict[str, object], kept: tuple[float, ...]
) -> None:
    """A mark that the type cannot hold, or that is no number, marks nothing; the others do to the last digit."""
    path = with_marks(tmp_path / "a.nc", stored, **marks)
    fields = open_fields([path], ["t2m"], fill={"t2m": 7.0})
    (part,) = fields.parts["t2m"]
    assert part.missing == kept
    assert [type(mark) for mark in part.missing] == [float if stored.dtype.kind == "f" else int] * len(kept)
    truth = [7 if value in kept or np.isnan(value) else np.float32(value) for value in stored]
    if np.isfinite(truth).all():
        assert values(fields, "t2m").reshape(-1)[: len(stored)].tolist() == truth
    else:
        with pytest.raises(HookloopError, match="t2m: 1 of 20 values"):
            values(fields, "t2m")
    with xr.open_dataset(
        path, engine="h5netcdf"
    ) as theirs:  # what xarray reads, but for whole numbers beyond 2**53
        if np.abs(stored.astype(float)[np.isfinite(stored)]).max() < 2**53:
            absent = np.isnan(theirs.t2m.to_numpy().reshape(-1)[: len(stored)])
            assert absent.tolist() == [value in kept or bool(np.isnan(value)) for value in stored.tolist()]


PACKED = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 20.0, "_FillValue": -32768}


@pytest.mark.parametrize(
    ("zarr_format", "encoding", "read"),
    [
        (3, PACKED, 20.0),
        (3, {**PACKED, "fill_value": -32768}, None),
        (2, PACKED, None),
        (3, {"dtype": "int16"}, 0.0),
        (2, {"dtype": "int16"}, 0.0),
        (3, {}, None),
        (3, {"fill_value": 0.0}, 0.0),
    ],
)
@pytest.mark.filterwarnings("ignore:saving variable .* with floating point data as an integer dtype")
def test_chunk_that_is_lost(
    tmp_path: Path, zarr_format: int, encoding: dict[str, object], read: float | None
) -> None:
    """Where a chunk that is not there is read as a plausible number, a note says which; else it is refused."""
    path = tmp_path / "a.zarr"
    data().to_zarr(
        path,
        zarr_format=zarr_format,
        consolidated=False,
        encoding={"t2m": {"chunks": (1, 4, 5), **encoding}},
    )
    (path / "t2m" / ("c/1/0/0" if zarr_format == 3 else "1.0.0")).unlink()
    fields = open_fields([str(path)], ["t2m"])
    if read is None:
        assert fields.notes == []
        with pytest.raises(
            HookloopError, match=r"t2m: 20 of 960 values .* the first at time 2019-03-22T01:00"
        ):
            values(fields, "t2m")
    else:
        (note,) = fields.notes
        assert f"a.zarr: a chunk of t2m that is lost would be read as {read:g} without an error" in note
        np.testing.assert_array_equal(values(fields, "t2m")[1], np.full((4, 5), read))


def test_unsigned_bytes_of_old_files(tmp_path: Path) -> None:
    """What h5py would read wrongly, xarray reads."""
    small = data().assign(t2m=data().t2m.round())
    encoding = {"t2m": {"dtype": "int8", "_Unsigned": "true", "scale_factor": 0.25, "_FillValue": -1}}
    small.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=encoding)
    fields = open_fields([str(tmp_path / "a.nc")], ["t2m"])
    assert fields.parts["t2m"][0].format == "xarray"
    np.testing.assert_array_equal(values(fields, "t2m"), expected().round())


def test_netcdf_3(tmp_path: Path) -> None:
    """Old netCDF is read, where scipy is installed."""
    path = str(tmp_path / "old.nc")
    data().to_netcdf(path, engine="scipy")
    fields = open_fields([path], ["t2m"])
    np.testing.assert_array_equal(values(fields, "t2m"), expected())


def test_netcdf_3_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error names it, and the tool that converts."""
    path = str(tmp_path / "old.nc")
    data().to_netcdf(path, engine="scipy")
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(HookloopError, match=r"old\.nc: netCDF-3 is read where scipy is .*nccopy -k nc4"):
        open_fields([path], ["t2m"])


def write_grib(path: Path, messages: list[tuple[str, str, int, int]]) -> str:
    """Write a message for each (name, kind of level, level, hour); values are level + hour + cell / 100."""
    eccodes = pytest.importorskip("eccodes")
    with path.open("wb") as file:
        for name, kind, level, hour in messages:
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            for key, value in {
                "Ni": len(LON),
                "Nj": len(LAT),
                "latitudeOfFirstGridPointInDegrees": LAT[-1],
                "latitudeOfLastGridPointInDegrees": LAT[0],
                "longitudeOfFirstGridPointInDegrees": LON[0],
                "longitudeOfLastGridPointInDegrees": LON[-1],
                "iDirectionIncrementInDegrees": 1,
                "jDirectionIncrementInDegrees": 1,
                "dataDate": 20190322,
                "dataTime": hour * 100,
                "shortName": name,
                "typeOfLevel": kind,
                "level": level,
                "bitsPerValue": 24,
            }.items():
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, level + hour + np.arange(20) / 100)
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)
    return str(path)


def test_grib(tmp_path: Path) -> None:
    """Variables of different heights come out of one file, by either name, and nothing is written beside it."""
    pytest.importorskip("cfgrib")
    heights = [("2t", "heightAboveGround", 2), ("10u", "heightAboveGround", 10)]
    levels = [("u", "isobaricInhPa", 850), ("u", "isobaricInhPa", 500)]
    messages = [(*what, hour) for what in heights + levels for hour in (0, 6)]
    path = write_grib(tmp_path / "era5.grib", messages)
    source = SourceConfig(path, rename={"u850": "u@850", "wind": "10u"})
    fields = open_fields([source], ["t2m", "2t", "wind", "u850"])
    np.testing.assert_array_equal(fields.times, HOURS[[0, 6]])
    np.testing.assert_array_equal(fields.latitude.values, LAT)
    north_first = np.arange(20).reshape(4, 5)[::-1] / 100
    hours = np.array([0, 6])[:, None, None]
    for name, level in {"t2m": 2, "2t": 2, "wind": 10, "u850": 850}.items():
        np.testing.assert_allclose(values(fields, name), level + hours + north_first, atol=1e-3)
    assert fields.units["t2m"] == "K"
    assert [file.name for file in tmp_path.iterdir()] == ["era5.grib"]


def test_grib_of_one_name_at_two_kinds_of_level(tmp_path: Path) -> None:
    """Which of them is meant cannot be told, so none is taken."""
    pytest.importorskip("cfgrib")
    messages = [("t", "isobaricInhPa", 850, 0), ("t", "heightAboveGround", 50, 0)]
    path = write_grib(tmp_path / "two.grib", messages)
    with pytest.raises(HookloopError, match=r"two\.grib: t may be 2 variables .*expected one"):
        open_fields([path], ["t"])


def test_grib_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what to install."""
    path = tmp_path / "a.grb"
    path.write_bytes(b"GRIB and so on")
    monkeypatch.setitem(sys.modules, "cfgrib", None)
    with pytest.raises(HookloopError, match=r"a\.grb: GRIB needs .*pip install 'hookloop\[grib\]'"):
        open_fields([str(path)], ["t2m"])


def leveled(**attributes: str) -> xr.Dataset:
    """Make u on three levels; each holds the level's number more than the one below it."""
    levels = np.array([1000.0, 850.0, 500.0])
    u = data(name="u").u.expand_dims(plev=levels, axis=1) + levels[:, None, None]
    u["plev"].attrs = attributes
    return u.astype("float32").to_dataset()


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_levels_are_chosen_by_value(tmp_path: Path, suffix: str) -> None:
    """Two levels of one variable are two variables."""
    path = save(leveled(units="hPa"), tmp_path / f"levels{suffix}")
    source = SourceConfig(path, rename={"u850": "u@850", "u500": "u@50000.0"})
    fields = open_fields([source], ["u500", "u850"])
    np.testing.assert_allclose(values(fields, "u850"), expected() + 850, atol=1e-4)
    np.testing.assert_allclose(values(fields, "u500"), expected() + 500, atol=1e-4)


def test_levels_in_pascal(tmp_path: Path) -> None:
    """The number may be in hPa where the file has Pa; a variable that is not there says how it was asked for."""
    pascal = leveled().assign_coords(plev=("plev", [1e5, 85000.0, 5e4], {"units": "Pa"}))
    path = save(pascal, tmp_path / "levels.nc")
    fields = open_fields([SourceConfig(path, rename={"u850": "u@850"})], ["u850"])
    np.testing.assert_allclose(values(fields, "u850"), expected() + 850, atol=1e-4)
    with pytest.raises(HookloopError, match=r"u has no level 700; plev has 100000, 85000, 50000 Pa"):
        open_fields([SourceConfig(path, rename={"u700": "u@700"})], ["u700"])
    with pytest.raises(HookloopError, match=r"no variable v850 \(renamed from v@850\) in .*; there is u"):
        open_fields([SourceConfig(path, rename={"v850": "v@850"})], ["v850"])
    with pytest.raises(HookloopError, match=r"level jet of u is no number; expected one, such as u@850"):
        open_fields([SourceConfig(path, rename={"u": "u@jet"})], ["u"])


CMIP6 = (100000, 92500, 85000, 70000, 60000, 50000, 40000, 30000, 25000, 20000, 15000, 10000, 7000, 5000)
CMIP6 = (*CMIP6, 3000, 2000, 1000, 500, 100)
"""The levels that are called plev19, in Pa."""
ERA5 = (1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 850, 925, 1000)
"""Some of its levels, in hPa."""


def on_levels(path: Path, levels: tuple[float, ...], units: str) -> str:
    """Write u on *levels*; each holds its level."""
    numbers = np.array(levels, dtype=np.float64)
    u = data(HOURS[:1], "u").u * 0 + xr.DataArray(numbers, dims="plev")
    u = (
        u.transpose("time", "plev", ...)
        .astype("float32")
        .assign_coords(plev=("plev", numbers, {"units": units}))
    )
    return save(u.to_dataset(name="u"), path)


@pytest.mark.parametrize(
    ("levels", "units", "asked", "level", "name"),
    [
        (CMIP6, "Pa", "850", 85000, "850 hPa"),
        (CMIP6, "Pa", "85000", 85000, "850 hPa"),
        (CMIP6, "Pa", "500hPa", 50000, "500 hPa"),
        (CMIP6, "Pa", "500 mbar", 50000, "500 hPa"),
        (CMIP6, "Pa", "500Pa", 500, "5 hPa"),
        (CMIP6, "Pa", "100000", 100000, "1000 hPa"),
        (ERA5, "hPa", "500", 500, "500 hPa"),
        (ERA5, "millibars", "500Pa", 5, "5 hPa"),
        (ERA5, "hPa", "50000", 500, "500 hPa"),
        ((2, 10, 100), "m", "10", 10, "10 m"),
        ((2, 10, 100), "m", "10m", 10, "10 m"),
        ((2, 10, 100), "m", "0.1km", 100, "100 m"),
        ((0.5, 0.995), "1", ".995", 0.995, "0.995 1"),
        ((300, 350), "K", "350K", 350, "350 K"),
        ((850, 500), "", "5e2", 500, "500"),
    ],
)
def test_units_of_levels(
    tmp_path: Path, levels: tuple[float, ...], units: str, asked: str, level: float, name: str
) -> None:
    """A bare number of a pressure is hPa where that is a level; a unit says what is meant; the choice is told."""
    source = SourceConfig(on_levels(tmp_path / "u.nc", levels, units), rename={"chosen": f"u@{asked}"})
    fields = open_fields([source], ["chosen"])
    np.testing.assert_array_equal(values(fields, "chosen"), np.full((1, 4, 5), np.float32(level)))
    assert fields.levels == {"chosen": name}


@pytest.mark.parametrize(
    ("levels", "units", "asked", "message"),
    [
        (CMIP6, "Pa", "500", "level 500 of u may be 500 hPa or 5 hPa; .* u@500hPa or u@500Pa"),
        (CMIP6, "Pa", "1000", "level 1000 of u may be 1000 hPa or 10 hPa; expected one"),
        (CMIP6, "Pa", "100", "level 100 of u may be 100 hPa or 1 hPa; expected one"),
        (CMIP6, "Pa", "850Pa", "u has no level 850Pa; plev has 100000, 92500, "),
        (ERA5, "hPa", "10m", "level 10m of u is in m, plev in hPa; expected a number in these"),
        ((2, 10), "m", "850hPa", "level 850hPa of u is in hPa, plev in m; expected"),
        ((850, 500), "", "850hPa", "level 850hPa of u is in hPa, plev in no units; expected"),
        (ERA5, "hPa", "nan", "level nan of u is no number; expected one, such as u@850"),
    ],
)
def test_levels_that_are_not_clear(
    tmp_path: Path, levels: tuple[float, ...], units: str, asked: str, message: str
) -> None:
    """A number that is one level in hPa and another in Pa is refused with both, as are units of something else."""
    source = SourceConfig(on_levels(tmp_path / "u.nc", levels, units), rename={"chosen": f"u@{asked}"})
    with pytest.raises(HookloopError, match=rf"u\.nc: {message}"):
        open_fields([source], ["chosen"])


def test_variable_with_levels(tmp_path: Path) -> None:
    """A variable on several levels is refused with what they are and how one is chosen."""
    path = save(leveled(units="hPa"), tmp_path / "levels.nc")
    with pytest.raises(HookloopError, match=r"plev: 1000, 850, 500 hPa\); choose one with rename.*u@LEVEL"):
        open_fields([path], ["u"])


def test_level_of_the_whole_file(tmp_path: Path) -> None:
    """A file of one level, named by a scalar, has that one and no other."""
    path = save(leveled(units="hPa").isel(plev=1), tmp_path / "one.nc")
    fields = open_fields([SourceConfig(path, rename={"u850": "u@850"})], ["u850"])
    np.testing.assert_allclose(values(fields, "u850"), expected() + 850, atol=1e-4)
    with pytest.raises(HookloopError, match=r"u has no level 500; plev has 850 hPa"):
        open_fields([SourceConfig(path, rename={"u500": "u@500"})], ["u500"])
    flat = save(data(), tmp_path / "flat.nc")
    with pytest.raises(HookloopError, match=r"t2m has no levels of known values; expected t2m alone"):
        open_fields([SourceConfig(flat, rename={"t": "t2m@850"})], ["t"])


def test_standard_names(tmp_path: Path) -> None:
    """A variable is found by its standard name, unless that is the name of several."""
    named = data(name="tas")
    named["tas"].attrs = {"standard_name": "air_temperature", "units": "K"}
    fields = open_fields([save(named, tmp_path / "one.nc")], ["air_temperature"])
    np.testing.assert_array_equal(values(fields, "air_temperature"), expected())
    assert fields.units == {"air_temperature": "K"}
    both = save(named.assign(tasmax=named.tas), tmp_path / "two.nc")
    with pytest.raises(HookloopError, match=r"air_temperature may be 2 variables \(tas, tasmax\)"):
        open_fields([both], ["air_temperature"])


def ensemble(name: str = "number") -> xr.Dataset:
    """Make three members; each is a thousand more than the one before it."""
    return xr.concat([data() + 1000 * n for n in range(3)], name).transpose("time", name, ...)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_ensemble(tmp_path: Path, suffix: str) -> None:
    """Each member of the dimension that is named is read by itself."""
    source = SourceConfig(save(ensemble("run"), tmp_path / f"a{suffix}"), ensemble="run")
    fields = open_fields([source], ["t2m"])
    assert fields.members == 3
    for member in range(3):
        np.testing.assert_array_equal(values(fields, "t2m", member), expected() + np.float32(1000 * member))


def test_ensemble_that_is_not_named(tmp_path: Path) -> None:
    """What looks like members is refused until it is named; so is a name that is not there."""
    path = save(ensemble(), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=r"t2m has 3 members along number; .*ensemble: number"):
        open_fields([path], ["t2m"])
    with pytest.raises(HookloopError, match=r"no dimension member, found time, number, latitude, longitude"):
        open_fields([SourceConfig(path, ensemble="member")], ["t2m"])


def test_one_member_needs_no_name(tmp_path: Path) -> None:
    """A dimension of a single member is no ensemble."""
    fields = open_fields([save(ensemble().isel(number=[1]), tmp_path / "a.nc")], ["t2m"])
    assert fields.members == 1
    np.testing.assert_array_equal(values(fields, "t2m"), expected() + np.float32(1000))


def test_different_numbers_of_members(tmp_path: Path) -> None:
    """All variables have as many."""
    many = SourceConfig(save(ensemble(), tmp_path / "a.nc"), ensemble="number")
    one = save(data(name="tp"), tmp_path / "b.nc")
    with pytest.raises(HookloopError, match=r"b\.nc: tp has 1 members, t2m in .*a\.nc has 3"):
        open_fields([many, one], ["t2m", "tp"])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_calendar_of_a_model(tmp_path: Path, calendar: str, suffix: str) -> None:
    """Days of a calendar without leap days, or of twelve equal months, are joined like any others."""
    paths = []
    for first in (0, 24):
        part = data(HOURS[first : first + 24]).drop_vars("time")
        days = np.arange(first, first + 24) + 0.5
        part["time"] = ("time", days, {"units": "days since 2000-02-20", "calendar": calendar})
        paths.append(save(part, tmp_path / f"{first}{suffix}"))
    fields = open_fields(paths[::-1], ["t2m"])
    assert calendar_of(fields.times) == calendar
    dates = cftime.num2date(np.arange(48) + 0.5, "days since 2000-02-20", calendar)
    assert labels(fields.times) == [date.strftime("%Y-%m-%dT%H:%M") for date in dates]
    np.testing.assert_array_equal(values(fields, "t2m"), expected())


def test_far_future(tmp_path: Path) -> None:
    """Dates beyond what datetime64[ns] holds are dates too."""
    far = data().drop_vars("time")
    far["time"] = ("time", np.arange(48), {"units": "days since 2500-01-01", "calendar": "standard"})
    fields = open_fields([save(far, tmp_path / "far.nc")], ["t2m"])
    assert labels(fields.times)[31] == "2500-02-01T00:00"


def test_two_calendars(tmp_path: Path) -> None:
    """Files of one side share their calendar; both files are named."""
    odd = data(name="tp").drop_vars("time")
    odd["time"] = ("time", np.arange(48), {"units": "hours since 2019-03-22", "calendar": "noleap"})
    paths = [save(data(), tmp_path / "a.nc"), save(odd, tmp_path / "b.nc")]
    with pytest.raises(HookloopError, match=r"b\.nc: its calendar is noleap, that of .*a\.nc is standard"):
        open_fields(paths, ["t2m", "tp"])


def test_times_of_rounded_numbers(tmp_path: Path) -> None:
    """Two files count days since different years in floating point, and their hours are the same."""
    paths = []
    for name, since in (("t2m", "1850-01-01"), ("tp", "2019-01-01")):
        part = data(name=name).drop_vars("time")
        days = (HOURS - np.datetime64(since)) / np.timedelta64(1, "D")
        part["time"] = ("time", days, {"units": f"days since {since}", "calendar": "standard"})
        paths.append(save(part, tmp_path / f"{name}.nc"))
    np.testing.assert_array_equal(open_fields(paths, ["t2m", "tp"]).times, HOURS)


def test_patterns(tmp_path: Path) -> None:
    """A pattern is all files that match, in folders below it too; no match names the pattern."""
    for year, hours in (("2018", HOURS[:24]), ("2019", HOURS[24:])):
        (tmp_path / year / "daily").mkdir(parents=True)
        save(data(hours), tmp_path / year / "daily" / "t2m.nc")
    fields = open_fields([f"{tmp_path}/**/*.nc"], ["t2m"])
    np.testing.assert_array_equal(values(fields, "t2m"), expected())
    assert len(open_fields([f"{tmp_path}/201[89]/*/*.nc"], ["t2m"]).parts["t2m"]) == 2
    with pytest.raises(HookloopError, match=r"\*\.grib: no file or store matches this pattern"):
        open_fields([f"{tmp_path}/*.grib"], ["t2m"])


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    """What is there is meant."""
    path = save(data(), tmp_path / "a[1].nc")
    assert open_fields([path], ["t2m"]).where == path


def test_many_files_are_not_kept_open(tmp_path: Path) -> None:
    """More files are opened than a process may have open."""
    for n in range(40):
        save(data(HOURS[[n]]), tmp_path / f"{n:02}.nc")
    program = (
        "import resource; import hookloop.data.files as files; import h5netcdf, xarray; "
        f"files.open_fields(['{tmp_path}/00.nc'], ['t2m']); "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24)); "
        f"print(len(files.open_fields(['{tmp_path}/*.nc'], ['t2m']).times))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("40\n", 0), done.stderr


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve a folder through HTTP."""
    pytest.importorskip("aiohttp")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_store_behind_http(tmp_path: Path, server: str) -> None:
    """A URL is a store like another."""
    save(data(), tmp_path / "a.zarr")
    fields = open_fields([f"{server}/a.zarr"], ["t2m"])
    np.testing.assert_array_equal(values(fields, "t2m"), expected())
    with pytest.raises(HookloopError, match=r"b\.zarr: expected a zarr store, found .*NotFound"):
        open_fields([f"{server}/b.zarr"], ["t2m"])


def test_stores_in_memory() -> None:
    """URLs may be patterns where the file system can list."""
    for first in (0, 24):
        data(HOURS[first : first + 24]).to_zarr(f"memory://test_files/{first}.zarr", zarr_format=2, mode="w")
    fields = open_fields(["memory://test_files/*.zarr"], ["t2m"])
    np.testing.assert_array_equal(values(fields, "t2m"), expected())
    with pytest.raises(HookloopError, match=r"memory://test_files/\*\.nc: no store matches this pattern"):
        open_fields(["memory://test_files/*.nc"], ["t2m"])


def test_store_at_the_url_of_a_local_file(tmp_path: Path) -> None:
    """A URL of this machine is a path."""
    path = save(data(), tmp_path / "a.nc")
    assert open_fields([f"file://{path}"], ["t2m"]).where == path


class Guarded(MemoryFileSystem):
    """A file system in memory that must be given a word."""

    protocol = "guarded"
    cachable = False

    def __init__(self, word: str = "", **options: object) -> None:
        super().__init__(**options)
        if word != "open sesame":
            raise PermissionError("say the word")


def test_storage_options_reach_the_store() -> None:
    """They are handed to fsspec when a store is opened, listed and read."""
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    options = {"word": "open sesame"}
    data().to_zarr("guarded://test_files/g.zarr", zarr_format=2, mode="w", storage_options=options)
    for url in ("guarded://test_files/g.zarr", "guarded://test_files/*.zarr"):
        fields = open_fields([SourceConfig(url, storage_options=options)], ["t2m"])
        np.testing.assert_array_equal(values(fields, "t2m"), expected())
        with pytest.raises(
            HookloopError, match=r"zarr: expected a zarr store, found PermissionError: say the"
        ):
            open_fields([url], ["t2m"])


@pytest.mark.parametrize("path", ["s3://bucket/a.zarr", "s3://bucket/*.zarr"])
def test_package_that_reaches_a_url_is_missing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what to install."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(HookloopError, match=r"s3://.*is missing .*pip install 'hookloop\[remote\]'"):
        open_fields([path], ["t2m"])


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(HookloopError, match=r"no\.nc: no such file"):
        open_fields([str(tmp_path / "no.nc")], ["t2m"])


@pytest.mark.parametrize("name", ["text.nc", "empty.zarr"])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    """Something that is no netCDF and no zarr store is named."""
    path = tmp_path / name
    if path.suffix == ".zarr":
        path.mkdir()
    else:
        path.write_text("no netCDF")
    with pytest.raises(HookloopError, match=f"{name}: expected a netCDF-4 file or a zarr store, found"):
        open_fields([str(path)], ["t2m"])


def test_folder_of_files(tmp_path: Path) -> None:
    """A folder is no store; the error says how its files are named."""
    save(data(), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=rf"found a folder of netCDF files, .*write {tmp_path}/\*\.nc"):
        open_fields([str(tmp_path)], ["t2m"])


def test_missing_variable_says_what_there_is(tmp_path: Path) -> None:
    """A variable that is not there is named beside those that are."""
    path = save(data(), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=r"no variable tp in .*a\.nc; there is t2m"):
        open_fields([path], ["t2m", "tp"])


def test_variable_of_words(tmp_path: Path) -> None:
    """Fields are numbers."""
    words = data()
    words["t2m"] = words.t2m.astype(str)
    with pytest.raises(HookloopError, match=r"a\.nc: t2m is of type .*; expected numbers"):
        open_fields([save(words, tmp_path / "a.nc")], ["t2m"])


def projected(dims: tuple[str, str]) -> xr.Dataset:
    """Make fields on rows and columns, with latitudes and longitudes of every cell, north first."""
    lat, lon = np.meshgrid(LAT[::-1], LON, indexing="ij")
    flat = data().drop_vars(["latitude", "longitude"]).rename(latitude=dims[0], longitude=dims[1])
    attributes = {"standard_name": "latitude"}, {"standard_name": "longitude"}
    if dims == ("y", "x"):
        flat = flat.assign_coords(y=[9e3, 6e3, 3e3, 0.0], x=np.arange(5) * 3e3)
    return flat.assign_coords(la=(dims, lat, attributes[0]), lo=(dims, lon, attributes[1]))


@pytest.mark.parametrize("dims", [("y", "x"), ("rlat", "rlon"), ("a", "b")])
def test_projected_grid(tmp_path: Path, dims: tuple[str, str]) -> None:
    """Rows and columns are counted northwards and eastwards, and said to be no latitudes."""
    fields = open_fields([save(projected(dims), tmp_path / "projected.nc")], ["t2m"])
    assert not fields.gridded
    np.testing.assert_array_equal(fields.latitude.values, np.arange(4))
    np.testing.assert_array_equal(fields.longitude.values, np.arange(5))
    assert (fields.latitude.step, fields.longitude.step) == (1, 1)
    assert (fields.latitude.oriented, fields.longitude.oriented) == (True, True)
    assert (fields.latitude.reach, fields.longitude.reach) == ((49.5, 53.5), (4.5, 9.5))
    np.testing.assert_array_equal(values(fields, "t2m"), expected()[:, ::-1])


@pytest.mark.parametrize("turned", [(), ("y",), ("x",), ("y", "x")])
@pytest.mark.parametrize("known", ["axes", "places", "numbers and places", "nothing", "numbers"])
def test_rows_and_columns_that_run_either_way(tmp_path: Path, known: str, turned: tuple[str, ...]) -> None:
    """They come out northwards and eastwards by y and x, or by the places of the cells; else as stored."""
    flat = projected(("y", "x")).isel(y=slice(None, None, -1))
    flat = flat.assign_coords(y=("y", np.arange(4) * 3.0, {"units": "km"}), x=("x", flat.x.values))
    if known == "axes":
        flat = flat.drop_vars(["la", "lo"])
    flat = flat.isel({dim: slice(None, None, -1) for dim in turned})
    if known != "axes":
        flat = flat.drop_vars(["y", "x"])
    if known.startswith("numbers"):
        flat = flat.assign_coords(y=np.arange(4), x=np.arange(1, 6))
    if known in ("nothing", "numbers"):
        flat = flat.drop_vars(["la", "lo"])
    fields = open_fields([save(flat, tmp_path / "projected.nc")], ["t2m"])
    is_known = known not in ("nothing", "numbers")
    assert fields.latitude.oriented == fields.longitude.oriented == is_known
    truth = expected()[:, ::-1] if is_known else flat.t2m.to_numpy()
    np.testing.assert_array_equal(values(fields, "t2m"), truth)


def test_columns_across_the_date_line(tmp_path: Path) -> None:
    """Columns whose longitudes go on at -180 still run eastwards."""
    flat = projected(("a", "b"))
    flat["lo"] = (flat.lo.dims, np.mod(flat.lo.to_numpy() + 171 + 180, 360) - 180, flat.lo.attrs)
    assert flat.lo[0].to_numpy().tolist() == [176, 177, 178, 179, -180]
    fields = open_fields([save(flat, tmp_path / "pacific.nc")], ["t2m"])
    assert fields.longitude.index.tolist() == [0, 1, 2, 3, 4]
    assert fields.longitude.reach == (175.5, 180.5)


def test_projected_files_that_run_both_ways(tmp_path: Path) -> None:
    """Two files of one side whose rows run opposite ways are two grids."""
    flat = projected(("a", "b"))
    paths = [
        save(flat.isel(time=slice(24)), tmp_path / "a.nc"),
        save(flat.isel(time=slice(24, None), a=slice(None, None, -1)), tmp_path / "b.nc"),
    ]
    with pytest.raises(HookloopError, match=r"b\.nc: latitudes or longitudes differ from those of .*a\.nc"):
        open_fields(paths, ["t2m"])


def test_dimensions_that_mean_nothing(tmp_path: Path) -> None:
    """Without names and attributes there is no telling what is north."""
    odd = data().drop_vars(["latitude", "longitude"]).rename(latitude="a", longitude="b")
    with pytest.raises(
        HookloopError, match=r"odd\.nc: t2m has no coordinate latitude .* dimensions time, a, b"
    ):
        open_fields([save(odd, tmp_path / "odd.nc")], ["t2m"])


def test_single_latitude(tmp_path: Path) -> None:
    """A grid of one row has no cell size."""
    path = save(data(lat=LAT[:1]), tmp_path / "row.nc")
    with pytest.raises(
        HookloopError, match=r"row\.nc: expected two or more different values of latitude, found 50"
    ):
        open_fields([path], ["t2m"])


@pytest.mark.parametrize(
    ("lat", "lon", "message"),
    [
        ([50, 51, 51, 53], LON, "1 of 4 values of latitude are there before: 51 and 51; expected each place"),
        (
            LAT,
            [0, 90, 180, 270, 360],
            "1 of 5 values of longitude are there before: 0 and 360; expected each",
        ),
        (LAT, [7, 7, 7, 7, 7], "4 of 5 values of longitude are there before: 7 and 7, 7 and 7, 7 and 7; exp"),
        (LAT, [-180, -90, 0, 90, 180], "1 of 5 values of longitude are there before: -180 and 180; expected"),
        ([50, np.nan, 52, np.inf], LON, "2 of 4 values of latitude are NaN or infinite, the first number 1,"),
        (
            [0, 45, 90, 135],
            LON,
            "1 of 4 values of latitude are beyond the poles, the first 135; expected deg",
        ),
    ],
)
def test_places_that_make_no_sense(tmp_path: Path, lat: list[float], lon: list[float], message: str) -> None:
    """Coordinates that are duplicate, missing or beyond the poles are counted and named on one line."""
    odd = data().assign_coords(latitude=np.array(lat, float), longitude=np.array(lon, float))
    with pytest.raises(HookloopError, match=rf"odd\.nc: {message}") as raised:
        open_fields([save(odd, tmp_path / "odd.nc")], ["t2m"])
    assert "\n" not in str(raised.value)


def test_latitudes_to_the_poles_of_single_precision(tmp_path: Path) -> None:
    """Rounding may put a centre a little beyond the pole."""
    poles = np.array([-90.00001, -30, 30, 90.00001], np.float32)
    fields = open_fields([save(data(lat=poles), tmp_path / "a.nc")], ["t2m"])
    np.testing.assert_array_equal(fields.latitude.values, poles.astype(float))


def test_radians(tmp_path: Path) -> None:
    """Coordinates in radians are refused, not taken for a very small region."""
    small = data().assign_coords(latitude=np.deg2rad(LAT), longitude=np.deg2rad(LON))
    small["latitude"].attrs = {"units": "radians", "standard_name": "latitude"}
    with pytest.raises(HookloopError, match=r"a\.nc: latitude is in radians; expected degrees"):
        open_fields([save(small, tmp_path / "a.nc")], ["t2m"])


def test_shuffled_coordinates_are_sorted(tmp_path: Path) -> None:
    """Each row and column is found where the file has it."""
    shuffled = data().isel(latitude=[2, 0, 3, 1], longitude=[4, 0, 2, 1, 3])
    fields = open_fields([save(shuffled, tmp_path / "a.nc")], ["t2m"])
    np.testing.assert_array_equal(values(fields, "t2m"), expected())


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (HOURS[[0, 1, 1, 2]], "1 times occur more than once, the first 2019-03-22T01:00"),
        (HOURS[[0, 2, 1, 3]], "1 times are before .* the first 2019-03-22T01:00"),
        (np.array([HOURS[0], np.datetime64("NaT")]), "1 of 2 times are missing; expected none"),
    ],
)
def test_times_out_of_order(tmp_path: Path, times: np.ndarray, message: str) -> None:
    """Duplicate, unsorted and missing times are counted and named."""
    path = save(data(times), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=rf"a\.nc: {message}"):
        open_fields([path], ["t2m"])


def test_times_that_are_no_dates(tmp_path: Path) -> None:
    """Numbers without units are no times."""
    path = save(data().assign_coords(time=np.arange(48)), tmp_path / "a.nc")
    with pytest.raises(HookloopError, match=r"a\.nc: time is of type int64; expected dates"):
        open_fields([path], ["t2m"])


def test_files_that_overlap_in_time(tmp_path: Path) -> None:
    """The same times in two files are duplicates."""
    paths = [save(data(HOURS[a : a + 5]), tmp_path / f"{a}.nc") for a in (0, 3)]
    with pytest.raises(HookloopError, match="2 times occur more than once"):
        open_fields(paths, ["t2m"])


def test_no_time(tmp_path: Path) -> None:
    """A file without times is refused with what it has."""
    path = save(data().isel(time=0, drop=True), tmp_path / "static.nc")
    with pytest.raises(HookloopError, match=r"static\.nc: no coordinate time, found latitude, longitude"):
        open_fields([path], ["t2m"])


def test_terrain_beside_fields(tmp_path: Path) -> None:
    """A variable that has no time, beside others or in its file, is pointed to the statics."""
    terrain = data(name="orog").isel(time=0, drop=True)
    message = r"expected when fields of orog are valid: .* such as terrain, .*under statics"
    apart = [save(data(), tmp_path / "a.nc"), save(terrain, tmp_path / "orog.nc")]
    with pytest.raises(HookloopError, match=rf"orog\.nc: .*{message}"):
        open_fields(apart, ["t2m", "orog"])
    together = save(data().assign(orog=terrain.orog), tmp_path / "b.nc")
    with pytest.raises(HookloopError, match=rf"b\.nc: .*{message}"):
        open_fields([together], ["t2m", "orog"])


def test_no_times_at_all(tmp_path: Path) -> None:
    """A store that was begun and never filled has none."""
    path = save(data(HOURS[:0]), tmp_path / "begun.zarr")
    with pytest.raises(HookloopError, match=r"no times: .*begun\.zarr has none at all of t2m"):
        open_fields([path], ["t2m"])


def test_files_of_different_grids(tmp_path: Path) -> None:
    """Files of one side must share their grid."""
    paths = [save(data(HOURS[[n]], lat=LAT + n), tmp_path / f"{n}.nc") for n in (0, 1)]
    with pytest.raises(HookloopError, match=r"1\.nc: latitudes or longitudes differ from those of .*0\.nc"):
        open_fields(paths, ["t2m"])


def test_variable_with_another_dimension(tmp_path: Path) -> None:
    """A dimension of several cells that means nothing is refused by its name."""
    path = save(xr.concat([data(), data()], "band"), tmp_path / "bands.nc")
    with pytest.raises(HookloopError, match="t2m has dimensions band, time, latitude, longitude"):
        open_fields([path], ["t2m"])


def test_files_of_different_units(tmp_path: Path) -> None:
    """A variable is in the same units in all files, however its powers are written; both files are named."""
    paths = []
    for n, units in enumerate(("m s**-1", "m s-1", "", "km h-1")):
        part = data(HOURS[[n]], "u10")
        part["u10"].attrs = {"units": units} if units else {}
        paths.append(save(part, tmp_path / f"{n}.nc"))
    assert open_fields(paths[:3], ["u10"]).units == {"u10": "m s**-1"}
    with pytest.raises(
        HookloopError, match=r"3\.nc: u10 is in km h-1, in .*0\.nc in m s\*\*-1; expected the"
    ):
        open_fields(paths, ["u10"])


@pytest.mark.parametrize(
    ("one", "other"),
    [("m s", "ms"), ("m s-1", "ms-1"), ("K d-1", "Kd-1"), ("kg m-2", "kg m2"), ("mm", "m m")],
)
def test_units_that_look_alike(tmp_path: Path, one: str, other: str) -> None:
    """Metres times seconds are no milliseconds."""
    paths = []
    for n, units in enumerate((one, other)):
        part = data(HOURS[[n]])
        part["t2m"].attrs = {"units": units}
        paths.append(save(part, tmp_path / f"{n}.nc"))
    with pytest.raises(HookloopError, match=f"t2m is in {other}, in .* in {one}; expected the same units"):
        open_fields(paths, ["t2m"])


@pytest.mark.parametrize(
    "spellings",
    [
        ("m s-1", "m s**-1", "m s^-1", "m.s-1", "m  s -1", "m s ** -1"),
        ("W m-2", "W m**-2", "W.m^-2"),
        ("(0 - 1)", "(0-1)", "( 0 - 1 )"),
        ("m/s", "m / s"),
    ],
)
def test_spellings_of_units(tmp_path: Path, spellings: tuple[str, ...]) -> None:
    """Powers and products are written in many ways, which are one."""
    for n, units in enumerate(spellings):
        part = data(HOURS[[n]])
        part["t2m"].attrs = {"units": units}
        save(part, tmp_path / f"{n}.nc")
    assert open_fields([f"{tmp_path}/*.nc"], ["t2m"]).units == {"t2m": spellings[0]}


def test_variables_of_different_times(tmp_path: Path) -> None:
    """All variables of a side must have the same times."""
    paths = [save(data(), tmp_path / "a.nc"), save(data(HOURS[:5], "tp"), tmp_path / "b.nc")]
    with pytest.raises(HookloopError, match="tp and t2m have different times"):
        open_fields(paths, ["t2m", "tp"])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_static_field(tmp_path: Path, suffix: str) -> None:
    """It comes as it is in the file, with axes that say where its cells are; a single time is dropped."""
    north_first = data(HOURS[[5]], "z", LAT[::-1])
    static = read_static(save(north_first, tmp_path / f"z{suffix}"), "z")
    np.testing.assert_array_equal(static.values, north_first.z.to_numpy()[0].astype(np.float64))
    np.testing.assert_array_equal(static.latitude.values, LAT)
    np.testing.assert_array_equal(static.latitude.index, [3, 2, 1, 0])
    assert static.gridded
    assert not read_static(save(projected(("y", "x")).isel(time=0), tmp_path / f"p{suffix}"), "t2m").gridded


def test_static_field_that_is_none(tmp_path: Path) -> None:
    """Several times, and a variable that is not there, are refused."""
    path = save(data(), tmp_path / "z.nc")
    with pytest.raises(HookloopError, match=r"t2m has dimensions time, latitude, longitude; expected lat"):
        read_static(path, "t2m")
    with pytest.raises(HookloopError, match=r"no variable z in .*z\.nc; there is t2m"):
        read_static(path, "z")
    save(data(), tmp_path / "y.nc")
    with pytest.raises(HookloopError, match=r"\*\.nc: 2 files match; expected one for a static field"):
        read_static(f"{tmp_path}/*.nc", "t2m")


def test_damaged_static_field(tmp_path: Path) -> None:
    """A file whose values cannot be unpacked is named."""
    path = tmp_path / "z.nc"
    data().isel(time=0).to_netcdf(path, engine="h5netcdf", encoding={"t2m": {"zlib": True, "shuffle": False}})
    with h5py.File(path) as file:
        chunk = file["t2m"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    with pytest.raises(HookloopError, match=r"z\.nc: t2m cannot be read: .*; is the file damaged\?"):
        read_static(str(path), "t2m")


def test_a_file_is_looked_into_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that two splits share are opened once; one that has changed since is opened again."""
    paths = [save(data(HOURS[begin : begin + 24]), tmp_path / f"{begin}.nc") for begin in (0, 24)]
    opened: list[str] = []

    def noted(path: str, options: dict[str, object]) -> list[xr.Dataset]:
        opened.append(path)
        return open_datasets(path, options)

    monkeypatch.setattr(files, "open_datasets", noted)
    for _ in range(3):
        assert len(open_fields([str(tmp_path / "*.nc")], ["t2m"]).times) == 48
    assert opened == paths
    (tmp_path / "24.nc").unlink()
    save(data(HOURS[24:30]), tmp_path / "24.nc")
    assert len(open_fields([str(tmp_path / "*.nc")], ["t2m"]).times) == 30
    assert opened == [*paths, paths[1]]
