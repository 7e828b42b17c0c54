"""What is done to variables before they are normalised, against arithmetic and scipy's normal distribution."""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from hookloop.plugins.downscaling.data_options import TransformConfig
from hookloop.plugins.downscaling.transforms import (
    Log1p,
    Quantile,
    Sqrt,
    Transform,
    make_transforms,
    piecewise_linear,
    quantile_knots,
)

EPS = torch.finfo(torch.float32).eps
MOST = torch.finfo(torch.float32).max
EVERY = st.floats(-MOST, MOST, width=32, allow_subnormal=False)


def rain(n: int = 20_000, dry: float = 0.6, seed: int = 0) -> Tensor:
    """Draw precipitation: zeros, and otherwise a heavy tail."""
    random = np.random.default_rng(seed)
    wet = random.gamma(0.5, 4.0, n)
    return torch.from_numpy(np.where(random.random(n) < dry, 0.0, wet)).float()


KNOTS = quantile_knots(rain())


def test_by_arithmetic() -> None:
    """ln(1 + (e - 1)) = 1 and √9 = 3, odd and the scale in the variable's units."""
    x = torch.tensor([-1.0, 0.0, 1.0]) * 2.5 * (math.e - 1)
    torch.testing.assert_close(Log1p(2.5)(x), torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(Sqrt()(torch.tensor([-9.0, 0.0, 9.0])), torch.tensor([-3.0, 0.0, 3.0]))


@many(300)
@given(EVERY, st.floats(1e-6, 1e6))
def test_log1p_is_undone(x: float, scale: float) -> None:
    """To the rounding of the logarithm: an error ε·z of z = ln(1 + |x|/s) is one of ε·z·(|x| + s) of x."""
    transform = Log1p(scale)
    held = math.copysign(min(abs(x), MOST * min(scale, 1.0) / 2), x)
    again = transform.inverse(transform(torch.tensor(held))).item()
    error = 4 * EPS * (abs(held) + scale) * math.log1p(abs(held) / scale)
    assert again == pytest.approx(held, rel=4 * EPS, abs=max(error, 1e-37))


@many(300)
@given(EVERY)
def test_sqrt_is_undone(x: float) -> None:
    """To rounding, for every number."""
    transform = Sqrt()
    assert transform.inverse(transform(torch.tensor(x))).item() == pytest.approx(x, rel=4 * EPS)


@pytest.mark.parametrize("transform", [Log1p(1.0), Log1p(1e-6), Sqrt(), Quantile(KNOTS)])
def test_every_number_has_a_finite_image_in_the_same_order(transform: Transform) -> None:
    """Negative ones, huge ones and tiny ones too; what is larger is not made smaller."""
    sizes = torch.logspace(-45, 38.5, 2000, dtype=torch.float64).float().clamp(max=MOST)
    x = torch.cat([-sizes.flip(0), torch.zeros(1), sizes])
    z = transform(x)
    assert bool(z.isfinite().all())
    assert bool((z.diff() >= 0).all())


def test_not_a_number_stays_loud() -> None:
    """NaN is NaN afterwards, whichever transform; and what is generated infinite stays infinite."""
    for transform in (Log1p(1.0), Sqrt(), Quantile(KNOTS), Quantile(quantile_knots(-rain()))):
        assert transform(torch.tensor([math.nan])).isnan().all()
        assert transform.inverse(torch.tensor([math.nan])).isnan().all()
        assert not transform.inverse(torch.tensor([-math.inf, math.inf])).isfinite().any()


def test_scores_of_the_sample_are_normal() -> None:
    """The i-th of n values has the score of the share (i - 1/2)/n, as closely as 1024 knots tell."""
    sample = torch.from_numpy(np.random.default_rng(1).gamma(2.0, 3.0, 100_000)).float().sort().values
    shares = stats.norm.cdf(Quantile(quantile_knots(sample))(sample).double().numpy())
    expected = (np.arange(len(sample)) + 0.5) / len(sample)
    assert np.abs(shares - expected).max() < 1e-3
    other = torch.from_numpy(np.random.default_rng(2).gamma(2.0, 3.0, 100_000)).float()
    scores = Quantile(quantile_knots(sample))(other)
    assert scores.mean().item() == pytest.approx(0.0, abs=0.02)
    assert scores.std().item() == pytest.approx(1.0, abs=0.02)


def test_values_that_occur_often_have_one_score() -> None:
    """Of 10 values, 6 of them zero: zero is at the share 0.3, the largest at 0.95, the smallest wet at 0.65."""
    sample = torch.tensor([0.0] * 6 + [1.0, 2.0, 3.0, 8.0])
    scores = Quantile(quantile_knots(sample))(torch.tensor([0.0, 1.0, 8.0]))
    np.testing.assert_allclose(scores.numpy(), stats.norm.ppf([0.3, 0.65, 0.95]), rtol=1e-6)


def test_beyond_the_ends_it_goes_on_straight() -> None:
    """With the slope of the last, or first, segment, both ways, where the end is no atom."""
    sample = torch.tensor([0.0, *[1.0] * 149, *[3.0] * 149, 4.0])
    low, second, third, high = stats.norm.ppf([0.5 / 300, 75.5 / 300, 224.5 / 300, 299.5 / 300])
    transform = Quantile(quantile_knots(sample))
    expected = [low - 2 * (second - low), high + 5 * (high - third)]
    np.testing.assert_allclose(transform(torch.tensor([-2.0, 9.0])).numpy(), expected, rtol=1e-5)
    again = transform.inverse(torch.tensor(expected, dtype=torch.float32))
    np.testing.assert_allclose(again.numpy(), [-2.0, 9.0], rtol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dry", [0.02, 0.6, 0.97])
def test_a_normal_variable_is_at_an_atom_as_often_as_the_sample(sign: float, dry: float) -> None:
    """Of evenly spread normal scores the share of zeros is that of the sample, and none lies beyond, at either end."""
    sample = sign * rain(100_000, dry)
    share = (sample == 0).double().mean().item()
    z = torch.from_numpy(stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)).float()
    x = Quantile(quantile_knots(sample)).inverse(z)
    assert (x == 0).double().mean().item() == pytest.approx(share, abs=2e-5)
    assert bool((sign * x >= 0).all())
    assert bool((x.diff() >= 0).all())


def test_two_atoms_at_once() -> None:
    """Cloud cover: a third is 0, a sixth is 1, and scores as far out as they come are one of them."""
    sample = torch.cat(
        [torch.zeros(2000), torch.rand(3000, generator=torch.Generator().manual_seed(0)), torch.ones(1000)]
    )
    transform = Quantile(quantile_knots(sample))
    low, high = stats.norm.ppf([1 / 3, 5 / 6])
    z = torch.tensor([-99.0, low - 1e-4, low + 1e-2, 0.5, high - 1e-2, high + 1e-4, 99.0])
    x = transform.inverse(z)
    assert ((x == 0).tolist(), (x == 1).tolist()) == ([True] * 2 + [False] * 5, [False] * 5 + [True] * 2)
    torch.testing.assert_close(transform.inverse(transform(sample)), sample, rtol=1e-4, atol=1e-6)


def test_nothing_but_two_atoms() -> None:
    """A mask has no third value: scores below Φ⁻¹(0.6) are 0, those above are 1."""
    transform = Quantile(quantile_knots(torch.tensor([0.0] * 6 + [1.0] * 4)))
    edge = stats.norm.ppf(0.6)
    x = transform.inverse(torch.tensor([-3.0, edge - 1e-6, edge + 1e-6, 3.0]))
    assert x.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert bool(transform.inverse(torch.linspace(edge - 1e-5, edge + 1e-5, 1000)).isfinite().all())


def test_what_lies_next_to_an_atom_is_undone() -> None:
    """The least drizzle, below the first knot above zero, is itself again, and more likely than any zero."""
    wet = torch.linspace(0, KNOTS[0][1].item(), 100)[1:]
    transform = Quantile(KNOTS)
    z = transform(wet)
    dry = (rain() == 0).double().mean().item()
    assert z.min().item() >= stats.norm.ppf(dry) - 1e-6
    torch.testing.assert_close(transform.inverse(z), wet, rtol=1e-3, atol=1e-3 * wet[-1].item())


def test_a_value_that_is_no_atom_changes_nothing() -> None:
    """With less than 1 % at the ends both ways are the polygon through the knots, to the last bit."""
    knots = quantile_knots(torch.cat([rain(20_000, 0.005), torch.full((100,), 200.0)]))
    transform = Quantile(knots)
    x = torch.cat([torch.linspace(-1, 210, 10_001), knots[0]])
    assert torch.equal(transform(x), piecewise_linear(x, *knots))
    z = torch.linspace(-6, 6, 10_001)
    assert torch.equal(transform.inverse(z), piecewise_linear(z, knots[1], knots[0]))


def test_between_the_knots_it_is_numpy_s_interpolation() -> None:
    """A repeated last knot changes nothing."""
    knots, values = torch.tensor([0.0, 1.0, 4.0, 4.0, 4.0]), torch.tensor([-1.0, 0.0, 6.0, 6.0, 6.0])
    x = torch.linspace(0, 4, 101)
    expected = np.interp(x.numpy(), knots[:3].numpy(), values[:3].numpy())
    np.testing.assert_allclose(piecewise_linear(x, knots, values).numpy(), expected, atol=1e-6)
    assert piecewise_linear(torch.tensor([5.0]), knots, values).item() == 8.0


SAMPLES = st.tuples(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40),
    st.integers(0, 100),
    st.integers(1, 500),
)


