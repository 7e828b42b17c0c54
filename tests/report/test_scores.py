"""Scores, taken from the keys of metrics."""

from __future__ import annotations

from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop.report.meanings import meaning_of, units_of
from hookloop.report.scores import Key, Result, headline, inferred, keys_in, numeral

NAMES = st.text("abcxyz_.0123456789", min_size=1, max_size=6).filter(
    lambda name: name not in {"lead", "error"}
)


def path_of(key: Key) -> str:
    """The documented form of a key."""
    lead = ["lead", key.lead] if key.lead else []
    parts = ["inference", key.set, *lead, key.result, key.variable]
    return "/".join(part for part in parts if part)


@given(
    st.sets(NAMES, max_size=3),
    st.sets(NAMES, max_size=3),
    st.sets(NAMES, min_size=1, max_size=4),
    st.sets(NAMES, min_size=1, max_size=3),
)
@many(200)
def test_every_key_is_taken_apart_as_it_was_put_together(
    sets: set[str], leads: set[str], results: set[str], variables: set[str]
) -> None:
    """With and without sets, lead times and variables, whatever they are called."""
    keys = {
        Key(own, lead, result, variable)
        for own in (sets - results or {""})
        for lead in ("", *leads)
        for result in results
        for variable in variables
    }
    keys |= {Key(own, "", "error", "") for own in {"", *(key.set for key in keys)}}
    keys |= {Key(own, "", result, "") for own in {key.set for key in keys} for result in results}
    metrics = {path_of(key): float(n) for n, key in enumerate(keys)}
    assert len(metrics) == len(keys)
    assert keys_in({**metrics, "val/loss": 1.0}) == {key: metrics[path_of(key)] for key in keys}


def test_a_score_is_joined_with_its_interval_and_its_baseline() -> None:
    """The ends and the baseline are no scores of their own; CRPS is beside a mean absolute error."""
    metrics = {
        "inference/crps/t2m": 0.2,
        "inference/crps_low/t2m": 0.1,
        "inference/crps_high/t2m": 0.3,
        "inference/mae_baseline/t2m": 0.4,
        "inference/rmse/t2m": 0.5,
        "inference/rmse_baseline/t2m": 0.8,
        "inference/crps_relative/t2m": 0.5,
        "inference/crps_relative_low/t2m": 0.4,
        "inference/crps_relative_high/t2m": 0.6,
        "inference/rmse/pr": 3.0,
    }
    assert inferred(metrics) == [
        Result(Key("", "", "crps", "t2m"), 0.2, (0.1, 0.3), 0.4, (0.4, 0.6)),
        Result(Key("", "", "rmse", "t2m"), 0.5, None, 0.8, None),
        Result(Key("", "", "crps_relative", "t2m"), 0.5, (0.4, 0.6), 1.0, (0.4, 0.6)),
        Result(Key("", "", "rmse", "pr"), 3.0, None, None, None),
    ]


def test_what_looks_like_a_part_of_nothing_is_a_score() -> None:
    """A third party may call its score so."""
    names = [
        result.key.result
        for result in inferred({"inference/too_low/x": 1.0, "inference/mae_baseline/x": 2.0})
    ]
    assert names == ["too_low", "mae_baseline"]


def test_main_scores_come_first_then_those_with_intervals() -> None:
    """Whatever else there is stays among the others."""
    metrics = {f"inference/{name}/x": 1.0 for name in ("odd", "rmse", "odd_low", "odd_high", "other", "crps")}
    assert headline(inferred(metrics)) == ["crps", "rmse", "odd"]


def test_numbers_have_four_digits() -> None:
    """Also those that end in zeros; counts are whole, what is large is no power of ten, and NaN stays NaN."""
    assert numeral(0.123456) == "0.1235"
    assert numeral(0.272) == "0.2720"
    assert numeral(283.4567) == "283.5"
    assert numeral(-0.5) == "−0.5000"
    assert numeral(1.0) == "1.000"
    assert numeral(1234.4) == "1234"
    assert numeral(53484.7) == "53,480"
    assert numeral(12345.0) == "12,345"
    assert numeral(float("nan")) == "NaN"
    assert numeral(float("inf")) == "inf"


def test_meanings_name_the_threshold_and_unknown_scores_themselves() -> None:
    """Braces in a third party's name are text."""
    assert meaning_of("fss_10_5").title == "Fractions skill score above 10, 5 cells"
    assert "5 × 5 cells lies above 10" in meaning_of("fss_10_5").sentence
    assert meaning_of("quantile_error_99.99").title == "Error of the 99.99 % quantile"
    assert meaning_of("twcrps_above_{0}").title == "CRPS above {0}"
    assert meaning_of("my_own").title == "my own"
    assert meaning_of("my_own").sentence == ""


def test_main_scores_are_followed_by_those_that_choose_checkpoints() -> None:
    """By the key of a metric, with a set and a variable or without, or by the result's own name."""
    results = inferred({f"inference/{name}/x": 1.0 for name in ("other", "fss_1_5", "own", "bias")})
    assert headline(results, ["inference/wet/fss_1_5/x", "own"]) == ["bias", "fss_1_5", "own"]


def test_scores_have_the_units_of_their_variable_or_none() -> None:
    """Ratios, probabilities and scores of others have none; spectra are compared in decibels."""
    alike = ("crps", "rmse", "bias", "rmse_baseline", "twcrps_above_5", "quantile_99.9", "wasserstein")
    assert {units_of(name, "mm h-1") for name in alike} == {"mm h⁻¹"}
    without = (
        "crps_relative",
        "spread_skill",
        "brier_above_5",
        "quantile_error_99.9",
        "tail_error",
        "my_own",
    )
    assert {units_of(name, "K") for name in without} == {""}
    assert units_of("lsd_radial", "K") == "dB"
    assert units_of("crps", "") == ""


def test_every_result_of_our_own_scores_has_a_meaning() -> None:
    """Each score is run on a small ensemble, and each of its results is looked up."""
    import torch

    from hookloop.scores.consistency import CoarseConsistency
    from hookloop.scores.distribution import Quantiles
    from hookloop.scores.energy import EnergyScore
    from hookloop.scores.ensemble import EnsembleScore
    from hookloop.scores.fss import FractionsSkill
    from hookloop.scores.maps import ErrorMaps
    from hookloop.scores.ranks import RankHistogram
    from hookloop.scores.score import Cases
    from hookloop.scores.spectra import Spectra
    from hookloop.scores.thresholds import ThresholdScore

    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, 8, 8, generator=generator)
    cases = Cases(
        name="x",
        members=torch.randn(4, 5, 8, 8, generator=generator),
        truth=truth,
        weights=torch.ones(8, 8, dtype=torch.float64),
        seeds=[1, 2, 3, 4],
        baseline=torch.zeros(4, 8, 8),
        coarse=truth.reshape(4, 4, 2, 4, 2).mean((2, 4)),
    )
    scores = [
        CoarseConsistency(),
        Quantiles(percentiles=[90.0]),
        EnergyScore(),
        EnsembleScore(),
        ErrorMaps(),
        FractionsSkill(thresholds={"x": [0.5]}, scales=[1, 3]),
        RankHistogram(),
        Spectra(),
        ThresholdScore(thresholds={"x": [0.5]}),
    ]
    results = [name for score in scores for name in score.results(score.sums(cases))]
    assert len(results) > 20
    assert [name for name in results if not meaning_of(name).sentence] == []
