"""A split in memory, served as batches of paired patches: a pure function of (epoch, position, order)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from attrs import define, evolve, field, frozen
from torch import Tensor

from hookloop.plugins.downscaling.files import Times, dates
from hookloop.plugins.downscaling.pairs import Pair, day_of_year, hour_of_day
from hookloop.plugins.downscaling.patches import PatchConfig, corners, fine_corner, patch_shape, tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hookloop.task import Order

    OrderSeed: TypeAlias = Callable[[int, str], int]

HALO = 2
"""Coarse cells around each patch: bicubic interpolation of a patch then equals that of the whole field."""


@frozen(eq=False)
class PairBatch:
    """Some patches, coarse and fine, in physical units."""

    coarse: Tensor
    """``[batch, input, lat + 2·HALO, lon + 2·HALO]``; beyond the domain the edge cell is repeated."""
    fine: Tensor
    """``[batch, output, factor·lat, factor·lon]``."""
    corner: Tensor
    """``[batch, 2]`` int64: south-west corners on the fine grid."""
    hour: Tensor
    """``[batch]``, hours of the day, UTC."""
    day: Tensor
    """``[batch]``, days of the year."""
    times: Times

    def __len__(self) -> int:
        """Count the patches."""
        return len(self.times)

    def __str__(self) -> str:
        """Name the times, for errors."""
        more = ", …" if len(self) > len(dates(self.times).split(", ")) else ""
        return f"batch of {len(self)} patches at {dates(self.times)}{more}"


@frozen(eq=False)
class _Plan:
    """Which patches a batch is made of; nothing is read yet."""

    cases: Tensor
    """``[batch]`` int64, times by number."""
    corner: Tensor
    """``[batch, 2]`` int64, on the coarse grid."""


@define(eq=False)
class PairedData:
    """The ``Data`` of :mod:`hookloop.task` for a :class:`Pair`.

    :param order_seed: the seed of an (epoch, order), from which its shuffle and patches are drawn; with
        ``None`` (validation) samples come in the order of time, the same ones each epoch.
    :raises HookloopError: where the patch is larger than the grid.
    """

    pair: Pair
    patch: PatchConfig
    batch_size: int
    order_seed: OrderSeed | None
    device: torch.device
    cache: Literal["auto", "device", "ram"] = "auto"
    _shape: tuple[int, int] = field(init=False)
    _coarse: Tensor = field(init=False)
    _fine: Tensor = field(init=False)
    _hour: Tensor = field(init=False)
    _day: Tensor = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Put the fields where they are gathered from."""
        place = cache_device(self.cache, self.pair, self.device)
        self._shape = patch_shape(self.patch, self.pair.coarse_grid.shape)
        self._coarse = with_halo(self.pair.coarse).to(place)
        self._fine = self.pair.fine.to(place)
        self._hour = hour_of_day(self.pair.times).to(place)
        self._day = day_of_year(self.pair.times).to(place)

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
        """Times, each of them one whole field."""
        return len(self.pair.times)

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[PairBatch]:
        """Yield the batches ``start … stop - 1`` of *epoch*, on the device; nothing before them is read."""
        whole = self._plan(epoch, order)
        end = self.n_batches if stop is None else min(stop, self.n_batches)
        size = self.batch_size
        plans = [
            _Plan(whole.cases[n * size : (n + 1) * size], whole.corner[n * size : (n + 1) * size])
            for n in range(start, end)
        ]
        if self.device.type == "cuda" and self._fine.device.type == "cpu":
            yield from _copied_ahead(map(self._gather, plans), self.device)
        else:
            for plan in plans:
                yield _moved(self._gather(plan), self.device)

    def cases(self, indices: Sequence[int]) -> PairBatch:
        """Whole fields, with their halo, of the times with these numbers, on the device."""
        cases = torch.tensor(list(indices), dtype=torch.int64)
        plan = _Plan(cases, torch.zeros(len(cases), 2, dtype=torch.int64))
        return _moved(self._gather(plan, self.pair.coarse_grid.shape), self.device)

    def inside(self, coarse: Tensor) -> Tensor:
        """Drop the halo of ``[batch, input, lat, lon]``."""
        return coarse[..., HALO:-HALO, HALO:-HALO]

    def _plan(self, epoch: int, order: Order) -> _Plan:
        """Draw the order and the patches of a whole *epoch*; its order is one of (time, patch) items."""
        generator = torch.Generator()
        if self.order_seed is None:
            generator.manual_seed(0)
            items, turn = torch.arange(self.n_samples), 0
        else:
            generator.manual_seed(self.order_seed(epoch, order))
            items, turn = torch.randperm(self.n_samples, generator=generator), epoch
        grid = self.pair.coarse_grid.shape
        if self.patch.random_offset:
            corner = corners(grid, self._shape, self.n_samples, generator)
        else:
            positions = tiles(grid, self._shape)
            # Without the turn a time would show the same tiles in every epoch.
            corner = positions[(items + turn) % len(positions)]
        return _Plan(items // self.patch.per_sample, corner)

    def _gather(self, plan: _Plan, shape: tuple[int, int] | None = None) -> PairBatch:
        """Cut the planned patches out, where the fields are cached."""
        height, width = shape or self._shape
        factor = self.pair.factor
        fine = fine_corner(plan.corner, factor)
        cases = plan.cases.to(self._fine.device, non_blocking=True)
        return PairBatch(
            coarse=_cut(self._coarse, cases, plan.corner, (height + 2 * HALO, width + 2 * HALO)),
            fine=_cut(self._fine, cases, fine, (height * factor, width * factor)),
            corner=fine,
            hour=self._hour[cases],
            day=self._day[cases],
            times=self.pair.times[plan.cases.numpy()],
        )


def cache_device(cache: Literal["auto", "device", "ram"], pair: Pair, device: torch.device) -> torch.device:
    """Decide where a split lives: ``auto`` is a GPU of which it takes less than a quarter, else RAM."""
    if cache == "auto" and device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        cache = "device" if pair.coarse.nbytes + pair.fine.nbytes < total / 4 else "ram"
    return device if cache == "device" else torch.device("cpu")


def with_halo(coarse: Tensor) -> Tensor:
    """Repeat the edge cells :data:`HALO` times around ``[batch, variable, lat, lon]``."""
    return F.pad(coarse, (HALO,) * 4, mode="replicate")


def upsample(coarse_with_halo: Tensor, factor: int) -> Tensor:
    """Interpolate to the fine grid (bicubic, cell-centred) and drop the halo.

    Source: Keys 1981 (IEEE Trans. ASSP 29, 1153), with a = -0.75, as torch has it.

    :param coarse_with_halo: ``[batch, variable, lat + 2·HALO, lon + 2·HALO]``.
    :returns: ``[batch, variable, factor·lat, factor·lon]``.
    """
    fine = F.interpolate(coarse_with_halo, scale_factor=float(factor), mode="bicubic", align_corners=False)
    edge = HALO * factor
    return fine[..., edge:-edge, edge:-edge]


def _cut(fields: Tensor, cases: Tensor, corner: Tensor, shape: tuple[int, int]) -> Tensor:
    """Gather one patch of *fields* ``[time, variable, lat, lon]`` for each case, in one indexing."""
    if shape == tuple(fields.shape[-2:]):
        return fields[cases]
    place = corner.to(fields.device, non_blocking=True)
    rows = place[:, 0, None] + torch.arange(shape[0], device=fields.device)
    columns = place[:, 1, None] + torch.arange(shape[1], device=fields.device)
    variables = torch.arange(fields.shape[1], device=fields.device)
    return fields[
        cases[:, None, None, None],
        variables[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _moved(batch: PairBatch, device: torch.device) -> PairBatch:
    """Copy what a model reads to *device*."""
    return evolve(
        batch,
        coarse=batch.coarse.to(device, non_blocking=True),
        fine=batch.fine.to(device, non_blocking=True),
        corner=batch.corner.to(device, non_blocking=True),
        hour=batch.hour.to(device, non_blocking=True),
        day=batch.day.to(device, non_blocking=True),
    )


def _copied_ahead(batches: Iterable[PairBatch], device: torch.device) -> Iterator[PairBatch]:
    """Copy from pinned memory on a side stream, one batch ahead of the one that is learnt."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: deque[PairBatch] = deque()
    for batch in batches:
        with torch.cuda.stream(stream):
            ahead.append(_moved(_pinned(batch), device))
        if len(ahead) > 1:
            yield _arrived(ahead.popleft(), stream)
    while ahead:
        yield _arrived(ahead.popleft(), stream)


def _pinned(batch: PairBatch) -> PairBatch:
    return evolve(
        batch,
        coarse=batch.coarse.pin_memory(),
        fine=batch.fine.pin_memory(),
        corner=batch.corner.pin_memory(),
        hour=batch.hour.pin_memory(),
        day=batch.day.pin_memory(),
    )


def _arrived(batch: PairBatch, stream: torch.cuda.Stream) -> PairBatch:
    """Let the current stream wait for the copies, and keep their memory until it has used them."""
    current = torch.cuda.current_stream(batch.fine.device)
    # The wait also covers the batch copied after this one; copies are short beside a training step.
    current.wait_stream(stream)
    for tensor in (batch.coarse, batch.fine, batch.corner, batch.hour, batch.day):
        tensor.record_stream(current)
    return batch