@many(300)
@given(SAMPLES, st.floats(-1.0, 2.0))
def test_quantiles_are_undone(drawn: tuple[list[float], int, int], place: float) -> None:
    """Any sample, with any ties, and any value in its range, to a ten-thousandth of it; nothing is beyond an atom."""
    values, seed, times = drawn
    random = np.random.default_rng(seed)
    sample = torch.from_numpy(random.choice(np.float32(values), times + 1))
    spread = (sample.max() - sample.min()).item()
    if spread == 0:
        with pytest.raises(ValueError, match="values are"):
            quantile_knots(sample)
        return
    transform = Quantile(quantile_knots(sample))
    assert bool((transform.scores.unique().diff() > 0).all())
    held = transform.inverse(transform(sample))
    error = 1e-4 * spread + 8 * EPS * sample.abs().max().item()
    torch.testing.assert_close(held, sample, rtol=0, atol=error)
    if len(sample.unique()) == 2:
        return  # what lies between two atoms that are all has no score of its own
    x = sample.min() + place * spread
    low, high = (float((sample == end).double().mean()) for end in (sample.min(), sample.max()))
    expected = max(x.item(), sample.min().item()) if low > 0.0101 else x.item()
    expected = min(expected, sample.max().item()) if high > 0.0101 else expected
    if 0.0099 < low < 0.0101 or 0.0099 < high < 0.0101:
        return  # rounding decides
    again = transform.inverse(transform(x.view(1))).item()
    assert again == pytest.approx(expected, abs=error)


