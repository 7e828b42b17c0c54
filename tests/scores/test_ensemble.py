"""Ensemble scores against arithmetic, closed forms and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules  # type: ignore[import-untyped]
import torch
from ensembles import cases_of, check_score, drawn, ensembles, pixels, results_of, rows
from hypotheses import many
from hypothesis import given, settings
from hypothesis import strategies as st

from hookloop.scores.ensemble import (
    EnsembleScore,
    ascending,
    crps_terms,
    ensemble_variance,
    fair_crps,
)
from hookloop.scores.score import Cases


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


def test_variance_by_arithmetic() -> None:
    """Members 1 and 4 have unbiased variance 4.5."""
    assert ensemble_variance(pixel(1.0, 4.0)).item() == 4.5


def test_one_member_is_refused() -> None:
    """Fair CRPS and variance are undefined for one member."""
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        fair_crps(pixel(1.0), torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        ensemble_variance(pixel(1.0))


def test_shapes_that_would_broadcast_are_refused() -> None:
    """A truth of one case does not stand for several."""
    with pytest.raises(ValueError, match=r"expect a truth of \[2, 3, 3\], found \[1, 3, 3\]"):
        fair_crps(drawn(2, 4, 3, 3), drawn(1, 3, 3))


def by_loops(cases: Cases) -> dict[str, float]:
    """Every result by its formula, pixel by pixel and pair by pair."""
    m = cases.members.shape[1]
    total = dict.fromkeys(
        ("area", "skill", "spread", "bias", "squared", "variance", "missed", "missed2"), 0.0
    )
    for case, row, column in np.ndindex(*cases.truth.shape):
        x = cases.members[case, :, row, column].double().tolist()
        y, w = float(cases.truth[case, row, column]), float(cases.weights[row, column])
        mean = math.fsum(x) / m
        total["area"] += w
        total["skill"] += w * sum(abs(a - y) for a in x) / m
        total["spread"] += w * sum(abs(a - b) for a in x for b in x) / (m * (m - 1))
        total["bias"] += w * (mean - y)
        total["squared"] += w * (mean - y) ** 2
        total["variance"] += w * sum((a - mean) ** 2 for a in x) / (m - 1)
        if cases.baseline is not None:
            missed = float(cases.baseline[case, row, column]) - y
            total["missed"] += w * abs(missed)
            total["missed2"] += w * missed**2
    area, crps = total["area"], total["skill"] - total["spread"] / 2
    expected = {
        "crps": crps / area,
        "crps_skill": total["skill"] / area,
        "crps_spread": total["spread"] / area,
        "rmse": math.sqrt(total["squared"] / area),
        "bias": total["bias"] / area,
    }
    if total["squared"]:
        expected["spread_skill"] = math.sqrt((m + 1) / m * total["variance"] / total["squared"])
    if cases.baseline is not None:
        expected |= {
            "mae_baseline": total["missed"] / area,
            "rmse_baseline": math.sqrt(total["missed2"] / area),
        }
    if total["missed"]:
        expected["crps_relative"] = crps / total["missed"]
    return expected


@many(100)
@given(ensembles())
def test_every_result_is_that_of_the_formula_by_plain_loops(cases: Cases) -> None:
    """Ties, zeros, one case or several, any areas, with a baseline and without, in batches and merged."""
    # Means of values near 280 K round at 1e-13 of them.
    assert check_score(EnsembleScore(), cases) == pytest.approx(by_loops(cases), rel=1e-9, abs=1e-11)


def test_results_by_hand_average_before_ratios_and_roots() -> None:
    """Two cases of one pixel in batches of their own: every mean is over both before it is divided or rooted."""
    first = pixels([[0.0, 2.0]], [0.0], baseline=torch.full((1, 1, 1), 1.0))
    other = pixels([[0.0, 4.0]], [5.0], baseline=torch.full((1, 1, 1), 2.0))
    # Case 1: CRPS 1 - 1, mean 1, variance 2. Case 2: CRPS 3 - 2, mean 2, variance 8.
    assert results_of(EnsembleScore(), first, other) == pytest.approx(
        {
            "crps": 0.5,
            "crps_skill": 2.0,
            "crps_spread": 3.0,
            "crps_relative": 0.5 / 2.0,
            "rmse": math.sqrt((1 + 9) / 2),
            "bias": (1 - 3) / 2,
            "spread_skill": math.sqrt(1.5 * 5.0 / 5.0),
            "mae_baseline": 2.0,
            "rmse_baseline": math.sqrt((1 + 9) / 2),
        }
    )


def test_a_cell_counts_by_its_area() -> None:
    """Errors of 1 and 3 in cells of areas 0.5 and 1.5: the mean error is 2.5, the mean square 7."""
    members = torch.tensor([1.0, 3.0]).expand(1, 2, 1, 2)
    areas = torch.tensor([[0.5, 1.5]], dtype=torch.float64)
    found = results_of(EnsembleScore(), cases_of(members, torch.zeros(1, 1, 2), weights=areas))
    assert (found["crps"], found["bias"], found["rmse"]) == pytest.approx((2.5, 2.5, math.sqrt(7)))


def test_windows_of_other_ensembles_keep_their_own_spread_factor() -> None:
    """Two members of variance 2, then three of variance 1: (3/2 · 2 + 4/3 · 1) over squared errors 1 + 4."""
    two, three = pixels([[0.0, 2.0]], [0.0]), pixels([[0.0, 1.0, 2.0]], [3.0])
    assert results_of(EnsembleScore(), two, three)["spread_skill"] == pytest.approx(
        math.sqrt((3 / 2 * 2 + 4 / 3 * 1) / (1 + 4))
    )


def test_relative_crps_is_of_means_so_that_an_exact_pixel_does_no_harm() -> None:
    """A baseline that is exact in one dry pixel and 4 off in another: CRPS 1 + 3 over 0 + 4, not over each."""
    members = torch.tensor([[1.0, 3.0], [1.0, 3.0]]).view(1, 2, 1, 2)
    baseline = torch.tensor([0.0, 4.0]).view(1, 1, 2)
    found = results_of(EnsembleScore(), cases_of(members, torch.zeros(1, 1, 2), baseline))
    assert found["crps_relative"] == 1.0


def test_what_is_undefined_is_absent() -> None:
    """An exact baseline leaves no relative CRPS, an exact mean no spread-skill, and nothing leaves nothing."""
    truth = drawn(1, 2, 2)
    exact_baseline = results_of(EnsembleScore(), cases_of(drawn(1, 3, 2, 2, seed=1), truth, truth))
    assert "crps_relative" not in exact_baseline
    assert exact_baseline["mae_baseline"] == 0
    exact_mean = results_of(EnsembleScore(), cases_of(torch.stack([truth, truth], 1), truth, truth + 1))
    assert "spread_skill" not in exact_mean
    assert exact_mean["crps_relative"] == 0
    assert EnsembleScore().results({}) == {}


def test_cases_without_a_baseline_are_left_out_of_what_relates_to_it() -> None:
    """The baseline's numbers are those of the cases that have one; the others count for the rest."""
    cases = cases_of(drawn(7, 5, 6, 4), drawn(7, 6, 4, seed=1), drawn(7, 6, 4, seed=2))
    some, others = rows(cases, slice(3)), rows(cases, slice(3, None))
    without = cases_of(others.members, others.truth)
    mixed, alone = results_of(EnsembleScore(), some, without), results_of(EnsembleScore(), some)
    for name in ("crps_relative", "mae_baseline", "rmse_baseline"):
        assert mixed[name] == pytest.approx(alone[name], rel=1e-12)
    assert mixed["crps"] == pytest.approx(results_of(EnsembleScore(), cases)["crps"], rel=1e-12)


