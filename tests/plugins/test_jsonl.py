"""Every metric is a line, once."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pluggy
import pytest
import torch
from matplotlib.figure import Figure

import hookloop.hookspecs
from hookloop.core import Run
from hookloop.logs import events_to
from hookloop.plugins.jsonl import Jsonl
from hookloop.settings import RunConfig

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def running(
    directory: Path, console: io.StringIO | None = None, plugin: Jsonl | None = None
) -> Iterator[Run]:
    """Make a run with just this plugin, between ``before_run`` and the end of its cleanup."""
    plugin = plugin or Jsonl()
    manager = pluggy.PluginManager("hookloop")
    manager.add_hookspecs(hookloop.hookspecs)
    manager.register(plugin, "jsonl")
    run = Run(
        config=RunConfig(dir=directory),
        manager=manager,
        plugins={"jsonl": plugin},
        device=torch.device("cpu"),
        events=events_to(None, console or io.StringIO()),
    )
    with run.cleanup:
        run.hook.before_run(run=run)
        yield run


def log(run: Run, step: int, metrics: dict[str, float | Figure], epoch: int = 0) -> None:
    """Log *metrics* at *step*."""
    run.progress.step, run.progress.epoch = step, epoch
    run.log(metrics)


def lines(directory: Path) -> list[dict[str, float]]:
    """Read what was written."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_log_is_a_line_with_step_epoch_and_time(tmp_path: Path) -> None:
    """It can be read while the run goes on."""
    with running(tmp_path) as run:
        log(run, 7, {"val/loss": 0.5, "count": 3}, epoch=2)
        (line,) = lines(tmp_path)
    assert abs(line.pop("time") - time.time()) < 60
    assert line == {"step": 7, "epoch": 2, "val/loss": 0.5, "count": 3}


def test_a_metric_named_epoch_appears_once(tmp_path: Path) -> None:
    """The line has an epoch of its own, and alone it is nothing new."""
    with running(tmp_path) as run:
        log(run, 7, {"epoch": 2, "a": 1.0}, epoch=2)
        log(run, 8, {"epoch": 2}, epoch=2)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count('"epoch"') == 1
    assert len(lines(tmp_path)) == 1


def test_figures_are_left_out(tmp_path: Path) -> None:
    """Only numbers fit in a line; a log of figures alone writes none."""
    with running(tmp_path) as run:
        log(run, 1, {"picture": Figure(), "a": np.float32(0.5), "n": np.int64(3)})
        log(run, 2, {"picture": Figure()})
    (line,) = lines(tmp_path)
    assert {key: line[key] for key in line if key != "time"} == {"step": 1, "epoch": 0, "a": 0.5, "n": 3}


def test_what_is_not_finite_reads_back(tmp_path: Path) -> None:
    """Python reads its own tokens."""
    with running(tmp_path) as run:
        log(run, 1, {"a": math.nan, "b": -math.inf})
    (line,) = lines(tmp_path)
    assert math.isnan(line["a"])
    assert line["b"] == -math.inf


