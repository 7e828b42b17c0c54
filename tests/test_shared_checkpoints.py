from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from attrs import define, field
from ranks import on_ranks
from shared_learning import Learnt, StopAfter, learn, refused, shared_run

from hookloop import files, sharding
from hookloop.core import prepare, train
from hookloop.distributed import Ranks
from hookloop.errors import Diverged
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.settings import doc
from hookloop.snapshot import copied, tensors_in
from hookloop.testing import _assert_same, events_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hookloop.core import Run

STRATEGIES = pytest.mark.parametrize("strategy", ["replicate", "fully_shard"])


def checkpoint_of(run: Run) -> Checkpoint:
    """The plugin."""
    (found,) = (plugin for plugin in run.plugins.values() if isinstance(plugin, Checkpoint))
    return found


def kept(ranks: Ranks, directory: Path, strategy: str) -> Learnt:
    """Keep everything that can be kept, in the background."""
    run = shared_run(ranks, directory, strategy=strategy, optimization={"accumulate": 2}, max_epochs=2)
    plugin = checkpoint_of(run)
    plugin.every_n_batches, plugin.asynchronous = 2, True
    plugin.epochs = plugin.ema_epochs = ":"
    train(run)
    return Learnt([], [], {}, {})


@STRATEGIES
def test_rank_0_writes_what_one_process_would(tmp_path: Path, strategy: str) -> None:
    """The same files with the same keys, and numbers that are equal to rounding; gradients by rank where they wait."""
    kept(Ranks(), tmp_path / "one", "replicate")
    on_ranks(2, kept, tmp_path / "two", strategy)
    names = sorted(path.name for path in (tmp_path / "one/checkpoints").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two/checkpoints").iterdir())
    assert {"best.ckpt", "latest.ckpt", "previous.ckpt", "epoch_0001.ckpt", "ema_epoch_0002.ckpt"} <= {*names}
    for name in names:
        one, two = (files.load(tmp_path / place / "checkpoints" / name) for place in ("one", "two"))
        assert one.keys() == two.keys()
        torch.testing.assert_close(two["model"], one["model"], rtol=1e-10, atol=1e-12)
        for part in ("plugins", "optimization"):
            assert weigh(two.get(part, {})) == pytest.approx(weigh(one.get(part, {})), rel=1e-9)


def gathers(ranks: Ranks, directory: Path) -> list[str]:
    """Keep an epoch and ``latest.ckpt``, and count the shards put together for each group of files."""
    run = shared_run(ranks, directory, strategy="fully_shard")
    plugin = checkpoint_of(run)
    plugin.epochs, plugin.best, plugin.asynchronous = ":", {}, True
    prepare(run)
    asked: list[str] = []
    whole = sharding.whole

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        asked.append("whole")
        return whole(tensor)

    sharding.whole = counted
    try:
        for number, batch in enumerate(run.data["train"].batches(0)):
            run.progress.batch = number
            run.hook.train_step(run=run, batch=batch)
        run.progress.step, run.progress.epoch, run.progress.batch = 3, 1, 0
        plugin.after_epoch(run, {})
    finally:
        sharding.whole = whole
        run.cleanup.close()
    shards = [t for t in tensors_in(plugin._rest(run)) if sharding.is_shard(t)]
    return [f"{len(asked)} of {len(shards)}"]


def test_a_state_is_gathered_once_for_all_its_files(tmp_path: Path) -> None:
    """The epoch's file and ``latest.ckpt`` hold the same; getting ready asks nobody."""
    for (counted,) in on_ranks(2, gathers, tmp_path):
        asked, shards = counted.split(" of ")
        assert asked == shards != "0"
    one, other = (files.load(tmp_path / "checkpoints" / name) for name in ("epoch_0001.ckpt", "latest.ckpt"))
    _assert_same(one, other)


def held(ranks: Ranks, directory: Path) -> tuple[object, object]:
    """What is to be written of shards, before and after two more batches."""
    run = shared_run(ranks, directory, strategy="fully_shard")
    prepare(run)
    strategy, taken, before = run.optimization.strategy, {}, {}
    for number, batch in enumerate(run.data["train"].batches(0)):
        run.progress.batch = number
        run.hook.train_step(run=run, batch=batch)
        if number == 0:
            taken, ready = strategy.copying().take(strategy.gathered(checkpoint_of(run)._rest(run)))
            ready()
            before = copied(taken)
    run.cleanup.close()
    return before, taken


def test_what_is_gathered_is_a_copy(tmp_path: Path) -> None:
    """The writer need not make another: training changes nothing of it, counters of steps neither."""
    before, after = on_ranks(2, held, tmp_path)[0]
    _assert_same(before, after)


@define(eq=False)
class Ledger:
    """Has a state, born when the run begins, on rank 0 only."""

    leader_only: ClassVar[bool] = True
    colour: str = field(default="red", metadata=doc("of the ink", learned=True))
    lines: list[int] | None = field(default=None, init=False)

    @hookimpl
    def before_run(self) -> None:
        """Begin."""
        self.lines = []

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Write a line."""
        self._open().append(run.progress.step)

    def _open(self) -> list[int]:
        assert self.lines is not None
        return self.lines

    def state_dict(self) -> dict[str, object]:
        """Give the lines."""
        return {"lines": list(self._open())}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on."""
        self._open().extend(state["lines"])  # type: ignore[arg-type]

    def learned_values(self, run: Run) -> Mapping[str, object]:
        """What only rank 0 knows."""
        return {"opened": self._open() is not None}

    def averaged_weights(self, model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
        """None of them, for a file; parts of weights could not be put together by one rank."""
        return {"lines": torch.tensor(self._open())}

    def validation_weights(self, model: torch.nn.Module) -> None:
        """Raw ones."""
        self._open()

    def average_facts(self) -> dict[str, object]:
        """Nothing."""
        return {}


def written_down(
    ranks: Ranks, directory: Path, strategy: str, stop: int | None, colour: str = "red"
) -> list[int] | None:
    """Learn as far as a step with a ledger; its lines."""
    ledger = Ledger(colour)
    stopping = [] if stop is None else [StopAfter(stop)]
    run = shared_run(ranks, directory, ledger, *stopping, strategy=strategy, max_epochs=2)
    checkpoint_of(run).ema_epochs = ":"
    train(run)
    return ledger.lines


@STRATEGIES
def test_the_state_of_a_plugin_of_rank_0_is_kept_there(tmp_path: Path, strategy: str) -> None:
    """Others neither ask it nor give it any, on resume too; but all compare its options."""
    assert on_ranks(2, written_down, tmp_path, strategy, 1) == [[1, 2], None]  # heard a batch later
    for said in on_ranks(2, refused, written_down, tmp_path, strategy, None, "blue"):
        assert "ledger.colour ('red' there, 'blue' now)" in said
    assert on_ranks(2, written_down, tmp_path, strategy, None) == [[1, 2, 3, 4, 5, 6], None]
    (latest,) = (tmp_path / "checkpoints").glob("latest.ckpt")
    assert files.load(latest)["plugins"]["ledger"] == {"lines": [1, 2, 3, 4, 5, 6]}  # type: ignore[index]


def weigh(state: object) -> float:
    """Add up all tensors of a state but gradients that wait."""
    if isinstance(state, torch.Tensor):
        return float(state.abs().sum())
    if isinstance(state, dict):
        return sum(weigh(value) for key, value in state.items() if "gradients" not in str(key))
    return sum(map(weigh, state)) if isinstance(state, list | tuple) else 0.0


def without_space(ranks: Ranks, directory: Path, strategy: str, fails: range) -> tuple[list[str], list[int]]:
    """Save after every batch, where writes of the numbers *fails* meet a full disk; what is told, and each try."""
    calls: list[int] = []
    save = files.save

    def saving(state: Mapping[str, object], path: Path, keep_as: Path | None = None) -> None:
        calls.append(len(calls))
        if calls[-1] in fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path, keep_as)

    run = shared_run(ranks, directory, strategy=strategy, max_epochs=2)
    checkpoint_of(run).every_n_batches = 1
    files.save = saving
    try:
        train(run)
    finally:
        files.save = save
    return [str(event["event"]) for event in events_of(run)], calls


@STRATEGIES
@pytest.mark.parametrize("first", [0, 2, 4])
def test_ranks_stay_together_where_a_write_fails(tmp_path: Path, strategy: str, first: int) -> None:
    """Two writes fail, of the best too; training goes on on all ranks, and the end is saved as without that."""
    one, other = on_ranks(2, without_space, tmp_path / "bad", strategy, range(first, first + 2))
    assert one[0].count("checkpoint.failed") == 2
    assert "checkpoint.saved" in one[0]
    assert not {"checkpoint.failed", "checkpoint.saved"} & {*other[0]}
    assert other[1] == []
    on_ranks(2, without_space, tmp_path / "good", strategy, range(0))
    bad, good = (files.load(tmp_path / name / "checkpoints/latest.ckpt") for name in ("bad", "good"))
    _assert_same(
        {key: bad[key] for key in bad if key != "config"}, {key: good[key] for key in good if key != "config"}
    )


@STRATEGIES
def test_a_state_that_cannot_be_saved_at_the_end_is_an_error_of_rank_0(tmp_path: Path, strategy: str) -> None:
    """It says so, and the other does not wait for ever."""
    one, other = on_ranks(2, refused, without_space, tmp_path, strategy, range(100))
    assert "the state at step 6 could not be saved" in one
    assert other == ""


@define(eq=False)
class Spoil:
    """Makes what rank 1 holds NaN: its part of the weights, or its waiting gradients."""

    @hookimpl(tryfirst=True)
    def after_batch(self, run: Run) -> None:
        """After the first batch."""
        from hookloop.sharding import own_part

        if run.ranks.rank == 1:
            own_part(next(p.grad for p in run.optimization.parameters if p.grad is not None)).fill_(torch.nan)


def spoilt(ranks: Ranks, directory: Path, strategy: str) -> str:
    """Save what is not finite on one rank only."""
    run = shared_run(ranks, directory, Spoil(), strategy=strategy, optimization={"accumulate": 2})
    checkpoint_of(run).every_n_batches = 1
    with pytest.raises(Diverged) as caught:
        train(run)
    return str(caught.value)


@STRATEGIES
def test_what_is_not_finite_on_one_rank_is_saved_on_none(tmp_path: Path, strategy: str) -> None:
    """All of them end with the same error, and there is no file."""
    one, other = on_ranks(2, spoilt, tmp_path, strategy)
    assert one == other
    assert one.startswith("step 1: the weights are not finite")
    assert not (tmp_path / "checkpoints/latest.ckpt").exists()


def resumed(ranks: Ranks, first: Path, second: Path) -> int:
    """Go on, with rank 0 in one directory and rank 1 in another; the step it goes on from."""
    run = shared_run(ranks, first if ranks.leads else second)
    prepare(run)
    run.cleanup.close()
    return run.progress.step


def test_ranks_go_on_from_the_same_file(tmp_path: Path) -> None:
    """One that finds another file says so, and so does one that finds none."""
    for name, stop in (("a", 2), ("b", 1)):
        learn(Ranks(), tmp_path / name, stop)
    assert on_ranks(2, resumed, tmp_path / "a", tmp_path / "a") == [2, 2]
    for other in ("b", "c"):
        one, two = on_ranks(2, refused, resumed, tmp_path / "a", tmp_path / other)
        assert one == ""
        assert re.search(r"rank 1 finds .*choose a --dir that all hosts share", two)


def test_ranks_go_on_from_the_file_before_a_damaged_one(tmp_path: Path) -> None:
    """Rank 0 decides, and sets it aside."""
    for stop in (2, 3):
        learn(Ranks(), tmp_path, stop)
    latest = tmp_path / "checkpoints/latest.ckpt"
    latest.write_bytes(latest.read_bytes()[:-30])
    assert on_ranks(2, resumed, tmp_path, tmp_path) == [2, 2]
    assert not latest.exists()
    assert (tmp_path / "checkpoints/damaged.ckpt").exists()
