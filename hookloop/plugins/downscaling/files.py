"""Fields in netCDF and zarr, whatever their coordinates are called and whichever way they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr
from attrs import frozen

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.grids import Axis, latitude_axis, longitude_axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import ExitStack

Times = npt.NDArray[np.datetime64]

_ALIASES = {"latitude": "lat", "longitude": "lon", "time": "valid_time"}
_DIMENSIONS = ("time", "latitude", "longitude")
_EXAMPLES = 3
"""How many examples an error names."""


@frozen(eq=False)
class Source:
    """Files that belong together, opened, named alike and cut in time, but not read."""

    where: str
    parts: dict[str, list[xr.DataArray]]
    """By variable, ``[time, latitude, longitude]`` as in the file, in the order of time."""
    times: Times
    latitude: Axis
    longitude: Axis


def open_source(
    paths: Sequence[str], variables: Sequence[str], time: tuple[str, str] | None, stack: ExitStack
) -> Source:
    """Open *variables* of the files *paths*: times are joined, variables merged.

    :param time: first and last time, both included, as partial dates.
    :param stack: where the files are registered to be closed.
    :raises HookloopError: where a file, variable or coordinate is missing, the files do not fit together,
        times are duplicate or unsorted, or none lies in *time*.
    """
    files = {path: open_file(path, stack) for path in paths}
    check_variables(files, variables)
    files = {path: data for path, data in files.items() if set(variables) & set(data.data_vars)}
    latitude, longitude = _common_axes(files)
    where = _some(paths)
    cut = {path: _cut(data, time, path) for path, data in files.items()}
    parts = {name: _parts(cut, name) for name in variables}
    if not any(parts.values()):
        asked = f" in {time[0]} to {time[1]}" if time else ""
        raise HookloopError(f"no times{asked}: {where} has {_span(files)}")
    times = _join(parts[variables[0]], where)
    for name in variables[1:]:
        if not np.array_equal(_join(parts[name], where), times):
            raise HookloopError(
                f"{where}: {name} and {variables[0]} have different times; expected the same for all"
            )
    return Source(where, parts, times, latitude, longitude)


def open_file(path: str, stack: ExitStack) -> xr.Dataset:
    """Open a netCDF file or zarr store lazily, with coordinates named time, latitude and longitude.

    :raises HookloopError: where it is missing, cannot be read or has no latitudes and longitudes.
    """
    if not Path(path).exists():
        raise HookloopError(f"{path}: no such file or store; expected a netCDF file or a zarr store")
    try:
        data = stack.enter_context(_open(path))
    except (OSError, ValueError, KeyError, ImportError) as problem:
        if "calendar" in str(problem):  # what xarray says without cftime
            raise HookloopError(
                f"{path}: expected dates of the standard calendar, found: {problem}"
            ) from problem
        raise HookloopError(
            f"{path}: expected a netCDF-4 file or a zarr store, found: {problem}; "
            "convert older netCDF with: nccopy -k nc4"
        ) from problem
    aliases = {other: name for name, other in _ALIASES.items() if name not in data.variables}
    data = data.rename({other: name for other, name in aliases.items() if other in data.variables})
    for name in ("latitude", "longitude"):
        if name not in data.variables or data[name].dims != (name,):
            raise HookloopError(
                f"{path}: no coordinate {name} along a dimension of its own, found coordinates "
                f"{_listed(data.coords)}; expected lat or latitude and lon or longitude"
            )
    return data


def _open(path: str) -> xr.Dataset:
    if Path(path).is_dir():
        # Looking for consolidated metadata first would warn about every store that has none.
        store: xr.Dataset = xr.open_zarr(path, chunks=None, consolidated=False, decode_timedelta=False)
        return store
    return xr.open_dataset(path, engine="h5netcdf", decode_timedelta=False)


def check_variables(files: Mapping[str, xr.Dataset], variables: Iterable[str]) -> None:
    """Check that each variable is in one of the *files* at least.

    :raises HookloopError: naming those that are not, and what there is.
    """
    there = {name for data in files.values() for name in data.data_vars}
    if missing := [name for name in variables if name not in there]:
        raise HookloopError(
            f"no variable {', '.join(missing)} in {_some(list(files))}; "
            f"there is {_listed(sorted(map(str, there)))}"
        )


def read(array: xr.DataArray, latitude: Axis, longitude: Axis) -> npt.NDArray[np.float32]:
    """Read the cells of both axes, ``[…, lat, lon]``, a run of neighbours at a time.

    A region across 0 in a file from 0 to 360 is two runs, and nothing between them is read.
    """
    try:
        pieces = [
            [array.isel(latitude=rows, longitude=columns).to_numpy() for columns in _runs(longitude)]
            for rows in _runs(latitude)
        ]
    except (OSError, RuntimeError, ValueError) as problem:  # what damaged chunks raise
        source = array.encoding.get("source", "its file")
        raise HookloopError(
            f"{source}: {array.name} cannot be read: {problem}; is the file damaged?"
        ) from problem
    return np.asarray(np.block(pieces), dtype=np.float32)


def dates(times: Times) -> str:
    """Name the first few of *times*."""
    return ", ".join(np.datetime_as_string(times[:_EXAMPLES], unit="m"))


def _runs(axis: Axis) -> list[slice]:
    jumps = np.flatnonzero(np.abs(np.diff(axis.index)) != 1) + 1
    return [_slice(int(run[0]), int(run[-1])) for run in np.split(axis.index, jumps)]


def _slice(first: int, last: int) -> slice:
    if first <= last:
        return slice(first, last + 1)
    return slice(first, last - 1 if last else None, -1)


def _common_axes(files: Mapping[str, xr.Dataset]) -> tuple[Axis, Axis]:
    """Order the coordinates of the first file, after checking that the others have the same."""
    (first, data), *others = files.items()
    for path, other in others:
        if not all(_same(other[name], data[name]) for name in ("latitude", "longitude")):
            raise HookloopError(
                f"{path}: latitudes or longitudes differ from those of {first}; expected the same"
            )
    axes = latitude_axis(data.latitude), longitude_axis(data.longitude)
    for name, axis in zip(("latitude", "longitude"), axes, strict=True):
        if not axis.step > 0 or not (np.diff(axis.values) > 0).all():
            raise HookloopError(
                f"{first}: expected two or more different values of {name}, found {data[name].values}"
            )
    return axes


def _same(one: xr.DataArray, other: xr.DataArray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, atol=1e-4)


def _cut(data: xr.Dataset, time: tuple[str, str] | None, path: str) -> xr.Dataset:
    """Cut *data* to the closed range *time*, after checking that its times can be cut."""
    if "time" not in data.variables:
        raise HookloopError(f"{path}: no coordinate time, found {_listed(data.coords)}")
    data = data if data.time.ndim else data.expand_dims("time")
    if data.time.dtype.kind != "M":
        raise HookloopError(
            f"{path}: time is of type {data.time.dtype}; expected dates of the standard calendar"
        )
    _check_ascending(data.time.to_numpy(), path)
    if time is None:
        return data
    try:
        return data.isel(time=data.indexes["time"].slice_indexer(*time))
    except (TypeError, ValueError) as problem:  # which one depends on the version of pandas
        raise HookloopError(
            f"time: expected two dates such as 2019-03-22, found {time[0]}, {time[1]}"
        ) from problem


def _check_ascending(times: Times, where: str) -> None:
    unique, counts = np.unique(times, return_counts=True)
    if len(again := unique[counts > 1]):
        raise HookloopError(
            f"{where}: {len(again)} times occur more than once, the first {dates(again)}; expected each once"
        )
    if len(back := times[1:][times[1:] < times[:-1]]):
        raise HookloopError(
            f"{where}: {len(back)} times are before the one they follow, the first {dates(back)}; "
            "expected ascending times"
        )


def _parts(files: Mapping[str, xr.Dataset], name: str) -> list[xr.DataArray]:
    """Collect one variable from the files that have it, by their first time."""
    parts = []
    for path, data in files.items():
        if name not in data.data_vars or not data.sizes["time"]:
            continue
        array = data[name]
        single = [d for d in array.dims if array.sizes[d] == 1 and d not in _DIMENSIONS]
        array = array.squeeze(single, drop=True)
        if set(array.dims) != set(_DIMENSIONS):
            raise HookloopError(
                f"{path}: {name} has dimensions {_listed(array.dims)}; expected {_listed(_DIMENSIONS)}"
            )
        parts.append(array.transpose(*_DIMENSIONS))
    return sorted(parts, key=lambda array: array.time.to_numpy()[0])


def _join(parts: Sequence[xr.DataArray], where: str) -> Times:
    if not parts:
        return np.empty(0, "datetime64[ns]")
    times = np.concatenate([part.time.to_numpy() for part in parts]).astype("datetime64[ns]")
    _check_ascending(times, where)
    return times


def _span(files: Mapping[str, xr.Dataset]) -> str:
    times = np.sort(np.concatenate([data.time.to_numpy().reshape(-1) for data in files.values()]))
    return " to ".join(np.datetime_as_string(times[[0, -1]], unit="m")) if len(times) else "none at all"


def _some(paths: Sequence[str]) -> str:
    more = len(paths) - _EXAMPLES
    return ", ".join(paths[:_EXAMPLES]) + (f" and {more} more" if more > 0 else "")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
