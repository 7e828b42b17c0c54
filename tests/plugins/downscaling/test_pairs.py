from __future__ import annotations

import os
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr

from hookloop.data.fields import Fields, whole
from hookloop.data.options import RepeatConfig, SourceConfig
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import SplitConfig
from hookloop.plugins.downscaling.pairs import Pair, gap_between, open_pair, overlap

ERA5_UK = Path(os.environ.get("ERA5_UK", Path(__file__).parents[4] / "shared" / "data" / "era5_uk"))

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


def read(fields: Fields, member: int = 0) -> np.ndarray:
    """Read all of one member, ``[time, variable, lat, lon]``."""
    times = np.arange(len(fields.times))
    return fields.read(whole(fields, times, np.full_like(times, member)))


def assert_known(pair: Pair) -> None:
    """Every value of *pair* is the one of its time and place, and coordinates ascend."""
    for fields, grid in ((pair.coarse, pair.coarse_grid), (pair.fine, pair.fine_grid)):
        assert (np.diff(grid.latitude) > 0).all()
        assert (np.diff(grid.longitude) > 0).all()
        expected = known(pair.times, grid.latitude, grid.longitude)
        values = read(fields)
        assert values.shape == (len(pair.times), 1, *grid.shape)
        np.testing.assert_allclose(values[:, 0], expected, rtol=1e-6, atol=5e-3)
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
    nine = -2.5 + (np.arange(9) + 0.5) * 5 / 9  # in the place of five
    fine = save(data(fine_of(COARSE_LAT, 2), nine), tmp_path / "nine.nc")
    with pytest.raises(
        HookloopError,
        match=r"coarse \(4, 5\) cells of 1° x 1° from 49.5°, -2.5° in .*, fine \(8, 9\) cells of 0.5° x .*nine\.nc",
    ):
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
    """NaN and infinity are named by variable, share and first place when they are read."""
    _coarse, fine = pair_files(tmp_path)
    dataset = data(COARSE_LAT, np.arange(-2, 3.0))
    dataset["t2m"][5, 2, 1] = value
    dataset["t2m"][7, 0, 0] = value
    bad = save(dataset, tmp_path / "bad.nc")
    pair = open_pair(SplitConfig(coarse=[bad], fine=[fine]), ["t2m"], ["t2m"])
    message = r"t2m: 2 of 960 values \(0\.21%\).* 2019-03-22T05:00, latitude 52, longitude -1 in .*bad\.nc"
    with pytest.raises(HookloopError, match=message):
        read(pair.coarse)


def test_split_needs_files() -> None:
    """A split without files or samples is refused."""
    with pytest.raises(ValueError, match="coarse"):
        SplitConfig(coarse=[], fine=["x"])
    with pytest.raises(ValueError, match="batch_size"):
        SplitConfig(coarse=["x"], fine=["x"], batch_size=0)


def test_nothing_is_read_at_opening(tmp_path: Path) -> None:
    """Opening tells how much there is, without a look at the values."""
    coarse, fine = pair_files(tmp_path)
    pair = open_pair(SplitConfig(coarse=[coarse], fine=[fine]), ["t2m"], ["t2m"])
    assert (pair.n_cases, pair.members) == (48, 1)
    assert pair.nbytes == 4 * 48 * (4 * 5 + 8 * 10)
    assert (pair.inputs, pair.outputs, pair.notes) == (["t2m"], ["t2m"], [])


def test_selection_is_of_both(tmp_path: Path) -> None:
    """Ranges, steps and blocks choose the same times of both files, and their values are those of these times."""
    coarse, fine = pair_files(tmp_path)
    split = SplitConfig(
        coarse=[coarse],
        fine=[fine],
        time=[("2019-03-22T02", "2019-03-22T12"), ("2019-03-23T06", "2019-03-23T20")],
        every="2h",
        repeat=RepeatConfig(every="1d", take="8h", start="4h"),
    )
    pair = open_pair(split, ["t2m"], ["t2m"])
    np.testing.assert_array_equal(pair.times, HOURS[[6, 8, 10, 12, 30, 32, 34, 36]])
    assert_known(pair)


