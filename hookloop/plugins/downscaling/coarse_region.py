"""Which cells of coarse data are those that a model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import evolve, frozen

from hookloop.data.grids import Axis, in_convention
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from hookloop.data.fields import Fields
    from hookloop.data.grids import Floats
    from hookloop.plugins.downscaling.pairs import Pairing

_ROUNDING = 2.0**-15
"""Degrees: what coordinates of a model, which are in single precision, may be off."""
_ALIGNED = 1 / 100
"""Of a coarse cell: what centres may be off."""


@frozen(eq=False)
class FineGrid:
    """The fine grid of a model, south to north and west to east."""

    latitude: Floats
    longitude: Floats

    @property
    def gridded(self) -> bool:
        """Whether these are degrees; else they count rows and columns."""
        return not all(np.array_equal(own, np.arange(len(own))) for own in (self.latitude, self.longitude))

    @property
    def step(self) -> float:
        """Width of a cell, degrees."""
        return float(self.latitude[-1] - self.latitude[0]) / (len(self.latitude) - 1)

    def coarse(self, factor: int) -> tuple[Floats, Floats]:
        """Centres of coarse cells that are *factor* fine ones wide."""
        latitude, longitude = (own.reshape(-1, factor).mean(1) for own in (self.latitude, self.longitude))
        return latitude, longitude


@frozen(eq=False)
class Region:
    """Coarse fields on the cells that a model was trained on."""

    coarse: Fields
    factor: int
    """Fine cells to a coarse cell along each axis."""
    periodic: bool
    """Whether the last column is the first one's western neighbour."""


def factor_of(coarse: Fields, fine: FineGrid, pairing: Pairing) -> int:
    """Count the fine cells to a cell of *coarse* along each axis.

    :raises HookloopError: where it is no whole number.
    """
    if pairing == "index":
        ratios = [len(own) / n for own, n in zip((fine.latitude, fine.longitude), coarse.shape, strict=True)]
    else:
        ratios = [coarse.latitude.step / fine.step]
    factor = round(ratios[0])
    shape = len(fine.latitude), len(fine.longitude)
    if factor < 1 or any(abs(r - factor) > _ALIGNED for r in ratios) or any(n % factor for n in shape):
        places = _reach(fine.latitude, fine.longitude) if fine.gridded else ""
        raise HookloopError(
            f"{coarse.where}: {_grid(coarse)}; the model was trained on {shape[0]} x {shape[1]} fine cells{places}, "
            "of which no whole number makes a coarse one"
        )
    return factor


def trained_region(coarse: Fields, fine: FineGrid, pairing: Pairing) -> Region:
    """Find the coarse cells that the *fine* ones of a model fill; further cells of *coarse* are left out.

    Those beside the region are not looked at, since in training the outermost cells were repeated there.

    :raises HookloopError: naming both extents, where the cells are not there or lie elsewhere.
    """
    factor = factor_of(coarse, fine, pairing)
    if pairing == "index":
        axes = coarse.latitude, in_convention(coarse.longitude)
        circles = fine.gridded and coarse.gridded and axes[1].is_circle and _is_circle(fine.longitude)
        return Region(evolve(coarse, latitude=axes[0], longitude=axes[1]), factor, circles)
    if not coarse.gridded:
        raise HookloopError(
            f"{coarse.where}: no latitude and longitude along dimensions of their own; the model was trained "
            "on cells that have them"
        )
    latitude, longitude = fine.coarse(factor)
    step = coarse.latitude.step
    rows = _cells(coarse.latitude, latitude)
    columns = _cells(coarse.longitude.turned(float(longitude[0]) - step / 2), longitude)
    if rows is None or columns is None:
        raise HookloopError(
            f"{coarse.where}: {_grid(coarse)}; the model was trained on {len(latitude)} x {len(longitude)} cells"
            f"{_reach(latitude, longitude)}, expected those among them"
        )
    return Region(evolve(coarse, latitude=rows, longitude=columns), factor, _is_circle(longitude))


def _cells(axis: Axis, expected: Floats) -> Axis | None:
    """Take the cells at *expected*, if they are all there."""
    slack = _ALIGNED * axis.step + _ROUNDING
    half = axis.step / 2
    chosen = axis.take((axis.values > expected[0] - half) & (axis.values < expected[-1] + half))
    there = len(chosen.values) == len(expected) and bool((np.abs(chosen.values - expected) <= slack).all())
    return chosen if there else None


def _is_circle(longitude: Floats) -> bool:
    step = float(longitude[-1] - longitude[0]) / (len(longitude) - 1)
    return Axis(longitude, np.arange(len(longitude)), step).is_circle


def _grid(coarse: Fields) -> str:
    rows, columns = coarse.shape
    places = _reach(coarse.latitude.values, coarse.longitude.values) if coarse.gridded else ""
    return f"{rows} x {columns} coarse cells{places}"


def _reach(latitude: Floats, longitude: Floats) -> str:
    return f" with centres {latitude[0]:g} to {latitude[-1]:g} N, {longitude[0]:g} to {longitude[-1]:g} E"
