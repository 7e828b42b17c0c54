from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from attrs import define, evolve

from hookloop.diffusion.noise import Rows
from hookloop.distributed import Share
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.dataset import HALO, PairBatch, PairedData, upsample
from hookloop.plugins.downscaling.pairs import Pair
from hookloop.plugins.downscaling.patches import PatchConfig
from hookloop.plugins.downscaling.stores import Held, held, open_store

CPU = torch.device("cpu")
FACTOR = 4
TENSORS = ("coarse", "fine", "corner", "hour", "day")


def seed_of(epoch: int, order: str) -> int:
    """Give a seed for each epoch and order."""
    return 2 * epoch + (order == "alternate")


@define
class Split:
    """A pair on disk, its fields in memory, and how to serve them."""

    pair: Pair
    held: Held

    def data(
        self,
        patch: PatchConfig | None = None,
        batch_size: int = 4,
        order_seed: Callable[[int, str], int] | None = seed_of,
    ) -> PairedData:
        """Serve it on the CPU."""
        return PairedData(self.pair, self.held, patch or PatchConfig(), batch_size, order_seed, CPU)


@pytest.fixture
def split(pair_on_disk: Callable[..., Pair]) -> Split:
    """Ten random fields of 24×32, three-hourly from 31 January on, and their block means."""
    pair = pair_on_disk()
    return Split(pair, held(pair, CPU))


def assert_equal(one: PairBatch, other: PairBatch) -> None:
    """Two batches are the same, bit for bit."""
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    np.testing.assert_array_equal(one.times, other.times)


@pytest.mark.parametrize("corner", [(0, 0), (3, 4), (1, 2), (0, 4), (3, 0)])
def test_interpolating_a_patch_is_interpolating_the_field(split: Split, corner: tuple[int, int]) -> None:
    """Inside and at every edge of the domain, a patch with its halo gives the crop of the whole field."""
    data = split.data(PatchConfig(coarse=(3, 4), per_sample=200), batch_size=2000)
    (batch,) = data.batches(0)
    whole = F.interpolate(split.held.coarse, scale_factor=FACTOR, mode="bicubic", align_corners=False)
    number = (batch.corner == torch.tensor(corner) * FACTOR).all(1).nonzero()[0].item()
    t = int(np.flatnonzero(split.pair.times == batch.times[number])[0])
    i, j = (c * FACTOR for c in corner)
    expected = whole[t, :, i : i + 12, j : j + 16]
    torch.testing.assert_close(upsample(batch.coarse, FACTOR)[number], expected, atol=1e-5, rtol=0)


def test_coarse_patch_is_the_mean_of_the_fine_one(split: Split) -> None:
    """Coarse without its halo and fine are the same place and time."""
    data = split.data(PatchConfig(coarse=(2, 3), per_sample=5))
    for batch in data.batches(3):
        torch.testing.assert_close(data.inside(batch.coarse), F.avg_pool2d(batch.fine, FACTOR))
        assert batch.coarse.shape[-2:] == (2 + 2 * HALO, 3 + 2 * HALO)
        assert batch.corner.device == CPU


def test_corner_says_where_the_patch_lies(split: Split) -> None:
    """The corner and the time of each patch find it in the fine field."""
    for batch in split.data(PatchConfig(coarse=(2, 3))).batches(1):
        for n, (i, j) in enumerate(batch.corner.tolist()):
            t = int(np.flatnonzero(split.pair.times == batch.times[n])[0])
            assert torch.equal(batch.fine[n], split.held.fine[t, :, i : i + 8, j : j + 12])


def test_hour_and_day_are_those_of_the_times(split: Split) -> None:
    """Three-hourly times from 31 January on: hours 0, 3, … and days 30, 30.125, …."""
    (batch,) = split.data(batch_size=10, order_seed=None).batches(0)
    np.testing.assert_allclose(batch.hour, [0, 3, 6, 9, 12, 15, 18, 21, 0, 3])
    np.testing.assert_allclose(batch.day, 30 + np.arange(10) / 8, rtol=1e-6)


def test_lengths(split: Split) -> None:
    """Ten times with three patches each are 30 samples, eight batches of four, the last one short."""
    data = split.data(PatchConfig(coarse=(2, 2), per_sample=3))
    assert (data.n_cases, data.n_samples, data.batch_size, data.n_batches) == (10, 30, 4, 8)
    assert [len(batch) for batch in data.batches(0)] == [4] * 7 + [2]


@pytest.mark.parametrize("random_offset", [True, False])
@pytest.mark.parametrize("order", ["main", "alternate"])
def test_starting_later_is_the_tail(split: Split, order: str, *, random_offset: bool) -> None:
    """Batches from k to stop are those batches of the whole epoch, bit for bit."""
    patch = PatchConfig(coarse=(2, 3), per_sample=3, random_offset=random_offset)
    whole = list(split.data(patch).batches(7, order=order))
    tail = list(split.data(patch).batches(7, start=3, stop=6, order=order))
    assert len(tail) == 3
    for one, other in zip(whole[3:6], tail, strict=True):
        assert_equal(one, other)
    assert list(split.data(patch).batches(7, start=8)) == []


