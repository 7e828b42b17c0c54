"""Which coarse and fine cells belong together: those in the same place, or those of the same number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import evolve, field, frozen

from hookloop.data.grids import covers, eastwards, in_convention, width
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from hookloop.data.fields import Fields
    from hookloop.data.grids import Axis
    from hookloop.plugins.downscaling.data_options import SplitConfig

    Axes = tuple[Axis, Axis]
    """Latitude and longitude."""
    Box = tuple[float, float]

_NAMES = ("latitude", "longitude")
_MISSING = 0.49
"""Of a fine cell: a coarse cell that lacks less than this is misplaced, which is an error, rather than not covered."""
_GLOBE = 359.0
"""Degrees: wider fields go round the globe."""


@frozen(eq=False)
class Aligned:
    """Coarse and fine fields of the same extent, south to north and west to east."""

    coarse: Fields
    fine: Fields
    factor: int
    """Fine cells to a coarse cell along each axis."""
    periodic: bool = False
    """Whether the last column is the first one's western neighbour."""
    notes: list[str] = field(factory=list)
    """What was left out without being asked for."""


def by_cells(coarse: Fields, fine: Fields, split: SplitConfig) -> Aligned:
    """Choose the coarse cells in the boxes of *split* and the fine ones that fill them.

    Without a box those coarse cells are chosen that fine ones fill.

    :raises HookloopError: where a grid has no coordinates or uneven ones, the boxes lie outside of it, or fine
        cells do not fill the coarse ones.
    """
    for fields in (coarse, fine):
        _check_coordinates(fields)
    above = _latitudes(coarse, fine, split.lat), _longitudes(coarse, fine, split.lon)
    below = _below(fine, above)
    factor = _factor(coarse, fine, above, below)
    _check_centres(coarse, fine, above, below)
    aligned = Aligned(_cut(coarse, above), _cut(fine, below), factor, above[1].is_circle)
    return evolve(aligned, notes=list(_left_out(coarse, fine, aligned, split)))


def by_index(coarse: Fields, fine: Fields, split: SplitConfig) -> Aligned:
    """Let coarse cell (i, j) have the fine cells from (i·factor, j·factor) on, wherever exactly these are.

    Rows are counted northwards and columns eastwards, or as in a file that does not say which way they run.

    :raises HookloopError: where *split* has a box, there is no whole number of fine cells to a coarse one, or the
        two sides are in different places or begin to go round the globe at different ones.
    """
    if split.lat is not None or split.lon is not None:
        raise HookloopError(
            "region: lat and lon choose cells by coordinates, which pairing: index does not compare cell by "
            "cell; remove them, or cut the files"
        )
    _check_places(coarse, fine)
    above, below = ((fields.latitude, in_convention(fields.longitude)) for fields in (coarse, fine))
    factor = _factor(coarse, fine, above, below)
    return Aligned(
        _cut(coarse, above),
        _cut(fine, below),
        factor,
        coarse.gridded and fine.gridded and above[1].is_circle and below[1].is_circle,
        [*_as_stored(coarse, fine), *_as_stored(fine, coarse)],
    )


def _cut(fields: Fields, axes: Axes) -> Fields:
    return evolve(fields, latitude=axes[0], longitude=axes[1])


def _axes(fields: Fields) -> Axes:
    return fields.latitude, fields.longitude


def _check_coordinates(fields: Fields) -> None:
    if not fields.gridded:
        raise HookloopError(
            f"{fields.where}: no latitude and longitude along dimensions of their own, as on a projected grid; "
            "downscaling.pairing: index pairs cells by row and column instead"
        )
    for name, axis in zip(_NAMES, _axes(fields), strict=True):
        _check_even(name, axis, fields.where)


def _check_even(name: str, axis: Axis, where: str) -> None:
    if axis.uneven:
        steps = np.diff(axis.values)
        raise HookloopError(
            f"{where}: cells of {name} are {steps.min():g} to {steps.max():g} degrees apart; "
            "expected the same distance everywhere (downscaling.pairing: index does not look at it)"
        )


