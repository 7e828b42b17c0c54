"""Asked to end, a run saves its state first: real processes and real signals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pluggy
import pytest
import torch

import hookloop.hookspecs
from hookloop.core import Run, train
from hookloop.distributed import Ranks, Stop
from hookloop.hookspecs import hookimpl
from hookloop.logs import events_to
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.signals import Signals
from hookloop.settings import RunConfig
from hookloop.testing import TinyData, TinyTask, events_of, fake_run

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import pluggy, torch
import hookloop.hookspecs
from hookloop import hookimpl
from hookloop.core import Run, train
from hookloop.logs import events_to
from hookloop.plugins.signals import Signals
from hookloop.settings import RunConfig

how, seconds = sys.argv[2], float(sys.argv[3])
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup

class Data:
    n_samples = n_batches = 1000
    batch_size = 1
    def batches(self, epoch, start=0, stop=None, order="main"):
        yield from range(1000)

class Task:
    data = {"train": Data()}

class Plugin:
    @hookimpl
    def make_task(self, run):
        return Task()

    @hookimpl
    def make_optimization(self, run, task):
        return object()

    @hookimpl
    def before_run(self, run):
        if how == "plain":
            return
        ready, tell = os.pipe()
        if (child := os.fork()) == 0:
            if how == "grandchild" and (last := os.fork()):
                number = os.WTERMSIG(os.waitpid(last, 0)[1])
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)  # to tell what it has died of
            os.write(tell, str(os.getpid()).encode())
            time.sleep(20)
            os._exit(99)
        os.kill(int(os.read(ready, 9)), signal.SIGTERM)
        print("child", -os.WTERMSIG(os.waitpid(child, 0)[1]), run.stopping, flush=True)

    @hookimpl
    def train_step(self, run, batch):
        print("batch", batch, flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        return {}

    @hookimpl
    def shutdown(self, run, error):
        print("saved", error, flush=True)

plugins = {"signals": Signals(), "task": Plugin()}
manager = pluggy.PluginManager("hookloop")
manager.add_hookspecs(hookloop.hookspecs)
for name, plugin in reversed(plugins.items()):
    manager.register(plugin, name)
earlier = signal.signal(signal.SIGTERM, lambda *_: None), signal.getsignal(signal.SIGINT)
mine = signal.getsignal(signal.SIGTERM)
run = Run(config=RunConfig(dir=Path(sys.argv[1])), manager=manager, plugins=plugins,
          device=torch.device("cpu"), events=events_to(None, None))
train(run)
now = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
print("restored", now[0] is mine, now[1] is earlier[1], flush=True)
sys.exit(run.stopping.code)
"""


def start(directory: Path, how: str = "plain", seconds: float = 0.3) -> subprocess.Popen[str]:
    """Start a run and wait for its first batch."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(directory), how, str(seconds)], stdout=-1, stderr=-1, text=True
    )
    if how == "plain":
        assert process.stdout is not None
        assert process.stdout.readline() == "batch 0\n"
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_the_first_signal_saves_and_ends_the_run(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The batch at hand is finished, shutdown sees no error, the handlers are as they were."""
    process = start(tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert out.splitlines() == ["saved None", "restored True True"]
    assert err.splitlines() == [
        f"hookloop: {number.name}: stopping at the next boundary; once more stops at once"
    ]
    assert process.returncode == code


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Whichever signal it is, and nothing is saved."""
    process = start(tmp_path, seconds=60)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "SIGINT" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert out == ""


def test_under_nohup_hanging_up_asks_for_nothing(tmp_path: Path) -> None:
    """What ignores SIGHUP when it starts goes on ignoring it; the others are heard."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = fake_run(tmp_path, plugin := Signals())
        with run.cleanup:
            plugin.before_run(run)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("who", ["child", "grandchild"])
def test_a_forked_child_dies_of_the_signal_and_stops_nobody(tmp_path: Path, who: str) -> None:
    """Its parent goes on training until it is asked itself, and so does the parent's parent."""
    process = start(tmp_path, who)
    assert process.stdout is not None
    assert process.stdout.readline() == f"child {-signal.SIGTERM} None\n"
    assert process.stdout.readline() == "batch 0\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert out.splitlines()[-2:] == ["saved None", "restored True True"]
    assert err.count("hookloop:") == 1
    assert process.returncode == 143


def make_run(directory: Path, plugin: Signals, console: io.StringIO) -> Run:
    """Make a run with just this plugin."""
    manager = pluggy.PluginManager("hookloop")
    manager.add_hookspecs(hookloop.hookspecs)
    manager.register(plugin, "signals")
    return Run(
        config=RunConfig(dir=directory),
        manager=manager,
        plugins={"signals": plugin},
        device=torch.device("cpu"),
        events=events_to(None, console),
    )


def test_off_the_main_thread_nothing_is_installed(tmp_path: Path) -> None:
    """Python lets only the main thread; the others are told so."""
    console = io.StringIO()
    run = make_run(tmp_path, Signals(), console)
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: run.hook.before_run(run=run))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "signals.skipped" in console.getvalue()


