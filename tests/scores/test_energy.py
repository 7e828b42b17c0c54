"""Energy score against an independent package, plain loops and the CRPS."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules  # type: ignore[import-untyped]
import torch
from attrs import evolve
from ensembles import cases_of, check_score, drawn, ensembles, pixels, results_of
from hypotheses import many
from hypothesis import given
from torch.utils._python_dispatch import TorchDispatchMode

from hookloop.scores.energy import EnergyScore
from hookloop.scores.ensemble import EnsembleScore
from hookloop.scores.score import Cases


def by_loops(cases: Cases, tile: int | None) -> float:
    """Energy score by its formula: every tile of every case, every pair of members."""
    members, truth = cases.members.double().numpy(), cases.truth.double().numpy()
    weights = cases.weights.numpy()
    m = members.shape[1]
    height, width = (tile, tile) if tile else weights.shape
    total = area = 0.0
    for case in range(len(truth)):
        for top in range(0, weights.shape[0], height):
            for left in range(0, weights.shape[1], width):
                cut = np.s_[top : top + height, left : left + width]
                w = weights[cut]
                y = truth[case][cut]
                x = [members[case, i][cut] for i in range(m)]

                def norm(difference: np.ndarray, w: np.ndarray = w) -> float:
                    return math.sqrt(float((w * difference**2).sum() / w.sum()))

                skill = sum(norm(a - y) for a in x) / m
                spread = sum(norm(a - b) for a in x for b in x) / (m * (m - 1))
                total += (skill - spread / 2) * w.sum()
                area += w.sum()
    return total / area


@many(60)
@given(ensembles())
def test_it_is_the_formula_by_plain_loops(cases: Cases) -> None:
    """Ties, zeros, one case or several, any areas, whole fields and single cells, in batches and merged."""
    for tile, name in ((None, "energy_score"), (1, "energy_score_1")):
        found = check_score(EnergyScore(tile), cases)
        assert found == pytest.approx({name: by_loops(cases, tile)}, rel=1e-9, abs=1e-11)


def test_tiles_are_squares_side_by_side() -> None:
    """Tiles of 2 x 2 cells in a field of 4 x 6, on cells of any area."""
    areas = drawn(4, 6, seed=2).abs()
    cases = cases_of(drawn(3, 5, 4, 6), drawn(3, 4, 6, seed=1), weights=areas)
    found = results_of(EnergyScore(2), cases)
    assert found == pytest.approx({"energy_score_2": by_loops(cases, 2)}, rel=1e-12)


def test_a_score_of_tiles_is_not_called_that_of_fields() -> None:
    """Both may be asked for: they are minimised, and have their intervals, by names of their own."""
    for score, name in ((EnergyScore(), "energy_score"), (EnergyScore(8), "energy_score_8")):
        found = results_of(score, cases_of(drawn(1, 3, 8, 16), drawn(1, 8, 16, seed=1)))
        assert tuple(found) == score.smaller_is_better == score.headline == (name,)


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations on tensors."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN204
        self.number += 1
        return func(*args, **kwargs or {})


def test_the_number_of_tiles_costs_no_operations() -> None:
    """All tiles are scored together, 32 x 32 single cells by as many operations as 2 x 2."""
    counted = []
    for side in (2, 32):
        cases = cases_of(drawn(2, 8, side, side), drawn(2, side, side, seed=1))
        with Calls() as calls:  # type: ignore[no-untyped-call]
            EnergyScore(1).sums(cases)
        counted.append(calls.number)
    assert counted[0] == counted[1]


@pytest.mark.parametrize("members", [2, 5, 16])
def test_it_is_that_of_scoringrules(members: int) -> None:
    """On cells of one area its norm is the Euclidean one over the root of the number of pixels."""
    cases = cases_of(drawn(4, members, 6, 7), drawn(4, 6, 7, seed=1))
    expected = scoringrules.es_ensemble(
        cases.truth.flatten(1).numpy(), cases.members.flatten(2).numpy(), estimator="fair"
    )
    found = results_of(EnergyScore(), cases)["energy_score"]
    assert found == pytest.approx(expected.mean() / math.sqrt(42), rel=1e-12)


@many(30)
@given(ensembles())
def test_of_single_cells_it_is_the_fair_crps(cases: Cases) -> None:
    """The energy score generalises the CRPS."""
    assert results_of(EnergyScore(tile=1), cases)["energy_score_1"] == pytest.approx(
        results_of(EnsembleScore(), cases)["crps"], rel=1e-9, abs=1e-11
    )


def test_it_compares_between_grids() -> None:
    """The same field on twice as many cells both ways scores the same."""
    cases = cases_of(drawn(2, 4, 3, 5), drawn(2, 3, 5, seed=1))
    finer = cases_of(
        *(field.repeat_interleave(2, -1).repeat_interleave(2, -2) for field in (cases.members, cases.truth))
    )
    assert results_of(EnergyScore(), finer) == pytest.approx(results_of(EnergyScore(), cases), rel=1e-12)


def test_it_sees_what_the_crps_does_not() -> None:
    """Smooth members beat the same values shuffled among members in each pixel, whose CRPS is the same."""
    smooth = drawn(200, 8, 1, 1).expand(-1, -1, 6, 6)
    truth = drawn(200, 1, 1, seed=1).expand(-1, 6, 6)
    order = drawn(*smooth.shape, seed=2).argsort(dim=1)
    good, bad = cases_of(smooth, truth), cases_of(smooth.gather(1, order), truth)
    assert results_of(EnsembleScore(), bad)["crps"] == pytest.approx(
        results_of(EnsembleScore(), good)["crps"]
    )
    assert (
        results_of(EnergyScore(), bad)["energy_score"]
        > 1.05 * results_of(EnergyScore(), good)["energy_score"]
    )


def test_alike_members_far_from_the_truth_have_no_spread_at_all() -> None:
    """No rounding is left over where differences are small beside the values: exactly the bias."""
    members = torch.full((1, 6, 4, 4), 101_325.1)
    cases = cases_of(members, torch.full((1, 4, 4), 1_325.0))
    bias = float(members[0, 0, 0, 0].double()) - 1_325.0
    assert results_of(EnergyScore(), cases)["energy_score"] == pytest.approx(bias, rel=1e-15)
    nearly = cases_of(members.double() + 1e-9 * drawn(1, 6, 4, 4), cases.truth.double())
    assert results_of(EnergyScore(), nearly)["energy_score"] == pytest.approx(
        by_loops(nearly, None), rel=1e-14
    )


def test_a_cell_without_area_does_not_count() -> None:
    """Tiles of nothing but poles are no division by zero."""
    areas = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    cases = evolve(pixels([[1.0, 2.0]], [0.0]), weights=areas)
    cases = evolve(cases, members=cases.members.expand(1, 2, 2, 1), truth=cases.truth.expand(1, 2, 1))
    for tile in (None, 1):
        assert list(results_of(EnergyScore(tile), cases).values()) == pytest.approx([1.5 - 0.5])


def test_impossible_options_and_fields_are_refused() -> None:
    """Tiles have a cell at least, fields are whole tiles, and there are members to compare."""
    with pytest.raises(ValueError, match="tile"):
        EnergyScore(tile=0)
    with pytest.raises(ValueError, match=r"whole tiles of 4 cells, found \[8, 6\]"):
        EnergyScore(tile=4).sums(cases_of(drawn(1, 3, 8, 6), drawn(1, 8, 6)))
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        EnergyScore().sums(cases_of(drawn(1, 1, 8, 6), drawn(1, 8, 6)))
    assert EnergyScore().results({}) == {}
