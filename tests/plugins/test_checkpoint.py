from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field
from torch import nn

from hookloop import files
from hookloop.core import Run, train
from hookloop.errors import Diverged, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.schedules import ConstantLR
from hookloop.settings import epochs_in
from hookloop.testing import LifeCycle, Recorder, TinyData, TinyTask, events_of, fake_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hookloop.yamlfile import Plain

HEAD = {"format", "progress", "config", "best", "model"}
WHOLE = HEAD | {"optimization", "trained", "plugins", "evaluated", "learned"}


class TestLifeCycle(LifeCycle):
    plugin = Checkpoint


class TestLifeCycleOfEverything(LifeCycle):
    plugin = Checkpoint
    options = {"every_n_batches": 3, "epochs": "::2", "save_best_inference_epochs": True}


class TestLifeCycleOfNothing(LifeCycle):
    plugin = Checkpoint
    options = {"save": False}


@define(eq=False)
class Scores:
    """Answers ``inference/error``, and ``val/score``, epoch by epoch."""

    errors: Sequence[float]

    @hookimpl
    def infer(self, run: Run) -> Mapping[str, float]:
        """The epoch's score."""
        error = self.errors[run.progress.epoch]
        return {"inference/error": error, "val/score": -error}


@define(eq=False)
class StopAt:
    """Asks the run to stop after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop there."""
        if run.progress.step == self.step:
            run.stop("enough")


@define(eq=False)
class FailAt:
    """Fails after a batch, before it is saved."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Fail there."""
        if run.progress.step == self.step:
            raise RuntimeError("broken")


@define(eq=False)
class FullDisk:
    """Makes the checkpoints' directory unable to take anything between two steps."""

    first: int
    last: int

    @hookimpl
    def before_batch(self, run: Run) -> None:
        """Put a file where the directory was, and back."""
        there, away = run.dir / "checkpoints", run.dir / "away"
        step = run.progress.step + 1
        if step == self.first:
            there.rename(away)
            there.touch()
        elif step == self.last + 1:
            there.unlink()
            away.rename(there)


WRITERS = pytest.mark.parametrize("asynchronous", [True, False])


def short(n_samples: int = 2) -> TinyTask:
    """The tiny task with so many batches an epoch."""
    return TinyTask(data={"train": TinyData(n_samples), "validation": TinyData(2)})


def names(directory: Path) -> set[str]:
    """The files in a run's checkpoints."""
    return {path.name for path in (directory / "checkpoints").iterdir()}


def read(directory: Path, name: str) -> dict[str, object]:
    """One of them, as anybody would read it."""
    loaded: dict[str, object] = torch.load(directory / "checkpoints" / name, weights_only=True)
    return loaded


def weight_in(directory: Path, name: str) -> float:
    """The weight that one of them holds."""
    model = read(directory, name)["model"]
    assert isinstance(model, dict)
    return float(model["weight"])


def told(run: Run, event: str) -> list[dict[str, object]]:
    """The events of that name."""
    return [entry for entry in events_of(run) if entry["event"] == event]


def steps_saved(run: Run, name: str = "latest.ckpt") -> list[object]:
    """The steps at which a file was written."""
    return [e["step"] for e in told(run, "checkpoint.saved") if str(e["path"]).endswith(f"/{name}")]


