"""Scores beyond thresholds against an independent package and plain loops."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import scoringrules  # type: ignore[import-untyped]
import torch
from attrs import evolve
from ensembles import cases_of, check_score, drawn, ensembles, pixels, results_of
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop.scores.ensemble import EnsembleScore
from hookloop.scores.score import Cases, Naming
from hookloop.scores.thresholds import ThresholdScore


def by_loops(cases: Cases, t: float, direction: Literal["above", "below"]) -> dict[str, float]:
    """Every result by its formula, pixel by pixel and pair by pair."""
    sign = 1 if direction == "above" else -1
    m = cases.members.shape[1]
    area = weighted = brier = occurred = forecast = 0.0
    for case, row, column in np.ndindex(*cases.truth.shape):
        x = [sign * value for value in cases.members[case, :, row, column].double().tolist()]
        y, w = sign * float(cases.truth[case, row, column]), float(cases.weights[row, column])
        v = [max(a, sign * t) for a in x]
        skill = sum(abs(a - max(y, sign * t)) for a in v) / m
        weighted += w * (skill - sum(abs(a - b) for a in v for b in v) / (2 * m * (m - 1)))
        event, events = float(y > sign * t), [float(a > sign * t) for a in x]
        # Unbiased for p²: the mean over distinct pairs.
        pairs = sum(events[i] * events[j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        brier += w * (pairs - 2 * sum(events) / m * event + event)
        occurred, forecast, area = occurred + w * event, forecast + w * sum(events) / m, area + w
    expected = {}
    if occurred or forecast:
        expected |= {f"twcrps_{direction}_{t:g}": weighted / area, f"brier_{direction}_{t:g}": brier / area}
    if occurred:
        expected[f"frequency_bias_{direction}_{t:g}"] = forecast / occurred
    return expected


@many(100)
@given(ensembles(), st.sampled_from([-1.0, 0.0, 0.5, 2.0, 280.5]), st.sampled_from(["above", "below"]))
def test_every_result_is_that_of_the_formula_by_plain_loops(
    cases: Cases, threshold: float, direction: Literal["above", "below"]
) -> None:
    """Ties with the threshold, zeros, thresholds out of reach, any areas, in batches and merged."""
    score = ThresholdScore({"pr": [threshold, 1e6]}, direction)
    expected = by_loops(cases, threshold, direction) | by_loops(cases, 1e6, direction)
    # Means of distances of 1e6 round at 1e-10.
    assert check_score(score, cases) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("members", [2, 7, 32])
def test_threshold_weighted_crps_is_that_of_scoringrules(members: int) -> None:
    """Both directions agree with the fair estimator of an independent package."""
    cases = cases_of(drawn(3, members, 4, 5), drawn(3, 4, 5, seed=1))
    for direction, bounds in (("above", {"a": 0.5}), ("below", {"b": 0.5})):
        expected = scoringrules.twcrps_ensemble(
            cases.truth.numpy(), cases.members.numpy(), m_axis=1, estimator="fair", **bounds
        )
        found = results_of(ThresholdScore({"pr": [0.5]}, direction), cases)  # type: ignore[arg-type]
        assert found[f"twcrps_{direction}_0.5"] == pytest.approx(expected.mean(), rel=1e-12)


def test_results_by_hand() -> None:
    """Members 0 and 4 and a truth of 3, threshold 1: max gives 1 and 4 and 3; one of two members exceeds."""
    found = results_of(ThresholdScore({"pr": [1]}), pixels([[0.0, 4.0]], [3.0]))
    assert found == pytest.approx(
        {
            "twcrps_above_1": (2 + 1) / 2 - 3 / 2,
            "brier_above_1": (0.5 - 1) ** 2 - 0.5 * 0.5 / 1,
            "frequency_bias_above_1": 0.5,
        }
    )


def test_brier_does_not_depend_on_the_ensemble_size_on_average() -> None:
    """Fair: members of the truth's distribution score p (1 - p) whatever their number, here p = 1/2."""
    truth = drawn(1, 300, 300, seed=1)
    for members in (2, 8):
        found = results_of(ThresholdScore({"pr": [0]}), cases_of(drawn(1, members, 300, 300), truth))
        assert found["brier_above_0"] == pytest.approx(0.25, abs=0.005)


