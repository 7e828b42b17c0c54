"""Pictures of scores: lines, bars and maps, from what a score says and without any global state of matplotlib."""

from __future__ import annotations

import re
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hookloop.coasts import on_this_machine
from hookloop.figures import (
    FIELDS,
    RAIN,
    axes_of,
    beyond,
    coasts_around,
    colour_bar,
    draw,
    finish,
    in_print,
    limits,
    plain,
    scale_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from hookloop.coasts import Shapes
    from hookloop.scores.score import Chart, Maps

    Numbers = NDArray[np.floating[Any]]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by the colour-blind: Okabe & Ito (2008)."""
_DASHES = ("-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_KNOWN: Mapping[str, dict[str, Any]] = {
    "truth": {"color": "black", "linestyle": "-", "linewidth": 2.2, "zorder": 2.5},
    "baseline": {"color": "0.45", "linestyle": "--", "linewidth": 1.8, "zorder": 2.2},
}
_IDEAL: Mapping[str, Any] = {"color": "black", "linestyle": (0, (1, 2)), "linewidth": 1.6, "zorder": 3.5}
_FEW = 12
"""Points of a line that are marked one by one."""
_FLAT = 0.5
"""Maps flatter than this are drawn one above another."""
_APART = "CRPS"
"""Maps whose titles say so have a scale of their own."""
_TALL = 10.0
"""Of the truth's density over that of its next bin: values such as rain, nearly all of which are close to zero."""
_NOTE = 90
"""Characters of a line below a chart."""


def chart_figure(chart: Chart, title: str, units: str) -> Figure:
    """Draw *chart*: the truth in black, the baseline grey and dashed, everything else in a colour and style of its own.

    Values that a logarithmic axis cannot show are left out; an axis of which nothing could be shown is linear.
    """
    figure = Figure(figsize=(6.4, 4.4), dpi=150)
    figure.set_layout_engine("constrained")
    ax = figure.subplots()
    chart = _of_what_matters(chart)
    x = np.asarray(chart.x, dtype=float)
    lines = {label: np.asarray(y, dtype=float) for label, y in chart.lines.items()}
    log_x = chart.xscale == "log" and bool((x[np.isfinite(x)] > 0).any())
    log_y = chart.yscale == "log" and any((y[np.isfinite(y)] > 0).any() for y in lines.values())
    seen = {label: _shown(x, y, log_x=log_x, log_y=log_y) for label, y in lines.items()}
    seen = {label: points for label, points in seen.items() if points[0].size}
    if log_x:
        ax.set_xscale("log")
    if log_y:
        ax.set_yscale("log")
    if chart.style == "bar":
        _bars(ax, seen)
    else:
        _lines(ax, seen, marked=chart.diagonal)
    _ideal(ax, chart, seen)
    _lettering(ax, chart, units, log_x=log_x, log_y=log_y)
    if not seen:
        ax.text(0.5, 0.5, "nothing to show", transform=ax.transAxes, ha="center", va="center", color="0.35")
    elif len(seen) > 1 or chart.level is not None or chart.diagonal:
        ax.legend(fontsize=9, framealpha=0.85)
    ax.set_title(plain(_titled(chart, title)), fontsize=12)
    if chart.notes:
        note = "\n".join(fill(plain(note), _NOTE) for note in chart.notes)
        figure.supxlabel(note, x=0.02, ha="left", fontsize=8, color="0.3")
    return figure


def _of_what_matters(chart: Chart) -> Chart:
    """A histogram as far as the truth reaches and as much again; what lies farther is said below.

    That of rain, whose first bin begins at zero and towers over the next, is drawn over a logarithmic axis, on which
    its first bin is one point: so its share is said below.
    """
    truth = np.asarray(chart.lines.get("truth", ()), dtype=float)
    x = np.asarray(chart.x, dtype=float)
    if chart.name != "histogram" or not (truth > 0).any() or x.size < 2:  # noqa: PLR2004 - a bin has no width alone
        return chart
    width, there = x[1] - x[0], x[truth > 0]
    margin = max(there[-1] - there[0], width)
    kept = (x >= there[0] - margin) & (x <= there[-1] + margin)
    notes = list(chart.notes)
    for label, line in chart.lines.items():
        beyond_it = x[~kept & (np.asarray(line, dtype=float) > 0)]
        if beyond_it.size:
            ends = sorted({f"{beyond_it[0]:.3g}", f"{beyond_it[-1]:.3g}"}, key=float)
            notes.append(f"not drawn: {label} of {' to '.join(ends)}")
    if abs(x[0] - width / 2) < width / 4 and truth[0] > _TALL * truth[1]:
        shares = [f"{label} {100 * line[0] * width:.3g} %" for label, line in chart.lines.items()]
        notes.append(f"less than {width:.3g}: {', '.join(shares)}")
        chart = evolve(chart, xscale="log")
    return evolve(
        chart,
        x=x[kept].tolist(),
        lines={label: np.asarray(line)[kept].tolist() for label, line in chart.lines.items()},
        notes=notes,
    )


def _titled(picture: Chart | Maps, title: str) -> str:
    """What the picture shows and *title*, unless that says it."""
    return title if picture.title in title else f"{picture.title}: {title}"


def _shown(x: Numbers, y: Numbers, *, log_x: bool, log_y: bool) -> tuple[Numbers, Numbers]:
    """Points that can be drawn; where one is missing between others the line is broken."""
    there = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log_x)) & ((y > 0) | (not log_y))
    if not there.any():
        return x[:0], y[:0]
    held = np.isfinite(x) & ((x > 0) | (not log_x))
    return x[held], np.where(there, y, np.nan)[held]


