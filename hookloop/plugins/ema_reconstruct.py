"""``hookloop ema reconstruct``: from the averages that a run has kept, one that it has not tracked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from attrs import frozen

from hookloop.averaging import Profile, combination, exponent
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

POOR = 0.05
"""From this error on the fit is called poor: a twentieth of the noise that the average has left."""


@click.group("ema")
def ema() -> None:
    """Work with the averages of the weights that a run has kept."""


@ema.command("reconstruct")
@click.argument("directory", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option(
    "--sigma-rel", required=True, type=float, help="Relative width wanted: above 0 and below 0.2887."
)
@click.option(
    "--step",
    type=click.IntRange(1),
    help="Up to this batch, best one at which averages were kept; else the last one.",
)
@click.option("--out", required=True, metavar="FILE.ckpt", type=click.Path(path_type=Path))
def reconstruct(directory: Path, sigma_rel: float, step: int | None, out: Path) -> None:
    """Write the average of a width that was not tracked, combined from those in RUN_DIR/checkpoints.

    The run keeps them with ema.sigma_rel and checkpoint.ema_epochs, best at two widths: 0.05 as ema and
    0.1 as ema@wide (Karras et al. 2024, arXiv:2312.02696, section 3.2).
    """
    try:
        gamma = exponent(sigma_rel)
    except ValueError as problem:
        raise HookloopError(f"--sigma-rel: {problem}") from problem
    _expect_place_for(out)
    snapshots = find_snapshots(directory / "checkpoints")
    step = max(snapshot.step for snapshot in snapshots) if step is None else step
    target = Profile(_updates_until(step, snapshots), gamma)
    weights, error = combination([snapshot.profile for snapshot in snapshots], target)
    _tell(snapshots, error)
    source = min(snapshots, key=lambda snapshot: (abs(snapshot.step - step), -snapshot.step))
    average = {
        "sigma_rel": sigma_rel,
        "updates": target.time,
        "names": list(source.names),
        "step": step,
        "error": error,
        "combined": {snapshot.path.name: weight for snapshot, weight in zip(snapshots, weights, strict=True)},
    }
    _write({**combined(snapshots, weights, source), "average": average}, out)
    click.echo(f"wrote {out}: sigma_rel {sigma_rel:g} at step {step}")


def _tell(snapshots: Sequence[Snapshot], error: float) -> None:
    for name, width in dict.fromkeys((snapshot.name, snapshot.sigma_rel) for snapshot in snapshots):
        steps = [snapshot.step for snapshot in snapshots if snapshot.name == name]
        click.echo(f"{name}: sigma_rel {width:g}, {len(steps)} averages, step {min(steps)} to {max(steps)}")
    click.echo(f"relative L2 error of the profile: {error:.2g}")
    if error > POOR:
        click.echo(
            f"warning: a poor fit, expected at most {POOR}; keep more averages with checkpoint.ema_epochs, or widths "
            "nearer to this one, or choose a --step at which one was kept",
            err=True,
        )


@frozen
class Snapshot:
    """A file that holds an average, without its weights."""

    path: Path
    step: int
    updates: int
    sigma_rel: float | None
    """``None`` for an average of another kind."""
    names: tuple[str, ...]
    """The averaged entries of the model."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of all entries of the model."""

    @property
    def name(self) -> str:
        """The plugin's, such as ``ema@wide``."""
        return self.path.name.rpartition("_epoch_")[0]

    @property
    def profile(self) -> Profile:
        """How much the weights of each time count in it."""
        assert self.sigma_rel is not None
        return Profile(self.updates, exponent(self.sigma_rel))

    @property
    def began(self) -> int:
        """The step before the first update."""
        return self.step - self.updates


def find_snapshots(directory: Path) -> list[Snapshot]:
    """Read what is known about every power-function average in *directory*, a file at a time.

    :raises HookloopError: where there are fewer than two, or where they cannot be combined.
    """
    paths = sorted(directory.glob("ema*_epoch_*.ckpt"), key=lambda path: path.name.rpartition("_epoch_"))
    found = [snapshot for path in paths if (snapshot := _read_facts(path)) is not None]
    _expect_constant_widths(found)
    snapshots = [snapshot for snapshot in found if snapshot.sigma_rel is not None]
    if len({snapshot.profile for snapshot in snapshots}) <= 1:
        raise HookloopError(
            f"{directory}: found {len(found)} averages, {len(snapshots)} of them with a power-function profile, "
            "expected two or more; train with ema.sigma_rel and checkpoint.ema_epochs set, such as 0.05 and '::1'"
        )
    for snapshot in snapshots[1:]:
        _expect_alike(snapshots[0], snapshot)
    return snapshots


