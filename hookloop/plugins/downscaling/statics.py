"""Static fields of the fine grid, such as terrain height and land share, as inputs of the model."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import StaticConfig
from hookloop.plugins.downscaling.files import check_variables, open_file, read
from hookloop.plugins.downscaling.grids import Axis, latitude_axis, longitude_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hookloop.plugins.downscaling.grids import Floats, Grid


__all__ = ["StaticConfig", "load_statics"]


def load_statics(statics: Sequence[StaticConfig], grid: Grid) -> Tensor:
    """Read the static fields on *grid*, each with mean 0 and standard deviation 1 over it.

    A constant field becomes zeros.

    :returns: ``[static, lat, lon]`` float32, south to north.
    :raises HookloopError: where one is missing, does not cover *grid* or has a value that is not finite.
    """
    fields = [_load(static, grid) for static in statics]
    return torch.stack(fields) if fields else torch.empty(0, *grid.shape)


def _load(static: StaticConfig, grid: Grid) -> Tensor:
    with ExitStack() as stack:
        data = open_file(static.path, stack)
        check_variables({static.path: data}, [static.variable])
        array = data[static.variable]
        array = array.squeeze([d for d in array.dims if array.sizes[d] == 1], drop=True)
        if set(array.dims) != {"latitude", "longitude"}:
            raise HookloopError(
                f"{static.path}: {static.variable} has dimensions {', '.join(map(str, array.dims))}; "
                "expected latitude, longitude"
            )
        latitude = _matching("latitude", latitude_axis(data.latitude), grid.latitude, static.path)
        west = float(grid.longitude[0])
        around = longitude_axis(data.longitude).turned(west)
        longitude = _matching("longitude", around, grid.longitude, static.path)
        values = read(array.transpose("latitude", "longitude"), latitude, longitude).astype(np.float64)
    if bad := int((~np.isfinite(values)).sum()):
        raise HookloopError(
            f"{static.path}: {bad} of {values.size} values of {static.variable} are NaN or infinite; "
            "expected none"
        )
    spread = values.std()
    # A constant field leaves rounding errors where it should leave nothing.
    anomaly = values - values.mean() if np.ptp(values) > 0 else np.zeros_like(values)
    return torch.from_numpy((anomaly / (spread or 1.0)).astype(np.float32))


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
