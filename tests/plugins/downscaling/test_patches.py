from __future__ import annotations

import pytest
import torch

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.patches import PatchConfig, corners, fine_corner, patch_shape, tiles


def test_corners_are_everywhere_and_nowhere_else() -> None:
    """A 2 x 3 patch in a 4 x 4 grid has 3 x 2 places; all are drawn, about equally often."""
    drawn = corners((4, 4), (2, 3), 6000, torch.Generator().manual_seed(1))
    assert drawn.dtype == torch.int64
    places, counts = drawn.unique(dim=0, return_counts=True)
    assert places.tolist() == [[i, j] for i in range(3) for j in range(2)]
    # Five standard deviations of a binomial count with mean 1000.
    assert (counts - 1000).abs().max() < 5 * (6000 * 1 / 6 * 5 / 6) ** 0.5


def test_whole_grid_has_one_corner() -> None:
    """A patch of the size of the grid lies at its corner."""
    assert corners((4, 5), (4, 5), 3, torch.Generator()).tolist() == [[0, 0]] * 3


def test_seed_decides() -> None:
    """Equal seeds give equal corners."""
    first, second = (corners((9, 9), (2, 2), 20, torch.Generator().manual_seed(s)) for s in (3, 3))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("grid", "patch"), [((8, 8), (4, 4)), ((10, 7), (4, 3)), ((5, 9), (5, 2))])
def test_tiles_cover_the_grid(grid: tuple[int, int], patch: tuple[int, int]) -> None:
    """The tiles are as few as can be, lie inside, and leave no cell out."""
    covered = torch.zeros(grid)
    positions = tiles(grid, patch)
    for i, j in positions.tolist():
        assert i + patch[0] <= grid[0]
        assert j + patch[1] <= grid[1]
        covered[i : i + patch[0], j : j + patch[1]] += 1
    assert covered.min() >= 1
    assert len(positions) == -(-grid[0] // patch[0]) * -(-grid[1] // patch[1])


def test_fine_corner_is_the_coarse_one_times_the_factor() -> None:
    """Fine cell 0 of coarse cell i is number factor · i."""
    assert fine_corner(torch.tensor([[1, 3]]), 4).tolist() == [[4, 12]]


def test_patch_larger_than_the_grid() -> None:
    """Both shapes are named."""
    with pytest.raises(HookloopError, match="8 x 20 coarse cells is larger than the grid of 16 x 16"):
        patch_shape(PatchConfig(coarse=(8, 20)), (16, 16))


def test_no_patch_is_the_whole_field() -> None:
    """Without a size a sample is the whole field."""
    assert patch_shape(PatchConfig(), (16, 12)) == (16, 12)


def test_nonsense_is_refused() -> None:
    """Patches have cells, and there is at least one."""
    with pytest.raises(ValueError, match="at least one cell"):
        PatchConfig(coarse=(0, 4))
    with pytest.raises(ValueError, match="per_sample"):
        PatchConfig(per_sample=0)