def _read_facts(path: Path) -> Snapshot | None:
    """Read one file and forget its weights; ``None`` where it says nothing, or is a reconstruction itself."""
    state = _load(path)
    facts = cast("Mapping[str, object] | None", state.get("average"))
    if facts is None or "combined" in facts:
        return None
    model = cast("Mapping[str, Tensor]", state["model"])
    return Snapshot(
        path=path,
        step=cast("Mapping[str, int]", state["progress"])["step"],
        updates=cast("int", facts["updates"]),
        sigma_rel=cast("float | None", facts["sigma_rel"]),
        names=tuple(cast("list[str]", facts["names"])),
        shapes={name: tuple(tensor.shape) for name, tensor in model.items()},
    )


def _load(path: Path) -> dict[str, object]:
    from hookloop import files
    from hookloop.resume import expect_format

    try:
        state = files.load(path)
    except (files.DamagedError, OSError) as error:
        raise HookloopError(f"{error}; move it away") from error
    expect_format(path, state)
    return state


def _expect_constant_widths(snapshots: Sequence[Snapshot]) -> None:
    """Refuse what was averaged with one profile first and then with another: it has neither."""
    for name in dict.fromkeys(snapshot.name for snapshot in snapshots):
        widths = dict.fromkeys(snapshot.sigma_rel for snapshot in snapshots if snapshot.name == name)
        if len(widths) > 1:
            raise HookloopError(
                f"{snapshots[0].path.parent}: {name}: sigma_rel changed during the run: {', '.join(map(str, widths))}; "
                f"expected one; move the files {name}_epoch_*.ckpt away"
            )


def _expect_alike(first: Snapshot, other: Snapshot) -> None:
    """Refuse averages of different weights, or of different stretches of a run."""
    here, there = first.shapes, other.shapes
    odd = [f"{name} is missing" for name in here if name not in there]
    odd += [f"{name} is not in the other" for name in there if name not in here]
    odd += [
        f"{name} is {there[name]} there, {here[name]} in the other"
        for name in here
        if name in there and here[name] != there[name]
    ]
    odd += [f"{name} is averaged in one only" for name in sorted({*first.names} ^ {*other.names})]
    if odd:
        raise HookloopError(
            f"{other.path}: an average of another model than {first.path.name}: {'; '.join(odd[:3])}; move it away"
        )
    if first.began != other.began:
        raise HookloopError(
            f"{other.path}: an average since step {other.began}, expected since step {first.began} as in "
            f"{first.path.name}; move those of one kind away"
        )


def _updates_until(step: int, snapshots: Sequence[Snapshot]) -> int:
    began, last = snapshots[0].began, max(snapshot.step for snapshot in snapshots)
    if not began < step <= last:
        first = max(began, 0) + 1  # averages taken from another run have more updates than this one has steps
        raise HookloopError(f"--step {step}: expected {first} to {last}, the steps that the averages cover")
    return step - began


def combined(snapshots: Sequence[Snapshot], weights: Sequence[float], source: Snapshot) -> dict[str, object]:
    """Add up the averages, in float64 and a file at a time; buffers and all else are those of the file *source*."""
    sums: dict[str, Tensor] = {}
    for snapshot, weight in zip(snapshots, weights, strict=True):
        _add(sums, snapshot, weight)
    state = _load(source.path)
    model = cast("dict[str, Tensor]", state["model"])
    for name in source.names:
        model[name] = sums.pop(name).to(model[name].dtype)
    return state


def _add(sums: dict[str, Tensor], snapshot: Snapshot, weight: float) -> None:
    """Add one file's averages to *sums*; a function of its own, so that its end frees them."""
    import torch

    model = cast("Mapping[str, Tensor]", _load(snapshot.path)["model"])
    for name in snapshot.names:
        wide = model[name].to(torch.promote_types(model[name].dtype, torch.float64))
        sums[name] = sums[name].add_(wide, alpha=weight) if name in sums else wide * weight


def _expect_place_for(out: Path) -> None:
    if out.exists():
        raise HookloopError(f"--out: {out}: is there already; choose another file")
    if not out.parent.is_dir():
        raise HookloopError(f"--out: {out.parent}: no such directory; make it or choose another file")


def _write(state: Mapping[str, object], out: Path) -> None:
    from hookloop import files

    try:
        files.save(state, out)
    except OSError as error:
        raise HookloopError(f"--out: {out}: cannot be written: {error}") from error
