"""Going on where a run stopped: which checkpoint, whether it fits, and everything back in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from hookloop.config import learned_options
from hookloop.errors import HookloopError
from hookloop.records import masked
from hookloop.words import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from hookloop.core import Run

FORMAT = 1
LATEST, PREVIOUS = "latest.ckpt", "previous.ckpt"


@runtime_checkable
class Stateful(Protocol):
    """A plugin whose state belongs into a checkpoint: tensors and plain containers only."""

    def state_dict(self) -> dict[str, object]:
        """What to save."""

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take it back."""


@runtime_checkable
class Averaging(Protocol):
    """A plugin that averages the weights, and may validate with the average."""

    def averaged_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's state dict with the averages in it."""

    def validation_weights(self, model: nn.Module) -> Mapping[str, Tensor] | None:
        """The model's state dict as validation sees it, or ``None``."""

    def average_facts(self) -> dict[str, object]:
        """How the averages came about, as plain data, for the files that hold them."""


def directory(run: Run) -> Path:
    """Where the checkpoints of a run lie."""
    return run.dir / "checkpoints"


@runtime_checkable
class Learning(Protocol):
    """A plugin with more than its options that a resumed run may not change."""

    def learned_values(self, run: Run) -> Mapping[str, object]:
        """Those values, by what to call them."""


def called(run: Run) -> dict[str, object]:
    """The plugins whose hooks are called on this rank, by name: elsewhere the state of others is unborn."""
    return {name: plugin for name, plugin in run.plugins.items() if run.manager.has_plugin(name)}


def averaging(run: Run) -> dict[str, Averaging]:
    """The plugins that average the weights, by name."""
    return {name: plugin for name, plugin in called(run).items() if isinstance(plugin, Averaging)}


def states(run: Run) -> dict[str, dict[str, object]]:
    """The states of the plugins that have any, by name."""
    return {name: plugin.state_dict() for name, plugin in called(run).items() if isinstance(plugin, Stateful)}


def expect_format(path: Path, state: Mapping[str, object]) -> None:
    """Expect the state read from *path* to be laid out as ours.

    :raises HookloopError: where it is not.
    """
    if state.get("format") != FORMAT:
        raise HookloopError(
            f"{path}: format {state.get('format')}, expected {FORMAT}; use the hookloop that wrote it"
        )


def learned(run: Run) -> dict[str, object]:
    """What a resumed run may not change, by dotted name; secrets masked.

    A plugin that is not called on this rank is asked for its options only.
    """
    found: dict[str, object] = {}
    here = called(run)
    for name, part in {"run": run.config, **run.plugins}.items():
        values: dict[str, object] = {**learned_options(part)}
        if isinstance(part, Learning) and name in here:
            values |= part.learned_values(run)
        found |= {f"{name}.{key}": value for key, value in values.items()}
    return cast("dict[str, object]", masked(found))


def read_latest(run: Run) -> tuple[Path, dict[str, object]] | None:
    """The newest checkpoint that verifies, ``latest`` before ``previous``; ``None`` where there is none yet.

    Rank 0 chooses; the others read the same file, in a directory that all of them share.

    :raises HookloopError: where there are some but all are damaged, or a rank does not find what rank 0 has read.
    """
    from hookloop import files

    found = _newest(run) if run.ranks.leads else None
    chosen = run.ranks.broadcast(found and (found[0].name, files.checksum(found[0])))
    if run.ranks.leads or chosen is None:
        return found
    name, checksum = chosen
    path = directory(run) / name
    try:
        if files.checksum(path) == checksum:
            return path, files.load(path)
        there = "another file"
    except (files.DamagedError, OSError) as error:
        there = str(error)
    raise HookloopError(
        f"{path}: rank {run.ranks.rank} finds {there}, expected what rank 0 has read; "
        "choose a --dir that all hosts share"
    )


def _newest(run: Run) -> tuple[Path, dict[str, object]] | None:
    from hookloop import files

    damaged = []
    for name in (LATEST, PREVIOUS):
        path = directory(run) / name
        if not path.exists():
            continue
        try:
            return path, files.load(path)
        except (files.DamagedError, OSError) as error:
            damaged.append(str(error))
            hint = f"trying {PREVIOUS}" if name == LATEST else "there is none before it"
            run.events.warning("checkpoint.damaged", reason=str(error), hint=hint)
    if damaged:
        epochs = sorted(directory(run).glob("epoch_*.ckpt"))
        other = f", or copy {epochs[-1].name} to {LATEST} to go on from there" if epochs else ""
        raise HookloopError(
            f"no checkpoint can be read: {'; '.join(damaged)}; move them away to start anew{other}"
        )
    return None


