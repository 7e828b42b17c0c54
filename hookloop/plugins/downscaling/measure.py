"""What a model must know of its training split, measured in one pass: scales, and knots of quantiles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from hookloop.data.normalize import Moments, Scale, scale_of
from hookloop.data.places import fitting
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.dataset import upsample, with_halo
from hookloop.plugins.downscaling.transforms import make_transforms, quantile_knots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from hookloop.plugins.downscaling.data_options import TransformConfig
    from hookloop.plugins.downscaling.options import ModelConfig
    from hookloop.plugins.downscaling.stores import Sides
    from hookloop.plugins.downscaling.transforms import Knots, Transforms

_FEWEST = 64
"""Times of which values are sampled, if there are as many."""
_SAMPLED = 1_000_000
"""Values of a variable from which its quantiles are taken."""
_GOLDEN = (math.sqrt(5) - 1) / 2


@frozen(eq=False)
class Source:
    """A training split, as it is measured: physical fields, finite, whole and without halo, on the CPU."""

    blocks: Callable[[], Iterable[Sides]]
    """All of it in order: coarse ``[time · member, input, lat, lon]`` and fine
    ``[time, output, factor·lat, factor·lon]``. The same blocks give the same bits."""
    read: Callable[[Sequence[int]], Sides]
    """Some times of it, by number."""
    times_at_once: int
    """How many of them are few enough to be read together."""
    n_times: int
    factor: int
    wraps: bool
    """Whether the last longitude is beside the first."""


@frozen(eq=False)
class Measured:
    """What a model must know of its training split."""

    inputs: Scale
    """Of the coarse variables, transformed."""
    targets: Scale
    """Of what is generated, so that it has unit variance: the residual, or the fine variables, transformed."""
    knots: Mapping[str, Knots]
    """Of the variables with a quantile transform."""


def measure(
    source: Source,
    config: ModelConfig,
    options: Mapping[str, TransformConfig],
    given: Scale | None,
    advance: Callable[[int], object] = lambda _: None,
) -> Measured:
    """Measure inputs and targets in one pass over *source*; before it, the knots of quantiles in a part of it.

    :param options: the transforms, by variable.
    :param given: the scale of the inputs, if it is not to be measured.
    :param advance: told how many times are done.
    :raises HookloopError: where a variable is constant.
    """
    knots = _knots(source, config, options)
    transforms = make_transforms(options, knots)
    inputs, targets = ({name: Moments() for name in names} for names in (config.inputs, config.outputs))
    for sides in source.blocks():
        for name, moments in inputs.items() if given is None else ():
            for some in _in_pieces(_of(name, config.inputs, sides[0])):
                moments.add(transforms(some, [name]))
        for name, moments in targets.items():
            for some in _targets(name, sides, transforms, source, config):
                moments.add(some)
        advance(len(sides[1]))
    return Measured(given or scale_of(inputs), scale_of(targets), knots)


def _of(name: str, names: Sequence[str], fields: Tensor) -> Tensor:
    """One of the variables *names*: ``[case, 1, lat, lon]``."""
    return fields[:, names.index(name), None]


def _in_pieces(fields: Tensor) -> Sequence[Tensor]:
    """Divide fields of one variable into as many cases as are small together."""
    return torch.split(fields, fitting(fields[0].nbytes))


def _targets(
    name: str, sides: Sides, transforms: Transforms, source: Source, config: ModelConfig
) -> Iterator[Tensor]:
    """Yield what is generated of a variable, transformed and before it is normalised, in pieces."""
    fine = _of(name, config.outputs, sides[1])
    if not config.residual:
        yield from (transforms(some, [name]) for some in _in_pieces(fine))
        return
    coarse = _of(name, config.inputs, sides[0])
    members, together = len(coarse) // len(fine), fitting(fine[0].nbytes)
    for first in range(0, len(coarse), together):
        own = transforms(coarse[first : first + together], [name])
        upsampled = upsample(with_halo(own, wraps=source.wraps), source.factor)
        times = torch.arange(first, first + len(own)) // members
        here = transforms(fine[times[0] : times[-1] + 1], [name])
        yield (here if members == 1 else here[times - times[0]]) - upsampled


def _knots(source: Source, config: ModelConfig, options: Mapping[str, TransformConfig]) -> dict[str, Knots]:
    """Take the quantiles of about a million values from times that are spread over the split.

    A variable that is both given and generated has one transform, that of its fine fields: the residual
    needs one map for both, and coarse values, being means of fine ones, lie within their range.
    """
    names = [name for name, option in options.items() if option.name == "quantile"]
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    times = _spread(source, config, names) if names else []
    for start in range(0, len(times), source.times_at_once):
        some = times[start : start + source.times_at_once]
        sides = source.read(some)
        for name in names:
            own = _own(name, sides, config)
            step = _step(own.numel() * len(times) // len(some), own.shape[-1])
            samples[name].append(own.flatten()[::step].clone())  # a view would keep all that was read
    return {name: _knots_of(name, torch.cat(sample)) for name, sample in samples.items()}


def _own(name: str, sides: Sides, config: ModelConfig) -> Tensor:
    """The fields ``[case, 1, lat, lon]`` from which the quantiles of a variable are taken."""
    coarse, fine = sides
    is_generated = name in config.outputs
    return _of(name, config.outputs, fine) if is_generated else _of(name, config.inputs, coarse)


def _spread(source: Source, config: ModelConfig, names: Sequence[str]) -> list[int]:
    """Choose one time of each of as many equal spans as give enough values, a few dozen at least.

    Where in its span a time lies differs, so that not all are of one hour of the day.
    """
    sides = source.read([0])
    fewest = min(_own(name, sides, config).numel() for name in names)
    count = min(source.n_times, max(_FEWEST, -(-_SAMPLED // fewest)))
    return [int((i + i * _GOLDEN % 1) * source.n_times / count) for i in range(count)]


def _step(values: int, width: int) -> int:
    """How many values lie between two that are taken, so that all columns of the grid are met alike."""
    step = -(-values // _SAMPLED)
    while math.gcd(step, width) > 1:
        step += 1
    return step


def _knots_of(name: str, sample: Tensor) -> Knots:
    try:
        return quantile_knots(sample)
    except ValueError as error:
        raise HookloopError(
            f"downscaling.transforms.{name}: {error} in the training data, expected some that differ"
        ) from error
