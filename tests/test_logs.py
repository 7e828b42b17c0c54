"""Events reach the file as JSON and people as short lines."""

from __future__ import annotations

import io
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from hookloop.logs import events_to, log_of


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Claim so."""
        return True


def lines(path: Path) -> list[dict[str, object]]:
    """Read the file back, refusing what is not standard JSON."""

    def refuse(token: str) -> float:
        raise AssertionError(token)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_an_event_is_a_json_line_with_utc_time_level_and_keys(tmp_path: Path) -> None:
    """Machines get when, how bad, what and with what."""
    logger = events_to(tmp_path / "log.jsonl", io.StringIO())
    logger.info("checkpoint.saved", step=1000, path=Path("a/b"))
    (line,) = lines(tmp_path / "log.jsonl")
    time = datetime.fromisoformat(str(line.pop("timestamp")))
    assert abs((datetime.now(UTC) - time).total_seconds()) < 60
    assert line == {"level": "info", "event": "checkpoint.saved", "step": 1000, "path": "a/b"}


def test_people_get_a_short_line(tmp_path: Path) -> None:
    """The console shows local time, event and keys, quoting what has spaces."""
    stream = io.StringIO()
    events_to(tmp_path / "log.jsonl", stream).info("epoch.finished", loss=0.123456789, why="no idea")
    assert re.fullmatch(r"\d\d:\d\d:\d\d epoch\.finished loss=0\.123457 why='no idea'\n", stream.getvalue())


def test_events_are_appended_across_loggers(tmp_path: Path) -> None:
    """A resumed run goes on in the same file."""
    for number in range(2):
        events_to(tmp_path / "log.jsonl", io.StringIO()).info("run.started", number=number)
    assert [line["number"] for line in lines(tmp_path / "log.jsonl")] == [0, 1]


def test_numbers_that_are_not_finite_stay_readable(tmp_path: Path) -> None:
    """They are strings in the file, at any depth, since JSON has no word for them."""
    events_to(tmp_path / "log.jsonl", io.StringIO()).info(
        "x.y", a=float("nan"), b=[float("-inf")], c={(1, 2): 1.5}
    )
    (line,) = lines(tmp_path / "log.jsonl")
    assert (line["a"], line["b"], line["c"]) == ("nan", ["-inf"], {"(1, 2)": 1.5})


def test_secrets_are_masked_in_both_places(tmp_path: Path) -> None:
    """Neither the file nor the console shows the value of a key that looks secret."""
    stream = io.StringIO()
    events_to(tmp_path / "log.jsonl", stream).info("x.y", options={"api_key": "hunter2"}, token="hunter2")  # noqa: S106
    assert "hunter2" not in stream.getvalue() + (tmp_path / "log.jsonl").read_text()
    assert lines(tmp_path / "log.jsonl")[0]["options"] == {"api_key": "***"}


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_warnings_are_marked_and_coloured_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, no_color: str, *, coloured: bool
) -> None:
    """The word is always there, the colour only where it is wanted."""
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal()
    events_to(None, stream).warning("disk.filled")
    assert "WARNING disk.filled" in stream.getvalue()
    assert ("\x1b[" in stream.getvalue()) is coloured


def test_no_colour_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is no terminal gets plain text."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    events_to(None, stream).error("disk.failed")
    assert "ERROR disk.failed" in stream.getvalue()
    assert "\x1b[" not in stream.getvalue()


def test_stderr_is_looked_up_at_call_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar may put its own stream there later."""
    logger = events_to(None, None)
    later = io.StringIO()
    monkeypatch.setattr(sys, "stderr", later)
    logger.info("run.started")
    assert "run.started" in later.getvalue()


def test_an_exception_brings_its_traceback(tmp_path: Path) -> None:
    """The console shows it below the line, the file keeps it in a key."""
    stream = io.StringIO()
    try:
        int("so wrong")
    except ValueError:
        events_to(tmp_path / "log.jsonl", stream).exception("plugin.failed")
    assert "ValueError: invalid literal" in stream.getvalue().splitlines()[-1]
    assert "so wrong" in str(lines(tmp_path / "log.jsonl")[0]["exception"])


def test_a_newline_in_a_value_cannot_fake_an_event() -> None:
    """One event is one line for people, whatever its values are."""
    stream = io.StringIO()
    events_to(None, stream).info("x.y", path="a\n12:00:00 run.finished")
    assert len(stream.getvalue().splitlines()) == 1


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """The console goes on, and says that the file does not."""
    stream = io.StringIO()
    events_to(tmp_path / "missing" / "log.jsonl", stream).info("run.started")
    assert "run.started" in stream.getvalue()
    assert "unwritten=" in stream.getvalue()


def test_a_closed_stream_ends_nothing(tmp_path: Path) -> None:
    """Nobody at the terminal any more: the file is still written."""
    stream = io.StringIO()
    stream.close()
    events_to(tmp_path / "log.jsonl", stream).info("run.started")
    assert len(lines(tmp_path / "log.jsonl")) == 1


def test_debug_is_left_out_and_structlog_itself_unchanged() -> None:
    """Nothing global is configured."""
    before = structlog.get_config()
    stream = io.StringIO()
    events_to(None, stream).debug("x.y")
    assert stream.getvalue() == ""
    assert structlog.get_config() == before


def test_of_a_rank_that_does_not_lead_people_see_errors_only(tmp_path: Path) -> None:
    """With the rank in front; its own file has everything, as it was."""
    stream, path = io.StringIO(), tmp_path / log_of(2)
    logger = events_to(path, stream, rank=2)
    logger.info("epoch.finished", epoch=1)
    logger.warning("data.odd")
    logger.error("metrics.lost", lines=3)
    assert re.fullmatch(r"\d\d:\d\d:\d\d ERROR rank 2: metrics\.lost lines=3\n", stream.getvalue())
    assert [line["event"] for line in lines(path)] == ["epoch.finished", "data.odd", "metrics.lost"]


def test_every_rank_has_a_log_of_its_own() -> None:
    """That of rank 0 has the name that it has alone."""
    assert [log_of(rank) for rank in range(3)] == ["log.jsonl", "log.rank1.jsonl", "log.rank2.jsonl"]
