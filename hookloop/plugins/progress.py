"""``progress``: how fast and how well it goes, and a stop where the loss is no number any more."""

from __future__ import annotations

import math
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import define, field
from attrs.validators import ge

from hookloop.errors import Diverged
from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from rich.progress import Progress, TaskID
    from torch import Tensor

    from hookloop.core import Run

_LINE_SECONDS = 10.0
"""Least time between two lines where there is no bar."""
_BAR_SECONDS = 0.1
_HEADLINES = ("train/loss", "val/loss", "inference/error")
_LONGEST_BATCH = 300


@define(eq=False)
class Window:
    """The losses of the batches since the last log, by (epoch, batch of the epoch, step)."""

    run: Run | None = None
    settled: list[tuple[tuple[int, int, int], dict[str, float]]] = field(factory=list)
    """On the host, and finite."""
    pending: list[tuple[tuple[int, int, int], Mapping[str, Tensor]]] = field(factory=list)
    """Still on the device."""

    def add(self, at: tuple[int, int, int], losses: Mapping[str, Tensor]) -> None:
        """Remember a batch's losses without waiting for them."""
        self.pending.append((at, losses))

    def settle(self) -> None:
        """Move what is pending to the host, all at once.

        :raises Diverged: naming the first batch with a loss that is not finite.
        """
        if not self.pending:
            return
        import torch

        moved = torch.stack([value for _, losses in self.pending for value in losses.values()])
        values = iter(moved.float().tolist())
        found = [(at, {key: next(values) for key in losses}) for at, losses in self.pending]
        for at, losses in found:
            for key, value in losses.items():
                if not math.isfinite(value) and key.split("/")[0] == "loss":
                    raise Diverged(_diagnosis(self.run, at, key, value))
        self.pending.clear()
        self.settled += found

    def means(self) -> dict[str, float]:
        """Average what is settled by key, over the batches that have the key."""
        columns: dict[str, list[float]] = {}
        for _, losses in self.settled:
            for key, value in losses.items():
                columns.setdefault(key, []).append(value)
        return {key: math.fsum(values) / len(values) for key, values in columns.items()}

    def clear(self) -> None:
        """Begin anew."""
        self.settled, self.pending = [], []


def _diagnosis(run: Run | None, at: tuple[int, int, int], key: str, value: float) -> str:
    epoch, batch, step = at
    text = f"{key} is {value} at step {step} (batch {batch} of epoch {epoch + 1}), expected a finite number"
    if run is None:
        return text
    last = run.dir / "checkpoints" / "latest.ckpt"
    good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
    return (
        f"{text}; the batch is {_describe_batch(run, epoch, batch)}; {good}; "
        "look at that data, lower optimization.lr or set optimization.clip_norm"
    )


def _describe_batch(run: Run, epoch: int, batch: int) -> str:
    """Read the batch again, since nobody keeps batches, and let it tell its times."""
    with suppress(Exception):  # the divergence is what must be reported
        found = next(iter(run.task.data["train"].batches(epoch, start=batch, stop=batch + 1)))
        return " ".join(str(found).split())[:_LONGEST_BATCH]
    return "no longer readable"


@define(eq=False)
class Clock:
    """Times training alone: between epochs and while validating it stands still."""

    batches: int = 0
    """Since the last lap."""
    _spent: float = 0.0
    _since: float | None = None

    def go(self) -> None:
        """Time passes from now on."""
        self.pause()
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stand still until :meth:`go`."""
        if self._since is not None:
            self._spent += time.perf_counter() - self._since
            self._since = None

    def lap(self) -> float:
        """Return the batches per second since the last lap."""
        self.go()
        speed = self.batches / max(self._spent, 1e-9)
        self.batches, self._spent = 0, 0.0
        return speed


@define(eq=False)
class Lines:
    """Tell now and then, where there is no terminal."""

    _last: float = -math.inf

    def begin(self, run: Run) -> None:
        """Say nothing: its end is told."""

    def move(self, run: Run) -> None:
        """Say nothing: a line a batch is too many."""

    def show(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Tell the metrics unless something has been told just now."""
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            at = run.progress
            run.events.info("progress.made", epoch=at.epoch + 1, batch=at.batch, step=at.step, **metrics)


