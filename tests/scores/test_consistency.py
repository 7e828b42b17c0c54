"""Consistency with the coarse field, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from ensembles import cases_of, check_score, drawn, ensembles, results_of
from hypotheses import many
from hypothesis import given

from hookloop.scores.consistency import CoarseConsistency
from hookloop.scores.score import Cases


def by_loops(cases: Cases) -> dict[str, float]:
    """Both errors by their formula, cell by cell."""
    if cases.coarse is None:
        return {}
    total = {"coarse_error": 0.0, "coarse_error_truth": 0.0}
    area = 0.0
    n, lat, lon = cases.coarse.shape
    height, width = cases.truth.shape[1] // lat, cases.truth.shape[2] // lon
    for case in range(n):
        for i in range(lat):
            for j in range(lon):
                cut = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
                w, c = cases.weights[cut], float(cases.coarse[case, i, j])
                means = [
                    float((field[cut].double() * w).sum() / w.sum())
                    for field in (cases.truth[case], *cases.members[case])
                ]
                squared = [(mean - c) ** 2 for mean in means]
                total["coarse_error_truth"] += float(w.sum()) * squared[0]
                total["coarse_error"] += float(w.sum()) * sum(squared[1:]) / len(squared[1:])
                area += float(w.sum())
    return {name: math.sqrt(value / area) for name, value in total.items()}


@many(100)
@given(ensembles())
def test_both_errors_are_those_of_the_formula_by_plain_loops(cases: Cases) -> None:
    """Any areas and factors, with a coarse field or without, in batches and merged."""
    assert check_score(CoarseConsistency(), cases) == pytest.approx(by_loops(cases), rel=1e-9, abs=1e-9)


def test_a_field_made_of_its_block_means_is_exact() -> None:
    """Members that keep every block mean have no error, however much they differ within the blocks."""
    coarse = drawn(2, 3, 4) + 280
    own = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    within = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(3, 4)
    members = torch.stack([own + within, own - 5 * within], 1)
    found = results_of(CoarseConsistency(), cases_of(members, own, coarse=coarse))
    assert found == pytest.approx({"coarse_error": 0, "coarse_error_truth": 0}, abs=1e-12)


def test_a_member_that_is_off_is_seen_although_the_mean_is_not() -> None:
    """Members 1 above and 1 below their coarse field: error 1; the truth has none."""
    truth = torch.zeros(1, 4, 4)
    members = torch.stack([truth + 1, truth - 1], 1)
    found = results_of(CoarseConsistency(), cases_of(members, truth, coarse=torch.zeros(1, 2, 2)))
    assert found == {"coarse_error": 1, "coarse_error_truth": 0}


def test_block_means_and_cells_count_by_area() -> None:
    """One column of cells 1 and 3 wide of values 0 and 4: mean 3, not 2."""
    areas = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    field = torch.tensor([[[0.0], [4.0]]])
    found = results_of(
        CoarseConsistency(),
        cases_of(field[:, None].expand(1, 2, 2, 1), field, coarse=torch.zeros(1, 1, 1), weights=areas),
    )
    assert found == {"coarse_error": 3, "coarse_error_truth": 3}


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (8, 4), (0, 2)])
def test_cells_that_are_not_whole_are_refused(shape: tuple[int, int]) -> None:
    """A coarse grid of 3 rows or columns does not divide 4, and neither does one of 8 or of none."""
    cases = cases_of(drawn(1, 2, 4, 4), drawn(1, 4, 4), coarse=torch.zeros(1, *shape))
    with pytest.raises(ValueError, match=r"whole cells of \[4, 4\]"):
        CoarseConsistency().sums(cases)


def test_other_refusals_and_nothing() -> None:
    """A coarse field for some cases only, one member, and no coarse field at all."""
    with pytest.raises(ValueError, match="expected 2 coarse fields, found 1"):
        CoarseConsistency().sums(cases_of(drawn(2, 2, 4, 4), drawn(2, 4, 4), coarse=torch.zeros(1, 2, 2)))
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        CoarseConsistency().sums(cases_of(drawn(2, 1, 4, 4), drawn(2, 4, 4), coarse=torch.zeros(2, 2, 2)))
    assert results_of(CoarseConsistency(), cases_of(drawn(2, 2, 4, 4), drawn(2, 4, 4))) == {}
