"""Mean and standard deviation of each variable, and there and back again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.data_options import NormalizationConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NormalizationConfig", "Scale", "given", "statistics"]

_CHUNK = 64
"""Times at once, so that the float64 copy stays small."""


@frozen(eq=False)
class Scale:
    """Each variable's own zero and unit."""

    mean: Tensor
    """``[variable]``, physical units."""
    std: Tensor
    """``[variable]``, physical units, positive."""

    def normalize(self, x: Tensor) -> Tensor:
        """Physical ``[…, variable, lat, lon]`` to mean 0 and standard deviation 1."""
        return (x - self.mean[:, None, None]) / self.std[:, None, None]

    def denormalize(self, x: Tensor) -> Tensor:
        """Back from :meth:`normalize` to physical units."""
        return x * self.std[:, None, None] + self.mean[:, None, None]


def statistics(fields: Tensor, names: Sequence[str]) -> Scale:
    """Mean and standard deviation (over all values, not n - 1) of *fields* ``[time, variable, lat, lon]``.

    One pass in float64, merging chunks of times (Chan, Golub & LeVeque 1983, Am. Stat. 37, 242, Eq. 2.1).

    :param names: what to call the variables in an error.
    :returns: float32, on the device of *fields*.
    :raises HookloopError: where a variable is constant.
    """
    count = 0
    mean = squares = torch.zeros(len(names), dtype=torch.float64, device=fields.device)
    for chunk in torch.split(fields, _CHUNK):
        values = chunk.double().transpose(0, 1).flatten(1)
        n, its_mean = values.shape[1], values.mean(1)
        delta = its_mean - mean
        squares = (
            squares + (values - its_mean[:, None]).square().sum(1) + delta**2 * (count * n / (count + n))
        )
        mean = mean + delta * (n / (count + n))
        count += n
    return _scale(names, mean, (squares / count).sqrt(), "the training data")


def given(config: NormalizationConfig, names: Sequence[str]) -> Scale:
    """Take the statistics of the variables *names* from the configuration.

    :raises HookloopError: where one is missing or a standard deviation is not positive.
    """
    for key, values in (("means", config.means), ("stds", config.stds)):
        if missing := [name for name in names if name not in values]:
            raise HookloopError(
                f"downscaling.normalization.{key}: no value for {', '.join(missing)}; "
                "expected one for each variable"
            )
    means, stds = ([values[name] for name in names] for values in (config.means, config.stds))
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (means, stds))
    return _scale(names, mean, std, "downscaling.normalization.stds")


def _scale(names: Sequence[str], mean: Tensor, std: Tensor, where: str) -> Scale:
    # Rounding gives a constant field a tiny spread; one of float32 values that differ is far above this.
    varies = (std > 1e-9 * mean.abs()).tolist()
    constant = [name for name, does in zip(names, varies, strict=True) if not does]
    if constant:
        raise HookloopError(
            f"standard deviation of {', '.join(constant)} in {where}: "
            "expected more than 0; leave out fields that do not vary"
        )
    return Scale(mean.float(), std.float())
