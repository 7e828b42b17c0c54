from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypotheses import many
from hypothesis import given as example
from hypothesis import strategies as st
from torch import Tensor

from hookloop.data.normalize import Moments, NormalizationConfig, Scale, given, scale_of
from hookloop.errors import HookloopError


def statistics(fields: Tensor, names: list[str]) -> Scale:
    """Sum up *fields* in blocks of 64 times."""
    measured = {name: Moments() for name in names}
    for block in fields.split(64):
        for v, moments in enumerate(measured.values()):
            moments.add(block[:, v])
    return scale_of(measured)


def test_statistics_are_those_of_all_values() -> None:
    """Mean and std over times and cells equal numpy's in float64, over several chunks and a short one."""
    values = np.random.default_rng(0).standard_normal((150, 2, 3, 4)) * [[[3.0]], [[0.1]]] + [[[280]], [[0]]]
    fields = torch.from_numpy(values).float()
    scale = statistics(fields, ["t2m", "tp"])
    exact = fields.double().numpy()
    np.testing.assert_allclose(scale.mean, exact.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scale.std, exact.std((0, 2, 3)), rtol=1e-6)


def test_large_mean_does_not_swallow_a_small_spread() -> None:
    """Values 100000 ± 1/2 have a standard deviation of 1/2."""
    fields = 100_000 + (torch.arange(4096) % 2).float().view(1024, 1, 2, 2) - 0.5
    scale = statistics(fields, ["sp"])
    assert scale.mean.item() == 100_000
    assert scale.std.item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_counted_stays_as_it_is(dtype: torch.dtype) -> None:
    """Fields that are held in memory are not changed by being measured."""
    fields = torch.arange(24, dtype=dtype).view(2, 3, 4)
    Moments().add(fields)
    Moments().add(fields[:, :2])
    assert torch.equal(fields, torch.arange(24, dtype=dtype).view(2, 3, 4))


@pytest.mark.parametrize("value", [0.0, 0.1, 101325.3])
def test_constant_variable(value: float) -> None:
    """A variable that does not vary is named."""
    fields = torch.stack([torch.randn(100, 3, 3), torch.full((100, 3, 3), value)], 1)
    with pytest.raises(HookloopError, match="standard deviation of tp in the training data"):
        statistics(fields, ["t2m", "tp"])


def test_there_and_back() -> None:
    """Normalising subtracts the mean and divides by the std, by variable; denormalising undoes it."""
    scale = Scale(torch.tensor([10.0, 0.0]), torch.tensor([2.0, 0.5]))
    x = torch.tensor([12.0, 1.0]).view(1, 2, 1, 1).expand(3, 2, 4, 4)
    normal = scale.normalize(x)
    assert normal[0, :, 0, 0].tolist() == [1.0, 2.0]
    assert torch.equal(scale.denormalize(normal), x)


@many(300)
@example(st.floats(-10_000, 10_000), st.floats(1e-3, 1e3), st.floats(-100_000, 100_000))
def test_denormalising_undoes_normalising(mean: float, std: float, x: float) -> None:
    """Whatever the scale, to the rounding of the numbers that are subtracted."""
    scale = Scale(torch.tensor([mean]), torch.tensor([std]))
    value = torch.tensor(x).view(1, 1, 1)
    again = scale.denormalize(scale.normalize(value)).item()
    assert again == pytest.approx(x, rel=1e-6, abs=1e-6 * abs(mean) + 1e-30)


def test_given_by_hand() -> None:
    """Statistics given by hand come in the order of the variables."""
    config = NormalizationConfig(
        means={"tp": 1.0, "t2m": 280.0, "z": 0.0}, stds={"t2m": 9.0, "tp": 2.0, "z": 1}
    )
    scale = config.scale(["t2m", "tp"])
    assert scale.mean.tolist() == [280.0, 1.0]
    assert scale.std.tolist() == [9.0, 2.0]


def test_given_for_some_only() -> None:
    """A variable without a value is named with the option."""
    config = NormalizationConfig(means={"t2m": 280.0, "tp": 0.0}, stds={"t2m": 9.0})
    with pytest.raises(HookloopError, match=r"normalization\.stds: no value for tp"):
        given(config, ["t2m", "tp"])


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_given_std_must_be_positive(std: float) -> None:
    """A standard deviation that is none is named."""
    with pytest.raises(HookloopError, match=r"standard deviation of t2m in normalization\.stds"):
        given(NormalizationConfig(means={"t2m": 280.0}, stds={"t2m": std}), ["t2m"])
