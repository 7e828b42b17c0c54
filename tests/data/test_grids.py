from __future__ import annotations

import numpy as np
import pytest

from hookloop.data.grids import (
    Axis,
    counted_axis,
    in_convention,
    latitude_axis,
    longitude_axis,
)


@pytest.mark.parametrize(
    ("first", "cells", "expected"),
    [
        (350, 2, -10),
        (350, 1, 350),
        (200, 10, 200),
        (-190, 3, 170),
        (-180, 36, -180),
        (-180.00000000000003, 36, -180),
        (-180.00000000000003, 5, -180),
        (0, 36, 0),
        (90, 36, 90),
        (-270, 36, -270),
        (170, 20, 170),
    ],
)
def test_longitudes_are_shifted_into_convention(first: float, cells: int, expected: float) -> None:
    """Cells of 10° that fit into -180 … 360 after a shift are shifted; those that never do stay as asked for."""
    axis = Axis(first + 10.0 * np.arange(cells), np.arange(cells), 10.0)
    np.testing.assert_allclose(in_convention(axis).values, expected + 10.0 * np.arange(cells), atol=1e-9)


def test_uneven_is_more_than_rounding() -> None:
    """Steps may differ by a hundredth, and by what single precision does to fine cells; no more."""
    assert not latitude_axis([0, 1, 2.004, 3]).uneven
    assert latitude_axis([0, 1, 2.006, 3]).uneven
    kilometre = (300 + 0.009 * np.arange(4000)).astype(np.float32)
    assert np.ptp(np.diff(kilometre)) > 0.009 / 1000
    assert not longitude_axis(kilometre).uneven
    hundred_metres = (300 + 0.0009 * np.arange(4000)).astype(np.float32)
    assert np.ptp(np.diff(hundred_metres.astype(np.float64))) > 0.0009 / 100
    assert not longitude_axis(hundred_metres).uneven


@pytest.mark.parametrize(
    ("longitude", "expected"),
    [
        (np.arange(0, 360, 0.25), True),
        (np.arange(0, 360, 0.1).astype(np.float32), True),
        (np.roll(np.arange(-180, 180.0), 77), True),
        (np.arange(0, 359.0), False),
        (np.arange(-90, 91.0), False),
    ],
)
def test_whole_circle(longitude: np.ndarray, expected: bool) -> None:  # noqa: FBT001
    """Longitudes go round the globe if the last cell ends where the first begins."""
    assert longitude_axis(longitude).is_circle == expected


@pytest.mark.parametrize(
    ("coordinate", "degrees", "index", "oriented", "reach"),
    [
        ([0, 1, 2], None, [0, 1, 2], False, None),
        ([30, 20, 10], None, [2, 1, 0], True, None),
        ([20, 10, 30], None, [1, 0, 2], True, None),
        ([0, 1, 2], [50, 49, 48], [2, 1, 0], True, (47.5, 50.5)),
        ([0, 1, 2], [48, 49, 51], [0, 1, 2], True, (47.5, 52)),
        ([30, 20, 10], [50, 49, 48], [2, 1, 0], True, (47.5, 50.5)),
        ([10, 20, 30], [50, 49, 48], [2, 1, 0], True, (47.5, 50.5)),
        ([0, 1, 2], [89, 90, 89], [0, 1, 2], False, None),
        ([30, 20, 10], [89, 90, 89], [2, 1, 0], True, None),
        ([0, 1, 2], [170, 180, -170], [0, 1, 2], True, (165, 195)),
        ([0, 1, 2], [-170, 180, 170], [2, 1, 0], True, (165, 195)),
        ([0, 1, 2, 3], [np.nan, 50, 49, 48], [3, 2, 1, 0], True, (47.5, 50.5)),
        ([0, 1, 2], [np.nan] * 3, [0, 1, 2], False, None),
    ],
)
def test_rows_are_ordered_by_what_is_known_of_them(
    coordinate: list[float],
    degrees: list[float] | None,
    index: list[int],
    oriented: bool,  # noqa: FBT001
    reach: tuple[float, float] | None,
) -> None:
    """By their coordinate, turned round where all degrees fall; what tells nothing leaves them as they are."""
    found = counted_axis(
        np.array(coordinate, float),
        None if degrees is None else np.array(degrees, float),
        counts=coordinate[:2] == [0, 1],
    )
    assert found.values.tolist() == list(range(len(coordinate)))
    assert (found.index.tolist(), found.oriented) == (index, oriented)
    if reach is None:
        assert found.reach is None
    else:
        assert np.mod(np.subtract(found.reach, reach), 360).tolist() == [0, 0]