def damage(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@WRITERS
def test_the_table_file_by_file(tmp_path: Path, asynchronous: bool) -> None:  # noqa: FBT001
    """Every file of a run holds the weights and the keys that the contract says."""
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    checkpoint = Checkpoint(
        epochs="2:", ema_epochs="::2", save_best_inference_epochs=True, asynchronous=asynchronous
    )
    run = fake_run(tmp_path, ema, Scores([3.0, 2.0, 5.0]), checkpoint, task=short(), max_epochs=3)
    train(run)
    raw, averages = [], []
    w = a = 0.0
    for _ in range(3):
        for x in range(2):
            w = (w + x) / 2
            a = (a + w) / 2
        raw.append(w)
        averages.append(a)
    validated = [((a - 0) ** 2 + (a - 1) ** 2) / 2 for a in averages]
    assert validated[0] > validated[1] < validated[2] or validated[1] > validated[2]
    best = min(range(3), key=lambda i: validated[i])
    expected = {
        "latest.ckpt": (raw[2], WHOLE, 3),
        "previous.ckpt": (raw[2], WHOLE, 2),  # before the last validation
        "best.ckpt": (averages[best], HEAD, best + 1),
        "best_inference.ckpt": (averages[1], HEAD, 2),
        "best_inference_0001.ckpt": (averages[0], HEAD, 1),
        "best_inference_0002.ckpt": (averages[1], HEAD, 2),
        "epoch_0002.ckpt": (raw[1], WHOLE, 2),
        "epoch_0003.ckpt": (raw[2], WHOLE, 3),
        "ema_epoch_0002.ckpt": (averages[1], HEAD | {"average"}, 2),
    }
    assert names(tmp_path) == set(expected)
    for name, (weight, keys, epoch) in expected.items():
        state = read(tmp_path, name)
        assert set(state) == keys, name
        assert weight_in(tmp_path, name) == weight, name
        assert isinstance(state["progress"], dict)
        assert state["progress"]["epoch"] == epoch, name
        files.verify(tmp_path / "checkpoints" / name)


def test_what_is_in_the_whole_state(tmp_path: Path) -> None:
    """Progress, configuration, best values, and the state of every plugin that has one, by name."""
    run = fake_run(tmp_path, EMA(decay=0.5), Scores([3.0]), Checkpoint(), task=short())
    train(run)
    state = read(tmp_path, "latest.ckpt")
    assert state["format"] == 1
    assert state["progress"] == {"epoch": 1, "batch": 0, "step": 2}
    assert state["config"] == run.document
    assert isinstance(state["best"], dict)
    assert state["best"]["best_inference"] == 3.0
    assert isinstance(state["plugins"], dict)
    assert set(state["plugins"]) == {"ema", "checkpoint", "optimizationplugin"}
    assert state["plugins"]["ema"]["updates"] == 2


@define(eq=False)
class DescribedTask(TinyTask):
    """The tiny task with something to tell."""

    @property
    def facts(self) -> Mapping[str, Plain]:
        """Plain data."""
        return {"factor": 4, "units": {"t2m": "K"}}


def test_facts_of_the_task_are_in_every_file(tmp_path: Path) -> None:
    """Averages and best weights too; a task that tells none leaves none."""
    for name, task in (("told", DescribedTask()), ("silent", TinyTask())):
        plugin = Checkpoint(epochs="::1", ema_epochs="::1")
        train(fake_run(tmp_path / name, EMA(decay=0.5), plugin, task=task))
    assert {"latest.ckpt", "best.ckpt", "epoch_0001.ckpt", "ema_epoch_0001.ckpt"} <= names(tmp_path / "told")
    for name in names(tmp_path / "told"):
        assert read(tmp_path / "told", name)["task"] == {"factor": 4, "units": {"t2m": "K"}}, name
    for name in names(tmp_path / "silent"):
        assert "task" not in read(tmp_path / "silent", name), name


def test_a_checkpoint_without_facts_is_gone_on_with(tmp_path: Path) -> None:
    """As an older hookloop wrote them."""
    train(fake_run(tmp_path, Checkpoint(), max_epochs=1))
    run = fake_run(tmp_path, Checkpoint(), task=DescribedTask(), max_epochs=2)
    train(run)
    assert run.progress.epoch == 2
    assert told(run, "run.resumed")
    assert "task" in read(tmp_path, "latest.ckpt")


@pytest.mark.parametrize("validate", [True, False])
def test_best_holds_what_was_validated(tmp_path: Path, validate: bool) -> None:  # noqa: FBT001
    """Averages if they were lent to validation, else raw weights; ``ema_epoch`` holds averages anyway."""
    ema = EMA(decay=0.5, faster_decay_at_start=False, validate=validate)
    train(fake_run(tmp_path, ema, Checkpoint(ema_epochs="::1"), task=short()))
    assert weight_in(tmp_path, "best.ckpt") == (0.25 if validate else 0.5)
    assert weight_in(tmp_path, "ema_epoch_0001.ckpt") == 0.25
    assert weight_in(tmp_path, "latest.ckpt") == 0.5


def test_averages_of_nobody_are_refused(tmp_path: Path) -> None:
    """Asked for averaged epochs without a plugin that averages, the run says so before it trains."""
    with pytest.raises(HookloopError, match=r"checkpoint\.ema_epochs.*list ema"):
        train(fake_run(tmp_path, Checkpoint(ema_epochs="::1")))


def best_after(tmp_path: Path, *errors: float) -> tuple[list[object], float, Run]:
    """Train through *errors*: the steps at which ``best_inference.ckpt`` was written, and the best."""
    run = fake_run(
        tmp_path, Scores(errors), checkpoint := Checkpoint(), task=short(1), max_epochs=len(errors)
    )
    train(run)
    return steps_saved(run, "best_inference.ckpt"), checkpoint.bests.get("best_inference", math.nan), run


def test_ties_take_the_later(tmp_path: Path) -> None:
    """A value as good as the best replaces it."""
    assert best_after(tmp_path, 2.0, 2.0, 3.0, 2.0)[:2] == ([1, 2, 4], 2.0)


def test_nan_never_improves(tmp_path: Path) -> None:
    """NaN is warned about and ignored, first, last or in between."""
    steps, best, run = best_after(tmp_path, math.nan, 3.0, math.nan, 2.0, math.nan)
    assert (steps, best) == ([2, 4], 2.0)
    assert [e["metric"] for e in told(run, "metric.undefined")] == ["inference/error"] * 3


def test_only_nan_writes_no_best(tmp_path: Path) -> None:
    """With nothing but NaN there is no best."""
    steps, best, _ = best_after(tmp_path, math.nan, math.nan)
    assert steps == []
    assert math.isnan(best)
    assert "best_inference.ckpt" not in names(tmp_path)


def test_infinity_is_as_good_as_nothing(tmp_path: Path) -> None:
    """An infinite error is a number: the first one is the best so far."""
    assert best_after(tmp_path, math.inf, 1.0, math.inf)[:2] == ([1, 2], 1.0)


def test_best_of_any_metric(tmp_path: Path) -> None:
    """``best`` maps file stems to metric keys; a key that nobody answers writes nothing; the bests are logged."""
    checkpoint = Checkpoint(best={"best_score": "val/score", "best_none": "val/none"})
    run = fake_run(
        tmp_path, Scores([1.0, 3.0, 2.0]), recorder := Recorder(), checkpoint, task=short(), max_epochs=3
    )
    train(run)
    assert names(tmp_path) == {"latest.ckpt", "previous.ckpt", "best_score.ckpt"}
    assert recorder.metrics("best/best_score") == {2: -1.0, 4: -3.0, 6: -3.0}
    assert steps_saved(run, "best_score.ckpt") == [2, 4]


def test_a_best_of_nothing_is_told_once(tmp_path: Path) -> None:
    """A metric that nobody measures is named with what there is; one of an inference that is not due is not."""
    checkpoint = Checkpoint(best={"best": "val/los", "best_inference": "inference/error"})
    run = fake_run(tmp_path, checkpoint, task=short(), max_epochs=2)
    train(run)
    (entry,) = told(run, "metric.unmeasured")
    assert entry["metric"] == "val/los"
    assert "did you mean 'val/loss'?" in str(entry["hint"])


def test_a_change_that_is_no_option_is_not_allowed(tmp_path: Path) -> None:
    """A misspelt option in ``allow_changes`` is told when it would matter."""
    train(fake_run(tmp_path, Checkpoint(), StopAt(1), task=short()))
    run = fake_run(tmp_path, Checkpoint(), task=short(), allow_changes=["optimizationplugin.lrr"])
    with pytest.raises(HookloopError, match=r"allow_changes: optimizationplugin\.lrr: no option .* mean"):
        train(run)


def test_slices_are_pythons_own() -> None:
    """Every text of a slice gives the epochs that Python's slicing gives; without a text there are none."""
    draw = random.Random(0)  # noqa: S311

    def number(*choices: object) -> str:
        return str(draw.choice(["", *choices]))

    for _ in range(500):
        parts = [number(*range(-12, 13)), number(*range(-12, 13)), number(-3, -2, -1, 1, 2, 3, 5)]
        text = ":".join(parts[: draw.choice([2, 3])])
        Checkpoint(epochs=text)
        assert list(epochs_in(text, 9)) == eval(f"list(range(10))[{text}]"), text  # noqa: S307
    assert list(epochs_in(None, 9)) == []


@pytest.mark.parametrize("text", ["", "3", "::0", "a:", "-:", ":-", "::-", "1:2:3:4", "1 : 2", "::+1"])
def test_what_is_no_slice_is_refused(text: str) -> None:
    """A text that Python would not take as a slice, or that is none, is refused at once."""
    for option in ("epochs", "ema_epochs"):
        with pytest.raises(ValueError, match="slice of epochs"):
            Checkpoint(**{option: text})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stem",
    [
        *["", "latest", "previous", "damaged", "../evil", "a/b", ".hidden"],
        *["epoch_0001", "ema_epoch_0001", "best_inference_0001"],
    ],
)
def test_what_is_no_file_name_is_refused(stem: str) -> None:
    """A stem cannot leave the directory or take the place of the state."""
    with pytest.raises(ValueError, match="file names"):
        Checkpoint(best={stem: "val/loss"})


