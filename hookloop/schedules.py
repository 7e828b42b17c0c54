"""How the learning rate depends on progress: pure functions of it, and the options that choose one.

Where a class is called like one of ``torch.optim.lr_scheduler``, so are its options, and the rates are the same.
What follows a plateau has a memory, which is :class:`Plateau`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import Attribute, define, field, frozen
from attrs.validators import and_, deep_iterable, ge, gt, le, lt, min_len, optional

from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GROUP = "hookloop.schedules"
"""The group of entry points that offer a :class:`Schedule` by name."""


def warm_up(position: float, length: float) -> float:
    """Rise linearly to 1 over *length*: 1/length at the first position."""
    return min(1.0, (position + 1) / length) if length else 1.0


def cosine(position: float, total: float, floor: float) -> float:
    """Fall from 1 to *floor* along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, Eq. 5).

    A *total* below 1, which a warm-up leaves that is as long as the run, is a fall at position 1.
    """
    return floor + (1 - floor) * (1 + math.cos(math.pi * _share(position, total))) / 2


def restarts(position: int, first: int, growth: int, floor: float) -> float:
    """Fall along half a cosine again and again, each *growth* times as long (same paper, section 3)."""
    length = first
    if growth == 1:
        position %= first
    while position >= length:
        position -= length
        length *= growth
    return cosine(position, length, floor)


def linear(position: float, total: float, start: float, end: float) -> float:
    """Go from *start* to *end* in a straight line, and stay there."""
    return start + (end - start) * _share(position, total)


def polynomial(position: float, total: float, power: float) -> float:
    """Fall from 1 to 0 as the remaining share to the *power*."""
    return float((1 - _share(position, total)) ** power)


def _share(position: float, total: float) -> float:
    return min(1.0, position / max(total, 1.0))


def exponential(position: float, gamma: float) -> float:
    """Multiply by *gamma* at each position."""
    return float(gamma**position)


def stairs(position: int, width: int, gamma: float) -> float:
    """Multiply by *gamma* every *width* positions."""
    return float(gamma ** (position // width))


def steps(position: float, milestones: Sequence[float], gamma: float) -> float:
    """Multiply by *gamma* at each milestone passed."""
    return float(gamma ** sum(position >= milestone for milestone in milestones))


def inverse_sqrt(position: float, reference: float) -> float:
    """Stay at 1 until *reference*, then fall as 1/√ (EDM2: Karras et al. 2024, arXiv:2312.02696, section 2)."""
    return 1 / math.sqrt(max(position / reference, 1.0))


def improves(value: float, best: float, threshold: float) -> bool:
    """Whether *value* lies below *best* by more than the share *threshold* of it; NaN never does."""
    return value < best * (1 - math.copysign(threshold, best))


@frozen(kw_only=True)
class Schedule:
    """What all schedules have: a unit and a warm-up. An entry point in group ``hookloop.schedules`` offers one.

    Positions are counted in that unit from 0. Lengths and positions among the options include the warm-up;
    periods begin after it.
    """

    chosen_as: ClassVar[str]
    step: Literal["batch", "epoch"] | None = field(
        default=None, metadata=doc("when it moves, and the unit of the rest: batch, if not given, or epoch")
    )
    warmup: int = field(default=0, validator=ge(0), metadata=doc("rise linearly over so many"))

    def factor_at(self, position: int, length: int, top: float) -> float:
        """Give what to multiply the highest rate *top* by, at *position* of *length*."""
        shape = self.shape(position, length, top)
        return warm_up(position, self.warmup) * shape if self.warmup else shape

    def shape(self, position: int, length: int, top: float) -> float:  # noqa: ARG002 - others look at them
        """Give the same without the warm-up."""
        return 1.0

    def after_warmup(self, position: int) -> int:
        """Count the positions since the warm-up."""
        return max(0, position - self.warmup)

    def lengths(self, length: int) -> Mapping[str, int]:  # noqa: ARG002 - others look at it
        """Give the options that follow the run's *length* where they are not given, by name."""
        return {}


@frozen(kw_only=True)
class ConstantLR(Schedule):
    """Stay at lr."""

    chosen_as = "ConstantLR"


