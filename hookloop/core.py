"""The loop: the order of events, the counters and the request to stop. Nothing else."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from attrs import define, field

from hookloop.distributed import Ranks, Requests, Stop
from hookloop.errors import HookloopError
from hookloop.hot import freeze
from hookloop.task import shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from matplotlib.figure import Figure
    from pluggy import HookCaller, HookRelay, PluginManager
    from structlog.typing import FilteringBoundLogger

    from hookloop.optimization import Optimization
    from hookloop.settings import RunConfig
    from hookloop.task import Data, Task


@define
class Progress:
    """How much work is finished. The loop is the only writer; cadence and randomness are functions of it."""

    epoch: int = 0
    batch: int = 0
    """Batches of the epoch at hand."""
    step: int = 0
    """Batches in all."""
    evaluated: int = 0
    """The step of the last evaluation that was finished in the middle of an epoch."""


@define(eq=False)
class Run:
    """One run: what was asked for, how far it is, and who listens. Passed to every hook, never fetched."""

    config: RunConfig
    manager: PluginManager
    plugins: Mapping[str, object]
    """The plugins by name, in listing order."""
    device: torch.device
    events: FilteringBoundLogger
    """Where to tell people and ``log.jsonl``: ``run.events.info("noun.participle", key=value)``."""
    document: Mapping[str, object] = field(factory=dict)
    """The whole configuration as plain data, as it was run."""
    progress: Progress = field(factory=Progress)
    cleanup: ExitStack = field(factory=ExitStack)
    """Releases, registered by whoever acquires, unwound after ``shutdown``."""
    ranks: Ranks = field(factory=Ranks)
    """The processes that train the same model; mostly there is one."""
    asked: Requests = field(factory=Requests)
    """What this process asks for, and the others do not know yet."""
    stopping: Stop | None = None
    """What all ranks have agreed on."""
    saving: str | None = None
    """Why the state is to be saved after the batch at hand; whoever saves it clears it."""
    started: float = field(factory=time.monotonic)
    task: Task = field(init=False)
    optimization: Optimization = field(init=False)

    @property
    def hook(self) -> HookRelay:
        """The hooks, called by keyword: ``run.hook.validate(run=run)``."""
        return self.manager.hook

    @property
    def dir(self) -> Path:
        """The run's directory."""
        return self.config.dir

    def seed(self, purpose: str, *counters: int) -> int:
        """Seed a draw by what it is for and which one it is: a pure function of the run's own seed too.

        :returns: a non-negative integer of 63 bits.
        """
        key = f"{self.config.seed}/{purpose}/{'/'.join(map(str, counters))}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1

    @property
    def data(self) -> Mapping[str, Data]:
        """The splits, of whose batches every rank reads its own rows."""
        return shared(self.task.data, self.ranks.share)

    def stop(self, why: str, code: int = 0) -> None:
        """Ask the run to stop at the next boundary between units of work; the first reason wins.

        Of several ranks each goes on until all have heard of it: see :meth:`agree`.
        """
        if self.asked.stop is None:
            self.asked.stop = Stop(why, code)
        if self.ranks.world == 1 and self.stopping is None:
            self.stopping = self.asked.stop

    def save(self, why: str) -> None:
        """Ask for the state to be saved after the batch at hand, without stopping."""
        if self.ranks.world == 1:
            self.saving = why
        else:
            self.asked.save = why

    def agree(self) -> bool:
        """Whether all ranks are to stop, called between two units of work that every rank does equally often."""
        if self.ranks.world > 1:
            self.heed(self.ranks.agree(self.asked))
        return self.stopping is not None

    def heed(self, agreed: Requests) -> None:
        """Do what all ranks have agreed on."""
        if self.stopping is None:
            self.stopping = agreed.stop
        if agreed.save is not None:
            self.saving = agreed.save
            self.asked.save = None

    def log(self, metrics: Mapping[str, float | Figure]) -> None:
        """Have *metrics* written, for the step at hand."""
        self.hook.log(run=self, metrics=metrics)


def train(run: Run, begun: Callable[[], None] = lambda: None) -> None:
    """Train until all epochs are done or somebody asks to stop; ``shutdown`` is called whatever happens.

    :param begun: called once everybody is ready and what there was to resume has been accepted.

    :raises HookloopError: for the user's mistakes.
    """
    with closing(run):
        prepare(run)
        begun()
        _fit(run)


@contextmanager
def closing(run: Run) -> Iterator[None]:
    """Call ``shutdown``, then unwind ``run.cleanup``, whatever happens within."""
    error: BaseException | None = None
    with run.cleanup:
        try:
            yield
        except BaseException as problem:
            error = problem
            run.ranks.fail(problem)
            raise
        finally:
            _shut_down(run, error)


def prepare(run: Run) -> None:
    """Make the task and what optimizes it, then let everyone get ready."""
    answers = [(name, task) for name, ask in _one_by_one(run, "make_task") for task in ask(run=run)]
    if len(answers) != 1:
        found = ", ".join(name for name, _ in answers) or "none"
        raise HookloopError(
            f"plugins that make a task: found {found}, expected exactly one; "
            "name one in --plugins, such as --plugins downscaling,ema"
        )
    run.task = answers[0][1]
    optimization = run.hook.make_optimization(run=run, task=run.task)
    if optimization is None:
        raise HookloopError("plugins that make an optimization: found none; leave out no:optimization")
    run.optimization = optimization
    run.hook.before_run(run=run)


