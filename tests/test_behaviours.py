"""What users of ACE's Trainer rely on, behaviour by behaviour, held to here in one place.

The numbers are those of the list of behaviours that the documentation of hookloop's origins keeps; what belongs
to several processes or to the data is tested where that is.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field

from hookloop import files
from hookloop.core import Run, train
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.jsonl import Jsonl
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.plugins.progress import ProgressReport
from hookloop.plugins.train_evaluation import TrainEvaluation
from hookloop.testing import LEARNING_RATE, Recorder, TinyData, TinyTask, fake_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from hookloop.task import Order


@define(eq=False)
class Noted:
    """Samples 0, 1, 2 …, in another order each epoch, and a note of what was asked for and what was handed out."""

    n_samples: int = 8
    batch_size: int = 1
    asked: list[tuple[int, int]] = field(factory=list)
    given: list[tuple[int, int]] = field(factory=list)
    """Epoch and sample."""

    @property
    def n_batches(self) -> int:
        """One sample a batch."""
        return self.n_samples

    def order(self, epoch: int, order: str = "main") -> list[int]:
        """The samples of an epoch."""
        draw = torch.Generator().manual_seed(10 * epoch + (order == "main"))
        return torch.randperm(self.n_samples, generator=draw).tolist()

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[Tensor]:
        """One by one."""
        if order == "main":
            self.asked.append((epoch, start))
        for sample in self.order(epoch, order)[start:stop]:
            if order == "main":
                self.given.append((epoch, sample))
            yield torch.tensor([float(sample)])


@define(eq=False)
class Scores:
    """Answers ``inference/error`` epoch by epoch."""

    errors: Sequence[float]

    @hookimpl
    def infer(self, run: Run) -> Mapping[str, float]:
        """The epoch's error."""
        return {"inference/error": self.errors[run.progress.epoch]}


def doing(hook: str, step: int, action: str) -> object:
    """At one step, in one hook: ``stop`` asks for it, ``fail`` raises."""

    class Acting:
        @hookimpl(specname=hook)
        def act(self, run: Run) -> None:
            if run.progress.step == step and action == "stop":
                run.stop("preempted", 143)
            elif run.progress.step == step:
                raise RuntimeError("broken")

    return Acting()


def tiny(n: int = 4) -> TinyTask:
    """So many batches an epoch, two to validate."""
    return TinyTask(data={"train": TinyData(n), "validation": TinyData(2)})


def noted(data: Noted) -> TinyTask:
    """The tiny task on noted data."""
    return TinyTask(data={"train": data, "validation": TinyData(2)})


def names(directory: Path) -> set[str]:
    """The files in a run's checkpoints."""
    return {path.name for path in (directory / "checkpoints").iterdir()}


def state(directory: Path, name: str = "latest") -> dict[str, object]:
    """What is in one of them."""
    return files.load(directory / "checkpoints" / f"{name}.ckpt")


def weight(run: Run) -> float:
    """The one weight."""
    return run.task.model.get_parameter("weight").item()


def test_01_which_files_a_run_leaves(tmp_path: Path) -> None:
    """Latest, best and best inference; epochs of the slice, with the optimizer; averages only if asked for."""
    plugins = (EMA(), Scores([3.0, 2.0, 1.0]), Checkpoint(epochs="1::2"))
    train(fake_run(tmp_path, *plugins, task=tiny(), max_epochs=3))
    kept = {"epoch_0001.ckpt", "epoch_0003.ckpt"}
    assert names(tmp_path) == kept | {
        f"{name}.ckpt" for name in ("latest", "previous", "best", "best_inference")
    }
    for name in ("epoch_0001", "epoch_0003"):
        assert "optimization" in state(tmp_path, name)


def test_02_each_epoch_is_asked_for_once_in_order(tmp_path: Path) -> None:
    """The data hear of the epochs one after the other, and so does whoever waits for their ends."""
    data, recorder = Noted(), Recorder()
    train(fake_run(tmp_path, recorder, task=noted(data), max_epochs=3))
    assert data.asked == [(0, 0), (1, 0), (2, 0)]
    assert [at[0] for name, at in recorder.calls if name == "after_epoch"] == [1, 2, 3]


