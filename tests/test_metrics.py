from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from hookloop.errors import HookloopError
from hookloop.metrics import measured
from hookloop.testing import events_of, fake_run

if TYPE_CHECKING:
    from pathlib import Path


def test_a_metric_is_found_by_its_key(tmp_path: Path) -> None:
    """And nothing is said about it."""
    run = fake_run(tmp_path)
    assert measured(run, {"val/loss": 0.5, "other": 2.0}, "val/loss", "x.metric") == 0.5
    assert events_of(run) == []


def test_a_metric_that_was_not_measured_is_an_error(tmp_path: Path) -> None:
    """It names the option and what there is, but for the times."""
    metrics = {"val/loss": 0.5, "val/loss/t": 0.5, "epoch/validation_seconds": 1.0}
    with pytest.raises(HookloopError) as refused:
        measured(fake_run(tmp_path), metrics, "val/los", "x.metric")
    assert str(refused.value) == (
        "x.metric: val/los was not measured in this evaluation; there are val/loss, val/loss/t; "
        "did you mean 'val/loss'?"
    )
    with pytest.raises(HookloopError, match="there are none"):
        measured(fake_run(tmp_path), {"epoch/validation_seconds": 1.0}, "val/loss", "x.metric")


def test_of_many_metrics_only_the_nearest_are_named(tmp_path: Path) -> None:
    """Five, the nearest first, and how many more there are."""
    metrics = {f"inference/{name}/pr": 0.5 for name in map(str, range(100, 220))} | {"val/loss": 0.5}
    with pytest.raises(HookloopError) as refused:
        measured(fake_run(tmp_path), metrics, "val/los", "x.metric")
    told = str(refused.value).partition("there are ")[2]
    assert told.startswith("val/loss, ")
    assert "and 116 more; did you mean 'val/loss'?" in told
    assert told.count("/pr") == 4


def test_nan_is_told(tmp_path: Path) -> None:
    """It is what was measured, and people should know."""
    run = fake_run(tmp_path)
    assert math.isnan(measured(run, {"val/loss": math.nan}, "val/loss", "x.metric"))
    (event,) = events_of(run)
    assert (event["level"], event["event"], event["metric"]) == ("warning", "metric.undefined", "val/loss")
