"""Tails against numpy's quantiles, and that errors of several tails never cancel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from attrs import evolve
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hookloop.scores.distribution import Quantiles
from hookloop.scores.histogram import Histogram
from hookloop.scores.score import Cases, Chart, Naming


def cases(members: Tensor, truth: Tensor, name: str = "t2m", baseline: Tensor | None = None) -> Cases:
    weights = torch.ones(truth.shape[1:], dtype=torch.float64)
    return Cases(name, members, truth, weights, seeds=range(len(truth)), baseline=baseline)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scored(score: Quantiles, sample: Cases) -> dict[str, float]:
    return dict(score.results(score.sums(sample)))


def test_differences_are_those_of_numpys_quantiles_in_deviations_of_the_truth() -> None:
    """For both tails, to the width of a bin, 2^-8 here; the mean is over all tails."""
    truth, members = drawn(20, 49, 41) + 280, 1.1 * drawn(20, 3, 49, 41, seed=1) + 280.5
    score = Quantiles(percentiles=[99, 99.9])
    found = scored(score, cases(members, truth))
    errors = []
    for percentile in ("0.1", "1", "99", "99.9"):
        share = float(percentile) / 100
        theirs, ours = (np.quantile(x.numpy(), share, method="inverted_cdf") for x in (members, truth))
        errors.append(abs(theirs - ours) / np.std(truth.numpy()))
        assert found[f"quantile_{percentile}"] == pytest.approx(theirs, abs=2**-8)
        assert found[f"quantile_truth_{percentile}"] == pytest.approx(ours, abs=2**-8)
        assert found[f"quantile_error_{percentile}"] == pytest.approx(errors[-1], abs=0.01)
        assert found[f"points_{percentile}"] == round(min(share, 1 - share) * truth.numel())
    assert found["tail_error"] == pytest.approx(np.mean(errors), abs=0.01)
    expected = scipy.stats.wasserstein_distance(members.flatten().numpy(), truth.flatten().numpy())
    assert found["wasserstein"] == pytest.approx(expected, abs=0.01)


def test_positive_variables_have_an_upper_tail_and_ratios() -> None:
    """Rain of twice the amount is ln 2 off at every percentile, dry cells or not."""
    truth = (drawn(10, 50, 40) - 1).clamp(min=0).square()
    score = Quantiles(percentiles=[95, 99, 99.9], positive=["pr"])
    found = scored(score, cases(2 * truth[:, None].expand(-1, 2, -1, -1), truth, "pr"))
    assert [name for name in found if name.startswith("quantile_error")] == [
        "quantile_error_95",
        "quantile_error_99",
        "quantile_error_99.9",
    ]
    for name, value in found.items():
        if name.startswith("quantile_error"):
            assert value == pytest.approx(math.log(2), abs=1e-9)
    assert found["tail_error"] == pytest.approx(math.log(2), abs=1e-9)


def test_too_much_in_one_tail_does_not_make_up_for_too_little_in_another() -> None:
    """Twice and half the truth's quantile are both ln 2 off, and so is their mean, not 0."""
    n = 10_000
    truth = torch.full((n,), 1.0, dtype=torch.float64)
    truth[:500], truth[:50] = 8.0, 32.0
    members = torch.full((n,), 1.0, dtype=torch.float64)
    members[:500] = 16.0
    score = Quantiles(percentiles=[99, 99.9], positive=["pr"])
    sample = cases(members.view(1, 1, 100, 100).expand(1, 2, -1, -1), truth.view(1, 100, 100), "pr")
    found = scored(score, sample)
    assert found["quantile_99"] / found["quantile_truth_99"] == pytest.approx(2, rel=1e-2)
    assert found["quantile_99.9"] / found["quantile_truth_99.9"] == pytest.approx(0.5, rel=1e-2)
    assert found["tail_error"] == pytest.approx(math.log(2), rel=1e-2)


def test_a_shift_of_both_tails_does_not_cancel() -> None:
    """Too narrow by half: the upper tail is too low, the lower one too high."""
    truth = drawn(10, 50, 40)
    found = scored(Quantiles(percentiles=[99]), cases(truth[:, None].expand(-1, 2, -1, -1) / 2, truth))
    expected = np.abs(np.quantile(truth.numpy(), [0.01, 0.99])).mean() / 2 / np.std(truth.numpy())
    assert found["tail_error"] == pytest.approx(expected, abs=5e-3)
    assert found["tail_error"] > 1


