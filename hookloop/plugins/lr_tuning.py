"""Lowering the learning rate where a trial shows that it pays."""

from __future__ import annotations

import math
import time
from copy import copy
from typing import TYPE_CHECKING

from attrs import define, evolve, field
from attrs.validators import ge, gt, lt

from hookloop import resume
from hookloop.errors import Diverged, HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.resume import Stateful
from hookloop.schedules import improves
from hookloop.settings import doc, epoch_slice, epochs_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pluggy import HookCaller

    from hookloop.core import Run

_METRIC = "val/loss"


@define(eq=False)
class LRTuning:
    """Before an epoch, train on its first batches twice from the same state, at the rate as it is and at another.

    The other rate is adopted, on top of any schedule, where it validates better, with the averaged weights if
    the run validates with those. The trials leave no trace in the run's state, and count as no progress.
    Several ranks make them together; where a plugin raises ``Diverged`` on one of several, the run ends.
    """

    epochs: str = field(
        default="2:",
        validator=epoch_slice,
        metadata=doc(
            "before which epochs, as a Python slice over their numbers; before the first there is nothing to judge",
            learned=True,
        ),
    )
    factor: float = field(
        default=0.5,
        validator=[gt(0.0), lt(math.inf)],
        metadata=doc("what the rate is multiplied by in the second trial", learned=True),
    )
    batches: int = field(
        default=200,
        validator=ge(1),
        metadata=doc("batches of a trial, or as many as the epoch has", learned=True),
    )
    threshold: float = field(
        default=0.001,
        validator=[ge(0.0), lt(1.0)],
        metadata=doc(f"share of {_METRIC} by which the second trial must be better", learned=True),
    )

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse averages that could not be put back."""
        if lost := [
            name for name, plugin in resume.averaging(run).items() if not isinstance(plugin, Stateful)
        ]:
            raise HookloopError(
                f"lr_tuning: {', '.join(lost)}: averages weights but has no state_dict to restore after a trial; "
                "leave out lr_tuning"
            )

    @hookimpl(trylast=True)  # last: everyone else is ready to train
    def before_epoch(self, run: Run) -> None:
        """Try both rates at the beginning of a chosen epoch, and keep the better one.

        :raises Diverged: where neither of the trials ends with a finite loss.
        :raises HookloopError: where nobody measures ``val/loss``.
        """
        at = run.progress
        if at.batch or at.epoch + 1 not in epochs_in(self.epochs, run.config.max_epochs):
            return
        baseline, candidate = self._tried(run, 1.0), self._tried(run, self.factor)
        if run.stopping:  # tried again on resume, with the same result
            return
        run.log({"lr_tuning/baseline": baseline, "lr_tuning/candidate": candidate})
        losses = {"epoch": at.epoch + 1, "baseline": baseline, "candidate": candidate}
        if not math.isfinite(baseline) and not math.isfinite(candidate):
            raise Diverged(
                f"lr_tuning: epoch {at.epoch + 1}: {_METRIC} is {baseline} after training on at the rate as it is, "
                f"{candidate} at {self.factor:g} times that; expected a number; lower optimization.lr"
            )
        if better(candidate, baseline, self.threshold):
            run.optimization.scale *= self.factor
            run.events.info("lr_tuning.adopted", **losses, scale=run.optimization.scale)
        else:
            run.events.info("lr_tuning.declined", **losses, scale=run.optimization.scale)

    def _tried(self, run: Run, factor: float) -> float:
        """Validate after a trial at *factor* times the rate; NaN where it diverges or the run is to stop."""
        from hookloop.trial import undone

        averaging = resume.averaging(run)
        states = [plugin for plugin in averaging.values() if isinstance(plugin, Stateful)]
        with undone(run, states):
            run.optimization.scale *= factor
            try:
                self._train(run, averaging)
                return math.nan if run.stopping else _validated(run, averaging)
            except Diverged:
                if run.ranks.world > 1:  # others may train on, and would wait for this one
                    raise
                return math.nan

    def _train(self, run: Run, averaging: Mapping[str, object]) -> None:
        """Train on the epoch's first batches with a progress of its own; of the others only averages follow."""
        trial = copy(run)
        trial.progress = evolve(run.progress)
        after_batch = _subset(run, "after_batch", averaging)
        for batch in run.data["train"].batches(run.progress.epoch, start=0, stop=self.batches):
            _stop_in_time(run)
            if run.agree():
                return
            losses = trial.hook.train_step(run=trial, batch=batch)
            if trial.asked.stop:
                run.stop(trial.asked.stop.why, trial.asked.stop.code)
            trial.progress.batch += 1
            trial.progress.step += 1
            after_batch(run=trial, batch=batch, losses=losses)


def better(candidate: float, baseline: float, threshold: float) -> bool:
    """Whether *candidate* is lower by more than the share *threshold*; what is not finite loses."""
    if not math.isfinite(baseline):
        return math.isfinite(candidate)
    return math.isfinite(candidate) and improves(candidate, baseline, threshold)


def _subset(run: Run, hook: str, names: Mapping[str, object]) -> HookCaller:
    """Call *hook* of the plugins with these *names* alone."""
    others = [plugin for name, plugin in run.plugins.items() if name not in names]
    return run.manager.subset_hook_caller(hook, remove_plugins=others)


def _stop_in_time(run: Run) -> None:
    """Ask to stop where the time is up, as the loop does after each batch."""
    limit = run.config.time_limit_seconds
    if limit is not None and time.monotonic() > run.started + limit:
        run.stop(f"the time limit of {run.config.time_limit} is reached", 75)


def _validated(run: Run, averaging: Mapping[str, object]) -> float:
    """Ask those who validate, one by one until the loss is known, with the averages lent; NaN when stopped."""
    found: dict[str, float] = {}
    for name in _validating(run):
        for answer in _subset(run, "validate", {name: None, **averaging})(run=run):
            found.update(answer)
        if run.stopping:
            return math.nan
        if _METRIC in found:
            return found[_METRIC]
    raise HookloopError(
        f"lr_tuning: nobody measures {_METRIC}; there are {', '.join(sorted(found)) or 'none'}; "
        "give the task a validation split or leave out lr_tuning"
    )


def _validating(run: Run) -> Iterator[str]:
    for impl in reversed(run.hook.validate.get_hookimpls()):
        if not impl.wrapper and not impl.hookwrapper:
            yield impl.plugin_name