def _latitudes(coarse: Fields, fine: Fields, box: Box | None) -> Axis:
    """Choose the coarse cells whose centres lie in *box*, or those that fine cells fill."""
    axis, slack = coarse.latitude, _MISSING * fine.latitude.step
    first, last = axis.edges
    if box is None:
        return _filled("latitude", axis, axis.within(*fine.latitude.edges, slack), coarse, fine)
    south, north = min(box), max(box)
    rounding = axis.step / 100
    chosen = axis.take((axis.values >= south - rounding) & (axis.values <= north + rounding))
    if not len(chosen.values) or south < first - rounding or north > last + rounding:
        raise _outside("latitude", box, coarse, axis)
    if not chosen.within(*fine.latitude.edges, slack).all():
        raise _beyond("latitude", box, chosen, fine, fine.latitude)
    return chosen


def _longitudes(coarse: Fields, fine: Fields, box: Box | None) -> Axis:
    """Choose the coarse cells whose centres lie in *box*, eastwards from its west end, or those that are filled."""
    axis, slack = coarse.longitude, _MISSING * fine.longitude.step
    if box is None:
        return _filled_longitudes(coarse, fine, slack)
    west, degrees = box[0], width(box)
    turned = axis.turned(west)
    chosen = turned.take(turned.values <= west + degrees + axis.step / 100)
    if not len(chosen.values) or not covers(axis, west, degrees):
        raise _outside("longitude", box, coarse, axis)
    chosen = in_convention(chosen)
    first, last = chosen.edges
    if not covers(fine.longitude, first + slack, last - first - 2 * slack):
        raise _beyond("longitude", box, chosen, fine, fine.longitude)
    return chosen


def _filled_longitudes(coarse: Fields, fine: Fields, slack: float) -> Axis:
    axis = coarse.longitude
    west, east = fine.longitude.edges
    turned = axis.turned(west)
    filled = turned.within(west, east, slack)
    # All of them stay in the order of the file, and are called what it calls them.
    chosen = (
        axis
        if fine.longitude.is_circle or filled.all()
        else _filled("longitude", turned, filled, coarse, fine)
    )
    _check_even("longitude", chosen, coarse.where)  # two regions of a globe may have two parts in common
    return in_convention(chosen)


def _filled(name: str, axis: Axis, filled: npt.NDArray[np.bool_], coarse: Fields, fine: Fields) -> Axis:
    if not filled.any():
        here, there = (getattr(fields, name) for fields in (coarse, fine))
        raise HookloopError(
            f"{name}: fine cells fill no coarse one: {_reach(here)} in {coarse.where}, {_reach(there)} in "
            f"{fine.where}; expected the same region"
        )
    return axis.take(filled)


def _outside(name: str, box: Box, fields: Fields, axis: Axis) -> HookloopError:
    return HookloopError(
        f"region: {name} {box[0]:g} to {box[1]:g} is outside the grid or between two centres; "
        f"{fields.where} has {_reach(axis)} in cells of {axis.step:g} degrees"
    )


def _beyond(name: str, box: Box, chosen: Axis, fine: Fields, axis: Axis) -> HookloopError:
    return HookloopError(
        f"region: the coarse cells in {name} {box[0]:g} to {box[1]:g} reach from {_reach(chosen)}, beyond the "
        f"fine ones; {fine.where} has {_reach(axis)} in cells of {axis.step:g} degrees"
    )


def _below(fine: Fields, above: Axes) -> Axes:
    """Choose the fine cells whose centres lie within the outer edges of the coarse ones."""
    south, north = above[0].edges
    west, east = above[1].edges
    latitude, longitude = fine.latitude, fine.longitude.turned(west)
    return (
        latitude.take((latitude.values > south) & (latitude.values < north)),
        longitude.take((longitude.values > west) & (longitude.values < east)),
    )


def _cells_of(axes: Axes, fields: Fields) -> str:
    """How large cells are, and where the first begins: what does not fit shows there."""
    if not fields.gridded:
        return ""
    steps = " x ".join(f"{axis.step:g}°" for axis in axes)
    corner = ", ".join(f"{round(axis.edges[0], 6) + 0.0:g}°" for axis in axes if len(axis.values))
    return f" cells of {steps} from {corner}"


