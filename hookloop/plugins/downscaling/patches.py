"""Where patches lie and in which order: integers only, counted in coarse cells from the south-west corner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from attrs import frozen
from torch import Tensor

from hookloop.data.grids import Floats, eastwards, width
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import PatchConfig, RegionConfig

if TYPE_CHECKING:
    from hookloop.data.fields import Ints
    from hookloop.data.grids import Grid

__all__ = [
    "PatchConfig",
    "Plan",
    "cells",
    "corners",
    "fine_corner",
    "patch_shape",
    "plan",
    "position_weights",
    "tiles",
]

Shape = tuple[int, int]
"""Cells in latitude and longitude."""

Mask = npt.NDArray[np.bool_]


@frozen(eq=False)
class Plan:
    """The patches of an epoch, in their order; nothing is read yet."""

    cases: Tensor
    """``[n]`` int64: time · members + member."""
    corner: Tensor
    """``[n, 2]`` int64: south-west corners in coarse cells."""
    blocks: tuple[int, ...]
    """Offsets from 0 to n, ascending: between two of them lie all patches of some reads, and of no others."""

    def only(self, items: Ints) -> Plan:
        """Keep the patches with these numbers, ascending; blocks of which none is left are no more."""
        kept = torch.from_numpy(items)
        blocks = np.unique(np.searchsorted(items, self.blocks))
        return Plan(self.cases[kept], self.corner[kept], tuple(blocks.tolist()))


def plan(  # noqa: PLR0913 - an epoch is a function of all of these
    config: PatchConfig,
    grid: Shape,
    n_cases: int,
    members: int,
    generator: torch.Generator,
    turn: int,
    *,
    shuffled: bool,
    wraps: bool,
    weights: Tensor | None,
) -> Plan:
    """Draw the order and the patches of an epoch, ``per_sample`` patches of each case.

    A read is ``together`` neighbouring times with all their members. Reads come in any order, and the patches
    of ``shuffle`` consecutive ones, a block, in any order among one another; unless *shuffled*, all come in
    the order of time.

    :param grid: coarse cells in latitude and longitude.
    :param n_cases: times · *members*.
    :param turn: by how many tiles the assignment of tiles to cases has moved on.
    :param wraps: whether the last column is the western neighbour of the first.
    :param weights: of :func:`position_weights`.
    :raises HookloopError: as :func:`patch_shape` does.
    """
    patch = patch_shape(config, grid)
    n, size = n_cases * config.per_sample, config.together * members * config.per_sample
    n_reads = -(-n // size)
    reads = torch.randperm(n_reads, generator=generator) if shuffled else torch.arange(n_reads)
    items = _mixed(reads, size, config.shuffle, n, generator) if shuffled else torch.arange(n)
    if config.random_offset:
        corner = corners(grid, patch, n, generator, wraps=wraps, weights=weights)
    else:
        positions = tiles(grid, patch, config.overlap, wraps=wraps)
        # Without the turn a time would show the same tiles in every epoch.
        corner = positions[(items + turn) % len(positions)]
    return Plan(items // config.per_sample, corner, _blocks(reads, size, config.shuffle, n))


def _mixed(reads: Tensor, size: int, shuffle: int, n: int, generator: torch.Generator) -> Tensor:
    """Shuffle the items of each *shuffle* consecutive *reads*; read r holds the items from r · *size* on."""
    if size == 1:
        return reads
    block = torch.empty_like(reads)
    block[reads] = torch.arange(len(reads)) // shuffle
    items = torch.randperm(n, generator=generator)
    # What a stable sort leaves of a uniform permutation in each block is uniform, too.
    return items[block[items // size].argsort(stable=True)]


def _blocks(reads: Tensor, size: int, shuffle: int, n: int) -> tuple[int, ...]:
    """Where blocks of *shuffle* reads begin and end; the last read in time may be short."""
    ends = (n - reads * size).clamp(max=size).cumsum(0)
    return 0, *ends[shuffle - 1 : -1 : shuffle].tolist(), n


def patch_shape(config: PatchConfig, grid: Shape) -> Shape:
    """Coarse cells of a patch: the configured ones, or the whole *grid*.

    :raises HookloopError: where the patch is larger than the *grid*, or not larger than the overlap of tiles.
    """
    patch = config.coarse or grid
    if patch[0] > grid[0] or patch[1] > grid[1]:
        raise HookloopError(
            f"downscaling.patch.coarse: a patch of {patch[0]} x {patch[1]} coarse cells is larger than the "
            f"grid of {grid[0]} x {grid[1]}; make it smaller, or leave it out for the whole field"
        )
    if config.overlap[0] >= patch[0] or config.overlap[1] >= patch[1]:
        raise HookloopError(
            f"downscaling.patch.overlap: patches of {patch[0]} x {patch[1]} coarse cells cannot share "
            f"{config.overlap[0]} x {config.overlap[1]} with a neighbour; make it smaller than the patch"
        )
    return patch


def corners(
    grid: Shape,
    patch: Shape,
    n: int,
    generator: torch.Generator,
    *,
    wraps: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Draw *n* south-west corners, with replacement, from all positions inside the *grid*: ``[n, 2]`` int64.

    :param wraps: whether a patch may cross the seam in longitude.
    :param weights: of :func:`position_weights`; without them all positions are equally likely.
    """
    places = _places(grid, patch, wraps=wraps)
    if weights is None:
        return torch.stack([torch.randint(count, (n,), generator=generator) for count in places], 1)
    assert weights.shape == places
    # Inverse transform, since torch.multinomial takes at most 2^24 categories.
    below = (weights.flatten() / weights.max()).cumsum(0)
    drawn = torch.rand(n, dtype=torch.float64, generator=generator) * below[-1]
    # At most 1 - 2^-53 is drawn, and that share of the sum is always rounded to less than the sum.
    place = torch.searchsorted(below, drawn, right=True)
    return torch.stack([place // places[1], place % places[1]], 1)


def _places(grid: Shape, patch: Shape, *, wraps: bool) -> Shape:
    """How many positions there are in latitude and longitude."""
    around = wraps and patch[1] < grid[1]
    return grid[0] - patch[0] + 1, grid[1] if around else grid[1] - patch[1] + 1


def position_weights(config: PatchConfig, grid: Grid, patch: Shape, *, wraps: bool) -> Tensor | None:
    """How often a patch lies at each position, relative to one outside all regions.

    :param grid: the coarse grid.
    :returns: ``[row, column]`` float64, by south-west corner; ``None`` where there are no regions.
    :raises HookloopError: where no patch has its centre in a region, or the *grid* has no latitudes and longitudes.
    """
    if not config.region:
        return None
    if not grid.gridded:
        raise HookloopError(
            "downscaling.patch.region: rows and columns of the coarse grid have no latitude and longitude of their "
            "own, so no box of degrees can be found in it; leave region out"
        )
    regions = [config.region] if isinstance(config.region, RegionConfig) else config.region
    rows, columns = _places(grid.shape, patch, wraps=wraps)
    around = np.concatenate([grid.longitude, grid.longitude + 360.0])
    latitude, longitude = _centres(grid.latitude, patch[0], rows), _centres(around, patch[1], columns)
    weights = np.ones((rows, columns))
    # The first region that holds a place counts, so it comes last.
    for region in reversed(regions):
        inside = np.outer(_between(latitude, region.lat), _eastwards_between(longitude, region.lon))
        if not inside.any():
            raise HookloopError(
                f"downscaling.patch.region: no patch has its centre in latitude {_extent(region.lat)}, "
                f"longitude {_extent(region.lon)}; centres of patches of {patch[0]} x {patch[1]} coarse cells lie "
                f"in latitude {_extent(latitude)}, longitude {_extent(longitude)}; move the region, or make it larger"
            )
        weights[inside] = region.weight
    return torch.from_numpy(weights)


_SLACK = 1e-4
"""Degrees by which rounding may put a centre outside a box, as :func:`eastwards` has it."""


def _centres(values: Floats, size: int, count: int) -> Floats:
    """Mean coordinates of *size* cells from each of the first *count* cells on."""
    centres: Floats = np.lib.stride_tricks.sliding_window_view(values, size)[:count].mean(-1)
    return centres


def _between(values: Floats, box: tuple[float, float]) -> Mask:
    return (values >= min(box) - _SLACK) & (values <= max(box) + _SLACK)


def _eastwards_between(values: Floats, box: tuple[float, float]) -> Mask:
    return eastwards(values, box[0]) <= width(box) + _SLACK


def _extent(values: Floats | tuple[float, float]) -> str:
    return f"{values[0]:g} to {values[-1]:g}"


def tiles(grid: Shape, patch: Shape, overlap: Shape = (0, 0), *, wraps: bool = False) -> Tensor:
    """South-west corners of the fewest evenly spread patches that cover the *grid*: ``[tile, 2]`` int64.

    :param overlap: least cells that neighbours share, fewer than those of a *patch*.
    :param wraps: whether the last tile is a neighbour of the first in longitude; it may then cross the seam.
    """
    rows = _spread(grid[0], patch[0], overlap[0])
    around = wraps and patch[1] < grid[1]
    columns = (_spread_around if around else _spread)(grid[1], patch[1], overlap[1])
    return torch.cartesian_prod(rows, columns)


def _spread(length: int, size: int, overlap: int) -> Tensor:
    steps = -(-(length - size) // (size - overlap))
    return torch.tensor([round(i * (length - size) / max(1, steps)) for i in range(steps + 1)])


def _spread_around(length: int, size: int, overlap: int) -> Tensor:
    count = -(-length // (size - overlap))
    return torch.tensor([round(i * length / count) for i in range(count)])


def cells(start: Tensor, count: int, halo: int, size: int, *, wraps: bool) -> Tensor:
    """Cells of patches along one axis, with their halo: ``[n, count + 2·halo]`` int64.

    :param start: ``[n]`` int64, first cells without the halo.
    :param size: cells of the axis.
    :param wraps: whether the last cell is a neighbour of the first; otherwise the edge cell is repeated
        beyond the grid.
    """
    cell = start[:, None] + torch.arange(-halo, count + halo, device=start.device)
    return cell % size if wraps else cell.clamp(0, size - 1)


def fine_corner(corner: Tensor, factor: int) -> Tensor:
    """South-west corners in fine cells: the fine patch is the coarse patch times *factor*."""
    return corner * factor
