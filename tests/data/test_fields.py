from __future__ import annotations

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, ClassVar

import h5py
import numpy as np
import pytest
import zarr
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from hookloop.data import stored
from hookloop.data.fields import Fields, Gaps, Part, Wanted, whole
from hookloop.data.grids import Axis
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from hookloop.data.fields import Ints

T, H, W = 7, 9, 11
TIMES = np.datetime64("2020-01-01T00", "ns") + np.arange(T) * np.timedelta64(6, "h")
# Every value tells time, latitude and longitude by number, and is exact in single precision.
VALUES = (np.arange(T)[:, None, None] * 10_000.0 + np.arange(H)[:, None] * 100.0 + np.arange(W)).astype(
    np.float32
)
CHUNKS = {"time": 2, "latitude": 4, "longitude": 3}


def part(path: Path, kind: str, chunks: tuple[int, int, int] | None = None, **options: object) -> Part:
    """Write VALUES + 0.5 as variable x of a zarr store or an HDF5 file, and describe it."""
    shape = chunks or (T, H, W)
    if kind == "zarr":
        array = zarr.create_array(str(path), name="x", shape=VALUES.shape, chunks=shape, dtype="f4")
        array[:] = VALUES
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=VALUES, chunks=chunks)
    given_chunks = dict(zip(("time", "latitude", "longitude"), shape, strict=True)) if chunks else {}
    return Part(
        str(path),
        "x",
        kind,  # type: ignore[arg-type]
        ("time", "latitude", "longitude"),
        **{"index": np.arange(T), "chunks": given_chunks, **options},  # type: ignore[arg-type]
    )


def fields(*parts: Part, times: np.ndarray = TIMES, **options: object) -> Fields:
    """Fields whose latitudes are stored from north to south, and whose longitudes begin in the middle."""
    latitude = Axis(np.arange(H) - 4.0, np.arange(H)[::-1].copy(), 1.0)
    longitude = Axis(np.arange(W) * 1.0, np.roll(np.arange(W), -5), 1.0)
    return Fields("here", {"x": list(parts)}, times, latitude, longitude, **options)  # type: ignore[arg-type]


def expected(wanted: Wanted) -> np.ndarray:
    """Look the cells up in VALUES, by plain indexing, with latitudes and longitudes put in order."""
    ordered = np.roll(VALUES[:, ::-1], -5, axis=2)
    return ordered[wanted.times[:, None, None], wanted.rows[:, :, None], wanted.columns[:, None, :]][:, None]


def ints(n: int, width: int, top: int) -> st.SearchStrategy[Ints]:
    """``[n, width]`` cell numbers of an axis, in any order, with repetitions."""
    one = st.lists(st.integers(0, top - 1), min_size=width, max_size=width)
    return st.lists(one, min_size=n, max_size=n).map(lambda rows: np.array(rows, np.int64).reshape(n, width))


@st.composite
def wishes(draw: st.DrawFn) -> Wanted:
    """Any cells of any times."""
    n, height, width = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    times = draw(ints(1, n, T))[0]
    return Wanted(times, np.zeros(n, np.int64), draw(ints(n, height, H)), draw(ints(n, width, W)))


@settings(max_examples=25, deadline=None)
@given(
    wanted=wishes(),
    kind=st.sampled_from(["zarr", "hdf5"]),
    chunks=st.sampled_from([None, (1, 9, 11), (2, 4, 3), (3, 1, 5)]),
)
def test_any_cells_of_any_times(
    tmp_path_factory: pytest.TempPathFactory,
    wanted: Wanted,
    kind: str,
    chunks: tuple[int, int, int] | None,
) -> None:
    """Whatever is wanted, in whatever chunks it is stored, it is what plain indexing finds."""
    directory = tmp_path_factory.mktemp("fields")
    try:
        found = fields(part(directory / "x", kind, chunks)).read(wanted)
        np.testing.assert_array_equal(found, expected(wanted))
    finally:
        shutil.rmtree(directory)


def test_times_over_several_parts(tmp_path: Path) -> None:
    """Times are counted over the parts, each of which may use only some times of its file."""
    first = part(tmp_path / "a", "zarr", (1, 9, 11), index=np.array([0, 2]))
    second = part(tmp_path / "b.h5", "hdf5", None, index=np.array([3, 4, 6]))
    both = fields(first, second, times=TIMES[[0, 2, 3, 4, 6]])
    wanted = whole(both, np.array([4, 1, 2]), np.zeros(3, np.int64))
    there = Wanted(np.array([6, 2, 3]), wanted.members, wanted.rows, wanted.columns)
    np.testing.assert_array_equal(both.read(wanted), expected(there))


