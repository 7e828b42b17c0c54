"""Pairs of coarse and fine fields: opened once, checked once, only what is needed is read."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import SplitConfig
from hookloop.plugins.downscaling.files import Source, Times, dates, open_source, read
from hookloop.plugins.downscaling.grids import Axis, Grid, covers, in_convention, width

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["Grid", "Pair", "SplitConfig", "day_of_year", "hour_of_day", "open_pair"]

Axes = tuple[Axis, Axis]
"""Latitude and longitude."""


@frozen(eq=False)
class Pair:
    """Coarse and fine fields of the same times and extent, in physical units, finite, south to north."""

    coarse: Tensor
    """``[time, input variable, lat, lon]``, float32."""
    fine: Tensor
    """``[time, output variable, factor·lat, factor·lon]``, float32."""
    times: Times
    coarse_grid: Grid
    fine_grid: Grid
    factor: int
    """Fine cells to a coarse cell along each axis."""
    inputs: list[str]
    outputs: list[str]
    units: dict[str, str]
    """By variable; empty where the files say nothing."""


def open_pair(split: SplitConfig, inputs: Sequence[str], outputs: Sequence[str]) -> Pair:
    """Read the *inputs* from the coarse and the *outputs* from the fine files of *split*.

    :raises HookloopError: where a file or variable is missing, times or grids do not match, the region lies
        outside the grid, or a value is not finite; it says what, where and how many.
    """
    with ExitStack() as stack:
        coarse = open_source(split.coarse, inputs, split.time, stack)
        fine = open_source(split.fine, outputs, split.time, stack)
        _check_times(coarse, fine)
        above = _latitudes(coarse, split.lat), _longitudes(coarse, split.lon)
        below = _below(fine, above)
        factor = _check_grids(coarse, fine, above, below)
        return Pair(
            coarse=_read(coarse, above),
            fine=_read(fine, below),
            times=coarse.times,
            coarse_grid=Grid(above[0].values, above[1].values),
            fine_grid=Grid(below[0].values, below[1].values),
            factor=factor,
            inputs=list(inputs),
            outputs=list(outputs),
            units=_units(coarse) | _units(fine),
        )


def day_of_year(times: Times) -> Tensor:
    """Days since the year began, UTC, with fractions: ``[time]`` float32 in 0 … 366."""
    return _since("datetime64[Y]", times, np.timedelta64(1, "D"))


def hour_of_day(times: Times) -> Tensor:
    """Hours since the day began, UTC, with fractions: ``[time]`` float32 in 0 … 24."""
    return _since("datetime64[D]", times, np.timedelta64(1, "h"))


def _since(beginning: str, times: Times, unit: np.timedelta64) -> Tensor:
    return torch.from_numpy(((times - times.astype(beginning)) / unit).astype(np.float32))


def _check_times(coarse: Source, fine: Source) -> None:
    lonely = (
        (np.setdiff1d(coarse.times, fine.times), coarse.where),
        (np.setdiff1d(fine.times, coarse.times), fine.where),
    )
    problems = [
        f"{len(times)} only in {where}, the first {dates(times)}" for times, where in lonely if len(times)
    ]
    if problems:
        raise HookloopError(f"times do not match: {'; '.join(problems)}; expected the same in both")


def _latitudes(source: Source, box: tuple[float, float] | None) -> Axis:
    """Choose the cells whose centres lie in *box*."""
    axis = source.latitude
    if box is None:
        return axis
    south, north = min(box), max(box)
    first, last = axis.edges
    slack = axis.step / 100
    chosen = axis.take((axis.values >= south - slack) & (axis.values <= north + slack))
    if not len(chosen.values) or south < first - slack or north > last + slack:
        raise _outside("latitude", box, source, axis)
    return chosen


def _longitudes(source: Source, box: tuple[float, float] | None) -> Axis:
    """Choose the cells whose centres lie in *box*, eastwards from its west end."""
    axis = source.longitude
    if box is None:
        return in_convention(axis)
    west, degrees = box[0], width(box)
    turned = axis.turned(west)
    chosen = turned.take(turned.values <= west + degrees + axis.step / 100)
    if not len(chosen.values) or not covers(axis, west, degrees):
        raise _outside("longitude", box, source, axis)
    return in_convention(chosen)


def _outside(name: str, box: tuple[float, float], source: Source, axis: Axis) -> HookloopError:
    first, last = axis.edges
    return HookloopError(
        f"region: {name} {box[0]:g} to {box[1]:g} is outside the grid or between two centres; "
        f"{source.where} has {first:g} to {last:g} in cells of {axis.step:g} degrees"
    )


def _below(fine: Source, above: Axes) -> Axes:
    """Choose the fine cells whose centres lie within the outer edges of the coarse ones."""
    south, north = above[0].edges
    west, east = above[1].edges
    latitude, longitude = fine.latitude, fine.longitude.turned(west)
    return (
        latitude.take((latitude.values > south) & (latitude.values < north)),
        longitude.take((longitude.values > west) & (longitude.values < east)),
    )


def _check_grids(coarse: Source, fine: Source, above: Axes, below: Axes) -> int:
    """Count the fine cells to a coarse one, after checking that they fill it."""
    shapes = [tuple(len(axis.values) for axis in axes) for axes in (above, below)]
    found = f"coarse {shapes[0]} in {coarse.where}, fine {shapes[1]} in {fine.where}"
    if any(f == 0 or f % c for c, f in zip(*shapes, strict=True)):
        raise HookloopError(
            f"the coarse grid does not divide the fine one: {found} (latitude, longitude, in the region); "
            "expected a whole number of fine cells to a coarse one"
        )
    factor, other = (int(f // c) for c, f in zip(*shapes, strict=True))
    if factor != other:
        raise HookloopError(
            f"the factor is {factor} in latitude and {other} in longitude: {found}; expected it equal in both"
        )
    for name, c, f in zip(("latitude", "longitude"), above, below, strict=True):
        off = float(np.abs(f.values.reshape(-1, factor).mean(1) - c.values).max())
        if off > c.step / 100:
            raise HookloopError(
                f"{name} of coarse and fine cells differs by up to {off:g} degrees: centres {_extent(c)} in "
                f"{coarse.where}, {_extent(f)} in {fine.where}; "
                f"expected {factor} fine cells to fill a coarse one"
            )
    return factor


def _extent(axis: Axis) -> str:
    return f"{axis.values[0]:g} to {axis.values[-1]:g}"


def _read(source: Source, axes: Axes) -> Tensor:
    """Read *source*, ``[time, variable, lat, lon]`` float32, and check that every value is finite."""
    lat, lon = axes
    values = np.empty((len(source.times), len(source.parts), len(lat.values), len(lon.values)), np.float32)
    for v, (name, parts) in enumerate(source.parts.items()):
        begin = 0
        for part in parts:
            end = begin + part.sizes["time"]
            values[begin:end, v] = read(part, lat, lon)
            begin = end
        _check_finite(values[:, v], name, source, axes)
    return torch.from_numpy(values)


def _check_finite(values: npt.NDArray[np.float32], name: str, source: Source, axes: Axes) -> None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    t, i, j = np.unravel_index(int(bad.argmax()), bad.shape)
    raise HookloopError(
        f"variable {name}: {bad.sum()} of {bad.size} values ({bad.mean():.2%}) are NaN or infinite, "
        f"the first at time {dates(source.times[[t]])}, latitude {axes[0].values[i]:g}, "
        f"longitude {axes[1].values[j]:g} in {source.where}; expected none"
    )


def _units(source: Source) -> dict[str, str]:
    return {name: str(parts[0].attrs.get("units", "")) for name, parts in source.parts.items()}