def test_only_the_named_signals_are_handled_and_each_run_starts_anew(tmp_path: Path) -> None:
    """What is not named stays with Python, and the first signal of a second run is a first one."""
    plugin = Signals(names=["SIGUSR2"])
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        run = make_run(tmp_path, plugin, io.StringIO())
        with run.cleanup:
            run.hook.before_run(run=run)
            assert signal.getsignal(signal.SIGTERM) is before
            os.kill(os.getpid(), signal.SIGUSR2)
        assert run.stopping is not None
        assert (run.stopping.why, run.stopping.code) == ("SIGUSR2", 128 + signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_an_earlier_reason_wins(tmp_path: Path) -> None:
    """A run that is stopping already keeps its exit code."""
    run = make_run(tmp_path, Signals(names=["SIGUSR2"]), io.StringIO())
    with run.cleanup:
        run.hook.before_run(run=run)
        run.stop("the time limit", 75)
        os.kill(os.getpid(), signal.SIGUSR2)
    assert run.stopping is not None
    assert run.stopping.code == 75


def test_some_signals_save_and_let_the_run_go_on(tmp_path: Path) -> None:
    """The state is saved after the batch at hand, the run ends as without them, the handlers come back."""

    class Sending:
        @hookimpl
        def after_batch(self, run: Run) -> None:
            number = {2: signal.SIGUSR1, 4: signal.SIGUSR2, 5: signal.SIGUSR1}.get(run.progress.step)
            if number is not None:
                os.kill(os.getpid(), number)

    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)]
    task = TinyTask(data={"train": TinyData(7)})
    run = fake_run(tmp_path, Sending(), Signals(), Checkpoint(every_n_batches=0), task=task)
    train(run)
    saved = [event["step"] for event in events_of(run) if event["event"] == "checkpoint.saved"]
    assert saved == [2, 4, 5, 7, 7]
    assert (run.stopping, run.progress.epoch) == (None, 1)
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)] == before


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP", "TERM", "15", ""])
def test_what_cannot_be_caught_is_refused(name: str) -> None:
    """The user learns it from the configuration, not from a lost run."""
    with pytest.raises(ValueError, match="expected signals that can be caught"):
        Signals(names=["SIGTERM", name])


def test_of_several_ranks_the_same_signal_counts_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keyboard and the launcher both send it; another one, or the same a while later, stops at once."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for rank, told in ((0, 1), (1, 0)):
        ended.clear()
        run = make_run(tmp_path, Signals(names=["SIGUSR1", "SIGUSR2"]), io.StringIO())
        run.ranks = Ranks(rank, 2)
        with run.cleanup:
            run.hook.before_run(run=run)
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGUSR1)
            assert (run.asked.stop, run.stopping, ended) == (Stop("SIGUSR1", 128 + signal.SIGUSR1), None, [])
            os.kill(os.getpid(), signal.SIGUSR2)
            now[0] += 6.0
            os.kill(os.getpid(), signal.SIGUSR1)
        assert ended == [128 + signal.SIGUSR2, 128 + signal.SIGUSR1]
        assert capfd.readouterr().err.count("hookloop: SIGUSR1: stopping") == told
