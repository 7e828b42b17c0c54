"""What holds for the patches of every epoch, whatever the grid, the patch and the options.

``HOOKLOOP_EXAMPLES=100000`` tries that many of each, others at each start.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hookloop.data.grids import Grid
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import RegionConfig
from hookloop.plugins.downscaling.patches import PatchConfig, Plan, cells, plan, position_weights, tiles


@frozen(eq=False)
class Case:
    """The arguments of a plan."""

    config: PatchConfig
    grid: tuple[int, int]
    times: int
    members: int
    seed: int
    turn: int
    shuffled: bool
    wraps: bool
    weights: Tensor | None

    @property
    def patch(self) -> tuple[int, int]:
        return self.config.coarse or self.grid

    @property
    def places(self) -> tuple[int, int]:
        """Positions in latitude and longitude."""
        (rows, columns), (height, width) = self.grid, self.patch
        return rows - height + 1, columns if self.wraps and width < columns else columns - width + 1

    @property
    def size(self) -> int:
        """Cases of a read."""
        return self.config.together * self.members

    def plan(self) -> Plan:
        return plan(
            self.config,
            self.grid,
            self.times * self.members,
            self.members,
            torch.Generator().manual_seed(self.seed),
            self.turn,
            shuffled=self.shuffled,
            wraps=self.wraps,
            weights=self.weights,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any grid with any patch that fits, and any options."""
    grid = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    patch = draw(st.tuples(st.integers(1, grid[0]), st.integers(1, grid[1])))
    anywhere = draw(st.booleans())
    shared = st.tuples(st.integers(0, patch[0] - 1), st.integers(0, patch[1] - 1))
    config = PatchConfig(
        coarse=draw(st.sampled_from([patch, None])),
        per_sample=draw(st.integers(1, 4)),
        random_offset=anywhere,
        overlap=(0, 0) if anywhere else draw(shared),
        shuffle=draw(st.integers(1, 6)),
        together=draw(st.integers(1, 4)),
    )
    case = Case(
        config,
        grid,
        times=draw(st.integers(1, 30)),
        members=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**63 - 1)),
        turn=draw(st.integers(0, 100)),
        shuffled=draw(st.booleans()),
        wraps=draw(st.booleans()),
        weights=None,
    )
    if config.random_offset and draw(st.booleans()):
        weights = torch.rand(case.places, generator=torch.Generator().manual_seed(case.seed)) + 0.01
        return evolve(case, weights=weights.double())
    return case


@given(cases())
@many(300)
def test_never_off_the_grid_never_shifted(case: Case) -> None:
    """Each corner is one of the positions, so that the cells of its patch need no clamping."""
    corner = case.plan().corner
    assert corner.dtype == torch.int64
    assert (corner >= 0).all()
    assert (corner < torch.tensor(case.places)).all()
    for axis, wraps in enumerate((False, case.wraps)):
        found = cells(corner[:, axis], case.patch[axis], 0, case.grid[axis], wraps=wraps)
        unclamped = corner[:, axis, None] + torch.arange(case.patch[axis])
        assert torch.equal(found, unclamped % case.grid[axis] if wraps else unclamped)


@given(cases())
@many(300)
def test_each_case_as_often_as_planned(case: Case) -> None:
    """An epoch shows each case per_sample times, whatever the offset."""
    drawn = case.plan()
    counts = torch.bincount(drawn.cases, minlength=case.times * case.members)
    assert counts.tolist() == [case.config.per_sample] * (case.times * case.members)
    assert len(drawn.corner) == len(drawn.cases)


