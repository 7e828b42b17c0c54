"""Statistics of each variable of a split, read once from its files; missing values are counted, not refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from attrs import define, evolve, field

from hookloop.data.bars import bar
from hookloop.data.calendars import labels
from hookloop.data.fields import Gaps, whole
from hookloop.data.normalize import Moments
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.stores import times_at_once
from hookloop.plugins.downscaling.transforms import make_transforms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from hookloop.data.fields import Fields, Floats, Ints
    from hookloop.plugins.downscaling.data_options import TransformConfig
    from hookloop.plugins.downscaling.pairs import Pair
    from hookloop.plugins.downscaling.transforms import Transforms

    Doubles = npt.NDArray[np.float64]

_FAR = 3000.0
"""Usual spreads: further from the middle lies nothing that was measured."""
_LARGEST = 1e30
"""No unit makes a measured value larger."""
_BELOW = 100.0
"""By how much log1p's scale lies above what it hardly bends: by half a percent at most."""


@define(eq=False)
class Summary:
    """Mean, standard deviation and extremes of values."""

    moments: Moments = field(factory=Moments)
    least: float = math.inf
    most: float = -math.inf

    def add(self, values: Tensor) -> None:
        """Count *values*, finite and not none, too."""
        self.moments.add(values)
        self.least, self.most = min(self.least, values.min().item()), max(self.most, values.max().item())

    @property
    def furthest(self) -> float:
        """The greatest distance from 0."""
        return max(abs(self.least), abs(self.most))


@define(eq=False)
class Statistics:
    """What one variable looks like, with what stands in for missing values."""

    side: str
    name: str
    fill: float | None = None
    transforms: Transforms = field(factory=lambda: make_transforms({}, {}))
    values: Summary = field(factory=Summary)
    """Of finite values."""
    transformed: Summary = field(factory=Summary)
    """Of them, transformed, where the variable has a transform."""
    missing: int = 0
    """Values that are absent, NaN or infinite in the files."""
    filled: int = 0
    """Those of them that are NaN and filled."""
    seen: int = 0
    """All values."""
    fields: list[Doubles] = field(factory=list)
    """``[field, 4]``: least, most, mean and standard deviation of the finite values of each, NaN without any."""

    @property
    def is_constant(self) -> bool:
        """Whether all finite values are one."""
        return self.values.least == self.values.most

    @property
    def is_transformed(self) -> bool:
        """Whether it has a transform that is known without its quantiles."""
        return self.transforms.any_of([self.name])

    def add(self, values: Floats) -> None:
        """Add fields ``[case, lat, lon]`` as they are in the files."""
        self.seen += values.size
        self.missing += int((~np.isfinite(values)).sum())
        if self.fill is not None:
            absent = np.isnan(values)
            self.filled += int(absent.sum())
            values = np.where(absent, np.float32(self.fill), values)
        self.fields.append(np.array([_described(own[np.isfinite(own)]) for own in values]))
        found = torch.from_numpy(values[np.isfinite(values)])
        if not len(found):
            return
        self.values.add(found)
        if self.is_transformed:
            self.transformed.add(self.transforms(found[None, :, None], [self.name]))

    def absurd(self) -> Ints:
        """Numbers of the fields in which a value is impossibly large or thousands of usual spreads from the middle.

        The middle is the median of the fields' means. A usual spread is what three in four fields have at most, of
        those that vary, or the interquartile range of the fields' means if that is more: a damaged field, or a
        few, change neither.
        """
        least, most, mean, std = np.concatenate(self.fields).T
        there = np.isfinite(mean)
        if not there.any():
            return np.zeros(0, np.int64)
        varying = std[std > 0]
        low, middle, high = np.percentile(mean[there], [25, 50, 75])
        spread = max(high - low, np.percentile(varying, 75) if len(varying) else 0.0)
        far = np.fmax(most - middle, middle - least) > (_FAR * spread if spread else math.inf)
        return np.flatnonzero(far | (np.fmax(np.abs(least), np.abs(most)) > _LARGEST))


