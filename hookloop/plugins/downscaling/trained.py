"""A trained model from its checkpoint alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from attrs import evolve, field, frozen

from hookloop import warm_start, yamlfile
from hookloop.config import build, learned_options
from hookloop.data.options import SourceConfig
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.coarse_region import FineGrid
from hookloop.plugins.downscaling.sampling import restored, which_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from hookloop.data.grids import Floats
    from hookloop.plugins.downscaling.model import Downscaler

Precision = Literal["bf16", "fp32", "auto"]

_FREE = ("train", "fill")
"""Learned options that say how to read data, and so may be others for other data."""


@frozen(eq=False)
class Trained:
    """A model to generate with."""

    model: Downscaler
    options: Downscaling
    weights: str
    """Which of the checkpoint's weights, for people."""
    step: int
    """How many batches it has learnt."""
    precision: Precision
    factor: int | None
    """How many fine cells a coarse one had along each axis; ``None`` where the checkpoint does not say."""
    attributes: Mapping[str, Mapping[str, str]] = field(factory=dict)
    """Of the CF conventions, by output; none where the checkpoint does not say."""
    input_units: Mapping[str, str] = field(factory=dict)
    """By input, empty where the training files said nothing; none where the checkpoint does not say."""

    @property
    def grid(self) -> FineGrid:
        """Where the fine cells lie."""
        return FineGrid(_decimal(self.model.latitude), _decimal(self.model.longitude))


def load(path: Path, overrides: Sequence[str] = ()) -> Trained:
    """Read the model of a downscaling run, on the CPU, with the weights that the run validated with.

    :param overrides: ``SECTION.KEY=VALUE`` over the configuration in the checkpoint.
    :raises HookloopError: for a file that is none, and for overrides that would make another model of it.
    """
    state = warm_start.read(path)
    config = cast("Mapping[str, object]", state.get("config", {}))
    if "downscaling" not in config:
        raise HookloopError(
            f"{path}: its configuration has no section downscaling; expected a run that downscales"
        )
    _expect_known(overrides)
    text = json.dumps(config)
    before, now = (yamlfile.read(text, str(path), changes) for changes in ((), overrides))
    trained = build(Downscaling, before, "downscaling")
    options = build(Downscaling, evolve(now, places={}, source="--set"), "downscaling")
    _expect_same_model(trained, options)
    facts = cast("Mapping[str, Any]", state.get("task", {}))
    return Trained(
        restored(path, {**state, "config": now.data}),
        options,
        which_weights(path, state),
        cast("Mapping[str, int]", state["progress"])["step"],
        _precision(now.data.get("optimization")),
        facts.get("factor"),
        facts.get("attributes", {}),
        facts.get("input_units", {}),
    )


def _precision(optimization: yamlfile.Plain) -> Precision:
    """Give the precision of a run; of one that was optimized otherwise, that of the hardware."""
    found = optimization.get("precision", "auto") if isinstance(optimization, dict) else "auto"
    if found not in get_args(Precision):
        raise HookloopError(
            f"optimization.precision: expected one of {', '.join(get_args(Precision))}, found {found!r}"
        )
    return cast("Precision", found)


def _expect_known(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if not key.startswith("downscaling.") and key != "optimization.precision":
            raise HookloopError(
                f"--set {key}: does nothing here; expected downscaling.… or optimization.precision"
            )


def _expect_same_model(trained: Downscaling, options: Downscaling) -> None:
    """Refuse what would have to be learnt anew."""
    before, now = learned_options(trained), learned_options(options)
    for key in {**before, **now}:
        if before.get(key) != now.get(key) and key.split(".")[0] not in _FREE:
            raise HookloopError(
                f"--set downscaling.{key}: {before.get(key)!r} in the checkpoint, which has learnt with it, found "
                f"{now.get(key)!r}; leave it out"
            )


def _decimal(values: Tensor) -> Floats:
    """Give the shortest numbers that single precision does not tell from *values*: 49.9, not 49.90000153."""
    return np.array([float(str(value)) for value in values.float().numpy(force=True)])


def as_sources(sources: Sequence[str | SourceConfig]) -> list[SourceConfig]:
    """Write out those that are only a path."""
    return [SourceConfig(source) if isinstance(source, str) else source for source in sources]
