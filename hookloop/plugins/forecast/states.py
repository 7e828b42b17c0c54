"""The states of a split in time: which one follows which, and where forecasts can start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from hookloop.data.calendars import labels, minutes_since
from hookloop.data.files import open_fields, select
from hookloop.data.options import minutes
from hookloop.data.selection import chosen, in_ranges
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hookloop.data.calendars import Times
    from hookloop.data.fields import Fields, Ints
    from hookloop.plugins.forecast import Forecast
    from hookloop.plugins.forecast.options import StatesConfig

_SAME_DEGREES = 1e-4


@frozen(eq=False)
class States:
    """Fields at some times, and the steps between them."""

    fields: Fields
    """The variables of the state, then those of the forcing."""
    step: int
    """Minutes from a state to the next."""
    following: Ints
    """``[time]``, the number of the time exactly one step later; -1 where it is not there."""

    @classmethod
    def of(cls, fields: Fields, step: int) -> States:
        """Find what follows what."""
        since = minutes_since(fields.times, fields.times[0])
        at = np.searchsorted(since, since + step)
        there = np.append(since, -1)[at] == since + step
        return cls(fields, step, np.where(there, at, -1))

    @property
    def times(self) -> Times:
        """When they are, ascending."""
        return self.fields.times

    @property
    def presents(self) -> Ints:
        """Numbers of the times that another one follows, ascending."""
        return np.flatnonzero(self.following >= 0)

    @property
    def nbytes(self) -> int:
        """Memory of all values."""
        return 4 * len(self.times) * len(self.fields.parts) * int(np.prod(self.fields.shape))

    def chains(self, steps: int) -> Ints:
        """Numbers of each time and of the *steps* times that follow it: ``[start, steps + 1]``, where all are."""
        chain = np.arange(len(self.times))[:, None]
        for _ in range(steps):
            after = self.following[chain[:, -1]]
            chain = np.column_stack([chain, after])[after >= 0]
        return chain


def split_options(options: Forecast) -> dict[str, tuple[str, StatesConfig]]:
    """The splits by name, training first, each with the option that describes it."""
    validation = {} if options.validation is None else {"validation": ("validation", options.validation)}
    sets = {name: (f"validation_sets.{name}", split) for name, split in options.validation_sets.items()}
    return {"train": ("train", options.train), **validation, **sets}


def open_states(options: Forecast) -> dict[str, States]:
    """Open every split and check that they fit together; no field is read.

    :raises HookloopError: with the problems of all splits, a line each.
    """
    splits = split_options(options)
    found: dict[str, Fields] = {}
    problems: list[str] = []
    for name, (option, split) in splits.items():
        try:
            found[name] = open_split(split, options.model.variables, options.fill)
        except HookloopError as error:
            problems.append(f"forecast.{option}: {error}")
    if problems:
        raise HookloopError("\n".join(problems))
    step = _shortest(found["train"]) if options.step is None else minutes(options.step)
    states = {name: States.of(fields, step) for name, fields in found.items()}
    for name, (option, _) in splits.items():
        problem = _lacking(states[name], 1 if name == "train" else options.horizon) or (
            _other_grid(found["train"], found[name])
        )
        if problem:
            problems.append(f"forecast.{option}: {problem}")
    if problems:
        raise HookloopError("\n".join(problems))
    return states


def open_split(split: StatesConfig, variables: Sequence[str], fill: Mapping[str, float]) -> Fields:
    """Open *variables* of a split at the times that it chooses; no field is read.

    :raises HookloopError: where a file or variable is missing, or no time is left, or there are members.
    """
    fields = open_fields(split.fields, variables, fill=fill, among=lambda times: in_ranges(times, split))
    if fields.members > 1:
        raise HookloopError(f"{fields.where}: {fields.members} ensemble members, expected one state a time")
    return select(fields, chosen(fields.times, split, fields.where))


def duration(length: int) -> str:
    """Write *length* in minutes as lead times are written: ``6h``, ``240h``, ``1h30m``, ``10m``."""
    hours, rest = divmod(length, 60)
    return (f"{hours}h" if hours else "") + (f"{rest}m" if rest else "")


def _shortest(fields: Fields) -> int:
    if len(fields.times) <= 1:
        raise HookloopError(
            f"forecast.train: {len(fields.times)} time in {fields.where}, expected two or more, a step apart"
        )
    return int(np.diff(minutes_since(fields.times, fields.times[0])).min())


def _lacking(states: States, steps: int) -> str | None:
    if len(states.chains(steps)):
        return None
    apart = np.diff(minutes_since(states.times, states.times[0]))
    found = f"the shortest distance is {duration(int(apart.min()))}" if len(apart) else "there is one time"
    return (
        f"no state is followed by {steps} more, each {duration(states.step)} after the one before: {found}, "
        f"of {len(states.times)} times from {labels(states.times[:1])[0]} to {labels(states.times[-1:])[0]}; "
        "expected one at least: see step, n_forward_steps and windows_per_start"
    )


def _other_grid(trained: Fields, seen: Fields) -> str | None:
    """What is looked at must lie on the grid that is trained on: positions and static fields are that grid's."""
    same = trained.shape == seen.shape and all(
        (abs(here.values - there.values) < _SAME_DEGREES).all()
        for here, there in ((trained.latitude, seen.latitude), (trained.longitude, seen.longitude))
    )
    return None if same else f"grid {_extent(seen)}, expected that of forecast.train, {_extent(trained)}"


def _extent(fields: Fields) -> str:
    latitude, longitude = fields.latitude.values, fields.longitude.values
    return (
        f"{len(latitude)}x{len(longitude)} "
        f"({latitude[0]:g} to {latitude[-1]:g} N, {longitude[0]:g} to {longitude[-1]:g} E)"
    )