def test_a_quantile_with_too_few_points_beyond_is_absent_and_its_points_are_told() -> None:
    """100 000 points have 100 and 10 beyond the 99.9th and the 99.99th percentile, 0.1 beyond the 99.9999th."""
    truth = drawn(10, 100, 100)
    members = truth[:, None].expand(-1, 2, -1, -1)
    found = scored(Quantiles(percentiles=[99.9, 99.99, 99.9999]), cases(members, truth))
    assert [found[f"points_{p}"] for p in ("0.0001", "0.01", "0.1", "99.9", "99.99", "99.9999")] == [
        0, 10, 100, 100, 10, 0
    ]  # fmt: skip
    assert {name for name in found if name.startswith("quantile_error")} == {
        f"quantile_error_{p}" for p in ("0.01", "0.1", "99.9", "99.99")
    }
    assert "quantile_99.9999" not in found
    assert "quantile_truth_99.9999" not in found
    stricter = scored(Quantiles(percentiles=[99.9, 99.99], least=11), cases(members, truth))
    assert "quantile_error_99.9" in stricter
    assert "quantile_error_99.99" not in stricter
    for positive in ([], ["t2m"]):
        rare = scored(Quantiles(percentiles=[99.9999], positive=positive), cases(members.exp(), truth.exp()))
        assert rare["points_99.9999"] == 0
        assert "tail_error" not in rare


def test_least_holds_for_positive_variables_too() -> None:
    """2000 points have 20 and 2 beyond the 99th and the 99.9th percentile: 2 are too few for 3, not for 2."""
    truth = drawn(1, 40, 50).exp()
    sample = cases(truth[:, None].expand(-1, 2, -1, -1), truth, "pr")
    for least, expected in ((2, {"99", "99.9"}), (3, {"99"}), (21, set())):
        found = scored(Quantiles(percentiles=[99, 99.9], positive=["pr"], least=least), sample)
        assert (found["points_99"], found["points_99.9"]) == (20, 2)
        for kind in ("quantile", "quantile_truth", "quantile_error"):
            assert {p for p in ("99", "99.9") if f"{kind}_{p}" in found} == expected


def absurd(values: Tensor, value: float = 1e5) -> Tensor:
    """The same, but for one."""
    changed = values.clone()
    changed.view(-1)[7] = value
    return changed


def test_one_absurd_value_makes_no_quantile_false() -> None:
    """Members' quantiles are not told then, the truth's are; their errors count as a bin, 32 wide for 1e5."""
    truth, members = drawn(10, 100, 100), drawn(10, 2, 100, 100, seed=1) + 0.5
    score = Quantiles(percentiles=[99, 99.9])
    plain, found = (scored(score, cases(x, truth)) for x in (members, absurd(members)))
    told = {f"quantile_{p}" for p in ("0.1", "1", "99", "99.9")}
    assert plain.keys() - found.keys() == told
    assert found["quantile_truth_99"] == plain["quantile_truth_99"]
    sigma = np.std(truth.numpy())
    for p in ("0.1", "1", "99", "99.9"):
        assert found[f"quantile_error_{p}"] == pytest.approx(32 / sigma, rel=1e-3)
    assert found["tail_error"] == pytest.approx(32 / sigma, rel=1e-3)


def test_one_absurd_value_of_a_positive_variable_counts_as_a_ratio() -> None:
    """That of a quantile and a bin to the quantile."""
    truth = drawn(10, 100, 100).exp()
    score = Quantiles(percentiles=[99], positive=["pr"])
    found = scored(score, cases(absurd(truth)[:, None].expand(-1, 2, -1, -1), truth, "pr"))
    assert "quantile_99" not in found
    q = np.quantile(truth.numpy(), 0.99)
    assert found["quantile_truth_99"] == pytest.approx(q, rel=1e-2)
    assert found["quantile_error_99"] == pytest.approx(math.log((q + 32) / q), rel=1e-2)


def test_an_absurd_value_of_the_truth_costs_its_own_quantiles() -> None:
    """Members' are told all the same; no error is smaller than a bin of the truth, 32 wide for 1e5."""
    truth, members = absurd(drawn(10, 100, 100)), drawn(10, 2, 100, 100, seed=1)
    found = scored(Quantiles(percentiles=[99]), cases(members, truth))
    assert found.keys() == {
        *(f"{kind}_{p}" for kind in ("points", "quantile", "quantile_error") for p in ("1", "99")),
        "tail_error",
        "wasserstein",
    }
    assert found["quantile_99"] == pytest.approx(np.quantile(members.numpy(), 0.99), abs=0.01)
    assert found["tail_error"] >= 32 / np.std(truth.numpy()) * 0.99


