"""Every hook, in the order in which the loop calls them. This file is the book of the system.

The loop, with the hooks where they fire::

    make_task            who trains what: exactly one answer
    make_optimization    how it is trained: the first answer
    before_run           once; the checkpoint is restored last
    each epoch:
        before_epoch
        each batch:
            before_batch
            train_step   the first answer
            after_batch  the batch is counted
        validate         all answers, merged
        infer            all answers, merged
        log              (also whenever a plugin has something to say)
        after_epoch      the epoch is counted
    shutdown             once, always, last

Grammar: ``before_``/``after_`` + noun *tells* and returns nothing; a verb *asks*. Every hook takes ``run``
first, and an implementation names only the arguments it uses. Implementations are called in the order of
``--plugins``; wrappers lie around all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from torch import Tensor

    from hookloop.core import Run
    from hookloop.optimization import Optimization
    from hookloop.task import Batch, Task

hookspec = pluggy.HookspecMarker("hookloop")
hookimpl = pluggy.HookimplMarker("hookloop")
"""Marks a method as an implementation of the hook of the same name."""


@hookspec
def make_task(run: Run) -> Task | None:
    """Build what is trained: the model, on ``run.device``, its data and its loss.

    Called once, first. Exactly one plugin answers; none or two is an error that names them.
    The model's initial weights must be drawn from ``run.seed("model")``.

    :param run: the run; ``run.task`` and ``run.optimization`` do not exist yet.
    """


@hookspec(firstresult=True)
def make_optimization(run: Run, task: Task) -> Optimization | None:
    """Build what moves the weights: optimizer, schedule, precision.

    Called once, after ``make_task``. The first answer counts; the built-in ``optimization`` plugin answers
    last, so any other plugin may answer instead of it.

    :param run: the run; ``run.optimization`` does not exist yet.
    :param task: what ``make_task`` answered, also ``run.task`` from now on.
    """


@hookspec
def before_run(run: Run) -> None:
    """Get ready: allocate state, open files, install handlers, and register each release on ``run.cleanup``.

    Called once, before any training. ``checkpoint`` restores last of all, so state made here is what a
    checkpoint is loaded into; ``run.progress`` counts the restored work only after this hook.
    """


@hookspec
def before_epoch(run: Run) -> None:
    """An epoch begins, or goes on after a resume: then ``run.progress.batch`` is not 0.

    ``run.progress.epoch`` is the number of finished epochs.
    """


@hookspec
def before_batch(run: Run, batch: Batch) -> None:
    """A batch has arrived on the device and is about to be learnt.

    Called for every batch, so check your cadence before any work.

    :param batch: what will be learnt from. Look; don't keep it.
    """


@hookspec(firstresult=True)
def train_step(run: Run, batch: Batch) -> Mapping[str, Tensor] | None:
    """Learn from one batch: seed, forward, backward, update.

    Called for every batch. The first answer counts; the built-in ``optimization`` plugin answers last.
    A wrapper may time it, catch what it raises, or change the losses.

    An implementation makes its losses with ``run.optimization.losses(run, batch)``, learns with
    ``run.optimization.update(losses["loss"])`` and answers ``run.optimization.strategy.means(losses)``, so that
    it is right with several processes too.

    :returns: the losses, zero-dimensional, detached and still on the device, ``loss`` among them.
    """


@hookspec
def after_batch(run: Run, batch: Batch, losses: Mapping[str, Tensor]) -> None:
    """A batch is learnt: the weights have moved and ``run.progress`` counts it.

    Called for every batch, never inside ``validate`` or ``infer``, so the model holds its own weights and
    saving is safe. ``checkpoint`` comes last, so it saves everyone's update.

    :param batch: what was learnt from. Look; don't keep it, don't change it.
    :param losses: what ``train_step`` answered. ``.item()`` waits for the device, so call it seldom.
    """


@hookspec
def validate(run: Run) -> Mapping[str, float] | None:
    """Measure the loss without learning, after the batches of an epoch (see ``run.validate_every``).

    All answers are merged; two under one key is an error. Wrap it to lend the model other weights.
    Between units of work, which every rank does equally often, ask ``run.agree()`` and if it is true return early: what
    is returned is then dropped, and validation is done again on resume.

    :returns: numbers by key, such as ``val/loss``.
    """


@hookspec
def infer(run: Run) -> Mapping[str, float] | None:
    """Solve the problem one really cares about and score it, right after ``validate``.

    Merged, wrapped and stopped like ``validate``. ``inference/error`` picks ``best_inference.ckpt``.
    """


@hookspec
def log(run: Run, metrics: Mapping[str, float | Figure]) -> None:
    """Somebody has measured something at ``run.progress.step``: write it where it belongs.

    Called by the loop after ``validate`` and ``infer``, and by any plugin through ``run.log``.

    :param metrics: floats, and figures (matplotlib) where people would rather look.
    """


@hookspec
def after_evaluation(run: Run, metrics: Mapping[str, float]) -> None:
    """The model is validated and has inferred, and that is logged; here decide by the metrics.

    Called after every evaluation of a training run: in the middle of an epoch, where ``run.validate_every`` counts
    batches (``run.progress.batch`` is not 0 then), and at the end of one, just before ``after_epoch``. A stop is not
    kept: a plugin that stops here decides again in ``before_epoch`` when the same command is given once more.

    :param metrics: what ``validate`` and ``infer`` answered; scores of an inference that was not due are missing.
    """


@hookspec
def after_epoch(run: Run, metrics: Mapping[str, float]) -> None:
    """An epoch is finished, validated and logged; ``run.progress`` counts it.

    Not called when the run is stopped in the middle of an epoch or of its validation.

    :param metrics: what ``validate`` and ``infer`` answered; empty in epochs without validation.
    """


@hookspec
def shutdown(run: Run, error: BaseException | None) -> None:
    """The run ends, for whatever reason. Called once, always, last; then ``run.cleanup`` is unwound.

    Every plugin is called even where one before it has failed.

    :param error: what ended the run; ``None`` when it finished or was asked to stop.
    """
