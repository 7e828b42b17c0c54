"""Ensemble scores against arithmetic, closed forms and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules  # type: ignore[import-untyped]
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookloop.scores.ensemble import (
    EnsembleScores,
    ensemble_variance,
    fair_crps,
    mean_squared_error,
    spread_skill_ratio,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pixel(*values: float) -> torch.Tensor:
    """One case of one pixel."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def test_fair_crps_of_two_members_by_arithmetic() -> None:
    """Members 1 and 4, truth 2: mean distance (1 + 2) / 2, minus half of their distance 3."""
    assert fair_crps(pixel(4.0, 1.0), torch.full((1, 1, 1), 2.0)).item() == 0.0
    assert fair_crps(pixel(4.0, 1.0), torch.full((1, 1, 1), 7.0)).item() == 4.5 - 1.5


@pytest.mark.parametrize("members", [2, 3, 8, 50])
def test_fair_crps_is_that_of_scoringrules(members: int) -> None:
    """Every pixel agrees with the fair estimator of an independent package."""
    fields, truth = drawn(3, members, 4, 5), drawn(3, 4, 5, seed=1)
    expected = scoringrules.crps_ensemble(truth.numpy(), fields.numpy(), m_axis=1, estimator="fair")
    np.testing.assert_allclose(fair_crps(fields, truth).numpy(), expected, rtol=1e-12, atol=1e-13)


def test_fair_crps_of_many_normal_members_is_the_closed_form() -> None:
    """For N(μ, σ²) it is σ (z (2Φ(z) - 1) + 2φ(z) - 1/√π) with z = (y - μ)/σ (Gneiting & Raftery 2007)."""
    mu, sigma, y, m = 3.0, 2.0, 4.5, 20000
    quantiles = torch.special.ndtri((torch.arange(m, dtype=torch.float64) + 0.5) / m)
    z = (y - mu) / sigma
    phi = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    closed = sigma * (z * math.erf(z / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi))
    members = (mu + sigma * quantiles).view(1, m, 1, 1)
    assert fair_crps(members, torch.full((1, 1, 1), y)).item() == pytest.approx(closed, abs=2e-4)


def test_fair_crps_does_not_depend_on_the_ensemble_size_on_average() -> None:
    """Small ensembles of the truth's distribution score like infinite ones: 1/√π for standard normals."""
    truth = drawn(1, 300, 300, seed=1)
    for members in (2, 5):
        score = fair_crps(drawn(1, members, 300, 300), truth).mean().item()
        assert score == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)


def test_fair_crps_of_large_values_keeps_its_digits() -> None:
    """Pressures of 1e5 Pa in float32 score exactly like the same departures from zero."""
    departures, truth = torch.tensor([0.5, -0.25, 1.0]).view(1, 3, 1, 1), torch.zeros(1, 1, 1)
    offset = 101_325.0
    assert fair_crps(departures + offset, truth + offset).item() == fair_crps(departures, truth).item()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).flatmap(
        lambda values: st.tuples(st.just(values), st.permutations(values))
    ),
    st.floats(-1e3, 1e3),
)
def test_fair_crps_ignores_the_order_of_members(
    ensembles: tuple[list[float], list[float]], truth: float
) -> None:
    """A permuted ensemble scores the same, and so does a mirrored world."""
    values, shuffled = ensembles
    target = torch.full((1, 1, 1), truth, dtype=torch.float64)
    score = fair_crps(pixel(*values), target).item()
    assert fair_crps(pixel(*shuffled), target).item() == pytest.approx(score, rel=1e-12, abs=1e-9)
    assert fair_crps(-pixel(*values), -target).item() == pytest.approx(score, rel=1e-12, abs=1e-9)


def test_error_and_variance_by_arithmetic() -> None:
    """Members 1 and 4 have mean 2.5 and unbiased variance 4.5."""
    assert mean_squared_error(pixel(1.0, 4.0), torch.full((1, 1, 1), 2.0)).item() == 0.25
    assert ensemble_variance(pixel(1.0, 4.0)).item() == 4.5


def test_spread_skill_by_arithmetic() -> None:
    """Two members: √(3/2 · 4.5 / 0.27) = 5."""
    assert spread_skill_ratio(4.5, 0.27, 2) == pytest.approx(5.0)


def test_a_reliable_ensemble_has_a_spread_skill_ratio_of_one() -> None:
    """Truth and members from one distribution, few members: the factor (M+1)/M is what makes it 1."""
    scores = EnsembleScores()
    truth = drawn(1, 300, 300, seed=1)
    scores.update(drawn(1, 3, 300, 300), truth, torch.zeros_like(truth))
    assert scores.result()["spread_skill"] == pytest.approx(1.0, abs=0.01)


