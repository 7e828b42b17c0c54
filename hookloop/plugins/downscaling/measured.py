"""What is known of a training split: measured when it is first met, and kept until the data change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import statistics_cache
from hookloop.plugins.downscaling.bars import bar
from hookloop.plugins.downscaling.calendars import calendar_of, labels
from hookloop.plugins.downscaling.fields import whole
from hookloop.plugins.downscaling.measure import Measured, Source, measure
from hookloop.plugins.downscaling.normalize import Scale
from hookloop.plugins.downscaling.stores import Held, blocks, times_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from hookloop.plugins.downscaling.data_options import TransformConfig
    from hookloop.plugins.downscaling.fields import Fields
    from hookloop.plugins.downscaling.options import ModelConfig
    from hookloop.plugins.downscaling.pairs import Pair
    from hookloop.plugins.downscaling.statistics_cache import Plain
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
    key = _key(pair, _measured_with(pair, config, options, given), events)
    found = None if key is None else _recalled(key, events)
    cached = found is not None
    if found is None:
        with bar("measuring", len(pair.times)) as advance:
            found = measure(_source(pair, store), config, options, given, advance)
        if key is not None:
            _keep(key, _to_plain(found), events)
    events.info("data.measured", seconds=round(time.perf_counter() - began, 3), cached=cached)
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
    key = _key(pair, {"checked": True}, events)
    try:
        cached = key is not None and statistics_cache.recall(key) is not None
    except HookloopError:
        cached = False
    if not cached:
        with bar(f"checking {name}", len(pair.times)) as advance:
            for _, fine in blocks(pair):
                advance(len(fine))
        if key is not None:
            _keep(key, "finite", events)
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


def _key(pair: Pair, with_what: Mapping[str, Plain], events: FilteringBoundLogger) -> str | None:
    """Tell what is kept from everything else; ``None`` where nothing is kept, or that cannot be told."""
    if statistics_cache.cache_directory() is None:
        return None
    what = {"sides": [_selection(side) for side in (pair.coarse, pair.fine)], **with_what}
    parts = [part for side in (pair.coarse, pair.fine) for own in side.parts.values() for part in own]
    reached = {part.path: part.storage_options for part in parts}
    try:
        return statistics_cache.fingerprint(list(reached), what, reached)
    except OSError as error:
        events.info("statistics.not_kept", why=str(error))
        return None


def _selection(fields: Fields) -> Plain:
    """What of its files is used, and how."""
    return {
        "times": [calendar_of(fields.times), *labels(fields.times)],
        "members": fields.members,
        "rows": fields.latitude.index.tolist(),
        "columns": fields.longitude.index.tolist(),
        "fill": fields.fill,
        "variables": {
            name: [
                [part.path, part.name, {dim: int(at) for dim, at in part.fixed.items()}, len(part.index)]
                for part in parts
            ]
            for name, parts in fields.parts.items()
        },
    }


def _recalled(key: str, events: FilteringBoundLogger) -> Measured | None:
    try:
        kept = statistics_cache.recall(key)
    except HookloopError as error:
        events.warning("statistics.damaged", why=str(error))
        return None
    return None if kept is None else _from_plain(cast("_Kept", kept))  # it has the checksum of ours


def _keep(key: str, found: Plain, events: FilteringBoundLogger) -> None:
    try:
        statistics_cache.keep(key, found)
    except OSError as error:
        events.info("statistics.not_kept", why=str(error), hint="HOOKLOOP_CACHE names another place")


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