@pytest.mark.parametrize("other", [(4, "alternate"), (5, "main")])
def test_another_order_has_the_same_times(split: Split, other: tuple[int, str]) -> None:
    """The alternate order and the next epoch are other shuffles of the same samples."""
    data = split.data(PatchConfig(coarse=(2, 3), per_sample=3))

    def times(epoch: int, order: str) -> list[np.datetime64]:
        return [time for batch in data.batches(epoch, order=order) for time in batch.times]

    assert times(4, "main") != times(*other)
    assert Counter(times(4, "main")) == Counter(times(*other)) == dict.fromkeys(data.pair.times, 3)


def test_patches_of_a_time_are_apart(split: Split) -> None:
    """The shuffle is over all patches: those of one time do not come in a row."""
    data = split.data(PatchConfig(coarse=(2, 2), per_sample=4), batch_size=40)
    (batch,) = data.batches(0)
    together = (batch.times[1:] == batch.times[:-1]).mean()
    assert together < 0.3  # 3/39 are expected of a shuffle; grouped by time it would be 30/39


def test_validation_is_the_fields_in_order(split: Split) -> None:
    """Without a seed the samples are the whole fields in the order of time, in every epoch."""
    data = split.data(order_seed=None)
    for epoch in (0, 3):
        batches = list(data.batches(epoch))
        np.testing.assert_array_equal(np.concatenate([b.times for b in batches]), split.pair.times)
        assert torch.equal(torch.cat([b.fine for b in batches]), split.held.fine)


def test_validation_with_patches_is_the_same_each_epoch(split: Split) -> None:
    """Without a seed patches are drawn once and for all."""
    data = split.data(PatchConfig(coarse=(2, 3), per_sample=2), order_seed=None)
    for one, other in zip(data.batches(0), data.batches(5), strict=True):
        assert_equal(one, other)


def test_tiles_cover_each_field(split: Split) -> None:
    """Without random offsets, as many patches a sample as there are tiles cover every field once."""
    data = split.data(PatchConfig(coarse=(3, 4), per_sample=4, random_offset=False), 100, order_seed=None)
    (batch,) = data.batches(0)
    covered = torch.zeros(split.held.fine.shape[0], *split.held.fine.shape[-2:])
    for time, (i, j) in zip(batch.times, batch.corner.tolist(), strict=True):
        covered[int(np.flatnonzero(split.pair.times == time)[0]), i : i + 12, j : j + 16] += 1
    assert (covered == 1).all()


def test_tiles_take_turns(split: Split) -> None:
    """Without random offsets and with one patch a sample, a time shows another tile in the next epoch."""
    data = split.data(PatchConfig(coarse=(3, 4), random_offset=False), 100)
    seen = set()
    for epoch in range(4):
        (batch,) = data.batches(epoch)
        first = int(np.flatnonzero(batch.times == data.pair.times[0])[0])
        seen.add(tuple(batch.corner[first].tolist()))
    assert seen == {(0, 0), (0, 16), (12, 0), (12, 16)}


def test_cases_are_whole_fields(split: Split) -> None:
    """Cases are whole fields by number, whatever patches the split is trained on."""
    batch = split.data(PatchConfig(coarse=(2, 2))).cases(range(7, 9))
    assert torch.equal(batch.fine, split.held.fine[7:9])
    assert torch.equal(batch.coarse[..., 2:-2, 2:-2], split.held.coarse[7:9])
    assert torch.equal(batch.coarse[..., 0, 2:-2], split.held.coarse[7:9, :, 0])
    assert batch.corner.tolist() == [[0, 0], [0, 0]]
    np.testing.assert_array_equal(batch.times, split.pair.times[7:9])


def test_a_plan_is_drawn_once(split: Split) -> None:
    """Going on in an epoch, and looking at another order in between, draw no plan again; a third forgets one."""
    drawn: list[tuple[int, str]] = []

    def seed(epoch: int, order: str) -> int:
        drawn.append((epoch, order))
        return seed_of(epoch, order)

    data = split.data(PatchConfig(coarse=(2, 3), per_sample=3), order_seed=seed)
    epochs = [
        (0, 0, "main"),
        (0, 3, "main"),
        (0, 0, "alternate"),
        (0, 4, "main"),
        (1, 0, "main"),
        (0, 5, "main"),
    ]
    for epoch, start, order in epochs:
        again = split.data(PatchConfig(coarse=(2, 3), per_sample=3))
        for one, other in zip(
            data.batches(epoch, start, order=order), again.batches(epoch, start, order=order), strict=True
        ):
            assert_equal(one, other)
    assert drawn == [(0, "main"), (0, "alternate"), (1, "main")]
    next(data.batches(0, order="alternate"))
    assert drawn[3:] == [(0, "alternate")]


