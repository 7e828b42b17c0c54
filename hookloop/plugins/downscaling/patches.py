"""Where patches lie: integers only, counted in coarse cells from the south-west corner of the grid."""

from __future__ import annotations

import torch
from torch import Tensor

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import PatchConfig

__all__ = ["PatchConfig", "corners", "fine_corner", "patch_shape", "tiles"]

Shape = tuple[int, int]
"""Cells in latitude and longitude."""


def patch_shape(config: PatchConfig, grid: Shape) -> Shape:
    """Coarse cells of a patch: the configured ones, or the whole *grid*.

    :raises HookloopError: where the patch is larger than the *grid*.
    """
    patch = config.coarse or grid
    if patch[0] > grid[0] or patch[1] > grid[1]:
        raise HookloopError(
            f"downscaling.patch.coarse: a patch of {patch[0]} x {patch[1]} coarse cells is larger than the "
            f"grid of {grid[0]} x {grid[1]}; make it smaller, or leave it out for the whole field"
        )
    return patch


def corners(grid: Shape, patch: Shape, n: int, generator: torch.Generator) -> Tensor:
    """Draw *n* south-west corners, uniformly over all positions inside the *grid*: ``[n, 2]`` int64."""
    drawn = [
        torch.randint(cells - size + 1, (n,), generator=generator)
        for cells, size in zip(grid, patch, strict=True)
    ]
    return torch.stack(drawn, 1)


def tiles(grid: Shape, patch: Shape) -> Tensor:
    """South-west corners of the fewest evenly spread patches that cover the *grid*: ``[tile, 2]`` int64."""
    rows, columns = (_spread(cells, size) for cells, size in zip(grid, patch, strict=True))
    return torch.cartesian_prod(rows, columns)


def _spread(cells: int, size: int) -> Tensor:
    count = -(-cells // size)
    return torch.tensor([round(i * (cells - size) / max(1, count - 1)) for i in range(count)])


def fine_corner(corner: Tensor, factor: int) -> Tensor:
    """South-west corners in fine cells: the fine patch is the coarse patch times *factor*."""
    return corner * factor