def test_one_member_is_refused() -> None:
    """Fair CRPS and variance are undefined for one member."""
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        fair_crps(pixel(1.0), torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        ensemble_variance(pixel(1.0))


def test_shapes_that_would_broadcast_are_refused() -> None:
    """A truth of one case does not stand for several, and neither does such a baseline."""
    with pytest.raises(ValueError, match=r"expect a truth of \[2, 3, 3\], found \[1, 3, 3\]"):
        fair_crps(drawn(2, 4, 3, 3), drawn(1, 3, 3))
    with pytest.raises(ValueError, match=r"expected a baseline of \[2, 3, 3\]"):
        EnsembleScores().update(drawn(2, 4, 3, 3), drawn(2, 3, 3), drawn(1, 3, 3))


def test_results_average_before_ratios_and_roots() -> None:
    """Two cases of one pixel by hand: every mean is over both before it is divided or rooted."""
    members = torch.tensor([[0.0, 2.0], [0.0, 4.0]]).view(2, 2, 1, 1)
    truth = torch.tensor([0.0, 5.0]).view(2, 1, 1)
    baseline = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    scores = EnsembleScores()
    scores.update(members, truth, baseline)
    # Case 1: CRPS 1 - 1, mean 1, variance 2. Case 2: CRPS 3 - 2, mean 2, variance 8.
    assert scores.result() == pytest.approx(
        {
            "crps": 0.5,
            "crps_relative": 0.5 / 2.0,
            "rmse": math.sqrt((1 + 9) / 2),
            "spread_skill": math.sqrt(1.5 * 5.0 / 5.0),
            "mae_baseline": 2.0,
            "rmse_baseline": math.sqrt((1 + 9) / 2),
        }
    )


def test_unequal_batches_and_merged_ranks_score_like_one() -> None:
    """Streaming over 1 + 4 + 2 cases, on two accumulators, equals scoring the 7 at once."""
    members, truth, baseline = drawn(7, 5, 6, 4), drawn(7, 6, 4, seed=1), drawn(7, 6, 4, seed=2)
    whole, here, there = EnsembleScores(), EnsembleScores(), EnsembleScores()
    whole.update(members, truth, baseline)
    for scores, part in ((here, slice(0, 1)), (there, slice(1, 5)), (here, slice(5, 7))):
        scores.update(members[part], truth[part], baseline[part])
    here.merge(there)
    here.merge(EnsembleScores())
    assert here.result() == pytest.approx(whole.result(), rel=1e-13)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_finite_is_refused_and_not_counted(value: float, where: int) -> None:
    """One bad pixel in any of the three fields raises, and leaves the sums as they were."""
    scores = EnsembleScores()
    fields = [drawn(2, 3, 4, 4), drawn(2, 4, 4, seed=1), drawn(2, 4, 4, seed=2)]
    scores.update(*fields)
    before = scores.result()
    fields[where].view(-1)[5] = value
    with pytest.raises(ValueError, match="not finite"):
        scores.update(*fields)
    assert scores.result() == before


def test_another_number_of_members_is_refused() -> None:
    """Spread-skill corrects for one ensemble size."""
    scores = EnsembleScores()
    scores.update(drawn(1, 3, 2, 2), drawn(1, 2, 2), drawn(1, 2, 2, seed=1))
    with pytest.raises(ValueError, match="expected 3 members as before, found 4"):
        scores.update(drawn(1, 4, 2, 2), drawn(1, 2, 2), drawn(1, 2, 2))


def test_undefined_results_are_refused() -> None:
    """Nothing counted, an exact baseline, and an exact ensemble mean leave nothing to divide by."""
    with pytest.raises(ValueError, match="no case"):
        EnsembleScores().result()
    truth = drawn(1, 2, 2)
    exact_baseline = EnsembleScores()
    exact_baseline.update(drawn(1, 3, 2, 2, seed=1), truth, truth)
    with pytest.raises(ValueError, match="the baseline is exact"):
        exact_baseline.result()
    exact_mean = EnsembleScores()
    exact_mean.update(torch.stack([truth, truth], 1), truth, truth + 1)
    with pytest.raises(ValueError, match="the ensemble mean is exact"):
        exact_mean.result()


def test_without_a_baseline_the_rest_is_scored() -> None:
    """The other scores are those with one; a baseline for some cases only is refused, and nothing counted."""
    members, truth = drawn(7, 5, 6, 4), drawn(7, 6, 4, seed=1)
    alone, compared = EnsembleScores(), EnsembleScores()
    alone.update(members, truth, None)
    compared.update(members, truth, drawn(7, 6, 4, seed=2))
    relative = {"crps_relative", "mae_baseline", "rmse_baseline"}
    assert alone.result() == {k: v for k, v in compared.result().items() if k not in relative}
    for one, other in ((alone, compared), (compared, alone)):
        before = one.result()
        with pytest.raises(ValueError, match="a baseline for all cases or for none"):
            one.merge(other)
        assert one.result() == before
