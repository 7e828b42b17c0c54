"""A split served as batches of steps: a pure function of (epoch, position, order)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from attrs import define, field, frozen
from torch import Tensor

from hookloop.data.calendars import dates, day_of_year, hour_of_day
from hookloop.data.copies import copied_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hookloop.data.calendars import Floats, Times
    from hookloop.data.fields import Ints
    from hookloop.plugins.forecast.states import States
    from hookloop.plugins.forecast.stores import Sides, Store
    from hookloop.task import Order

    OrderSeed: TypeAlias = Callable[[int, str], int]


@frozen(eq=False)
class StepBatch:
    """Some states and those that follow them, physical: the state's variables, then the forcing's."""

    present: Tensor
    """``[batch, variable, lat, lon]``."""
    following: Tensor
    """``[batch, variable, lat, lon]``, one step later."""
    hour: Tensor
    """``[batch]``, hours of the day that the step leads to, UTC."""
    day: Tensor
    """``[batch]``, days of the year, likewise."""
    times: Times
    """Of the present states."""

    def __len__(self) -> int:
        """Count the steps."""
        return len(self.times)

    def __str__(self) -> str:
        """Name the times, for errors."""
        more = ", …" if len(self) > len(dates(self.times).split(", ")) else ""
        return f"batch of {len(self)} steps from {dates(self.times)}{more}"


@define(eq=False)
class StepData:
    """The ``Data`` of :mod:`hookloop.task` for the single steps of a split.

    :param order_seed: the seed of an (epoch, order), from which its shuffle is drawn; with ``None``
        (validation) steps come in the order of time.
    """

    states: States
    store: Store
    batch_size: int
    order_seed: OrderSeed | None
    device: torch.device
    _presents: Ints = field(init=False)
    _hour: Floats = field(init=False)
    _day: Floats = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Work out what is the same for every epoch."""
        self._presents = self.states.presents
        self._hour = hour_of_day(self.states.times)
        self._day = day_of_year(self.states.times)

    @property
    def n_samples(self) -> int:
        """Steps an epoch."""
        return len(self._presents)

    @property
    def n_batches(self) -> int:
        """Batches an epoch; the last may be short."""
        return -(-self.n_samples // self.batch_size)

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[StepBatch]:
        """Yield the batches ``start … stop - 1`` of *epoch*, on the device; nothing before them is read."""
        end = self.n_batches if stop is None else min(stop, self.n_batches)
        order_of_all = self._presents[self._permutation(epoch, order)]
        presents = order_of_all[start * self.batch_size : end * self.batch_size]
        sides = self.store.steps(presents, self.states.following[presents], self.batch_size)
        return copied_ahead(self._labelled(presents, sides), self.store.place, self.device)

    def at(self, times: Ints) -> Tensor:
        """The fields of the times with these numbers, ``[time, variable, lat, lon]``, on the device."""
        return self.store.at(times).to(self.device)

    def clock(self, times: Ints) -> tuple[Tensor, Tensor]:
        """Hours of the day and days of the year of the times with these numbers, ``[time]`` each, on the device."""
        return self._clock(times, self.device)

    def _clock(self, times: Ints, place: torch.device) -> tuple[Tensor, Tensor]:
        hour, day = (torch.from_numpy(own[times]).to(place) for own in (self._hour, self._day))
        return hour, day

    def _labelled(self, presents: Ints, sides: Iterator[Sides]) -> Iterator[StepBatch]:
        """Say when the steps from *presents* are, where their fields are: brought there once for all batches."""
        hour, day = self._clock(self.states.following[presents], self.store.place)
        for n, (present, following) in enumerate(sides):
            own = slice(n * self.batch_size, (n + 1) * self.batch_size)
            yield StepBatch(present, following, hour[own], day[own], self.states.times[presents[own]])

    def _permutation(self, epoch: int, order: Order) -> Ints:
        if self.order_seed is None:
            return np.arange(self.n_samples)
        generator = torch.Generator().manual_seed(self.order_seed(epoch, order))
        return torch.randperm(self.n_samples, generator=generator).numpy()