def test_members_and_levels(tmp_path: Path) -> None:
    """One member and one level of an array in another order of dimensions."""
    values = np.arange(2 * 3 * T * H * W, dtype=np.float32).reshape(W, 3, H, 2, T)
    array = zarr.create_array(
        str(tmp_path / "x"), name="x", shape=values.shape, chunks=(11, 1, 9, 1, 1), dtype="f4"
    )
    array[:] = values
    own = Part(
        str(tmp_path / "x"),
        "x",
        "zarr",
        ("longitude", "member", "latitude", "plev", "time"),
        np.arange(T),
        fixed={"plev": 1},
        chunks={"time": 1, "member": 1},
    )
    source = fields(own, members=3)
    found = source.read(whole(source, np.array([5, 5]), np.array([2, 0])))
    ordered = np.roll(values[:, :, ::-1, 1, 5], -5, axis=0)
    np.testing.assert_array_equal(found[:, 0], ordered[:, [2, 0]].transpose(1, 2, 0))


def test_packed_integers(tmp_path: Path) -> None:
    """Packed values are unpacked as CF says, x·scale + offset in double precision, and gaps are missing."""
    packed = np.arange(T * H * W, dtype=np.int16).reshape(T, H, W)
    packed[0, 0, 0] = -999
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=packed)
    own = Part(
        str(tmp_path / "x.h5"), "x", "hdf5", ("time", "latitude", "longitude"), np.arange(T),
        scale=0.01, offset=273.15, missing=(-999.0,),
    )  # fmt: skip
    source = fields(own, fill={"x": -1.0})
    found = source.read(whole(source, np.arange(T), np.zeros(T, np.int64)))[:, 0]
    unpacked = (packed.astype(np.float64) * 0.01 + 273.15).astype(np.float32)
    unpacked[0, 0, 0] = -1.0
    np.testing.assert_array_equal(found, np.roll(unpacked[:, ::-1], -5, axis=2))


def test_gaps_are_refused_and_named(tmp_path: Path) -> None:
    """A value that is not finite is an error with variable, share and the first place, in coordinates."""
    own = part(tmp_path / "x", "zarr", (1, 9, 11))
    array = zarr.open_array(str(tmp_path / "x"), path="x")
    array[2, 8, 5] = np.nan  # southernmost row; column 5 of the file is the westernmost
    array[2, 8, 6] = np.inf
    source = fields(own)
    with pytest.raises(
        HookloopError,
        match=r"variable x: 2 of 99 values \(2.02%\) are NaN or infinite, the first at time "
        r"2020-01-01T12:00, latitude -4, longitude 0 in .*/x; expected none; fill",
    ):
        source.read(whole(source, np.array([2]), np.array([0])))


def test_gaps_are_counted_over_many_reads(tmp_path: Path) -> None:
    """Counted over a whole split, the share is that of the split; infinity is not filled."""
    own = part(tmp_path / "x", "zarr", (1, 9, 11))
    array = zarr.open_array(str(tmp_path / "x"), path="x")
    array[4, 0, 0] = np.inf
    array[5, 0, 0] = np.nan
    source, gaps = fields(own, fill={"x": 0.0}), Gaps()
    for t in range(T):
        source.read(whole(source, np.array([t]), np.array([0])), gaps=gaps)
    with pytest.raises(
        HookloopError,
        match=rf"1 of {T * H * W} values .* first at time 2020-01-02T00:00, latitude 4, longitude 6",
    ):
        gaps.refuse()


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_only_chunks_that_are_wanted_are_read(tmp_path: Path, kind: str) -> None:
    """A patch is read although every other chunk of the store is gone."""
    own = (
        part(tmp_path / "x", "zarr", (1, 3, 4)) if kind == "zarr" else part(tmp_path / "x", "hdf5", (1, 3, 4))
    )
    source = fields(own)
    wanted = Wanted(np.array([3]), np.array([0]), np.array([[0, 1, 2]]), np.array([[3, 4, 5]]))
    boxes = [selection for piece in source._pieces(0, wanted) for selection in piece.selections()]
    assert boxes == [
        {"time": slice(3, 4), "member": slice(0, 1), "latitude": slice(6, 9), "longitude": slice(8, 11)}
    ]


def test_what_crosses_the_seam_is_two_boxes(tmp_path: Path) -> None:
    """The columns on both sides of where the file begins are two boxes, and nothing between them is read."""
    source = fields(part(tmp_path / "x", "zarr", (1, 1, 1)))
    wanted = Wanted(np.array([0]), np.array([0]), np.array([[0]]), np.array([[5, 6]]))  # 10 and 0 in the file
    boxes = [each["longitude"] for piece in source._pieces(0, wanted) for each in piece.selections()]
    assert boxes == [slice(0, 1), slice(10, 11)]
    np.testing.assert_array_equal(source.read(wanted), expected(wanted))


