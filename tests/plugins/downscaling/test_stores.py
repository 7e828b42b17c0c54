from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import torch
import zarr
from attrs import evolve

from hookloop.data.places import AT_ONCE
from hookloop.data.readers import Inline
from hookloop.distributed import Share
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import PatchConfig
from hookloop.plugins.downscaling.dataset import PairedData
from hookloop.plugins.downscaling.stores import (
    HALO,
    Streamed,
    blocks,
    held,
    open_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hookloop.plugins.downscaling.dataset import PairBatch
    from hookloop.plugins.downscaling.pairs import Pair

CPU = torch.device("cpu")
Make = Callable[..., "Pair"] if TYPE_CHECKING else object
TENSORS = ("coarse", "fine", "corner", "hour", "day")


def quiet(event: str, **values: object) -> None:
    """Expect that nothing has to be told."""
    raise AssertionError((event, values))


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    """What a run closes at its end."""
    with ExitStack() as stack:
        yield stack


def served(
    pair: Pair,
    cache: Literal["ram", "none"],
    workers: int,
    patch: PatchConfig,
    cleanup: ExitStack,
    share: Share | None = None,
    **options: int,
) -> list[PairBatch]:
    """One epoch, or a part of it, as batches of seven."""
    store = open_store(pair, cache, workers, patch.together, CPU, quiet, cleanup)
    data = PairedData(pair, store, patch, 7, lambda epoch, order: 2 * epoch + (order == "alternate"), CPU)
    return list(data.shared(share or Share()).batches(3, **options))  # type: ignore[arg-type]


def assert_same(some: list[PairBatch], others: list[PairBatch]) -> None:
    """The same batches, bit for bit."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for name in TENSORS:
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        np.testing.assert_array_equal(one.times, other.times)


PATCHES = {
    "whole fields": (PatchConfig(), {}),
    "one patch a time": (PatchConfig(coarse=(2, 3)), {}),
    "many, in small blocks": (PatchConfig(coarse=(3, 2), per_sample=5, shuffle=3), {}),
    "chunks of times": (
        PatchConfig(coarse=(3, 2), per_sample=2, shuffle=2, together=4),
        {"chunks": (4, 5, 7)},
    ),
    "members": (PatchConfig(coarse=(3, 2), per_sample=2, shuffle=3), {"members": 3}),
    "round the globe": (PatchConfig(coarse=(3, 5), per_sample=4), {"periodic": True}),
    "blocks smaller than a batch": (PatchConfig(coarse=(3, 2), shuffle=2), {}),
    "tiles": (PatchConfig(coarse=(3, 4), per_sample=4, random_offset=False), {}),
}


@pytest.mark.parametrize(
    ("name", "workers"), [*((name, 0) for name in PATCHES), ("many, in small blocks", 1), ("members", 3)]
)
def test_the_cache_and_the_workers_change_nothing(
    pair_on_disk: Callable[..., Pair], cleanup: ExitStack, name: str, workers: int
) -> None:
    """Read from files by any number of processes, the batches are those that are gathered in memory."""
    patch, options = PATCHES[name]
    pair = pair_on_disk(**options)
    expected = served(pair, "ram", 0, patch, cleanup)
    assert sum(map(len, expected)) == 10 * options.get("members", 1) * patch.per_sample
    assert_same(served(pair, "none", workers, patch, cleanup), expected)
    tail = served(pair, "none", workers, patch, cleanup, start=1, stop=3)
    assert_same(tail, expected[1:3])


@pytest.mark.parametrize("share", [Share(0, 2), Share(2, 3), Share(8, 9)])
@pytest.mark.parametrize("name", PATCHES)
def test_what_a_rank_streams_are_its_rows_of_what_one_holds(
    pair_on_disk: Callable[..., Pair], cleanup: ExitStack, name: str, share: Share
) -> None:
    """In blocks of any length, of which few or none are left for it, whole epochs and parts of them."""
    patch, options = PATCHES[name]
    pair = pair_on_disk(**options)
    expected = []
    for batch in served(pair, "ram", 0, patch, cleanup):
        here = list(share.rows(len(batch)))
        own = {side: getattr(batch, side)[here] for side in TENSORS}
        expected.append(evolve(batch, times=batch.times[here], **own))
    assert_same(served(pair, "none", 0, patch, cleanup, share), expected)
    assert_same(served(pair, "none", 0, patch, cleanup, share, start=1, stop=3), expected[1:3])
    assert_same(served(pair, "ram", 0, patch, cleanup, share, start=1, stop=3), expected[1:3])


def test_processes_read_for_a_rank(pair_on_disk: Callable[..., Pair], cleanup: ExitStack) -> None:
    """With readers of its own it has the same rows."""
    patch, options = PATCHES["members"]
    pair, share = pair_on_disk(**options), Share(1, 2)
    inline = served(pair, "none", 0, patch, cleanup, share)
    assert_same(served(pair, "none", 2, patch, cleanup, share), inline)


def test_a_rank_reads_nothing_of_others(pair_on_disk: Callable[..., Pair], cleanup: ExitStack) -> None:
    """Where all times that it does not need are damaged it does not notice; the other one does."""
    pair, patch = pair_on_disk(20), PatchConfig(coarse=(2, 2))
    own = served(pair, "ram", 0, patch, cleanup, Share(0, 2))
    needed = {str(time) for batch in own for time in batch.times}
    assert len(needed) == 11  # four of two batches of seven, three of a last one of six
    for t, time in enumerate(pair.times):
        if str(time) not in needed:
            for side, shape in ((pair.coarse, (6, 8)), (pair.fine, (24, 32))):
                zarr.open_array(side.parts["a"][0].path, path="a")[t] = np.full(shape, np.nan)
    assert_same(served(pair, "none", 0, patch, cleanup, Share(0, 2)), own)
    with pytest.raises(HookloopError, match="NaN"):
        served(pair, "none", 0, patch, cleanup, Share(1, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_iterators_at_once(pair_on_disk: Callable[..., Pair], cleanup: ExitStack, workers: int) -> None:
    """An evaluation on the same split in the middle of an epoch, left early, disturbs nothing."""
    pair, patch = pair_on_disk(), PatchConfig(coarse=(2, 2), per_sample=4, shuffle=4)
    store = open_store(pair, "none", workers, 1, CPU, quiet, cleanup)
    data = PairedData(pair, store, patch, 7, lambda epoch, order: 2 * epoch + (order == "alternate"), CPU)
    expected = served(pair, "ram", 0, patch, cleanup)
    batches, found = data.batches(3), []
    for batch in batches:
        found.append(batch)
        meanwhile = data.batches(3, order="alternate")
        next(meanwhile)
        next(meanwhile, None)
    assert_same(found, expected)


def test_nothing_before_the_start_is_read(pair_on_disk: Callable[..., Pair], cleanup: ExitStack) -> None:
    """A resumed epoch reads no field of the batches before, not even to skip it."""
    pair, patch = pair_on_disk(20), PatchConfig(coarse=(2, 2))
    late = served(pair, "ram", 0, patch, cleanup, start=2)
    needed = {str(time) for batch in late for time in batch.times}
    for t, time in enumerate(pair.times):
        if str(time) not in needed:
            for side, shape in ((pair.coarse, (6, 8)), (pair.fine, (24, 32))):
                zarr.open_array(side.parts["a"][0].path, path="a")[t] = np.full(shape, np.nan)
    assert_same(served(pair, "none", 0, patch, cleanup, start=2), late)
    with pytest.raises(HookloopError, match="NaN"):
        served(pair, "none", 0, patch, cleanup)


def test_whole_fields_have_their_neighbours(pair_on_disk: Callable[..., Pair]) -> None:
    """Beyond a limited grid the edge is repeated; round the globe the longitudes go on."""
    for periodic in (False, True):
        pair = pair_on_disk(3, members=2, periodic=periodic)
        in_memory = held(pair, CPU)
        streamed = Streamed(pair, Inline((pair.coarse, pair.fine), quiet), 0, 1, pinned=False)
        cases = torch.tensor([5, 0, 2])
        for one, other in zip(in_memory.fields(cases), streamed.fields(cases), strict=True):
            assert torch.equal(one, other)
        coarse, fine = in_memory.fields(cases)
        assert torch.equal(coarse[..., HALO:-HALO, HALO:-HALO], in_memory.coarse[cases])
        assert torch.equal(fine, in_memory.fine[cases // 2])
        beyond = in_memory.coarse[cases][..., -1] if periodic else in_memory.coarse[cases][..., 0]
        assert torch.equal(coarse[..., HALO:-HALO, HALO - 1], beyond)
        assert torch.equal(coarse[..., 0, HALO:-HALO], in_memory.coarse[cases][..., 0, :])


def test_a_split_is_read_in_blocks(pair_on_disk: Callable[..., Pair]) -> None:
    """Put together, the blocks are the whole split, and none is larger than said."""
    pair = pair_on_disk(AT_ONCE + 3, 2, 2, members=2)
    coarse, fine = zip(*blocks(pair), strict=True)
    assert [len(block) for block in coarse] == [2 * AT_ONCE, 6]
    assert [len(block) for block in fine] == [AT_ONCE, 3]
    whole = held(pair, CPU)
    assert torch.equal(torch.cat(coarse), whole.coarse)
    assert torch.equal(torch.cat(fine), whole.fine)
    assert torch.equal(whole.coarse[1::2], whole.coarse[::2] + 1)
    torch.testing.assert_close(whole.coarse[::2], torch.nn.functional.avg_pool2d(whole.fine, 4))


def test_blocks_of_large_fields_have_fewer_times(
    pair_on_disk: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are small together, coarse fields of all members and fine ones, and one at least."""
    pair = pair_on_disk(10, 2, 2, members=2)
    a_time = 4 * 2 * (2 * 2 * 2 + 8 * 8)
    whole = held(pair, CPU)
    for size, expected in ((4 * a_time - 1, [3, 3, 3, 1]), (a_time // 2, [1] * 10)):
        monkeypatch.setattr("hookloop.data.places._BLOCK", size)
        assert [len(fine) for _, fine in blocks(pair)] == expected
        again = held(pair, CPU)
        assert torch.equal(again.coarse, whole.coarse)
        assert torch.equal(again.fine, whole.fine)


def test_gaps_of_a_whole_split_are_counted(pair_on_disk: Callable[..., Pair]) -> None:
    """Values that are not finite are counted over the whole split before it is refused."""
    pair = pair_on_disk(AT_ONCE + 2, 2, 2)
    array = zarr.open_array(pair.fine.parts["b"][0].path, path="b")
    array[0, 0, 0] = array[AT_ONCE + 1, 1, 1] = np.nan
    with pytest.raises(HookloopError, match=rf"variable b: 2 of {(AT_ONCE + 2) * 64} values"):
        held(pair, CPU)


def test_a_pair_takes_what_its_fields_take(pair_on_disk: Callable[..., Pair]) -> None:
    """Four bytes a value, coarse and fine."""
    assert pair_on_disk().nbytes == 10 * 2 * 4 * (6 * 8 + 24 * 32)
