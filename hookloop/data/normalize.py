"""Mean and standard deviation of each variable, and there and back again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from attrs import define, frozen
from torch import Tensor

from hookloop.data.options import NormalizationConfig
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Moments", "NormalizationConfig", "Scale", "given", "scale_of"]


@frozen(eq=False)
class Scale:
    """Each variable's own zero and unit."""

    mean: Tensor
    """``[variable]``, in the variable's units, or those of its transform."""
    std: Tensor
    """``[variable]``, likewise, positive."""

    def normalize(self, x: Tensor) -> Tensor:
        """``[…, variable, lat, lon]`` to mean 0 and standard deviation 1."""
        return (x - self.mean[:, None, None]) / self.std[:, None, None]

    def denormalize(self, x: Tensor) -> Tensor:
        """Back from :meth:`normalize`."""
        return x * self.std[:, None, None] + self.mean[:, None, None]


@define(eq=False)
class Moments:
    """Mean and sum of squares of all values of a variable seen so far, in float64.

    Blocks are merged after Chan, Golub & LeVeque 1983 (Am. Stat. 37, 242, Eq. 2.1). The same blocks in the
    same order give the same bits.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared distances from the mean."""

    def add(self, values: Tensor) -> None:
        """Count *values*, of any shape but not none, too."""
        own = values.to(torch.float64, copy=True).flatten()
        n, its_mean = len(own), own.mean().item()
        delta = its_mean - self.mean
        total = self.count + n
        self.squares += own.sub_(its_mean).square_().sum().item()
        self.squares += delta * delta * (self.count * n / total)
        self.mean += delta * (n / total)
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation, over all values, not n - 1; NaN where there is none."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan


def scale_of(measured: Mapping[str, Moments]) -> Scale:
    """Mean and standard deviation of the training data by variable, float32.

    :raises HookloopError: where a variable is constant.
    """
    means, stds = [one.mean for one in measured.values()], [one.std for one in measured.values()]
    return _scale(list(measured), means, stds, "the training data")


def given(config: NormalizationConfig, names: Sequence[str]) -> Scale:
    """Take the statistics of the variables *names* from the configuration.

    :raises HookloopError: where one is missing or a standard deviation is not positive.
    """
    for key, values in (("means", config.means), ("stds", config.stds)):
        if missing := [name for name in names if name not in values]:
            raise HookloopError(
                f"normalization.{key}: no value for {', '.join(missing)}; expected one for each variable"
            )
    means, stds = ([values[name] for name in names] for values in (config.means, config.stds))
    return _scale(names, means, stds, "normalization.stds")


def _scale(names: Sequence[str], means: Sequence[float], stds: Sequence[float], where: str) -> Scale:
    # Rounding gives a constant field a tiny spread; one of float32 values that differ is far above this.
    constant = [
        name for name, mean, std in zip(names, means, stds, strict=True) if not std > 1e-9 * abs(mean)
    ]
    if constant:
        raise HookloopError(
            f"standard deviation of {', '.join(constant)} in {where}: "
            "expected more than 0; leave out fields that do not vary"
        )
    return Scale(torch.tensor(means, dtype=torch.float32), torch.tensor(stds, dtype=torch.float32))