@given(cases())
@many(300)
def test_blocks_hold_whole_reads(case: Case) -> None:
    """Blocks hold as many reads as are shuffled, the last one those left over, and share none."""
    drawn = case.plan()
    reads = (drawn.cases // case.size).tolist()
    blocks = [set(reads[begin:end]) for begin, end in pairwise(drawn.blocks)]
    assert (drawn.blocks[0], drawn.blocks[-1]) == (0, len(reads))
    assert all(begin < end for begin, end in pairwise(drawn.blocks))
    n_reads = len(set(reads))
    assert n_reads == -(-case.times // case.config.together)
    assert [len(block) for block in blocks[:-1]] == [case.config.shuffle] * (
        (n_reads - 1) // case.config.shuffle
    )
    assert sum(len(block) for block in blocks) == n_reads == len(set().union(*blocks))


@given(cases())
@many(100)
def test_equal_arguments_give_equal_plans(case: Case) -> None:
    """A plan is a pure function of its arguments."""
    torch.manual_seed(0)
    first = case.plan()
    torch.manual_seed(1)
    second = case.plan()
    assert torch.equal(first.cases, second.cases)
    assert torch.equal(first.corner, second.corner)
    assert first.blocks == second.blocks


@given(cases(), st.integers(1, 9), st.integers(1, 12))
@many(150)
def test_what_is_kept_of_a_plan_stays_in_its_blocks(case: Case, step: int, first: int) -> None:
    """Every so-many-th patch, in order; between two offsets those of one block of the whole, and none is empty."""
    drawn = case.plan()
    items = np.arange(first % len(drawn.cases), len(drawn.cases), step)
    kept = drawn.only(items)
    assert kept.cases.tolist() == drawn.cases.tolist()[items[0] :: step]
    assert kept.corner.tolist() == drawn.corner.tolist()[items[0] :: step]
    blocks = [set(range(begin, end)) & set(items.tolist()) for begin, end in pairwise(drawn.blocks)]
    assert [items[begin:end].tolist() for begin, end in pairwise(kept.blocks)] == [
        sorted(block) for block in blocks if block
    ]


@given(cases())
@many(100)
def test_unshuffled_is_the_order_of_time(case: Case) -> None:
    """What is not shuffled ascends in time, then by member."""
    drawn = evolve(case, shuffled=False).plan().cases
    assert torch.equal(
        drawn, torch.arange(case.times * case.members).repeat_interleave(case.config.per_sample)
    )


@given(cases())
@many(100)
def test_plain_options_draw_one_permutation_and_then_corners(case: Case) -> None:
    """One patch of each time, read alone: drawn are a permutation, if any, all rows, and all columns."""
    config = evolve(case.config, per_sample=1, together=1)
    drawn = evolve(case, config=config, members=1, wraps=False, weights=None).plan()
    generator = torch.Generator().manual_seed(case.seed)
    items = torch.randperm(case.times, generator=generator) if case.shuffled else torch.arange(case.times)
    assert torch.equal(drawn.cases, items)
    if config.random_offset:
        for axis in (0, 1):
            places = case.grid[axis] - case.patch[axis] + 1
            expected = torch.randint(places, (case.times,), generator=generator)
            assert torch.equal(drawn.corner[:, axis], expected)
    else:
        positions = tiles(case.grid, case.patch, config.overlap)
        assert torch.equal(drawn.corner, positions[(items + case.turn) % len(positions)])


@given(cases())
@many(50)
def test_each_case_meets_each_tile(case: Case) -> None:
    """In as many turns as there are tiles, each case shows each tile per_sample times."""
    config = evolve(case.config, random_offset=False)
    positions = tiles(case.grid, case.patch, config.overlap, wraps=case.wraps)
    met = []
    for turn in range(len(positions)):
        drawn = evolve(case, config=config, weights=None, turn=turn).plan()
        met.append(torch.cat([drawn.cases[:, None], drawn.corner], 1))
    shown, counts = torch.cat(met).unique(dim=0, return_counts=True)
    assert len(shown) == len(positions) * case.times * case.members
    assert (counts == config.per_sample).all()


@given(cases())
@many(500)
def test_tiles_cover_overlap_and_are_few(case: Case) -> None:
    """Along each axis tiles leave no cell out, share what was asked for, differ by a cell, and are fewest."""
    positions = tiles(case.grid, case.patch, case.config.overlap, wraps=case.wraps)
    rows, columns = (positions[:, axis].unique().tolist() for axis in (0, 1))
    assert positions.tolist() == [[i, j] for i in rows for j in columns]
    for axis, starts in enumerate((rows, columns)):
        length, size, overlap = case.grid[axis], case.patch[axis], case.config.overlap[axis]
        around = axis == 1 and case.wraps and size < length
        covered = {(start + k) % length if around else start + k for start in starts for k in range(size)}
        assert covered == set(range(length))
        steps = np.diff([*starts, starts[0] + length] if around else starts)
        assert all(size - step >= overlap for step in steps)
        assert not len(steps) or steps.max() - steps.min() <= 1
        # One tile fewer, each as far from the next as may be, would not reach the end.
        fewer = len(starts) - 1
        reach = fewer * (size - overlap) + (0 if around else overlap)
        assert fewer == 0 or reach < length


@given(size=st.integers(1, 30), halo=st.integers(0, 5), wraps=st.booleans(), data=st.data())
@many(200)
def test_cells_are_those_of_numpy(size: int, halo: int, *, wraps: bool, data: st.DataObject) -> None:
    """Cells beyond the grid are those that ``numpy.take`` finds, clipped or wrapped."""
    start = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    count = data.draw(st.integers(1, size))
    asked = np.array(start)[:, None] + np.arange(-halo, count + halo)
    expected = np.take(np.arange(size), asked, mode="wrap" if wraps else "clip")
    assert np.array_equal(cells(torch.tensor(start), count, halo, size, wraps=wraps).numpy(), expected)


def holds(region: RegionConfig, latitude: float, longitude: float) -> bool:
    """Whether a box holds a place, by trying all circles."""
    west, east = region.lon
    while east < west:
        east += 360.0
    return region.lat[0] <= latitude <= region.lat[1] and any(
        west <= longitude + circle * 360.0 <= east for circle in range(-3, 4)
    )


@st.composite
def boxes(draw: st.DrawFn) -> RegionConfig:
    """Any box in whole degrees, in any convention of longitude."""
    south, north = sorted(draw(st.tuples(st.integers(-90, 90), st.integers(-90, 90))))
    west, east = draw(st.tuples(st.integers(-180, 360), st.integers(-180, 360)))
    weight = draw(st.floats(1e-3, 1e3))
    return RegionConfig((float(south), float(north)), (float(west), float(east)), weight)


@given(
    step=st.sampled_from([5.0, 7.5, 10.0, 22.5]),
    west=st.sampled_from([-180.0, -20.0, 0.0, 2.5]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    regions=st.lists(boxes(), min_size=1, max_size=3),
    wraps=st.booleans(),
)
@many(150)
def test_weights_are_those_of_the_first_box_that_holds(
    step: float, west: float, height: int, width: int, regions: list[RegionConfig], *, wraps: bool
) -> None:
    """Each position has the weight of the first box around its centre, or 1; a box without any is an error."""
    columns = int(360 / step) if wraps else int(120 / step)
    grid = Grid(np.arange(int(90 / step)) * step - 30.0, np.arange(columns) * step + west)
    height, width = min(height, grid.shape[0]), min(width, columns)
    rows, places = grid.shape[0] - height + 1, columns if wraps and width < columns else columns - width + 1
    held = [
        [
            [
                holds(box, -30.0 + step * (i + (height - 1) / 2), west + step * (j + (width - 1) / 2))
                for box in regions
            ]
            for j in range(places)
        ]
        for i in range(rows)
    ]
    config = PatchConfig(coarse=(height, width), region=regions if len(regions) > 1 else regions[0])
    if not np.array(held).any((0, 1)).all():
        with pytest.raises(HookloopError, match="no patch has its centre"):
            position_weights(config, grid, (height, width), wraps=wraps)
        return
    weights = position_weights(config, grid, (height, width), wraps=wraps)
    assert weights is not None
    assert weights.tolist() == [
        [regions[place.index(True)].weight if any(place) else 1.0 for place in row] for row in held
    ]