@pytest.mark.parametrize("epochs", ["::2", "-2:", "1::2", "::-1", "0:1"])
def test_epochs_kept(tmp_path: Path, epochs: str) -> None:
    """The epochs of the slice are kept; there is no epoch 0."""
    train(fake_run(tmp_path, Checkpoint(epochs=epochs), task=short(1), max_epochs=5))
    kept = {int(name[6:10]) for name in names(tmp_path) if name.startswith("epoch_")}
    assert kept == set(range(6)[slice(*[int(p) if p else None for p in epochs.split(":")])]) - {0}


def test_save_false_writes_nothing(tmp_path: Path) -> None:
    """Nothing is written or read, and the run says so; the bests are still logged."""
    train(fake_run(tmp_path, Checkpoint(), task=short()))
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    checkpoint = Checkpoint(save=False, epochs="::1", every_n_batches=1)
    run = fake_run(tmp_path, checkpoint, recorder := Recorder(), task=short())
    train(run)
    assert run.progress.step == 2
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before
    assert told(run, "checkpoint.disabled")
    assert recorder.metrics("best/best") != {}
    train(fake_run(tmp_path / "new", Checkpoint(save=False), task=short()))
    assert not (tmp_path / "new").exists()


def test_when_the_latest_is_saved(tmp_path: Path) -> None:
    """Every so many batches, before validation, at the end of an epoch, never twice for one progress."""
    run = fake_run(tmp_path, Checkpoint(every_n_batches=2), task=short(5), max_epochs=2)
    train(run)
    assert steps_saved(run) == [2, 4, 5, 5, 6, 8, 10, 10]


