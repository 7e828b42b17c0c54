"""Histograms against counting in whole numbers, numpy's quantiles and scipy's distance."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hookloop.scores.histogram import FINEST, UNIT, Histogram, densities, wasserstein

FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-10, 10, width=16),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1.7e308, -1.7e308, 1e-310, 1.0, -1.0]),
)
LISTS = st.lists(FLOATS, min_size=1, max_size=12)
MOST = st.sampled_from([2, 3, 8, 100, 8192])


def counted(values: list[float], most: int = 8192) -> Histogram:
    """Count *values*, all of the same area."""
    field = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
    return Histogram.of(field, torch.ones(1, 1, dtype=torch.float64), most)


def same(one: Histogram, other: Histogram) -> bool:
    return one.bins == other.bins and torch.equal(one.counts, other.counts) and one.most == other.most


def by_whole_numbers(values: list[float], most: int) -> tuple[int, Counter[int]]:
    """Find the finest exponent by trying one after the other, and count, all in exact integers of 2^-1074."""
    exact = [int(Fraction(value) * 2**1074) for value in values]
    for exponent in itertools.count(FINEST):
        numbers = [number >> (exponent + 1074) for number in exact]
        if max(numbers) - min(numbers) < most and max(map(abs, numbers)) < 2**53:
            return exponent, Counter(numbers)
    raise AssertionError


@many(300)
@given(LISTS, MOST)
def test_bins_are_the_finest_that_hold_everything(values: list[float], most: int) -> None:
    """Exponent and counts are those of exact integers, for any finite numbers, denormal and huge ones too."""
    exponent, expected = by_whole_numbers(values, most)
    found = counted(values, most)
    assert found.bins.exponent == exponent
    assert {found.bins.first + k: n for k, n in enumerate(found.counts[1].tolist()) if n} == expected
    assert torch.equal(found.counts[0], UNIT * found.counts[1])
    assert found.points == len(values)


@many(300)
@given(LISTS, st.randoms(use_true_random=False), MOST)
def test_any_order_and_grouping_gives_the_same_histogram(values: list[float], random, most: int) -> None:  # noqa: ANN001
    """Batches of any size, merged in a random tree, are bit for bit what counting in one go gives."""
    shuffled = random.sample(values, len(values))
    parts = []
    while shuffled:
        size = random.randint(1, len(shuffled))
        parts.append(counted(shuffled[:size], most))
        shuffled = shuffled[size:]
    while len(parts) > 1:
        i = random.randrange(len(parts) - 1)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    assert same(parts[0], counted(values, most))


@many(300)
@given(LISTS, st.floats(0, 1), MOST)
def test_a_quantile_is_off_by_a_bin_at_most(values: list[float], share: float, most: int) -> None:
    """It is as near to the least value at or below which lies the share, as one bin is wide."""
    histogram = counted(values, most)
    expected = next(value for j, value in enumerate(sorted(values), 1) if j >= share * len(values))
    found = histogram.quantiles([share])[0]
    assert abs(found.value / 2 - expected / 2) <= histogram.bins.width / 2
    assert math.isclose(found.below, share * len(values), abs_tol=1e-9)
    assert math.isclose(found.below + found.above, len(values))


@many(200)
@given(LISTS, LISTS, st.integers(0, 5), st.integers(0, 5))
def test_counting_several_times_is_adding_several_times(
    one: list[float], other: list[float], n: int, m: int
) -> None:
    """Zero times leaves nothing, not even the range."""
    repeated = one * n + other * m
    found = counted(one) * n + counted(other) * m
    assert same(found, counted(repeated) if repeated else Histogram())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_quantiles_are_those_of_numpy_within_a_bin() -> None:
    """Also in the tails, and between values as numpy does by default: a large sample has no gaps there."""
    values = drawn(50, 40, 50).exp()
    histogram = Histogram.of(values, torch.ones(40, 50))
    assert 4096 < histogram.bins.number <= 8192
    shares = [0.0, 0.001, 0.01, 0.5, 0.99, 0.999]
    found = [quantile.value for quantile in histogram.quantiles(shares)]
    for method in ("linear", "inverted_cdf"):
        expected = np.quantile(values.numpy(), shares, method=method)
        np.testing.assert_allclose(found, expected, rtol=0, atol=histogram.bins.width)
    assert histogram.quantile(0.99) == found[4]
    assert [round(quantile.above) for quantile in histogram.quantiles(shares)] == [
        100_000 - round(share * 100_000) for share in shares
    ]


def test_areas_weigh() -> None:
    """Weighted quantiles are numpy's, for areas in 1/65536 of a cell; points are counted as they are."""
    values = drawn(30, 8, 10, seed=1)
    weights = torch.rand(8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2
    histogram = Histogram.of(values, weights)
    units = (weights * 65536).round().expand_as(values).flatten().numpy()
    assert int(histogram.counts[0].sum()) == int(units.sum())
    assert histogram.points == values.numel()
    shares = [0.01, 0.3, 0.5, 0.99]
    expected = np.quantile(values.flatten().numpy(), shares, method="inverted_cdf", weights=units)
    found = [quantile.value for quantile in histogram.quantiles(shares)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=histogram.bins.width)
    assert abs(histogram.quantile(0.5) - Histogram.of(values, torch.ones(8, 10)).quantile(0.5)) > 1e-4


def test_single_precision_is_counted_as_it_is() -> None:
    """The same numbers in float32 and in float64 give one histogram."""
    values = drawn(3, 5, 7).float()
    weights = torch.ones(5, 7)
    assert same(Histogram.of(values, weights), Histogram.of(values.double(), weights))


def test_dry_fields_have_one_bin_at_zero() -> None:
    """And every quantile of them is zero, but for 2^-1000; rain afterwards widens the bins."""
    dry = counted([0.0] * 1000)
    assert dry.bins.number == 1
    assert 0 <= dry.quantile(0.999) <= 2.0**FINEST
    wet = dry + counted([10.0])
    assert wet.bins.width == 2**-9
    assert wet.counts[1, 0] == 1000
    assert wet.quantile(0.5) <= wet.bins.width


@many(100)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_the_deviation_is_off_by_half_a_bin_at_most(values: list[float]) -> None:
    histogram = counted(values, 64)
    assert abs(histogram.deviation() - np.std(values)) <= histogram.bins.width / 2 + 1e-9
    assert counted(values[:1] * 5).deviation() == 0


@many(100)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
)
def test_the_distance_of_two_histograms_is_that_of_scipy_within_a_bin(
    one: list[float], other: list[float]
) -> None:
    ours, theirs = counted(one, 64), counted(other, 64)
    width = (ours + theirs).bins.width
    assert abs(wasserstein(ours, theirs) - scipy.stats.wasserstein_distance(one, other)) <= width + 1e-9
    assert wasserstein(ours, theirs) == wasserstein(theirs, ours)
    assert wasserstein(ours, ours) == 0


