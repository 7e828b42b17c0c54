"""What was found out about fields is remembered until they, or the question, change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import structlog
from attrs import evolve
from linear_forecast import LinearModel, six_hourly, write_states
from structlog.testing import capture_logs

from hookloop.data.fields import Fields
from hookloop.data.files import open_fields, select
from hookloop.data.remembered import Remembered

EVENTS = structlog.get_logger()


@pytest.fixture
def fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fields:
    monkeypatch.setenv("HOOKLOOP_CACHE", str(tmp_path / "cache"))
    write_states(tmp_path / "x.zarr", LinearModel().history(6), six_hourly(6))
    return open_fields([str(tmp_path / "x.zarr")], ["t", "q"])


def test_a_finding_is_kept(fields: Fields) -> None:
    """Nothing at first; then what was kept, for the same question alone."""
    assert Remembered.of([fields], {"what": 1}, EVENTS).recall() is None
    Remembered.of([fields], {"what": 1}, EVENTS).keep([0.1, "x"])
    assert Remembered.of([fields], {"what": 1}, EVENTS).recall() == [0.1, "x"]
    assert Remembered.of([fields], {"what": 2}, EVENTS).recall() is None
    assert Remembered.of([fields, fields], {"what": 1}, EVENTS).recall() is None


def test_other_times_or_fill_are_other_fields(fields: Fields) -> None:
    """What of the files is used, and how, is a part of the question."""
    Remembered.of([fields], {}, EVENTS).keep("here")
    assert Remembered.of([select(fields, np.arange(5))], {}, EVENTS).recall() is None
    assert Remembered.of([evolve(fields, fill={"t": 0.0})], {}, EVENTS).recall() is None
    assert Remembered.of([fields], {}, EVENTS).recall() == "here"


def test_what_is_damaged_is_told_and_made_anew(fields: Fields, tmp_path: Path) -> None:
    """A file that does not match its checksum is no finding."""
    remembered = Remembered.of([fields], {}, EVENTS)
    remembered.keep(1.5)
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text(file.read_text().replace("1.5", "2.5"))
    with capture_logs() as told:
        assert remembered.recall() is None
    assert [event["event"] for event in told] == ["statistics.damaged"]


def test_without_a_place_nothing_is_kept(fields: Fields, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping and recalling are then for nothing."""
    monkeypatch.setenv("HOOKLOOP_CACHE", "")
    remembered = Remembered.of([fields], {}, EVENTS)
    remembered.keep(1)
    assert remembered.recall() is None


def test_a_place_that_cannot_be_written_is_told(
    fields: Fields, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A finding is lost, not the run."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOOKLOOP_CACHE", str(tmp_path / "file"))
    with capture_logs() as told:
        Remembered.of([fields], {}, EVENTS).keep(1)
    assert [event["event"] for event in told] == ["statistics.not_kept"]