def test_zero_batches_saves_with_the_epochs_only(tmp_path: Path) -> None:
    """``every_n_batches: 0`` saves in no batch."""
    run = fake_run(tmp_path, Checkpoint(every_n_batches=0), task=short(3))
    train(run)
    assert steps_saved(run) == [3, 3]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_stop_saves_exactly_once(tmp_path: Path, step: int) -> None:
    """Wherever a run is stopped its last state is saved, once, also where it was just saved anyway."""
    run = fake_run(tmp_path, Checkpoint(every_n_batches=2), StopAt(step), task=short(4))
    train(run)
    assert steps_saved(run) == [*range(2, step, 2), step]


def test_nothing_is_saved_after_an_exception(tmp_path: Path) -> None:
    """After a crash there is the last state before it and nothing later."""
    run = fake_run(tmp_path, FailAt(4), Checkpoint(every_n_batches=2), task=short(5))
    with pytest.raises(RuntimeError, match="broken"):
        train(run)
    assert steps_saved(run) == [2]
    assert read(tmp_path, "latest.ckpt")["progress"] == {"epoch": 0, "batch": 2, "step": 2}


def test_nothing_is_saved_of_no_training(tmp_path: Path) -> None:
    """Validating before any training, and stopping there, saves nothing."""
    run = fake_run(tmp_path, Checkpoint(), task=short(), evaluate_before_training=True)
    run.stop("enough")
    train(run)
    assert names(tmp_path) == set()


