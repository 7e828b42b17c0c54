"""Which cells belong together; ``HOOKLOOP_EXAMPLES=100000`` tries that many of each property."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attrs import frozen
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop.data.fields import Fields
from hookloop.data.grids import Axis, latitude_axis, longitude_axis
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.alignment import by_cells, by_index
from hookloop.plugins.downscaling.data_options import SplitConfig

NOW = np.array(["2019-03-22"], "datetime64[ns]")


@frozen(eq=False)
class File:
    """Coordinates as a file has them: any convention, any order, either precision."""

    latitude: np.ndarray
    longitude: np.ndarray

    def fields(self, where: str) -> Fields:
        """Order them; there are no variables."""
        return Fields(where, {}, NOW, latitude_axis(self.latitude), longitude_axis(self.longitude))


@frozen(eq=False)
class Case:
    """A coarse and a fine file whose cells fit, and which coarse cells both have."""

    coarse: File
    fine: File
    factor: int
    circle: int
    """Coarse cells around the globe."""
    latitude: np.ndarray
    """Coarse centres that fine cells fill, northwards."""
    longitude: np.ndarray
    """Likewise, eastwards."""
    is_globe: bool

    @property
    def step(self) -> float:
        """Width of a coarse cell."""
        return 360 / self.circle


def split(**options: Any) -> SplitConfig:
    """Make a split that is nothing but a region."""
    return SplitConfig(coarse=["x"], fine=["x"], **options)


def file(latitude: np.ndarray, longitude: np.ndarray, draw: st.DrawFn) -> File:
    """Store ascending coordinates in some way."""
    convention = draw(st.sampled_from([0.0, -180.0, -360.0]))
    longitude = np.roll(
        np.mod(longitude - convention, 360) + convention, draw(st.integers(0, len(longitude)))
    )
    latitude = latitude[::-1] if draw(st.booleans()) else latitude
    kind = draw(st.sampled_from([np.float32, np.float64]))
    return File(latitude.astype(kind), longitude.astype(kind))


def centres(first: float, step: float, cells: int) -> np.ndarray:
    """Centres of *cells* from the edge *first* on."""
    return first + (np.arange(cells) + 0.5) * step


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any globe or part of it, each file with cells of its own around those that both have."""
    circle, factor = draw(st.sampled_from([8, 12, 36, 90, 144])), draw(st.integers(1, 4))
    step = 360 / circle
    west = draw(st.integers(-16, 16)) * step / 8 + draw(st.integers(0, circle)) * step
    rows = draw(st.integers(2, min(6, circle // 2)))
    south = -90 + draw(st.integers(0, 8 * (circle // 2 - rows))) * step / 8
    is_globe = draw(st.booleans())
    columns = circle if is_globe else draw(st.integers(2, circle - 2))
    # Either side may have more than the other at each end; the fine one also parts of a coarse cell.
    more = [draw(st.integers(0, 0 if is_globe else n)) for n in (1, 0, factor - 1, factor - 1)]
    spare = [int(draw(st.booleans())) for _ in "sn"]
    return Case(
        file(
            centres(south - spare[0] * step, step, rows + sum(spare)),
            centres(west - more[0] * step, step, columns + more[0] + more[1]),
            draw,
        ),
        file(
            centres(south, step / factor, rows * factor),
            centres(west - more[2] * step / factor, step / factor, columns * factor + more[2] + more[3]),
            draw,
        ),
        factor,
        circle,
        centres(south, step, rows),
        centres(west, step, columns),
        is_globe,
    )


def assert_same_places(found: np.ndarray, expected: np.ndarray) -> None:
    """Longitudes are the same, whatever the convention."""
    assert len(found) == len(expected)
    assert np.abs(np.mod(found - expected + 180, 360) - 180).max() < 1e-3


def assert_paired(case: Case, coarse: Fields, fine: Fields) -> None:
    """Fine cells fill the coarse ones, coordinates ascend, and each is what its file has there."""
    for fields, its in ((coarse, case.coarse), (fine, case.fine)):
        np.testing.assert_allclose(its.latitude[fields.latitude.index], fields.latitude.values, atol=1e-3)
        assert_same_places(its.longitude[fields.longitude.index], fields.longitude.values)
        for axis in (fields.latitude, fields.longitude):
            assert (np.diff(axis.values) > 0).all()
            assert len(set(axis.index.tolist())) == len(axis.index)
    for c, f in ((coarse.latitude, fine.latitude), (coarse.longitude, fine.longitude)):
        np.testing.assert_allclose(f.values.reshape(-1, case.factor).mean(1), c.values, atol=1e-3)


@many(300)
@given(cases())
def test_fine_cells_fill_coarse_ones(case: Case) -> None:
    """Whatever the conventions and orders: what both files have is paired, and nothing else."""
    found = by_cells(case.coarse.fields("c.nc"), case.fine.fields("f.nc"), split())
    assert found.factor == case.factor
    assert found.periodic == case.is_globe
    assert_paired(case, found.coarse, found.fine)
    np.testing.assert_allclose(found.coarse.latitude.values, case.latitude, atol=1e-3)
    # A globe begins where the coarse file does.
    begin = 0
    if case.is_globe:
        begin = round(float(np.mod(case.coarse.longitude[0] - case.longitude[0], 360)) / case.step)
    assert_same_places(found.coarse.longitude.values, np.roll(case.longitude, -begin))
    reduced = [
        len(case.coarse.latitude) > len(case.latitude),
        len(case.coarse.longitude) > len(case.longitude),
    ]
    reduced[1] |= len(case.fine.longitude) > case.factor * len(case.longitude)
    noted = [any(note.startswith(name) for note in found.notes) for name in ("latitude", "longitude")]
    assert noted == reduced


@many(300)
@given(cases(), st.data())
def test_box_chooses_the_centres_in_it(case: Case, data: st.DataObject) -> None:
    """A box of any convention gives the cells whose centres it holds, from its west end, also across a seam."""
    rows, columns = len(case.latitude), len(case.longitude)
    bottom = data.draw(st.integers(0, rows - 1))
    top = data.draw(st.integers(bottom, rows - 1))
    left = data.draw(st.integers(0, columns - 1))
    width = data.draw(st.integers(1, columns if case.is_globe else columns - left))
    expected = case.longitude[np.arange(left, left + width) % columns]
    loose = [case.step * data.draw(st.integers(0, 3)) / 8 for _ in "nesw"]
    circles = [360 * data.draw(st.integers(-1, 1)) for _ in "we"]
    if width * case.step + loose[1] + loose[3] >= 360 - case.step:  # or it would hold more than these
        loose[1], loose[3] = 0.0, 0.0
    ends = expected[0] - loose[3] + circles[0], expected[-1] + loose[1] + circles[1]
    if ends[1] - ends[0] >= 360:  # which is the whole circle, not what is beyond it
        ends = ends[0], ends[1] - 360 * ((ends[1] - ends[0]) // 360)
    box = split(lat=(case.latitude[bottom] - loose[2], case.latitude[top] + loose[0]), lon=ends)
    found = by_cells(case.coarse.fields("c.nc"), case.fine.fields("f.nc"), box)
    assert_paired(case, found.coarse, found.fine)
    np.testing.assert_allclose(found.coarse.latitude.values, case.latitude[bottom : top + 1], atol=1e-3)
    assert_same_places(found.coarse.longitude.values, expected)
    assert found.periodic == (width == case.circle)
    assert found.notes == []


def side(where: str, latitude: object, longitude: object) -> Fields:
    """Fields of these centres."""
    return File(np.asarray(latitude), np.asarray(longitude)).fields(where)


def projected(
    where: str,
    rows: int,
    columns: int,
    *,
    oriented: bool = False,
    reach: tuple[tuple[float, float], tuple[float, float]] | tuple[None, None] = (None, None),
) -> Fields:
    """Fields without latitudes and longitudes."""
    axes = [
        Axis(np.arange(float(n)), np.arange(n), 1.0, oriented, own)
        for n, own in zip((rows, columns), reach, strict=True)
    ]
    return Fields(where, {}, NOW, *axes, gridded=False)


COARSE = side("c.nc", np.arange(50, 54.0), np.arange(-2, 3.0))
FINE = side("f.nc", centres(49.5, 0.5, 8), centres(-2.5, 0.5, 10))


@pytest.mark.parametrize("off", [-0.009, 0.009])
def test_a_hundredth_of_a_cell_is_no_shift(off: float) -> None:
    """Fine centres may be off by less than a hundredth of a coarse cell."""
    shifted = side("f.nc", FINE.latitude.values + off, FINE.longitude.values - off)
    assert by_cells(COARSE, shifted, split()).factor == 2


@pytest.mark.parametrize(("lat", "lon"), [(0.011, 0.0), (-0.011, 0.0), (0.0, 0.011), (0.0, -0.2)])
def test_more_is_a_shift(lat: float, lon: float) -> None:
    """Beyond that the grids do not belong together, and no cell is dropped to make them."""
    shifted = side("f.nc", FINE.latitude.values + lat, FINE.longitude.values + lon)
    name, off = ("latitude", abs(lat)) if lat else ("longitude", abs(lon))
    with pytest.raises(
        HookloopError, match=rf"{name} of coarse and fine cells differs by up to {off:g} degrees"
    ):
        by_cells(COARSE, shifted, split())


def test_coordinates_are_those_of_the_coarse_file() -> None:
    """Where all coarse cells are filled, longitudes are called what the coarse file calls them, to the last bit."""
    coarse = side("c.nc", COARSE.latitude.values, np.arange(190, 195.0))
    fine = side("f.nc", FINE.latitude.values, centres(-170.5, 0.5, 10))
    found = by_cells(coarse, fine, split())
    assert found.coarse.longitude.values.tolist() == [190, 191, 192, 193, 194]
    np.testing.assert_allclose(found.fine.longitude.values, centres(189.5, 0.5, 10))


def test_what_both_have_is_used_and_said() -> None:
    """Of a globe with a region, and of a region that ends within a coarse cell, the cells that are filled are used."""
    globe = side("globe.nc", np.arange(-80, 81.0, 1), np.arange(0, 360.0))
    fine = side("f.nc", FINE.latitude.values[:-1], FINE.longitude.values)
    found = by_cells(globe, fine, split())
    np.testing.assert_allclose(found.coarse.latitude.values, [50, 51, 52])
    np.testing.assert_allclose(found.coarse.longitude.values, [-2, -1, 0, 1, 2])
    latitude, longitude = found.notes
    assert latitude == (
        "latitude: -80.5 to 80.5 in globe.nc, 49.5 to 53 in f.nc; what both have is used, 49.5 to 52.5: "
        "3 of 161 coarse cells and 6 of 7 fine cells"
    )
    assert longitude == (
        "longitude: -0.5 to 359.5 in globe.nc, -2.5 to 2.5 in f.nc; what both have is used, -2.5 to 2.5: "
        "5 of 360 coarse cells and 10 of 10 fine cells"
    )
    assert not found.periodic


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            {"lat": (50, 53)},
            r"latitude 50 to 53 reach from 49\.5 to 53\.5, .*small\.nc has 50\.5 to 53\.5 in cells of 0\.5",
        ),
        (
            {"lon": (-2, 1)},
            r"longitude -2 to 1 reach from -2\.5 to 1\.5, .*small\.nc has -1\.5 to 2\.5 in cells of 0\.5",
        ),
        ({"lon": (358, 1)}, r"longitude 358 to 1 reach from -2\.5 to 1\.5, .*small\.nc has -1\.5 to 2\.5"),
    ],
)
def test_box_beyond_the_fine_grid(box: dict[str, Any], message: str) -> None:
    """What was asked for is never cut silently: a box that fine cells do not fill is refused."""
    small = side("small.nc", FINE.latitude.values[2:], FINE.longitude.values[2:])
    assert by_cells(COARSE, small, split(lat=(51, 53), lon=(-1, 1))).notes == []
    with pytest.raises(HookloopError, match=message):
        by_cells(COARSE, small, split(**box))


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        (
            centres(10, 0.5, 8),
            FINE.longitude.values,
            r"latitude: fine cells fill no coarse one: 49\.5 to 53\.5 in c\.nc, 10 to 14 in",
        ),
        (
            FINE.latitude.values,
            centres(100, 0.5, 8),
            r"longitude: fine cells fill no coarse one: -2\.5 to 2\.5 in c\.nc, 100 to 104",
        ),
    ],
)
def test_regions_apart(latitude: np.ndarray, longitude: np.ndarray, message: str) -> None:
    """Files of different places are named with what each has."""
    with pytest.raises(HookloopError, match=message):
        by_cells(COARSE, side("f.nc", latitude, longitude), split())


def test_regions_with_two_parts_in_common() -> None:
    """Two regions that meet at both ends are refused: their common cells are no region."""
    coarse = side("c.nc", COARSE.latitude.values, np.arange(5.0, 345, 10))
    fine = side("f.nc", centres(49.5, 0.5, 8), np.mod(centres(300, 5.0, 24), 360))
    with pytest.raises(HookloopError, match=r"c\.nc: cells of longitude are 10 to 30 degrees apart"):
        by_cells(coarse, fine, split())


@pytest.mark.parametrize("bad", ["coarse", "fine"])
def test_uneven_cells(bad: str) -> None:
    """Cells of different widths, as of a Mercator projection, are refused with the smallest and the largest."""
    uneven = side("uneven.nc", [50, 51, 52.02, 53.0], FINE.longitude.values)
    sides = (uneven, FINE) if bad == "coarse" else (COARSE, uneven)
    message = r"uneven\.nc: cells of latitude are 0\.98 to 1\.02 degrees apart"
    with pytest.raises(HookloopError, match=message):
        by_cells(*sides, split())


@pytest.mark.parametrize("sides", [(projected("p.nc", 4, 5), FINE), (COARSE, projected("p.nc", 8, 10))])
def test_projected_grid_needs_pairing_by_index(sides: tuple[Fields, Fields]) -> None:
    """Cells without latitudes are refused with the option that takes them."""
    with pytest.raises(HookloopError, match=r"p\.nc: no latitude and longitude .*pairing: index"):
        by_cells(*sides, split())


def test_by_row_and_column() -> None:
    """Coordinates off by some cells, or uneven ones, do not matter; rows come northwards on both sides."""
    coarse = side("c.nc", [60.0, 58, 56, 54], np.array([350.0, 352, 354, 356, 358]))
    fine = side("f.nc", np.linspace(40, 41.2, 8) ** 1.09, np.arange(10) * 0.9 - 12)
    found = by_index(coarse, fine, split())
    assert (found.factor, found.periodic, found.notes) == (2, False, [])
    assert found.coarse.latitude.index.tolist() == [3, 2, 1, 0]
    assert found.coarse.longitude.index.tolist() == [0, 1, 2, 3, 4]
    assert found.fine.latitude.index.tolist() == list(range(8))
    assert found.fine.longitude.index.tolist() == list(range(10))


def test_projected_grid_by_row_and_column() -> None:
    """Rows of which nothing is known stay as they are, which is said."""
    coarse = side("c.nc", [60.0, 58, 56, 54], COARSE.longitude.values)
    found = by_index(coarse, projected("p.nc", 8, 10), split())
    assert found.factor == 2
    assert found.coarse.latitude.index.tolist() == [3, 2, 1, 0]
    assert found.fine.latitude.index.tolist() == list(range(8))
    assert not found.fine.gridded
    why = "are taken as they are stored, for nothing says which way they run; those of c.nc are taken"
    assert found.notes == [f"rows of p.nc {why} northwards", f"columns of p.nc {why} eastwards"]


@pytest.mark.parametrize("oriented", [True, False])
def test_two_projected_grids(*, oriented: bool) -> None:
    """Where both sides, or neither, say which way they run, cells belong together by number without a word."""
    sides = projected("c.nc", 4, 5, oriented=oriented), projected("p.nc", 16, 20, oriented=oriented)
    found = by_index(*sides, split())
    assert (found.factor, found.notes, found.periodic) == (4, [], False)
    assert found.coarse.latitude.index.tolist() == [0, 1, 2, 3]


ALPS = side("alps.nc", np.arange(30, 62.0, 2), np.arange(-5, 27.0, 2))


@pytest.mark.parametrize(
    ("fine", "message"),
    [
        (
            side("nz.nc", centres(-50, 0.25, 64), centres(160, 0.25, 64)),
            r"latitude of coarse cells is 29 to 61 in alps\.nc, of fine ones -50 to -34 in nz\.nc; expected the middle",
        ),
        (side("nz.nc", centres(37, 0.25, 64), centres(160, 0.25, 64)), "longitude of .* 160 to 176 in nz"),
        (side("all.nc", centres(-90, 2.5, 64), centres(2, 0.25, 64)), "latitude of .* -90 to 70 in all"),
        (side("far.nc", centres(56, 0.25, 64), centres(2, 0.25, 64)), "latitude of .* 56 to 72 in far"),
        (
            projected("nz.nc", 64, 64, oriented=True, reach=((-50, -34), (160, 176))),
            r"latitude of .* -50 to -34 in nz\.nc",
        ),
    ],
)
def test_sides_in_different_places(fine: Fields, message: str) -> None:
    """By index too the middle of each side lies within the other; both extents are named."""
    with pytest.raises(HookloopError, match=f"pairing: index: {message}"):
        by_index(ALPS, fine, split())


@pytest.mark.parametrize("turn", [0, 360, -360])
@pytest.mark.parametrize("kind", ["gridded", "projected"])
def test_predictors_that_cover_more(kind: str, turn: float) -> None:
    """As in CORDEX-ML-Bench: coarse fields reach further on all sides, whatever the convention of longitudes."""
    west = 2 + turn
    fine = side("f.nc", centres(37, 0.25, 64), centres(west, 0.25, 64))
    if kind == "projected":
        fine = projected("f.nc", 64, 64, oriented=True, reach=((37, 53), (west, west + 16)))
    found = by_index(ALPS, fine, split())
    assert (found.factor, found.notes, found.periodic) == (4, [], False)


@pytest.mark.parametrize(
    ("coarse_from", "fine_from", "fits"),
    [(0, 0, True), (0, 360, True), (-180, 180, True), (0, -180, False), (0, 30, False), (0, 3.75, True)],
)
def test_globes_by_index(coarse_from: float, fine_from: float, *, fits: bool) -> None:
    """Globes must begin at the same longitude, to half a coarse cell; then the last column is beside the first."""
    lat = np.arange(-30, 31.0, 30)
    coarse = side("c.nc", lat, centres(coarse_from, 30, 12))
    fine = side("f.nc", centres(-45, 15, 6), centres(fine_from, 15, 24))
    if fits:
        found = by_index(coarse, fine, split())
        assert (found.factor, found.periodic, found.notes) == (2, True, [])
        assert found.coarse.longitude.index.tolist() == list(range(12))
        assert found.fine.longitude.index.tolist() == list(range(24))
    else:
        with pytest.raises(
            HookloopError, match=r"is 0 to 360 in c\.nc, .* expected globes that begin in the same"
        ):
            by_index(coarse, fine, split())


@pytest.mark.parametrize("box", [{"lat": (50, 51)}, {"lon": (0, 1)}])
def test_no_box_by_index(box: dict[str, Any]) -> None:
    """A box chooses by coordinates, which are not compared."""
    with pytest.raises(HookloopError, match="region: lat and lon choose cells by coordinates"):
        by_index(COARSE, FINE, split(**box))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 11), r"coarse \(4, 5\) cells of 1° x 1° from 49\.5°, -2\.5° in c\.nc, fine \(8, 11\) in p\.nc"),
        ((2, 5), r"coarse \(4, 5\) cells of 1° x 1° from 49\.5°, -2\.5° in c\.nc, fine \(2, 5\) in p\.nc"),
        ((8, 15), "factor is 2 in latitude and 3 in longitude"),
    ],
)
def test_shapes_that_do_not_divide(shape: tuple[int, int], message: str) -> None:
    """Counting cells still needs one whole number of fine cells to a coarse one."""
    with pytest.raises(HookloopError, match=message):
        by_index(COARSE, projected("p.nc", *shape), split())
