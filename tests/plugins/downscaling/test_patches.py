from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from hookloop.data.grids import Grid
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import RegionConfig
from hookloop.plugins.downscaling.patches import (
    PatchConfig,
    Plan,
    cells,
    corners,
    fine_corner,
    patch_shape,
    plan,
    position_weights,
    tiles,
)

GLOBE = Grid(np.arange(-85.0, 90.0, 10.0), np.arange(5.0, 360.0, 10.0))
"""18 x 36 cells of 10 degrees."""


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shuffled(config: PatchConfig, n_cases: int, seed: int = 1, members: int = 1) -> Plan:
    return plan(
        config, (8, 8), n_cases, members, generator(seed), 0, shuffled=True, wraps=False, weights=None
    )


def test_corners_are_everywhere_and_nowhere_else() -> None:
    """A 2 x 3 patch in a 4 x 4 grid has 3 x 2 places; all are drawn, about equally often."""
    drawn = corners((4, 4), (2, 3), 6000, generator())
    assert drawn.dtype == torch.int64
    places, counts = drawn.unique(dim=0, return_counts=True)
    assert places.tolist() == [[i, j] for i in range(3) for j in range(2)]
    # Five standard deviations of a binomial count with mean 1000.
    assert (counts - 1000).abs().max() < 5 * (6000 * 1 / 6 * 5 / 6) ** 0.5


def test_corners_go_round_the_globe() -> None:
    """Where columns wrap around, a 2 x 3 patch in a 3 x 4 grid begins in any of the 4 columns."""
    places, counts = corners((3, 4), (2, 3), 8000, generator(), wraps=True).unique(dim=0, return_counts=True)
    assert places.tolist() == [[i, j] for i in range(2) for j in range(4)]
    assert (counts - 1000).abs().max() < 5 * (8000 * 1 / 8 * 7 / 8) ** 0.5


@pytest.mark.parametrize("wraps", [False, True])
def test_whole_grid_has_one_corner(*, wraps: bool) -> None:
    """A patch of the size of the grid lies at its corner, round the globe too."""
    assert corners((4, 5), (4, 5), 3, torch.Generator(), wraps=wraps).tolist() == [[0, 0]] * 3


def test_seed_decides() -> None:
    """Equal seeds give equal corners."""
    first, second = (corners((9, 9), (2, 2), 20, generator(s)) for s in (3, 3))
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


def test_tiles_overlap() -> None:
    """Tiles of 4 in 10 rows that share 1 begin at 0, 3 and 6; round 10 columns they need one more than 10 / 4."""
    assert tiles((10, 4), (4, 4), (1, 0))[:, 0].tolist() == [0, 3, 6]
    assert tiles((1, 12), (1, 5), (0, 1), wraps=True)[:, 1].tolist() == [0, 4, 8]


def test_tiles_cross_the_seam() -> None:
    """Round 10 columns three tiles of 4 are spread as on a circle: every 3 1/3 columns, the last over the seam."""
    assert tiles((1, 10), (1, 4), wraps=True)[:, 1].tolist() == [0, 3, 7]
    assert tiles((1, 10), (1, 4))[:, 1].tolist() == [0, 3, 6]


def test_fine_corner_is_the_coarse_one_times_the_factor() -> None:
    """Fine cell 0 of coarse cell i is number factor · i."""
    assert fine_corner(torch.tensor([[1, 3]]), 4).tolist() == [[4, 12]]


def test_cells_beyond_the_grid() -> None:
    """Beyond the grid the edge cell is repeated; round the globe the cells of the other end follow."""
    start = torch.tensor([0, 4])
    assert cells(start, 2, 2, 6, wraps=False).tolist() == [[0, 0, 0, 1, 2, 3], [2, 3, 4, 5, 5, 5]]
    assert cells(start, 2, 2, 6, wraps=True).tolist() == [[4, 5, 0, 1, 2, 3], [2, 3, 4, 5, 0, 1]]
    assert cells(start, 2, 2, 6, wraps=True).dtype == torch.int64


def test_patch_larger_than_the_grid() -> None:
    """Both shapes are named."""
    with pytest.raises(HookloopError, match="8 x 20 coarse cells is larger than the grid of 16 x 16"):
        patch_shape(PatchConfig(coarse=(8, 20)), (16, 16))


@pytest.mark.parametrize("overlap", [(0, 4), (8, 0), (9, 9)])
def test_overlap_leaves_nothing(overlap: tuple[int, int]) -> None:
    """Tiles that share all their cells would never get across the grid."""
    with pytest.raises(HookloopError, match="8 x 4 coarse cells cannot share"):
        patch_shape(PatchConfig(coarse=(8, 4), overlap=overlap, random_offset=False), (16, 16))


