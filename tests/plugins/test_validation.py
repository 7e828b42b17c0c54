from __future__ import annotations

from typing import TYPE_CHECKING

from hookloop.core import train
from hookloop.plugins.validation import Validation
from hookloop.testing import LifeCycle, Recorder, TinyData, TinyTask, fake_run, prepared

if TYPE_CHECKING:
    from pathlib import Path


class TestLifeCycle(LifeCycle):
    plugin = Validation


def test_reports_the_mean_loss(tmp_path: Path) -> None:
    """With w = 0 the loss over samples 0…3 is (0 + 1 + 4 + 9) / 4."""
    task = TinyTask(data={"train": TinyData(), "validation": TinyData(4, 3)})
    run = prepared(tmp_path, Validation(), task=task)
    assert run.hook.validate(run=run) == [{"val/loss": 3.5}]


def test_says_nothing_without_a_validation_split(tmp_path: Path) -> None:
    """A task that has only training data is not validated, and the run ends well."""
    run = fake_run(tmp_path, recorder := Recorder(), task=TinyTask(data={"train": TinyData(2)}))
    train(run)
    assert run.progress.epoch == 1
    assert recorder.metrics("val/loss") == {}


def test_says_nothing_when_stopped(tmp_path: Path) -> None:
    """Half a validation is none."""
    run = prepared(tmp_path, Validation())
    run.stop("enough")
    assert run.hook.validate(run=run) == []