def test_regional_fine_file_in_a_coarse_globe(tmp_path: Path) -> None:
    """Without a box the coarse cells are used that fine ones fill, and a note says which."""
    lon = np.arange(0.0, 360)
    coarse = save(data(np.arange(40.0, 60), lon, HOURS[:2]), tmp_path / "coarse.nc")
    fine = save(data(fine_of(COARSE_LAT, 3), fine_of(COARSE_LON, 3), HOURS[:2]), tmp_path / "fine.nc")
    pair = open_pair(SplitConfig(coarse=[coarse], fine=[fine]), ["t2m"], ["t2m"])
    np.testing.assert_allclose(pair.coarse_grid.latitude, COARSE_LAT)
    np.testing.assert_allclose(pair.coarse_grid.longitude, COARSE_LON)
    assert [note.split(":")[0] for note in pair.notes] == ["latitude", "longitude"]
    assert_known(pair)


@pytest.mark.parametrize(
    ("box", "periodic"), [(None, True), ((-180, 180), True), ((90, 449), True), ((-90, 90), False)]
)
def test_global_pair(tmp_path: Path, box: tuple[float, float] | None, *, periodic: bool) -> None:
    """A globe from 0 to 360 is rolled to the west end of a box, and wraps where the box is all of it."""
    lon, lat = np.arange(0.0, 360, 10), np.arange(-85.0, 90, 10)
    coarse = save(data(lat[::-1], lon, HOURS[:2]), tmp_path / "coarse.zarr")
    inside = (np.arange(4) + 0.5) * 2.5 - 5
    fine_lat, fine_lon = ((axis[:, None] + inside).reshape(-1) for axis in (lat, lon))
    fine = save(data(fine_lat, np.sort(np.mod(fine_lon, 360)), HOURS[:2]), tmp_path / "fine.zarr")
    pair = open_pair(SplitConfig(coarse=[coarse], fine=[fine], lon=box), ["t2m"], ["t2m"])
    assert pair.periodic == periodic
    assert pair.coarse_grid.longitude[0] == pytest.approx(0 if box is None else box[0])
    assert pair.coarse_grid.shape == (18, 36 if periodic else 19)
    assert_known(pair)


def ensemble(tmp_path: Path) -> str:
    """Write a coarse file of three members, whose values differ by 1e6."""
    one = data(COARSE_LAT, COARSE_LON, HOURS[:4])
    together = xr.concat([one + 1e6 * n for n in range(3)], xr.Variable("number", np.arange(3)))
    return save(together, tmp_path / "ensemble.nc")


def test_members_are_of_the_coarse_fields(tmp_path: Path) -> None:
    """Each member of a time is a case, and all have the fine field of that time."""
    _, fine = pair_files(tmp_path, times=HOURS[:4])
    source = SourceConfig(ensemble(tmp_path), ensemble="number")
    pair = open_pair(SplitConfig(coarse=[source], fine=[fine]), ["t2m"], ["t2m"])
    assert (pair.members, pair.n_cases, len(pair.times)) == (3, 12, 4)
    assert pair.nbytes == 4 * (12 * 4 * 5 + 4 * 8 * 10)
    np.testing.assert_allclose(read(pair.coarse, 2) - read(pair.coarse, 0), 2e6)


def test_members_of_fine_fields(tmp_path: Path) -> None:
    """A fine ensemble is refused: which member belongs to which is not known."""
    source = SourceConfig(ensemble(tmp_path), ensemble="number")
    with pytest.raises(
        HookloopError, match=r"ensemble\.nc: 3 ensemble members of the fine fields; expected one"
    ):
        open_pair(SplitConfig(coarse=[source], fine=[source]), ["t2m"], ["t2m"])


def test_other_units(tmp_path: Path) -> None:
    """A variable in other units on the other side is pointed out."""
    coarse, _ = pair_files(tmp_path)
    celsius = data(fine_of(COARSE_LAT, 2), fine_of(COARSE_LON, 2))
    celsius["t2m"].attrs["units"] = "degC"
    fine = save(celsius, tmp_path / "celsius.nc")
    pair = open_pair(SplitConfig(coarse=[coarse], fine=[fine]), ["t2m"], ["t2m"])
    assert pair.notes == [f"units of t2m: K in {coarse}, degC in {fine}"]


def test_files_may_go_beyond_the_range(tmp_path: Path) -> None:
    """Variables whose files begin and end at different times are merged over the range that is asked for."""
    coarse, fine = pair_files(tmp_path)
    longer = xr.load_dataset(coarse, engine="h5netcdf").rename(t2m="d2m").isel(time=slice(3, None))
    dew = save(longer, tmp_path / "dew.nc")
    times = longer.time.to_numpy()[[2, 5]]
    span = tuple(np.datetime_as_string(times, unit="h").tolist())
    split = SplitConfig(coarse=[coarse, dew], fine=[fine], time=span)
    assert len(open_pair(split, ["t2m", "d2m"], ["t2m"]).times) == 4
    with pytest.raises(HookloopError, match="d2m and t2m have different times"):
        open_pair(SplitConfig(coarse=[coarse, dew], fine=[fine]), ["t2m", "d2m"], ["t2m"])


