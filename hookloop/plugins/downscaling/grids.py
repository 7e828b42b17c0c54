"""Coordinates in order: files run north or south, from -180 or from 0, and come out ascending."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from attrs import frozen

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_CIRCLE = 360.0


@frozen(eq=False)
class Grid:
    """Cell centres in degrees, ascending; longitudes are monotonic, so negative where they cross 0."""

    latitude: Floats
    longitude: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Cells in latitude and longitude."""
        return len(self.latitude), len(self.longitude)


@frozen(eq=False)
class Axis:
    """Cell centres along one axis, ascending, and where each of them lies in the file."""

    values: Floats
    index: Indices
    step: float
    """Width of a cell, degrees; NaN where the file has a single one."""

    @property
    def edges(self) -> tuple[float, float]:
        """Outer edges of the first and the last cell."""
        return float(self.values[0]) - self.step / 2, float(self.values[-1]) + self.step / 2

    def turned(self, west: float) -> Axis:
        """Longitudes ordered eastwards from *west* instead."""
        offset = eastwards(self.values, west)
        order = np.argsort(offset, kind="stable")
        return Axis(west + offset[order], self.index[order], self.step)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Axis:
        """Only the *chosen* cells; ``step`` stays that of the file."""
        return Axis(self.values[chosen], self.index[chosen], self.step)


def latitude_axis(values: npt.ArrayLike) -> Axis:
    """Order latitudes northwards."""
    latitude = np.asarray(values, dtype=np.float64)
    index = np.argsort(latitude, kind="stable")
    return Axis(latitude[index], index, _step(latitude[index]))


def longitude_axis(values: npt.ArrayLike) -> Axis:
    """Order longitudes eastwards from where the file's own region begins."""
    longitude = np.asarray(values, dtype=np.float64)
    west = _beginning(longitude)
    offset = eastwards(longitude, west)
    index = np.argsort(offset, kind="stable")
    return Axis(west + offset[index], index, _step(offset[index]))


def eastwards(longitude: Floats | float, west: float) -> Floats:
    """Degrees from *west* east to *longitude*, 0 … 360; a rounding error to the west counts as 0."""
    slack = 1e-4
    return np.asarray(np.mod(np.subtract(longitude, west) + slack, _CIRCLE) - slack)


def width(box: tuple[float, float]) -> float:
    """Degrees from the west to the east end of *box*, whichever convention it is written in."""
    west, east = box
    return _CIRCLE if east - west >= _CIRCLE else float(eastwards(east, west))


def covers(axis: Axis, west: float, degrees: float) -> bool:
    """Whether the cells of a longitude *axis* cover the *degrees* east of *west*."""
    first, last = axis.edges
    slack = axis.step / 100
    whole = last - first >= _CIRCLE - slack
    return whole or float(eastwards(west, first)) + degrees <= last - first + slack


def in_convention(axis: Axis) -> Axis:
    """Shift longitudes by whole circles, so that they lie in -180 … 360."""
    shift = -_CIRCLE if axis.values[-1] >= _CIRCLE else _CIRCLE if axis.values[0] < -_CIRCLE / 2 else 0.0
    return Axis(axis.values + shift, axis.index, axis.step)


def _beginning(longitude: Floats) -> float:
    """Find the west end: after the widest gap; round the whole globe, where the file begins."""
    order = np.argsort(np.mod(longitude, _CIRCLE), kind="stable")
    around = np.mod(longitude, _CIRCLE)[order]
    gaps = np.diff(around, prepend=around[-1] - _CIRCLE)
    if gaps.max() < 1.5 * np.median(gaps):
        return float(longitude[0])
    return float(longitude[order[gaps.argmax()]])


def _step(ascending: Floats) -> float:
    # The median, because a region ordered from a point inside it has a gap.
    return float(np.median(np.diff(ascending))) if len(ascending) > 1 else float("nan")
