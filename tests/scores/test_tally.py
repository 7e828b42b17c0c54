"""Adding up a score by day, and its interval, with a score whose numbers are known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from known_scores import Mean, MeanTruth, Quiet
from scipy import stats  # type: ignore[import-untyped]

from hookloop.scores.score import Cases, Score
from hookloop.scores.tally import Tally, _student

if TYPE_CHECKING:
    from collections.abc import Sequence


def truth_of(*values: float) -> Cases:
    """One case of one pixel for each value."""
    truth = torch.tensor(values)[:, None, None]
    return Cases("t", truth[:, None].expand(-1, 2, 1, 1), truth, torch.ones(1, 1), range(len(values)))


def counted(days: Sequence[Sequence[float]], score: MeanTruth | None = None) -> Tally:
    """A tally of those values, day by day."""
    score = score or MeanTruth()
    tally = Tally(score)
    for day, values in enumerate(days):
        tally.add(f"day {day}", score.sums(truth_of(*values)))
    return tally


def test_it_is_a_score() -> None:
    """The score of these tests fits the protocol."""
    assert isinstance(MeanTruth(), Score)


def test_unequal_days_count_by_their_cases() -> None:
    """Three cases of 1 and one of 5 have mean 2, not 3."""
    assert counted([[1, 1, 1], [5]]).results()["mean"] == 2


def test_merged_halves_are_the_whole() -> None:
    """Also where both have seen the same day."""
    one = counted([[1, 2], [4]])
    one.merge(counted([[3], [6], [8]]).to_host())
    whole = counted([[1, 2, 3], [4, 6], [8]])
    assert one.results() == whole.results()
    assert one.intervals(3) == whole.intervals(3)


def test_nothing_is_kept_by_day_where_no_interval_is_wanted() -> None:
    """Many days take the room of one, and there is no interval."""
    tally = counted([[day] for day in range(20)], Quiet())
    assert len(tally._days) == 1
    assert tally.results()["mean"] == 9.5
    assert tally.intervals(0) == {}


def test_the_interval_is_that_of_the_mean_of_independent_days() -> None:
    """Of 400 normal days it is the mean ± 1.96 σ/√400, within the noise of a thousand draws."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 10
    low, high = counted([[value] for value in values.tolist()]).intervals(7)["mean"]
    error = values.std().item() / math.sqrt(400)
    assert low == pytest.approx(values.mean().item() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(values.mean().item() + 1.96 * error, abs=0.25 * error)


@pytest.mark.parametrize("days", [5, 8, 20])
def test_an_interval_covers_the_truth_as_often_as_it_says(days: int) -> None:
    """The mean of so many normal days is 0: 95 % of the intervals hold it, to the noise of 400 of them."""
    generator = torch.Generator().manual_seed(days)
    covered = 0
    for seed in range(400):
        values = torch.randn(days, generator=generator).tolist()
        low, high = counted([[value] for value in values], Mean()).intervals(seed)["mean"]
        covered += low <= 0 <= high
    assert covered / 400 == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 400) ** 0.5)


@pytest.mark.parametrize("freedom", [4, 7, 30, 400])
def test_quantiles_of_t_are_those_of_scipy(freedom: int) -> None:
    """To 0.3 %."""
    assert _student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=3e-3)


def test_hours_of_a_day_are_drawn_together() -> None:
    """24 equal hours a day say no more than one: the interval is as wide."""
    days = [[float(value)] for value in (3, 1, 4, 1, 5, 9, 2, 6)]
    assert counted([day * 24 for day in days]).intervals(0)["mean"] == pytest.approx(
        counted(days).intervals(0)["mean"]
    )


def test_an_interval_is_a_function_of_its_seed() -> None:
    """The same seed gives the same numbers, another gives others."""
    tally = counted([[float(day**2)] for day in range(9)])
    assert tally.intervals(5) == tally.intervals(5)
    assert tally.intervals(5) != tally.intervals(6)


def test_few_days_have_no_interval() -> None:
    """Four are too few, five are not."""
    assert counted([[1], [2], [3], [4]]).intervals(0) == {}
    assert set(counted([[1], [2], [3], [4], [6]]).intervals(0)) == {"mean", "inverse"}


def test_what_some_draws_leave_undefined_has_no_interval() -> None:
    """With one day of 1 and four of 0, a third of the draws sum to 0."""
    assert set(counted([[0], [0], [1], [0], [0]]).intervals(0)) == {"mean"}


def test_years_take_no_more_room_than_months() -> None:
    """Neighbouring days share their sums, also with cases that come later; nothing is lost."""
    tally = counted([[float(day)] for day in range(3000)])
    tally.add("day 7", MeanTruth().sums(truth_of(3000.0)))
    assert len(tally._days) <= 400
    assert tally.results()["mean"] == pytest.approx(3000 / 2)
    low, high = tally.intervals(0)["mean"]
    assert low < 1500 < high
    # Uniform numbers, ordered: neighbours are alike, so joined ones tell nearly as much as single ones.
    assert high - low > 2 * 1.96 * 3000 / 12**0.5 / 400**0.5 * 0.9