def test_a_reliable_ensemble_has_equal_terms_and_a_spread_skill_ratio_of_one() -> None:
    """Truth and members from one distribution, few members: the factors of M are what makes it so."""
    found = results_of(EnsembleScore(), cases_of(drawn(1, 3, 300, 300), drawn(1, 300, 300, seed=1)))
    assert found["spread_skill"] == pytest.approx(1.0, abs=0.01)
    assert found["crps_skill"] == pytest.approx(found["crps_spread"], rel=0.01)
    assert found["crps"] == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)


def test_scores_within_autocast_are_those_without() -> None:
    """Nothing is rounded to bfloat16 where inference is."""
    cases = cases_of(drawn(2, 4, 5, 6).float(), drawn(2, 5, 6, seed=1).float())
    plain = results_of(EnsembleScore(), cases)
    with torch.autocast("cpu", torch.bfloat16):
        assert results_of(EnsembleScore(), cases) == plain


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"members": drawn(2, 1, 3, 3)}, "at least 2 members, found 1"),
        ({"members": drawn(2, 4, 3, 2)}, r"expect a truth of \[2, 3, 2\], found \[2, 3, 3\]"),
        ({"baseline": drawn(1, 3, 3)}, r"expected a baseline of \[2, 3, 3\], found \[1, 3, 3\]"),
        ({"weights": drawn(3, 1)}, r"expected areas of \[3, 3\], found \[3, 1\]"),
    ],
)
def test_cases_that_do_not_fit_together_are_refused(fields: dict[str, torch.Tensor], expected: str) -> None:
    """One member has no spread (a peer's CRPS is NaN then); nothing is broadcast."""
    given = {"members": drawn(2, 4, 3, 3), "truth": drawn(2, 3, 3)} | fields
    with pytest.raises(ValueError, match=expected):
        EnsembleScore().sums(cases_of(**given))


@pytest.mark.parametrize("members", [2, 3, 4, 5, 7, 8, 13, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_sorting_network_sorts(members: int, dtype: torch.dtype) -> None:
    """Any number of members, ties among them (bfloat16 has many), as torch.sort does; the input stays."""
    fields = drawn(2, members, 8, 5).to(dtype)
    before = fields.clone()
    assert torch.equal(torch.stack(ascending(fields), 1), fields.sort(dim=1).values)
    assert torch.equal(fields, before)


@pytest.mark.parametrize("members", range(2, 15))
def test_the_sorting_network_sorts_all_zeros_and_ones(members: int) -> None:
    """What sorts every sequence of 0 and 1 sorts everything (Knuth, 5.3.4, theorem Z)."""
    every = torch.arange(2**members)
    bits = (every >> torch.arange(members)[:, None]) & 1
    found = torch.stack(ascending(bits.float().view(1, members, 1, -1)), 1)
    assert bool((found.diff(dim=1) >= 0).all())
    assert torch.equal(found.sum(1).flatten(), bits.sum(0).float())


def test_float32_loses_nothing() -> None:
    """Temperatures in float32 score as the same numbers in float64 by an independent package."""
    fields, truth = (drawn(2, 16, 9, 9) + 280).float(), (drawn(2, 9, 9, seed=1) + 280).float()
    expected = scoringrules.crps_ensemble(
        truth.double().numpy(), fields.double().numpy(), m_axis=1, estimator="fair"
    )
    np.testing.assert_allclose(fair_crps(fields, truth).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_alike_members_have_no_spread_at_all() -> None:
    """Nothing is left over by rounding, however large the values."""
    fields = (drawn(1, 1, 4, 4) * 1e5).expand(1, 7, 4, 4)
    skill, spread = crps_terms(ascending(fields), fields[:, 0])
    assert not skill.any()
    assert not spread.any()
