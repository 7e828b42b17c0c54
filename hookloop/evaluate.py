"""Validate and infer once with a checkpoint, as the run that wrote it did: ``hookloop evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from attrs import define, evolve

from hookloop import core, warm_start
from hookloop.config import options_of
from hookloop.durable import set_aside
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.manager import plugin_of
from hookloop.plugins.generation import Generation
from hookloop.resume import Averaging, Stateful, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from torch import nn

    from hookloop.core import Progress, Run
    from hookloop.manager import Assembly
    from hookloop.task import Task

_LEFT_OUT = ("checkpoint", "finetune")
"""They would put other weights in the place of those that are evaluated."""


def directory_for(checkpoint: Path, run_dir: Path, chosen: Path | None) -> Path:
    """Say where the evaluation of *checkpoint* writes: *chosen*, or a folder of its own below the run's.

    :raises HookloopError: where *chosen* is a run's own directory.
    """
    if chosen is None:
        return run_dir / "evaluations" / checkpoint.stem
    if chosen.resolve() == run_dir.resolve() or (chosen / "checkpoints").exists():
        raise HookloopError(
            f"{chosen}: a run's own directory, where an evaluation would overwrite its records; "
            "choose another --dir"
        )
    return chosen


def adapt(assembly: Assembly, state: Mapping[str, object], directory: Path) -> Assembly:
    """Make of the assembly of a run that of an evaluation, which writes into *directory*.

    The epoch evaluated is the last one (``run.max_epochs``), generation is due in every epoch
    (``generation.epochs``), and the plugins that would load other weights are left out.
    """
    at = _progress(state)
    config = evolve(assembly.config, dir=directory, max_epochs=at["epoch"] + (at["batch"] > 0))
    plugins = {name: plugin for name, plugin in assembly.plugins.items() if plugin_of(name) not in _LEFT_OUT}
    for name, plugin in plugins.items():
        if isinstance(plugin, Generation):
            plugins[name] = plugin.in_every_epoch()
    resolved = {"run": options_of(config), **{name: options_of(plugin) for name, plugin in plugins.items()}}
    return evolve(assembly, config=config, plugins=plugins, document=resolved)


def _progress(state: Mapping[str, object]) -> Mapping[str, int]:
    return cast("Mapping[str, int]", state["progress"])


def evaluate(
    run: Run, path: Path, state: Mapping[str, object], begun: Callable[[], None] = lambda: None
) -> dict[str, float] | None:
    """Validate and infer with the checkpoint *state*, read from *path*, and log the metrics.

    They are those that the run logged for the same epoch, bit for bit, since each is a function of the seed,
    the epoch and the weights.

    :param begun: called once the checkpoint has been accepted and everybody is ready.
    :returns: what was logged, in that order; ``None`` where the run was asked to stop meanwhile.
    :raises HookloopError: for the user's mistakes, such as a checkpoint of another model.
    """
    run.manager.register(_Loading(path, state), name="evaluate")
    with core.closing(run):
        core.prepare(run)
        begun()
        metrics = core.evaluate(run)
        if run.agree():
            return None
        at = run.progress
        if at.batch == run.task.data["train"].n_batches:
            at.epoch, at.batch = at.epoch + 1, 0
        metrics = {**{key: float(value) for key, value in metrics.items()}, "epoch": at.epoch}
        run.log(metrics)
        return metrics


@define(eq=False)
class _Loading:
    """Puts a checkpoint into the place where the run had it when it evaluated."""

    path: Path
    state: Mapping[str, object]

    @hookimpl(tryfirst=True)  # averages begin as the weights
    def make_optimization(self, run: Run, task: Task) -> None:
        """Load the weights before anybody builds on them; what builds is another plugin's answer."""
        weights = warm_start.weights_in(self.state)
        replaced = warm_start.replaced_buffers(task.model, weights)
        load_weights(task.model, self.path, weights)
        _freeze_as_trained(task.model, self.state)
        earlier = run.dir / "metrics.jsonl"  # of an evaluation, which has the same step
        if run.ranks.leads and earlier.exists():
            set_aside(earlier)
        told = {"buffers": ", ".join(replaced)} if replaced else {}
        run.events.info("weights.loaded", path=str(self.path), **_progress(self.state), **told)

    @hookimpl(wrapper=True)  # around all of them: what is loaded is what everyone has just made
    def before_run(self, run: Run) -> Generator[None, object, object]:
        """Load the averages that validation is lent, and go to where the run was when it evaluated."""
        answers = yield
        self._load_averages(run)
        _go_to(run.progress, _progress(self.state), run.task.data["train"].n_batches)
        return answers

    def _load_averages(self, run: Run) -> None:
        """Load the state of whoever averages; a file of weights holds those that validation saw already."""
        if "plugins" not in self.state:
            return
        states = cast("Mapping[str, Mapping[str, object]]", self.state["plugins"])
        for name, plugin in run.plugins.items():
            if not (isinstance(plugin, Averaging) and isinstance(plugin, Stateful)):
                continue
            if name in states:
                plugin.load_state_dict(states[name])
            else:
                run.events.warning(
                    "plugin.without_state",
                    plugin=name,
                    path=str(self.path),
                    hint="its averages are the weights",
                )
        for name in states.keys() - run.plugins.keys() - set(_LEFT_OUT):
            run.events.warning(
                "plugin.dropped", plugin=name, hint="its state is in the checkpoint but it is not listed"
            )


def _freeze_as_trained(model: nn.Module, state: Mapping[str, object]) -> None:
    """Freeze what the run did not train, where the checkpoint tells: averages are kept of what is trained."""
    trained = set(warm_start.trained_in(state))
    parameters = dict(model.named_parameters())
    if trained and trained <= parameters.keys():
        for name, parameter in parameters.items():
            parameter.requires_grad = name in trained


def _go_to(progress: Progress, saved: Mapping[str, int], n_batches: int) -> None:
    """Set the counters to where the run evaluated: a whole epoch is counted only after that."""
    progress.epoch, progress.batch, progress.step = saved["epoch"], saved["batch"], saved["step"]
    if progress.batch == 0:
        progress.epoch, progress.batch = progress.epoch - 1, n_batches
