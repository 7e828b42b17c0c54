"""Writing while training goes on: what is written, what waits for what, and what is told when it fails."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field

from hookloop import files
from hookloop.core import Run, train
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.snapshot import Snapshots
from hookloop.testing import TinyData, TinyTask, events_of, fake_run
from hookloop.writer import AtOnce, Background, Elsewhere, Files, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SAVE = files.save
WRITERS = pytest.mark.parametrize("make", [AtOnce, Background])


@define(eq=False)
class SlowDisk:
    """Has every write wait until the gate is open, and notes what is written then."""

    gate: threading.Event = field(factory=threading.Event)
    weights: list[float] = field(factory=list)
    writing: int = 0
    most: int = 0
    """The most files that were being written at once."""

    def save(self, state: Mapping[str, object], path: Path, keep_as: Path | None = None) -> None:
        """Wait, then save."""
        self.writing += 1
        self.most = max(self.most, self.writing)
        assert self.gate.wait(30)
        model = state["model"]
        assert isinstance(model, dict)
        self.weights.append(float(model["weight"]))
        SAVE(state, path, keep_as)
        self.writing -= 1


def at(step: int, action: Callable[[], object]) -> object:
    """Does something after one batch, before it is saved."""

    class Acting:
        @hookimpl
        def after_batch(self, run: Run) -> None:
            if run.progress.step == step:
                action()

    return Acting()


def weights_after(n: int) -> list[float]:
    """The tiny weight after each of *n* steps on samples 0, 1, 2 …: halfway to each."""
    found, w = [], 0.0
    for x in range(n):
        w = (w + x) / 2
        found.append(w)
    return found


def tiny(n: int) -> TinyTask:
    """So many batches an epoch, nothing to validate."""
    return TinyTask(data={"train": TinyData(n)})


def told(run: Run, event: str) -> list[dict[str, object]]:
    """The events of that name."""
    return [entry for entry in events_of(run) if entry["event"] == event]


def test_training_goes_on_while_the_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is learnt meanwhile, and yet the file holds the weight of the moment at which it was asked for."""
    disk = SlowDisk()
    monkeypatch.setattr(files, "save", disk.save)
    run = fake_run(tmp_path, at(3, disk.gate.set), Checkpoint(every_n_batches=2), task=tiny(3))
    train(run)
    w = weights_after(3)
    assert disk.weights == [w[1], w[2], w[2]]  # at step 2, before validation, after the epoch
    assert [e["step"] for e in told(run, "checkpoint.saved")] == [2, 3, 3]


def test_without_a_thread_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``asynchronous: false`` has written the file before the next batch is learnt."""
    seen: list[bool] = []

    class Looking:
        @hookimpl
        def before_batch(self, run: Run) -> None:
            seen.append((run.dir / "checkpoints" / "latest.ckpt").exists())

    disk = SlowDisk()
    disk.gate.set()
    monkeypatch.setattr(files, "save", disk.save)
    train(fake_run(tmp_path, Looking(), Checkpoint(every_n_batches=1, asynchronous=False), task=tiny(3)))
    assert seen == [False, True, True]


def test_a_rank_that_does_not_write_asks_all_the_same_whether_it_is_worth_it(tmp_path: Path) -> None:
    """There is no file, and no failure."""
    asked: list[bool] = []
    group = Files(tmp_path, {"latest.ckpt": {"weight": 1.0}}, check=lambda: asked.append(True))
    assert Elsewhere().write(group).result() == {}
    assert asked == [True]
    assert list(tmp_path.iterdir()) == []


def test_the_next_save_waits_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never are two states in memory: a disk slower than training holds it up."""
    disk = SlowDisk()
    monkeypatch.setattr(files, "save", disk.save)
    opening = threading.Timer(0.3, disk.gate.set)
    run = fake_run(tmp_path, at(1, opening.start), Checkpoint(every_n_batches=1), task=tiny(5))
    train(run)
    assert disk.most == 1
    assert disk.weights == [*weights_after(5), weights_after(5)[-1]]


@define(eq=False)
class BrokenDisk:
    """Refuses the writes whose numbers are listed, from 0."""

    refused: Sequence[int]
    name: str = "latest.ckpt"
    """Only this file counts."""
    calls: int = 0

    def save(self, state: Mapping[str, object], path: Path, keep_as: Path | None = None) -> None:
        """Save, or not."""
        if path.name == self.name:
            self.calls += 1
            if self.calls - 1 in self.refused:
                raise OSError(28, "No space left on device")
        SAVE(state, path, keep_as)


