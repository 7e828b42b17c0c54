"""Starting from what another run has learnt: what its checkpoint holds, by name, and what of it fits here."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import TYPE_CHECKING, cast

from hookloop.errors import HookloopError
from hookloop.resume import expect_format

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from hookloop.resume import Stateful

_FEW = 3
"""So many names are told; the first ones say what is wrong."""
_OWN_KEYS = {"params", "param_names"}
"""What a group of an optimizer holds beside its options."""


def read(path: Path) -> dict[str, object]:
    """Read a checkpoint of any kind, on the CPU.

    :raises HookloopError: where there is none, or it is damaged, something else, or of another format.
    """
    from hookloop import files

    try:
        state = files.load(path)
    except files.DamagedError as error:
        raise HookloopError(
            f"{error}; expected a checkpoint as hookloop writes it, choose another"
        ) from error
    except OSError as error:
        raise HookloopError(f"{path}: cannot be read: {error.strerror}; expected a checkpoint") from error
    if missing := [key for key in ("format", "progress", "model") if key not in state]:
        raise HookloopError(f"{path}: no checkpoint of a run: it lacks {', '.join(missing)}")
    expect_format(path, state)
    return state


def weights_in(state: Mapping[str, object]) -> Mapping[str, Tensor]:
    """Give the model's state dict in a checkpoint."""
    return cast("Mapping[str, Tensor]", state["model"])


def trained_in(state: Mapping[str, object]) -> list[str]:
    """Name the parameters that were trained, in the optimizer's order, as far as a checkpoint tells."""
    return list(cast("Sequence[str]", state.get("trained", ())))


def optimizer_in(state: Mapping[str, object]) -> dict[str, object]:
    """Give the optimizer's state dict in a checkpoint of a whole run, with the names of its parameters."""
    optimization = cast("Mapping[str, Mapping[str, object]]", state["optimization"])
    names = trained_in(state)
    groups = [
        {**group, "param_names": [names[number] for number in cast("Sequence[int]", group["params"])]}
        if names
        else {**group}
        for group in cast("Sequence[Mapping[str, object]]", optimization["optimizer"]["param_groups"])
    ]
    return {**optimization["optimizer"], "param_groups": groups}


def matching(names: Sequence[str], include: Sequence[str], exclude: Sequence[str], option: str) -> list[str]:
    """Choose the names that match a shell-style wildcard of *include* and none of *exclude*.

    :param option: what the wildcards are called in an error, such as ``finetune.frozen``.
    :raises HookloopError: for a wildcard that matches nothing.
    """
    for kind, wildcards in (("include", include), ("exclude", exclude)):
        for wildcard in wildcards:
            if not any(fnmatchcase(name, wildcard) for name in names):
                raise HookloopError(
                    f"{option}.{kind}: {wildcard}: matches nothing in this model; {_near(wildcard, names)}"
                )
    return [
        name
        for name in names
        if any(fnmatchcase(name, wildcard) for wildcard in include)
        and not any(fnmatchcase(name, wildcard) for wildcard in exclude)
    ]


def _near(wildcard: str, names: Sequence[str]) -> str:
    """Say which names, or parts of the model, are meant by *wildcard*, or else which ones there are."""
    parts = [part for name in names for part in accumulate(name.split("."), lambda a, b: f"{a}.{b}")]
    near = get_close_matches(wildcard.strip("*?."), list(dict.fromkeys(parts)), _FEW)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {_first(names)}"


def _first(names: Collection[str]) -> str:
    """List the first names, and say how many more there are."""
    shown = ", ".join(list(names)[:_FEW])
    return f"{shown} and {len(names) - _FEW} more" if len(names) > _FEW else shown