def test_killed_while_validating(tmp_path: Path) -> None:
    """What a run killed while validating had trained is saved: it trains no batch, validates once and goes on."""

    class Killed:
        @hookimpl
        def validate(self, run: Run) -> None:
            raise KeyboardInterrupt

    first = fake_run(tmp_path, Checkpoint(), Killed(), task=short(3), max_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(first)
    assert steps_saved(first) == [3]
    second = fake_run(tmp_path, Checkpoint(), recorder := Recorder(), task=short(3), max_epochs=2)
    train(second)
    epoch = ["before_epoch", *["before_batch", "train_step", "after_batch"] * 3]
    after = ["validate", "infer", "log", "after_evaluation", "after_epoch", "log", "log"]
    assert recorder.names == [
        *["make_optimization", "before_run", "before_epoch", *after],
        *[*epoch, *after, "shutdown"],
    ]


def test_previous_is_used_when_the_latest_is_damaged(tmp_path: Path) -> None:
    """The one before it is resumed from, with a warning; the damaged one is set aside and never becomes previous."""
    train(fake_run(tmp_path, Checkpoint(every_n_batches=1), StopAt(3), task=short(4)))
    damage(tmp_path / "checkpoints" / "latest.ckpt")
    run = fake_run(tmp_path, Checkpoint(every_n_batches=1), FailAt(4), task=short(4))
    with pytest.raises(RuntimeError, match="broken"):
        train(run)
    (warning,) = told(run, "checkpoint.damaged")
    assert warning["level"] == "warning"
    assert "latest.ckpt" in str(warning["reason"])
    (resumed,) = told(run, "run.resumed")
    assert (str(resumed["path"]).rpartition("/")[2], resumed["step"]) == ("previous.ckpt", 2)
    assert names(tmp_path) == {"damaged.ckpt", "latest.ckpt", "previous.ckpt"}
    for name, step in (("latest.ckpt", 3), ("previous.ckpt", 2)):
        assert files.load(tmp_path / "checkpoints" / name)["progress"] == {
            "epoch": 0,
            "batch": step,
            "step": step,
        }


def test_previous_is_used_when_the_latest_is_missing(tmp_path: Path) -> None:
    """A latest that is gone is no reason to start anew."""
    train(fake_run(tmp_path, Checkpoint(every_n_batches=1), StopAt(3), task=short(4)))
    (tmp_path / "checkpoints" / "latest.ckpt").unlink()
    run = fake_run(tmp_path, Checkpoint(), task=short(4))
    train(run)
    assert [e["step"] for e in told(run, "run.resumed")] == [2]
    assert run.progress.step == 4


def test_both_damaged_is_the_users_to_solve(tmp_path: Path) -> None:
    """The run never starts anew over damaged files: it names both, and leaves them where they are."""
    train(fake_run(tmp_path, Checkpoint(every_n_batches=1), StopAt(3), task=short(4)))
    for name in ("latest.ckpt", "previous.ckpt"):
        damage(tmp_path / "checkpoints" / name)
    for _ in range(2):
        with pytest.raises(HookloopError, match=r"latest\.ckpt.*previous\.ckpt.*move them away"):
            train(fake_run(tmp_path, Checkpoint(), task=short(4)))
    assert names(tmp_path) == {"latest.ckpt", "previous.ckpt"}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (nn.Linear(1, 1), r"weight is \(\) there, \(1, 1\) here"),
        (nn.ParameterDict({"w": torch.zeros(())}), "w is missing; weight is not in this model"),
        (
            nn.ParameterDict({**{f"{c}": torch.zeros(()) for c in "abcdef"}, "weight": torch.zeros(())}),
            "a is missing; b is missing; c is missing$",
        ),
    ],
)
def test_a_checkpoint_of_another_model(tmp_path: Path, other: nn.Module, named: str) -> None:
    """The first keys that differ are named, with their shapes."""
    train(fake_run(tmp_path, Checkpoint(), task=short()))
    task = short()
    task.model = other
    with pytest.raises(HookloopError, match=f"another model: .*{named}"):
        train(fake_run(tmp_path, Checkpoint(), task=task))