def _described(found: Floats) -> tuple[float, float, float, float]:
    if not found.size:
        return (math.nan,) * 4
    exact = found.astype(np.float64)
    return float(exact.min()), float(exact.max()), float(exact.mean()), float(exact.std())


def measure(
    pair: Pair, split: str, options: Mapping[str, TransformConfig]
) -> tuple[list[Statistics], list[str]]:
    """Read all of *pair*, the *split* of this name, with a bar on a terminal.

    :param options: the transforms, by variable; those by quantiles, which only a run measures, are left out.
    :returns: the statistics of coarse variables, then of fine ones; and why a run would refuse what it reads.
    """
    sides = pair.coarse, pair.fine
    known = make_transforms({name: one for name, one in options.items() if one.name != "quantile"}, {})
    found = [
        [Statistics(side, name, fields.fill.get(name), known) for name in fields.parts]
        for side, fields in zip(("coarse", "fine"), sides, strict=True)
    ]
    gaps, together = (Gaps(), Gaps()), times_at_once(pair)
    with bar(f"{split}: fields read", 2 * len(pair.times)) as advance:
        for first in range(0, len(pair.times), together):
            times = np.arange(first, min(first + together, len(pair.times)))
            for own, fields, bad in zip(found, sides, gaps, strict=True):
                values = _read(fields, times, bad)
                for v, one in enumerate(own):
                    one.add(values[:, v])
                advance(len(times))
    refused = [reason for own, bad in zip(found, gaps, strict=True) if (reason := _refusal(bad, own))]
    return [one for own in found for one in own], refused


def far_off(pair: Pair, split: str, measured: Sequence[Statistics]) -> Iterator[str]:
    """Say which fields of *pair*, the *split* of this name, hold values that can hardly be meant."""
    for one in measured:
        absurd = one.absurd()
        if not len(absurd):
            continue
        members = {"coarse": pair.coarse, "fine": pair.fine}[one.side].members
        first = labels(pair.times[absurd[:1] // members])[0]
        yield (
            f"{split}: {one.name}, {one.side}: values from {one.values.least:.3g} to {one.values.most:.3g}, absurdly "
            f"far from most in {len(absurd):,} of {sum(map(len, one.fields)):,} fields, the first at {first}; a "
            "damaged chunk without a checksum looks like that"
        )


def straight(measured: Sequence[Statistics], options: Mapping[str, TransformConfig]) -> Iterator[str]:
    """Say which variables log1p all but leaves as they are, since its scale is far above them."""
    for name, option in options.items():
        own = [one.values for one in measured if one.name == name]
        most = max(one.furthest for one in own)
        if option.name == "log1p" and own[-1].moments.squares and most <= option.scale / _BELOW:
            yield (
                f"{name}: log1p with scale {option.scale:g} hardly changes values of at most {most:.2g}, it is a "
                f"straight line so near to 0; give a scale of about their size, such as {own[-1].moments.std:.1g}, "
                f"their standard deviation, as downscaling.transforms.{name}.scale"
            )


def _read(fields: Fields, times: Ints, gaps: Gaps) -> Floats:
    """Read whole fields of all members as they are in the files: ``[case, variable, lat, lon]``."""
    cases = np.arange(len(times) * fields.members)
    wanted = whole(fields, times[cases // fields.members], cases % fields.members)
    return evolve(fields, fill={}).read(wanted, gaps=gaps)


def _refusal(gaps: Gaps, found: Sequence[Statistics]) -> str | None:
    """Say what a run says of values that are not finite, those that are filled left aside."""
    filled = {one.name: one.filled for one in found}
    gaps.bad = {name: bad - filled[name] for name, bad in gaps.bad.items() if bad > filled[name]}
    try:
        gaps.refuse()
    except HookloopError as error:
        return str(error)
    return None
