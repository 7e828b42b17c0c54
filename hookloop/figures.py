"""Figures of what was generated, from plain arrays and without any global state of matplotlib."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from numpy.typing import NDArray

    Field = NDArray[np.floating[Any]]

_PANELS = 6
"""Of fields, beside error and spread."""


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


def ensemble_figure(case: Case) -> Figure:
    """Draw what was given, if anything, the truth, the ensemble mean and members, its error and its spread.

    The fields share one colour scale; error and spread share another, so that they can be compared.
    """
    latitude, longitude = case.latitude.astype(float), np.unwrap(case.longitude.astype(float), period=360)
    mean, spread = case.members.mean(0), case.members.std(0, ddof=1)
    error = mean - case.truth
    given = {} if case.given is None else {case.given_as: case.given}
    shown = case.members[: _PANELS - 2 - len(given)]
    low, high = limits([case.truth, mean, *shown])
    worst = limits([np.abs(error), spread])[1]

    aspect = 1 / np.cos(np.radians(np.clip(np.abs(latitude).mean(), 0, 75)))
    figure, axes = _panels(aspect * np.ptp(edges(latitude)) / np.ptp(edges(longitude)))
    fields = given | {"truth": case.truth, f"mean of {len(case.members)} members": mean}
    fields |= {f"member {i + 1}": member for i, member in enumerate(shown)}
    left = [*axes[0][:3], *axes[1][:3]]
    for ax, (name, field) in zip(left, fields.items(), strict=False):
        image = draw(ax, name, field, latitude, longitude)
        image.set_cmap("viridis")
        image.set_clim(low, high)
    for ax in left[len(fields) :]:
        ax.set_axis_off()
    missed = draw(
        axes[0][3], f"error of the mean, RMSE {_rms(error):.2g} {case.units}", error, latitude, longitude
    )
    missed.set_cmap("RdBu_r")
    missed.set_clim(-worst, worst)
    spreading = draw(axes[1][3], f"spread, RMS {_rms(spread):.2g} {case.units}", spread, latitude, longitude)
    spreading.set_cmap("magma")
    spreading.set_clim(0, worst)

    unit = f"[{case.units}]" if case.units else ""
    figure.colorbar(image, ax=left, location="bottom", label=unit, extend="both", shrink=0.5, aspect=40)
    figure.colorbar(missed, ax=axes[0][3], label=unit, extend="both")
    figure.colorbar(spreading, ax=axes[1][3], label=unit, extend="max")
    for ax in [*axes[0], *axes[1]]:
        ax.set_aspect(aspect)
    figure.suptitle(case.title, fontsize=13)
    return figure


def _panels(tallness: float) -> tuple[Figure, list[list[Axes]]]:
    """Make two rows of four panels that are *tallness* times as high as wide."""
    width = 2.9
    figure = Figure(figsize=(4 * width + 2.2, 2 * width * float(np.clip(tallness, 0.4, 1.6)) + 1.4), dpi=120)
    figure.set_layout_engine("compressed")
    return figure, figure.subplots(2, 4, sharex=True, sharey=True).tolist()


def draw(ax: Axes, title: str, field: Field, latitude: Field, longitude: Field) -> ScalarMappable:
    """Draw *field*, on the grid or a coarser one of the same extent, with north up and east to the right."""
    south_up = field if latitude[0] <= latitude[-1] else field[::-1]
    y = coarser(edges(np.sort(latitude)), field.shape[0])
    x = coarser(edges(longitude), field.shape[1])
    image: ScalarMappable = ax.pcolorfast(x, y, south_up)
    ax.set_title(title, fontsize=10)
    ax.label_outer()
    ax.tick_params(labelsize=8)
    for axis, (positive, negative) in ((ax.xaxis, "EW"), (ax.yaxis, "NS")):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(partial(_degrees, positive, negative))
    return image


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
    """Give a colour scale that a few extreme pixels don't wash out."""
    low, high = np.percentile(np.concatenate([field.ravel() for field in fields]), [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0


def _rms(field: Field) -> float:
    return float(np.sqrt(np.square(field, dtype=float).mean()))


def _degrees(positive: str, negative: str, value: float, _: int | None = None) -> str:
    value = (value + 180) % 360 - 180
    return f"{abs(value):g}°{positive if value > 0 else negative if value < 0 else ''}"
