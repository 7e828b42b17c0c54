"""What a forecast model must know of its training split: scales, measured once and kept until the data change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from attrs import frozen

from hookloop.data.bars import bar
from hookloop.data.normalize import Moments, Scale, scale_of
from hookloop.data.remembered import Remembered
from hookloop.plugins.forecast.stores import Held, blocks, times_at_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from hookloop.data.statistics_cache import Plain
    from hookloop.plugins.forecast.options import ModelConfig
    from hookloop.plugins.forecast.states import States
    from hookloop.plugins.forecast.stores import Store


@frozen(eq=False)
class Measured:
    """Scales of a training split."""

    inputs: Scale
    """Of the state, then of the forcing: over all times."""
    targets: Scale
    """Of what is generated, so that it has unit variance: differences between states one step apart, or states."""


class _Kept(TypedDict):
    """What is measured, as JSON; a float32 number is the same number there."""

    inputs: list[list[float]]
    targets: list[list[float]]


def measured(states: States, store: Store, config: ModelConfig, events: FilteringBoundLogger) -> Measured:
    """Measure *states*, unless that has been done before; tell how long it took.

    :raises HookloopError: where a variable, or its difference from step to step, is constant.
    """
    began = time.perf_counter()
    what: dict[str, Plain] = {
        "forecast": states.step,
        "state": config.state,
        "forcing": config.forcing,
        "residual": config.residual,
    }
    remembered = Remembered.of([states.fields], what, events)
    kept = remembered.recall()
    if kept is not None:
        found = _from_plain(cast("_Kept", kept))  # it has the checksum of ours
    else:
        with bar("measuring", len(states.presents) + len(states.times)) as advance:
            found = measure(states, store, config, advance)
        remembered.keep({"inputs": _plain(found.inputs), "targets": _plain(found.targets)})
    events.info("data.measured", seconds=round(time.perf_counter() - began, 3), cached=kept is not None)
    return found


def measure(
    states: States,
    store: Store,
    config: ModelConfig,
    advance: Callable[[int], object] = lambda _: None,
) -> Measured:
    """Measure the inputs over all times, and the differences over all steps; the same data give the same bits.

    :param advance: told how many times and steps are done.
    :raises HookloopError: where a variable, or its difference from step to step, is constant.
    """
    together = times_at_once(states.fields)
    inputs = {name: Moments() for name in config.variables}
    for first in range(0, len(states.times), together):
        stop = min(first + together, len(states.times))
        values = store.at(torch.arange(first, stop).numpy()).cpu()
        for v, moments in enumerate(inputs.values()):
            moments.add(values[:, v])
        advance(len(values))
    scale = scale_of(inputs)
    n_state = len(config.state)
    if not config.residual:
        return Measured(scale, Scale(scale.mean[:n_state], scale.std[:n_state]))
    differences = {name: Moments() for name in config.state}
    presents = states.presents
    for present, following in store.steps(presents, states.following[presents], together):
        change = (following[:, :n_state] - present[:, :n_state]).cpu()
        for v, moments in enumerate(differences.values()):
            moments.add(change[:, v])
        advance(len(change))
    return Measured(scale, scale_of(differences))


def checked(name: str, states: States, store: Store, events: FilteringBoundLogger) -> None:
    """Read a split that is streamed once, unless that has been done before, so that gaps are found at the start.

    :raises HookloopError: where a value is not finite.
    """
    if isinstance(store, Held):  # it was checked when it was read
        return
    began = time.perf_counter()
    remembered = Remembered.of([states.fields], {"checked": True}, events)
    cached = remembered.recall() is not None
    if not cached:
        with bar(f"checking {name}", len(states.times)) as advance:
            for times, _ in blocks(states.fields):
                advance(len(times))
        remembered.keep("finite")
    events.info("data.checked", split=name, seconds=round(time.perf_counter() - began, 3), cached=cached)


def _plain(scale: Scale) -> list[list[float]]:
    return [scale.mean.tolist(), scale.std.tolist()]


def _from_plain(kept: _Kept) -> Measured:
    inputs, targets = (
        Scale(*(torch.tensor(numbers, dtype=torch.float32) for numbers in scale))
        for scale in (kept["inputs"], kept["targets"])
    )
    return Measured(inputs, targets)
