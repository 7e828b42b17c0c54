"""``finetune``: start from what another run has learnt, and train all of the model or some of it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read when options are structured
from typing import TYPE_CHECKING, cast

from attrs import define, field, frozen

from hookloop import resume, warm_start
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from torch import nn

    from hookloop.core import Run
    from hookloop.task import Task

_FEW = 5
"""So many names are told."""


@frozen
class WeightOptions:
    """Which weights are loaded."""

    include: list[str] = field(
        factory=lambda: ["*"],
        metadata=doc("wildcards over names of parameters and buffers, such as 'denoiser.*'"),
    )
    exclude: list[str] = field(factory=list, metadata=doc("wildcards; these stay as they are made here"))


@frozen
class FrozenOptions:
    """Which parameters are not trained."""

    include: list[str] = field(factory=list, metadata=doc("wildcards over names of parameters"))
    exclude: list[str] = field(factory=list, metadata=doc("wildcards; these are trained all the same"))


@frozen(eq=False)
class _Origin:
    """Another run's checkpoint, until everybody is ready to take something of it."""

    state: Mapping[str, object]
    loaded: frozenset[str]
    """The weights that were taken; moments and averages belong to them."""


@define(eq=False)
class Finetune:
    """Start from another run's weights, and if wanted from its averages and its optimizer's moments.

    Progress, schedule, learning rate and every other option are this run's own. A run that has a checkpoint of
    its own goes on from that, and the other run's is not needed any more.
    """

    checkpoint: Path = field(
        metadata=doc("the other run's checkpoint; only a run that begins reads it", learned=False)
    )
    weights: WeightOptions = field(
        factory=WeightOptions, metadata=doc("which weights are loaded", learned=True)
    )
    frozen: FrozenOptions = field(
        factory=FrozenOptions, metadata=doc("which parameters are not trained", learned=True)
    )
    optimizer: bool = field(
        default=False, metadata=doc("take the optimizer's moments too, for the weights loaded", learned=True)
    )
    averages: bool = field(
        default=False, metadata=doc("take the averages of plugins of the same name too", learned=True)
    )
    _origin: _Origin | None = field(default=None, init=False)

    @hookimpl(tryfirst=True)  # the optimizer is built of what is trained, averages begin as the weights
    def make_optimization(self, run: Run, task: Task) -> None:
        """Freeze and load before anybody builds on it; what builds is another plugin's answer."""
        self._origin = None
        frozen = self._freeze(task.model)
        if _has_own_checkpoint(run):
            run.events.info("finetune.skipped", why="the run has a checkpoint of its own", frozen=len(frozen))
            return
        state = warm_start.read(self.checkpoint)
        self._expect_wanted(run, state)
        names = list(task.model.state_dict())
        loaded = warm_start.matching(names, self.weights.include, self.weights.exclude, "finetune.weights")
        weights = warm_start.weights_in(state)
        replaced = set(warm_start.replaced_buffers(task.model, weights)) & set(loaded)
        warm_start.load_some(task.model, weights, loaded, str(self.checkpoint))
        self._origin = _Origin(state, frozenset(loaded))
        run.events.info(
            "finetune.loaded",
            path=str(self.checkpoint),
            loaded=len(loaded),
            left=len(names) - len(loaded),
            frozen=len(frozen),
            unused=len(weights.keys() - set(loaded)),
            **_told("buffers", sorted(replaced)),
        )

    def _freeze(self, model: nn.Module) -> list[str]:
        """Stop training some parameters; a shared one is frozen under any of its names."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        frozen = warm_start.matching(
            list(parameters), self.frozen.include, self.frozen.exclude, "finetune.frozen"
        )
        for name in frozen:
            parameters[name].requires_grad = False
        if not any(p.requires_grad for p in parameters.values()):
            raise HookloopError(
                f"finetune.frozen: all {len(parameters)} parameters are frozen, expected some that are trained; "
                "add wildcards to finetune.frozen.exclude"
            )
        return frozen

    def _expect_wanted(self, run: Run, state: Mapping[str, object]) -> None:
        """Expect in *state* what is to be taken of it, before anybody does work for this run."""
        if (self.optimizer or self.averages) and ("optimization" not in state or "plugins" not in state):
            wanted = "optimizer" if self.optimizer else "averages"
            raise HookloopError(
                f"{self.checkpoint}: holds weights only, and finetune.{wanted} needs the whole state of a run; "
                "choose its latest.ckpt or an epoch_*.ckpt"
            )
        if not self.averages:
            return
        averaging = _averaging(run)
        if not averaging:
            raise HookloopError(
                "finetune.averages: no plugin here averages weights; list ema in --plugins, or leave it out"
            )
        there = cast("Mapping[str, object]", state["plugins"])
        if missing := [name for name in averaging if name not in there]:
            raise HookloopError(
                f"{self.checkpoint}: holds no averages of {', '.join(missing)}, but the state of "
                f"{', '.join(there) or 'no plugin'}; leave out finetune.averages"
            )

    @hookimpl(
        wrapper=True
    )  # around all of them, the checkpoint's too: only then is it known what was resumed
    def before_run(self, run: Run) -> Generator[None, object, object]:
        """Hand over moments and averages once everybody has made their own, unless the run was resumed."""
        answers = yield
        origin, self._origin = self._origin, None
        if run.progress.step == 0:
            if origin is None:
                raise HookloopError(
                    f"{resume.directory(run)}: holds checkpoints, and none of them was resumed; go on with "
                    "them (checkpoint.save), or choose another --dir to start from finetune.checkpoint"
                )
            if self.optimizer:
                self._take_moments(run, origin)
            if self.averages:
                self._take_averages(run, origin)
        return answers

    def _take_moments(self, run: Run, origin: _Origin) -> None:
        saved = warm_start.optimizer_in(origin.state)
        fresh = warm_start.take_moments(
            run.optimization.optimizer, saved, origin.loaded, str(self.checkpoint)
        )
        if fresh:
            run.events.info("moments.fresh", count=len(fresh), **_told("parameters", fresh))

    def _take_averages(self, run: Run, origin: _Origin) -> None:
        states = cast("Mapping[str, Mapping[str, object]]", origin.state["plugins"])
        for name, plugin in _averaging(run).items():
            fresh = warm_start.take_averages(plugin, states[name], origin.loaded, str(self.checkpoint))
            if fresh:
                run.events.info("averages.fresh", plugin=name, count=len(fresh), **_told("parameters", fresh))


def _has_own_checkpoint(run: Run) -> bool:
    return any((resume.directory(run) / name).exists() for name in (resume.LATEST, resume.PREVIOUS))


def _averaging(run: Run) -> dict[str, resume.Stateful]:
    return {
        name: plugin
        for name, plugin in run.plugins.items()
        if isinstance(plugin, resume.Averaging) and isinstance(plugin, resume.Stateful)
    }


def _told(key: str, names: Sequence[str]) -> dict[str, str]:
    """Give the first of *names*, for an event; nothing where there are none."""
    return {key: ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")} if names else {}