def load_some(model: nn.Module, weights: Mapping[str, Tensor], names: Sequence[str], where: str) -> None:
    """Load those of *weights* that are called *names*; the others stay as they are.

    :param where: what the weights are from, for an error.
    :raises HookloopError: where one is not among *weights*, or has another shape.
    """
    own = model.state_dict()
    odd = {name: "is missing there" for name in names if name not in weights}
    odd |= {
        name: f"is {tuple(weights[name].shape)} there, {tuple(own[name].shape)} here"
        for name in names
        if name in weights and weights[name].shape != own[name].shape
    }
    if odd:
        problems = "; ".join(f"{name} {problem}" for name, problem in list(odd.items())[:_FEW])
        more = f" and {len(odd) - _FEW} more" if len(odd) > _FEW else ""
        raise HookloopError(
            f"{where}: weights that do not fit: {problems}{more}; "
            f"to leave them as they are, add wildcards such as {next(iter(odd))} to finetune.weights.exclude"
        )
    own.update({name: weights[name] for name in names})
    vars(own)["_metadata"] = getattr(weights, "_metadata", None)  # the versions of modules
    model.load_state_dict(own)


def replaced_buffers(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Name the buffers of *model*, such as statistics of its data, to which *weights* give other values."""
    return [
        name
        for name, buffer in model.named_buffers()
        if name in weights and not buffer.cpu().equal(weights[name].cpu())
    ]


def take_moments(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, object], names: Collection[str], where: str
) -> list[str]:
    """Have *optimizer* start with the moments of the parameters *names*; its options stay as they are.

    :param saved: the state dict of another optimizer of the same kind, with the names of its parameters.
    :param where: what *saved* is from, for an error.
    :returns: the names of the parameters that start without, since they have none there.
    :raises HookloopError: where nothing can be taken.
    """
    own = optimizer.state_dict()
    groups, other_groups = own["param_groups"], cast("Sequence[Mapping[str, object]]", saved["param_groups"])
    _expect_names(groups, "finetune.optimizer: the optimizer here")
    _expect_names(other_groups, f"{where}: the optimizer there")
    _expect_same_kind(groups, other_groups, where)
    states = cast("Mapping[int, object]", saved["state"])
    moments = {name: states[i] for i, name in _numbered(other_groups) if i in states and name in names}
    taken = {i: moments[name] for i, name in _numbered(groups) if name in moments}
    if not taken:
        raise HookloopError(
            f"{where}: holds no moments of anything that is trained here; leave out finetune.optimizer"
        )
    optimizer.load_state_dict({**own, "state": {**own["state"], **taken}})
    return [name for _, name in _numbered(groups) if name not in moments]


def _numbered(groups: Sequence[Mapping[str, object]]) -> Iterator[tuple[int, str]]:
    """Yield each parameter's number in an optimizer's state dict with its name."""
    for group in groups:
        yield from zip(
            cast("Sequence[int]", group["params"]), cast("Sequence[str]", group["param_names"]), strict=True
        )


def _expect_names(groups: Sequence[Mapping[str, object]], which: str) -> None:
    if not all("param_names" in group for group in groups):
        raise HookloopError(f"{which} does not name its parameters; make it with model.named_parameters()")


def _expect_same_kind(
    here: Sequence[Mapping[str, object]], there: Sequence[Mapping[str, object]], where: str
) -> None:
    """Expect one to have every option of the other: versions of torch add some, schedulers do too."""
    ours, theirs = (set().union(*groups) - _OWN_KEYS for groups in (here, there))
    if ours - theirs and theirs - ours:
        raise HookloopError(
            f"{where}: moments of another optimizer, one with {', '.join(sorted(theirs - ours))}, expected "
            f"{', '.join(sorted(ours - theirs))}; choose the same optimization.optimizer or leave out "
            "finetune.optimizer"
        )


def take_averages(
    plugin: Stateful, saved: Mapping[str, object], names: Collection[str], where: str
) -> list[str]:
    """Have an averaging plugin start with the averages of the parameters *names*, and their number of updates.

    :param saved: the state of a plugin of the same name in another run.
    :returns: the names of the parameters whose averages start as their weights, since they have none there.
    :raises HookloopError: where they are kept in another way, as those of another kind of plugin are.
    """
    own = plugin.state_dict()
    averages, theirs = own.get("averages"), saved.get("averages")
    if not isinstance(averages, dict) or not isinstance(theirs, dict) or own.keys() != saved.keys():
        raise HookloopError(
            f"{where}: averages of another kind: its state holds {', '.join(saved)}, expected {', '.join(own)}"
        )
    taken = {name: average for name, average in theirs.items() if name in averages and name in names}
    plugin.load_state_dict({**saved, "averages": {**averages, **taken}})
    return [name for name in averages if name not in taken]
