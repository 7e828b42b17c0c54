"""Weights & Biases for real, offline; and whatever happens to its server, the run goes on."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import pytest
import torch
from matplotlib.figure import Figure

import hookloop.hookspecs
from hookloop.core import Run
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.logs import events_to
from hookloop.plugins import wandb as plugin_module
from hookloop.plugins.wandb import Wandb
from hookloop.settings import RunConfig

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no server and no settings of whoever runs the tests."""
    for key in [key for key in os.environ if key.startswith("WANDB")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@contextmanager
def running(
    directory: Path, plugin: Wandb, console: io.StringIO | None = None, *others: object
) -> Iterator[Run]:
    """Make a run with just this plugin, from ``before_run`` to the end of its cleanup."""
    manager = pluggy.PluginManager("hookloop")
    manager.add_hookspecs(hookloop.hookspecs)
    for one in (plugin, *others):
        manager.register(one)
    run = Run(
        config=RunConfig(dir=directory),
        manager=manager,
        plugins={"wandb": plugin},
        device=torch.device("cpu"),
        events=events_to(None, console or io.StringIO()),
        document={"wandb": {"api_key": "hunter2"}, "optimization": {"lr": 0.25}},
    )
    directory.mkdir(exist_ok=True)
    with run.cleanup:
        run.hook.before_run(run=run)
        run.hook.before_epoch(run=run)
        yield run
        run.hook.shutdown(run=run, error=None)


def log(run: Run, step: int, metrics: dict[str, float | Figure]) -> None:
    """Log *metrics* at *step*."""
    run.progress.step = step
    run.log(metrics)


def records(directory: Path) -> list[Any]:
    """Every record of every ``.wandb`` file, in LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(directory.glob("wandb/**/*.wandb")):
        content, at, whole = path.read_bytes(), 7, b""
        while at < len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            whole += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = Record()
                record.ParseFromString(whole)
                found.append(record)
                whole = b""
    return found


def history(directory: Path) -> list[dict[str, object]]:
    """Read what was logged."""
    rows = []
    for record in records(directory):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows


def test_offline_everything_is_in_the_runs_directory(tmp_path: Path) -> None:
    """Numbers by step and figures; people are told how to upload them."""
    console, figure = io.StringIO(), Figure()
    figure.add_subplot()
    with running(tmp_path / "run", Wandb(mode="offline"), console) as run:
        log(run, 10, {"val/loss": 0.5, "epoch": 1})
        log(run, 20, {"picture": figure})
        log(run, 15, {"val/loss": 0.25})
    rows = history(tmp_path / "run")
    assert rows[0] == {"step": 10, "val/loss": 0.5, "epoch": 1}
    assert rows[1]["step"] == 20
    assert any(key.startswith("picture") for key in rows[1])
    assert rows[2] == {"step": 15, "val/loss": 0.25}  # a step that goes back is not dropped
    (file,) = (tmp_path / "run").glob("wandb/**/*.wandb")
    assert f"wandb sync {file.parent}" in console.getvalue()
    assert "WARNING" not in console.getvalue()
    assert list(file.parent.glob("**/*.png"))


def test_the_config_is_sent_without_secrets(tmp_path: Path) -> None:
    """Nothing in the run's directory knows them, nor the command line or the code."""
    with running(tmp_path, Wandb(mode="offline")):
        pass
    content = b"".join(path.read_bytes() for path in tmp_path.glob("wandb/**/*.wandb"))
    assert b"hunter2" not in content
    assert b'"lr"' in content or b"optimization" in content
    assert Path(__file__).name.encode() not in content


def test_a_resumed_run_has_the_same_id(tmp_path: Path) -> None:
    """The directory keeps it; in another directory the checkpoint does."""
    first, second, third = (Wandb(mode="offline") for _ in range(3))
    for plugin in (first, second):
        with running(tmp_path / "a", plugin):
            pass

    class Restoring:
        @hookimpl(trylast=True)
        def before_run(self) -> None:
            """Do what a checkpoint does."""
            third.load_state_dict(first.state_dict())

    with running(tmp_path / "b", third, None, Restoring()):
        pass
    ids = {str(plugin.state_dict()["id"]) for plugin in (first, second, third)}
    assert len(ids) == 1
    for directory in (tmp_path / "a", tmp_path / "b"):
        assert {(directory / "wandb_run_id").read_text().strip()} == ids
        assert {r.run.run_id for r in records(directory) if r.WhichOneof("record_type") == "run"} == ids


def test_without_a_key_auto_is_offline_and_online_says_so(tmp_path: Path) -> None:
    """Nobody is asked for a key in the middle of the night."""
    for mode, warnings in (("auto", 0), ("online", 1)):
        console = io.StringIO()
        with running(tmp_path / mode, Wandb(mode=mode), console):
            pass
        assert "wandb sync" in console.getvalue()
        assert console.getvalue().count("WARNING") == warnings


def test_an_unreachable_server_costs_its_time_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Then the run is offline, under the same id, after a single warning."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    console, began = io.StringIO(), time.monotonic()
    with running(tmp_path, Wandb(timeout=2.0), console) as run:
        log(run, 10, {"val/loss": 0.5})
    assert time.monotonic() - began < 12
    assert console.getvalue().count("WARNING") == 1
    assert "wandb sync" in console.getvalue()
    assert {"step": 10, "val/loss": 0.5} in history(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_failing_log_is_warned_of_once(tmp_path: Path) -> None:
    """Then the plugin is silent, and the run goes on."""
    console = io.StringIO()
    with running(tmp_path, Wandb(mode="offline"), console) as run:
        for step in range(3):
            log(run, step, {"picture": "no figure"})  # type: ignore[dict-item]
    assert console.getvalue().count("wandb.silenced") == 1


def test_a_directory_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """The run goes on without wandb."""
    (tmp_path / "wandb").write_text("in the way")
    console = io.StringIO()
    with running(tmp_path, Wandb(mode="offline"), console) as run:
        log(run, 1, {"a": 1.0})
    assert console.getvalue().count("wandb.failed") == 1


def test_the_process_is_left_as_it_was_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Environment, working directory and hooks; and nothing is printed past the events."""
    before = dict(os.environ), Path.cwd(), sys.excepthook, sys.exit, sys.stdout
    with running(tmp_path, Wandb(mode="offline")) as run:
        log(run, 1, {"a": 1.0})
    assert (dict(os.environ), Path.cwd(), sys.excepthook, sys.exit, sys.stdout) == before
    assert capfd.readouterr() == ("", "")


def test_disabled_imports_and_writes_nothing(tmp_path: Path) -> None:
    """Not even where the package is missing."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.modules["wandb"] = None
import test_wandb as t; from pathlib import Path
with t.running(Path({str(tmp_path)!r}), t.Wandb(mode="disabled")) as run:
    t.log(run, 1, {{"a": 1.0}})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(HookloopError, match=r"pip install 'hookloop\[wandb\]'"), running(tmp_path, Wandb()):
        pass


@pytest.mark.parametrize(
    ("content", "url", "found"),
    [
        ("machine api.wandb.ai login user password k", None, True),
        ("machine api.wandb.ai login user password k", "https://wandb.example.org", False),
        ("machine wandb.example.org login user password k", "https://wandb.example.org:8080/", True),
        ("nonsense", None, False),
        ("", None, False),
    ],
)
def test_a_key_is_looked_for_where_wandb_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, url: str | None, *, found: bool
) -> None:
    """In the netrc, for the server in use."""
    (tmp_path / "netrc").write_text(content)
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert plugin_module._has_key() is found


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_timeout_that_is_no_time_is_refused(timeout: float) -> None:
    """The server needs some."""
    with pytest.raises(ValueError, match="timeout"):
        Wandb(timeout=timeout)
