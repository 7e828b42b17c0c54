"""Checkpoints: written whole or not at all, verified when read, resumed from exactly."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from attrs import Attribute, define, field
from attrs.validators import ge, optional

from hookloop import resume
from hookloop.errors import Diverged, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.records import masked
from hookloop.settings import doc, epoch_slice, epochs_in

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from torch import Tensor

    from hookloop.core import Run


def _are_stems(_instance: object, _attribute: Attribute[dict[str, str]], value: dict[str, str]) -> None:
    for stem in value:
        if not re.fullmatch(r"\w[\w.-]{0,99}", stem) or stem in ("latest", "previous"):
            raise ValueError(f"expected file names without a suffix, found {stem!r}")


@define(eq=False)
class Checkpoint:
    """Save the run so that the same command goes on exactly where it stopped, and keep the best weights."""

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
        metadata=doc("keep ema_epoch_0007.ckpt for these epochs"),
    )
    best: dict[str, str] = field(
        factory=lambda: {"best": "val/loss", "best_inference": "inference/error"},
        validator=_are_stems,
        metadata=doc("files for the lowest value of a metric, by file name"),
    )
    save_best_inference_epochs: bool = field(
        default=False, metadata=doc("also keep best_inference_0007.ckpt at each new best")
    )
    save: bool = field(default=True, metadata=doc("false writes and reads nothing at all"))
    bests: dict[str, float] = field(factory=dict, init=False)
    saved: tuple[int, int] | None = field(default=None, init=False)

    @hookimpl(trylast=True)  # last: what is restored is what everyone has just made
    def before_run(self, run: Run) -> None:
        """Restore the latest checkpoint that verifies, if there is any."""
        self.bests, self.saved = {}, None
        if not self.save:
            run.events.warning(
                "checkpoint.disabled", hint="checkpoint.save is false: nothing is kept of this run"
            )
            return
        _make_ready(resume.directory(run))
        if self.ema_epochs and not any(
            isinstance(plugin, resume.Averaging) for plugin in run.plugins.values()
        ):
            raise HookloopError(
                f"checkpoint.ema_epochs: found {self.ema_epochs!r} but no plugin that averages weights; "
                "list ema in --plugins"
            )
        if (found := resume.read_latest(run)) is not None:
            path, state = found
            resume.restore(run, path, state)
            if path.name == resume.PREVIOUS:  # what is damaged must not take its place at the next save
                _set_aside(resume.directory(run) / resume.LATEST)
            self.saved = (run.progress.step, run.progress.epoch)
            run.events.info("run.resumed", path=str(path), epoch=run.progress.epoch, step=run.progress.step)

    @hookimpl(trylast=True)  # last: what is saved includes everyone's update
    def after_batch(self, run: Run) -> None:
        """Save every so many batches."""
        if self.every_n_batches and run.progress.step % self.every_n_batches == 0:
            self._save_latest(run)

    @hookimpl(wrapper=True, tryfirst=True)  # outermost: nobody's weights are on loan yet
    def validate(self, run: Run) -> Generator[None, list[object], list[object]]:
        """Save before validation: a run killed while validating trains nothing twice."""
        if run.progress.step:
            self._save_latest(run)
        return (yield)

    @hookimpl(trylast=True)  # last: what is saved includes everyone's state after the epoch
    def after_epoch(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Keep the best weights, then save the epoch."""
        improved = self._improved(run, metrics)
        before = dict(self.bests)
        self.bests |= improved
        number = run.progress.epoch
        if self.save:
            for stem in improved:
                self._write_best(run, stem, before)
            if self.save_best_inference_epochs and "best_inference" in improved:
                self._write_weights(run, f"best_inference_{number:04d}")
        if self.bests:
            run.log({f"best/{stem}": value for stem, value in self.bests.items()})
        if not self.save:
            return
        if number in epochs_in(self.ema_epochs, run.config.max_epochs):
            name = f"ema_epoch_{number:04d}.ckpt"
            self._write(run, name, {**self._head(run), "model": _averaged_weights(run)})
        if number in epochs_in(self.epochs, run.config.max_epochs):
            self._write(run, f"epoch_{number:04d}.ckpt", self._whole(run))
        self._save_latest(run)

    @hookimpl
    def shutdown(self, run: Run, error: BaseException | None) -> None:
        """Save what a stop would lose; after a crash the model may be half updated, so nothing is saved."""
        if error is None and run.progress.step and not self._save_latest(run):
            raise HookloopError(
                f"{resume.directory(run)}: the state at step {run.progress.step} could not be saved; "
                "what was saved before is intact; make room and run the same command again"
            )

    def _write_weights(self, run: Run, stem: str) -> bool:
        """Write the weights that validation has seen."""
        return self._write(run, f"{stem}.ckpt", {**self._head(run), "model": _validation_weights(run)})

    def _write_best(self, run: Run, stem: str, before: Mapping[str, float]) -> None:
        """Write a best file; where that fails, the best is still the one that is there."""
        if self._write_weights(run, stem):
            return
        del self.bests[stem]
        if stem in before:
            self.bests[stem] = before[stem]

    def _improved(self, run: Run, metrics: Mapping[str, float]) -> dict[str, float]:
        """Values by file stem that are not worse than the best so far; NaN never is."""
        improved = {}
        for stem, key in self.best.items():
            if key not in metrics:
                continue
            value = float(metrics[key])  # numpy's numbers are floats too, but not safe to load
            if math.isnan(value):
                run.events.warning(
                    "metric.undefined", metric=key, value="NaN", hint=f"{stem}.ckpt stays as it is"
                )
            elif value <= self.bests.get(stem, float("inf")):
                improved[stem] = value
        return improved

    def _save_latest(self, run: Run) -> bool:
        """Write ``latest.ckpt`` unless it already holds this progress; say whether it is there."""
        now = (run.progress.step, run.progress.epoch)
        if not self.save or self.saved == now:
            return True
        if self._write(run, resume.LATEST, self._whole(run), keep_as=resume.directory(run) / resume.PREVIOUS):
            self.saved = now
        return self.saved == now

    def _write(self, run: Run, name: str, state: Mapping[str, object], keep_as: Path | None = None) -> bool:
        """Write one file; a full disk costs that file only."""
        from hookloop import files

        _check_finite(run)
        path = resume.directory(run) / name
        try:
            files.save(state, path, keep_as)
        except OSError as error:
            run.events.warning(
                "checkpoint.failed", path=str(path), reason=str(error), hint="older files are intact"
            )
            return False
        run.events.info("checkpoint.saved", path=str(path), step=run.progress.step)
        return True

    def _head(self, run: Run) -> dict[str, object]:
        at = run.progress
        return {
            "format": resume.FORMAT,
            "progress": {"epoch": at.epoch, "batch": at.batch, "step": at.step},
            "config": masked(run.document),
            "best": dict(self.bests),
        }

    def _whole(self, run: Run) -> dict[str, object]:
        states = {
            name: plugin.state_dict()
            for name, plugin in run.plugins.items()
            if isinstance(plugin, resume.Stateful)
        }
        return {
            **self._head(run),
            "model": run.task.model.state_dict(),
            "optimization": run.optimization.state_dict(),
            "plugins": states,
            "evaluated": run.progress.evaluated,
            "learned": resume.learned(run),
        }

    def state_dict(self) -> dict[str, object]:
        """The best values so far."""
        return {"bests": dict(self.bests)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over the best values."""
        self.bests = dict(cast("dict[str, float]", state["bests"]))


def _make_ready(directory: Path) -> None:
    """Make the directory, and remove what a killed writer has left in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
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


def _averaged_weights(run: Run) -> Mapping[str, Tensor]:
    averaging = next(plugin for plugin in run.plugins.values() if isinstance(plugin, resume.Averaging))
    return averaging.averaged_weights(run.task.model)


def _validation_weights(run: Run) -> Mapping[str, Tensor]:
    for plugin in run.plugins.values():
        if isinstance(plugin, resume.Averaging):
            weights = plugin.validation_weights(run.task.model)
            if weights is not None:
                return weights
    return cast("Mapping[str, Tensor]", run.task.model.state_dict())


def _check_finite(run: Run) -> None:
    """Refuse to keep weights, or gradients that wait for their update, that have left the finite numbers."""
    import torch

    parameters = [p for p in run.task.model.parameters() if p.numel()]
    weights = [t.detach() for p in parameters for t in (p, p.grad) if t is not None]
    if weights and not torch.isfinite(torch.stack(torch._foreach_norm(weights))).all():  # noqa: SLF001
        raise Diverged(
            f"step {run.progress.step}: the weights are not finite, so they are not saved; "
            f"the last good checkpoint is {resume.directory(run) / resume.LATEST}; "
            "lower optimization.lr or set optimization.clip_norm"
        )