def test_patches_of_a_time_share_what_they_read(tmp_path: Path) -> None:
    """Patches in the same chunk are one box; patches in far apart chunks are one each."""
    source = fields(part(tmp_path / "x", "zarr", (1, 9, 2)))
    near = Wanted(np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([[0], [8]]), np.array([[0], [0]]))
    far = Wanted(np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([[0], [0]]), np.array([[6], [4]]))
    assert [len(piece.selections()) for piece in source._pieces(0, near)] == [1]
    assert sum(len(piece.selections()) for piece in source._pieces(0, far)) == 2


def test_a_read_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that comes back while we wait is read, and what happened is reported."""
    monkeypatch.setattr(stored, "_PAUSE", 0.0)
    source = fields(part(tmp_path / "x", "zarr", (1, 9, 11)))
    (tmp_path / "x" / "x" / "c" / "3" / "0" / "0").write_bytes(b"broken")
    good = tmp_path / "good"
    zarr.create_array(str(good), name="x", shape=VALUES.shape, chunks=(1, 9, 11), dtype="f4")[:] = VALUES
    said = stored._said

    def mend(box: stored.Box, problem: Exception) -> str:
        shutil.copytree(good, tmp_path / "x", dirs_exist_ok=True)
        return said(box, problem)

    monkeypatch.setattr(stored, "_said", mend)
    retried: list[str] = []
    wanted = whole(source, np.array([3]), np.array([0]))
    np.testing.assert_array_equal(source.read(wanted, retried=retried), expected(wanted))
    assert len(retried) == 1
    assert "x: x at index time 3 to 3" in retried[0]


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_a_read_that_keeps_failing_is_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged chunk is an error with file, variable and index."""
    monkeypatch.setattr(stored, "_PAUSE", 0.0)
    path = tmp_path / "x"
    own = part(path, kind, (1, 9, 11))
    if kind == "zarr":
        (path / "x" / "c" / "3" / "0" / "0").write_bytes(b"broken")
    else:
        path.write_bytes(path.read_bytes()[:-4000])
    source = fields(own)
    with pytest.raises(HookloopError, match=r"x: x at index time 3 to 3, .*cannot be read in 3 attempts"):
        source.read(whole(source, np.array([3]), np.array([0])))


def test_a_store_that_vanishes_is_not_filled(tmp_path: Path) -> None:
    """What was there at opening and is gone, as after a purge, is an error even where gaps are filled."""
    own = part(tmp_path / "x", "zarr", (1, 9, 11))
    source = fields(own, fill={"x": 0.0})
    wanted = whole(source, np.array([3]), np.array([0]))
    shutil.rmtree(tmp_path / "x" / "x" / "c" / "3")
    assert not source.read(wanted).any()  # a chunk that was never written, for all that zarr knows
    (tmp_path / "x").rename(tmp_path / "y")
    with pytest.raises(HookloopError, match=r"x: x was there at opening, and is no longer"):
        source.read(wanted)


def test_a_gap_is_told_with_its_own_file(tmp_path: Path) -> None:
    """Of many files the one with the gap is named, not the first."""
    parts = [part(tmp_path / name, "zarr", (1, 9, 11), index=np.array([t])) for t, name in enumerate("abc")]
    zarr.open_array(str(tmp_path / "b"), path="x")[1, 2, 2] = np.nan
    source = fields(*parts, times=TIMES[:3])
    with pytest.raises(HookloopError, match=r"at time 2020-01-01T06:00, .* in .*/b; expected none"):
        source.read(whole(source, np.arange(3), np.zeros(3, np.int64)))


class FailsOnce(SimpleHTTPRequestHandler):
    """Serves a directory, but the first answer for chunk 3 is an error of the kind that servers have."""

    kind: ClassVar[str]
    failed: ClassVar[bool]

    def do_GET(self) -> None:
        """Serve, or fail."""
        if "/c/3/" not in self.path or type(self).failed:
            super().do_GET()
            return
        type(self).failed = True
        if self.kind == "busy":
            self.send_error(503)
        else:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"too short")
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.mark.parametrize("kind", ["busy", "short"])
def test_a_server_that_fails_once_is_asked_again(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a web server does wrong once, the chunk is read at the second attempt, and that is told."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(stored, "_PAUSE", 0.0)
    monkeypatch.setattr(FailsOnce, "kind", kind, raising=False)
    monkeypatch.setattr(FailsOnce, "failed", False, raising=False)
    own = part(tmp_path / "x", "zarr", (1, 9, 11))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(FailsOnce, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        source = fields(evolve(own, path=f"http://127.0.0.1:{server.server_port}/x"))
        wanted, retried = whole(source, np.array([3]), np.array([0])), list[str]()
        np.testing.assert_array_equal(source.read(wanted, retried=retried), expected(wanted))
        server.shutdown()
    assert len(retried) == 1
    assert "x at index time 3 to 3" in retried[0]