def test_a_resume_repeats_nothing(tmp_path: Path) -> None:
    """Keys recorded at a step stay as they are; new keys and new steps are added."""
    with running(tmp_path) as run:
        log(run, 10, {"a": 1.0})
        log(run, 10, {"b": 2.0})
        log(run, 20, {"a": 3.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with running(tmp_path) as run:
        log(run, 10, {"a": -1.0, "b": -2.0})
        log(run, 20, {"a": -3.0, "c": 4.0})
        log(run, 30, {"a": 5.0})
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    added = [{k: v for k, v in line.items() if k not in ("time", "epoch")} for line in lines(tmp_path)[3:]]
    assert added == [{"step": 20, "c": 4.0}, {"step": 30, "a": 5.0}]


def test_one_run_may_log_a_key_twice_at_a_step(tmp_path: Path) -> None:
    """Only what was there before the run is held to be a repetition."""
    with running(tmp_path) as run:
        log(run, 1, {"a": 1.0})
        log(run, 1, {"a": 2.0})
    assert [line["a"] for line in lines(tmp_path)] == [1.0, 2.0]


@pytest.mark.parametrize("torn", ['{"step": 2, "a": 1', "{", '{"step": 2, "a": 1.0', "\x00\x00"])
def test_a_torn_last_line_is_cut_off_and_written_anew(tmp_path: Path, torn: str) -> None:
    """A run killed while writing loses that line alone."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0, "time": 0, "a": 0.5}\n' + torn)
    with running(tmp_path) as run:
        log(run, 2, {"a": 1.0})
    assert [(line["step"], line["a"]) for line in lines(tmp_path)] == [(1, 0.5), (2, 1.0)]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    """Editors leave such files behind."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 0.5}')
    with running(tmp_path) as run:
        log(run, 1, {"a": 9.0})
        log(run, 2, {"a": 1.0})
    assert [(line["step"], line["a"]) for line in lines(tmp_path)] == [(1, 0.5), (2, 1.0)]


def test_corrupt_lines_are_tolerated(tmp_path: Path) -> None:
    """They stay where they are, and what is around them still counts."""
    content = 'garbage\n[1]\n{"step": "x"}\n{"step": 1, "a": 0.5}\n\n'
    (tmp_path / "metrics.jsonl").write_text(content)
    with running(tmp_path) as run:
        log(run, 1, {"a": 9.0})
    assert (tmp_path / "metrics.jsonl").read_text() == content


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """As a full disk does, let writes end in the middle of a line, then fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_warned_of_once_and_loses_nothing(tmp_path: Path) -> None:
    """Lines wait for space, and nothing of them stands in the file meanwhile."""
    console = io.StringIO()
    with running(tmp_path, console) as run:
        log(run, 1, {"a": 1.0})
        with no_file_longer_than((tmp_path / "metrics.jsonl").stat().st_size + 9):
            for step in (2, 3, 4):
                log(run, step, {"a": 1.0})
            assert [line["step"] for line in lines(tmp_path)] == [1]
        log(run, 5, {"a": 1.0})
    assert console.getvalue().count("metrics.unwritten") == 1
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_lines_that_wait_are_in_the_checkpoint(tmp_path: Path) -> None:
    """A run resumed after a full disk writes them, once, before anything new."""
    first, second = Jsonl(), Jsonl()
    with running(tmp_path, plugin=first) as run:
        log(run, 1, {"a": 1.0})
        with no_file_longer_than((tmp_path / "metrics.jsonl").stat().st_size + 9):
            log(run, 2, {"a": 2.0})
            log(run, 3, {"a": 3.0})
            state = first.state_dict()
            first._waiting.clear()  # as if killed now
    for step in (4, 5):
        with running(tmp_path, plugin=second) as run:
            second.load_state_dict(state)
            log(run, step, {"a": float(step)})
    assert [(line["step"], line["a"]) for line in lines(tmp_path)] == [(n, float(n)) for n in range(1, 6)]


def test_what_a_checkpoint_counts_on_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are synced as the state is saved; where that fails the state holds them, and no line twice."""
    plugin = Jsonl()
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda number: synced.append(os.fstat(number).st_size))
    with running(tmp_path, plugin=plugin) as run:
        log(run, 1, {"a": 1.0})
        assert plugin.state_dict() == {"lines": []}
        assert synced[-1] == (tmp_path / "metrics.jsonl").stat().st_size

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.fsync", fail)
        log(run, 2, {"a": 2.0})
        state = plugin.state_dict()
    (line,) = cast("list[str]", state["lines"])
    assert json.loads(line)["step"] == 2
    monkeypatch.undo()
    with running(tmp_path, plugin=plugin) as run:
        plugin.load_state_dict(state)
        log(run, 3, {"a": 3.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_the_file_is_closed_at_the_end(tmp_path: Path) -> None:
    """A plugin that lives longer than its run holds nothing open, and a late log is dropped."""
    with running(tmp_path) as run:
        log(run, 1, {"a": 1.0})
    log(run, 2, {"a": 2.0})
    assert run.plugins["jsonl"]._file is None
    assert len(lines(tmp_path)) == 1
