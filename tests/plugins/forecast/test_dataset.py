"""Steps in batches: what, when, in which order, and read from where."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from linear_forecast import SHAPE, LinearModel, six_hourly, write_states
from torch.utils._python_dispatch import TorchDispatchMode

from hookloop.data.places import Place
from hookloop.distributed import Share
from hookloop.errors import HookloopError
from hookloop.plugins.forecast.dataset import StepBatch, StepData
from hookloop.plugins.forecast.options import StatesConfig
from hookloop.plugins.forecast.states import States, open_split
from hookloop.plugins.forecast.stores import Held, open_store

CPU = torch.device("cpu")
NAMES = ["q", "t", "f"]
FIELDS = ("present", "following", "hour", "day", "times")


class Copies(TorchDispatchMode):
    """Counts what is brought from one device to another."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def quiet(event: str, **values: object) -> None:
    raise AssertionError((event, values))


@pytest.fixture
def cleanup() -> ExitStack:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """30 states, of which twelve hours are missing after the twelfth."""
    times = six_hourly(30)
    times[12:] += np.timedelta64(12, "h")
    return write_states(tmp_path / "x.zarr", LinearModel().history(30), times)


def served(
    path: Path, place: Place, cleanup: ExitStack, *, workers: int = 0, seed: int | None = 3
) -> StepData:
    states = States.of(open_split(StatesConfig([str(path)]), NAMES, {}), 360)
    store = open_store(states, place, workers, CPU, quiet, cleanup)
    order = None if seed is None else lambda epoch, order: seed + 10 * epoch + (order == "alternate")
    return StepData(states, store, 5, order, CPU)