def test_an_absurd_value_hides_no_distance() -> None:
    """A shift by 3 within one bin of 32 counts as 32, not as nothing; without it, as 3."""
    truth = drawn(10, 50, 40)
    members = truth[:, None].expand(-1, 2, -1, -1) + 3
    assert scored(Quantiles(), cases(members, truth))["wasserstein"] == pytest.approx(3, abs=0.01)
    assert scored(Quantiles(), cases(absurd(members), truth))["wasserstein"] == 32


@many(100)
@given(
    seed=st.integers(0, 1000),
    absurd_ones=st.integers(0, 4),
    decades=st.floats(0, 12),
    of_truth=st.booleans(),
    positive=st.booleans(),
)
def test_what_is_told_is_right_to_a_tenth(
    *, seed: int, absurd_ones: int, decades: float, of_truth: bool, positive: bool
) -> None:
    """Of the truth's deviation, or of its quantile for positive variables, whatever some values are."""
    truth, members = drawn(5, 20, 20, seed=seed).exp(), drawn(5, 2, 20, 20, seed=seed + 1).exp()
    for field in (members, truth) if of_truth else (members,):
        field.view(-1)[:absurd_ones] = 10**decades
    score = Quantiles(percentiles=[90, 99], positive=["pr"] if positive else [])
    found = scored(score, cases(members, truth, "pr"))
    assert of_truth or "tail_error" in found
    for name, field in (("quantile_truth", truth), ("quantile", members)):
        for p in ("90", "99"):
            ours, exact = (
                np.quantile(x.numpy(), float(p) / 100, method="inverted_cdf") for x in (truth, field)
            )
            scale = ours if positive else np.std(truth.numpy())
            if f"{name}_{p}" in found:
                # The scale itself is told to a tenth.
                assert abs(found[f"{name}_{p}"] - exact) <= 0.1 * 1.1 * scale
            elif not absurd_ones:
                raise AssertionError(name)


def test_the_same_distribution_has_no_error() -> None:
    """Whichever member or case a value is in."""
    truth = drawn(4, 20, 30)
    members = torch.stack([truth.flip(0), truth.roll(7, -1)], 1)
    found = scored(Quantiles(percentiles=[95, 99], least=1), cases(members, truth))
    assert found["tail_error"] == 0
    assert found["wasserstein"] == 0


def test_what_is_undefined_is_absent() -> None:
    """Always dry: no ratio; always the same: no deviation; points are told all the same."""
    dry = torch.zeros(1, 40, 40)
    rain = drawn(1, 2, 40, 40).abs()
    score = Quantiles(percentiles=[99], positive=["pr"])
    found = scored(score, cases(rain, dry, "pr"))
    assert found.keys() == {"points_99", "wasserstein"}
    constant = scored(score, cases(rain, dry + 280))
    assert constant.keys() == {"points_99", "points_1", "wasserstein"}
    assert score.results({}) == {}
    assert score.pictures({}) == []


def test_a_model_that_never_rains_has_a_large_error() -> None:
    """Not infinite and not absent: its quantile is taken for the width of a bin of the truth."""
    truth = drawn(2, 40, 40).abs()
    score = Quantiles(percentiles=[99], positive=["pr"])
    sample = cases(torch.zeros(2, 2, 40, 40), truth, "pr")
    width = Histogram.of(truth, sample.weights, 4096).bins.width
    found = scored(score, sample)
    assert found["tail_error"] == pytest.approx(math.log(found["quantile_truth_99"] / width))
    assert found["tail_error"] > 7


@many(60)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(["pr", "t2m"]),
    st.sampled_from(["normal", "many zeros", "all zero", "whole numbers", "huge"]),
)
def test_batches_of_any_size_score_exactly_as_one(seed: int, sizes: list[int], name: str, kind: str) -> None:
    """Bit for bit, also repeated as the bootstrap does; never anything that is not finite."""
    n = sum(sizes)
    make = {
        "normal": lambda x: x,
        "many zeros": lambda x: x.clamp(min=0),
        "all zero": torch.zeros_like,
        "whole numbers": torch.round,
        "huge": lambda x: (40 * x).exp() * x.sign(),
    }[kind]
    members, truth = make(drawn(n, 3, 5, 4, seed=seed)), make(drawn(n, 5, 4, seed=seed + 1))
    score = Quantiles(percentiles=[60, 90, 99], positive=["pr"], least=1)
    whole = score.sums(cases(members, truth, name, baseline=truth / 2))
    parts = [
        score.sums(cases(*pair, name, baseline=pair[1] / 2))
        for pair in zip(members.split(sizes), truth.split(sizes), strict=True)
    ]
    merged = dict(parts[0])
    for part in parts[1:]:
        merged = {key: merged[key] + part[key] for key in merged}
    assert score.results(merged) == score.results(whole)
    assert all(map(math.isfinite, score.results(whole).values()))
    thrice = score.results({key: value * 3 for key, value in whole.items()})
    assert {k: v for k, v in thrice.items() if k.startswith("quantile_error")}.items() >= {
        k: pytest.approx(v) for k, v in score.results(whole).items() if k.startswith("quantile_error")
    }.items()
    for chart in score.pictures(merged):
        assert isinstance(chart, Chart)
        assert all(len(line) == len(chart.x) for line in chart.lines.values())
        assert all(map(math.isfinite, [*chart.x, *(y for line in chart.lines.values() for y in line)]))


