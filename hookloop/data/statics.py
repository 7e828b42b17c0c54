"""Static fields of the fine grid, such as terrain height and land share, as inputs of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hookloop.data.files import read_static
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hookloop.data.files import Static
    from hookloop.data.grids import Axis, Floats, Grid, Indices
    from hookloop.data.options import StaticConfig


def load_statics(statics: Sequence[StaticConfig], grid: Grid) -> Tensor:
    """Read the static fields on *grid*, each with mean 0 and standard deviation 1 over it.

    A constant field becomes zeros. On a grid without latitudes and longitudes cells belong together by row and
    column, counted northwards and eastwards where both files say which way they run.

    :returns: ``[static, lat, lon]`` float32, south to north.
    :raises HookloopError: where one is missing, does not cover *grid* or has a value that is not finite.
    """
    try:
        fields = [_load(static, grid) for static in statics]
    except HookloopError as error:
        raise HookloopError(f"statics: {error}") from error
    return torch.stack(fields) if fields else torch.empty(0, *grid.shape)


def _load(static: StaticConfig, grid: Grid) -> Tensor:
    found = read_static(static.path, static.variable)
    values = _by_place(found, grid, static.path) if grid.gridded else _by_index(found, grid, static.path)
    if bad := int((~np.isfinite(values)).sum()):
        raise HookloopError(
            f"{static.path}: {bad} of {values.size} values of {static.variable} are NaN or infinite; "
            "expected none"
        )
    spread = values.std()
    # A constant field leaves rounding errors where it should leave nothing.
    anomaly = values - values.mean() if np.ptp(values) > 0 else np.zeros_like(values)
    return torch.from_numpy((anomaly / (spread or 1.0)).astype(np.float32))


def _by_place(found: Static, grid: Grid, path: str) -> Floats:
    """Choose the cells at the coordinates of *grid*."""
    if not found.gridded:
        raise HookloopError(
            f"{path}: no latitude and longitude along dimensions of their own; expected those of the fine grid"
        )
    latitude = _matching("latitude", found.latitude, grid.latitude, path)
    around = found.longitude.turned(float(grid.longitude[0]))
    longitude = _matching("longitude", around, grid.longitude, path)
    return np.ascontiguousarray(found.values[np.ix_(latitude.index, longitude.index)])


def _by_index(found: Static, grid: Grid, path: str) -> Floats:
    """Take all cells northwards and eastwards, or as the fine file has them where either says nothing of that."""
    if found.values.shape != grid.shape:
        raise HookloopError(
            f"{path}: {found.values.shape} cells do not match the fine grid, {grid.shape} (rows, columns)"
        )
    axes = (found.latitude, found.longitude)
    return np.ascontiguousarray(found.values[np.ix_(*map(_beside, axes, grid.order))])


def _beside(axis: Axis, order: Indices | None) -> Indices:
    if order is None:
        return np.arange(len(axis.index))
    return axis.index if axis.oriented else order


def _matching(name: str, axis: Axis, expected: Floats, path: str) -> Axis:
    """Choose the cells at *expected*, to a hundredth of a cell."""
    slack = float(np.diff(expected).min()) / 100
    chosen = axis.take((axis.values >= expected[0] - slack) & (axis.values <= expected[-1] + slack))
    if len(chosen.values) != len(expected) or np.abs(chosen.values - expected).max() > slack:
        raise HookloopError(
            f"{path}: {name} of {len(axis.values)} cells from {axis.values.min():g} to {axis.values.max():g} "
            f"does not match the fine grid, {len(expected)} cells from {expected[0]:g} to {expected[-1]:g}"
        )
    return chosen
