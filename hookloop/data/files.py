"""Fields in netCDF, zarr and GRIB, whatever their coordinates are called and whichever way they run."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from attrs import evolve, frozen

from hookloop.data.bars import bar
from hookloop.data.calendars import calendar_of, joined, order, same
from hookloop.data.fields import Fields
from hookloop.data.grids import Axis, counted_axis, latitude_axis, longitude_axis
from hookloop.data.opening import fill_of, is_url, kind_of, open_datasets, paths_of
from hookloop.data.options import SourceConfig
from hookloop.data.variables import (
    Cells,
    Found,
    Opened,
    check_ascending,
    find,
    listed,
    locate,
    place_cells,
)
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import xarray as xr

    from hookloop.data.calendars import Times
    from hookloop.data.stored import Part

_EXAMPLES = 3
"""How many examples an error names."""
_OPEN_FILES = 16
_TOLERANCE = 1e-4
"""Degrees: what coordinates of one grid may differ between files."""
_POLE = 90.01
"""Degrees: the pole, and what rounding may make of it."""


@frozen(eq=False)
class Static:
    """A field without time, as it is in its file."""

    values: npt.NDArray[np.float64]
    """``[latitude, longitude]``; the axes say where each cell lies in it."""
    latitude: Axis
    longitude: Axis
    gridded: bool
    """Whether there are latitudes and longitudes; else the axes count rows and columns."""


def open_fields(
    sources: Sequence[str | SourceConfig],
    variables: Sequence[str],
    *,
    fill: Mapping[str, float] | None = None,
    among: Callable[[Times], npt.NDArray[np.bool_]] | None = None,
) -> Fields:
    """Open *variables* of the files of *sources*: times are joined, variables merged, nothing else is read.

    Each file is open only while its coordinates are read, so there may be any number of them.

    :param among: which times matter; where each variable has some of these, all others are left out.
    :param fill: what stands in for missing values, by variable.
    :raises HookloopError: where a file, variable or coordinate is missing, the files do not fit together, or
        times are duplicate or unsorted.
    """
    given = [SourceConfig(source) if isinstance(source, str) else source for source in sources]
    files = [(path, source) for source in given for path in paths_of(source)]
    where = _some([path for path, _ in files])
    found: dict[str, list[Found]] = {name: [] for name in variables}
    there: set[str] = set()
    with bar("opening", len(files)) as advance:
        for path, source in files:
            survey = _surveyed(path, source, tuple(variables))
            there.update(survey.there)
            for name, one in survey.found.items():
                found[name].append(one)
            advance(1)
    if missing := [_called(name, given) for name in variables if not found[name]]:
        raise HookloopError(
            f"no variable {listed(missing)} in {where}; there is {listed(_worth_telling(there))}"
        )
    first = _agreeing([one for name in variables for one in found[name]])
    if among is not None:
        cut = {name: [_cut(one, among) for one in found[name]] for name in variables}
        if all(any(len(one.times) for one in cut[name]) for name in variables):
            found = cut
    used = {name: _in_time([one for one in found[name] if len(one.times)]) for name in variables}
    times = _common_times(used, where)
    units = {name: _common_units(name, here) for name, here in used.items()}
    levels = {name: here[0].level for name, here in used.items() if here[0].level}
    latitude, longitude = _axes(first.cells, first.part.path)
    return Fields(
        where,
        {name: [one.part for one in used[name]] for name in variables},
        times,
        latitude,
        longitude,
        members=first.members,
        fill=dict(fill or {}),
        units=units,
        levels=levels,
        notes=list(_unnoticed(used)),
        gridded=first.cells.gridded,
    )


@frozen(eq=False)
class _Survey:
    """What a file holds."""

    found: Mapping[str, Found]
    """Of the variables that were asked for, those that are there."""
    there: frozenset[str]


def _surveyed(path: str, source: SourceConfig, variables: tuple[str, ...]) -> _Survey:
    """Look into a file; into one that is known and has not changed since, as by another split, not again."""
    if is_url(path) or not Path(path).is_file():
        return _survey(path, source, variables)
    status = Path(path).stat()
    told = tuple(source.rename.items()), source.ensemble
    return _survey_once(path, status.st_mtime_ns, status.st_size, told, variables)


@lru_cache(maxsize=2**16)
def _survey_once(
    path: str,
    _changed: int,
    _size: int,
    told: tuple[tuple[tuple[str, str], ...], str | None],
    variables: tuple[str, ...],
) -> _Survey:
    return _survey(path, SourceConfig(path, rename=dict(told[0]), ensemble=told[1]), variables)


def _survey(path: str, source: SourceConfig, variables: tuple[str, ...]) -> _Survey:
    with _opened(path, source.storage_options) as parts:
        located = {name: locate(parts, name, source) for name in variables}
        there = frozenset(str(name) for part in parts for name in part.data.data_vars)
    return _Survey({name: one for name, one in located.items() if one is not None}, there)


def _cut(one: Found, among: Callable[[Times], npt.NDArray[np.bool_]]) -> Found:
    keep = among(one.times)
    return evolve(one, times=one.times[keep], part=evolve(one.part, index=one.part.index[keep]))


def select(fields: Fields, keep: npt.NDArray[np.int64]) -> Fields:
    """Keep the times with these numbers, ascending, and no others."""
    parts = {name: list(_kept(parts, keep)) for name, parts in fields.parts.items()}
    return evolve(fields, parts=parts, times=fields.times[keep])


def read_static(path: str, variable: str) -> Static:
    """Read a field that has no time, or a single one.

    :raises HookloopError: where the file or the variable is missing, it has further dimensions, or it cannot
        be read.
    """
    paths = paths_of(SourceConfig(path))
    if len(paths) > 1:
        raise HookloopError(f"{path}: {len(paths)} files match; expected one for a static field")
    with _opened(paths[0], {}) as files:
        found = find(files, variable)
        if found is None:
            there = sorted(str(name) for file in files for name in file.data.data_vars)
            raise HookloopError(f"no variable {variable} in {paths[0]}; there is {listed(there)}")
        cells = place_cells(*found)
        array = found[0].data[found[1]]
        array = array.squeeze([raw for raw in array.dims if array.sizes[raw] == 1], drop=True)
        if set(array.dims) != {cells.rows, cells.columns}:
            raise HookloopError(
                f"{paths[0]}: {variable} has dimensions {listed(array.dims)}; expected latitude, longitude"
            )
        latitude, longitude = _axes(cells, paths[0])
        values = _read(array.transpose(cells.rows, cells.columns), paths[0])
        return Static(values, latitude, longitude, cells.gridded)


def open_variable(part: Part) -> xr.DataArray:
    """Open what only xarray can read; the file stays open in this process."""
    datasets = _kept_open(part.path, tuple(part.storage_options.items()))
    return next(data for data in datasets if part.name in data.variables)[part.name]


def forget_open() -> None:
    """Open such files anew when they are next needed."""
    _kept_open.cache_clear()


@lru_cache(maxsize=_OPEN_FILES)
def _kept_open(path: str, storage_options: tuple[tuple[str, object], ...]) -> list[xr.Dataset]:
    return open_datasets(path, dict(storage_options))


@contextmanager
def _opened(path: str, storage_options: Mapping[str, object]) -> Iterator[list[Opened]]:
    options = storage_options if is_url(path) else {}
    with ExitStack() as stack:
        datasets = [stack.enter_context(data) for data in open_datasets(path, options)]
        yield [Opened(path, kind_of(path), data, options) for data in datasets]


def _read(array: xr.DataArray, path: str) -> npt.NDArray[np.float64]:
    try:
        # In single precision, as all fields are.
        return array.to_numpy().astype(np.float32).astype(np.float64)
    except (OSError, RuntimeError, ValueError) as problem:  # what damaged chunks raise
        raise HookloopError(
            f"{path}: {array.name} cannot be read: {problem}; is the file damaged?"
        ) from problem


def _called(name: str, sources: Iterable[SourceConfig]) -> str:
    others = dict.fromkeys(source.rename[name] for source in sources if name in source.rename)
    return f"{name} (renamed from {listed(others)})" if others else name


def _worth_telling(names: Iterable[str]) -> list[str]:
    """Leave out the bounds of coordinates."""
    return sorted(name for name in names if not name.endswith(("_bnds", "_bounds")))


def _agreeing(found: Sequence[Found]) -> Found:
    """Return the first, after checking that the others have its grid, its calendar and as many members."""
    first, *others = found
    for other in others:
        path = other.part.path
        if not _same_cells(other.cells, first.cells):
            raise HookloopError(
                f"{path}: latitudes or longitudes differ from those of {first.part.path}; expected the same"
            )
        if other.members != first.members:
            raise HookloopError(
                f"{path}: {other.part.name} has {other.members} members, {first.part.name} in "
                f"{first.part.path} has {first.members}; expected as many for all"
            )
        calendars = [calendar_of(one.times) for one in (other, first)]
        if len(other.times) and len(first.times) and calendars[0] != calendars[1]:
            raise HookloopError(
                f"{path}: its calendar is {calendars[0]}, that of {first.part.path} is {calendars[1]}; "
                "expected one calendar for all"
            )
    return first


def _same_cells(one: Cells, other: Cells) -> bool:
    pairs = ((one.latitude, other.latitude), (one.longitude, other.longitude))
    if one.gridded != other.gridded or not all(
        a.shape == b.shape and (np.array_equal(a, b) or np.allclose(a, b, atol=_TOLERANCE)) for a, b in pairs
    ):
        return False
    return one.gridded or all(
        np.array_equal(a.index, b.index) for a, b in zip(_counted(one), _counted(other), strict=True)
    )


def _axes(cells: Cells, path: str) -> tuple[Axis, Axis]:
    if not cells.gridded:
        return _counted(cells)
    _check_numbers("latitude", cells.latitude, path)
    _check_numbers("longitude", cells.longitude, path)
    if (beyond := np.abs(cells.latitude) > _POLE).any():
        raise HookloopError(
            f"{path}: {beyond.sum()} of {len(beyond)} values of latitude are beyond the poles, the first "
            f"{cells.latitude[beyond][0]:g}; expected degrees, -90 to 90"
        )
    axes = latitude_axis(cells.latitude), longitude_axis(cells.longitude)
    for name, axis in zip(("latitude", "longitude"), axes, strict=True):
        _check_different(name, axis, getattr(cells, name), path)
    return axes


def _check_numbers(name: str, values: npt.NDArray[np.float64], path: str) -> None:
    if (bad := ~np.isfinite(values)).any():
        raise HookloopError(
            f"{path}: {bad.sum()} of {len(bad)} values of {name} are NaN or infinite, the first number "
            f"{bad.argmax()}, counted from 0; expected degrees"
        )


def _check_different(name: str, axis: Axis, values: npt.NDArray[np.float64], path: str) -> None:
    if len(values) == 1:
        raise HookloopError(f"{path}: expected two or more different values of {name}, found {values[0]:g}")
    if len(again := axis.again):
        pairs = [values[np.sort(axis.index[n - 1 : n + 1])] for n in again[:_EXAMPLES]]
        same = [f"{one:g} and {other:g}" for one, other in pairs]
        raise HookloopError(
            f"{path}: {len(again)} of {len(values)} values of {name} are there before: {', '.join(same)}; "
            "expected each place once: leave the others out of the file"
        )


def _counted(cells: Cells) -> tuple[Axis, Axis]:
    rows, columns = (
        counted_axis(coordinate, cells.middle.get(name), counts=counts)
        for name, coordinate, counts in zip(
            ("latitude", "longitude"), (cells.latitude, cells.longitude), cells.counts, strict=True
        )
    )
    return rows, columns


def _in_time(found: Sequence[Found]) -> list[Found]:
    """Order the files of one variable by their first time."""
    starts = joined([one.times[:1] for one in found])
    return [found[n] for n in order(starts)]


def _common_times(used: Mapping[str, Sequence[Found]], where: str) -> Times:
    times = {name: joined([one.times for one in found]) for name, found in used.items()}
    first = next(iter(times))
    for name, here in times.items():
        if not len(here):
            raise HookloopError(f"no times: {where} has none at all of {name}")
        check_ascending(here, where)
        if not same(here, times[first]):
            raise HookloopError(
                f"{where}: {name} and {first} have different times; expected the same for all"
            )
    return times[first]


def _common_units(name: str, found: Sequence[Found]) -> str:
    """Return the units of one variable, after checking that all files that say any say the same."""
    said = [one for one in found if one.units]
    for one in said:
        if compact_units(one.units) != compact_units(said[0].units):
            raise HookloopError(
                f"{one.part.path}: {name} is in {one.units}, in {said[0].part.path} in {said[0].units}; "
                "expected the same units in all files"
            )
    return said[0].units if said else ""


def compact_units(units: str) -> str:
    """Write powers and products in one way: ``m s**-1`` and ``m.s^-1`` are ``m s-1``; ``ms-1`` is not."""
    products = re.sub(r"(?<=\w)[\s.]+(?=\w)", " ", re.sub(r"\s*(\*\*|\^)\s*", "", units))
    return re.sub(r"(?<!\w)[\s.]+|[\s.]+(?!\w)", "", products)


def _unnoticed(used: Mapping[str, Sequence[Found]]) -> Iterator[str]:
    """Say of which variables a chunk may be lost without any error; the first store of each is looked at."""
    silent: dict[tuple[str, float], list[str]] = {}
    for name, (first, *_) in used.items():
        part = first.part
        if part.format == "zarr":
            fill = fill_of(part.path, part.name, part.storage_options)
            value = fill * part.scale + part.offset
            if np.isfinite(value) and fill not in part.missing:
                silent.setdefault((part.path, value), []).append(name)
    for (path, value), names in silent.items():
        yield (
            f"{path}: a chunk of {listed(names)} that is lost would be read as {value:g} without an error: that "
            "is the array's fill value, and no mark of missing values"
        )


def _kept(parts: Sequence[Part], keep: npt.NDArray[np.int64]) -> Iterator[Part]:
    begin = 0
    for part in parts:
        end = begin + len(part.index)
        index = part.index[keep[(keep >= begin) & (keep < end)] - begin]
        if len(index):
            yield evolve(part, index=index)
        begin = end


def _some(paths: Sequence[str]) -> str:
    more = len(paths) - _EXAMPLES
    return ", ".join(paths[:_EXAMPLES]) + (f" and {more} more" if more > 0 else "")