def sgd(lr: float = 0.25, warmup: int = 0) -> OptimizationPlugin:
    """Plain gradient descent."""
    return OptimizationPlugin(optimizer="SGD", lr=lr, scheduler=ConstantLR(warmup=warmup))


def test_a_changed_option_is_refused_by_name(tmp_path: Path) -> None:
    """What changes what is learnt is named, with both values, nested options and the seed too."""
    train(fake_run(tmp_path, sgd(), Checkpoint(), StopAt(1), task=short()))
    with pytest.raises(HookloopError) as refused:
        train(fake_run(tmp_path, sgd(0.125, warmup=3), Checkpoint(), task=short(), seed=7))
    message = str(refused.value)
    assert "optimizationplugin.lr (0.25 there, 0.125 now)" in message
    assert "optimizationplugin.scheduler.warmup (0 there, 3 now)" in message
    assert "run.seed (0 there, 7 now)" in message
    assert "run.allow_changes" in message
    assert "\n" not in message


def test_an_allowed_change_counts(tmp_path: Path) -> None:
    """Listed options may change, and the new value is the one that is used."""
    train(fake_run(tmp_path, sgd(), Checkpoint(), StopAt(1), task=short()))
    allow = {"allow_changes": ["optimizationplugin.lr"]}
    with pytest.raises(HookloopError, match=r"run\.seed"):
        train(fake_run(tmp_path, sgd(0.125), Checkpoint(), task=short(), seed=7, **allow))
    run = fake_run(tmp_path, sgd(0.125), Checkpoint(), task=short(), **allow)
    train(run)
    assert run.optimization.learning_rate == 0.125
    assert run.task.model.get_parameter("weight").item() == 0.25  # 0 + 0.125 · 2 · (1 - 0)


def test_an_allowed_weight_decay_counts(tmp_path: Path) -> None:
    """A new weight decay is not undone by the optimizer state of the checkpoint."""
    train(fake_run(tmp_path, OptimizationPlugin(weight_decay=0.5), Checkpoint(), StopAt(1), task=short()))
    allow = {"allow_changes": ["optimizationplugin.weight_decay"]}
    run = fake_run(tmp_path, OptimizationPlugin(weight_decay=0.25), Checkpoint(), task=short(), **allow)
    train(run)
    assert run.optimization.optimizer.param_groups[0]["weight_decay"] == 0.25


