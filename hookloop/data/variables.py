"""One variable of one file: which of its dimensions is what, its times and its cells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen

from hookloop.data.calendars import dates, repeated, set_back, to_millisecond
from hookloop.data.conventions import (
    dimensions,
    find_variables,
    level_name,
    levels_at,
    planes,
    readings,
    scalars,
)
from hookloop.data.stored import Part
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import xarray as xr

    from hookloop.data.calendars import Times
    from hookloop.data.opening import Kind
    from hookloop.data.options import SourceConfig

_HORIZONTAL = {"latitude": "latitude", "longitude": "longitude", "row": "latitude", "column": "longitude"}
_COORDINATES = {"latitude": "lat or latitude", "longitude": "lon or longitude"}
_FORMATS: dict[Kind, Literal["zarr", "hdf5"]] = {"zarr": "zarr", "netcdf4": "hdf5"}
_MISSING = ("_FillValue", "missing_value")
_RADIANS = ("radian", "radians", "rad")
_LEVEL = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?) ?([a-z]*)", re.ASCII | re.IGNORECASE)


class _Encoding(TypedDict, total=False):
    """The fields of a :class:`Part` that say how it is read."""

    format: Required[Literal["zarr", "hdf5", "xarray"]]
    scale: float
    offset: float
    missing: tuple[int | float, ...]


@define(eq=False)
class Opened:
    """A file or store that is open; its coordinates are read once for all variables."""

    path: str
    kind: Kind
    data: xr.Dataset
    storage_options: Mapping[str, object]
    _read: dict[str, npt.NDArray[Any]] = field(factory=dict, init=False)

    def values(self, coordinate: str) -> npt.NDArray[np.float64]:
        """Read a coordinate."""
        if coordinate not in self._read:
            self._read[coordinate] = np.asarray(self.data[coordinate], dtype=np.float64)
        return self._read[coordinate]

    def middle(self, rows: str, columns: str) -> dict[str, npt.NDArray[np.float64]]:
        """Read latitudes down the middle column and longitudes along the middle row, where cells have their own."""
        across = {"latitude": columns, "longitude": rows}
        read = {}
        for role, name in planes(self.data, rows, columns).items():
            line = f"{name} in the middle of {across[role]}"
            if line not in self._read:
                array = self.data[name].isel({across[role]: self.data.sizes[across[role]] // 2})
                self._read[line] = np.asarray(array, dtype=np.float64)
            read[str(role)] = self._read[line]
        return read

    def times(self, coordinate: str) -> Times:
        """Read times and check them.

        :raises HookloopError: where they are no dates, or some are missing, duplicate or out of order.
        """
        if coordinate not in self._read:
            times = self.data[coordinate].to_numpy().reshape(-1)
            if times.dtype.kind != "M" and not all(hasattr(time, "calendar") for time in times):
                raise HookloopError(
                    f"{self.path}: {coordinate} is of type {times.dtype}; expected dates, which CF has as "
                    "numbers with units such as hours since 2019-03-22"
                )
            if times.dtype.kind == "M" and (missing := int(np.isnat(times).sum())):
                raise HookloopError(
                    f"{self.path}: {missing} of {len(times)} times are missing; expected none"
                )
            times = to_millisecond(times)
            check_ascending(times, self.path)
            self._read[coordinate] = times
        return self._read[coordinate]


@frozen(eq=False)
class Cells:
    """The horizontal dimensions of a variable, and their coordinates as they are in the file."""

    rows: str
    """What the file calls the dimension."""
    columns: str
    latitude: npt.NDArray[np.float64]
    """Numbers, or coordinates, of rows where these have no latitude."""
    longitude: npt.NDArray[np.float64]
    gridded: bool
    counts: tuple[bool, bool]
    """Whether ``latitude`` and ``longitude`` are nothing but numbers of rows and columns."""
    middle: Mapping[str, npt.NDArray[np.float64]]
    """Of cells that have them each: latitudes down the middle column, longitudes along the middle row."""


@frozen(eq=False)
class Found:
    """A variable in a file, with what must agree between files."""

    part: Part
    times: Times
    cells: Cells
    members: int
    units: str
    level: str
    """Which was asked for, or nothing."""


def find(files: Iterable[Opened], name: str) -> tuple[Opened, str] | None:
    """Find the variable that is called *name* in the file, or that has it as standard or GRIB short name.

    :raises HookloopError: where several could be meant.
    """
    found = [(file, variable) for file in files for variable in find_variables(file.data, name)]
    if len(found) > 1:
        names = listed(dict.fromkeys(variable for _, variable in found))
        raise HookloopError(
            f"{found[0][0].path}: {name} may be {len(found)} variables ({names}), of different names, levels "
            "or times; expected one: name it in rename, or keep the others in another file"
        )
    return found[0] if found else None


def locate(files: Iterable[Opened], name: str, source: SourceConfig) -> Found | None:
    """Find the variable that the model calls *name* in the parts of one file.

    :returns: None where it is not there.
    :raises HookloopError: where several could be meant, or its dimensions or times are not what fields have.
    """
    wanted, _, level = source.rename.get(name, name).partition("@")
    found = find(files, wanted)
    return _found(*found, level, source) if found else None


def place_cells(file: Opened, variable: str) -> Cells:
    """Find the two dimensions of the grid of a variable.

    :raises HookloopError: where it has not one of each, or it is in radians.
    """
    there = dimensions(file.data, variable)
    raw = [(name, found) for name, found in there.items() if found.role in _HORIZONTAL]
    names = {_HORIZONTAL[found.role]: name for name, found in raw}
    if len(raw) != len(names) or len(names) != len(_COORDINATES):
        lacking = next((name for name in _COORDINATES if name not in names), "latitude")
        raise HookloopError(
            f"{file.path}: {variable} has no coordinate {lacking} along a dimension of its own: it has "
            f"dimensions {listed(file.data[variable].dims)}, the file has coordinates {listed(file.data.coords)}; "
            f"expected {_COORDINATES[lacking]}, or y and x of a projected grid"
        )
    lat, lon = names["latitude"], names["longitude"]
    coordinates = [there[name].coordinate for name in (lat, lon)]
    latitude, longitude = (
        np.arange(file.data.sizes[name], dtype=np.float64) if coordinate is None else file.values(coordinate)
        for name, coordinate in zip((lat, lon), coordinates, strict=True)
    )
    gridded = all(there[name].role in _COORDINATES and there[name].coordinate for name in (lat, lon))
    units = [str(file.data[name].attrs.get("units", "")) if name else "" for name in coordinates]
    if gridded and (wrong := [unit for unit in units if unit.lower() in _RADIANS]):
        raise HookloopError(
            f"{file.path}: {coordinates[units.index(wrong[0])]} is in {wrong[0]}; expected degrees"
        )
    return Cells(
        lat,
        lon,
        latitude,
        longitude,
        gridded,
        counts=(_counts(latitude, units[0]), _counts(longitude, units[1])),
        middle={} if gridded else file.middle(lat, lon),
    )


def check_ascending(times: Times, where: str) -> None:
    """Refuse times that are duplicate or out of order."""
    if len(again := repeated(times)):
        raise HookloopError(
            f"{where}: {len(again)} times occur more than once, the first {dates(again)}; expected each once"
        )
    if len(back := set_back(times)):
        raise HookloopError(
            f"{where}: {len(back)} times are before the one they follow, the first {dates(back)}; "
            "expected ascending times"
        )


def listed(names: Iterable[object]) -> str:
    """Name them all."""
    return ", ".join(map(str, names)) or "none"


def _counts(coordinate: npt.NDArray[np.float64], units: str) -> bool:
    """Whether a coordinate does no more than number rows, from 0 or 1 on."""
    return units in ("", "1") and any(
        np.array_equal(coordinate, np.arange(first, first + len(coordinate))) for first in (0, 1)
    )


def _found(file: Opened, variable: str, level: str, source: SourceConfig) -> Found:
    array = file.data[variable]
    if array.dtype.kind not in "fiub":
        raise HookloopError(f"{file.path}: {variable} is of type {array.dtype}; expected numbers")
    cells = place_cells(file, variable)
    used = {cells.rows: "latitude", cells.columns: "longitude"}
    if source.ensemble:
        if source.ensemble not in array.dims:
            raise HookloopError(
                f"{file.path}: {variable} has no dimension {source.ensemble}, found {listed(array.dims)}; "
                "expected in ensemble the dimension of the members"
            )
        used[source.ensemble] = "member"
    time, times = _times(file, variable)
    if time:
        used[time] = "time"
    fixed, chosen = _fixed(file, variable, used, level)
    names = {str(raw): used.get(str(raw), f"fixed {raw}") for raw in array.dims}
    return Found(
        Part(
            path=file.path,
            name=variable,
            dims=tuple(names.values()),
            index=np.arange(len(times)),
            fixed={names[raw]: index for raw, index in fixed.items()},
            chunks={names[raw]: cells for raw, cells in _chunks(file, variable).items()},
            storage_options=file.storage_options,
            **_encoding(file, variable),
        ),
        times,
        cells,
        members=array.sizes[source.ensemble] if source.ensemble else 1,
        units=str(array.attrs.get("units", "")),
        level=chosen,
    )


def _times(file: Opened, variable: str) -> tuple[str | None, Times]:
    """Find the dimension of time, None where the whole file has a single one, and the times."""
    for name, dimension in dimensions(file.data, variable).items():
        if dimension.role == "time" and dimension.coordinate:
            return name, file.times(dimension.coordinate)
    alone = scalars(file.data).get("time")
    if alone is None or any(d.role == "time" for d in dimensions(file.data, variable).values()):
        raise HookloopError(
            f"{file.path}: no coordinate time, found {listed(file.data.coords)}; expected when fields of {variable} "
            "are valid: one field for all times, such as terrain, goes on the fine grid under statics"
        )
    return None, file.times(alone)


def _fixed(file: Opened, variable: str, used: Mapping[str, str], level: str) -> tuple[dict[str, int], str]:
    """Choose the place along all dimensions that fields have not, and name the level that was asked for.

    :raises HookloopError: where there are several and the configuration does not say which.
    """
    array = file.data[variable]
    there = dimensions(file.data, variable)
    rest = [str(raw) for raw in array.dims if raw not in used]
    levels = next((raw for raw in rest if raw in there and there[raw].role == "level"), None)
    fixed, chosen = {raw: 0 for raw in rest if array.sizes[raw] == 1}, ""
    if level:
        coordinate = there[levels].coordinate if levels else scalars(file.data).get("level")
        place, chosen = _level(file, variable, coordinate, level)
        fixed |= {levels: place} if levels else {}
    for raw in rest:
        if raw not in fixed:
            raise HookloopError(f"{file.path}: {variable} {_several(file, variable, raw)}")
    return fixed, chosen


def _several(file: Opened, variable: str, raw: str) -> str:
    array = file.data[variable]
    found = dimensions(file.data, variable).get(raw)
    if found and found.role == "level":
        values = _values(file, found.coordinate) if found.coordinate else f"{array.sizes[raw]} without values"
        return f"has several levels ({raw}: {values}); choose one with rename: {{NAME: {variable}@LEVEL}}"
    if found and found.role == "member":
        return (
            f"has {array.sizes[raw]} members along {raw}; name that dimension with ensemble: {raw}, "
            "beside the path, on the coarse side"
        )
    return f"has dimensions {listed(array.dims)}; expected time, latitude, longitude"


def _level(file: Opened, variable: str, coordinate: str | None, asked: str) -> tuple[int, str]:
    """Find the place of the level that is *asked* for, a number with or without a unit, and name it."""
    if (found := _LEVEL.fullmatch(asked)) is None:
        raise HookloopError(
            f"{file.path}: level {asked} of {variable} is no number; expected one, such as {variable}@850 or "
            f"{variable}@850hPa"
        )
    number, unit = float(found[1]), found[2]
    if coordinate is None:
        raise HookloopError(
            f"{file.path}: {variable} has no levels of known values; expected {variable} alone"
        )
    level = file.data[coordinate]
    own = str(level.attrs.get("units", ""))
    if not readings(own, unit):
        raise HookloopError(
            f"{file.path}: level {asked} of {variable} is in {unit}, {coordinate} in {own or 'no units'}; "
            "expected a number in these"
        )
    places = levels_at(level, number, unit)
    if not places:
        raise HookloopError(
            f"{file.path}: {variable} has no level {asked}; {coordinate} has {_values(file, coordinate)}"
        )
    names = [level_name(float(np.ravel(file.values(coordinate))[place]), own) for place in places]
    if len(places) > 1:
        raise HookloopError(
            f"{file.path}: level {asked} of {variable} may be {' or '.join(names)}; expected one: write a unit, "
            f"such as {variable}@{found[1]}hPa or {variable}@{found[1]}Pa"
        )
    return places[0], names[0]


def _values(file: Opened, coordinate: str) -> str:
    units = file.data[coordinate].attrs.get("units", "")
    numbers = listed(f"{value:g}" for value in np.atleast_1d(file.values(coordinate)))
    return f"{numbers} {units}".rstrip()


def _chunks(file: Opened, variable: str) -> dict[str, int]:
    """Cells that are read at once along each dimension; those of inner chunks where a store has shards."""
    array = file.data[variable]
    if file.kind == "grib":  # a message is one field
        whole = place_cells(file, variable)
        return {str(raw): 1 for raw in array.dims if raw not in (whole.rows, whole.columns)}
    chunks = array.encoding.get("chunks" if file.kind == "zarr" else "chunksizes")
    sizes = chunks or (1,) * array.ndim
    return {str(raw): int(size) for raw, size in zip(array.dims, sizes, strict=True)}


def _encoding(file: Opened, variable: str) -> _Encoding:
    """Tell how stored values are decoded (CF conventions, §2.5.1 and §8.1), and by what they are read."""
    encoding = file.data[variable].encoding
    stored = np.dtype(encoding.get("dtype", object))
    plain = stored.kind in "iuf" and stored.isnative and "_Unsigned" not in encoding
    if file.kind not in _FORMATS or not plain:
        return {"format": "xarray"}
    return {
        "format": _FORMATS[file.kind],
        "scale": float(np.ravel(encoding.get("scale_factor", 1.0))[0]),
        "offset": float(np.ravel(encoding.get("add_offset", 0.0))[0]),
        "missing": _marks(encoding, stored),
    }


def _marks(encoding: Mapping[str, Any], stored: np.dtype[Any]) -> tuple[int | float, ...]:
    """List what marks missing values and can be *stored*, as it is stored; NaN needs no mark."""
    given = [np.ravel(encoding[name]) for name in _MISSING if encoding.get(name) is not None]
    marks = [mark.item() for values in given if values.dtype.kind in "iuf" for mark in values]
    if stored.kind == "f":
        with np.errstate(over="ignore"):
            held = [(mark, float(stored.type(mark))) for mark in marks]
        return tuple(sorted({number for mark, number in held if np.isfinite(number) or np.isinf(mark)}))
    limits = np.iinfo(stored)
    whole = {int(mark) for mark in marks if isinstance(mark, int) or mark.is_integer()}
    return tuple(sorted(mark for mark in whole if limits.min <= mark <= limits.max))
