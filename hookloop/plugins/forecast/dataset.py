"""A split served as batches of steps: a pure function of (epoch, position, order)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from attrs import Factory, define, evolve, field, frozen
from torch import Tensor

from hookloop.data.calendars import dates, day_of_year, hour_of_day
from hookloop.data.copies import copied_ahead
from hookloop.data.sharing import own_items
from hookloop.diffusion.noise import Rows
from hookloop.distributed import Share

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
    rows: Rows = Factory(lambda self: Rows.whole(len(self)), takes_self=True)
    """Which rows of a batch these are, where several ranks share it."""

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
    :param share: which rows of each batch are served; numbers of samples and batches are those of the whole.
    """

    states: States
    store: Store
    batch_size: int
    order_seed: OrderSeed | None
    device: torch.device
    share: Share = field(factory=Share)
    _presents: Ints = field(init=False)
    _hour: Floats = field(init=False)
    _day: Floats = field(init=False)
    _views: dict[Share, StepData] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        """Work out what is the same for every epoch."""
        self._presents = self.states.presents
        self._hour = hour_of_day(self.states.times)
        self._day = day_of_year(self.states.times)

    def shared(self, share: Share) -> StepData:
        """Give a view of the same store that reads only the rows of *share*; the same one each time."""
        if share == self.share:
            return self
        if share not in self._views:
            self._views[share] = evolve(self, share=share)
        return self._views[share]

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
        items = own_items(self.n_samples, self.batch_size, self.share)[
            start * self._n_own : end * self._n_own
        ]
        presents = self._presents[self._permutation(epoch, order)[items]]
        sides = self.store.steps(presents, self.states.following[presents], self._n_own)
        return copied_ahead(self._labelled(start, presents, sides), self.store.place, self.device)

    def at(self, times: Ints) -> Tensor:
        """The fields of the times with these numbers, ``[time, variable, lat, lon]``, on the device."""
        return self.store.at(times).to(self.device)

    def clock(self, times: Ints) -> tuple[Tensor, Tensor]:
        """Hours of the day and days of the year of the times with these numbers, ``[time]`` each, on the device."""
        return self._clock(times, self.device)

    def _clock(self, times: Ints, place: torch.device) -> tuple[Tensor, Tensor]:
        hour, day = (torch.from_numpy(own[times]).to(place) for own in (self._hour, self._day))
        return hour, day

    @property
    def _n_own(self) -> int:
        """Rows of a batch that are served, unless it is short."""
        return len(self.share.rows(self.batch_size))

    def _labelled(self, start: int, presents: Ints, sides: Iterator[Sides]) -> Iterator[StepBatch]:
        """Say when the steps from *presents* are, where their fields are: brought there once for all batches."""
        hour, day = self._clock(self.states.following[presents], self.store.place)
        for n, (present, following) in enumerate(sides):
            own = slice(n * self._n_own, (n + 1) * self._n_own)
            size = min(self.batch_size, self.n_samples - (start + n) * self.batch_size)
            rows = Rows(self.share.rows(size), size)
            yield StepBatch(present, following, hour[own], day[own], self.states.times[presents[own]], rows)

    def _permutation(self, epoch: int, order: Order) -> Ints:
        if self.order_seed is None:
            return np.arange(self.n_samples)
        generator = torch.Generator().manual_seed(self.order_seed(epoch, order))
        return torch.randperm(self.n_samples, generator=generator).numpy()
