"""The fractions skill score against box means of scipy, and by arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.ndimage
import torch
from attrs import evolve
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hookloop.scores.fss import FractionsSkill, box_mean
from hookloop.scores.score import Cases, Chart, Naming


def cases(members: Tensor, truth: Tensor, name: str = "pr", *, wraps: bool = False) -> Cases:
    weights = torch.ones(truth.shape[1:], dtype=torch.float64)
    return Cases(name, members, truth, weights, seeds=range(len(truth)), wraps=wraps)


def rain(*shape: int, seed: int = 0) -> Tensor:
    """Draw numbers of which about half are exactly 0, in clumps of three cells."""
    noise = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (noise + noise.roll(1, -1) + noise.roll(1, -2)).clamp(min=0)


def boxed(field: np.ndarray, n: int, *, wraps: bool) -> np.ndarray:
    """Mean over the cells inside, by scipy."""
    modes = ("constant", "wrap" if wraps else "constant")
    inside = scipy.ndimage.uniform_filter(np.ones_like(field), n, mode=modes)
    return scipy.ndimage.uniform_filter(field, n, mode=modes) / inside


def by_scipy(sample: Cases, threshold: float, n: int) -> float:
    difference = reference = 0.0
    for members, truth in zip(sample.members.numpy(), sample.truth.numpy(), strict=True):
        observed = boxed((truth > threshold).astype(float), n, wraps=sample.wraps)
        fractions = [boxed((one > threshold).astype(float), n, wraps=sample.wraps) for one in members]
        predicted = sum(fractions) / len(fractions)
        difference += ((predicted - observed) ** 2).sum()
        reference += (predicted**2).sum() + (observed**2).sum()
    return float(1 - difference / reference)


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize(("height", "width"), [(12, 20), (17, 9), (1, 9)])
def test_scores_are_those_of_scipys_box_means(height: int, width: int, *, wraps: bool) -> None:
    """At all scales, round the globe and at edges, where a box holds the cells inside alone."""
    sample = cases(rain(3, 4, height, width), rain(3, height, width, seed=1), wraps=wraps)
    score = FractionsSkill({"pr": [0, 1.5]}, scales=[1, 3, 7, 9])
    found = score.results(score.sums(sample))
    assert set(found) == {f"fss_{t}_{n}" for t in ("0", "1.5") for n in (1, 3, 7, 9)}
    for name, value in found.items():
        _, threshold, n = name.split("_")
        assert value == pytest.approx(by_scipy(sample, float(threshold), int(n)), rel=1e-12)


def test_boxes_larger_than_the_domain_hold_each_cell_once() -> None:
    """So the fraction is that of the domain everywhere, and FSS = 2ab / (a² + b²)."""
    field = rain(2, 5, 7)
    for wraps in (False, True):
        np.testing.assert_allclose(
            box_mean(field, 99, wraps=wraps), field.mean((1, 2), keepdim=True).expand_as(field)
        )
    truth = torch.zeros(1, 4, 5)
    truth[0, 0] = 2.0
    members = torch.zeros(1, 2, 4, 5)
    members[0, :, 2:] = 2.0
    score = FractionsSkill({"pr": [1]}, scales=[11])
    a, b = 5 / 20, 10 / 20
    found = score.results(score.sums(cases(members, truth)))
    assert found == {"fss_1_11": pytest.approx(2 * a * b / (a * a + b * b))}


def test_a_displaced_shower_is_worth_something_at_a_larger_scale() -> None:
    """Two cells apart: nothing in common in the cell, in boxes of 3 a column of three, by counting."""
    truth, members = torch.zeros(1, 9, 15), torch.zeros(1, 2, 9, 15)
    truth[0, 4, 6] = 5.0
    members[0, :, 4, 8] = 5.0
    score = FractionsSkill({"pr": [1]}, scales=[1, 3, 5])
    found = score.results(score.sums(cases(members, truth)))
    # Of n columns each, n - 2 are common; where they are not, either differs by one box.
    assert found == {
        "fss_1_1": 0.0,
        "fss_1_3": pytest.approx(1 - 2 * 2 / (2 * 3)),
        "fss_1_5": pytest.approx(1 - 2 * 2 / (2 * 5)),
    }


def test_the_ensembles_fraction_is_the_mean_of_the_members() -> None:
    """One of two members right: P_f = 1/2 where P_o = 1, so 1 - (1/4) / (1/4 + 1)."""
    truth = torch.ones(1, 1, 1)
    members = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    score = FractionsSkill({"pr": [0.5]}, scales=[1])
    assert score.results(score.sums(cases(members, truth))) == {"fss_0.5_1": 1 - 0.25 / 1.25}


@many(50)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from([-1.0, 0.0, 1.0, 9.0]),
)
def test_batches_of_any_size_score_as_one(seed: int, sizes: list[int], threshold: float) -> None:
    """Sums are added before they are divided; a perfect forecast has 1, nothing is never NaN."""
    n = sum(sizes)
    members, truth = rain(n, 2, 5, 6, seed=seed), rain(n, 5, 6, seed=seed + 1)
    score = FractionsSkill({"pr": [threshold]}, scales=[1, 3])
    whole = score.sums(cases(members, truth))
    parts = [score.sums(cases(*pair)) for pair in zip(members.split(sizes), truth.split(sizes), strict=True)]
    merged = dict(parts[0])
    for part in parts[1:]:
        merged = {name: merged[name] + part[name] for name in merged}
    assert score.results(merged) == pytest.approx(score.results(whole), rel=1e-12)
    assert all(0 <= value <= 1 for value in score.results(whole).values())
    exact = score.results(score.sums(cases(truth[:, None].expand(-1, 2, -1, -1), truth)))
    assert set(exact.values()) <= {1.0}


def test_a_threshold_is_not_exceeded_by_itself() -> None:
    """Nor in float32, where 0.1 is greater than 0.1 in float64."""
    truth = torch.full((1, 2, 2), 0.1)
    score = FractionsSkill({"pr": [0.1]}, scales=[1])
    assert score.results(score.sums(cases(truth[:, None].expand(1, 2, 2, 2), truth))) == {}


def test_what_nothing_ever_exceeds_is_absent() -> None:
    """And where only the members exceed, or only the truth, the score is 0."""
    dry, wet = torch.zeros(2, 3, 3), torch.ones(2, 3, 3)
    score = FractionsSkill({"pr": [0.5]}, scales=[1])

    def found(members: Tensor, truth: Tensor) -> dict[str, float]:
        return dict(score.results(score.sums(cases(members[:, None].expand(-1, 2, -1, -1), truth))))

    assert found(dry, dry) == {}
    assert found(wet, dry) == {"fss_0.5_1": 0.0}
    assert found(dry, wet) == {"fss_0.5_1": 0.0}
    assert score.pictures(score.sums(cases(dry[:, None].expand(-1, 2, -1, -1), dry))) == []


def test_variables_that_are_not_named_are_not_scored() -> None:
    score = FractionsSkill({"pr": [1]})
    sums = score.sums(cases(rain(1, 2, 4, 4), rain(1, 4, 4), name="t2m"))
    assert not sums
    assert not score.results(sums)
    assert not score.pictures(sums)


def test_sums_repeated_score_the_same() -> None:
    """As the bootstrap repeats days."""
    score = FractionsSkill({"pr": [0.5]})
    sums = score.sums(cases(rain(2, 2, 6, 6), rain(2, 6, 6, seed=1)))
    assert score.results({name: total * 3 for name, total in sums.items()}) == pytest.approx(
        score.results(sums)
    )


def test_the_chart_shows_from_which_scale_on_it_is_useful() -> None:
    """0.5 + f/2 for the share f of cells above the threshold in the truth (Roberts & Lean 2008)."""
    sample = cases(rain(2, 3, 8, 8), rain(2, 8, 8, seed=1))
    score = FractionsSkill({"pr": [0.5]}, scales=[5, 1, 3])
    sums = score.sums(sample)
    (chart,) = score.pictures(sums)
    assert isinstance(chart, Chart)
    assert chart.x == [1, 3, 5]
    results = score.results(sums)
    assert chart.lines["above 0.5"] == [results[f"fss_0.5_{n}"] for n in (1, 3, 5)]
    share = float((sample.truth > 0.5).double().mean())
    assert chart.lines["above 0.5: useful from"] == [pytest.approx(0.5 + share / 2)] * 3


@pytest.mark.parametrize("scales", [[], [2], [0], [-1], [3, 3]])
def test_impossible_scales_are_refused(scales: list[int]) -> None:
    with pytest.raises(ValueError, match="'scales' must be different odd numbers"):
        FractionsSkill({"pr": [1]}, scales=scales)


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ({}, "expected thresholds of one variable at least"),
        ({"pr": []}, "pr: expected finite numbers"),
        ({"pr": [float("nan")]}, "pr: expected finite numbers"),
        ({"pr": [float("inf")]}, "pr: expected finite numbers"),
        ({"pr": [1, 1]}, "differ in six digits"),
        ({"pr": [1.0000001, 1]}, "differ in six digits"),
    ],
)
def test_impossible_thresholds_are_refused(thresholds: dict[str, list[float]], expected: str) -> None:
    """None at all, none that is a number, or two whose results would have one name."""
    with pytest.raises(ValueError, match=expected):
        FractionsSkill(thresholds)


def test_it_says_which_variables_it_names_and_what_gets_an_interval() -> None:
    """All of its results do, whichever variable has them; none is called twice."""
    score = FractionsSkill({"pr": [1, 10], "snow": [0.5, 1]}, scales=[1, 5])
    assert isinstance(score, Naming)
    assert list(score.variables) == ["pr", "snow"]
    assert sorted(score.headline) == sorted(f"fss_{t}_{n}" for t in ("0.5", "1", "10") for n in (1, 5))
    wet = cases(torch.full((1, 2, 4, 4), 20.0), torch.full((1, 4, 4), 20.0))
    assert set(score.results(score.sums(wet))) <= set(score.headline)


def test_pictures_of_other_options_have_other_names() -> None:
    """So that two entries do not overwrite each other's; the same options keep the name, whatever the data."""
    wet, drier = (cases(torch.full((1, 2, 4, 4), v), torch.full((1, 4, 4), v)) for v in (20.0, 5.0))

    def name(sample: Cases, thresholds: Sequence[float], scales: list[int]) -> str:
        score = FractionsSkill({"pr": list(thresholds)}, scales=scales)
        (chart,) = score.pictures(score.sums(sample))
        return chart.name

    assert name(wet, [1, 10], [5, 1]) == name(drier, [1, 10], [5, 1]) == "fss_1_10_at_1_5"
    assert len({name(wet, t, n) for t in ([1], [10], [1, 10]) for n in ([1], [5], [1, 5])}) == 9


def test_autocast_changes_nothing() -> None:
    """Scores are counted where generating may use half precision."""
    sample, score = (
        cases(rain(2, 3, 9, 9).float(), rain(2, 9, 9, seed=1).float()),
        FractionsSkill({"pr": [0.5]}),
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = score.results(score.sums(sample))
    assert found == score.results(score.sums(sample))


def test_areas_are_ignored() -> None:
    """Said so: a neighbourhood is one of cells."""
    score = FractionsSkill({"pr": [0.5]})
    sample = cases(rain(1, 2, 6, 6), rain(1, 6, 6, seed=1))
    weighted = evolve(sample, weights=torch.rand(6, 6, dtype=torch.float64))
    assert score.results(score.sums(sample)) == score.results(score.sums(weighted))