def test_an_error_is_told_at_the_next_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs that file only: the run goes on, and the next file is written."""
    monkeypatch.setattr(files, "save", BrokenDisk([0]).save)
    checkpoint = Checkpoint(every_n_batches=2)
    heard: list[int] = []

    class Listening:
        @hookimpl
        def before_batch(self, run: Run) -> None:
            if run.progress.step == 2:
                saving = checkpoint._saving
                assert saving is not None
                saving.outcome.exception(timeout=30)
            heard.append(len(told(run, "checkpoint.failed")))

    run = fake_run(tmp_path, Listening(), checkpoint, task=tiny(6))
    train(run)
    assert heard == [0, 0, 0, 1, 1, 1]
    (failed,) = told(run, "checkpoint.failed")
    assert (failed["level"], failed["reason"]) == ("warning", "No space left on device")
    assert [e["step"] for e in told(run, "checkpoint.saved")] == [4, 6, 6]


def test_a_failure_of_any_kind_is_told_and_ends_nothing_but_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the writer is not swallowed with its thread, and does not end days of training before they are done."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(files, "save", broken)
    run = fake_run(tmp_path, Checkpoint(every_n_batches=2), task=tiny(5))
    with pytest.raises(HookloopError, match="step 5 could not be saved"):
        train(run)
    assert run.progress.step == 5
    assert {entry["reason"] for entry in told(run, "checkpoint.failed")} == {
        "ZeroDivisionError('on purpose')"
    }


def test_without_memory_for_a_copy_training_waits_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once, and every file is written."""

    def full(*_: object) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(Snapshots, "take", full)
    run = fake_run(tmp_path, Checkpoint(every_n_batches=2), task=tiny(5))
    train(run)
    assert [entry["reason"] for entry in told(run, "checkpoint.synchronous")] == ["not enough memory"]
    assert [entry["step"] for entry in told(run, "checkpoint.saved")] == [2, 4, 5, 5]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_best_that_cannot_be_written_is_no_best(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asynchronous: bool,  # noqa: FBT001
) -> None:
    """The best is the one whose file is there, in ``latest.ckpt`` too, and the next as good one is written."""

    class Scores:
        @hookimpl
        def infer(self, run: Run) -> Mapping[str, float]:
            return {"inference/error": (3.0, 2.0, 2.5)[run.progress.epoch]}

    monkeypatch.setattr(files, "save", BrokenDisk([1], "best_inference.ckpt").save)
    checkpoint = Checkpoint(asynchronous=asynchronous)
    train(fake_run(tmp_path, Scores(), checkpoint, task=tiny(1), max_epochs=3))
    assert checkpoint.bests == {"best_inference": 2.5}
    for name in ("latest", "best_inference"):
        state = files.load(tmp_path / "checkpoints" / f"{name}.ckpt")
        assert state["best"] == {"best_inference": 2.5}
    assert state["progress"] == {"epoch": 3, "batch": 0, "step": 3}


def test_no_state_speaks_of_a_best_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the best cannot be written, ``latest.ckpt`` stays that of before the evaluation."""

    class Scores:
        @hookimpl
        def infer(self) -> Mapping[str, float]:
            return {"inference/error": 1.0}

    class Killed:
        @hookimpl
        def before_epoch(self, run: Run) -> None:
            if run.progress.epoch:
                raise KeyboardInterrupt

    monkeypatch.setattr(files, "save", BrokenDisk([0], "best_inference.ckpt").save)
    run = fake_run(tmp_path, Scores(), Killed(), Checkpoint(), task=tiny(2), max_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    state = files.load(tmp_path / "checkpoints" / "latest.ckpt")
    assert (state["best"], state["progress"]) == ({}, {"epoch": 0, "batch": 2, "step": 2})


def test_both_ways_write_the_same(tmp_path: Path) -> None:
    """Every file holds the same state, whoever wrote it."""
    for name, asynchronous in (("a", True), ("b", False)):
        checkpoint = Checkpoint(every_n_batches=2, epochs="::1", ema_epochs="::1", asynchronous=asynchronous)
        task = TinyTask(data={"train": TinyData(5), "validation": TinyData(2)}, noise=1.0)
        train(fake_run(tmp_path / name, EMA(decay=0.5), checkpoint, task=task, max_epochs=3))
    found, expected = (sorted((tmp_path / name / "checkpoints").iterdir()) for name in "ab")
    assert [path.name for path in found] == [path.name for path in expected]
    for one, other in zip(found, expected, strict=True):
        states = [files.load(path) for path in (one, other)]
        for state in states:
            state.pop("config")
        assert_same(*states)


def assert_same(one: object, other: object) -> None:
    """Nested states are equal bit by bit."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def test_a_last_state_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop waits for the writer: a run whose last state is lost does not claim success."""
    monkeypatch.setattr(files, "save", BrokenDisk(range(1, 99)).save)
    run = fake_run(tmp_path, Checkpoint(every_n_batches=2), task=tiny(5))
    with pytest.raises(HookloopError, match="step 5 could not be saved"):
        train(run)
    assert files.load(tmp_path / "checkpoints" / "latest.ckpt")["progress"] == {
        "epoch": 0,
        "batch": 2,
        "step": 2,
    }


@WRITERS
def test_a_writer_reports_what_it_could_not_write(tmp_path: Path, make: Callable[[], Writer]) -> None:
    """By file name; the others are there, and ``latest.ckpt`` only if what it tells of is."""
    (tmp_path / "best.ckpt").mkdir()
    states = {name: {"x": torch.ones(2)} for name in ("epoch_0001.ckpt", "best.ckpt", "latest.ckpt")}
    writer = make()
    outcome = writer.write(Files(tmp_path, states, conditions=["best.ckpt"])).result()
    writer.close()
    assert set(outcome) == {"best.ckpt", "latest.ckpt"}
    assert "best.ckpt" in str(outcome["latest.ckpt"])
    assert files.load(tmp_path / "epoch_0001.ckpt")["x"].tolist() == [1.0, 1.0]  # type: ignore[attr-defined]


@WRITERS
def test_preparing_writes_nothing(tmp_path: Path, make: Callable[[], Writer]) -> None:
    """It only gets the memory."""
    writer = make()
    assert writer.prepare(Files(tmp_path, {"latest.ckpt": {"x": torch.ones(2)}})).result() == {}
    writer.close()
    assert list(tmp_path.iterdir()) == []