def test_a_shifted_distribution_is_as_far_as_it_is_shifted() -> None:
    values = drawn(1000).tolist()
    assert wasserstein(counted(values), counted([value + 2.5 for value in values])) == pytest.approx(
        2.5, abs=2e-3
    )


def test_densities_share_bins_and_integrate_to_one() -> None:
    one, other = counted(drawn(1000).tolist()), counted((5 * drawn(500, seed=1)).tolist())
    middles, (density, wider) = densities([one, other], 100)
    width = middles[1] - middles[0]
    assert 50 < len(middles) <= 100
    np.testing.assert_allclose([width * sum(density), width * sum(wider)], 1)
    assert max(density) > 3 * max(wider)


def test_bins_are_not_wasted_on_where_nothing_is() -> None:
    """Such as between 0 and 280 K, also when what has counted nothing is among them."""
    warm = counted((280 + drawn(1000)).tolist())
    middles, _ = densities([warm, counted((281 + drawn(1000)).tolist())], 100)
    assert len(middles) > 50
    assert middles[0] > 270
    (found,) = Histogram.resampled([Histogram(), warm, Histogram()], torch.ones(1, 3))
    assert same(found, warm)


def test_resampling_is_adding_what_was_drawn() -> None:
    """Over bins of all histograms, one of which is empty, and none of which is drawn in the fourth row."""
    days = [counted(drawn(50, seed=day).mul(10.0**day).tolist(), 64) for day in range(3)] + [
        Histogram(most=64)
    ]
    times = torch.tensor([[1, 1, 1, 1], [0, 3, 0, 2], [2, 0, 1, 0], [0, 0, 0, 0]])
    many_more = torch.randint(0, 4, (200, 4), generator=torch.Generator().manual_seed(0))
    times = torch.cat([times, many_more])
    for found, row in zip(Histogram.resampled(days, times), times.tolist(), strict=True):
        expected = Histogram(most=64)
        for day, n in zip(days, row, strict=True):
            expected += day * n
        assert torch.equal(found.counts, expected.over(found.bins))
        assert found.most == 64


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        counted([1.0, value, 2.0])


def test_nothing_has_no_quantiles() -> None:
    """An empty histogram adds nothing, and what needs a value says so."""
    empty = Histogram.of(torch.zeros(0, 2, 2), torch.ones(2, 2))
    assert same(empty, Histogram())
    assert same(empty + counted([1.0]), counted([1.0]) + empty)
    nowhere = Histogram.of(torch.ones(1, 2, 2), torch.zeros(2, 2))
    for ask in (
        lambda: empty.quantile(0.5),
        lambda: nowhere.quantile(0.5),
        empty.deviation,
        lambda: wasserstein(empty, counted([1.0])),
    ):
        with pytest.raises(ValueError, match="nothing was counted"):
            ask()


def test_histograms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 8192 bins, found 64"):
        counted([1.0]) + counted([1.0], 64)
    with pytest.raises(ValueError, match="0 times or more"):
        counted([1.0]) * -1