def test_options_that_change_nothing_learnt_may_change(tmp_path: Path) -> None:
    """More epochs, another cadence: the run goes on."""
    train(fake_run(tmp_path, Checkpoint(), task=short()))
    run = fake_run(tmp_path, Checkpoint(every_n_batches=1), task=short(), max_epochs=3)
    train(run)
    assert run.progress.epoch == 3
    assert steps_saved(run)[0] == 3


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    """Run again, it trains and writes nothing."""
    train(fake_run(tmp_path, Checkpoint(), task=short()))
    run = fake_run(tmp_path, Checkpoint(), recorder := Recorder(), task=short())
    train(run)
    assert steps_saved(run) == []
    assert recorder.names == ["make_optimization", "before_run", "shutdown"]


def test_weights_alone_are_no_state(tmp_path: Path) -> None:
    """Somebody's best weights in the place of the latest are refused in one line."""
    train(fake_run(tmp_path, Checkpoint(), task=short()))
    (tmp_path / "checkpoints" / "best.ckpt").replace(tmp_path / "checkpoints" / "latest.ckpt")
    with pytest.raises(HookloopError, match=r"latest\.ckpt: holds weights only"):
        train(fake_run(tmp_path, Checkpoint(), task=short()))


def test_another_format_is_refused(tmp_path: Path) -> None:
    """A file of a later hookloop is not guessed at."""
    train(fake_run(tmp_path, Checkpoint(), task=short()))
    path = tmp_path / "checkpoints" / "latest.ckpt"
    files.save({**files.load(path), "format": 99}, path)
    with pytest.raises(HookloopError, match="format 99, expected 1"):
        train(fake_run(tmp_path, Checkpoint(), task=short()))


def test_a_full_disk_costs_that_checkpoint_only(tmp_path: Path) -> None:
    """What cannot be written is warned about, training goes on, and the next one is written."""
    checkpoint = Checkpoint(every_n_batches=1, asynchronous=False)
    run = fake_run(tmp_path, FullDisk(2, 3), checkpoint, task=short(5))
    train(run)
    failed = told(run, "checkpoint.failed")
    assert [e["level"] for e in failed] == ["warning"] * 2
    assert steps_saved(run) == [1, 4, 5, 5]
    assert run.progress.epoch == 1


def test_a_full_disk_at_the_end_is_an_error(tmp_path: Path) -> None:
    """A run whose last state is lost does not claim success; what was saved before is intact."""
    checkpoint = Checkpoint(every_n_batches=1, asynchronous=False)
    run = fake_run(tmp_path, FullDisk(3, 9), StopAt(4), checkpoint, task=short(5))
    with pytest.raises(HookloopError, match="step 4 could not be saved"):
        train(run)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "away").rename(tmp_path / "checkpoints")
    again = fake_run(tmp_path, Checkpoint(), task=short(5))
    train(again)
    assert [e["step"] for e in told(again, "run.resumed")] == [2]


REALLY_FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from torch import nn
from hookloop.core import train
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.testing import TinyData, TinyModel, TinyTask, events_of, fake_run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

class Full:
    @hookimpl
    def before_batch(self, run):
        limit = 500 if run.progress.step in (2, 3) else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