def restore(run: Run, path: Path, state: Mapping[str, object]) -> None:
    """Put the state read from *path* back into the model, the optimization, the plugins and the counters.

    :raises HookloopError: where it is another format's, another model's, or made with other options.
    """
    expect_format(path, state)
    if "optimization" not in state:
        raise HookloopError(f"{path}: holds weights only, expected the whole state of a run; move it away")
    _refuse_changes(run, path, cast("Mapping[str, object]", state["learned"]))
    load_weights(run.task.model, path, cast("Mapping[str, Tensor]", state["model"]))
    trained = run.optimization.trained
    _expect_trained(path, cast("Sequence[str]", state.get("trained", trained)), trained)
    run.optimization.load_state_dict(cast("Mapping[str, object]", state["optimization"]))
    saved = cast("Mapping[str, Mapping[str, object]]", state["plugins"])
    for name, plugin in called(run).items():
        if isinstance(plugin, Stateful):
            if name in saved:
                plugin.load_state_dict(saved[name])
            else:
                run.events.warning("plugin.without_state", plugin=name, path=str(path), hint="it starts anew")
    for name in saved.keys() - run.plugins.keys():
        run.events.warning(
            "plugin.dropped", plugin=name, hint="its state is in the checkpoint but it is not listed"
        )
    for name, value in cast("Mapping[str, int]", state["progress"]).items():
        setattr(run.progress, name, value)
    run.progress.evaluated = cast("int", state.get("evaluated", 0))


def _expect_trained(path: Path, there: Sequence[str], here: Sequence[str]) -> None:
    odd = [f"{name} was trained there, not here" for name in there if name not in here]
    odd += [f"{name} is trained here, not there" for name in here if name not in there]
    if odd:
        raise HookloopError(
            f"{path}: a run that trains other parameters: {'; '.join(odd[:3])}; freeze the same, "
            "or choose another --dir"
        )


def _owners(options: Mapping[str, object]) -> set[str]:
    """The plugins, and ``run``, whose options these are."""
    return {key.split(".")[0] for key in options}


def _refuse_changes(run: Run, path: Path, before: Mapping[str, object]) -> None:
    now, silent = learned(run), run.plugins.keys() - called(run).keys()
    for key in run.config.allow_changes:
        if key not in before and key not in now and key not in run.plugins and key not in _owners(before):
            raise HookloopError(
                f"run.allow_changes: {key}: no option that a resumed run may not change"
                f"{suggestion(key, before.keys() | now.keys())}"
            )
    there, here = _owners(before), _owners(now)
    changed = [
        f"{key} ({before.get(key)!r} there, {now.get(key)!r} now)"
        for key in sorted(before.keys() | now.keys())
        if key.split(".")[0] in there & here  # a new plugin may join
        and (key in now or key.split(".")[0] not in silent)  # rank 0 knows what others do not
        and (before.get(key) or None) != (now.get(key) or None)
        and key not in run.config.allow_changes
    ]
    changed += [
        f"{plugin} (listed there, not now: what it has learnt would be lost)"
        for plugin in sorted(there - here - set(run.config.allow_changes))
    ]
    if changed:
        raise HookloopError(
            f"{path}: made with other options: {', '.join(changed)}; change them back, choose another --dir, "
            "or list them in run.allow_changes"
        )


def load_weights(model: nn.Module, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Load *weights* into *model*.

    :raises HookloopError: naming the first keys that differ, where they are another model's.
    """
    own = model.state_dict()
    odd = [f"{key} is missing" for key in own if key not in weights]
    odd += [f"{key} is not in this model" for key in weights if key not in own]
    odd += [
        f"{key} is {tuple(weights[key].shape)} there, {tuple(own[key].shape)} here"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if odd:
        raise HookloopError(f"{path}: a checkpoint of another model: {'; '.join(odd[:3])}")
    model.load_state_dict(weights)