@frozen(kw_only=True)
class CosineAnnealingLR(Schedule):
    """Fall to eta_min along half a cosine."""

    chosen_as = "CosineAnnealingLR"
    eta_min: float = field(default=0.0, validator=ge(0.0), metadata=doc("the last rate"))
    T_max: int | None = field(
        default=None, validator=optional(gt(0)), metadata=doc("where it ends; at the end if not given")
    )

    def shape(self, position: int, length: int, top: float) -> float:
        """See :func:`cosine`."""
        total = (self.T_max or length) - self.warmup
        return cosine(self.after_warmup(position), total, self.eta_min / top)

    def lengths(self, length: int) -> Mapping[str, int]:
        """Give where it ends."""
        return {"T_max": self.T_max or length}


@frozen(kw_only=True)
class CosineAnnealingWarmRestarts(Schedule):
    """Fall to eta_min along half a cosine, jump back to lr, and again."""

    chosen_as = "CosineAnnealingWarmRestarts"
    T_0: int = field(validator=gt(0), metadata=doc("length of the first fall"))
    T_mult: int = field(
        default=1, validator=gt(0), metadata=doc("how many times as long each fall is as the last")
    )
    eta_min: float = field(default=0.0, validator=ge(0.0), metadata=doc("the lowest rate"))

    def shape(self, position: int, length: int, top: float) -> float:  # noqa: ARG002
        """See :func:`restarts`."""
        return restarts(self.after_warmup(position), self.T_0, self.T_mult, self.eta_min / top)


@frozen(kw_only=True)
class LinearLR(Schedule):
    """Go from one multiple of lr to another in a straight line."""

    chosen_as = "LinearLR"
    start_factor: float = field(
        default=1 / 3, validator=[gt(0.0), le(1.0)], metadata=doc("what lr is multiplied by at first")
    )
    end_factor: float = field(
        default=1.0, validator=[ge(0.0), le(1.0)], metadata=doc("what lr is multiplied by in the end")
    )
    total_iters: int | None = field(
        default=None, validator=optional(gt(0)), metadata=doc("where it ends; at the end if not given")
    )

    def shape(self, position: int, length: int, top: float) -> float:  # noqa: ARG002
        """See :func:`linear`."""
        total = (self.total_iters or length) - self.warmup
        return linear(self.after_warmup(position), total, self.start_factor, self.end_factor)

    def lengths(self, length: int) -> Mapping[str, int]:
        """Give where it ends."""
        return {"total_iters": self.total_iters or length}


@frozen(kw_only=True)
class PolynomialLR(Schedule):
    """Fall to 0 along a power of the share that remains."""

    chosen_as = "PolynomialLR"
    total_iters: int | None = field(
        default=None, validator=optional(gt(0)), metadata=doc("where it ends; at the end if not given")
    )
    power: float = field(default=1.0, validator=gt(0.0), metadata=doc("the power; 1 is a straight line"))

    def shape(self, position: int, length: int, top: float) -> float:  # noqa: ARG002
        """See :func:`polynomial`."""
        total = (self.total_iters or length) - self.warmup
        return polynomial(self.after_warmup(position), total, self.power)

    def lengths(self, length: int) -> Mapping[str, int]:
        """Give where it ends."""
        return {"total_iters": self.total_iters or length}


@frozen(kw_only=True)
class ExponentialLR(Schedule):
    """Multiply by gamma each time."""

    chosen_as = "ExponentialLR"
    gamma: float = field(validator=[gt(0.0), le(1.0)], metadata=doc("what it is multiplied by"))

    def shape(self, position: int, length: int, top: float) -> float:  # noqa: ARG002
        """See :func:`exponential`."""
        return exponential(self.after_warmup(position), self.gamma)


@frozen(kw_only=True)
class StepLR(Schedule):
    """Multiply by gamma every so often."""

    chosen_as = "StepLR"
    step_size: int = field(validator=gt(0), metadata=doc("how long each rate lasts"))
    gamma: float = field(
        default=0.1, validator=and_(gt(0.0), le(1.0)), metadata=doc("what it is multiplied by")
    )

    def shape(self, position: int, length: int, top: float) -> float:  # noqa: ARG002
        """See :func:`stairs`."""
        return stairs(self.after_warmup(position), self.step_size, self.gamma)


@frozen(kw_only=True)
class MultiStepLR(Schedule):
    """Multiply by gamma at each milestone."""

    chosen_as = "MultiStepLR"
    milestones: list[int] = field(factory=list, metadata=doc("where it is multiplied by gamma"))
    gamma: float = field(
        default=0.1, validator=and_(gt(0.0), le(1.0)), metadata=doc("what it is multiplied by")
    )

    def shape(self, position: int, length: int, top: float) -> float:  # noqa: ARG002
        """See :func:`steps`."""
        return steps(position, self.milestones, self.gamma)


