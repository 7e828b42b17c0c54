"""The losses are logged as means, exactly, and a run whose loss is no number stops."""

from __future__ import annotations

import io
import math
import os
import pty
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pluggy
import pytest
import torch

import hookloop.hookspecs
from hookloop.core import Run, train
from hookloop.errors import Diverged
from hookloop.hookspecs import hookimpl
from hookloop.logs import events_to
from hookloop.plugins.progress import ProgressReport
from hookloop.settings import RunConfig
from hookloop.testing import Recorder, TinyData, TinyTask, events_of, fake_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

BATCHES = 5


class Data:
    """Five batches of two samples; a batch says where it lies."""

    n_samples, batch_size, n_batches = 10, 2, BATCHES

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: str = "main"
    ) -> Iterator[str]:
        """Yield what tells its times."""
        for i in range(start, self.n_batches if stop is None else stop):
            yield f"<times of epoch {epoch} batch {i} {order}>"


@attrs.define(eq=False)
class Tiny:
    """A task whose loss after step *s* is *s*, but where *bad* says otherwise."""

    bad: dict[int, float] = attrs.field(factory=dict)
    stop_at: int | None = None
    grad_norms: dict[int, float] = attrs.field(factory=dict)
    learning_rate: float = 0.25
    logged: list[tuple[int, dict[str, float]]] = attrs.field(factory=list)
    validated: int = 0
    model: torch.nn.Module = attrs.field(factory=lambda: torch.nn.Dropout(0.5))
    seen: list[float] = attrs.field(factory=list)

    data = {"train": Data()}

    def loss(self, batch: str) -> Mapping[str, Tensor]:
        """Depend on mode and seed; only the first batch is asked for."""
        assert batch == "<times of epoch 0 batch 0 main>"
        assert not torch.is_grad_enabled()
        self.seen.append(float(torch.rand(())))
        return {"loss": self.model(torch.ones(64)).mean(), "loss/t": torch.tensor(self.bad.get(0, 3.0))}

    def autocast(self) -> nullcontext[None]:
        """Compute as it is."""
        return nullcontext()

    @hookimpl
    def make_task(self) -> Tiny:
        """Be the task."""
        return self

    @hookimpl
    def make_optimization(self) -> Tiny:
        """Be the optimization."""
        return self

    @hookimpl
    def train_step(self, run: Run) -> Mapping[str, Tensor]:
        """Lose as many as there are steps."""
        step = run.progress.step + 1
        loss = self.bad.get(step, float(step))
        norm = {"grad_norm": torch.tensor(self.grad_norms[step])} if step in self.grad_norms else {}
        return {"loss": torch.tensor(loss), "loss/t": torch.tensor(10.0 * loss), **norm}

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop where asked to."""
        if run.progress.step == self.stop_at:
            run.stop("test")

    @hookimpl
    def validate(self) -> dict[str, float]:
        """Count."""
        self.validated += 1
        return {"val/loss": 0.5}

    @hookimpl
    def log(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Keep what is about batches."""
        batch = {key: value for key, value in metrics.items() if key.startswith("batch/")}
        if batch:
            self.logged.append((run.progress.step, batch))


def make_run(directory: Path, task: Tiny, plugin: ProgressReport, console: io.StringIO | None = None) -> Run:
    """Make a run of two epochs with the task and the plugin."""
    plugins = {"task": task, "progress": plugin}
    manager = pluggy.PluginManager("hookloop")
    manager.add_hookspecs(hookloop.hookspecs)
    for name, one in reversed(plugins.items()):
        manager.register(one, name)
    events = events_to(None, console or io.StringIO())
    config = RunConfig(dir=directory, max_epochs=2)
    return Run(config=config, manager=manager, plugins=plugins, device=torch.device("cpu"), events=events)