def _styles(labels: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """A style for each line, which is not told by its colour alone."""
    others = [label for label in labels if label not in _KNOWN]
    first = [label for label in others if label.partition(": ")[0] not in others or ": " not in label]
    own: dict[str, dict[str, Any]] = {
        label: {
            "color": _COLOURS[n % len(_COLOURS)],
            "linestyle": _DASHES[n % len(_DASHES)],
            "linewidth": 2.2,
            "zorder": 3.0,
        }
        for n, label in enumerate(first)
    }
    for label in others:  # ``above 1: useful from`` goes with ``above 1``
        if label not in own:
            own[label] = own[label.partition(": ")[0]] | {"linestyle": (0, (1, 2)), "linewidth": 1.2}
    return {**own, **_KNOWN}


def _lines(ax: Axes, seen: Mapping[str, tuple[Numbers, Numbers]], *, marked: bool) -> None:
    styles = _styles(list(seen))
    for label, (x, y) in seen.items():
        few = x.size <= _FEW
        marker = "o" if few or marked else ""
        ax.plot(x, y, label=plain(label), marker=marker, markersize=4 if few else 3, **styles[label])
        alone = np.isnan(np.pad(y, 1, constant_values=np.nan))
        alone = alone[:-2] & alone[2:] & ~np.isnan(y)
        ax.scatter(x[alone], y[alone], s=12, color=styles[label]["color"], zorder=styles[label]["zorder"])


def _bars(ax: Axes, seen: Mapping[str, tuple[Numbers, Numbers]]) -> None:
    """Draw bars, those of several lines side by side."""
    styles = _styles(list(seen))
    for n, (label, (x, y)) in enumerate(seen.items()):
        width = 0.9 * (np.diff(np.unique(x)).min() if np.unique(x).size > 1 else 1.0) / len(seen)
        at = x + (n - (len(seen) - 1) / 2) * width
        ax.bar(at, y, width, label=plain(label), color=styles[label]["color"], zorder=2.0)


def _ideal(ax: Axes, chart: Chart, seen: Mapping[str, tuple[Numbers, Numbers]]) -> None:
    """Draw where a perfect prediction would lie."""
    if chart.level is not None:
        ax.axhline(chart.level, label="ideal", **_IDEAL)
    if chart.diagonal and seen:
        drawn = np.concatenate([np.concatenate(points) for points in seen.values()])
        ends = [np.nanmin(drawn), np.nanmax(drawn)]
        ax.plot(ends, ends, label="ideal", **_IDEAL)


def _lettering(ax: Axes, chart: Chart, units: str, *, log_x: bool, log_y: bool) -> None:
    ax.set_xlabel(plain(with_units(chart.xlabel, units)), fontsize=11)
    ax.set_ylabel(plain(with_units(chart.ylabel, units)), fontsize=11)
    ax.tick_params(labelsize=9)
    ax.grid(visible=True, color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for axis, is_log in ((ax.xaxis, log_x), (ax.yaxis, log_y)):
        if not is_log:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if not log_x and len(set(chart.x)) <= _FEW:
        ax.set_xticks(sorted({x for x in chart.x if np.isfinite(x)}))


def with_units(label: str, units: str) -> str:
    """A label with its units in place of ``{units}``; without any, the brackets around them go too."""
    units = in_print(units)
    if not units:
        label = re.sub(r"\s*(\([^()]*\{units\}[^()]*\)|\[[^\[\]]*\{units\}[^\[\]]*\])", "", label)
    elif not units.isalpha():  # what is squared or divided by is one thing
        label = re.sub(r"\{units\}(?=²)|(?<=/ )\{units\}", "({units})", label)
    return label.replace("{units}", units).strip()


def maps_figure(
    maps: Maps,
    latitude: Sequence[float],
    longitude: Sequence[float],
    title: str,
    units: str,
    *,
    gridded: bool = True,
    shapes: Shapes = on_this_machine,
) -> Figure:
    """Draw the fields beside one another, or flat ones one above another, north up, with their colours.

    Signed fields are drawn around zero, each with limits of its own, and CRPS, which is no standard deviation, from
    zero. The others share theirs to be compared, and where the first has exact zeros, all are drawn as rain is.

    :param gridded: whether *latitude* and *longitude* are degrees; if not, rows and columns are numbered.
    """
    y, x, aspect, tallness = axes_of(latitude, longitude, gridded=gridded)
    figure, axes = _panels(len(maps.fields), tallness)
    coasts = coasts_around(y, x, shapes) if gridded else []
    fields = {name: tensor.numpy(force=True) for name, tensor in maps.fields.items()}
    alike = [field for name, field in fields.items() if name not in maps.signed and _APART not in name]
    shared = scale_of(alike[0], alike) if alike else None
    for ax, (name, field) in zip(axes, fields.items(), strict=False):
        image = draw(ax, name, field, y, x)
        if name in maps.signed:
            image.set_cmap("RdBu_r")
            image.set_clim(*_around_zero(field))
        else:
            scale = Normalize(*limits([field])) if shared is None or _APART in name else shared
            image.set_cmap(RAIN if isinstance(scale, LogNorm) else FIELDS)
            image.set_norm(scale)
        colour_bar(figure, image, [ax], in_print(units), extend=beyond(field, image))
        finish(ax, aspect, coasts, gridded=gridded)
    for ax in axes[len(maps.fields) :]:
        ax.set_axis_off()
    figure.suptitle(plain(_titled(maps, title)), fontsize=13)
    return figure


def _around_zero(field: Numbers) -> tuple[float, float]:
    worst = limits([np.abs(field)])[1]
    return -worst, worst


def _panels(fields: int, tallness: float) -> tuple[Figure, list[Axes]]:
    tallness = float(np.clip(tallness, 0.2, 4.0))
    flat = tallness < _FLAT
    columns = min(fields, 1 if flat else 3)
    rows = -(-fields // max(columns, 1))
    width = 6.5 if flat else min(4.0, 5.0 / tallness)
    figure = Figure(
        figsize=(max(columns * (width + 1.1), 4.0), rows * (width * tallness + 0.5) + 0.8), dpi=130
    )
    figure.set_layout_engine("compressed")
    axes = figure.subplots(max(rows, 1), max(columns, 1), sharex=True, sharey=True, squeeze=False)
    return figure, axes.ravel().tolist()