def _one_by_one(run: Run, hook: str) -> Iterator[tuple[str, HookCaller]]:
    """Yield each plugin that implements *hook*, in firing order, with what calls it alone."""
    impls = getattr(run.hook, hook).get_hookimpls()
    for name in dict.fromkeys(impl.plugin_name for impl in reversed(impls)):
        others = [plugin for other, plugin in run.plugins.items() if other != name]
        yield name, run.manager.subset_hook_caller(hook, remove_plugins=others)


def _fit(run: Run) -> None:
    if run.config.evaluate_before_training and run.progress.step == 0:
        metrics = evaluate(run)
        if not run.agree():
            run.log({**metrics, "epoch": 0})
    segment = run.config.segment_epochs
    last = min(run.config.max_epochs, run.progress.epoch + segment if segment else run.config.max_epochs)
    while run.progress.epoch < last and not run.agree():
        _epoch(run)


def _epoch(run: Run) -> None:
    began = time.perf_counter()
    at = run.progress
    run.hook.before_epoch(run=run)
    if not run.agree():
        _batches(run)
    if run.agree():
        return
    trained = time.perf_counter() - began
    number = at.epoch + 1
    metrics: dict[str, float] = {}
    if run.config.evaluates_after(number, at.step):
        metrics = evaluate(run)
        if run.agree():  # evaluated again on resume
            return
    at.epoch, at.batch = number, 0
    total = time.perf_counter() - began
    run.log({**metrics, "epoch": number, "epoch/train_seconds": trained, "epoch/total_seconds": total})
    if metrics:
        run.hook.after_evaluation(run=run, metrics=metrics)
    run.hook.after_epoch(run=run, metrics=metrics)


def _batches(run: Run) -> None:
    """Train on what is left of the epoch, with the per-batch hooks frozen: see :mod:`hookloop.hot`."""
    at = run.progress
    before_batch = freeze(run.hook.before_batch)
    train_step = freeze(run.hook.train_step)
    after_batch = freeze(run.hook.after_batch)
    limit = run.config.time_limit_seconds
    deadline = None if limit is None else run.started + limit
    data, several = run.data["train"], run.ranks.world > 1
    every = run.config.validation_batches
    if every and at.batch:  # resumed where an evaluation was cut short
        _evaluate_within(run, every, data.n_batches)
    if run.agree():
        return
    for batch in data.batches(at.epoch, start=at.batch):
        before_batch(run, batch)
        losses = train_step(run, batch)
        at.batch, at.step = at.batch + 1, at.step + 1
        after_batch(run, batch, losses)
        if deadline is not None and time.monotonic() > deadline:
            run.stop(f"the time limit of {run.config.time_limit} is reached", 75)
        if several:
            run.heed(run.ranks.exchange(run.asked))
        if every and not run.stopping:
            _evaluate_within(run, every, data.n_batches)
        if run.stopping:
            return


def _evaluate_within(run: Run, every: int, n_batches: int) -> None:
    """Evaluate in the middle of an epoch where it is due and has not been done; its end has its own."""
    at = run.progress
    if at.step % every or at.batch == n_batches or at.evaluated == at.step:
        return
    metrics = evaluate(run)
    if run.agree():  # evaluated again on resume
        return
    at.evaluated = at.step
    run.log({**metrics, "epoch": at.epoch})
    run.hook.after_evaluation(run=run, metrics=metrics)


def evaluate(run: Run) -> dict[str, float]:
    """Validate, then infer; the answers merged, with how long each took.

    What rank 0 has found counts on every rank, so that all decide alike.
    """
    began = time.perf_counter()
    metrics = merge(run.hook.validate(run=run))
    metrics["epoch/validation_seconds"] = time.perf_counter() - began
    if run.agree():
        return metrics
    began = time.perf_counter()
    inferred = run.hook.infer(run=run)
    if any(inferred):
        metrics = merge([metrics, *inferred])
        metrics["epoch/inference_seconds"] = time.perf_counter() - began
    return run.ranks.broadcast(metrics)


def merge(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """All answers in one mapping.

    :raises HookloopError: where two answers share a key.
    """
    merged: dict[str, float] = {}
    for answer in answers:
        if both := merged.keys() & answer.keys():
            raise HookloopError(
                f"metrics answered by two plugins: {', '.join(sorted(both))}; expected one each"
            )
        merged.update(answer)
    return merged


def _shut_down(run: Run, error: BaseException | None) -> None:
    """Tell every plugin, whatever those before it do; the first failure is raised if nothing else was."""
    failures: list[BaseException] = []
    for name, tell in _one_by_one(run, "shutdown"):
        try:
            tell(run=run, error=error)
        except Exception as failure:  # noqa: BLE001 - isolation is the point
            run.events.error("shutdown.failed", plugin=name, error=repr(failure))
            failures.append(failure)
    if failures and error is None:
        raise failures[0]