def test_fill_goes_to_its_side(tmp_path: Path) -> None:
    """Missing values come out as what stands in for them."""
    _, fine = pair_files(tmp_path)
    holey = data(COARSE_LAT, COARSE_LON)
    holey["t2m"][5, 2, 1] = np.nan
    coarse = save(holey, tmp_path / "holey.nc")
    pair = open_pair(SplitConfig(coarse=[coarse], fine=[fine]), ["t2m"], ["t2m"], fill={"t2m": 7.0})
    assert read(pair.coarse)[5, 0, 2, 1] == 7.0


def series(path: Path, times: np.ndarray, cells: int = 4) -> str:
    """Write a field of so many cells each way, whose values are the numbers of the times."""
    values = np.broadcast_to(np.arange(float(len(times)))[:, None, None], (len(times), cells, cells))
    axis = 50 + (np.arange(cells) + 0.5) * 4 / cells
    where = {"time": times, "latitude": axis, "longitude": axis}
    return save(xr.Dataset({"t2m": (("time", "latitude", "longitude"), values)}, where), path)


def calendar_days(calendar: str, days: int, hour: int = 0) -> np.ndarray:
    """Give daily dates of *calendar* from 2001 on."""
    return cftime.num2date(np.arange(days) + hour / 24, "days since 2001-01-01", calendar)


@pytest.mark.parametrize(("calendar", "year"), [("noleap", 365), ("360_day", 360)])
def test_calendars_of_climate_models(tmp_path: Path, calendar: str, year: int) -> None:
    """A year of a model's calendar is all of its days."""
    days = calendar_days(calendar, 3 * year)
    split = SplitConfig(
        coarse=[series(tmp_path / "c.nc", days)],
        fine=[series(tmp_path / "f.nc", days, 8)],
        time=("2002", "2002"),
    )
    pair = open_pair(split, ["t2m"], ["t2m"])
    assert len(pair.times) == year
    for fields in (pair.coarse, pair.fine):
        np.testing.assert_array_equal(read(fields)[:, 0, 0, 0], np.arange(year, 2 * year))


def test_two_calendars(tmp_path: Path) -> None:
    """Dates of two calendars are never the same, even where they look so."""
    split = SplitConfig(
        coarse=[series(tmp_path / "c.nc", calendar_days("noleap", 20))],
        fine=[series(tmp_path / "f.nc", calendar_days("360_day", 20), 8)],
    )
    with pytest.raises(HookloopError, match=r"calendars do not match: noleap in .*c\.nc, 360_day in .*f\.nc"):
        open_pair(split, ["t2m"], ["t2m"])


@pytest.mark.parametrize("hours", [(0, 12), (12, 0)])
@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_days_of_other_hours_by_index(tmp_path: Path, calendar: str, hours: tuple[int, int]) -> None:
    """Daily fields at midnight and at noon belong together by day, and a note says so."""
    split = SplitConfig(
        coarse=[series(tmp_path / "c.nc", calendar_days(calendar, 60, hours[0]))],
        fine=[series(tmp_path / "f.nc", calendar_days(calendar, 70, hours[1]), 8)],
        time=("2001-01-05", "2001-02-20"),
    )
    pair = open_pair(split, ["t2m"], ["t2m"], pairing="index")
    np.testing.assert_array_equal(read(pair.coarse)[:, 0, 0, 0], read(pair.fine)[:, 0, 0, 0])
    assert pair.times is pair.coarse.times
    (note,) = pair.notes
    assert f"by day: 2001-01-05T{hours[0]:02}:00 in" in note
    assert f"with 2001-01-05T{hours[1]:02}:00 in" in note
    with pytest.raises(HookloopError, match="times do not match"):
        open_pair(split, ["t2m"], ["t2m"])


def test_days_that_one_side_has_not(tmp_path: Path) -> None:
    """Matched by day, a day of one side alone is still refused, and no other is named."""
    days = np.datetime64("2001-01-01", "ns") + np.arange(9) * np.timedelta64(1, "D")
    split = SplitConfig(
        coarse=[series(tmp_path / "c.nc", np.delete(days, 4))],
        fine=[series(tmp_path / "f.nc", days + np.timedelta64(12, "h"), 8)],
    )
    with pytest.raises(
        HookloopError, match=r"match: 1 only in .*f\.nc, the first 2001-01-05T12:00; expected"
    ):
        open_pair(split, ["t2m"], ["t2m"], pairing="index")


