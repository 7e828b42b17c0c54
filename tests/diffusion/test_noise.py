"""The rows of a batch that several processes share: whose noise they have, and where they part ways."""

from __future__ import annotations

import pytest
import torch
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop.diffusion.noise import Rows

CPU = torch.device("cpu")


def rows_of(size: int, world: int) -> list[Rows]:
    """Rows as ranks have them; who has none has the first."""
    return [Rows(range(rank, size, world) or range(1), size) for rank in range(world)]


@given(size=st.integers(1, 30), world=st.integers(1, 12))
@many(100)
def test_rows_together_are_the_whole(size: int, world: int) -> None:
    """Put back in their places, the rows are what was drawn for all."""
    drawn = torch.arange(2 * size).view(size, 2)
    found = torch.full_like(drawn, -1)
    for rows in rows_of(size, world):
        found[list(rows.numbers)] = rows.of(drawn)
    assert torch.equal(found, drawn)


def test_the_whole_is_what_was_given() -> None:
    """One process copies nothing."""
    drawn = torch.zeros(3, 2)
    assert Rows.whole(3).of(drawn) is drawn


def test_processes_part_ways() -> None:
    """They draw alike before, and differently afterwards; the same again where they do the same again."""

    def drawn(rows: Rows) -> tuple[list[float], list[float]]:
        torch.manual_seed(5)
        before = torch.rand(3).tolist()
        rows.part(CPU)
        return before, torch.rand(8).tolist()

    first, *others = [drawn(rows) for rows in rows_of(8, 4)]
    assert all(before == first[0] for before, _ in others)
    assert len({tuple(after) for _, after in [first, *others]}) == 4
    assert drawn(rows_of(8, 4)[2]) == others[1]


def test_they_part_differently_in_each_step() -> None:
    """What follows depends on what the generators were seeded with, so that masks change from step to step."""

    def mask(seed: int, rows: Rows) -> tuple[float, ...]:
        torch.manual_seed(seed)
        rows.part(CPU)
        return tuple(torch.rand(4).tolist())

    assert len({mask(seed, rows) for seed in range(50) for rows in rows_of(4, 2)}) == 100


def test_one_process_goes_on_as_it_was() -> None:
    """Where all rows are here, not a bit of what is drawn changes."""
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    Rows.whole(8).part(CPU)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_processes_part_ways_on_a_gpu() -> None:
    """There, too, and without waiting for it."""
    cuda = torch.device("cuda")
    found = []
    for rows in rows_of(8, 2):
        torch.manual_seed(5)
        torch.cuda.set_sync_debug_mode("error")
        rows.part(cuda)
        torch.cuda.set_sync_debug_mode("default")
        found.append(torch.rand(8, device=cuda).tolist())
    assert found[0] != found[1]