def test_normal_scores_are_undone() -> None:
    """A score is that of the value that it stands for, also far out in the tails; those of an atom are its own."""
    z = torch.linspace(-6, 6, 1001)
    transform = Quantile(KNOTS)
    dry = (rain() == 0).double().mean().item()
    expected = z.where(z > stats.norm.ppf(dry), stats.norm.ppf(dry / 2))
    torch.testing.assert_close(transform(transform.inverse(z)), expected, rtol=0, atol=1e-3)


def test_knots_lie_apart_and_have_one_shape() -> None:
    """A value a ten-billionth of the range above another is no knot of its own: nothing near it is blown up."""
    sample = torch.cat([torch.zeros(500), torch.full((20,), 1e-9), torch.linspace(1, 10, 30)])
    values, scores = quantile_knots(sample)
    assert values.shape == scores.shape == KNOTS[0].shape == (1024,)
    assert values[0] == 0
    assert values[1] == 1.0
    assert Quantile((values, scores))(torch.tensor([-0.01])).item() > -3


def test_the_greatest_value_is_a_knot() -> None:
    """Rather than one a ten-billionth of the range below it: its own share is what an atom is told from."""
    sample = torch.cat([torch.linspace(-10, -1, 30), torch.full((20,), -1e-9), torch.zeros(500)])
    transform = Quantile(quantile_knots(sample))
    assert transform.values[-1] == 0
    assert transform.inverse(torch.tensor([stats.norm.ppf(50 / 550) + 1e-6])).item() == 0


