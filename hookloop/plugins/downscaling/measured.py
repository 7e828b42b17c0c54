"""What is known of a training split: measured when it is first met, and kept until the data change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from hookloop.data.bars import bar
from hookloop.data.fields import whole
from hookloop.data.normalize import Scale
from hookloop.data.remembered import Remembered
from hookloop.plugins.downscaling.measure import Measured, Source, measure
from hookloop.plugins.downscaling.stores import Held, blocks, times_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from hookloop.data.statistics_cache import Plain
    from hookloop.plugins.downscaling.data_options import TransformConfig
    from hookloop.plugins.downscaling.options import ModelConfig
    from hookloop.plugins.downscaling.pairs import Pair
    from hookloop.plugins.downscaling.stores import Sides, Store


class _Kept(TypedDict):
    """What is measured, as JSON; a float32 number is the same number there."""

    inputs: list[list[float]]
    targets: list[list[float]]
    knots: dict[str, list[list[float]]]


def measured(
    pair: Pair,
    store: Store,
    config: ModelConfig,
    options: Mapping[str, TransformConfig],
    given: Scale | None,
    events: FilteringBoundLogger,
) -> Measured:
    """Measure *pair*, unless that has been done before: see :func:`measure`. Tell how long it took.

    :param store: what holds it; read from its files again only where it is not in memory.
    """
    began = time.perf_counter()
    sides = pair.coarse, pair.fine
    remembered = Remembered.of(sides, _measured_with(pair, config, options, given), events)
    kept = remembered.recall()
    if kept is not None:
        found = _from_plain(cast("_Kept", kept))  # it has the checksum of ours
    else:
        with bar("measuring", len(pair.times)) as advance:
            found = measure(_source(pair, store), config, options, given, advance)
        remembered.keep(_to_plain(found))
    events.info("data.measured", seconds=round(time.perf_counter() - began, 3), cached=kept is not None)
    return found


def _source(pair: Pair, store: Store) -> Source:
    together = times_at_once(pair)

    def read(times: Sequence[int]) -> Sides:
        own = np.asarray(times)
        cases, members = np.repeat(own, pair.members), np.tile(np.arange(pair.members), len(own))
        return (
            torch.from_numpy(pair.coarse.read(whole(pair.coarse, cases, members))),
            torch.from_numpy(pair.fine.read(whole(pair.fine, own, np.zeros_like(own)))),
        )

    def held() -> Iterator[Sides]:
        assert isinstance(store, Held)
        coarse = torch.split(store.coarse, together * pair.members)
        for some_coarse, some_fine in zip(coarse, torch.split(store.fine, together), strict=True):
            yield some_coarse.cpu(), some_fine.cpu()

    return Source(
        held if isinstance(store, Held) else lambda: blocks(pair),
        read,
        together,
        len(pair.times),
        pair.factor,
        pair.periodic,
    )


def checked(name: str, pair: Pair, store: Store, events: FilteringBoundLogger) -> None:
    """Read a split that is streamed once, unless that has been done before, so that gaps are found at the start.

    :raises HookloopError: where a value is not finite.
    """
    if isinstance(store, Held):  # it was checked when it was read
        return
    began = time.perf_counter()
    remembered = Remembered.of((pair.coarse, pair.fine), {"checked": True}, events)
    cached = remembered.recall() is not None
    if not cached:
        with bar(f"checking {name}", len(pair.times)) as advance:
            for _, fine in blocks(pair):
                advance(len(fine))
        remembered.keep("finite")
    events.info("data.checked", split=name, seconds=round(time.perf_counter() - began, 3), cached=cached)


def _measured_with(
    pair: Pair, config: ModelConfig, options: Mapping[str, TransformConfig], given: Scale | None
) -> dict[str, Plain]:
    """What the statistics depend on beside the fields."""
    return {
        "periodic": pair.periodic,
        "inputs": config.inputs,
        "outputs": config.outputs,
        "residual": config.residual,
        "transforms": {name: [option.name, option.scale] for name, option in options.items()},
        "normalization": None if given is None else _plain_scale(given),
    }


def _to_plain(found: Measured) -> Plain:
    return {
        "inputs": _plain_scale(found.inputs),
        "targets": _plain_scale(found.targets),
        "knots": {name: [knots[0].tolist(), knots[1].tolist()] for name, knots in found.knots.items()},
    }


def _plain_scale(scale: Scale) -> list[list[float]]:
    return [scale.mean.tolist(), scale.std.tolist()]


def _from_plain(kept: _Kept) -> Measured:
    knots = {name: (_float32(x), _float32(z)) for name, (x, z) in kept["knots"].items()}
    inputs, targets = (Scale(*map(_float32, scale)) for scale in (kept["inputs"], kept["targets"]))
    return Measured(inputs, targets, knots)


def _float32(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)
