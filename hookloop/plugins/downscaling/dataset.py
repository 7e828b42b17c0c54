"""A split served as batches of paired patches: a pure function of (epoch, position, order)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from attrs import Factory, define, evolve, field, frozen
from torch import Tensor

from hookloop.data.calendars import dates, day_of_year, hour_of_day
from hookloop.data.copies import copied_ahead, moved
from hookloop.data.sharing import own_items
from hookloop.diffusion.noise import Rows
from hookloop.distributed import Share
from hookloop.plugins.downscaling.patches import (
    PatchConfig,
    Plan,
    fine_corner,
    patch_shape,
    plan,
    position_weights,
)
from hookloop.plugins.downscaling.stores import HALO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hookloop.data.calendars import Times
    from hookloop.plugins.downscaling.pairs import Pair
    from hookloop.plugins.downscaling.stores import Sides, Store
    from hookloop.task import Order

    OrderSeed: TypeAlias = Callable[[int, str], int]

__all__ = ["HALO", "PairBatch", "PairedData", "upsample", "with_halo"]

_PLANS = 2
"""Plans that are kept: of what is learnt, and of what is looked at in between."""


@frozen(eq=False)
class PairBatch:
    """Some patches, coarse and fine, in physical units."""

    coarse: Tensor
    """``[batch, input, lat + 2·HALO, lon + 2·HALO]``; beyond the domain the edge cell is repeated, but round
    the globe the longitudes go on."""
    fine: Tensor
    """``[batch, output, factor·lat, factor·lon]``."""
    corner: Tensor
    """``[batch, 2]`` int64: south-west corners on the fine grid."""
    hour: Tensor
    """``[batch]``, hours of the day, UTC."""
    day: Tensor
    """``[batch]``, days of the year."""
    times: Times
    rows: Rows = Factory(lambda self: Rows.whole(len(self)), takes_self=True)
    """Which rows of a batch these are, where several ranks share it."""

    def __len__(self) -> int:
        """Count the patches."""
        return len(self.times)

    def __str__(self) -> str:
        """Name the times, for errors."""
        more = ", …" if len(self) > len(dates(self.times).split(", ")) else ""
        return f"batch of {len(self)} patches at {dates(self.times)}{more}"


@define(eq=False)
class PairedData:
    """The ``Data`` of :mod:`hookloop.task` for a :class:`Pair`.

    :param order_seed: the seed of an (epoch, order), from which its shuffle and patches are drawn; with
        ``None`` (validation) samples come in the order of time, the same ones each epoch.
    :param share: which rows of each batch are served; numbers of samples and batches are those of the whole.
    :raises HookloopError: as :func:`patch_shape` and :func:`position_weights` do.
    """

    pair: Pair
    store: Store
    patch: PatchConfig
    batch_size: int
    order_seed: OrderSeed | None
    device: torch.device
    share: Share = field(factory=Share)
    _shape: tuple[int, int] = field(init=False)
    _weights: Tensor | None = field(init=False)
    _hour: Tensor = field(init=False)
    _day: Tensor = field(init=False)
    _plan: Callable[[int, Order], tuple[Plan, Plan]] = field(init=False)
    _views: dict[Share, PairedData] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        """Work out what is the same for every epoch."""
        pair = self.pair
        self._shape = patch_shape(self.patch, pair.coarse_grid.shape)
        self._weights = position_weights(self.patch, pair.coarse_grid, self._shape, wraps=pair.periodic)
        self._hour = torch.from_numpy(hour_of_day(pair.times)).to(self.store.place)
        self._day = torch.from_numpy(day_of_year(pair.times)).to(self.store.place)
        self._plan = lru_cache(_PLANS)(self._drawn)

    def shared(self, share: Share) -> PairedData:
        """Give a view of the same store that reads only the rows of *share*; the same one each time."""
        if share == self.share:
            return self
        if share not in self._views:
            self._views[share] = evolve(self, share=share)
        return self._views[share]

    @property
    def n_samples(self) -> int:
        """Patches an epoch."""
        return self.n_cases * self.patch.per_sample

    @property
    def n_batches(self) -> int:
        """Batches an epoch; the last may be short."""
        return -(-self.n_samples // self.batch_size)

    @property
    def n_cases(self) -> int:
        """Whole fields: times, of every member of the coarse ones."""
        return self.pair.n_cases

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[PairBatch]:
        """Yield the batches ``start … stop - 1`` of *epoch*, on the device; nothing before them is read.

        The first call of an epoch draws its plan, in time and memory linear in its patches (24 bytes each);
        the last two plans are kept, so that other calls take as long for every *start*.
        """
        end = self.n_batches if stop is None else min(stop, self.n_batches)
        whole, there = self._plan(epoch, order) if self.order_seed else self._plan(0, "main")
        sides = self.store.patches(there, self._shape, self._n_own, start, end)
        found = (self._batch(whole, there, n, side) for n, side in enumerate(sides, start))
        return copied_ahead(found, self.store.place, self.device)

    def cases(self, indices: Sequence[int]) -> PairBatch:
        """Whole fields, with their halo, of the cases with these numbers, on the device."""
        cases = torch.tensor(list(indices), dtype=torch.int64)
        there = cases.to(self.store.place)
        corner = torch.zeros(len(cases), 2, dtype=torch.int64, device=self.store.place)
        found = self._labelled(cases, there, corner, self.store.fields(there), Rows.whole(len(cases)))
        return moved(found, self.device)

    def labels(self, indices: Sequence[int]) -> list[str]:
        """Name the cases with these numbers: by their times, and of an ensemble by the member, from 0 on."""
        found = [divmod(index, self.pair.members) for index in indices]
        several = self.pair.members > 1
        return [
            str(self.pair.times[time])[:16] + (f", coarse member {member}" if several else "")
            for time, member in found
        ]

    def days(self, indices: Sequence[int]) -> list[str]:
        """Name the days of the cases with these numbers."""
        return [str(self.pair.times[index // self.pair.members])[:10] for index in indices]

    def inside(self, coarse: Tensor) -> Tensor:
        """Drop the halo of ``[batch, input, lat, lon]``."""
        return coarse[..., HALO:-HALO, HALO:-HALO]

    @property
    def _n_own(self) -> int:
        """Rows of a batch that are served, unless it is short."""
        return len(self.share.rows(self.batch_size))

    def _drawn(self, epoch: int, order: Order) -> tuple[Plan, Plan]:
        """Draw the order and the patches of a whole *epoch*, and keep the own: in memory, and where the store is."""
        shuffled = self.order_seed is not None
        generator = torch.Generator().manual_seed(self.order_seed(epoch, order) if self.order_seed else 0)
        whole = plan(
            self.patch,
            self.pair.coarse_grid.shape,
            self.n_cases,
            self.pair.members,
            generator,
            epoch if shuffled else 0,
            shuffled=shuffled,
            wraps=self.pair.periodic,
            weights=self._weights,
        )
        if self.share.world > 1:
            whole = whole.only(own_items(self.n_samples, self.batch_size, self.share))
        place = self.store.place
        return whole, evolve(whole, cases=whole.cases.to(place), corner=whole.corner.to(place))

    def _batch(self, whole: Plan, there: Plan, n: int, sides: Sides) -> PairBatch:
        own = slice(n * self._n_own, (n + 1) * self._n_own)
        size = min(self.batch_size, self.n_samples - n * self.batch_size)
        rows = Rows(self.share.rows(size), size)
        return self._labelled(whole.cases[own], there.cases[own], there.corner[own], sides, rows)

    def _labelled(self, cases: Tensor, there: Tensor, corner: Tensor, sides: Sides, rows: Rows) -> PairBatch:
        """Say where and when patches are: *cases* for people, *there* where the patches are."""
        members = self.pair.members
        return PairBatch(
            coarse=sides[0],
            fine=sides[1],
            corner=fine_corner(corner, self.pair.factor),
            hour=self._hour[there // members],
            day=self._day[there // members],
            times=self.pair.times[(cases // members).numpy()],
            rows=rows,
        )


def with_halo(coarse: Tensor, *, wraps: bool = False) -> Tensor:
    """Put :data:`HALO` cells around ``[batch, variable, lat, lon]``, as a batch has them."""
    across = F.pad(coarse, (HALO, HALO, 0, 0), mode="circular" if wraps else "replicate")
    return F.pad(across, (0, 0, HALO, HALO), mode="replicate")


def upsample(coarse_with_halo: Tensor, factor: int) -> Tensor:
    """Interpolate to the fine grid (bicubic, cell-centred) and drop the halo.

    Source: Keys 1981 (IEEE Trans. ASSP 29, 1153), with a = -0.75, as torch has it.

    :param coarse_with_halo: ``[batch, variable, lat + 2·HALO, lon + 2·HALO]``.
    :returns: ``[batch, variable, factor·lat, factor·lon]``.
    """
    fine = F.interpolate(coarse_with_halo, scale_factor=float(factor), mode="bicubic", align_corners=False)
    edge = HALO * factor
    return fine[..., edge:-edge, edge:-edge]
