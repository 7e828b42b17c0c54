"""What is read from a run's directory, whatever state it is in."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from written_run import WrittenRun, whole_run

from hookloop.errors import HookloopError
from hookloop.report.contents import read


def test_a_run_is_read(tmp_path: Path) -> None:
    """Counters, series, the last scores, the end and what was warned of."""
    contents = read(whole_run(WrittenRun(tmp_path / "run")).directory)
    assert (contents.epochs_done, contents.steps, contents.steps_an_epoch) == (3, 30, 10.0)
    assert contents.series["val/loss"] == [(0, 1.0), (10, 0.5), (20, 1 / 3), (30, 0.25)]
    assert contents.inferred_at == {"": 30}
    (crps,) = [r for r in contents.results if r.key.result == "crps" and r.key.variable == "pr"]
    assert crps.value == pytest.approx(0.2)
    assert crps.interval == pytest.approx((0.15, 0.25))
    assert crps.baseline == 0.4
    assert contents.end is not None
    assert contents.end["event"] == "run.finished"
    (trouble,) = contents.troubles
    assert (trouble.event, trouble.times, trouble.details) == ("figure.unwritten", 2, {"path": "b.png"})
    assert [path.name for path in contents.figures] == [
        "pr_2020-01-01T00.png",
        "pr_rank_histogram.png",
        "t2m_2020-01-01T00.png",
        "t2m_rank_histogram.png",
    ]


def test_a_line_that_is_being_written_is_left_out_without_a_word(tmp_path: Path) -> None:
    """It is no damage; a line broken in the middle is, and is counted."""
    run = WrittenRun(tmp_path / "run")
    run.metrics({"step": 1, "epoch": 0, "batch/loss": 1.0}, torn='{"step": 2, "epo')
    contents = read(run.directory)
    assert (contents.series, contents.odd) == ({"batch/loss": [(1, 1.0)]}, [])
    run.write(
        "metrics.jsonl",
        '{"step": 1, "epoch": 0, "a": 1}\nnonsense\n[1]\n{"step": "x", "epoch": 1}\n\n'
        '{"step": 2, "epoch": 0, "a": 2}\n',
    )
    contents = read(run.directory)
    assert contents.series == {"a": [(1, 1.0), (2, 2.0)]}
    assert contents.odd == ["3 lines of metrics.jsonl could not be read."]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": Infinity, "epoch": 1, "a": 9}',
        '{"step": 1, "epoch": NaN, "a": 9}',
        '{"step": -1, "epoch": 1, "a": 9}',
        f'{{"step": 1{"0" * 400}, "epoch": 1, "a": 9}}',
        f'{{"step": 1, "epoch": 1, "a": 1{"0" * 400}}}',
        f'{{"step": 1, "epoch": 1, "a": 1{"0" * 5000}}}',
        "[" * 100_000,
    ],
)
def test_a_line_that_no_run_writes_is_counted_and_left_out(tmp_path: Path, line: str) -> None:
    """Numbers that are no counts, those beyond any float, and nesting without end."""
    run = WrittenRun(tmp_path / "run")
    run.write("metrics.jsonl", f'{line}\n{{"step": 2, "epoch": 1, "a": 2}}\n')
    run.write("log.jsonl", f'{"[" * 100_000}\n{{"event": "run.finished"}}\n')
    contents = read(run.directory)
    assert contents.series == {"a": [(2, 2.0)]}
    assert contents.end == {"event": "run.finished"}
    assert contents.odd == [f"1 line of {name} could not be read." for name in ("metrics.jsonl", "log.jsonl")]


def test_units_are_read_where_they_are_told(tmp_path: Path) -> None:
    """By variable; what is no text is no unit."""
    run = WrittenRun(tmp_path / "run")
    run.metrics({"step": 1, "epoch": 1, "a": 1.0})
    assert read(run.directory).units == {}
    run.write("figures/units.json", '{"t2m": "K", "x": 3}')
    assert (read(run.directory).units, read(run.directory).odd) == ({"t2m": "K"}, [])


def test_what_a_resumed_run_wrote_twice_or_late_is_put_in_order(tmp_path: Path) -> None:
    """Lines of one step are one record, whichever came first; later values win."""
    run = WrittenRun(tmp_path / "run")
    run.metrics(
        {"step": 2, "epoch": 0, "a": 2.0},
        {"step": 1, "epoch": 0, "a": 1.0},
        {"step": 2, "epoch": 1, "b": 3.0},
        {"step": 2, "epoch": 1, "a": 4.0},
    )
    contents = read(run.directory)
    assert contents.series == {"a": [(1, 1.0), (2, 4.0)], "b": [(2, 3.0)]}
    assert contents.epochs == {1: 0, 2: 1}


def test_numbers_that_are_not_finite_are_kept_and_text_is_not(tmp_path: Path) -> None:
    """A NaN must be loud later on."""
    run = WrittenRun(tmp_path / "run")
    run.write("metrics.jsonl", '{"step": 1, "epoch": 0, "a": NaN, "b": "text", "c": true, "d": null}\n')
    ((step, value),) = read(run.directory).series["a"]
    assert step == 1
    assert math.isnan(value)
    assert read(run.directory).series.keys() == {"a"}


def test_each_set_has_its_own_last_inference(tmp_path: Path) -> None:
    """A set that is inferred seldom is not forgotten when others come later."""
    run = WrittenRun(tmp_path / "run")
    seldom = {"inference/far/error": 2.0, "inference/far/crps/x": 2.0}
    often = {"inference/near/error": 1.0, "inference/near/crps/x": 1.0, "inference/error": 1.0}
    run.metrics({"step": 1, "epoch": 1, **often, **seldom}, {"step": 2, "epoch": 2, **often})
    contents = read(run.directory)
    assert contents.inferred_at == {"near": 2, "far": 1, "": 2}
    found = {(r.key.set, r.key.result, r.value) for r in contents.results}
    assert found == {
        ("near", "error", 1.0),
        ("near", "crps", 1.0),
        ("", "error", 1.0),
        ("far", "error", 2.0),
    } | {("far", "crps", 2.0)}


@pytest.mark.parametrize(
    ("events", "ended"),
    [
        ([], None),
        ([{"event": "checkpoint.saved"}], None),
        ([{"event": "run.stopped", "why": "signal"}], "run.stopped"),
        ([{"event": "run.finished"}, {"event": "run.resumed"}], None),
        ([{"event": "run.failed", "error": "x"}], "run.failed"),
    ],
)
def test_a_run_has_ended_if_that_is_the_last_it_said(
    tmp_path: Path, events: list[dict[str, str]], ended: str | None
) -> None:
    """What came after an end is a new start."""
    run = WrittenRun(tmp_path / "run")
    run.log(*events)
    end = read(run.directory).end
    assert (end and end["event"]) == ended


def test_evaluations_are_read_as_runs_are(tmp_path: Path) -> None:
    """Folders that hold none are not among them."""
    run = whole_run(WrittenRun(tmp_path / "run"))
    whole_run(WrittenRun(run.directory / "evaluations" / "best"))
    (run.directory / "evaluations" / "empty").mkdir()
    assert read(run.directory).evaluations.keys() == {"best"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "{: broken"),
        ("config.yaml", "- a list"),
        ("config.yaml", "a: !!timestamp 2020-99-99"),
        ("config.yaml", 'a: !!int ""'),
        ("config.yaml", "[" * 100_000),
        ("environment.json", "{broken"),
        ("environment.json", '{"starts": 3}'),
        ("environment.json", "[]"),
        ("environment.json", "[" * 100_000),
        ("log.jsonl", "broken\n3\n"),
        ("figures/units.json", "[1]"),
        ("figures/units.json", "[" * 100_000),
    ],
)
def test_a_broken_file_costs_what_it_told_and_nothing_else(tmp_path: Path, name: str, content: str) -> None:
    """The rest is read all the same, and what could not be read is said."""
    run = whole_run(WrittenRun(tmp_path / "run"))
    run.write(name, content)
    contents = read(run.directory)
    assert contents.epochs_done == 3
    if content != '{"starts": 3}':
        (words,) = contents.odd
        assert Path(name).name in words
    if name == "config.yaml":
        assert (contents.config, contents.config_text) == ({}, content)
    if name == "environment.json":
        assert contents.starts == []


@pytest.mark.parametrize(("there", "words"), [(True, "no run's directory"), (False, "no such directory")])
def test_a_directory_that_is_no_run_is_refused(tmp_path: Path, there: bool, words: str) -> None:  # noqa: FBT001
    """In one line, with what was expected."""
    if there:
        (tmp_path / "x").mkdir()
    with pytest.raises(HookloopError, match=words) as refused:
        read(tmp_path / "x")
    assert "\n" not in str(refused.value)
    assert refused.value.code == 2