def test_below_every_value_it_is_the_crps() -> None:
    """A threshold that all exceed takes nothing away; frequency is right then."""
    cases = cases_of(drawn(3, 6, 4, 5), drawn(3, 4, 5, seed=1))
    found = results_of(ThresholdScore({"pr": [-100]}), cases)
    assert found["twcrps_above_-100"] == pytest.approx(results_of(EnsembleScore(), cases)["crps"], rel=1e-12)
    assert found["frequency_bias_above_-100"] == 1
    assert found["brier_above_-100"] == 0


def test_what_never_happens_is_absent() -> None:
    """Nothing where neither exceeds; no frequency bias where only members do; zero where only the truth does."""
    score = ThresholdScore({"pr": [1]})
    assert results_of(score, pixels([[0.0, 1.0]], [1.0])) == {}
    assert results_of(score, pixels([[0.0, 2.0]], [1.0])).keys() == {"twcrps_above_1", "brier_above_1"}
    assert results_of(score, pixels([[0.0, 1.0]], [2.0]))["frequency_bias_above_1"] == 0
    assert score.results({}) == {}


def test_a_float32_value_is_not_above_itself() -> None:
    """Rain of 0.1 mm in float32 is a little more than 0.1 in float64, but not above the threshold of 0.1."""
    score = ThresholdScore({"pr": [0.1]})
    rain = torch.full((1, 2, 1, 1), 0.1)
    assert float(rain[0, 0, 0, 0]) > 0.1
    assert results_of(score, cases_of(rain, rain[:, 0])) == {}


def test_variables_that_are_not_named_are_not_scored() -> None:
    """Other variables give no sums and no results."""
    cases = evolve(pixels([[0.0, 2.0]], [2.0]), name="t2m")
    assert ThresholdScore({"pr": [1]}).sums(cases) == {}


def test_it_says_which_variables_it_names_and_what_may_be_minimised() -> None:
    """CRPS and Brier score of every threshold, which have their intervals too; none is called twice."""
    score = ThresholdScore({"pr": [1, 10], "snow": [1]}, "below")
    assert isinstance(score, Naming)
    assert list(score.variables) == ["pr", "snow"]
    expected = {f"{kind}_below_{t}" for kind in ("twcrps", "brier") for t in (1, 10)}
    assert len(score.smaller_is_better) == len(expected)
    assert set(score.smaller_is_better) == set(score.headline) == expected
    found = results_of(score, pixels([[0.0, 2.0]], [0.0]))
    assert found.keys() == expected | {"frequency_bias_below_1", "frequency_bias_below_10"}


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ({}, "expected thresholds of one variable at least"),
        ({"pr": []}, "pr: expected finite numbers"),
        ({"pr": [1.0, math.nan]}, "pr: expected finite numbers"),
        ({"pr": [1.0, math.inf]}, "pr: expected finite numbers"),
        ({"pr": [1.0, 1.0000001]}, "differ in six digits"),
    ],
)
def test_impossible_thresholds_are_refused(thresholds: dict[str, list[float]], expected: str) -> None:
    """None at all, none that is a number, or two whose results would have one name."""
    with pytest.raises(ValueError, match=expected):
        ThresholdScore(thresholds)


def test_other_refusals() -> None:
    """One member, and a direction that is none."""
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        ThresholdScore({"pr": [1]}).sums(pixels([[1.0]], [1.0]))
    with pytest.raises(ValueError, match="direction"):
        ThresholdScore({"pr": [1]}, "beyond")  # type: ignore[arg-type]
