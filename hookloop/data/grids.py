"""Coordinates in order: files run north or south, from -180 or from 0, and come out ascending."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from attrs import evolve, frozen

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_CIRCLE = 360.0
_SLACK = 1e-4
"""Degrees: what is no distance at all."""
_ALIGNED = 1 / 100
"""Of a cell: what coordinates may be off."""
_ROUNDING = float(np.spacing(np.float32(_CIRCLE)))
"""Degrees: what the distance of two longitudes stored in single precision may be off."""


@frozen(eq=False)
class Grid:
    """Cell centres in degrees, ascending; longitudes are monotonic, so negative where they cross 0."""

    latitude: Floats
    longitude: Floats
    gridded: bool = True
    """Whether the cells have latitudes and longitudes of their own; if not, rows and columns are counted."""
    order: tuple[Indices | None, Indices | None] = (None, None)
    """Where each row and column lies in the file; None where nothing says which way they run, so as stored."""

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
    oriented: bool = True
    """Whether anything says which way they run; else they are as stored."""
    reach: tuple[float, float] | None = None
    """Outer edges, degrees, where ``values`` only count rows or columns and their places are known."""

    @property
    def edges(self) -> tuple[float, float]:
        """Outer edges of the first and the last cell."""
        return float(self.values[0]) - self.step / 2, float(self.values[-1]) + self.step / 2

    def turned(self, west: float) -> Axis:
        """Longitudes ordered eastwards from *west* instead."""
        offset = eastwards(self.values, west)
        order = np.argsort(offset, kind="stable")
        return evolve(self, values=west + offset[order], index=self.index[order])

    def take(self, chosen: npt.NDArray[np.bool_]) -> Axis:
        """Only the *chosen* cells; ``step`` stays that of the file."""
        return evolve(self, values=self.values[chosen], index=self.index[chosen])

    def within(self, first: float, last: float, slack: float) -> npt.NDArray[np.bool_]:
        """Which cells lie between two edges, wholly but for *slack*."""
        half = self.step / 2
        return (self.values - half > first - slack) & (self.values + half < last + slack)

    @property
    def uneven(self) -> bool:
        """Whether the distances between centres differ, by more than a hundredth of a cell or rounding."""
        steps = np.diff(self.values)
        return bool(len(steps) and np.ptp(steps) > self.step * _ALIGNED + 2 * _ROUNDING)

    @property
    def again(self) -> Indices:
        """Numbers of the cells that, but for rounding, lie where the one before them does."""
        return 1 + np.flatnonzero(np.diff(self.values) <= self.step * _ALIGNED)

    @property
    def is_circle(self) -> bool:
        """Whether the cells, if they are longitudes, go once around the globe."""
        first, last = self.edges
        return abs(last - first - _CIRCLE) <= self.step * _ALIGNED


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


def counted_axis(coordinate: Floats, degrees: Floats | None, *, counts: bool) -> Axis:
    """Count rows northwards, or columns eastwards, where these have no latitudes or longitudes of their own.

    They are ordered by their *coordinate*, and turned round where all *degrees* then fall.

    :param degrees: latitudes of the rows, or longitudes of the columns, along the middle of the grid.
    :param counts: whether *coordinate* is nothing but numbers of rows.
    """
    index = np.argsort(coordinate, kind="stable")
    oriented, reach = not counts, None
    if degrees is not None:
        known = degrees[index][np.isfinite(degrees[index])]
        steps = np.diff(np.unwrap(known, period=_CIRCLE))
        if len(steps) and (steps < 0).all():
            index, known, steps = index[::-1], known[::-1], -steps[::-1]
        if len(steps) and (steps > 0).all():
            first, last = float(known[0]), float(known[0] + steps.sum())
            oriented, reach = True, (first - float(steps[0]) / 2, last + float(steps[-1]) / 2)
    return Axis(np.arange(len(index), dtype=np.float64), index, 1.0, oriented, reach)


def eastwards(longitude: Floats | float, west: float) -> Floats:
    """Degrees from *west* east to *longitude*, 0 … 360; a rounding error to the west counts as 0."""
    return np.asarray(np.mod(np.subtract(longitude, west) + _SLACK, _CIRCLE) - _SLACK)


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
    """Shift longitudes by a whole circle, where that brings all of them into -180 … 360."""
    half = _CIRCLE / 2
    first, last = axis.values[0], axis.values[-1]
    west, east = first < -half - _SLACK and last < 0, last >= _CIRCLE and first >= half - _SLACK
    return evolve(axis, values=axis.values + (_CIRCLE if west else -_CIRCLE if east else 0.0))


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