def assert_same(found: list[StepBatch], expected: list[StepBatch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.times == other.times).all()
        for name in ("present", "following", "hour", "day"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_batches_are_states_a_step_apart(path: Path, cleanup: ExitStack) -> None:
    """Every pair once, its fields those of the file, its clock that of the second state; none across the gap."""
    fields = xr.open_zarr(path, consolidated=False)
    data = served(path, "ram", cleanup)
    batches = list(data.batches(0))
    assert (data.n_samples, data.n_batches) == (28, 6)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 5, 3]
    times = np.concatenate([batch.times for batch in batches])
    assert sorted(times) == [time for n, time in enumerate(fields.time.values) if n not in (11, 29)]
    assert list(times) != sorted(times)
    for batch in batches:
        for n, time in enumerate(batch.times):
            after = time + np.timedelta64(6, "h")
            for v, name in enumerate(NAMES):
                assert (batch.present[n, v].numpy() == fields[name].sel(time=time).values).all()
                assert (batch.following[n, v].numpy() == fields[name].sel(time=after).values).all()
            assert batch.hour[n].item() == after.astype("M8[h]").astype(int) % 24
            begun = after.astype("M8[Y]").astype("M8[h]")
            assert batch.day[n].item() == (after - begun) / np.timedelta64(1, "D")


def test_epochs_and_orders_are_shuffled_differently(path: Path, cleanup: ExitStack) -> None:
    """Each epoch and the alternate order have their own, which comes again; validation is in order of time."""
    data = served(path, "ram", cleanup)
    orders = [
        np.concatenate([batch.times for batch in data.batches(epoch, order=order)]).tolist()
        for epoch, order in ((0, "main"), (1, "main"), (0, "alternate"), (0, "main"))
    ]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    looked_at = served(path, "ram", cleanup, seed=None)
    times = np.concatenate([batch.times for batch in looked_at.batches(7)])
    assert list(times) == sorted(times)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_is_what_is_held(path: Path, cleanup: ExitStack, workers: int) -> None:
    """The same batches bit for bit, whole epochs and parts, two at once and one left early."""
    expected = list(served(path, "ram", cleanup).batches(2))
    data = served(path, "none", cleanup, workers=workers)
    found = []
    for batch in data.batches(2):
        found.append(batch)
        next(data.batches(2, order="alternate"))
    assert_same(found, expected)
    assert_same(list(data.batches(2, 2, 4)), expected[2:4])
    assert_same(list(data.batches(2, 5)), expected[5:])
    numbers = np.array([3, 3, 0])
    assert torch.equal(data.at(numbers), served(path, "ram", cleanup).at(numbers))


@pytest.mark.parametrize("world", [2, 3, 7])
@pytest.mark.parametrize("place", ["ram", "none"])
def test_ranks_share_each_batch(path: Path, cleanup: ExitStack, place: Place, world: int) -> None:
    """Each has its rows of what one reads, bit for bit, also of a short last batch; who has none has the first."""
    expected = list(served(path, "ram", cleanup).batches(2))
    data = served(path, place, cleanup)
    for rank in range(world):
        view = data.shared(share := Share(rank, world))
        assert (view.n_samples, view.batch_size, view.n_batches) == (28, 5, 6)
        assert view is data.shared(Share(rank, world))
        rows = [list(share.rows(len(batch))) for batch in expected]
        own = [
            StepBatch(*(getattr(batch, name)[here] for name in FIELDS))
            for batch, here in zip(expected, rows, strict=True)
        ]
        found = list(view.batches(2))
        assert_same(found, own)
        assert [list(batch.rows.numbers) for batch in found] == rows
        assert [batch.rows.total for batch in found] == [5, 5, 5, 5, 5, 3]
        late = list(view.batches(2, 3, 5))
        assert_same(late, own[3:5])
        assert [batch.rows.total for batch in late + list(view.batches(2, 5))] == [5, 5, 3]
    assert data.shared(Share()) is data


def test_nothing_before_the_start_is_read(path: Path, cleanup: ExitStack) -> None:
    """A resumed epoch reads no field of the batches before, not even to skip it."""
    late = list(served(path, "none", cleanup).batches(1, 4))
    needed = {time for batch in late for time in batch.times} | {
        time + np.timedelta64(6, "h") for batch in late for time in batch.times
    }
    for n, time in enumerate(xr.open_zarr(path, consolidated=False).time.values):
        if time not in needed:
            zarr.open_array(str(path), path="t")[n] = np.full(SHAPE, np.nan)
    assert_same(list(served(path, "none", cleanup).batches(1, 4)), late)


def test_missing_values_are_loud(path: Path, cleanup: ExitStack) -> None:
    """Counted and placed at once where the split is held, when they are read where it is not."""
    zarr.open_array(str(path), path="q")[4, 2, 1] = np.nan
    message = r"variable q: 1 of .*NaN or infinite, the first at time 2020-01-02T00:00"
    with pytest.raises(HookloopError, match=message):
        served(path, "ram", cleanup)
    with pytest.raises(HookloopError, match=message):
        list(served(path, "none", cleanup).batches(0))


def test_an_epoch_brings_its_order_to_the_fields_once(path: Path) -> None:
    """A device that holds the fields is not waited for in every batch: copies to it are as many for 28 as for 2."""
    meta = torch.device("meta")
    states = States.of(open_split(StatesConfig([str(path)]), NAMES, {}), 360)
    assert states.nbytes == 30 * 3 * 24 * 4
    store = Held(torch.empty(30, 3, *SHAPE, device=meta))
    counts = []
    for batch_size, n_batches in ((14, 2), (1, 28)):
        data = StepData(states, store, batch_size, None, meta)
        with Copies() as copies:
            assert len(list(data.batches(0))) == n_batches
        counts.append(copies.count)
    assert counts[0] == counts[1] > 0


def test_too_large_a_batch_is_refused_in_words_of_forecasts(
    path: Path, cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read together is told, and that batch_size is what to lower: a forecast has no patches."""
    data = served(path, "none", cleanup)
    monkeypatch.setattr("hookloop.data.reading.memory_of_machine", lambda: 2**10)
    with pytest.raises(
        HookloopError, match=r"^5 samples are read together, .*; lower batch_size, or of patches"
    ):
        next(data.batches(0))


def test_a_batch_names_its_times(path: Path, cleanup: ExitStack) -> None:
    """For errors: how many steps, and from when."""
    batch = next(served(path, "ram", cleanup, seed=None).batches(0))
    assert str(batch) == "batch of 5 steps from 2020-01-01T00:00, 2020-01-01T06:00, 2020-01-01T12:00, …"