@pytest.mark.parametrize("segment", [1, 2, 3])
def test_03_segments_train_each_epoch_once(tmp_path: Path, segment: int) -> None:
    """Job after job in one directory, never more than the epochs in all."""
    data = Noted()
    for _ in range(6):
        train(fake_run(tmp_path, Checkpoint(), task=noted(data), max_epochs=5, segment_epochs=segment))
    assert data.given == [(epoch, sample) for epoch in range(5) for sample in data.order(epoch)]


@pytest.mark.parametrize("hook", ["train_step", "validate", "infer"])
def test_04_a_failure_costs_no_more_than_its_epoch(tmp_path: Path, hook: str) -> None:
    """A second job does that epoch again, and those after it; a plugin's own state comes back."""

    class Counting:
        count = 0

        @hookimpl
        def after_epoch(self) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, object]:
            return {"count": self.count, "more": [1, {"deep": True}]}

        def load_state_dict(self, loaded: Mapping[str, object]) -> None:
            assert loaded["more"] == [1, {"deep": True}]
            self.count = int(str(loaded["count"]))

    data = Noted()
    step = 8 if hook == "train_step" else 16
    with pytest.raises(RuntimeError, match="broken"):
        train(
            fake_run(
                tmp_path, doing(hook, step, "fail"), Counting(), Checkpoint(), task=noted(data), max_epochs=3
            )
        )
    data.given.clear()
    counting = Counting()
    train(fake_run(tmp_path, counting, Checkpoint(), task=noted(data), max_epochs=3))
    again = 1 if hook == "train_step" else 2  # what was trained before a validation is not trained again
    assert data.given == [(epoch, sample) for epoch in range(again, 3) for sample in data.order(epoch)]
    assert counting.count == 3


@pytest.mark.parametrize(("action", "resumed"), [("fail", 20), ("stop", 25)])
def test_05_where_a_job_goes_on_within_an_epoch(tmp_path: Path, action: str, resumed: int) -> None:
    """Broken after batch 25, saved every 20: at batch 21. Preempted after it: at batch 26. The order is the same."""
    data = Noted(n_samples=30)
    run = fake_run(
        tmp_path, doing("after_batch", 25, action), Checkpoint(every_n_batches=20), task=noted(data)
    )
    if action == "fail":
        with pytest.raises(RuntimeError, match="broken"):
            train(run)
    else:
        train(run)
    assert data.given == [(0, sample) for sample in data.order(0)[:25]]
    data.given.clear()
    train(fake_run(tmp_path, Checkpoint(every_n_batches=20), task=noted(data)))
    assert data.given == [(0, sample) for sample in data.order(0)[resumed:]]


def test_06_preempted_while_validating(tmp_path: Path) -> None:
    """There is a latest and no best; the next job trains nothing, measures again, and writes the best."""
    options = {"evaluate_before_training": True, "max_epochs": 1}
    first = fake_run(
        tmp_path, TrainEvaluation(), doing("validate", 4, "stop"), Checkpoint(), task=tiny(), **options
    )
    train(first)
    assert names(tmp_path) == {"latest.ckpt"}
    assert first.progress.epoch == 0
    second = fake_run(
        tmp_path, recorder := Recorder(), TrainEvaluation(), Checkpoint(), task=tiny(), **options
    )
    train(second)
    assert "train_step" not in recorder.names
    assert list(recorder.metrics("val/loss")) == list(recorder.metrics("train/loss")) == [4]
    assert "best.ckpt" in names(tmp_path)
    assert second.progress.epoch == 1


def test_07_averages_and_their_count_survive(tmp_path: Path) -> None:
    """A restored EMA has made as many updates, and holds the same averages."""
    train(fake_run(tmp_path, ema := EMA(), doing("after_batch", 3, "stop"), Checkpoint(), task=tiny()))
    restored = EMA()

    class Looking:
        @hookimpl
        def before_epoch(self) -> None:
            assert restored.updates == ema.updates == 3
            assert float(restored.averages[0]) == float(ema.averages[0])

    train(fake_run(tmp_path, restored, Looking(), Checkpoint(), task=tiny()))
    assert restored.updates == 4


