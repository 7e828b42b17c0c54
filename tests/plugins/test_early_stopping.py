from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from attrs import define

from hookloop import files
from hookloop.core import Run, train
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.early_stopping import EarlyStopping
from hookloop.testing import LifeCycle, Recorder, TinyData, TinyTask, _assert_same, events_of, fake_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class TestLifeCycle(LifeCycle):
    plugin = EarlyStopping


class TestLifeCycleOfEverything(LifeCycle):
    plugin = EarlyStopping
    options = {"metric": "val/loss", "patience": 1, "min_delta": 0.5, "stop_below": -1}


@define(eq=False)
class Scores:
    """Answers ``score``: one value for every two batches learnt."""

    values: Sequence[float]

    @hookimpl
    def validate(self, run: Run) -> dict[str, float]:
        """The value of this step."""
        return {"score": self.values[run.progress.step // 2 - 1]}


@define(eq=False)
class StopAt:
    """Asks the run to stop after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop there."""
        if run.progress.step == self.step:
            run.stop("enough", 75)


def scored_run(
    directory: Path, values: Sequence[float], *extra: object, samples: int = 2, **options: object
) -> Run:
    """As many evaluations as there are values, two batches apart; options of the plugin."""
    data = {"train": TinyData(samples), "validation": TinyData(2)}
    plugin = EarlyStopping(metric="score", **options)  # type: ignore[arg-type]
    return fake_run(
        directory,
        plugin,
        Scores(values),
        *extra,
        Checkpoint(),
        task=TinyTask(data=data, noise=1.0),
        max_epochs=2 * len(values) // samples,
        validate_every="2 batches",
    )


def stopped_after(directory: Path, values: Sequence[float], **options: object) -> int | None:
    """After which evaluation it stops, as a success; ``None`` if it does not."""
    run = scored_run(directory, values, **options)
    train(run)
    if run.stopping is None:
        assert run.progress.step == 2 * len(values)
        return None
    assert run.stopping.code == 0
    return run.progress.step // 2


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([3.0, 2.0, 2.0, 2.0, 2.0], {"patience": 2}, 4),
        ([3.0, 2.0, 2.5, 1.0, 1.5, 1.0], {"patience": 2}, 6),
        ([3.0, 2.0, 2.5, 1.0, 1.5], {"patience": 2}, None),
        ([5.0, 4.0, 3.0], {"patience": 1}, None),
        ([5.0, 5.0, 3.0], {"patience": 1}, 2),
        ([5.0, 4.9, 4.8, 4.7], {"patience": 2, "min_delta": 0.5}, 3),
        ([5.0, 4.75, 4.25, 4.0], {"patience": 2, "min_delta": 0.5}, None),
        ([math.nan, math.nan, 1.0], {"patience": 2}, 2),
        ([2.0, math.nan, 1.0, math.nan, math.nan], {"patience": 2}, 5),
        ([math.inf, math.inf, 1.0], {"patience": 2}, 2),
        ([5.0, 0.9, 0.5], {"stop_below": 1.0}, 2),
        ([5.0, 1.0, 2.0], {"stop_below": 1.0}, None),
        ([5.0, 4.9, 4.8], {"stop_below": 4.85, "min_delta": 1.0}, 3),
    ],
)
def test_when_it_stops(
    tmp_path: Path, values: list[float], options: dict[str, float], expected: int | None
) -> None:
    """After so many evaluations in a row that do not better the best by more than min_delta, or below a floor."""
    assert stopped_after(tmp_path, values, **options) == expected


def test_it_says_why(tmp_path: Path) -> None:
    """The metric, its best and what to change."""
    run = scored_run(tmp_path, [0.5, 1.0, 1.0], patience=2)
    train(run)
    assert run.stopping is not None
    assert run.stopping.why == (
        "score has not improved on 0.5 for 2 evaluations: raise early_stopping.patience to go on"
    )
    run = scored_run(tmp_path / "margin", [0.5, 0.25], patience=1, min_delta=0.5)
    train(run)
    assert run.stopping is not None
    assert "has not improved on 0.5 by more than 0.5 for 1 evaluations" in run.stopping.why
    run = scored_run(tmp_path / "floor", [0.25], stop_below=1.0)
    train(run)
    assert run.stopping is not None
    assert run.stopping.why == "score is 0.25, below early_stopping.stop_below, 1"


def test_nan_is_told(tmp_path: Path) -> None:
    """With the metric."""
    run = scored_run(tmp_path, [math.nan, 1.0])
    train(run)
    assert [e["metric"] for e in events_of(run) if e["event"] == "metric.undefined"] == ["score"]


def test_a_metric_that_nobody_measures(tmp_path: Path) -> None:
    """The option and the metrics there are."""
    run = fake_run(tmp_path, EarlyStopping(metric="val/los"))
    with pytest.raises(HookloopError, match=r"early_stopping\.metric: val/los .* did you mean 'val/loss'"):
        train(run)