@frozen(kw_only=True)
class InverseSqrtLR(Schedule):
    """Stay at lr until t_ref, then fall as 1/√t: EDM2's schedule."""

    chosen_as = "InverseSqrtLR"
    t_ref: int = field(validator=gt(0), metadata=doc("where the fall begins"))

    def shape(self, position: int, length: int, top: float) -> float:  # noqa: ARG002
        """See :func:`inverse_sqrt`."""
        return inverse_sqrt(position, self.t_ref)


@frozen(kw_only=True)
class ReduceLROnPlateau(Schedule):
    """Lower the rate for good where a metric no longer falls."""

    chosen_as = "ReduceLROnPlateau"
    metric: str = field(default="val/loss", metadata=doc("what must fall; watched once the warm-up is over"))
    factor: float = field(
        default=0.1, validator=[gt(0.0), lt(1.0)], metadata=doc("what the rate is multiplied by")
    )
    patience: int = field(
        default=10, validator=ge(0), metadata=doc("evaluations without improvement that are let pass")
    )
    threshold: float = field(
        default=1e-4,
        validator=[ge(0.0), lt(1.0)],
        metadata=doc("share of the best value by which a better one must lie below it"),
    )
    cooldown: int = field(
        default=0, validator=ge(0), metadata=doc("evaluations after a reduction that do not count as bad")
    )
    min_lr: float = field(default=0.0, validator=ge(0.0), metadata=doc("the lowest rate"))


@define
class Plateau:
    """What :class:`ReduceLROnPlateau` remembers."""

    best: float = math.inf
    bad: int = 0
    """Evaluations since the best."""
    resting: int = 0
    """Evaluations that are left of the cooldown."""

    def sees(self, value: float, options: ReduceLROnPlateau) -> bool:
        """Take note of an evaluation, and say whether the rate is to be reduced; NaN is no improvement."""
        if improves(value, self.best, options.threshold):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.resting:
            self.resting, self.bad = self.resting - 1, 0
        if self.bad <= options.patience:
            return False
        self.bad, self.resting = 0, options.cooldown
        return True


def _one_unit(_instance: object, _attribute: Attribute[list[Schedule]], value: list[Schedule]) -> None:
    for schedule in value:
        if schedule.step is not None:
            raise ValueError(
                f"{schedule.chosen_as}: found step {schedule.step!r}, expected none: "
                "give it to SequentialLR, whose unit is that of all"
            )
        if isinstance(schedule, ReduceLROnPlateau):
            raise ValueError(  # noqa: TRY004 - of the user's, not of ours
                "ReduceLROnPlateau: expected schedules that follow progress alone; "
                "choose it by itself, with warmup"
            )


def _ascend(_instance: object, _attribute: Attribute[list[int]], value: list[int]) -> None:
    if any(earlier >= later for earlier, later in pairwise(value)):
        raise ValueError(f"expected each milestone after the one before, found {value}")


@frozen(kw_only=True)
class SequentialLR(Schedule):
    """One schedule after another, each from its own beginning."""

    chosen_as = "SequentialLR"
    schedulers: list[Schedule] = field(
        validator=[min_len(1), _one_unit],
        metadata={**doc("the schedules, each by name, with its options"), "group": GROUP},
    )
    milestones: list[int] = field(
        validator=[deep_iterable(gt(0)), _ascend], metadata=doc("where each of them but the first begins")
    )

    def __attrs_post_init__(self) -> None:
        """Check that there is a milestone between each two schedules."""
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f"milestones: found {len(self.milestones)} for {len(self.schedulers)} schedulers, "
                f"expected {len(self.schedulers) - 1}: where each but the first begins"
            )

    def shape(self, position: int, length: int, top: float) -> float:
        """Ask the one whose turn it is; it ends where the next begins."""
        i = bisect_right(self.milestones, position)
        begin, end = self._spans(length)[i]
        return self.schedulers[i].factor_at(position - begin, end - begin, top)

    def lengths(self, length: int) -> Mapping[str, int]:
        """Give what of the last one follows the run's length."""
        begin, end = self._spans(length)[-1]
        last = len(self.schedulers) - 1
        return {
            f"schedulers.{last}.{name}": value
            for name, value in self.schedulers[last].lengths(end - begin).items()
        }

    def _spans(self, length: int) -> list[tuple[int, int]]:
        return list(pairwise([0, *self.milestones, length]))