def test_08_saving_nothing_saves_nothing(tmp_path: Path) -> None:
    """Not even with every batch, nor on a stop."""
    checkpoint = Checkpoint(save=False, every_n_batches=1, epochs="::1", ema_epochs="::1")
    train(fake_run(tmp_path / "run", EMA(), doing("after_batch", 3, "stop"), checkpoint, task=tiny()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("validate", [True, False])
def test_09_whose_weights_are_in_which_file(tmp_path: Path, validate: bool) -> None:  # noqa: FBT001
    """The best holds the averages exactly if they were validated; the latest the raw weights, and the averages."""
    ema = EMA(decay=0.5, faster_decay_at_start=False, validate=validate)
    run = fake_run(tmp_path, ema, Scores([3.0, 5.0]), Checkpoint(epochs="::1"), task=tiny(), max_epochs=2)
    train(run)
    raw, average = weight(run), float(ema.averages[0])
    assert raw != average
    latest, inference = state(tmp_path), state(tmp_path, "best_inference")
    assert float(latest["model"]["weight"]) == raw  # type: ignore[index]
    assert float(latest["plugins"]["ema"]["averages"]["weight"]) == average  # type: ignore[index]
    first = state(tmp_path, "epoch_0001")
    of_first = first["plugins"]["ema"]["averages"] if validate else first["model"]  # type: ignore[index]
    assert inference["model"] == of_first
    assert [state(tmp_path, f"epoch_000{n}")["best"]["best_inference"] for n in (1, 2)] == [3.0, 3.0]  # type: ignore[index]


def test_10_the_best_of_all_segments(tmp_path: Path) -> None:
    """The global minimum, the later one of two."""
    for _ in range(4):
        scores = Scores([2.0, 1.0, 1.0, 3.0])
        train(fake_run(tmp_path, scores, Checkpoint(), task=tiny(), max_epochs=4, segment_epochs=1))
    best = state(tmp_path, "best_inference")
    assert best["progress"] == {"epoch": 3, "batch": 0, "step": 12}
    assert best["best"]["best_inference"] == 1.0  # type: ignore[index]


@pytest.mark.parametrize("wanted", [True, False])
def test_11_a_file_for_each_new_best(tmp_path: Path, wanted: bool) -> None:  # noqa: FBT001
    """Errors of 0.3, 0.4, 0.2: epochs 1 and 3, if asked for."""
    checkpoint = Checkpoint(save_best_inference_epochs=wanted)
    train(fake_run(tmp_path, Scores([0.3, 0.4, 0.2]), checkpoint, task=tiny(), max_epochs=3))
    found = {name for name in names(tmp_path) if name.startswith("best_inference_")}
    assert found == ({"best_inference_0001.ckpt", "best_inference_0003.ckpt"} if wanted else set())


def test_12_nan_is_never_the_best(tmp_path: Path) -> None:
    """Errors of 0.1, NaN, 0.05, NaN: the best that is logged is 0.1, 0.1, 0.05, 0.05."""
    scores = Scores([0.1, math.nan, 0.05, math.nan])
    train(fake_run(tmp_path, recorder := Recorder(), scores, Checkpoint(), task=tiny(), max_epochs=4))
    assert list(recorder.metrics("best/best_inference").values()) == [0.1, 0.1, 0.05, 0.05]


def test_13_the_first_update_of_an_average(tmp_path: Path) -> None:
    """It begins as the model, moves by 9/11 at first, and the model does not notice."""
    plain = fake_run(tmp_path / "a", task=tiny(2))
    train(plain)
    averaged = fake_run(tmp_path / "b", ema := EMA(), doing("after_batch", 2, "stop"), task=tiny(2))
    train(averaged)
    assert weight(averaged) == weight(plain) == 0.5  # (0 + 0) / 2, then (0 + 1) / 2
    first = 0.0
    assert float(ema.averages[0]) == pytest.approx(first + (1 - 3 / 12) * (0.5 - first))


def test_15_the_evaluation_before_training(tmp_path: Path) -> None:
    """Epoch 0 at step 0, once, in the first of several segments; epoch e at step e · batches."""
    steps: list[tuple[object, ...]] = []
    for _ in range(2):
        recorder = Recorder()
        options = {"max_epochs": 2, "segment_epochs": 1, "evaluate_before_training": True}
        train(fake_run(tmp_path, recorder, Checkpoint(), task=tiny(), **options))
        steps += recorder.metrics("epoch").items()
    assert steps == [(0, 0), (4, 1), (8, 2)]


def test_16_the_rate_is_in_every_log_of_training(tmp_path: Path) -> None:
    """In each log of batches and of epochs as it was used last; not at step 0."""
    options = {"max_epochs": 2, "evaluate_before_training": True}
    progress = ProgressReport(every_n_batches=2, first_batch=False)
    train(fake_run(tmp_path, recorder := Recorder(), progress, task=tiny(), **options))
    assert recorder.metrics("batch/lr") == dict.fromkeys([2, 4, 6, 8], LEARNING_RATE)
    assert recorder.metrics("epoch/lr") == dict.fromkeys([4, 8], LEARNING_RATE)


def test_17_batch_metrics_are_means_since_the_last_log(tmp_path: Path) -> None:
    """Also of keys that come and go; the window begins anew at each log."""

    class Irregular:
        @hookimpl(wrapper=True)
        def train_step(self, run: Run) -> Iterator[None]:
            losses = yield
            extra = {"extra": torch.tensor(float(run.progress.step))} if run.progress.step % 2 else {}
            return {**losses, **extra}

    progress = ProgressReport(every_n_batches=4, first_batch=False)
    train(fake_run(tmp_path, recorder := Recorder(), Irregular(), progress, task=tiny(8)))
    assert recorder.metrics("batch/extra") == {4: (1 + 3) / 2, 8: (5 + 7) / 2}


def test_18_metrics_are_appended_and_never_repeated(tmp_path: Path) -> None:
    """A resumed run skips what is there, leaves a corrupt line alone, and keeps what is not finite."""
    for segment in range(2):
        scores = Scores([math.nan, math.inf])
        train(fake_run(tmp_path, scores, Jsonl(), Checkpoint(), task=tiny(), max_epochs=2, segment_epochs=1))
        if not segment:
            with (tmp_path / "metrics.jsonl").open("a") as file:
                file.write("not JSON\n")
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("not JSON") == 1
    lines = [json.loads(line) for line in text.splitlines() if line != "not JSON"]
    errors = [(line["step"], line["inference/error"]) for line in lines if "inference/error" in line]
    assert [step for step, _ in errors] == [4, 8]
    assert math.isnan(errors[0][1])
    assert errors[1][1] == math.inf


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_21_saved_and_loaded_in_the_middle_the_end_is_the_same(tmp_path: Path, precision: str) -> None:
    """Bit for bit, in either precision."""
    ends = []
    for name, stops in (("whole", []), ("parts", [3, 5])):
        for step in (*stops, 0):
            optimization = OptimizationPlugin(lr=0.1, precision=precision)  # type: ignore[arg-type]
            task = TinyTask(data={"train": TinyData(8)}, noise=1.0)
            run = fake_run(
                tmp_path / name, optimization, doing("after_batch", step, "stop"), Checkpoint(), task=task
            )
            train(run)
        ends.append(weight(run))
    assert ends[0] == ends[1]


def test_22_accumulated_gradients_move_as_one_batch(tmp_path: Path) -> None:
    """Two batches of two move the weight as one batch of four."""
    ends = []
    for size, accumulate in ((4, 1), (2, 2)):
        optimization = OptimizationPlugin(optimizer="SGD", lr=0.25, accumulate=accumulate)
        run = fake_run(
            tmp_path / str(size), optimization, task=TinyTask(data={"train": TinyData(8, size)}), max_epochs=2
        )
        train(run)
        ends.append(weight(run))
    assert ends[0] == pytest.approx(ends[1], abs=1e-7)


def test_24_the_norm_is_that_before_clipping(tmp_path: Path) -> None:
    """2 |w - x|, whatever is left of it; nothing is reported where nothing is clipped."""
    for clip, expected in ((0.5, {1: 2.0}), (None, {})):
        data = TinyData(1)
        task = TinyTask(data={"train": data})
        task.model.get_parameter("weight").data.fill_(1.0)
        optimization = OptimizationPlugin(optimizer="SGD", lr=0.25, clip_norm=clip)
        progress = ProgressReport(every_n_batches=1, first_batch=False)
        run = fake_run(tmp_path, recorder := Recorder(), optimization, progress, task=task)
        train(run)
        assert recorder.metrics("batch/grad_norm") == pytest.approx(expected)
        assert weight(run) == pytest.approx(1.0 - 0.25 * (0.5 if clip else 2.0), abs=1e-6)


def test_30_parts_of_an_epoch_are_slices_of_it() -> None:
    """``batches(epoch, start, stop)`` is the slice of ``batches(epoch)``."""
    data = TinyData(n_samples=7, batch_size=2)
    whole = list(data.batches(0))
    for start in range(5):
        for stop in (*range(5), None):
            part = list(data.batches(0, start, stop))
            assert [b.tolist() for b in part] == [b.tolist() for b in whole[start:stop]]
