"""Checkpoints: written whole or not at all, verified when read, resumed from exactly."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from attrs import Attribute, define, field, frozen
from attrs.validators import ge, optional

from hookloop import resume
from hookloop.durable import make_directory
from hookloop.errors import Diverged, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.metrics import is_not_due, near
from hookloop.records import masked
from hookloop.settings import doc, epoch_slice, epochs_in
from hookloop.task import Described

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from torch import Tensor

    from hookloop.core import Run
    from hookloop.writer import Outcome, Writer

State = dict[str, object]


_OWN_NAMES = r"latest|previous|damaged|(.*_)?epoch_\d+|best_inference_\d+"


def _are_stems(_instance: object, _attribute: Attribute[dict[str, str]], value: dict[str, str]) -> None:
    for stem in value:
        if not re.fullmatch(r"\w[\w.-]{0,99}", stem) or re.fullmatch(_OWN_NAMES, stem):
            raise ValueError(f"expected file names without a suffix, found {stem!r}")


@frozen(eq=False)
class _Saving:
    """Files that are being written, and what to take back where that fails."""

    outcome: Future[Outcome]
    names: tuple[str, ...]
    step: int
    before: Mapping[str, float]
    """The best values before these files."""


@define(eq=False)
class Checkpoint:
    """Save the run so that the same command goes on exactly where it stopped, and keep the best weights.

    Training waits only while the state is copied; a thread writes it, and what it could not write is told at
    the next batch. Of several ranks the first reads and writes; what they hold in parts is gathered there.
    """

    every_n_batches: int = field(
        default=1000, validator=ge(0), metadata=doc("save latest.ckpt this often; 0: never")
    )
    epochs: str | None = field(
        default=None,
        validator=optional(epoch_slice),
        metadata=doc("keep epoch_0007.ckpt for these epochs, such as '::5'"),
    )
    ema_epochs: str | None = field(
        default=None,
        validator=optional(epoch_slice),
        metadata=doc("keep ema_epoch_0007.ckpt for these epochs; ema@slow_epoch_0007.ckpt of ema@slow"),
    )
    best: dict[str, str] = field(
        factory=lambda: {"best": "val/loss", "best_inference": "inference/error"},
        validator=_are_stems,
        metadata=doc("files for the lowest value of a metric, by file name; what is given replaces both"),
    )
    save_best_inference_epochs: bool = field(
        default=False, metadata=doc("also keep best_inference_0007.ckpt at each new best")
    )
    asynchronous: bool = field(
        default=True, metadata=doc("write while training goes on, from a copy in host memory; false waits")
    )
    save: bool = field(default=True, metadata=doc("false writes and reads nothing at all"))
    bests: dict[str, float] = field(factory=dict, init=False)
    saved: tuple[int, int, int] | None = field(default=None, init=False)
    """The progress that ``latest.ckpt`` holds, or will hold once it is written."""
    _writer: Writer | None = field(default=None, init=False)
    _saving: _Saving | None = field(default=None, init=False)
    _told: set[str] = field(factory=set, init=False)
    """Metrics that were found not to be measured."""

    @hookimpl(trylast=True)  # last: what is restored is what everyone has just made
    def before_run(self, run: Run) -> None:
        """Restore the latest checkpoint that verifies, if there is any."""
        self.bests, self.saved, self._writer, self._saving, self._told = {}, None, None, None, set()
        if not self.save:
            run.events.warning(
                "checkpoint.disabled", hint="checkpoint.save is false: nothing is kept of this run"
            )
            return
        if run.ranks.leads:
            _make_ready(resume.directory(run))
        if run.ranks.leads and self.ema_epochs and not resume.averaging(run):
            raise HookloopError(
                f"checkpoint.ema_epochs: found {self.ema_epochs!r} but no plugin that averages weights; "
                "list ema in --plugins"
            )
        if (found := resume.read_latest(run)) is not None:
            path, state = found
            resume.restore(run, path, state)
            if (
                path.name == resume.PREVIOUS and run.ranks.leads
            ):  # what is damaged must not take its place at the next save
                _set_aside(resume.directory(run) / resume.LATEST)
            self.saved = _moment(run)
            run.events.info("run.resumed", path=str(path), epoch=run.progress.epoch, step=run.progress.step)

    @hookimpl(trylast=True)  # last: what is saved includes everyone's update
    def after_batch(self, run: Run) -> None:
        """Save every so many batches, or where somebody asks for it; hear what has become of the last save."""
        if self._writer is None and self.save:
            self._begin(run)
        if self._saving is not None and self._saving.outcome.done():
            self._hear(run)
        due = self.every_n_batches and run.progress.step % self.every_n_batches == 0
        if due or run.saving is not None:
            run.saving = None
            self._save_latest(run)

    @hookimpl(wrapper=True, tryfirst=True)  # outermost: nobody's weights are on loan yet
    def validate(self, run: Run) -> Generator[None, list[object], list[object]]:
        """Save before validation: a run killed while validating trains nothing twice."""
        if run.progress.step:
            self._save_latest(run)
        return (yield)

    @hookimpl(trylast=True)  # last: what is saved includes everyone's decisions
    def after_evaluation(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Keep the best weights of the middle of an epoch; its end is kept with the epoch."""
        if run.progress.batch:
            self._keep(run, metrics, {})

    @hookimpl(trylast=True)  # last: what is saved includes everyone's state after the epoch
    def after_epoch(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Keep the best weights and the epochs that are wanted, then save the run."""
        number = run.progress.epoch
        wanted: dict[str, State | None] = {}
        if self.save and number in epochs_in(self.ema_epochs, run.config.max_epochs):
            for name, plugin in resume.averaging(run).items():
                wanted[f"{name}_epoch_{number:04d}.ckpt"] = {
                    "model": plugin.averaged_weights(run.task.model),
                    "average": plugin.average_facts(),
                }
        if self.save and number in epochs_in(self.epochs, run.config.max_epochs):
            wanted[f"epoch_{number:04d}.ckpt"] = None
        self._keep(run, metrics, wanted)

    def _keep(self, run: Run, metrics: Mapping[str, float], wanted: Mapping[str, State | None]) -> None:
        """Keep the weights if they are the best so far, and what is *wanted*, then save the run.

        :param wanted: what each file holds beside the head; ``None`` is the whole run.
        """
        self._hear(run)
        self._follow(run)
        improved = self._improved(run, metrics)
        before = dict(self.bests)
        self.bests |= improved
        if self.bests:
            run.log({f"best/{stem}": value for stem, value in self.bests.items()})
        if not self.save:
            return
        names = [f"{stem}.ckpt" for stem in improved]
        if self.save_best_inference_epochs and "best_inference" in improved:
            number = run.progress.epoch + (run.progress.batch > 0)
            names.append(f"best_inference_{number:04d}.ckpt")
        best: dict[str, State] = {name: {"model": _validation_weights(run)} for name in names}
        rest = self._rest(run)
        others = {name: rest if state is None else state for name, state in wanted.items()}
        self._write(run, {**best, **others, resume.LATEST: rest}, before)

    def _improved(self, run: Run, metrics: Mapping[str, float]) -> dict[str, float]:
        """Values by file stem that are not worse than the best so far; NaN never is."""
        improved = {}
        for stem, key in self.best.items():
            if key not in metrics:
                self._tell_unmeasured(run, metrics, key)
                continue
            value = float(metrics[key])  # numpy's numbers are floats too, but not safe to load
            if math.isnan(value):
                run.events.warning(
                    "metric.undefined", metric=key, value="NaN", hint=f"{stem}.ckpt stays as it is"
                )
            elif value <= self.bests.get(stem, float("inf")):
                improved[stem] = value
        return improved

    def _tell_unmeasured(self, run: Run, metrics: Mapping[str, float], key: str) -> None:
        """Say once that nothing is the best by a metric that is not measured."""
        if not metrics or is_not_due(metrics, key) or key in self._told:
            return
        self._told.add(key)
        run.events.warning(
            "metric.unmeasured", option="checkpoint.best", metric=key, hint=f"there are {near(key, metrics)}"
        )

    @hookimpl
    def shutdown(self, run: Run, error: BaseException | None) -> None:
        """Save what a stop would lose; after a crash the model may be half updated, so nothing is saved."""
        self._hear(run)
        if error is not None or not run.progress.step or not self.save:
            return
        self._save_latest(run)
        self._hear(run)
        if self.saved != _moment(run):
            raise HookloopError(
                f"{resume.directory(run)}: the state at step {run.progress.step} could not be saved; "
                "what was saved before is intact; make room and run the same command again"
            )

    def _begin(self, run: Run) -> None:
        """Choose who writes, and let it get ready as soon as the state has its full size."""
        from hookloop.writer import AtOnce, Background, Elsewhere, Files

        strategy = run.optimization.strategy
        if run.ranks.leads:
            self._writer = Background(strategy.copying()) if self.asynchronous else AtOnce()
        else:
            self._writer = Elsewhere()
        run.cleanup.callback(self._writer.close)
        _expect_equal_buffers(run)  # not only when an hour of training is to be saved
        outcome = self._writer.prepare(Files(resume.directory(run), {resume.LATEST: self._rest(run)}))
        self._saving = _Saving(outcome, (), run.progress.step, {})

    def _save_latest(self, run: Run) -> None:
        """Write ``latest.ckpt`` unless it already holds this progress."""
        self._follow(run)
        if self.save and self.saved != _moment(run):
            self._write(run, {resume.LATEST: self._rest(run)}, self.bests)

    def _follow(self, run: Run) -> None:
        """Decide by what rank 0 knows, which alone hears of what could not be written."""
        self.saved, self.bests = run.ranks.broadcast((self.saved, self.bests))

    def _write(self, run: Run, parts: Mapping[str, State], before: Mapping[str, float]) -> None:
        """Hand files to the writer when it is done with those before.

        :param parts: what each file holds beside the head.
        """
        from hookloop.writer import AtOnce, Files

        if self._writer is None:
            self._begin(run)
        self._hear(run)
        head = self._head(run)
        states = cast("Mapping[str, State]", run.optimization.strategy.gathered(dict(parts)))
        group = Files(
            resume.directory(run),
            {name: {**head, **state} for name, state in states.items()},
            conditions=[f"{stem}.ckpt" for stem in self.best],
            check=partial(_expect_sound, run),
        )
        assert self._writer is not None
        try:
            outcome = self._writer.write(group)
        except (RuntimeError, MemoryError) as error:
            run.events.warning(
                "checkpoint.synchronous",
                reason=str(error),
                hint="no memory for a copy: training waits instead",
            )
            self._writer = AtOnce()
            outcome = self._writer.write(group)
        told = tuple(parts) if run.ranks.leads else ()
        self._saving = _Saving(outcome, told, run.progress.step, dict(before))
        self.saved = _moment(run)
        if outcome.done():
            self._hear(run)

    def _hear(self, run: Run) -> None:
        """Wait for the files that are being written, and tell what has become of them.

        Where the best could not be written, the best is still the one that is there.
        """
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        failed = saving.outcome.result()
        for name in saving.names:
            path = str(resume.directory(run) / name)
            if name in failed:
                reason = getattr(failed[name], "strerror", None) or repr(failed[name])
                run.events.warning(
                    "checkpoint.failed", path=path, reason=reason, hint="older files are intact"
                )
            else:
                run.events.info("checkpoint.saved", path=path, step=saving.step)
        for stem in [stem for stem in self.best if f"{stem}.ckpt" in failed]:
            self.bests.pop(stem, None)
            if stem in saving.before:
                self.bests[stem] = saving.before[stem]
        if resume.LATEST in failed:
            self.saved = None

    def _head(self, run: Run) -> State:
        at = run.progress
        return {
            "format": resume.FORMAT,
            "progress": {"epoch": at.epoch, "batch": at.batch, "step": at.step},
            "config": masked(run.document),
            "best": dict(self.bests),
            **({"task": dict(run.task.facts)} if isinstance(run.task, Described) else {}),
        }

    def _rest(self, run: Run) -> State:
        """Everything that a run goes on from."""
        return {
            "model": run.task.model.state_dict(),
            "optimization": run.optimization.shared_state(),
            "trained": run.optimization.trained,
            "plugins": resume.states(run),
            "evaluated": run.progress.evaluated,
            "learned": resume.learned(run),
        }

    def state_dict(self) -> dict[str, object]:
        """The best values so far."""
        return {"bests": dict(self.bests)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over the best values."""
        self.bests = dict(cast("dict[str, float]", state["bests"]))


def _moment(run: Run) -> tuple[int, int, int]:
    return (run.progress.step, run.progress.epoch, run.progress.evaluated)


def _make_ready(directory: Path) -> None:
    """Make the directory, and remove what a killed writer has left in it."""
    try:
        make_directory(directory)
        for stale in directory.glob(".*.tmp"):
            stale.unlink()
    except OSError as error:
        raise HookloopError(
            f"{directory}: cannot be written: {error.strerror}; choose another run.dir"
        ) from error


def _set_aside(path: Path) -> None:
    """Rename a damaged file, for people to look at."""
    with suppress(OSError):
        path.replace(path.with_name("damaged.ckpt"))


def _validation_weights(run: Run) -> Mapping[str, Tensor]:
    for plugin in resume.averaging(run).values():
        weights = plugin.validation_weights(run.task.model)
        if weights is not None:
            return weights
    return cast("Mapping[str, Tensor]", run.task.model.state_dict())


def _expect_sound(run: Run) -> None:
    """Refuse to keep what is worth nothing, or tells of rank 0 only."""
    _expect_finite(run)
    _expect_equal_buffers(run)


def _expect_equal_buffers(run: Run) -> None:
    from hookloop.strategies import expect_equal_buffers

    expect_equal_buffers(run.ranks, run.task.model)


def _expect_finite(run: Run) -> None:
    """Refuse to keep weights, or gradients that wait for their update, that have left the finite numbers.

    Every rank asks, since each may hold others.
    """
    import torch

    from hookloop.sharding import own_part

    tensors = [t for p in run.task.model.parameters() for t in (p, p.grad) if t is not None]
    weights = [part for t in tensors if (part := own_part(t).detach()).numel()]
    finite = not weights or bool(torch.isfinite(torch.stack(torch._foreach_norm(weights))).all())  # noqa: SLF001
    if not all(run.ranks.gather(finite)):
        raise Diverged(
            f"step {run.progress.step}: the weights are not finite, so they are not saved; "
            f"the last good checkpoint is {resume.directory(run) / resume.LATEST}; "
            "lower optimization.lr or set optimization.clip_norm"
        )
