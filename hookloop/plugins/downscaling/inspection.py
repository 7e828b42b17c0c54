"""``hookloop inspect``: what a run would open, learn from and read, worked out without running it."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click
import numpy as np
from attrs import evolve, frozen

from hookloop.data.files import open_fields
from hookloop.data.places import places
from hookloop.data.selection import chosen, in_ranges
from hookloop.data.statics import load_statics
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.pairs import overlap
from hookloop.plugins.downscaling.rehearsal import Rehearsal
from hookloop.plugins.downscaling.splits import open_pairs, split_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from hookloop.core import Run
    from hookloop.data.calendars import Times
    from hookloop.data.fields import Fields
    from hookloop.data.places import Place
    from hookloop.plugins.downscaling.data_options import SplitConfig
    from hookloop.plugins.downscaling.dataset import PairedData
    from hookloop.plugins.downscaling.inspection_statistics import Statistics
    from hookloop.plugins.downscaling.pairs import Pair
    from hookloop.plugins.downscaling.read_cost import Cost


@frozen(eq=False)
class Stream:
    """How a split that is not cached would be read."""

    workers: int
    buffer: int
    """Bytes of the slabs in which patches wait for their turn."""
    cost: Cost


@frozen(eq=False)
class Split:
    """One split as a run would have it."""

    name: str
    config: SplitConfig
    data: PairedData
    """Of the run's own order; its store reads nothing."""
    files: tuple[Fields, Fields]
    """Coarse and fine, all that they hold in the split's ranges of time."""
    there: int
    """Times that are in the coarse files."""
    left_out: Mapping[str, int]
    """Those of them that are not in the split, by the option that leaves them out."""
    learnt_too: int
    """How many of its times are also learnt."""
    place: Place
    stream: Stream | None
    """``None`` where it is held in memory."""
    first: Sequence[tuple[int, int]]
    """South-west corners, in coarse cells, of the patches of its first batch."""

    @property
    def pair(self) -> Pair:
        """Its fields."""
        return self.data.pair


@frozen(eq=False)
class Inspection:
    """All splits of a configuration, training first."""

    options: Downscaling
    patch: tuple[int, int]
    """Coarse cells in latitude and longitude."""
    splits: Sequence[Split]
    hints: Sequence[str]

    @property
    def train(self) -> Split:
        """What is learnt."""
        return self.splits[0]


def report(run: Run, *, statistics: bool, figure: Path | None) -> None:
    """Print what there is to know about the data of *run*, and draw *figure*.

    :raises HookloopError: where a run would refuse the data, or the figure cannot be written.
    """
    from hookloop.plugins.downscaling import inspection_table
    from hookloop.plugins.downscaling.inspection_statistics import far_off, measure, straight

    options = _options(run)
    if figure is not None:
        from hookloop.plugins.downscaling import inspection_figure

        inspection_figure.expect_place_for(figure)
    found = inspect(options, run)
    click.echo(inspection_table.opening(found))
    if figure is not None:
        inspection_figure.write(found, figure)
    whole = found.splits if statistics else []
    read = [measure(split.pair, split.name, options.transforms) for split in whole]
    measured = read[0][0] if read else None
    refused = list(dict.fromkeys(reason for _, reasons in read for reason in reasons))
    click.echo(f"\n{inspection_table.variables(found, measured)}")
    hints = [
        *(
            hint
            for split, (one, _) in zip(whole, read, strict=True)
            for hint in far_off(split.pair, split.name, one)
        ),
        *straight(measured or [], options.transforms if measured else {}),
    ]
    if hints:
        click.echo(f"\n{inspection_table.bullets('hints on the values', hints)}")
    if measured is not None and not options.normalization and (constant := _constant(measured)):
        refused.append(
            f"{constant} in the training data: expected fields that vary; leave them out of downscaling.model.inputs"
        )
    if refused:
        raise HookloopError("\n".join(refused))


def _constant(measured: Sequence[Statistics]) -> str:
    """Name the inputs that do not vary, which nothing can be divided by."""
    return ", ".join(one.name for one in measured if one.side == "coarse" and one.is_constant)


def _options(run: Run) -> Downscaling:
    """The one plugin whose data these are."""
    found = {name: plugin for name, plugin in run.plugins.items() if isinstance(plugin, Downscaling)}
    if len(found) != 1:
        raise HookloopError(
            f"plugins that pair fields: found {', '.join(found) or 'none'}, expected exactly one; "
            "name one in --plugins, such as --plugins downscaling"
        )
    (options,) = found.values()
    return options


def inspect(options: Downscaling, run: Run) -> Inspection:
    """Open and check the data of *options* as *run* would; no field but the static ones is read.

    :raises HookloopError: with the problems of all splits, a line each.
    """
    pairs = open_pairs(options)
    patch = options.patch.coarse or pairs["train"].coarse_grid.shape
    problems: list[str] = []
    with _noted(problems):
        options.model.expect_places(pairs["train"].fine_grid)
    with _noted(problems):
        load_statics(options.statics, pairs["train"].fine_grid)
    if options.normalization:
        with _noted(problems):
            options.normalization.scale(options.model.inputs)
    splits, hints = [], []
    configs = {name: config for name, (_, config) in split_options(options).items()}
    chosen_places = places(configs, pairs, run.device)
    for name, config in configs.items():
        rehearsal = Rehearsal(name, config, options.patch, pairs[name], run)
        learnt_too = 0 if name == "train" else overlap(pairs["train"], pairs[name])
        with _noted(problems):
            split = _split(rehearsal, options, chosen_places[name], learnt_too)
            splits.append(split)
            hints.append(rehearsal.hint(split.stream.cost) if split.stream else None)
    if problems:
        raise HookloopError("\n".join(dict.fromkeys(problems)))
    return Inspection(options, patch, splits, [hint for hint in hints if hint])


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Go on after a mistake of the user's, and remember it."""
    try:
        yield
    except HookloopError as error:
        problems += str(error).splitlines()


def _split(rehearsal: Rehearsal, options: Downscaling, place: Place, learnt_too: int) -> Split:
    config, pair, asked = rehearsal.config, rehearsal.pair, rehearsal.asked()
    stream = None
    if place == "none":
        asked.expect_room()
        stream = Stream(rehearsal.workers, asked.nbytes, rehearsal.cost(asked))
    files, there = _files(config, options)
    return Split(
        rehearsal.name,
        config,
        rehearsal.data(asked),
        files,
        there,
        _left_out(files[0], there, config, len(pair.times)),
        learnt_too,
        place,
        stream,
        asked.corners(config.batch_size),
    )


def _files(config: SplitConfig, options: Downscaling) -> tuple[tuple[Fields, Fields], int]:
    """Open both sides as a run does, but for the region; and count the times of the coarse files, of any variable."""
    every: list[Times] = []

    def noted(times: Times) -> npt.NDArray[np.bool_]:
        every.append(times)
        return in_ranges(times, config)

    coarse = open_fields(config.coarse, options.model.inputs, among=noted)
    there = len(np.unique(np.concatenate(every)))
    return (
        coarse,
        open_fields(config.fine, options.model.outputs, among=partial(in_ranges, split=config)),
    ), there


def _left_out(files: Fields, there: int, config: SplitConfig, used: int) -> dict[str, int]:
    """Count the times that each option leaves out, in the order in which they choose."""
    steps = {
        "time": evolve(config, every=None, repeat=None),
        "every": evolve(config, repeat=None),
        "repeat": config,
    }
    before, counts = there, {}
    for option, step in steps.items():
        left = len(chosen(files.times, step, files.where))
        counts[option], before = before - left, left
    return {**counts, "gap": before - used}