def without_speed(logged: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    """Leave out what depends on the machine."""
    return [(step, {k: v for k, v in m.items() if k != "batch/samples_per_second"}) for step, m in logged]


def test_means_since_the_last_log_across_epochs(tmp_path: Path) -> None:
    """Steps 1-4 lose 2.5 on average, steps 5-8, the epoch's boundary among them, 6.5."""
    task = Tiny()
    train(make_run(tmp_path, task, ProgressReport(every_n_batches=4, first_batch=False)))
    assert without_speed(task.logged) == [
        (4, {"batch/loss": 2.5, "batch/loss/t": 25.0, "batch/lr": 0.25}),
        (8, {"batch/loss": 6.5, "batch/loss/t": 65.0, "batch/lr": 0.25}),
    ]
    assert all(metrics["batch/samples_per_second"] > 0 for _, metrics in task.logged)


def test_the_gradient_norm_is_averaged_over_the_batches_that_have_one(tmp_path: Path) -> None:
    """With accumulation not every batch has; infinite it is no loss."""
    task = Tiny(grad_norms={2: 3.0, 4: 5.0, 8: math.inf})
    train(make_run(tmp_path, task, ProgressReport(every_n_batches=4, first_batch=False)))
    assert [metrics["batch/grad_norm"] for _, metrics in task.logged] == [4.0, math.inf]


def test_the_first_batch_is_logged_at_step_0(tmp_path: Path) -> None:
    """In evaluation mode, without dropout; the same draw in every run; the mode is put back."""
    tasks = [Tiny(), Tiny()]
    for task in tasks:
        torch.manual_seed(id(task))
        train(make_run(tmp_path, task, ProgressReport(every_n_batches=100)))
        assert task.logged == [(0, {"batch/loss": 1.0, "batch/loss/t": 3.0})]
        assert task.model.training
    assert tasks[0].seen == tasks[1].seen


def test_a_resumed_run_logs_no_first_batch(tmp_path: Path) -> None:
    """It has learnt already."""
    task, plugin = Tiny(), ProgressReport(every_n_batches=100)
    run = make_run(tmp_path, task, plugin)
    run.progress.batch = run.progress.step = 2
    train(run)
    assert task.logged == []


@pytest.mark.parametrize("stop", range(1, 2 * BATCHES))
def test_stopped_anywhere_and_resumed_the_logs_are_the_same(tmp_path: Path, stop: int) -> None:
    """The window between two logs is part of the state, bit for bit."""
    bad = {step: 0.1 * step**3 for step in range(1, 11)}
    whole = Tiny(bad=bad)
    train(make_run(tmp_path, whole, ProgressReport(every_n_batches=3)))

    first, plugin = Tiny(bad=bad, stop_at=stop), ProgressReport(every_n_batches=3)
    run = make_run(tmp_path, first, plugin)
    train(run)
    torch.save(plugin.state_dict(), tmp_path / "state.pt")
    second, resumed = Tiny(bad=bad), ProgressReport(every_n_batches=3)

    class Restoring:
        @hookimpl(trylast=True)
        def before_run(self, run: Run) -> None:
            """Do what a checkpoint does."""
            resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            run.progress.epoch, run.progress.batch = divmod(stop, BATCHES)
            run.progress.step = stop

    again = make_run(tmp_path, second, resumed)
    again.manager.register(Restoring())
    train(again)
    assert without_speed(first.logged + second.logged) == without_speed(whole.logged)


def test_state_survives_saving_and_loading(tmp_path: Path) -> None:
    """What is saved, loaded and saved again is equal."""
    plugin, other = ProgressReport(first_batch=False), ProgressReport()
    train(make_run(tmp_path, Tiny(stop_at=3), plugin))
    other.load_state_dict(plugin.state_dict())
    assert other.state_dict() == plugin.state_dict()
    assert len(plugin.state_dict()["window"]) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_its_batch_and_the_last_checkpoint_are_named(tmp_path: Path, value: float) -> None:
    """Step 3 is found at the log of step 4, with what its batch says of itself."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest.ckpt").touch()
    task = Tiny(bad={3: value, 4: math.nan})
    with pytest.raises(Diverged) as caught:
        train(make_run(tmp_path, task, ProgressReport(every_n_batches=4, first_batch=False)))
    text = str(caught.value)
    assert f"loss is {value} at step 3 (batch 2 of epoch 1)" in text
    assert "<times of epoch 0 batch 2 main>" in text
    assert f"last good checkpoint is {tmp_path / 'checkpoints' / 'latest.ckpt'}" in text
    assert "\n" not in text
    assert task.logged == []


def test_a_bad_loss_is_found_before_validation(tmp_path: Path) -> None:
    """No work is spent on a model that has diverged."""
    task = Tiny(bad={5: math.nan})
    with pytest.raises(Diverged, match=r"step 5 \(batch 4 of epoch 1\).*there is no checkpoint yet"):
        train(make_run(tmp_path, task, ProgressReport(first_batch=False)))
    assert task.validated == 0


def test_a_batch_of_the_epoch_before_is_named_as_such(tmp_path: Path) -> None:
    """The window may reach back over an epoch's end where nothing is validated."""
    task = Tiny(bad={5: math.nan})
    run = make_run(tmp_path, task, ProgressReport(every_n_batches=7, first_batch=False))
    run.config = attrs.evolve(run.config, validate_every="2 epochs")
    with pytest.raises(Diverged, match=r"step 5 \(batch 4 of epoch 1\).*<times of epoch 0 batch 4 main>"):
        train(run)


def test_a_bad_loss_is_found_when_the_run_is_stopped(tmp_path: Path) -> None:
    """A stop is no success then."""
    with pytest.raises(Diverged, match="step 2 "):
        train(make_run(tmp_path, Tiny(bad={2: math.nan}, stop_at=2), ProgressReport(first_batch=False)))


def test_a_bad_loss_keeps_the_state_from_being_saved(tmp_path: Path) -> None:
    """Else the last checkpoint would not be a good one."""
    plugin = ProgressReport(first_batch=False)
    run = make_run(tmp_path, Tiny(bad={1: math.nan}), plugin)
    plugin.before_run(run)
    run.task = run.plugins["task"]
    run.progress.step = run.progress.batch = 1
    plugin.after_batch(run, {"loss": torch.tensor(math.nan)})
    with pytest.raises(Diverged, match=r"step 1 .*<times of epoch 0 batch 0 main>"):
        plugin.state_dict()


def test_a_bad_first_batch_stops_before_anything_is_learnt(tmp_path: Path) -> None:
    """Step 0 is named."""
    with pytest.raises(Diverged, match=r"loss/t is nan at step 0 "):
        train(make_run(tmp_path, Tiny(bad={0: math.nan}), ProgressReport()))


def test_an_error_of_another_kind_is_not_covered_up(tmp_path: Path) -> None:
    """What crashed is what is raised, even if a loss was bad before."""
    task, plugin = Tiny(bad={1: math.nan}), ProgressReport(first_batch=False)
    run = make_run(tmp_path, task, plugin)

    class Crash:
        @hookimpl
        def after_batch(self) -> None:
            """Crash."""
            raise ZeroDivisionError

    run.manager.register(Crash())
    with pytest.raises(ZeroDivisionError):
        train(run)


def test_without_a_terminal_there_are_lines_now_and_then(tmp_path: Path) -> None:
    """One for the first log, no more within ten seconds, and one for each epoch."""
    console = io.StringIO()
    train(make_run(tmp_path, Tiny(), ProgressReport(every_n_batches=1), console))
    lines = [line.split(" ", 1)[1] for line in console.getvalue().splitlines()]
    assert [line.split()[0] for line in lines] == ["progress.made", "epoch.finished", "epoch.finished"]
    assert lines[0].startswith("progress.made epoch=1 batch=1 step=1 batch/loss=1 ")
    assert lines[1] == "epoch.finished epoch=1 step=5 val/loss=0.5"


@pytest.mark.parametrize("value", [0, -1])
def test_a_cadence_below_one_is_refused(value: int) -> None:
    """There is no log every 0 batches."""
    with pytest.raises(ValueError, match="every_n_batches"):
        ProgressReport(every_n_batches=value)


def test_a_terminal_gets_a_bar_and_events_above_it(tmp_path: Path) -> None:
    """On a real terminal, which afterwards has its cursor back."""
    script = (
        "import sys, importlib.util as u; from pathlib import Path\n"
        f"s = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(s); sys.modules['t'] = t\n"
        "s.loader.exec_module(t)\n"
        "run = t.make_run(Path(sys.argv[1]), t.Tiny(), t.ProgressReport(every_n_batches=5))\n"
        "run.events = t.events_to(None, None)\n"
        "t.train(run)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "epoch 1/2" in text
    assert "5/5" in text
    assert "loss 8" in text
    assert text.count("epoch.finished") == 2
    assert text.rstrip().endswith("\x1b[?25h")


def test_the_speed_counts_the_time_of_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches after an evaluation in the middle of an epoch are timed too; what others do before one is not."""
    now = [0.0]

    class Passing:
        """A batch takes a second, an evaluation and getting ready for an epoch a hundred."""

        @hookimpl(trylast=True)
        def before_epoch(self) -> None:
            now[0] += 100.0

        @hookimpl
        def before_batch(self) -> None:
            now[0] += 1.0

        @hookimpl
        def validate(self) -> None:
            now[0] += 100.0

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    task = TinyTask(data={"train": TinyData(10), "validation": TinyData(1)})
    progress = ProgressReport(every_n_batches=5, first_batch=False)
    options = {"max_epochs": 2, "validate_every": "2 batches"}
    train(fake_run(tmp_path, Passing(), recorder := Recorder(), progress, task=task, **options))
    assert recorder.metrics("batch/samples_per_second") == dict.fromkeys([5, 10, 15, 20], 1.0)


def test_an_evaluation_within_an_epoch_is_told(tmp_path: Path) -> None:
    """Its headlines are shown where it happens; at the end of an epoch they come with it."""
    task = TinyTask(data={"train": TinyData(4), "validation": TinyData(1)})
    run = fake_run(tmp_path, ProgressReport(first_batch=False), task=task, validate_every="2 batches")
    train(run)
    told = [(e["event"], e["step"], e["val/loss"]) for e in events_of(run) if "val/loss" in e]
    first = (0.0 + 1.0) / 2  # halfway to sample 0, then to 1; the only validation sample is 0
    last = ((first + 2.0) / 2 + 3.0) / 2
    assert told == [("evaluation.finished", 2, first**2), ("epoch.finished", 4, last**2)]
