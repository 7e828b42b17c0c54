"""Maps over cases against plain loops."""

from __future__ import annotations

import math

import pytest
import scoringrules  # type: ignore[import-untyped]
import torch
from ensembles import cases_of, check_score, drawn, ensembles, pixels, rows
from hypotheses import many
from hypothesis import given
from torch import Tensor

from hookloop.scores.maps import ErrorMaps
from hookloop.scores.score import Cases
from hookloop.scores.tally import Tally


def fields_of(*batches: Cases) -> dict[str, Tensor]:
    """All maps of all pictures, by title."""
    tally = Tally(ErrorMaps())
    for batch in batches:
        tally.add("", tally.score.sums(batch))
    pictures = ErrorMaps().pictures(tally.totals)
    assert all(picture.signed <= picture.fields.keys() for picture in pictures)
    return {title: field for picture in pictures for title, field in picture.fields.items()}


@many(60)
@given(ensembles())
def test_every_map_is_that_of_the_formula_by_plain_loops(cases: Cases) -> None:
    """Each pixel by itself over the cases, in one batch or two; ties, zeros, one case or several."""
    check_score(ErrorMaps(), cases)
    halves = [rows(cases, part) for part in (slice(1), slice(1, None)) if len(cases.truth[part])]
    for maps in (fields_of(cases), fields_of(*halves)):
        n, m = cases.members.shape[:2]
        bias_square = 0.0
        for row in range(cases.truth.shape[1]):
            for column in range(cases.truth.shape[2]):
                x = cases.members[:, :, row, column].double()
                y = cases.truth[:, row, column].double()
                variances = [sum((a - float(own.mean())) ** 2 for a in own.tolist()) / (m - 1) for own in x]
                expected = {
                    "truth": float(y.mean()),
                    "members": float(x.mean()),
                    "bias": float(x.mean() - y.mean()),
                    "RMSE of the ensemble mean": math.sqrt(float((x.mean(1) - y).square().mean())),
                    "spread, equal to it if reliable": math.sqrt((m + 1) / m * sum(variances) / n),
                    "fair CRPS": scoringrules.crps_ensemble(y.numpy(), x.numpy(), estimator="fair").mean(),
                }
                found = {title: float(field[row, column]) for title, field in maps.items()}
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
                bias_square += float(cases.weights[row, column]) * expected["bias"] ** 2
        assert ErrorMaps().results(ErrorMaps().sums(cases))["mean_bias_rms"] == pytest.approx(
            math.sqrt(bias_square / float(cases.weights.sum())), rel=1e-9, abs=1e-9
        )


def test_errors_that_cancel_over_cases_are_no_bias() -> None:
    """One case 2 too high, one 2 too low in the same pixel: error 2, bias 0; in other pixels they do not cancel."""
    high, low = pixels([[2.0, 2.0]], [0.0]), pixels([[-2.0, -2.0]], [0.0])
    maps = fields_of(high, low)
    assert (float(maps["bias"]), float(maps["RMSE of the ensemble mean"])) == (0, 2)
    elsewhere = cases_of(torch.tensor([2.0, -2.0]).expand(1, 2, 1, 2), torch.zeros(1, 1, 2))
    assert ErrorMaps().results(ErrorMaps().sums(elsewhere)) == {"mean_bias_rms": 2.0}


def test_the_mean_bias_counts_by_area() -> None:
    """Biases of 1 and 3 in cells of areas 0.5 and 1.5: √((0.5 + 13.5) / 2)."""
    cases = cases_of(
        torch.tensor([1.0, 3.0]).expand(1, 2, 1, 2),
        torch.zeros(1, 1, 2),
        weights=torch.tensor([[0.5, 1.5]], dtype=torch.float64),
    )
    assert ErrorMaps().results(ErrorMaps().sums(cases)) == {"mean_bias_rms": math.sqrt(7)}


def test_one_member_is_refused_and_nothing_gives_nothing() -> None:
    """A spread needs two; no case has no map."""
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        ErrorMaps().sums(cases_of(drawn(1, 1, 4, 4), drawn(1, 4, 4)))
    assert ErrorMaps().results({}) == {}
    assert ErrorMaps().pictures({}) == ()