task = TinyTask(data={"train": TinyData(6)})
run = fake_run(Path(sys.argv[1]), Full(), Checkpoint(every_n_batches=1, asynchronous=False), task=task)
train(run)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(["File too large" in e["reason"] for e in events_of(run) if e["event"] == "checkpoint.failed"])
print([e["step"] for e in events_of(run) if e["event"] == "checkpoint.saved"])
"""


def test_a_really_full_disk(tmp_path: Path) -> None:
    """The system refuses the bytes of two checkpoints: two warnings, the others are there, nothing is left over."""
    done = subprocess.run(
        [sys.executable, "-c", REALLY_FULL, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines() == ["[True, True]", "[1, 2, 5, 6, 6]"]
    assert names(tmp_path) == {"latest.ckpt", "previous.ckpt"}


def test_stale_temporary_files_are_removed(tmp_path: Path) -> None:
    """What a killed process left half written is removed at the start, nothing else is."""
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    for name in (".latest.ckpt.123.tmp", ".best.ckpt.77.tmp", "notes.tmp", "mine.ckpt"):
        (directory / name).touch()
    train(fake_run(tmp_path, Checkpoint(), StopAt(1), task=short()))
    assert names(tmp_path) == {"notes.tmp", "mine.ckpt", "latest.ckpt"}


@define(eq=False)
class Exploding(TinyTask):
    """Its loss is not finite from a step on."""

    calls: int = field(default=0, init=False)
    value: float = math.nan
    at: int = 4

    def loss(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The tiny loss, then something else."""
        self.calls += 1
        loss = TinyTask.loss(self, batch)["loss"]
        return {"loss": loss * self.value if self.calls == self.at else loss}


def exploding(n_samples: int, value: float = math.nan, at: int = 4) -> Exploding:
    """Such a task."""
    return Exploding(data={"train": TinyData(n_samples), "validation": TinyData(1)}, value=value, at=at)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, value: float) -> None:
    """The run ends as a crash, naming step and last good checkpoint, which is resumed from."""
    run = fake_run(tmp_path, Checkpoint(every_n_batches=3, epochs="::1"), task=exploding(7, value))
    with pytest.raises(Diverged, match=r"step 6: .*latest\.ckpt") as diverged:
        train(run)
    assert diverged.value.code == 1
    assert steps_saved(run) == [3]
    assert names(tmp_path) == {"latest.ckpt"}
    again = fake_run(tmp_path, Checkpoint(), task=short(7))
    train(again)
    assert again.progress.epoch == 1


def test_epochs_without_validation_are_guarded_too(tmp_path: Path) -> None:
    """No file of any kind gets weights that are not finite, also where nothing is validated."""
    checkpoint = Checkpoint(epochs="::1", ema_epochs="::1")
    run = fake_run(
        tmp_path, EMA(), checkpoint, task=exploding(3, at=2), max_epochs=3, validate_every="3 epochs"
    )
    with pytest.raises(Diverged):
        train(run)
    assert names(tmp_path) == set()


def test_gradients_that_wait_are_guarded_too(tmp_path: Path) -> None:
    """A gradient that is not finite but waits for its update would end every resumed run: it is not saved."""
    optimization = OptimizationPlugin(optimizer="SGD", lr=0.25, accumulate=4)
    run = fake_run(tmp_path, optimization, Checkpoint(every_n_batches=1), task=exploding(8, at=3))
    with pytest.raises(Diverged):
        train(run)
    assert steps_saved(run) == [1, 2]


def test_a_plugin_that_has_learnt_is_not_dropped_in_passing(tmp_path: Path) -> None:
    """A forgotten plugin would take what it has learnt with it: only by its name in ``allow_changes``."""
    train(fake_run(tmp_path, EMA(), Checkpoint(), StopAt(1), task=short(3)))
    with pytest.raises(HookloopError, match=r"ema \(listed there, not now: .*allow_changes"):
        train(fake_run(tmp_path, Checkpoint(), task=short(3)))
    dropped = fake_run(tmp_path, Checkpoint(), StopAt(2), task=short(3), allow_changes=["ema"])
    train(dropped)
    assert [e["plugin"] for e in told(dropped, "plugin.dropped")] == ["ema"]


def test_a_plugin_may_join(tmp_path: Path) -> None:
    """A plugin new to the checkpoint starts anew, with a warning."""
    train(fake_run(tmp_path, Checkpoint(), StopAt(2), task=short(3)))
    fresh = fake_run(tmp_path, ema := EMA(), Checkpoint(), task=short(3))
    train(fresh)
    assert [e["plugin"] for e in told(fresh, "plugin.without_state")] == ["ema"]
    assert ema.updates == 1
