"""Coastlines, given shapes by hand and, where cartopy is installed, by its own files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop.coasts import Box, Line, coastlines, on_this_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

UK = Box(-11.0, 3.0, 49.0, 59.0)


def line(*points: tuple[float, float]) -> Line:
    return np.array(points, dtype=float)


def shapes_of(**scales: Sequence[Line]) -> tuple[Callable[[str], Sequence[Line]], list[str]]:
    """A reader of shapes, by scale without its first letter's underscore, and a list of what it is asked for."""
    asked: list[str] = []

    def read(scale: str) -> Sequence[Line]:
        asked.append(scale)
        return scales.get(f"at_{scale}", [])

    return read, asked


@pytest.mark.parametrize(
    ("width", "first"), [(14.0, "10m"), (40.0, "50m"), (360.0, "110m")], ids=["country", "continent", "globe"]
)
def test_the_smaller_the_domain_the_finer_the_shapes(width: float, first: str) -> None:
    """What is asked for first follows from the width; one that is there is taken as it is."""
    read, asked = shapes_of(**{f"at_{first}": [line((0, 50), (5, 51))]})
    assert len(coastlines(Box(-1.0, width - 1, 49.0, 52.0), read)) >= 1
    assert asked == [first]


def test_other_scales_do_where_the_best_is_absent() -> None:
    """Of those that are there the nearest is taken."""
    read, asked = shapes_of(at_110m=[line((0, 50), (1, 51))])
    assert len(coastlines(UK, read)) == 1
    assert asked == ["10m", "50m", "110m"]


def test_without_shapes_there_are_no_coastlines() -> None:
    """Nothing is downloaded, nothing fails."""
    read, _ = shapes_of()
    assert coastlines(UK, read) == []


def test_shapes_are_moved_by_whole_turns_to_where_the_domain_is() -> None:
    """Shapes lie within ±180°; a domain across the seam, or one counted from 0 to 360, sees them all the same."""
    read, _ = shapes_of(at_10m=[line((-179, 0), (-178, 1)), line((179, 0), (178, 1))])
    across = coastlines(Box(176.0, 184.0, -2.0, 2.0), read)
    assert sorted(piece[0, 0] for piece in across) == [179.0, 181.0]
    west = coastlines(Box(-184.0, -176.0, -2.0, 2.0), read)
    assert sorted(piece[0, 0] for piece in west) == [-181.0, -179.0]


def test_what_is_elsewhere_is_left_out() -> None:
    """Of a long coast only pieces near the domain remain."""
    long = np.column_stack([np.linspace(-170, 170, 3401), np.full(3401, 54.0)])
    read, _ = shapes_of(at_10m=[long, line((0, -50), (1, -51))])
    pieces = coastlines(UK, read)
    assert (
        sum(len(piece) for piece in pieces) < 300
    )  # 140 points of 14 degrees, and the rest of the outer pieces
    assert min(piece[:, 0].min() for piece in pieces) <= -11
    assert max(piece[:, 0].max() for piece in pieces) >= 3


def test_a_segment_that_crosses_the_domain_is_kept() -> None:
    """Though neither of its ends is inside."""
    read, _ = shapes_of(at_10m=[line((-40, 54), (40, 55))])
    assert len(coastlines(UK, read)) == 1


@given(st.integers(2, 400), st.integers(0, 2**32 - 1))
@many(30)
def test_pieces_make_up_the_line(points: int, seed: int) -> None:
    """Put together, they are the line that was cut, however long it is."""
    coast = np.random.default_rng(seed).uniform((-179, -80), (179, 80), (points, 2))
    read, _ = shapes_of(at_110m=[coast])
    pieces = coastlines(Box(-180.0, 180.0, -90.0, 90.0), read)
    own = [piece for piece in pieces if (np.abs(piece[:, 0]) < 180).all()]
    rejoined = np.concatenate([own[0], *(piece[1:] for piece in own[1:])])
    np.testing.assert_array_equal(rejoined, coast)


def test_shapes_that_cartopy_keeps_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape of two lines gives two; a damaged file and an absent one give none."""
    cartopy = pytest.importorskip("cartopy")
    shapefile = pytest.importorskip("shapefile")
    monkeypatch.setitem(cartopy.config, "data_dir", tmp_path)
    folder = tmp_path / "shapefiles" / "natural_earth" / "physical"
    with shapefile.Writer(str(folder / "ne_50m_coastline.shp"), shapeType=shapefile.POLYLINE) as file:
        file.field("name", "C")
        file.line([[[0, 50], [1, 51]], [[2, 52], [3, 53], [4, 54]]])
        file.record("two")
    (folder / "ne_110m_coastline.shp").write_bytes(b"damaged")
    on_this_machine.cache_clear()
    try:
        assert [found.tolist() for found in on_this_machine("50m")] == [
            [[0, 50], [1, 51]],
            [[2, 52], [3, 53], [4, 54]],
        ]
        assert on_this_machine("110m") == []
        assert on_this_machine("10m") == []
    finally:
        on_this_machine.cache_clear()


def test_this_machine_answers_without_waiting_for_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed, no connection is made."""
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    on_this_machine.cache_clear()
    assert all(np.shape(found)[1] == 2 for found in on_this_machine("110m"))
    on_this_machine.cache_clear()
