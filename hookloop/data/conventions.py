"""What the dimensions of a variable are, by their names and by the attributes of the CF conventions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import xarray as xr

Role: TypeAlias = Literal["time", "member", "level", "latitude", "longitude", "row", "column"]

_STANDARD_NAMES: dict[str, Role] = {
    "time": "time",
    "realization": "member",
    "latitude": "latitude",
    "longitude": "longitude",
    "grid_latitude": "row",
    "grid_longitude": "column",
    "projection_y_coordinate": "row",
    "projection_x_coordinate": "column",
    "air_pressure": "level",
    "altitude": "level",
    "depth": "level",
    "height": "level",
}
_UNITS: dict[str, Role] = {
    **dict.fromkeys(("degrees_north", "degree_north", "degrees_N", "degree_N"), "latitude"),
    **dict.fromkeys(("degrees_east", "degree_east", "degrees_E", "degree_E"), "longitude"),
}
_NAMES: dict[str, Role] = {
    **dict.fromkeys(("time", "valid_time"), "time"),
    **dict.fromkeys(("member", "number", "realization", "realisation", "ensemble", "ens"), "member"),
    **dict.fromkeys(("latitude", "lat"), "latitude"),
    **dict.fromkeys(("longitude", "lon"), "longitude"),
    **dict.fromkeys(("y", "rlat", "grid_yt", "nj", "j", "south_north"), "row"),
    **dict.fromkeys(("x", "rlon", "grid_xt", "ni", "i", "west_east"), "column"),
    **dict.fromkeys(
        ("level", "lev", "plev", "pressure", "isobaricinhpa", "pressure_level", "height", "depth"), "level"
    ),
}
_AXES: dict[str, Role] = {"T": "time", "Z": "level", "Y": "row", "X": "column"}
_PASCAL: dict[str, float] = {
    "Pa": 1.0,
    **dict.fromkeys(("hPa", "millibar", "millibars", "mbar", "mb"), 100.0),
}
_METRE: dict[str, float] = {**dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1.0), "km": 1000.0}
_BARE = ("hPa", "Pa")
"""What a number without a unit may be in, where levels are pressures."""
_TOLERANCE = 1e-4
_LAST = 9


@frozen
class Dimension:
    """What a dimension of a variable is, and which coordinate says so."""

    role: Role
    coordinate: str | None
    """None where the dimension has a name and no more."""


def dimensions(data: xr.Dataset, variable: str) -> dict[str, Dimension]:
    """Recognise the dimensions of a variable: by standard names, then units, then names, then axes.

    Those of a latitude that has two dimensions are rows and columns, whatever they are called.
    """
    names = [str(name) for name in data[variable].dims]
    found = {name: found for name in names if (found := _along(data, name)) is not None}
    flat = [str(name) for name in data.variables if data[name].ndim == 2]  # noqa: PLR2004 - a plane
    for _, name, role in _recognised(data, flat):
        row, column = map(str, data[name].dims)
        if role == "latitude" and {row, column} <= set(names) - set(found):
            found |= {row: Dimension("row", None), column: Dimension("column", None)}
    return found


def scalars(data: xr.Dataset) -> dict[Role, str]:
    """Name the coordinates that have one value for the whole file, such as its time, by their role."""
    best = sorted(
        _recognised(data, [str(name) for name in data.coords if data[name].ndim == 0]), reverse=True
    )
    return {role: name for _, name, role in best}


def find_variables(data: xr.Dataset, name: str) -> list[str]:
    """Find the variable *name*; where there is none, those whose standard or GRIB short name it is."""
    if name in data.variables and data.variables[name].dims != (name,):
        return [name]
    return [
        str(other)
        for other, array in data.data_vars.items()
        if name in (array.attrs.get("standard_name"), array.attrs.get("GRIB_shortName"))
    ]


def readings(own: str, unit: str) -> dict[str, float]:
    """Say in which units a level may be asked for, and what makes of each a number of the file's *own* units.

    :param unit: what is written after the number, or nothing.
    :returns: empty where the two measure different things.
    """
    scale = next((scale for scale in (_PASCAL, _METRE) if own in scale), {own: 1.0})
    asked = (unit,) if unit else _BARE if scale is _PASCAL else (own,)
    return {name: scale[name] / scale[own] for name in asked if name in scale}


def levels_at(level: xr.DataArray, number: float, unit: str) -> list[int]:
    """Find the places at which *level* may have the value *number*: none, one, or several where it can be read so.

    A bare number is one of hPa where the file has hPa and such a level.
    """
    values, own = np.atleast_1d(np.asarray(level, dtype=np.float64)), str(level.attrs.get("units", ""))
    found: list[int] = []
    for factor in readings(own, unit).values():
        near = np.isclose(values, number * factor, rtol=_TOLERANCE, atol=_TOLERANCE)
        if not found or own == "Pa":
            found += [int(place) for place in np.flatnonzero(near) if place not in found]
    return found


def level_name(value: float, units: str) -> str:
    """Name a level; pressures in hPa."""
    return f"{value * _PASCAL[units] / 100:g} hPa" if units in _PASCAL else f"{value:g} {units}".rstrip()


def planes(data: xr.Dataset, rows: str, columns: str) -> dict[Role, str]:
    """Name the latitude and the longitude that every cell of these two dimensions has, by their role."""
    flat = [str(name) for name in data.variables if set(data[name].dims) == {rows, columns}]
    found = sorted(_recognised(data, flat), reverse=True)
    return {role: name for _, name, role in found if role in ("latitude", "longitude")}


def _along(data: xr.Dataset, dimension: str) -> Dimension | None:
    """Choose the coordinate that tells most clearly what *dimension* is.

    A latitude is more than a number of rows; of two that are alike the dimension's own wins.
    """
    for there in (data.coords, data.data_vars):
        names = [str(name) for name in there if data[name].dims == (dimension,)]
        found = sorted(
            (role in ("row", "column"), rank, name != dimension, name, role)
            for rank, name, role in _recognised(data, names)
        )
        if found:
            *_, name, role = found[0]
            return Dimension(role, name)
    bare = _NAMES.get(dimension.lower())
    return Dimension(bare, None) if bare else None


def _recognised(data: xr.Dataset, names: Iterable[str]) -> Iterator[tuple[int, str, Role]]:
    """Yield those that mean something: how clearly they say so, 0 the clearest, their name and their role."""
    for name in names:
        attributes = data[name].attrs
        # When a forecast began is its time only where the file does not say when it is valid.
        began = attributes.get("standard_name") == "forecast_reference_time"
        for rank, role in enumerate(_evidence(name, attributes)):
            if role is not None:
                yield _LAST if began else rank, name, role
                break


def _evidence(name: str, attributes: Mapping[str, object]) -> Iterator[Role | None]:
    yield _STANDARD_NAMES.get(str(attributes.get("standard_name")))
    yield _UNITS.get(str(attributes.get("units")))
    yield _NAMES.get(name.lower())
    yield "level" if "positive" in attributes else _AXES.get(str(attributes.get("axis")))
