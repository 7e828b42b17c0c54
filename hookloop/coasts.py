"""Coastlines for figures, from the Natural Earth shapes that cartopy keeps on this machine, if it does.

Nothing is ever downloaded: without cartopy, or without its shapes, there are no coastlines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

Line = NDArray[np.floating[Any]]
"""``[point, 2]``: longitude and latitude in degrees."""
Shapes = Callable[[str], Sequence[Line]]
"""Gives the lines of one scale, ``10m``, ``50m`` or ``110m`` (1 : 10 million …); none where there are none."""

_SHAPES = "shapefiles/natural_earth/physical/ne_{}_coastline.shp"
_DETAILED, _PLAIN = 15.0, 60.0
"""Degrees: domains narrower than these want the finest shapes, those wider the coarsest."""
_PIECE = 64
"""Points of a line that are kept or left out together, so that little is drawn beyond the domain."""
_TURN = 360.0


@frozen
class Box:
    """A domain in degrees; its longitudes may lie beyond 180° or 360°."""

    west: float
    east: float
    south: float
    north: float

    def touches(self, line: Line) -> bool:
        """Whether the line's own box overlaps this one."""
        west, south = line.min(0)
        east, north = line.max(0)
        return bool(west <= self.east and east >= self.west and south <= self.north and north >= self.south)


@cache
def on_this_machine(scale: str) -> Sequence[Line]:
    """Coastlines of one scale that cartopy has been given here, none where it or they are absent."""
    path = _find(_SHAPES.format(scale))
    if path is None:
        return []
    try:
        reader = import_module("shapefile").Reader(str(path))  # pyshp, which cartopy needs too
        with reader:
            return [line for shape in reader.iterShapes() for line in _parts(shape.points, shape.parts)]
    except Exception:  # noqa: BLE001 - a damaged file costs the coastlines, not the figure
        return []


def _find(name: str) -> Path | None:
    try:
        config = import_module("cartopy").config
    except Exception:  # noqa: BLE001 - it is absent, or built for other libraries
        return None
    folders = (config.get(key) for key in ("pre_existing_data_dir", "data_dir", "repo_data_dir"))
    paths = (Path(folder, name) for folder in folders if folder)
    return next((path for path in paths if path.is_file()), None)


def _parts(points: Sequence[Sequence[float]], starts: Sequence[int]) -> list[Line]:
    """Divide the points of a shape into its lines."""
    lines = np.split(np.asarray(points, dtype=float)[:, :2], list(starts)[1:])
    return [line for line in lines if len(line) > 1]


def coastlines(box: Box, shapes: Shapes = on_this_machine) -> list[Line]:
    """Pieces of coastline that are seen in *box*, in its own longitudes, as detailed as its size allows."""
    width = max(box.east - box.west, box.north - box.south)
    wanted = "10m" if width < _DETAILED else "50m" if width < _PLAIN else "110m"
    nearest = sorted(("10m", "50m", "110m"), key=lambda scale: (scale != wanted, scale != "50m"))
    lines: Sequence[Line] = next((found for scale in nearest if (found := shapes(scale))), [])
    pieces = [piece for line in lines for piece in _pieces(line)]
    turns = range(floor((box.west - 180) / _TURN), ceil((box.east + 180) / _TURN) + 1)
    moved = (piece + np.array([_TURN * turn, 0.0]) for turn in turns for piece in pieces)
    return [piece for piece in moved if box.touches(piece)]


def _pieces(line: Line) -> list[Line]:
    """Cut a line into short ones, each of which begins where the one before ends."""
    return [line[start : start + _PIECE + 1] for start in range(0, len(line) - 1, _PIECE)]