TRANSFORMS = ("log1p", "sqrt", "quantile")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_nothing_is_generated_below_the_minimum(name: Literal["log1p", "sqrt", "quantile"]) -> None:
    """What would be less is that very value, what is more stays the same bits, and no other variable is bounded."""
    knots = {"pr": quantile_knots(rain(dry=0.0))}
    free = make_transforms({"pr": TransformConfig(name)}, knots)
    bounded = make_transforms({"pr": TransformConfig(name, minimum=0.25)}, knots)
    z = torch.linspace(-9, 9, 256).view(1, 1, 16, 16).expand(1, 2, 16, 16)
    x, least = free.inverse(z, ["pr", "t2m"]), bounded.inverse(z, ["pr", "t2m"])
    assert x[:, 0].min() < 0.25
    assert torch.equal(least[:, 0], x[:, 0].clamp(min=0.25))
    assert torch.equal(least[:, 1], z[:, 1])
    data = rain(1024, dry=0.0).view(1, 1, 32, 32)
    assert torch.equal(bounded(data, ["pr"]), free(data, ["pr"]))
    torch.testing.assert_close(bounded.inverse(bounded(data, ["pr"]), ["pr"]), data.clamp(min=0.25))


def test_what_is_nearly_dry_is_dry() -> None:
    """Below the threshold values become the minimum, from it on they stay; the infinite is to be found."""
    rain = torch.tensor([0.0, 0.009, 0.0101, 3.0]).view(1, 1, 4)
    bounded = make_transforms({"pr": TransformConfig("log1p", minimum=0.0, dry_below=0.01)}, {})
    back = bounded.inverse(bounded(rain, ["pr"]), ["pr"])
    assert back.flatten().tolist() == pytest.approx([0.0, 0.0, 0.0101, 3.0])
    infinite = torch.tensor([-math.inf, math.inf]).view(1, 1, 2)
    assert torch.equal(bounded.inverse(infinite, ["pr"]).isinf(), torch.ones(1, 1, 2, dtype=torch.bool))


@pytest.mark.parametrize("minimum", [None, 0.5])
def test_a_threshold_needs_a_minimum_below_it(minimum: float | None) -> None:
    """Else it does not say what dry is, or changes nothing."""
    with pytest.raises(ValueError, match="dry_below: expected more than minimum"):
        TransformConfig("log1p", minimum=minimum, dry_below=0.5)


def test_a_minimum_hides_nothing() -> None:
    """What is generated infinite, or as no number, is not made a fair value."""
    bounded = make_transforms({"pr": TransformConfig("log1p", minimum=0.0)}, {})
    z = torch.tensor([-math.inf, -100.0, math.nan, math.inf]).view(1, 1, 1, 4)
    assert not bounded.inverse(z, ["pr"]).isfinite().any()


@pytest.mark.parametrize("minimum", [math.nan, math.inf, -math.inf])
def test_a_minimum_that_is_no_number_is_refused(minimum: float) -> None:
    """It would be no bound, or one that leaves nothing."""
    with pytest.raises(ValueError, match="'minimum' must be"):
        TransformConfig("log1p", minimum=minimum)


def test_only_their_own_variables_are_transformed() -> None:
    """Of a batch, and of a batch of ensembles; with none concerned the very same tensor comes back."""
    options = {"pr.total": TransformConfig("sqrt"), "pop": TransformConfig("log1p", scale=2.0)}
    transforms = make_transforms(options, {})
    x = torch.rand(2, 3, 3, 4, 5)
    z = transforms(x, ["t2m", "pop", "pr.total"])
    assert torch.equal(z[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(z[:, :, 1], (x[:, :, 1] / 2).log1p())
    torch.testing.assert_close(z[:, :, 2], x[:, :, 2].sqrt())
    torch.testing.assert_close(transforms.inverse(z, ["t2m", "pop", "pr.total"]), x)
    assert transforms(x, ["t2m", "u", "v"]) is x
    assert transforms.inverse(x, ["t2m", "u", "v"]) is x


def test_a_checkpoint_holds_all_of_it() -> None:
    """Another data set's knots and scale are replaced by what was saved, without executing anything."""
    options = {"pr": TransformConfig("quantile"), "q": TransformConfig("log1p", scale=3.0)}
    trained = make_transforms(options, {"pr": KNOTS})
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    other = {"pr": TransformConfig("quantile"), "q": TransformConfig("log1p")}
    fresh = make_transforms(other, {"pr": quantile_knots(torch.tensor([1.0, 2.0]))})
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand(4, 2, 3, 3) * 9
    assert torch.equal(fresh(x, ["pr", "q"]), trained(x, ["pr", "q"]))


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_a_scale_beyond_float32_is_told(scale: float) -> None:
    """It would make zero or infinity of everything."""
    with pytest.raises(ValueError, match=r"'scale' must be . 1e[-+]30: 1e[-+]60"):
        TransformConfig("log1p", scale=scale)