@define(eq=False)
class Bar:
    """A bar per epoch on a terminal."""

    _bar: Progress
    _task: TaskID | None = None
    _numbers: str = ""
    _last: float = -math.inf

    def begin(self, run: Run) -> None:
        """Start the epoch's bar, where a resume left it."""
        epoch = f"{run.progress.epoch + 1}/{run.config.max_epochs}"
        total, done = run.task.data["train"].n_batches, run.progress.batch
        for old in self._bar.task_ids:
            self._bar.remove_task(old)
        self._task = self._bar.add_task("", epoch=epoch, numbers=self._numbers, total=total, completed=done)

    def move(self, run: Run) -> None:
        """Move the bar, not more often than an eye can see."""
        now = time.monotonic()
        at_end = run.progress.batch == run.task.data["train"].n_batches
        if self._task is not None and (at_end or now - self._last >= _BAR_SECONDS):
            self._last = now
            self._bar.update(self._task, completed=run.progress.batch)

    def show(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Put the numbers beside the bar."""
        if self._task is not None:
            loss, speed = metrics["batch/loss"], metrics["batch/samples_per_second"]
            self._numbers = f"step {run.progress.step}  loss {loss:.4g}  {speed:.4g} samples/s"
            self._bar.update(self._task, numbers=self._numbers)


def _make_display(run: Run) -> Lines | Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (run.ranks.leads and sys.stderr.isatty() and console.is_interactive):
        return Lines()
    epoch, numbers = TextColumn("epoch {task.fields[epoch]}"), TextColumn("{task.fields[numbers]}")
    columns = (epoch, BarColumn(), MofNCompleteColumn(), numbers, TimeRemainingColumn())
    return Bar(run.cleanup.enter_context(Progress(*columns, console=console)))


@define(eq=False)
class ProgressReport:
    """Log the mean losses, the learning rate and the speed every so many batches, and show them to people.

    Losses stay on the device until they are logged, validated or saved; only then are they found to be
    finite or not.
    """

    every_n_batches: int = field(
        default=100, validator=ge(1), metadata=doc("how many batches lie between two logs")
    )
    first_batch: bool = field(
        default=True, metadata=doc("log the first batch's loss at step 0, before anything is learnt")
    )
    _window: Window = field(init=False, factory=Window)
    _clock: Clock = field(init=False, factory=Clock)
    _display: Lines | Bar = field(init=False, factory=Lines)

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Begin a window and choose between a bar and lines."""
        self._window, self._clock = Window(run), Clock()
        self._display = _make_display(run)

    @hookimpl(wrapper=True)  # the clock starts when everyone is ready
    def before_epoch(self, run: Run) -> Generator[None, list[object], list[object]]:
        """Start the clock; before the very first batch log its loss."""
        if self.first_batch and run.progress.step == 0:
            run.log(_batch_keys(_first_losses(run)))
        self._display.begin(run)
        answers = yield
        self._clock.go()
        return answers

    @hookimpl
    def after_batch(self, run: Run, losses: Mapping[str, Tensor]) -> None:
        """Remember the losses; every so many batches check and log them."""
        at = run.progress
        self._window.add((at.epoch, at.batch - 1, at.step), losses)
        self._clock.batches += 1
        if at.step % self.every_n_batches == 0:
            self._log(run)
        self._display.move(run)

    def _log(self, run: Run) -> None:
        self._window.settle()
        metrics = _batch_keys(self._window.means())
        metrics["batch/lr"] = run.optimization.learning_rate
        data = run.task.data["train"]
        metrics["batch/samples_per_second"] = self._clock.lap() * data.n_samples / data.n_batches
        self._window.clear()
        run.log(metrics)
        self._display.show(run, metrics)

    @hookimpl(wrapper=True, tryfirst=True)  # before any work is spent on a model that has diverged
    def validate(self) -> Generator[None, list[object], list[object]]:
        """Check the losses since the last log, and keep validation out of the speed."""
        self._window.settle()
        self._clock.pause()
        return (yield)

    @hookimpl
    def after_evaluation(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Tell the headlines of an evaluation in the middle of an epoch; those of its end are told with it."""
        if run.progress.batch:
            run.events.info("evaluation.finished", step=run.progress.step, **_headlines(metrics))
            self._clock.go()

    @hookimpl
    def after_epoch(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Tell the epoch's headlines."""
        at = run.progress
        run.events.info("epoch.finished", epoch=at.epoch, step=at.step, **_headlines(metrics))

    @hookimpl
    def shutdown(self, error: BaseException | None) -> None:
        """Check what has not been logged yet."""
        if error is None:
            self._window.settle()

    def state_dict(self) -> dict[str, object]:
        """Return the losses since the last log, so that the next log is the same after a resume.

        :raises Diverged: where one is not finite: such a state is not worth saving.
        """
        self._window.settle()
        return {"window": [[*at, dict(losses)] for at, losses in self._window.settled]}

    def load_state_dict(self, state: Mapping[str, Sequence[tuple[int, int, int, dict[str, float]]]]) -> None:
        """Take up the losses since the last log."""
        self._window.clear()
        self._window.settled = [
            ((epoch, batch, step), dict(losses)) for epoch, batch, step, losses in state["window"]
        ]


def _headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: metrics[key] for key in _HEADLINES if key in metrics}


def _batch_keys(losses: Mapping[str, float]) -> dict[str, float]:
    return {f"batch/{key}": value for key, value in losses.items()}


def _first_losses(run: Run) -> dict[str, float]:
    """Measure the first batch's losses by a model that has learnt nothing.

    :raises Diverged: where one is not finite.
    """
    import torch

    from hookloop.evaluation import evaluating
    from hookloop.seeding import seed_torch

    data = run.data["train"]
    batch = next(iter(data.batches(0, start=0, stop=1)))
    seed_torch(run.seed("first_batch"), run.device)
    with torch.no_grad(), evaluating(run.task.model), run.optimization.autocast():
        losses = run.task.loss(batch)
    share = run.ranks.share
    weight = share.weight(min(data.batch_size, data.n_samples)) / share.world
    every = run.ranks.gather({key: value.float().item() * weight for key, value in losses.items()})
    first = Window(run)
    first.add((0, 0, 0), {key: torch.tensor(sum(own[key] for own in every)) for key in losses})
    first.settle()
    return first.means()
