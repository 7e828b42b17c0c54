from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attrs import define, field

from hookloop.core import train
from hookloop.plugins.train_evaluation import TrainEvaluation
from hookloop.testing import LifeCycle, Recorder, TinyData, TinyTask, fake_run, prepared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from hookloop.task import Order


class TestLifeCycle(LifeCycle):
    plugin = TrainEvaluation


class TestLifeCycleOfFew(LifeCycle):
    plugin = TrainEvaluation
    options = {"batches": 2}


@define(eq=False)
class Asked(TinyData):
    """Notes what was asked for."""

    asked: list[tuple[object, ...]] = field(factory=list)

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[Tensor]:
        """As the tiny data's."""
        self.asked.append((epoch, start, stop, order))
        yield from TinyData.batches(self, epoch, start, stop, order)


def test_looks_at_the_first_batches_of_the_alternate_order(tmp_path: Path) -> None:
    """With w = 0 the last two of samples 0…7 have the mean loss (49 + 36) / 2."""
    run = prepared(tmp_path, TrainEvaluation(batches=2))
    assert {"train/loss": 42.5} in run.hook.validate(run=run)


@pytest.mark.parametrize("batches", [8, 50])
def test_looks_at_no_more_than_there_is(tmp_path: Path, batches: int) -> None:
    """All samples 0…7 have the mean loss 140 / 8."""
    run = prepared(tmp_path, TrainEvaluation(batches=batches))
    assert {"train/loss": 17.5} in run.hook.validate(run=run)


def test_each_epoch_has_its_own_shuffle(tmp_path: Path) -> None:
    """The alternate order of the epoch just trained is asked for."""
    data = Asked(4)
    task = TinyTask(data={"train": data, "validation": TinyData(1)})
    train(fake_run(tmp_path, TrainEvaluation(batches=3), task=task, max_epochs=2))
    assert data.asked == [
        (0, 0, None, "main"),
        (0, 0, 3, "alternate"),
        (1, 0, None, "main"),
        (1, 0, 3, "alternate"),
    ]


def test_none_for_zero(tmp_path: Path) -> None:
    """Zero batches switch it off."""
    train(fake_run(tmp_path, recorder := Recorder(), TrainEvaluation(batches=0)))
    assert recorder.metrics("train/loss") == {}
    assert recorder.metrics("val/loss") != {}


def test_is_comparable_with_validation(tmp_path: Path) -> None:
    """On the same samples, with the same weights, it is the validation's number."""
    task = TinyTask(data={"train": TinyData(6, 6), "validation": TinyData(6, 6)}, noise=1.0)
    train(fake_run(tmp_path, recorder := Recorder(), TrainEvaluation(), task=task))
    assert recorder.metrics("train/loss") == pytest.approx(recorder.metrics("val/loss"))


def test_negative_is_refused() -> None:
    """There is no negative number of batches."""
    with pytest.raises(ValueError, match="batches"):
        TrainEvaluation(batches=-1)