def _factor(coarse: Fields, fine: Fields, above: Axes, below: Axes) -> int:
    """Count the fine cells to a coarse one."""
    shapes = [tuple(len(axis.values) for axis in axes) for axes in (above, below)]
    found = ", ".join(
        f"{side} {shape}{_cells_of(axes, fields)} in {fields.where}"
        for side, shape, axes, fields in zip(
            ("coarse", "fine"), shapes, (above, below), (coarse, fine), strict=True
        )
    )
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
    return factor


def _check_centres(coarse: Fields, fine: Fields, above: Axes, below: Axes) -> None:
    """Check that each coarse centre is in the middle of its fine ones, to a hundredth of a cell."""
    for name, c, f in zip(_NAMES, above, below, strict=True):
        factor = len(f.values) // len(c.values)
        off = float(np.abs(f.values.reshape(-1, factor).mean(1) - c.values).max())
        if off > c.step / 100:
            raise HookloopError(
                f"{name} of coarse and fine cells differs by up to {off:g} degrees: centres {_centres(c)} in "
                f"{coarse.where}, {_centres(f)} in {fine.where}; "
                f"expected {factor} fine cells to fill a coarse one"
            )


def _left_out(coarse: Fields, fine: Fields, chosen: Aligned, split: SplitConfig) -> Iterator[str]:
    """Say which cells are not used although no box leaves them out."""
    for name, box in zip(_NAMES, (split.lat, split.lon), strict=True):
        all_coarse, all_fine, used_coarse, used_fine = (
            getattr(fields, name) for fields in (coarse, fine, chosen.coarse, chosen.fine)
        )
        counts = [
            (len(used_coarse.values), len(all_coarse.values)),
            (len(used_fine.values), len(all_fine.values)),
        ]
        if box is None and any(used < there for used, there in counts):
            yield (
                f"{name}: {_reach(all_coarse)} in {coarse.where}, {_reach(all_fine)} in {fine.where}; what both "
                f"have is used, {_reach(used_coarse)}: "
                + " and ".join(
                    f"{used} of {there} {kind} cells"
                    for (used, there), kind in zip(counts, ("coarse", "fine"), strict=True)
                )
            )


def _check_places(coarse: Fields, fine: Fields) -> None:
    """Check that each side has its middle within the other, and that globes begin at the same longitude."""
    for name in _NAMES:
        own, other = (_edges(fields, name) for fields in (coarse, fine))
        if own is None or other is None:
            continue
        found = (
            f"pairing: index: {name} of coarse cells is {own[0]:g} to {own[1]:g} in {coarse.where}, of fine ones "
            f"{other[0]:g} to {other[1]:g} in {fine.where}"
        )
        if not (_has_middle(name, own, other) and _has_middle(name, other, own)):
            raise HookloopError(f"{found}; expected the middle of each within the other")
        if name == "longitude" and min(_width(own), _width(other)) > _GLOBE:
            apart = float(eastwards(other[0] - own[0], -180.0)) - 180.0
            if abs(apart) > _width(own) / len(coarse.longitude.values) / 2:
                raise HookloopError(
                    f"{found}; expected globes that begin in the same place, or pairing: cells, which turns them"
                )


def _edges(fields: Fields, name: str) -> Box | None:
    """Where the outer cells end, as far as that is known."""
    axis: Axis = getattr(fields, name)
    return axis.edges if fields.gridded else axis.reach


def _width(edges: Box) -> float:
    return edges[1] - edges[0]


def _has_middle(name: str, edges: Box, other: Box) -> bool:
    """Whether the middle of *other* lies between *edges*."""
    middle = sum(other) / 2
    if name == "longitude":
        return bool(eastwards(middle, edges[0]) <= _width(edges))
    return edges[0] <= middle <= edges[1]


def _as_stored(fields: Fields, other: Fields) -> Iterator[str]:
    """Say where nothing tells which way the rows or columns of one side run."""
    for name, ways in zip(_NAMES, ("rows", "columns"), strict=True):
        if getattr(other, name).oriented and not getattr(fields, name).oriented:
            towards = "northwards" if name == "latitude" else "eastwards"
            yield (
                f"{ways} of {fields.where} are taken as they are stored, for nothing says which way they run; "
                f"those of {other.where} are taken {towards}"
            )


def _reach(axis: Axis) -> str:
    first, last = axis.edges
    return f"{first:g} to {last:g}"


def _centres(axis: Axis) -> str:
    return f"{axis.values[0]:g} to {axis.values[-1]:g}"
