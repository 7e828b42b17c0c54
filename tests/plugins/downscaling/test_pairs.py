from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.pairs import SplitConfig, day_of_year, hour_of_day, open_pair

if TYPE_CHECKING:
    from pathlib import Path

HOURS = np.datetime64("2019-03-22T00", "ns") + np.arange(48) * np.timedelta64(1, "h")
COARSE_LAT, COARSE_LON = np.arange(50, 54.0), np.arange(-2, 3.0)


def fine_of(centres: np.ndarray, factor: int) -> np.ndarray:
    """Fine centres below cell-centred coarse *centres* one degree apart."""
    inside = (np.arange(factor) + 0.5) / factor - 0.5
    return (centres[:, None] + inside).reshape(-1)


def known(times: np.ndarray, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Make a field whose value tells time and place: hours since the first, latitude and longitude."""
    hours = (times - HOURS[0]) / np.timedelta64(1, "h")
    return hours[:, None, None] * 1000.0 + lat[:, None] + np.mod(lon, 360) / 1000


def data(lat: np.ndarray, lon: np.ndarray, times: np.ndarray = HOURS, name: str = "t2m") -> xr.Dataset:
    """Make a dataset of the known field."""
    values = known(times, lat, lon)
    return xr.Dataset(
        {name: (("time", "latitude", "longitude"), values, {"units": "K"})},
        {"time": times, "latitude": lat, "longitude": lon},
    )


def save(dataset: xr.Dataset, path: Path) -> str:
    """Write *dataset* as what the suffix says."""
    if path.suffix == ".zarr":
        dataset.to_zarr(path, zarr_format=2)
    else:
        dataset.to_netcdf(path, engine="h5netcdf")
    return str(path)


def pair_files(
    folder: Path,
    lat: np.ndarray = COARSE_LAT,
    lon: np.ndarray = COARSE_LON,
    factor: int = 2,
    times: np.ndarray = HOURS,
) -> tuple[str, str]:
    """Write a coarse and a fine file that match."""
    coarse = save(data(lat, lon, times), folder / "coarse.nc")
    return coarse, save(data(fine_of(lat, factor), fine_of(lon, factor), times), folder / "fine.nc")


def assert_known(pair: object) -> None:
    """Every value of *pair* is the one of its time and place, and coordinates ascend."""
    for tensor, grid in ((pair.coarse, pair.coarse_grid), (pair.fine, pair.fine_grid)):
        assert (np.diff(grid.latitude) > 0).all()
        assert (np.diff(grid.longitude) > 0).all()
        expected = known(pair.times, grid.latitude, grid.longitude)
        assert tensor.shape == (len(pair.times), 1, *grid.shape)
        np.testing.assert_allclose(tensor[:, 0].numpy(), expected, rtol=1e-6, atol=5e-3)
    blocks = pair.fine_grid.longitude.reshape(-1, pair.factor).mean(1)
    np.testing.assert_allclose(blocks, pair.coarse_grid.longitude, atol=1e-9)


@pytest.mark.parametrize("coarse_north_first", [False, True])
@pytest.mark.parametrize("fine_north_first", [False, True])
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_rows_ascend_whichever_way_files_run(
    tmp_path: Path, *, coarse_north_first: bool, fine_north_first: bool, suffix: str
) -> None:
    """Latitude of either file may ascend or descend; both come out south to north, in step."""
    lon = np.arange(5, 9.0)
    coarse, fine = data(COARSE_LAT, lon), data(fine_of(COARSE_LAT, 4), fine_of(lon, 4))
    coarse = coarse.isel(latitude=slice(None, None, -1)) if coarse_north_first else coarse
    fine = fine.isel(latitude=slice(None, None, -1)) if fine_north_first else fine
    split = SplitConfig(
        coarse=[save(coarse, tmp_path / f"coarse{suffix}")], fine=[save(fine, tmp_path / f"fine{suffix}")]
    )
    pair = open_pair(split, ["t2m"], ["t2m"])
    assert pair.factor == 4
    assert pair.units == {"t2m": "K"}
    assert_known(pair)


@pytest.mark.parametrize("box", [(-3.0, 2.0), (357.0, 2.0), (357.0, 362.0)])
@pytest.mark.parametrize("coarse_from", [-180, 0])
@pytest.mark.parametrize("fine_from", [-180, 0])
def test_region_across_zero(
    tmp_path: Path, box: tuple[float, float], coarse_from: int, fine_from: int
) -> None:
    """A box across 0 is -3 … 2 in every convention of box and files."""
    lon = np.arange(coarse_from, coarse_from + 360.0)
    fine_lon = fine_of(np.arange(fine_from, fine_from + 360.0), 2)
    split = SplitConfig(
        coarse=[save(data(COARSE_LAT, lon), tmp_path / "coarse.nc")],
        fine=[save(data(fine_of(COARSE_LAT, 2), fine_lon), tmp_path / "fine.nc")],
        lon=box,
        lat=(51, 52),
        time=("2019-03-22T03", "2019-03-22T04"),
    )
    pair = open_pair(split, ["t2m"], ["t2m"])
    np.testing.assert_allclose(pair.coarse_grid.longitude, [-3, -2, -1, 0, 1, 2])
    np.testing.assert_allclose(pair.coarse_grid.latitude, [51, 52])
    assert_known(pair)


@pytest.mark.parametrize("box", [(178.0, -178.0), (178.0, 182.0), (-182.0, -178.0)])
def test_region_across_180(tmp_path: Path, box: tuple[float, float]) -> None:
    """A box across 180 comes out monotonic from files that break there."""
    lon = np.arange(-180, 180.0)
    split = SplitConfig(
        coarse=[save(data(COARSE_LAT, lon), tmp_path / "coarse.nc")],
        fine=[save(data(fine_of(COARSE_LAT, 2), fine_of(lon, 2)), tmp_path / "fine.nc")],
        lon=box,
        time=("2019-03-22T03", "2019-03-22T03"),
    )
    pair = open_pair(split, ["t2m"], ["t2m"])
    np.testing.assert_allclose(pair.coarse_grid.longitude, [178, 179, 180, 181, 182])
    assert_known(pair)


def test_regional_file_that_breaks_at_zero(tmp_path: Path) -> None:
    """A region stored as 358, 359, 0, 1 comes out as -2, -1, 0, 1, without any box."""
    lon, fine_lon = np.array([358.0, 359, 0, 1]), np.mod(fine_of(np.arange(-2, 2.0), 2), 360)
    split = SplitConfig(
        coarse=[save(data(COARSE_LAT, lon), tmp_path / "coarse.nc")],
        fine=[save(data(fine_of(COARSE_LAT, 2), fine_lon), tmp_path / "fine.nc")],
    )
    pair = open_pair(split, ["t2m"], ["t2m"])
    np.testing.assert_allclose(pair.coarse_grid.longitude, [-2, -1, 0, 1])
    assert_known(pair)


def test_whole_globe_from_either_beginning(tmp_path: Path) -> None:
    """A coarse globe from 0 and a fine one from -180 come out in step, from where the coarse one begins."""
    lon = np.arange(0.0, 360, 30)
    fine_lon = np.arange(-180 + 7.5, 180, 15)
    lat = np.array([-30.0, 0, 30])
    coarse = save(data(lat, lon), tmp_path / "coarse.nc")
    fine = save(data(np.array([-37.5, -22.5, -7.5, 7.5, 22.5, 37.5]), fine_lon), tmp_path / "fine.nc")
    pair = open_pair(SplitConfig(coarse=[coarse], fine=[fine], lon=(0, 360)), ["t2m"], ["t2m"])
    np.testing.assert_allclose(pair.coarse_grid.longitude, lon)
    np.testing.assert_allclose(pair.fine_grid.longitude[:2], [-7.5, 7.5])
    assert_known(pair)


def test_single_precision_coordinates_of_a_quarter_degree(tmp_path: Path) -> None:
    """Coordinates rounded to float32 and a box on their centres lose no cell."""
    lat, lon = np.arange(490, 500) / 10, np.arange(3501, 3606) / 10 % 360
    step = 0.1 / 4
    fine_lon = (lon[:, None] + np.array([-1, 1]) * step).reshape(-1) % 360
    fine_lat = (lat[:, None] + np.array([-1, 1]) * step).reshape(-1)
    files = []
    for name, a, b in (("coarse", lat, lon), ("fine", fine_lat, fine_lon)):
        dataset = data(a, b)
        single = {c: dataset[c].astype(np.float32) for c in ("latitude", "longitude")}
        files.append(save(dataset.assign_coords(single), tmp_path / f"{name}.nc"))
    split = SplitConfig(coarse=[files[0]], fine=[files[1]], lat=(49.2, 49.8), lon=(-9.9, 0.3))
    pair = open_pair(split, ["t2m"], ["t2m"])
    assert pair.coarse_grid.shape == (7, 103)
    assert pair.fine_grid.shape == (14, 206)


def test_time_range_is_closed_and_a_day_is_a_whole_day(tmp_path: Path) -> None:
    """Both ends are included, and a date alone stands for all its hours."""
    coarse, fine = pair_files(tmp_path)
    split = SplitConfig(coarse=[coarse], fine=[fine], time=("2019-03-22T22", "2019-03-23"))
    pair = open_pair(split, ["t2m"], ["t2m"])
    np.testing.assert_array_equal(pair.times, HOURS[22:])
    assert pair.times.dtype == "datetime64[ns]"
    assert_known(pair)


def test_times_outside_the_range_need_not_match(tmp_path: Path) -> None:
    """Coarse and fine are cut to the range before their times are compared."""
    lon = np.arange(5, 9.0)
    coarse = save(data(COARSE_LAT, lon, HOURS[:30]), tmp_path / "coarse.nc")
    fine = save(data(fine_of(COARSE_LAT, 2), fine_of(lon, 2), HOURS[20:]), tmp_path / "fine.nc")
    split = SplitConfig(coarse=[coarse], fine=[fine], time=("2019-03-22T20", "2019-03-23T05"))
    np.testing.assert_array_equal(open_pair(split, ["t2m"], ["t2m"]).times, HOURS[20:30])
    with pytest.raises(
        HookloopError, match=r"20 only in .*coarse\.nc.* 2019-03-22T00:00, .*18 only in .*fine\.nc"
    ):
        open_pair(SplitConfig(coarse=[coarse], fine=[fine]), ["t2m"], ["t2m"])


def test_grids_that_do_not_divide(tmp_path: Path) -> None:
    """Both shapes and both paths are named where fine cells do not fill the coarse ones."""
    coarse, _ = pair_files(tmp_path)
    fine = save(data(fine_of(COARSE_LAT, 2), fine_of(np.arange(-2, 3.0), 2)[:-1]), tmp_path / "short.nc")
    with pytest.raises(HookloopError, match=r"coarse \(4, 5\) in .*coarse\.nc, fine \(8, 9\) in .*short\.nc"):
        open_pair(SplitConfig(coarse=[coarse], fine=[fine]), ["t2m"], ["t2m"])


def test_two_factors(tmp_path: Path) -> None:
    """A factor that differs between latitude and longitude is refused."""
    coarse, _ = pair_files(tmp_path)
    fine = save(data(fine_of(COARSE_LAT, 2), fine_of(np.arange(-2, 3.0), 4)), tmp_path / "odd.nc")
    with pytest.raises(HookloopError, match="factor is 2 in latitude and 4 in longitude"):
        open_pair(SplitConfig(coarse=[coarse], fine=[fine]), ["t2m"], ["t2m"])


def test_cells_that_are_not_centred(tmp_path: Path) -> None:
    """Coarse cells picked from the fine grid, not averaged over it, are refused with both extents."""
    coarse, _ = pair_files(tmp_path)
    shifted = fine_of(np.arange(-2, 3.0), 2) + 0.05
    fine = save(data(fine_of(COARSE_LAT, 2), shifted), tmp_path / "shifted.nc")
    with pytest.raises(
        HookloopError, match=r"longitude .* up to 0\.05 degrees: centres -2 to 2 .* -2\.2 to 2\.3"
    ):
        open_pair(SplitConfig(coarse=[coarse], fine=[fine]), ["t2m"], ["t2m"])


@pytest.mark.parametrize(
    ("lat", "lon", "message"),
    [
        ((40, 52), None, r"latitude 40 to 52 .* 49\.5 to 53\.5"),
        ((51.2, 51.4), None, r"latitude 51\.2 to 51\.4 .*cells of 1 degrees"),
        (None, (-20, 1), r"longitude -20 to 1 .* -2\.5 to 2\.5"),
        (None, (1, 90), r"longitude 1 to 90 .* -2\.5 to 2\.5"),
        (None, (2, -2), r"longitude 2 to -2 .* -2\.5 to 2\.5"),
    ],
)
def test_region_outside_the_grid(
    tmp_path: Path, lat: tuple[float, float] | None, lon: tuple[float, float] | None, message: str
) -> None:
    """A region that the file does not cover, or that holds no centre, is named with what the file has."""
    coarse, fine = pair_files(tmp_path)
    with pytest.raises(HookloopError, match=message):
        open_pair(SplitConfig(coarse=[coarse], fine=[fine], lat=lat, lon=lon), ["t2m"], ["t2m"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_value_that_is_not_finite(tmp_path: Path, value: float) -> None:
    """NaN and infinity are named by variable, share and first place."""
    _coarse, fine = pair_files(tmp_path)
    dataset = data(COARSE_LAT, np.arange(-2, 3.0))
    dataset["t2m"][5, 2, 1] = value
    dataset["t2m"][7, 0, 0] = value
    bad = save(dataset, tmp_path / "bad.nc")
    message = r"t2m: 2 of 960 values \(0\.21%\).* 2019-03-22T05:00, latitude 52, longitude -1 in .*bad\.nc"
    with pytest.raises(HookloopError, match=message):
        open_pair(SplitConfig(coarse=[bad], fine=[fine]), ["t2m"], ["t2m"])


def test_hour_and_day() -> None:
    """Half past six on 1 February is hour 6.5 of the day and day 31 + 6.5/24 of the year."""
    times = np.array(["2020-02-01T06:30", "2019-12-31T23:00"], "datetime64[ns]")
    np.testing.assert_allclose(hour_of_day(times), [6.5, 23.0])
    np.testing.assert_allclose(day_of_year(times), [31 + 6.5 / 24, 364 + 23 / 24], rtol=1e-6)


def test_split_needs_files() -> None:
    """A split without files or samples is refused."""
    with pytest.raises(ValueError, match="coarse"):
        SplitConfig(coarse=[], fine=["x"])
    with pytest.raises(ValueError, match="batch_size"):
        SplitConfig(coarse=["x"], fine=["x"], batch_size=0)
