"""Which samples several ranks read: together all of every batch, in any world and where it changes on the way."""

from __future__ import annotations

import socket
from typing import TypeVar

import numpy as np
import pytest
from attrs import define
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop.data.sharing import on_this_host, own_items
from hookloop.distributed import Ranks, Share

T = TypeVar("T")


@given(n=st.integers(1, 60), batch_size=st.integers(1, 20), world=st.integers(1, 25))
@many(300)
def test_ranks_together_read_every_batch_in_its_order(n: int, batch_size: int, world: int) -> None:
    """Item i of a batch is the next one of rank i modulo world; who has none of a batch reads its first, too."""
    own = [own_items(n, batch_size, Share(rank, world)).tolist() for rank in range(world)]
    for first in range(0, n, batch_size):
        size = min(batch_size, n - first)
        met = [own[item % world].pop(0) for item in range(size)]
        assert met == list(range(first, first + size))
        assert [own[rank].pop(0) for rank in range(size, world)] == [first] * max(0, world - size)
    assert not any(own)


@given(n=st.integers(1, 60), batch_size=st.integers(1, 20), world=st.integers(1, 25), rank=st.integers(0, 24))
@many(200)
def test_all_batches_but_a_short_last_one_have_as_many(
    n: int, batch_size: int, world: int, rank: int
) -> None:
    """So that batch b of a rank begins at b times that number, and there are as many batches as in the whole."""
    items = own_items(n, batch_size, share := Share(rank % world, world))
    size = len(share.rows(batch_size))
    assert (np.diff(items) > 0).all()
    cut = [items[first : first + size] // batch_size for first in range(0, len(items), size)]
    assert [set(batches.tolist()) for batches in cut] == [{b} for b in range(-(-n // batch_size))]
    assert all(len(batches) == size for batches in cut[:-1])


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    legs=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), max_size=5),
)
@many(200)
def test_another_number_of_ranks_goes_on_with_what_is_unseen(
    n: int, batch_size: int, legs: list[tuple[int, int]]
) -> None:
    """However often the number changes after however many batches, every sample is read once, in the order of one."""
    seen: list[int] = []
    start = 0
    for world, batches in [*legs, (1, n)]:
        stop = min(start + batches, -(-n // batch_size))
        own = [own_items(n, batch_size, Share(rank, world)) for rank in range(world)]
        for b in range(start, stop):
            size = min(batch_size, n - b * batch_size)
            rows = [len(Share(rank, world).rows(batch_size)) for rank in range(world)]
            read = [items[b * k :][:k] for items, k in zip(own, rows, strict=True)]
            seen += [int(read[row % world][row // world]) for row in range(size)]
        start = stop
    assert seen == list(range(n))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_weights_of_a_batch_add_up_to_the_ranks(size: int, world: int) -> None:
    """So the mean over the ranks of weight · mean is the mean of the batch, whoever has nothing of it."""
    values = np.arange(size) ** 2 + 1.0
    shares = [Share(rank, world) for rank in range(world)]
    assert sum(share.weight(size) for share in shares) == pytest.approx(world, rel=1e-15)
    means = [share.weight(size) * values[list(share.rows(size))].mean() for share in shares]
    assert sum(means) / world == pytest.approx(values.mean(), rel=1e-14)


@define(eq=False)
class OnHosts(Ranks):
    """Ranks of which others are somewhere else."""

    others: tuple[object, ...] = ()

    def gather(self, value: T) -> list[T]:
        """Here, and there."""
        return [value, *self.others]  # type: ignore[list-item]


def test_ranks_on_this_machine_are_counted() -> None:
    """One is; of four on two machines those with its name."""
    assert on_this_host(Ranks()) == 1
    here = socket.gethostname()
    assert on_this_host(OnHosts(world=4, others=(here, "another", "another"))) == 2