def test_areas_weigh() -> None:
    """Rows that count nothing might be anything."""
    truth, members = drawn(5, 20, 30), drawn(5, 2, 20, 30, seed=1)
    members[..., 10:, :] *= 3
    sample = cases(members, truth)
    weights = torch.ones(20, 30, dtype=torch.float64)
    weights[10:] = 0
    half = scored(Quantiles(percentiles=[95]), evolve(sample, weights=weights))
    alone = scored(Quantiles(percentiles=[95]), cases(members[..., :10, :], truth[:, :10]))
    assert half["quantile_95"] == pytest.approx(alone["quantile_95"], abs=0.01)
    assert half["quantile_95"] != pytest.approx(
        scored(Quantiles(percentiles=[95]), sample)["quantile_95"], abs=0.01
    )


def test_far_tails_of_a_skewed_distribution_are_found() -> None:
    """A million lognormal numbers: within 1 % of numpy at percentiles that have 100 points beyond."""
    truth = drawn(100, 100, 100).exp()
    members = drawn(100, 2, 100, 100, seed=1).exp()
    score = Quantiles(percentiles=[99, 99.9, 99.99], positive=["pr"])
    found = scored(score, cases(members, truth, "pr"))
    for p in (99, 99.9, 99.99):
        assert found[f"quantile_truth_{p}"] == pytest.approx(np.quantile(truth.numpy(), p / 100), rel=0.01)
        assert found[f"quantile_{p}"] == pytest.approx(np.quantile(members.numpy(), p / 100), rel=0.01)


def test_charts_show_densities_and_quantiles() -> None:
    """Densities integrate to 1; quantiles of a field doubled lie on y = 2x; the truth is their axis."""
    truth = drawn(5, 40, 50)
    score = Quantiles()
    histogram, quantiles = score.pictures(
        score.sums(cases(2 * truth[:, None].expand(-1, 2, -1, -1), truth, baseline=truth))
    )
    assert isinstance(histogram, Chart)
    assert isinstance(quantiles, Chart)
    assert list(histogram.lines) == ["truth", "members", "baseline"]
    assert histogram.yscale == "log"
    width = histogram.x[1] - histogram.x[0]
    for line in histogram.lines.values():
        assert width * math.fsum(line) == pytest.approx(1)
    assert quantiles.diagonal
    assert list(quantiles.lines) == ["members", "baseline"]
    np.testing.assert_allclose(quantiles.lines["members"], 2 * np.array(quantiles.x), atol=0.01)
    np.testing.assert_allclose(quantiles.lines["baseline"], quantiles.x)
    assert quantiles.notes == ["percentiles 0.1 to 99.9 of 10000 points"]


def test_the_chart_says_which_lines_are_not_exact() -> None:
    """Those of bins too wide for the truth's deviation, with their width."""
    truth = drawn(5, 40, 50)
    members = absurd(truth)[:, None].expand(-1, 2, -1, -1)
    score = Quantiles()
    _, quantiles = score.pictures(score.sums(cases(members, truth, baseline=truth)))
    assert isinstance(quantiles, Chart)
    assert quantiles.notes[1:] == ["members to ±32: single values lie far away"]


def test_it_says_which_variables_it_names() -> None:
    """So that a misspelt one is told."""
    score = Quantiles(positive=["pr", "snow"])
    assert isinstance(score, Naming)
    assert list(score.variables) == ["pr", "snow"]


@pytest.mark.parametrize("percentiles", [[], [50], [100], [99, 99], [float("nan")], [-1]])
def test_impossible_percentiles_are_refused(percentiles: list[float]) -> None:
    with pytest.raises(ValueError, match="'percentiles' must be different numbers above 50 and below 100"):
        Quantiles(percentiles=percentiles)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="'least' must be >= 1"):
        Quantiles(least=0)
    with pytest.raises(ValueError, match="'bins' must be >= 64"):
        Quantiles(bins=1)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Quantiles().sums(cases(torch.full((1, 2, 2, 2), math.nan), torch.zeros(1, 2, 2)))