def test_an_inference_that_is_not_due_does_not_count(tmp_path: Path) -> None:
    """Scores of every second epoch are compared with one another; the epochs between are no evidence."""

    class Seldom:
        @hookimpl
        def infer(self, run: Run) -> dict[str, float] | None:
            epoch = run.progress.epoch + 1
            return {"inference/error": float(epoch)} if epoch % 2 == 0 else None

    stopping = EarlyStopping(metric="inference/error", patience=2)
    run = fake_run(tmp_path, Seldom(), stopping, task=TinyTask(data={"train": TinyData(1)}), max_epochs=20)
    train(run)
    assert run.progress.epoch == 6  # the best is that of epoch 2; 4 and 6 are worse


def test_the_epoch_it_stops_after_is_whole(tmp_path: Path) -> None:
    """Logged, told to everybody and saved; no epoch begins after it."""
    run = scored_run(tmp_path, [1.0, 1.0, 1.0], recorder := Recorder(), patience=1)
    train(run)
    assert recorder.names.count("after_epoch") == recorder.names.count("before_epoch") == 2
    assert files.load(tmp_path / "checkpoints" / "latest.ckpt")["progress"] == {
        "epoch": 2,
        "batch": 0,
        "step": 4,
    }


@pytest.mark.parametrize("samples", [2, 10])
def test_the_same_command_stops_again(tmp_path: Path, samples: int) -> None:
    """Before anything is learnt, as a success, at the end and in the middle of an epoch; again and again."""
    values = [1.0, 2.0, 2.0, 0.5, 0.5]
    train(scored_run(tmp_path, values, patience=2, samples=samples))
    for _ in range(2):
        run = scored_run(tmp_path, values, recorder := Recorder(), patience=2, samples=samples)
        train(run)
        assert run.progress.step == 6
        assert "train_step" not in recorder.names
        assert run.stopping is not None
        assert run.stopping.code == 0
        assert run.stopping.why.startswith("score has not improved on 1 for 2 evaluations")


@pytest.mark.parametrize("samples", [2, 10])
@pytest.mark.parametrize(
    ("before", "now"), [({"patience": 2}, {"patience": 3}), ({"stop_below": 3.0}, {"stop_below": 0.1})]
)
def test_with_more_patience_it_goes_on(
    tmp_path: Path, samples: int, before: dict[str, float], now: dict[str, float]
) -> None:
    """It ends as a run that had it from the start."""
    values = [3.0, 4.0, 4.0, 2.5, 2.5]
    train(scored_run(tmp_path / "a", values, samples=samples, **before))
    assert files.load(tmp_path / "a" / "checkpoints" / "latest.ckpt")["progress"] != final(samples, values)
    for name in "ab":
        train(scored_run(tmp_path / name, values, samples=samples, **now))
    assert last_state(tmp_path / "a")["progress"] == final(samples, values)
    _assert_same(last_state(tmp_path / "a"), last_state(tmp_path / "b"))


def final(samples: int, values: Sequence[float]) -> dict[str, int]:
    """The progress of a whole run."""
    return {"epoch": 2 * len(values) // samples, "batch": 0, "step": 2 * len(values)}


def last_state(directory: Path) -> dict[str, object]:
    """What ``latest.ckpt`` holds, but for the configuration."""
    state = files.load(directory / "checkpoints" / "latest.ckpt")
    del state["config"]
    return state


@pytest.mark.parametrize("samples", [2, 10])
@pytest.mark.parametrize("step", range(1, 8))
def test_a_stop_in_between_changes_nothing(tmp_path: Path, step: int, samples: int) -> None:
    """Stopped after any batch and resumed, it stops where a run in one go does, with the same state."""
    values = [3.0, 2.0, 2.5, 2.5, 1.0]
    train(scored_run(tmp_path / "a", values, patience=2, samples=samples))
    train(scored_run(tmp_path / "b", values, StopAt(step), patience=2, samples=samples))
    train(run := scored_run(tmp_path / "b", values, patience=2, samples=samples))
    assert run.progress.step == 8
    _assert_same(last_state(tmp_path / "b"), last_state(tmp_path / "a"))


def test_another_metric_is_not_compared_with_the_old_one(tmp_path: Path) -> None:
    """A change is refused; where it is allowed the new metric begins anew."""
    train(scored_run(tmp_path, [0.1, 0.2], patience=2))
    plugin = EarlyStopping(metric="val/loss", patience=1)
    task = TinyTask(data={"train": TinyData(2), "validation": TinyData(2)}, noise=1.0)
    with pytest.raises(HookloopError, match=r"earlystopping\.metric \('score' there, 'val/loss' now\)"):
        train(fake_run(tmp_path, plugin, Checkpoint(), task=task, max_epochs=3))
    allow = {"allow_changes": ["earlystopping.metric"], "max_epochs": 3}
    run = fake_run(tmp_path, plugin, Checkpoint(), task=task, **allow)
    train(run)
    assert run.progress.epoch == 3
    assert 0.1 < plugin.best < math.inf


@pytest.mark.parametrize(
    "option", [{"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.inf}, {"stop_below": math.nan}]
)
def test_impossible_options_are_refused(option: dict[str, float]) -> None:
    """When the plugin is constructed."""
    with pytest.raises(ValueError, match=r"."):
        EarlyStopping(**option)  # type: ignore[arg-type]
