"""The figure of ``hookloop inspect``: the domain, coarse and fine, and the patches that are learnt first."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from hookloop.data.calendars import labels
from hookloop.data.fields import Gaps, whole
from hookloop.data.grids import eastwards, width
from hookloop.durable import write_whole
from hookloop.errors import HookloopError
from hookloop.figures import coarser, draw, edges, limits
from hookloop.plugins.downscaling.data_options import RegionConfig
from hookloop.plugins.downscaling.inspection_table import product, spacing
from hookloop.plugins.downscaling.stores import HALO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from hookloop.data.fields import Fields, Floats
    from hookloop.plugins.downscaling.inspection import Inspection

    Edges = npt.NDArray[np.floating[Any]]
    Span = tuple[float, float]

_MOST_PATCHES = 32
"""More outlines hide what they outline."""
_MOST_CELLS = 64
"""Of a side: more coarse cells are no longer told apart."""
_MOST_PIXELS = 2048
_FLAT = 0.62
"""Domains flatter than this are drawn one above the other."""
_MARGIN = 0.12
"""Of the domain: how much of what is around it is shown."""
_CIRCLE = 360.0
_DARK, _BRIGHT, _SHADE = "#1b1b1b", "#ff7f0e", "0.85"
_OTHERS = ("white", "#ff5cc8", "#8fd3ff", "#b00020")
"""Colours of further patches, from the narrowest outline to the widest."""


def expect_place_for(path: Path) -> None:
    """Refuse, before anything is read, a figure that could not be written.

    :raises HookloopError: where its directory or its format is unknown.
    """
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in known:
        raise HookloopError(f"--figure: {path}: expected a name that ends in one of .{', .'.join(known)}")
    if not path.parent.is_dir():
        raise HookloopError(f"--figure: {path.parent}: no such directory; make it or choose another file")


def write(found: Inspection, path: Path) -> None:
    """Draw *found* and put it at *path*.

    :raises HookloopError: where it cannot be written.
    """
    figure = domain_figure(found)
    kind = path.suffix.removeprefix(".").lower()
    try:
        write_whole(path, partial(figure.savefig, format=kind, bbox_inches="tight"))
    except OSError as error:
        raise HookloopError(f"--figure: {path}: cannot be written: {error.strerror}") from error


@frozen(eq=False)
class _Domain:
    """Borders of the coarse cells, in degrees, or in fine cells where there are none."""

    y: Edges
    x: Edges
    wraps: bool

    def boxes(self, corner: tuple[int, int], size: tuple[int, int]) -> Iterator[tuple[Span, Span]]:
        """Bounds of coarse cells in y and x; two boxes where they cross the seam of a globe, each a turn away."""
        (row, column), (height, width) = corner, size
        y = self.y[max(row, 0)], self.y[min(row + height, len(self.y) - 1)]
        n = len(self.x) - 1
        if not self.wraps:
            yield y, (self.x[max(column, 0)], self.x[min(column + width, n)])
            return
        around = np.concatenate([self.x[:-1] - _CIRCLE, self.x[:-1], self.x + _CIRCLE])
        for first in (column, column + n, column + 2 * n):
            if first >= 0 and first + width < len(around) and first < 2 * n < first + width + n:
                yield y, (around[first], around[first + width])


def domain_figure(found: Inspection) -> Figure:
    """Draw the first field of the first output, coarse and fine, with the patches of the first batch.

    Where the output is no input too, the first input is drawn. The patches are those that the run learns
    first, in its own order, whatever their times are.
    """
    pair = found.train.pair
    grid = pair.fine_grid
    domain = _Domain(
        coarser(edges(grid.latitude), pair.coarse.shape[0]),
        coarser(edges(grid.longitude), pair.coarse.shape[1]),
        pair.periodic,
    )
    aspect = 1 / np.cos(np.radians(min(abs(float(grid.latitude.mean())), 75.0))) if grid.gridded else 1.0
    figure, panels = _panels(float(aspect * np.ptp(domain.y) / np.ptp(domain.x)))
    _fields(figure, panels, found)
    for ax in panels:
        ax.set_aspect(aspect)
        ax.set_xlim(domain.x[0], domain.x[-1])
        ax.set_ylim(domain.y[0], domain.y[-1])
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 1.5, 2, 3, 4.5, 6, 9, 10]))
            if not grid.gridded:
                axis.set_major_formatter(ScalarFormatter())
    handles = [
        *_unused(panels, domain, found),
        *_cells(panels, domain),
        *_patches(panels, domain, found),
        *_regions(panels, domain, found),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    date = labels(pair.times[:1])[0].replace("T", " ")
    figure.suptitle(f"{date}, the first of {len(pair.times):,} training times; factor {pair.factor}")
    return figure


def _fields(figure: Figure, panels: list[Axes], found: Inspection) -> None:
    """Draw a coarse and a fine field; of one variable they share their colours."""
    pair, files = found.train.pair, found.train.files
    output = pair.outputs[0]
    names = output if output in pair.inputs else pair.inputs[0], output
    sides = pair.coarse, pair.fine
    fields = [_first(side, name) for side, name in zip(sides, names, strict=True)]
    images = []
    for n, (ax, side) in enumerate(zip(panels, sides, strict=True)):
        title = _title(("coarse", "fine")[n], side, files[n])
        images.append(draw(ax, title, fields[n], pair.fine_grid.latitude, pair.fine_grid.longitude))
        alike = fields if names[0] == names[1] else [fields[n]]
        images[n].set_cmap("viridis")
        images[n].set_clim(*limits([_finite(field) for field in alike]))
    for n, own in enumerate([panels] if names[0] == names[1] else [[ax] for ax in panels]):
        unit = f" [{sides[n].units[names[n]]}]" if sides[n].units.get(names[n]) else ""
        figure.colorbar(images[n], ax=own, label=f"{names[n]}{unit}", extend="both", aspect=30, shrink=0.9)


def _finite(field: Floats) -> Floats:
    """The values that are there, or a single 0 where none is."""
    there = field[np.isfinite(field)]
    return there if there.size else np.zeros(1, np.float32)


def _panels(tallness: float) -> tuple[Figure, list[Axes]]:
    """Make two panels that are *tallness* times as high as wide: side by side, or flat ones one above the other."""
    tallness = float(np.clip(tallness, 0.2, 3.0))
    beside = tallness >= _FLAT
    across = min(4.6, 5.2 / tallness) if beside else 8.0
    down = across * tallness
    size = (max(2 * across, 6.0) + 1.6, down + 1.3) if beside else (across + 1.6, 2 * down + 1.7)
    figure = Figure(figsize=size, dpi=150)
    figure.set_layout_engine("compressed")
    rows, columns = (1, 2) if beside else (2, 1)
    return figure, figure.subplots(rows, columns, sharex=True, sharey=True).ravel().tolist()


def _title(kind: str, used: Fields, there: Fields) -> str:
    of = "" if used.shape == there.shape else f" of {product(there.shape)}"
    space = f", {spacing(used)}" if used.gridded else ""
    return f"{kind}: {product(used.shape)}{of} cells{space}"


def _first(fields: Fields, name: str) -> Floats:
    """Read the first field of one variable, every so many cells where it has too many to be seen."""
    own = evolve(fields, parts={name: fields.parts[name]})
    wanted = whole(own, np.zeros(1, np.int64), np.zeros(1, np.int64))
    stride = -(-max(fields.shape) // _MOST_PIXELS)
    some = evolve(wanted, rows=wanted.rows[:, ::stride], columns=wanted.columns[:, ::stride])
    field: Floats = own.read(some, gaps=Gaps())[0, 0]
    return field


def _unused(panels: list[Axes], domain: _Domain, found: Inspection) -> Iterator[Artist]:
    """Shade what the files hold around the domain, as far as there is room for it."""
    pair, files = found.train.pair, found.train.files
    if not (pair.coarse.gridded and pair.fine.gridded) or all(
        used.shape == there.shape for used, there in zip((pair.coarse, pair.fine), files, strict=True)
    ):
        return
    south, north, west, east = domain.y[0], domain.y[-1], domain.x[0], domain.x[-1]
    spans = []
    for ax, there in zip(panels, files, strict=True):
        first, last = there.longitude.edges
        left, y = west - float(eastwards(west, first)), there.latitude.edges
        turns = [(left + turn, left + turn + last - first) for turn in (-_CIRCLE, 0.0, _CIRCLE)]
        spans.append((y, (turns[0][0], turns[-1][1]) if there.longitude.is_circle else turns[1]))
        for x in turns:
            ax.add_patch(Rectangle((x[0], y[0]), x[1] - x[0], y[1] - y[0], color=_SHADE, zorder=-1))
    room = _MARGIN * (north - south), _MARGIN * (east - west)
    panels[0].set_ylim(
        max(south - room[0], min(y[0] for y, _ in spans)), min(north + room[0], max(y[1] for y, _ in spans))
    )
    if not domain.wraps:
        panels[0].set_xlim(
            max(west - room[1], min(x[0] for _, x in spans)), min(east + room[1], max(x[1] for _, x in spans))
        )
    yield Rectangle((0, 0), 1, 1, color=_SHADE, label="in the files and not used")


def _cells(panels: list[Axes], domain: _Domain) -> Iterator[Artist]:
    """Draw the borders of coarse cells where they can be told apart."""
    if max(len(domain.y), len(domain.x)) > _MOST_CELLS + 1:
        return
    for ax in panels:
        ax.hlines(domain.y, domain.x[0], domain.x[-1], colors="white", alpha=0.35, linewidth=0.5)
        ax.vlines(domain.x, domain.y[0], domain.y[-1], colors="white", alpha=0.35, linewidth=0.5)
    yield Line2D([], [], color="0.75", linewidth=0.8, label="coarse cells")


def _regions(panels: list[Axes], domain: _Domain, found: Inspection) -> Iterator[Artist]:
    """Draw the boxes in which patches are drawn more, or less, often."""
    config = found.options.patch.region
    regions = [config] if isinstance(config, RegionConfig) else config or []
    for region in regions:
        west = float(domain.x[0] + eastwards(region.lon[0], float(domain.x[0])))
        boxes = [(start, start + width(region.lon)) for start in (west, west - _CIRCLE)]
        for box in boxes:
            for ax in panels:
                _outline(ax, region.lat, box, _DARK, 1.6, "--")
        # At the box of which most is seen, where a region crosses the seam.
        seen = [(max(left, domain.x[0]), min(right, domain.x[-1])) for left, right in boxes]
        panels[1].text(
            max(seen, key=lambda span: span[1] - span[0])[0],
            max(region.lat),
            f" weight {region.weight:g}",
            fontsize=8,
            va="bottom",
            clip_on=True,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    if regions:
        yield Line2D(
            [], [], color=_DARK, linewidth=1.4, linestyle="--", label="centres of patches are weighted"
        )


def _patches(panels: list[Axes], domain: _Domain, found: Inspection) -> Iterator[Artist]:
    """Draw patches of the first batch, the first of them with its halo."""
    if found.patch == found.train.pair.coarse.shape:
        yield Line2D([], [], linestyle="", label="a sample is the whole field")
        return
    first, *others = found.train.first
    shown = others[: _room(domain, found.patch) - 1]
    for ax in panels:
        # Wide lines first, so that of outlines that coincide all are seen.
        for n, corner in sorted(enumerate(shown), key=lambda one: -_line(one[0])):
            for y, x in domain.boxes(corner, found.patch):
                _outline(ax, y, x, _OTHERS[n % len(_OTHERS)], _line(n))
        for y, x in domain.boxes(first, found.patch):
            _outline(ax, y, x, _BRIGHT, 2.2)
    halo = (first[0] - HALO, first[1] - HALO), (found.patch[0] + 2 * HALO, found.patch[1] + 2 * HALO)
    for y, x in domain.boxes(*halo):
        _outline(panels[0], y, x, _BRIGHT, 1.6, ":")
    size = f"{product(found.patch)} coarse cells"
    yield Line2D([], [], color=_BRIGHT, linewidth=2.2, label=f"the first patch: {size}")
    yield Line2D([], [], color=_BRIGHT, linewidth=1.6, linestyle=":", label="its halo")
    if shown:
        label = f"{len(shown)} more of the first batch of {1 + len(others)}, in other colours"
        yield Line2D([], [], color="white", linewidth=1.2, label=label, path_effects=_stroke(1.2))


def _room(domain: _Domain, patch: tuple[int, int]) -> int:
    """How many patches can be told apart: fewer where each covers much of the domain."""
    cells = (len(domain.y) - 1) * (len(domain.x) - 1)
    return int(np.clip(2 * cells // (patch[0] * patch[1]), 4, _MOST_PATCHES))


def _line(n: int) -> float:
    """Width of the outline of the n-th patch."""
    return 1.0 + 0.9 * (n % len(_OTHERS))


def _stroke(line: float, colour: str = _DARK) -> list[AbstractPathEffect]:
    return [withStroke(linewidth=line + 1.2, foreground=colour, alpha=0.7)]


def _outline(ax: Axes, y: Span, x: Span, colour: str, line: float, style: str = "-") -> None:
    box = Rectangle(
        (min(x), min(y)),
        abs(x[1] - x[0]),
        abs(y[1] - y[0]),
        fill=False,
        edgecolor=colour,
        linewidth=line,
        linestyle=style,
        path_effects=_stroke(line, "white" if colour == _DARK else _DARK),
    )
    ax.add_patch(box)