@pytest.mark.parametrize(("coarse", "fine"), [(6, 6), (6, 24), (24, 6)])
def test_hours_by_index(tmp_path: Path, coarse: int, fine: int) -> None:
    """Where one side has several times a day both are compared to the hour, by index too."""
    split = SplitConfig(
        coarse=[series(tmp_path / "c.nc", HOURS[:48:coarse])],
        fine=[series(tmp_path / "f.nc", HOURS[1:48:fine], 8)],
    )
    message = rf"{48 // coarse} only in .*c\.nc.*{48 // fine} only in .*f\.nc"
    with pytest.raises(HookloopError, match=message):
        open_pair(split, ["t2m"], ["t2m"], pairing="index")


def test_predictors_and_targets_of_other_extents(tmp_path: Path) -> None:
    """As in CORDEX-ML-Bench: 16x16 cells of 2°, north first, and 128x128 projected ones of about 11 km."""
    day = np.datetime64("2001-01-01", "ns") + np.arange(2) * np.timedelta64(1, "D")
    coarse_lat, coarse_lon = np.arange(61.0, 30, -2), np.arange(-9.0, 23, 2)
    rng = np.random.default_rng(0)
    values, truth = rng.normal(size=(2, 2, 16, 16)), rng.normal(size=(2, 128, 128))
    dims = ("time", "lat", "lon")
    where = {"time": day, "lat": coarse_lat, "lon": coarse_lon}
    coarse = save(
        xr.Dataset({n: (dims, v) for n, v in zip("uv", values, strict=True)}, where), tmp_path / "p.nc"
    )
    fine = save(
        xr.Dataset({"tasmax": (("time", "y", "x"), truth)}, {"time": day + np.timedelta64(12, "h")}),
        tmp_path / "t.nc",
    )
    split = SplitConfig(coarse=[coarse], fine=[fine])
    pair = open_pair(split, ["u", "v"], ["tasmax"], pairing="index")
    assert pair.factor == 8
    np.testing.assert_allclose(read(pair.coarse), values.transpose(1, 0, 2, 3)[:, :, ::-1], rtol=1e-6)
    np.testing.assert_allclose(read(pair.fine)[:, 0], truth, rtol=1e-6)
    assert pair.coarse_grid.gridded
    assert not pair.fine_grid.gridded
    with pytest.raises(HookloopError, match=r"t\.nc: no latitude and longitude .*pairing: index"):
        open_pair(SplitConfig(coarse=[fine], fine=[fine]), ["tasmax"], ["tasmax"])


@pytest.mark.parametrize("fine_north_first", [True, False])
@pytest.mark.parametrize("coarse_is_projected", [True, False])
@pytest.mark.parametrize("coarse_north_first", [True, False])
@pytest.mark.parametrize("known", ["axes", "places"])
def test_projected_rows_are_not_mirrored(
    tmp_path: Path, known: str, *, fine_north_first: bool, coarse_is_projected: bool, coarse_north_first: bool
) -> None:
    """Whichever way rows run on either side, by index the means of fine cells are the coarse values."""
    truth = np.random.default_rng(0).normal(size=(1, 8, 10))
    means = truth.reshape(1, 4, 2, 5, 2).mean((2, 4))
    paths = []
    for name, values, lat, lon, is_projected, north_first in (
        ("coarse", means, COARSE_LAT, COARSE_LON, coarse_is_projected, coarse_north_first),
        ("fine", truth, fine_of(COARSE_LAT, 2), fine_of(COARSE_LON, 2), True, fine_north_first),
    ):
        plane = ("y", "x") if is_projected else ("lat", "lon")
        where: dict[str, object] = {"time": HOURS[:1]}
        if is_projected and known == "places":
            cells = np.meshgrid(lat, lon, indexing="ij")
            where |= {"lat": (plane, cells[0]), "lon": (plane, cells[1])}
        elif is_projected:
            where |= {"y": lat * 110.0, "x": lon * 70.0}
        else:
            where |= {"lat": lat, "lon": lon}
        field = xr.Dataset({"t2m": (("time", *plane), values)}, where)
        field = field.isel({plane[0]: slice(None, None, -1)}) if north_first else field
        paths.append(save(field, tmp_path / f"{name}.nc"))
    pair = open_pair(SplitConfig(coarse=paths[:1], fine=paths[1:]), ["t2m"], ["t2m"], pairing="index")
    assert pair.notes == []
    np.testing.assert_allclose(read(pair.fine)[:, 0], truth, rtol=1e-6)
    np.testing.assert_allclose(read(pair.coarse)[:, 0], means, rtol=1e-6)
    order = pair.fine_grid.order[0]
    assert order is not None
    assert order.tolist() == list(range(8))[:: -1 if fine_north_first else 1]


