"""Which cases each score counts, and what the numbers are called."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, cast

import pytest
import torch
from attrs import define, field, frozen
from known_scores import MeanTruth, Quiet

from hookloop.errors import HookloopError
from hookloop.scoring import Scoring, cell_areas, expect_variables
from hookloop.task import Paired

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.scores.score import Cases, Chart, Maps, Score, Sum


@define(eq=False)
class Seen:
    """Keeps what it is given."""

    chosen_as: ClassVar[str] = "seen"
    smaller_is_better: ClassVar[tuple[str, ...]] = ()
    comparable: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[tuple[str, ...]] = ()
    cases: list[Cases] = field(factory=list)

    def sums(self, cases: Cases) -> Mapping[str, Sum]:
        """Keep them."""
        self.cases.append(cases)
        return {}

    def results(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """None."""
        return {}

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:
        """None."""
        return []


class SeenByDay(Seen):
    headline: ClassVar[tuple[str, ...]] = ("anything",)


@frozen
class Weighted(MeanTruth):
    """The mean over areas, without units."""

    headline: ClassVar[tuple[str, ...]] = ()
    comparable: ClassVar[tuple[str, ...]] = ("mean",)

    def sums(self, cases: Cases) -> Mapping[str, Sum]:
        """Weigh each pixel."""
        n = cases.weights.sum() * len(cases.truth)
        return {"total": (cases.weights * cases.truth).sum(), "n": n}


def paired(truths: Mapping[str, Sequence[float]], **options: object) -> Paired:
    """Rows of constant fields of two rows by two columns, at 0° and 60°."""
    target = {
        name: torch.tensor(values).view(-1, 1, 1).expand(-1, 2, 2).clone() for name, values in truths.items()
    }
    n = len(next(iter(target.values())))
    given = {
        "prediction": {name: truth[:, None].expand(-1, 3, -1, -1) for name, truth in target.items()},
        "target": target,
        "baseline": {},
        "coarse": {},
        "latitude": [0.0, 60.0],
        "longitude": [0.0, 1.0],
        "labels": [f"row {i}" for i in range(n)],
    }
    return Paired(**{**given, **options})  # type: ignore[arg-type]


def seed(purpose: str) -> int:
    """Any function of the text."""
    return sum(map(ord, purpose))


def scored(score: object, *parts: Paired, weights: str = "equal") -> Scoring:
    """Count them."""
    scoring = Scoring([cast("Score", score)], seed, weights)  # type: ignore[arg-type]
    for part in parts:
        scoring.count(part)
    return scoring


def test_every_variable_has_its_own_number() -> None:
    """Over all rows of all parts, however many each has."""
    scoring = scored(Quiet(), paired({"t": [1, 2, 3], "u": [4, 4, 4]}), paired({"t": [6], "u": [8]}))
    assert scoring.results().metrics() == {"mean/t": 3, "mean/u": 5, "inverse/t": 1 / 3, "inverse/u": 1 / 5}


def test_days_are_counted_by_themselves_and_give_intervals() -> None:
    """A score with a headline sees the rows of a day together, and its ends stand beside its number."""
    days = [f"day {i // 2}" for i in range(12)]
    seen = SeenByDay()
    values = [float(i // 2) for i in range(12)]
    scored(seen, paired({"t": values}, days=days))
    assert [sorted({float(v) for v in cases.truth.flatten()}) for cases in seen.cases] == [
        [0], [1], [2], [3], [4], [5]
    ]  # fmt: skip
    metrics = scored(MeanTruth(), paired({"t": values}, days=days)).results().metrics()
    assert metrics["mean/t"] == 2.5
    assert metrics["mean_low/t"] < 2.5 < metrics["mean_high/t"]
    assert metrics["mean_low/t"] >= 0
    assert metrics["mean_high/t"] <= 5


def test_without_a_headline_all_rows_are_counted_at_once() -> None:
    """One call for twelve rows of six days."""
    seen = Seen()
    scored(seen, paired({"t": [0.0] * 12}, days=[f"day {i // 2}" for i in range(12)]))
    assert [len(cases.truth) for cases in seen.cases] == [12]


def test_lead_times_have_numbers_of_their_own() -> None:
    """Rows are divided by lead time; the number without one is over all of them."""
    rows = paired({"t": [1, 10, 3, 30]}, lead_times=["6h", "12h", "6h", "12h"])
    metrics = scored(MeanTruth(), rows).results().metrics()
    assert metrics["lead/6h/mean/t"] == 2
    assert metrics["lead/12h/mean/t"] == 20
    assert metrics["mean/t"] == 11


def test_the_days_of_lead_times_are_the_same_days() -> None:
    """Two lead times of six starts are six days, not twelve: the interval is that of the starts."""
    starts = [float(i**2) for i in range(6)]
    both = [value for start in starts for value in (start, start)]
    days = [f"day {i // 2}" for i in range(12)]
    forecast = paired({"t": both}, days=days, lead_times=["6h", "12h"] * 6)
    alone = paired({"t": starts}, days=days[::2])
    found, expected = (scored(MeanTruth(), rows).results().metrics() for rows in (forecast, alone))
    assert found["mean_low/t"] == pytest.approx(expected["mean_low/t"])
    assert found["mean_high/t"] == pytest.approx(expected["mean_high/t"])


def test_cells_count_by_area() -> None:
    """A row at 60° counts half of one at the equator: 2/3 · 0 + 1/3 · 3 = 1; unless all are to be equal."""
    rows = paired({"t": [0]})
    rows.target["t"][:, 1] = 3.0
    assert scored(Weighted(), rows, weights="area").results().metrics()["mean/t"] == pytest.approx(1)
    assert scored(Weighted(), rows, weights="equal").results().metrics()["mean/t"] == pytest.approx(1.5)
    counted = paired({"t": [0]}, gridded=False)
    counted.target["t"][:, 1] = 3.0
    assert scored(Weighted(), counted, weights="area").results().metrics()["mean/t"] == pytest.approx(1.5)


def test_areas_are_one_on_average() -> None:
    """Whatever the latitudes are, and the poles weigh next to nothing."""
    areas = cell_areas([-89.5, 0.0, 89.5], 4, uneven=True)
    assert areas.mean().item() == pytest.approx(1)
    assert areas[0, 0] / areas[1, 0] == pytest.approx(math.cos(math.radians(89.5)))
    assert torch.equal(cell_areas([3.0, 4.0], 3, uneven=False), torch.ones(2, 3, dtype=torch.float64))


def test_what_has_no_units_is_averaged_over_variables() -> None:
    """But only if every variable has it."""
    assert scored(Weighted(), paired({"t": [1], "u": [3]})).results().means == {"mean": 2}
    assert scored(Quiet(), paired({"t": [1], "u": [3]})).results().means == {}


def test_two_scores_of_one_name_are_refused() -> None:
    """Neither overwrites the other."""
    scoring = Scoring([Quiet(), Quiet()], seed, "equal")
    scoring.count(paired({"t": [1]}))
    with pytest.raises(HookloopError, match="mean of t is given by two"):
        scoring.results().metrics()


def test_what_is_drawn_for_a_row_does_not_depend_on_its_neighbours() -> None:
    """Seeds are the same however rows are grouped, and differ by variable, row and lead time."""
    whole, parts = Seen(), Seen()
    rows = {"t": [1.0, 2.0], "u": [1.0, 2.0]}
    scored(whole, paired(rows))
    for i in range(2):
        scored(parts, paired({k: v[i : i + 1] for k, v in rows.items()}, labels=[f"row {i}"]))
    together = {(cases.name, own) for cases in whole.cases for own in cases.seeds}
    assert together == {(cases.name, own) for cases in parts.cases for own in cases.seeds}
    assert len(together) == 4


def test_a_score_gets_baseline_and_coarse_field_of_its_rows() -> None:
    """Rows that do not follow one another are picked everywhere alike."""
    seen = SeenByDay()
    rows = paired(
        {"t": [0, 1, 2]},
        days=["a", "b", "a"],
        baseline={"t": torch.arange(3.0).view(3, 1, 1).expand(3, 2, 2)},
        coarse={"t": torch.arange(3.0).view(3, 1, 1)},
        wraps=True,
    )
    scored(seen, rows)
    first = seen.cases[0]
    assert first.wraps
    for values in (
        first.truth,
        cast("Tensor", first.baseline),
        cast("Tensor", first.coarse),
        first.members[:, 0],
    ):
        assert values[:, 0, 0].tolist() == [0, 2]


def test_a_score_that_cannot_be_says_which_and_why() -> None:
    """The score, the variable and its own words."""

    class Impossible(Seen):
        def sums(self, cases: Cases) -> Mapping[str, Sum]:
            raise ValueError("expected a miracle")

    with pytest.raises(HookloopError, match="generation: seen of t: expected a miracle"):
        scored(Impossible(), paired({"t": [1]}))


def test_a_variable_that_is_not_generated_is_a_mistake() -> None:
    """The score, the name and the nearest one are told; scores that name none are fine."""

    class Named(Seen):
        variables = ("t2m", "tm2")

    expect_variables([Seen(), Named()], ["t2m", "tm2", "pr"])  # type: ignore[list-item]
    with pytest.raises(HookloopError, match=r"seen: no variable called tm2 is generated; .* mean 't2m'"):
        expect_variables([Named()], ["t2m", "pr"])  # type: ignore[list-item]


def test_a_result_that_cannot_be_says_which_and_why() -> None:
    """Also what only shows when everything is added up."""

    class Mixed(Seen):
        def results(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
            raise ValueError("expected one number of members")

    with pytest.raises(HookloopError, match="generation: seen of t: expected one number of members"):
        scored(Mixed(), paired({"t": [1]})).results().metrics()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_is_no_number_is_an_error(value: float) -> None:
    """It must be absent instead: nobody can compare with NaN."""

    class Undefined(Seen):
        def results(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
            return {"ratio": value}

    with pytest.raises(HookloopError, match=r"seen of t: ratio is (nan|inf); expected a number"):
        scored(Undefined(), paired({"t": [1]})).results().metrics()