def test_no_patch_is_the_whole_field() -> None:
    """Without a size a sample is the whole field."""
    assert patch_shape(PatchConfig(), (16, 12)) == (16, 12)


def test_nonsense_is_refused() -> None:
    """Patches have cells, there is at least one, and tiles share no negative number of cells."""
    with pytest.raises(ValueError, match="at least one cell"):
        PatchConfig(coarse=(0, 4))
    with pytest.raises(ValueError, match="per_sample"):
        PatchConfig(per_sample=0)
    with pytest.raises(ValueError, match="0 or more"):
        PatchConfig(overlap=(0, -1))


def test_blocks_of_single_times() -> None:
    """Where a read is one item, a block is every so many items, and the last one is what is left."""
    assert shuffled(PatchConfig(shuffle=4), 10).blocks == (0, 4, 8, 10)
    assert shuffled(PatchConfig(shuffle=5), 10).blocks == (0, 5, 10)
    assert shuffled(PatchConfig(), 10).blocks == (0, 10)


def test_members_are_read_together() -> None:
    """With three members and a read a block, the cases of a block are those of one time."""
    drawn = shuffled(PatchConfig(shuffle=1), 12, members=3)
    times = (drawn.cases // 3).reshape(4, 3)
    assert drawn.blocks == (0, 3, 6, 9, 12)
    assert (times == times[:, :1]).all()
    assert sorted(times[:, 0].tolist()) == [0, 1, 2, 3]


def test_validation_comes_in_the_order_of_time() -> None:
    """Unshuffled, cases ascend, and blocks are cut from the front."""
    config = PatchConfig(coarse=(4, 4), per_sample=2, shuffle=3)
    drawn = plan(config, (8, 8), 5, 1, generator(0), 0, shuffled=False, wraps=False, weights=None)
    assert drawn.cases.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert drawn.blocks == (0, 6, 10)


def test_any_order_within_a_block() -> None:
    """Two reads of two times come in all 24 orders, about equally often."""
    config = PatchConfig(together=2, shuffle=2)
    orders = Counter(tuple(shuffled(config, 4, seed).cases.tolist()) for seed in range(4800))
    assert sorted(orders) == sorted(permutations(range(4)))
    assert max(abs(count - 200) for count in orders.values()) < 5 * (4800 * 1 / 24 * 23 / 24) ** 0.5


@pytest.mark.parametrize(("per_sample", "together", "shuffle"), [(4, 1, 64), (1, 8, 64), (2, 3, 16)])
def test_patches_of_a_read_are_apart(per_sample: int, together: int, shuffle: int) -> None:
    """Of s items in each of b reads, the next comes from the same read with probability (s - 1) / (b·s - 1)."""
    size, blocks, epochs = per_sample * together, 3, 20
    config = PatchConfig(coarse=(4, 4), per_sample=per_sample, together=together, shuffle=shuffle)
    same = 0
    for seed in range(epochs):
        reads = shuffled(config, blocks * shuffle * together, seed).cases // together
        inside = reads.reshape(blocks, shuffle * size)
        same += int((inside[:, 1:] == inside[:, :-1]).sum())
    pairs = epochs * blocks * (shuffle * size - 1)
    expected = (size - 1) / (shuffle * size - 1)
    assert abs(same / pairs - expected) < 5 * (expected * (1 - expected) / pairs) ** 0.5


def test_neighbours_in_the_order_are_none_in_time() -> None:
    """Of 1000 times in any order, 2 · 999 / 1000 of consecutive pairs are expected to be consecutive times."""
    epochs = 200
    near = sum(
        int((shuffled(PatchConfig(), 1000, seed).cases.diff().abs() == 1).sum()) for seed in range(epochs)
    )
    expected = epochs * 2 * 999 / 1000
    assert abs(near - expected) < 5 * expected**0.5


def weigh(config: PatchConfig) -> Tensor:
    weights = position_weights(config, GLOBE, patch_shape(config, GLOBE.shape), wraps=True)
    assert weights is not None
    return weights


@pytest.mark.parametrize("region", [None, []])
def test_no_regions(region: list[RegionConfig] | None) -> None:
    """Without regions nothing is weighed, so the draws are those of plain uniform corners."""
    assert position_weights(PatchConfig(region=region), GLOBE, (18, 36), wraps=True) is None


@pytest.mark.parametrize("lon", [(-15.0, 15.0), (345.0, 15.0), (345.0, 375.0)])
def test_region_across_the_seam(lon: tuple[float, float]) -> None:
    """Of 2 x 2 patches, centred every 10 degrees from 10, those at 350, 0 and 10 are within 15 degrees of 0."""
    weights = weigh(PatchConfig(coarse=(2, 2), region=RegionConfig((-5.0, 5.0), lon, 3.0)))
    expected = torch.ones(17, 36, dtype=torch.float64)
    # Rows are centred on -80, -70, ..., so number 8 on the equator; columns on 10, 20, ..., 350, 360.
    expected[8, [34, 35, 0]] = 3.0
    assert torch.equal(weights, expected)


def test_region_across_the_date_line() -> None:
    """A box from 170 to 190, or to -170, holds the centres 170, 180 and 190."""
    for east in (190.0, -170.0):
        region = RegionConfig((-90.0, 90.0), (170.0, east), 0.5)
        weights = weigh(PatchConfig(coarse=(1, 2), region=region))
        assert (weights == 0.5).nonzero()[:, 1].unique().tolist() == [16, 17, 18]


def test_first_region_counts() -> None:
    """Where regions share places, the weight is that of the one listed first."""
    small, large = (
        RegionConfig((0.0, 10.0), (0.0, 10.0), 9.0),
        RegionConfig((-90.0, 90.0), (0.0, 360.0), 2.0),
    )
    assert weigh(PatchConfig(coarse=(1, 1), region=[small, large]))[9, 0] == 9.0
    assert (weigh(PatchConfig(coarse=(1, 1), region=[large, small])) == 2.0).all()


@pytest.mark.parametrize("where", [{"lat": (86.0, 90.0)}, {"lon": (181.0, 184.0)}])
def test_region_without_a_patch(where: dict[str, tuple[float, float]]) -> None:
    """The error names the box and where centres can lie."""
    box = {"lat": (0.0, 20.0), "lon": (20.0, 40.0)} | where
    config = PatchConfig(coarse=(2, 2), region=RegionConfig(**box, weight=2.0))
    with pytest.raises(
        HookloopError, match=r"no patch has its centre .* lie in latitude -80 to 80, longitude 10"
    ):
        weigh(config)


def test_region_of_rows_and_columns() -> None:
    """Degrees mean nothing on a grid that counts rows and columns, even where the numbers would fit."""
    counted = Grid(GLOBE.latitude, GLOBE.longitude, gridded=False)
    config = PatchConfig(coarse=(2, 2), region=RegionConfig((0.0, 20.0), (20.0, 40.0), 2.0))
    with pytest.raises(HookloopError, match=r"patch\.region: rows and columns .* leave region out"):
        position_weights(config, counted, (2, 2), wraps=False)
    assert position_weights(PatchConfig(coarse=(2, 2)), counted, (2, 2), wraps=False) is None


@pytest.mark.parametrize("weight", [0.1, 2.0, 30.0, 1e6])
def test_share_of_a_region(weight: float) -> None:
    """Of k places in a box of weight w and m outside, w·k / (w·k + m) of the patches lie in the box."""
    config = PatchConfig(
        coarse=(2, 2), per_sample=100, region=RegionConfig((0.0, 40.0), (350.0, 20.0), weight)
    )
    drawn = plan(config, (18, 36), 1000, 1, generator(), 0, shuffled=True, wraps=True, weights=weigh(config))
    latitude, longitude = drawn.corner[:, 0] * 10 - 80, (drawn.corner[:, 1] * 10 + 10) % 360
    inside = (latitude >= 0) & (latitude <= 40) & torch.isin(longitude, torch.tensor([350, 0, 10, 20]))
    within, outside = 5 * 4, 17 * 36 - 5 * 4
    expected = weight * within / (weight * within + outside)
    share = float(inside.double().mean())
    assert abs(share - expected) < 5 * (expected * (1 - expected) / len(inside)) ** 0.5
    assert weight < 1e6 or share > 0.99
    places, counts = drawn.corner[~inside].unique(dim=0, return_counts=True)
    if weight < 1e6:
        assert len(places) == outside
        mean = len(inside) * (1 - expected) / outside
        assert (counts - mean).abs().max() < 5 * mean**0.5


def test_huge_weights() -> None:
    """Weights whose sum no float could hold are drawn like any others."""
    drawn = corners(
        (2, 2), (1, 1), 100, generator(), weights=torch.full((2, 2), 1.5e308, dtype=torch.float64)
    )
    assert len(drawn.unique(dim=0)) == 4


def test_more_places_than_multinomial_takes() -> None:
    """More than 2^24 places are no limit; the last of them is reached."""
    weights = torch.ones(4097, 4097, dtype=torch.float64)
    weights[-1, -1] = 1e12
    drawn = corners((4097, 4097), (1, 1), 100, generator(), weights=weights)
    # The others together weigh 1.7e7.
    assert (drawn == 4096).all(1).sum() >= 99
