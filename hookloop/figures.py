"""Figures of what was generated, from plain arrays and without any global state of matplotlib."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter, StrMethodFormatter

from hookloop.coasts import Box, coastlines, on_this_machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from numpy.typing import NDArray

    from hookloop.coasts import Line, Shapes

    Field = NDArray[np.floating[Any]]

_PANELS = 6
"""Of fields, beside error and spread."""
_ARRANGEMENTS = ((2, 4), (4, 2), (1, 8))
"""Rows and columns; what is preferred comes first."""
_SHAPE = 0.6
"""Height of a figure over its width, which suits a page and a slide."""
_DRY = 0.05
"""Share of exact zeros from which a field that is nowhere negative is drawn as rain is."""
_CLOSE = 0.2
"""To zero: the least over the largest value of fields that are nowhere negative."""
_DECADES = 100.0
"""Of rain: largest over smallest value that has a colour."""
FIELDS = colormaps["viridis"].with_extremes(bad="#eeeeee")
RAIN = FIELDS.with_extremes(bad="#eeeeee", under="#eeeeee")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@frozen(eq=False)
class Case:
    """One variable of one generated case, with its axes in degrees."""

    title: str
    units: str
    given_as: str
    given: Field | None
    """What there was to start from, ``[lat, lon]`` of this or a coarser grid, over the same extent."""
    truth: Field
    """``[lat, lon]``."""
    members: Field
    """``[member, lat, lon]``, two or more."""
    latitude: Field
    longitude: Field
    gridded: bool = True
    """Whether latitude and longitude are degrees; otherwise they are numbers of rows and columns."""


def ensemble_figure(case: Case, shapes: Shapes = on_this_machine) -> Figure:
    """Draw what was given, if anything, the truth, the ensemble mean and members, its error and its spread.

    The fields share one colour scale; error and spread share another, so that they can be compared.
    """
    latitude, longitude, aspect, tallness = axes_of(case.latitude, case.longitude, gridded=case.gridded)
    mean, spread = case.members.mean(0), case.members.std(0, ddof=1)
    error = mean - case.truth
    given = {} if case.given is None else {case.given_as: case.given}
    shown = case.members[: _PANELS - 2 - len(given)]
    scale = scale_of(case.truth, [case.truth, mean, *shown])
    worst = limits([np.abs(error), spread])[1]
    units = in_print(case.units)

    rows, columns = _arrangement(tallness)
    figure, axes = _panels(rows, columns, tallness)
    gap = "\n" if rows == 1 else " "  # panels in one row are narrow
    fields = given | {"truth": case.truth, f"mean of{gap}{len(case.members)} members": mean}
    fields |= {f"member {i + 1}": member for i, member in enumerate(shown)}
    left, missed, spreading = [*axes[:3], *axes[4:7]], axes[3], axes[7]
    for ax, (name, field) in zip(left, fields.items(), strict=False):
        image = draw(ax, name, field, latitude, longitude)
        image.set_cmap(RAIN if isinstance(scale, LogNorm) else FIELDS)
        image.set_norm(scale)
    for ax in left[len(fields) :]:
        ax.set_axis_off()
    given_and_drawn = np.concatenate([field.ravel() for field in fields.values()])
    colour_bar(figure, image, left, units, extend=beyond(given_and_drawn, image))
    for ax, name, field, low, colours in (
        (missed, "error of the mean", error, -worst, "RdBu_r"),
        (spreading, "spread", spread, 0.0, "magma"),
    ):
        size = f"{'RMSE' if low else 'RMS'} {_rms(field):.2g} {units}".strip()
        image = draw(ax, f"{name},{gap}{size}", field, latitude, longitude)
        image.set_cmap(colours)
        image.set_clim(low, worst)
        colour_bar(figure, image, [ax], units, extend=beyond(field, image))
    coasts = coasts_around(latitude, longitude, shapes) if case.gridded else []
    for ax in [*left[: len(fields)], missed, spreading]:
        finish(ax, aspect, coasts, gridded=case.gridded)
    figure.suptitle(plain(case.title), fontsize=14)
    return figure


def axes_of(
    latitude: Sequence[float] | Field, longitude: Sequence[float] | Field, *, gridded: bool
) -> tuple[Field, Field, float, float]:
    """Coordinates to draw with, how much longer a degree of latitude is than one of longitude, and height over width.

    Longitudes go on across the seam. Without degrees, coordinates are numbers of rows and columns.
    """
    if not gridded:
        rows, columns = np.arange(float(len(latitude))), np.arange(float(len(longitude)))
        return rows, columns, 1.0, len(rows) / len(columns)
    y = np.asarray(latitude, dtype=float)
    x = np.unwrap(np.asarray(longitude, dtype=float), period=360)
    aspect = float(1 / np.cos(np.radians(np.clip(np.abs(y).mean(), 0, 75))))
    return y, x, aspect, float(aspect * np.ptp(edges(y)) / np.ptp(edges(x)))


def _arrangement(tallness: float) -> tuple[int, int]:
    """Rows and columns of eight panels, *tallness* times as high as wide, that fill a page or slide best."""
    return min(
        _ARRANGEMENTS, key=lambda shape: abs(np.log(max(tallness, 0.1) * shape[0] / shape[1] / _SHAPE))
    )


def _panels(rows: int, columns: int, tallness: float) -> tuple[Figure, list[Axes]]:
    """Make panels that are *tallness* times as high as wide."""
    tallness = float(np.clip(tallness, 0.15, 6))
    width = {8: max(1.45, 6.5 / tallness), 4: min(3.0, 5.2 / tallness), 2: 5.2}[columns]
    figure = Figure(figsize=(columns * width + 2.2, rows * width * tallness + 1.8), dpi=120)
    figure.set_layout_engine("compressed")
    return figure, figure.subplots(rows, columns, sharex=True, sharey=True).ravel().tolist()


def draw(ax: Axes, title: str, field: Field, latitude: Field, longitude: Field) -> ScalarMappable:
    """Draw *field*, on the grid or a coarser one of the same extent, with north up and east to the right."""
    south_up = field if latitude[0] <= latitude[-1] else field[::-1]
    y = coarser(edges(np.sort(latitude)), field.shape[0])
    x = coarser(edges(longitude), field.shape[1])
    image: ScalarMappable = ax.pcolorfast(x, y, south_up)
    ax.set_title(plain(title), fontsize=10)
    ax.label_outer()
    ax.tick_params(labelsize=8)
    for axis, (positive, negative) in ((ax.xaxis, "EW"), (ax.yaxis, "NS")):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 3, 4, 6, 9, 10]))
        axis.set_major_formatter(partial(_degrees, positive, negative))
    return image


def finish(ax: Axes, aspect: float, coasts: Sequence[Line], *, gridded: bool) -> None:
    """Give a panel that was drawn its proportions and coastlines, or, without degrees, plain numbers."""
    ax.set_aspect(aspect, anchor="N")
    if coasts:
        lines = LineCollection(coasts, colors="black", linewidths=0.7)
        lines.set_path_effects([withStroke(linewidth=1.6, foreground="white", alpha=0.6)])
        ax.add_collection(lines, autolim=False)
    if not gridded:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(ScalarFormatter())


def coasts_around(latitude: Field, longitude: Field, shapes: Shapes) -> list[Line]:
    """Coastlines of the domain whose cells have these centres."""
    x, y = edges(longitude), edges(latitude)
    return coastlines(Box(float(x.min()), float(x.max()), float(y.min()), float(y.max())), shapes)


def colour_bar(
    figure: Figure, image: ScalarMappable, axes: list[Axes], units: str, *, extend: str
) -> Colorbar:
    """Draw the colours of *image* beside one panel, or below several, with ticks that don't touch."""
    several = len(axes) > 1
    bar = figure.colorbar(
        image,
        ax=axes,
        location="bottom" if several else "right",
        extend=extend,
        shrink=0.6 if several else 1.0,
        aspect=45 if several else 20,
    )
    unit = f"[{plain(units)}]" if units else ""
    if isinstance(image.norm, LogNorm):
        bar.locator = LogLocator(subs=(1.0, 2.0, 5.0))
        bar.formatter = StrMethodFormatter("{x:g}")
        for axis in (bar.ax.xaxis, bar.ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
        unit = f"{unit}  grey: less than {image.norm.vmin:g}".strip()
    else:
        bar.locator = MaxNLocator(6)
    bar.update_ticks()
    bar.set_label(unit)
    return bar


def edges(centres: Field) -> Field:
    """Borders of the cells around *centres*, one more than those."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def coarser(edges: Field, cells: int) -> Field:
    """Borders of *cells* cells that share the extent of *edges*."""
    fine = np.linspace(0, 1, len(edges))
    borders: Field = np.interp(np.linspace(0, 1, cells + 1), fine, edges)
    return borders


def limits(fields: list[Field]) -> tuple[float, float]:
    """Give a colour scale that a few extreme pixels don't wash out, from zero where the least are close to it."""
    values = np.concatenate([field.ravel() for field in fields])
    low, high = np.percentile(values, [0.5, 99.5])
    if values.min() >= 0 and low < _CLOSE * high:
        low = 0.0
    return float(low), float(high) if high > low else float(low) + 1.0


def beyond(field: Field, image: ScalarMappable) -> str:
    """At which ends of the colour bar of *image* there is more."""
    low, high = np.array(image.get_clim(), dtype=float)
    below, above = bool((field < low).any()), bool((field > high).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def scale_of(truth: Field, fields: list[Field]) -> Normalize:
    """One scale for all *fields*: logarithmic, and apart from what is dry, where the truth is like rain."""
    low, high = limits(fields)
    if truth.min() < 0 or (truth == 0).mean() < _DRY:
        return Normalize(low, high)
    wet = np.concatenate([field[field > 0] for field in fields])
    if not wet.size:
        return Normalize(0.0, 1.0)
    high = float(np.percentile(wet, 99.5))
    return LogNorm(float(f"{high / _DECADES:.0e}"), high)


def in_print(units: str) -> str:
    """Units as they are printed: ``mm h-1`` becomes ``mm h⁻¹``."""
    return re.sub(
        r"\b([A-Za-zµ]+)(?:\*\*|\^)?(-\d+)\b|\b([kcm]?m|s)(?:\*\*|\^)?(\d)\b",
        lambda found: (found[1] or found[3]) + (found[2] or found[4]).translate(_SUPERSCRIPTS),
        units,
    )


def plain(text: str) -> str:
    """Text that matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def _rms(field: Field) -> float:
    return float(np.sqrt(np.square(field, dtype=float).mean()))


def _degrees(positive: str, negative: str, value: float, _: int | None = None) -> str:
    value = (value + 180) % 360 - 180
    side = "" if value in {0, -180} else positive if value > 0 else negative
    return f"{abs(value):g}°{side}"