@pytest.mark.parametrize("world", [2, 3, 9])
@pytest.mark.parametrize("order_seed", [seed_of, None])
def test_ranks_share_each_batch(
    split: Split, world: int, order_seed: Callable[[int, str], int] | None
) -> None:
    """Each has its rows of what one reads, bit for bit, also of a short last batch; who has none has the first."""
    data = split.data(PatchConfig(coarse=(2, 3), per_sample=3), order_seed=order_seed)
    whole = list(data.batches(2))
    assert [len(batch) for batch in whole] == [4] * 7 + [2]
    for rank in range(world):
        view = data.shared(share := Share(rank, world))
        assert (view.n_samples, view.batch_size, view.n_batches) == (30, 4, 8)
        for one, other in zip(view.batches(2), whole, strict=True):
            assert one.rows == Rows(share.rows(len(other)), len(other))
            here = list(one.rows.numbers)
            own = {name: getattr(other, name)[here] for name in TENSORS}
            assert_equal(one, evolve(other, times=other.times[here], **own))


def test_ranks_go_on_where_others_stopped(split: Split) -> None:
    """On 1, 2, 4 and 1 ranks, two batches each, an epoch shows what one rank shows, in its order."""
    expected = [batch.times.tolist() for batch in split.data(PatchConfig(per_sample=3)).batches(1)]
    found: list[list[int]] = []
    for world, start in ((1, 0), (2, 2), (4, 4), (1, 6)):
        data = split.data(PatchConfig(per_sample=3))
        for together in zip(
            *(data.shared(Share(rank, world)).batches(1, start, start + 2) for rank in range(world)),
            strict=True,
        ):
            here = {
                row: time
                for b in together
                for row, time in zip(b.rows.numbers, b.times.tolist(), strict=True)
            }
            found.append([here[row] for row in range(together[0].rows.total)])
    assert found == expected


def test_a_share_is_asked_for_often(split: Split) -> None:
    """It is the same view each time, of the same store, and draws no plan twice; one rank has the data itself."""
    drawn: list[tuple[int, str]] = []

    def seed(epoch: int, order: str) -> int:
        drawn.append((epoch, order))
        return seed_of(epoch, order)

    data = split.data(order_seed=seed)
    assert data.shared(Share()) is data
    share = Share(1, 2)
    for start in range(data.n_batches):
        assert data.shared(share) is data.shared(Share(1, 2))
        assert data.shared(share).store is data.store
        next(data.shared(share).batches(0, start))
    assert drawn == [(0, "main")]
    assert_equal(data.shared(share).cases([3, 1]), data.cases([3, 1]))


def test_labels_are_the_times(split: Split) -> None:
    """To the minute, whatever their order."""
    assert split.data().labels([9, 0]) == ["2020-02-01T03:00", "2020-01-31T00:00"]


def test_labels_of_an_ensemble_name_the_member(pair_on_disk: Callable[..., Pair]) -> None:
    """Of three members, case 5 is the last member of the second time."""
    pair = pair_on_disk(members=3)
    data = Split(pair, held(pair, CPU)).data()
    assert data.labels([0, 5]) == [
        "2020-01-31T00:00, coarse member 0",
        "2020-01-31T03:00, coarse member 2",
    ]


def test_patch_too_large(split: Split) -> None:
    """A patch that does not fit is refused before anything is served."""
    with pytest.raises(HookloopError, match="7 x 2 coarse cells is larger than the grid of 6 x 8"):
        split.data(PatchConfig(coarse=(7, 2)))


def test_batch_names_its_times(split: Split) -> None:
    """In an error a batch says how large it is and when it is."""
    batch = split.data(order_seed=None, batch_size=2).cases([0, 1])
    assert str(batch) == "batch of 2 patches at 2020-01-31T00:00, 2020-01-31T03:00"
    assert str(split.data(batch_size=10).cases(range(5))).endswith("06:00, …")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cache", ["ram", "device", "none"])
def test_gpu_gets_the_same_batches(split: Split, cache: Literal["ram", "device", "none"]) -> None:
    """From its own memory, from pinned memory or from files, a GPU gets what the CPU gets, in the same order."""
    patch, cuda = PatchConfig(coarse=(2, 3), per_sample=3), torch.device("cuda")
    with ExitStack() as cleanup:
        store = open_store(split.pair, cache, 2, 1, cuda, print, cleanup)
        there = PairedData(split.pair, store, patch, 4, seed_of, cuda)
        for one, other in zip(there.batches(2), split.data(patch).batches(2), strict=True):
            assert one.fine.device.type == "cuda"
            back = {name: getattr(one, name).cpu() for name in TENSORS}
            assert_equal(evolve(one, **back), other)
        for one, other in zip([there.cases([3, 1])], [split.data(patch).cases([3, 1])], strict=True):
            assert torch.equal(one.coarse.cpu(), other.coarse)
            assert torch.equal(one.fine.cpu(), other.fine)
