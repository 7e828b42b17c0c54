"""Curves over training as SVG images, each for light and for dark pages."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hookloop.figures import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

_MOST_POINTS = 600
"""Of a line: more are averaged, since they could not be told apart."""
_DECADE = 10.0
"""Positive values that span more have a logarithmic axis."""
_LARGEST = 1e100
"""Of what is drawn: axes cannot hold the largest floats."""
_FEW = 30
"""Points of a line that are marked one by one."""
_FEWEST = 2
"""So few points are no line."""


@frozen
class Palette:
    """Colours of one scheme."""

    ink: str
    grid: str
    colours: tuple[str, ...]


LIGHT = Palette("#1f2328", "#e2e5e9", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5C00", "#56B4E9"))
DARK = Palette("#e6e8eb", "#3a3f46", ("#4FB3F0", "#FF9A57", "#35C79F", "#E7A3C8", "#E6C84A", "#9AD5FA"))
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))


@frozen(eq=False)
class Line:
    """A line of a curve; its interval, where there is one, is drawn as a band."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    reference: bool = False
    """Whether it is what the others are compared with."""
    noisy: bool = False
    """Whether it is drawn faintly behind the others."""


@frozen(eq=False)
class Panel:
    """Lines over a common axis: one image."""

    title: str
    lines: Sequence[Line]
    xlabel: str
    ideal: float | None = None
    ylabel: str = ""
    """Units, if there are any."""

    @property
    def alt(self) -> str:
        """What the image shows, for those who do not see it."""
        return " ".join(_spoken(line, self) for line in self.lines)


@frozen(eq=False)
class Curve:
    """Images that belong together, with their words."""

    title: str
    caption: str
    panels: Sequence[Panel]


def _spoken(line: Line, panel: Panel) -> str:
    xlabel = panel.xlabel
    name = ", ".join(
        part for part in (panel.title, line.label, panel.ylabel and f"in {panel.ylabel}") if part
    )
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not points:
        return f"{name}: no finite value."
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{name}: {start:.4g} at {xlabel} {first:g}."
    low = min(points, key=lambda point: point[1])
    return (
        f"{name}: from {start:.4g} at {xlabel} {first:g} to {end:.4g} at {xlabel} {last:g}, "
        f"lowest {low[1]:.4g} at {low[0]:g}."
    )


def svg(panel: Panel, palette: Palette) -> bytes:
    """Draw *panel* in the colours of *palette*."""
    figure = Figure(figsize=(5.4, 3.3))
    figure.patch.set_alpha(0.0)
    figure.set_layout_engine("constrained")
    _draw(figure.subplots(), panel, palette)
    image = io.BytesIO()
    figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()


def _draw(ax: Axes, panel: Panel, palette: Palette) -> None:
    drawn = [line for line in panel.lines if np.isfinite(_drawable(line.y)).any()]
    if panel.ideal != 0 and _spans_decades(drawn):
        ax.set_yscale("log")
    own = [line for line in drawn if not line.reference]
    for n, line in enumerate(own):
        _line(ax, line, palette.colours[n % len(palette.colours)], _DASHES[n % len(_DASHES)])
    for line in drawn:
        if line.reference:
            label = plain(line.label)
            ax.plot(
                line.x,
                _drawable(line.y),
                color=palette.ink,
                alpha=0.65,
                linestyle="none" if len(line.x) <= _FEWEST else "--",
                marker="_" if len(line.x) <= _FEWEST else "",
                markersize=14,
                linewidth=1.6,
                label=label,
            )
    if panel.ideal is not None:
        ax.axhline(panel.ideal, color=palette.ink, linestyle=(0, (1, 2)), linewidth=1.3, label="ideal")
    ax.set_facecolor("none")
    ax.set_title(plain(panel.title), color=palette.ink, fontsize=11)
    ax.set_xlabel(plain(panel.xlabel), color=palette.ink)
    ax.set_ylabel(plain(panel.ylabel), color=palette.ink)
    ax.grid(visible=True, color=palette.grid, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", colors=palette.ink, labelsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=panel.xlabel == "epoch"))
    for side, spine in ax.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(palette.ink)
    if len(drawn) > 1 or panel.ideal is not None:
        ax.legend(fontsize=8, labelcolor=palette.ink, framealpha=0.0)
    if not drawn:
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", color=palette.ink)


def _drawable(values: Sequence[float]) -> Floats:
    """The values, NaN where they are too large or no numbers."""
    numbers = np.asarray(values, dtype=float)
    return np.where(np.abs(numbers) <= _LARGEST, numbers, np.nan)


def _line(ax: Axes, line: Line, colour: str, dashes: Any) -> None:
    x, y = np.asarray(line.x, dtype=float), _drawable(line.y)
    label = plain(line.label)
    if line.low:
        low, high = _drawable(line.low), _drawable(line.high)
        if len(x) <= _FEWEST:
            ends = np.abs(np.stack([y - low, high - y]))
            ax.errorbar(x, y, ends, color=colour, capsize=4, linestyle="none")
        else:
            ax.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
    if len(x) > _MOST_POINTS:
        x, y, low, high = _thinned(x, y)
        ax.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
    marker = "o" if len(x) <= _FEW else ""
    width = 1.0 if line.noisy else 1.8 if marker else 1.3
    alone = len(x) <= _FEWEST
    (drawn,) = ax.plot(
        x,
        y,
        color=colour,
        linestyle="none" if alone else dashes,
        linewidth=width,
        marker=marker,
        markersize=6.0 if alone else 3.5,
        label=label,
    )
    if line.noisy:
        drawn.set(alpha=0.45, zorder=1.8)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Means of as many points as can be seen, with the least and the greatest of each."""
    borders = np.linspace(0, len(x), _MOST_POINTS + 1).astype(int)
    parts = [(x[a:b], y[a:b][np.isfinite(y[a:b])]) for a, b in pairwise(borders)]
    rows = [(at.mean(), own.mean(), own.min(), own.max()) for at, own in parts if own.size]
    middle, mean, low, high = np.array(rows).T
    return middle, mean, low, high


def _spans_decades(lines: Sequence[Line]) -> bool:
    values = [_drawable(line.y) for line in lines]
    finite = np.concatenate([own[np.isfinite(own)] for own in values]) if values else np.empty(0)
    return bool(finite.size and finite.min() > 0 and finite.max() / finite.min() > _DECADE)