def test_notes_of_the_files_are_those_of_the_pair(tmp_path: Path) -> None:
    """What is worth knowing of a store is known of the pair."""
    _, fine = pair_files(tmp_path)
    store = tmp_path / "coarse.zarr"
    packed = {"t2m": {"dtype": "int32", "scale_factor": 0.01, "_FillValue": -1}}
    data(COARSE_LAT, COARSE_LON).to_zarr(store, zarr_format=3, consolidated=False, encoding=packed)
    pair = open_pair(SplitConfig(coarse=[str(store)], fine=[fine]), ["t2m"], ["t2m"])
    (note,) = pair.notes
    assert "coarse.zarr: a chunk of t2m that is lost would be read as 0" in note


def of_hours(folder: Path, first: int, last: int) -> Pair:
    """Open the hours from *first* to before *last* of a pair of files."""
    times = [str(HOURS[n])[:13] for n in (first, last - 1)]
    split = SplitConfig(
        coarse=[str(folder / "coarse.nc")], fine=[str(folder / "fine.nc")], time=(times[0], times[1])
    )
    return open_pair(split, ["t2m"], ["t2m"])


def test_gap_between_splits(tmp_path: Path) -> None:
    """Training hours within the gap of any validation hour are left out of both files, and counted."""
    pair_files(tmp_path)
    train = of_hours(tmp_path, 0, 40)
    seen = [of_hours(tmp_path, 20, 22), of_hours(tmp_path, 40, 48)]
    apart = gap_between(train, seen, "3h")
    np.testing.assert_array_equal(apart.times, HOURS[[*range(18), *range(24, 38)]])
    assert apart.notes == [
        "gap: 8 of 40 training times are nearer than 3h to one that is only looked at, and left out"
    ]
    assert_known(apart)
    assert gap_between(apart, seen, "3h") is apart
    assert [overlap(train, pair) for pair in seen] == [2, 0]
    assert [overlap(apart, pair) for pair in seen] == [0, 0]


def test_gap_that_leaves_nothing(tmp_path: Path) -> None:
    """A gap as long as the data is refused."""
    pair_files(tmp_path)
    message = "gap: 10 of 10 training times are nearer than 2d to one .* 2019-03-22T00:00 to 2019-03-22T09:00"
    with pytest.raises(HookloopError, match=message):
        gap_between(of_hours(tmp_path, 0, 10), [of_hours(tmp_path, 20, 30)], "2d")


def test_another_calendar_is_no_neighbour(tmp_path: Path) -> None:
    """Times of two calendars cannot be near, nor the same."""
    pairs = []
    for calendar in ("noleap", "standard"):
        days = calendar_days(calendar, 20)
        files = [series(tmp_path / f"{calendar}{cells}.nc", days, cells) for cells in (4, 8)]
        pairs.append(open_pair(SplitConfig(coarse=files[:1], fine=files[1:]), ["t2m"], ["t2m"]))
    assert gap_between(*pairs[:1], pairs[1:], "5d") is pairs[0]
    assert overlap(*pairs) == 0


@pytest.mark.realdata
@pytest.mark.skipif(not ERA5_UK.is_dir(), reason="the ERA5 sample is not here; set ERA5_UK to its directory")
def test_real_fields_average_to_the_coarse_ones() -> None:
    """ERA5 over the United Kingdom, north first and across 0°: the means of fine cells are the coarse values."""
    split = SplitConfig(
        coarse=[str(ERA5_UK / "coarse.nc")],
        fine=[str(ERA5_UK / "fine.nc")],
        time=("2019-03-05", "2019-03-06"),
        every="6h",
    )
    pair = open_pair(split, ["t2m"], ["t2m"])
    assert (pair.factor, len(pair.times), pair.notes, pair.periodic) == (4, 8, [], False)
    assert pair.coarse_grid.longitude[0] < 0 < pair.coarse_grid.longitude[-1]
    assert pair.coarse.latitude.index.tolist() == list(range(8))[::-1]
    blocks = read(pair.fine).reshape(8, 1, 8, 4, 12, 4).mean((3, 5))
    np.testing.assert_allclose(blocks, read(pair.coarse), atol=0.02)
