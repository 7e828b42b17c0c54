"""The splits of a configuration: opened, checked against one another, and put where they are served from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hookloop.data.places import places
from hookloop.data.readers import default_workers
from hookloop.data.sharing import on_this_host
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.dataset import PairedData
from hookloop.plugins.downscaling.pairs import gap_between, open_pair, overlap
from hookloop.plugins.downscaling.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hookloop.core import Run
    from hookloop.plugins.downscaling import Downscaling
    from hookloop.plugins.downscaling.data_options import SplitConfig
    from hookloop.plugins.downscaling.dataset import OrderSeed
    from hookloop.plugins.downscaling.pairs import Pair

_SAME_DEGREES = 1e-4


def split_options(options: Downscaling) -> dict[str, tuple[str, SplitConfig]]:
    """The splits by name, training first, each with the option that describes it."""
    validation = {} if options.validation is None else {"validation": ("validation", options.validation)}
    sets = {name: (f"validation_sets.{name}", split) for name, split in options.validation_sets.items()}
    return {"train": ("train", options.train), **validation, **sets}


def open_pairs(options: Downscaling) -> dict[str, Pair]:
    """Open every split and check that they fit together; no field is read.

    :raises HookloopError: with the problems of all splits, a line each.
    """
    pairs: dict[str, Pair] = {}
    problems: list[str] = []
    for name, (option, split) in split_options(options).items():
        try:
            pairs[name] = _opened(options, split)
        except HookloopError as error:
            problems.append(f"downscaling.{option}: {error}")
    if not problems:
        seen = {name: pair for name, pair in pairs.items() if name != "train"}
        options_of = {name: option for name, (option, _) in split_options(options).items()}
        problems = [
            problem
            for name, pair in seen.items()
            if (problem := _other_grid(pairs["train"], pair, options_of[name]))
        ]
        if options.gap is not None:
            pairs["train"] = gap_between(pairs["train"], seen.values(), options.gap)
    if problems:
        raise HookloopError("\n".join(problems))
    return pairs


def _opened(options: Downscaling, split: SplitConfig) -> Pair:
    model = options.model
    return open_pair(split, model.inputs, model.outputs, fill=options.fill, pairing=options.pairing)


def _other_grid(trained: Pair, seen: Pair, option: str) -> str | None:
    """Validation must lie on the grid that is trained on: positions and static fields are that grid's."""
    same = trained.factor == seen.factor and all(
        here.shape == there.shape and (abs(here - there) < _SAME_DEGREES).all()
        for here, there in (
            (trained.fine_grid.latitude, seen.fine_grid.latitude),
            (trained.fine_grid.longitude, seen.fine_grid.longitude),
        )
    )
    return (
        None
        if same
        else (
            f"downscaling.{option}: grid {_extent(seen)}, expected that of downscaling.train, {_extent(trained)}; "
            "give both the same lat and lon"
        )
    )


def _extent(pair: Pair) -> str:
    grid = pair.fine_grid
    return (
        f"{len(grid.latitude)}x{len(grid.longitude)} "
        f"({grid.latitude[0]:g} to {grid.latitude[-1]:g} N, {grid.longitude[0]:g} to {grid.longitude[-1]:g} E)"
    )


def open_data(options: Downscaling, pairs: Mapping[str, Pair], run: Run) -> dict[str, PairedData]:
    """Serve *pairs*; what a user should know of them is told.

    :raises HookloopError: where fields that are held in memory cannot be read or are not finite.
    """
    data = {}
    splits = {name: split for name, (_, split) in split_options(options).items()}
    processes = on_this_host(run.ranks)
    chosen = places(splits, pairs, run.device, processes)
    together, events = options.patch.together, run.events
    for note in dict.fromkeys(note for pair in pairs.values() for note in pair.notes):
        events.info("data.note", split=", ".join(n for n in splits if note in pairs[n].notes), note=note)
    for name, split in splits.items():
        pair = pairs[name]
        if name != "train" and (learnt := overlap(pairs["train"], pair)):
            events.warning(
                "data.learnt_too",
                split=name,
                times=f"{learnt} of {len(pair.times)}",
                hint="its scores say little about other times; downscaling.gap leaves these out of training",
            )
        workers = default_workers(processes) if split.workers == "auto" else split.workers
        store = open_store(pair, chosen[name], workers, together, run.device, events.warning, run.cleanup)
        seed = order_seed(run) if name == "train" else None
        data[name] = PairedData(pair, store, options.patch, split.batch_size, seed, run.device)
    return data


def order_seed(run: Run) -> OrderSeed:
    """What the order and the patches of an epoch that is learnt are drawn from."""
    return lambda epoch, order: run.seed(f"order/{order}", epoch)
