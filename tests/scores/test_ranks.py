"""Rank histograms: counts, ties at random, and what they say of an ensemble."""

from __future__ import annotations

from typing import cast

import pytest
import scipy.stats  # type: ignore[import-untyped]
import torch
from attrs import evolve
from ensembles import cases_of, check_score, drawn, ensembles, pixels, results_of, rows
from hypotheses import many
from hypothesis import given
from torch import Tensor

from hookloop.scores.ranks import RankHistogram, ranks
from hookloop.scores.score import Cases, Score


def counts_of(cases: Cases) -> list[int]:
    """How many pixels have each rank."""
    (counts,) = RankHistogram().sums(cases).values()
    return cast("Tensor", counts).tolist()


@many(100)
@given(ensembles())
def test_ranks_lie_between_members_below_and_members_not_above(cases: Cases) -> None:
    """By plain counting in each pixel, and the histogram is that of the ranks, in batches and merged."""
    found = ranks(cases.members, cases.truth, cases.seeds)
    expected = [0] * (cases.members.shape[1] + 1)
    for case, row, column in torch.ones_like(cases.truth).nonzero().tolist():
        x, y = cases.members[case, :, row, column].tolist(), float(cases.truth[case, row, column])
        rank = int(found[case, row, column])
        assert sum(a < y for a in x) <= rank <= sum(a <= y for a in x)
        expected[rank] += 1
    assert counts_of(cases) == expected
    results = check_score(RankHistogram(), cases)
    n, flat = sum(expected), 1 / len(expected)
    assert results["rank_reliability"] == pytest.approx(sum(abs(count / n - flat) for count in expected))
    assert results["rank_outliers"] == pytest.approx((expected[0] + expected[-1]) / n / (2 * flat))


def test_without_ties_the_rank_is_the_number_of_members_below() -> None:
    """Truths below, between and above the members 1, 2, 3."""
    cases = pixels([[3.0, 1.0, 2.0]] * 4, [0.0, 1.5, 2.5, 9.0])
    assert ranks(cases.members, cases.truth, cases.seeds).flatten().tolist() == [0, 1, 2, 3]


def test_dry_pixels_do_not_pile_up_in_the_last_rank() -> None:
    """Where all is zero every rank is as likely (χ² over 90 000 pixels); a peer gives all of them the last."""
    counts = counts_of(cases_of(torch.zeros(1, 4, 300, 300), torch.zeros(1, 300, 300)))
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_a_reliable_ensemble_with_ties_is_flat() -> None:
    """Truth and members from one distribution that is mostly zero (χ² over 90 000 independent pixels)."""
    members, truth = ((drawn(1, n, 300, 300, seed=n) - 0.5).clamp(min=0) for n in (7, 1))
    cases = cases_of(members, truth[:, 0])
    assert scipy.stats.chisquare(counts_of(cases)).pvalue > 0.01
    found = results_of(RankHistogram(), cases)
    assert found["rank_outliers"] == pytest.approx(1, abs=0.03)
    assert found["rank_reliability"] < 0.03


def test_ties_are_drawn_among_the_tied_only() -> None:
    """One member below, two alike, one above: ranks 1, 2 and 3 share the pixels."""
    members = torch.tensor([0.0, 1.0, 1.0, 2.0]).view(1, 4, 1, 1).expand(1, 4, 300, 300)
    first, *tied, last = counts_of(cases_of(members, torch.ones(1, 300, 300)))
    assert (first, last) == (0, 0)
    assert scipy.stats.chisquare(tied).pvalue > 0.01


def test_what_is_drawn_depends_on_the_seed_of_the_case_alone() -> None:
    """The same in any batch and beside any neighbour; other seeds draw otherwise."""
    cases = cases_of(torch.zeros(3, 5, 20, 20), torch.zeros(3, 20, 20), seeds=[7, 8, 9])
    together = ranks(cases.members, cases.truth, cases.seeds)
    backwards = ranks(cases.members, cases.truth, [9, 8, 7]).flip(0)
    alone = rows(cases, slice(1, 2))
    assert torch.equal(ranks(alone.members, alone.truth, alone.seeds)[0], together[1])
    assert torch.equal(backwards, together)
    assert not torch.equal(together[0], together[1])


def test_the_global_generator_is_left_alone() -> None:
    """Scoring does not change what training draws next."""
    before = torch.get_rng_state()
    counts_of(cases_of(torch.zeros(1, 4, 5, 5), torch.zeros(1, 5, 5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_too_little_spread_piles_up_outside() -> None:
    """Members of half the truth's spread: more of the outer ranks than a reliable ensemble has."""
    found = results_of(RankHistogram(), cases_of(drawn(1, 9, 100, 100) / 2, drawn(1, 100, 100, seed=1)))
    assert found["rank_outliers"] > 1.5
    assert found["rank_reliability"] > 0.2


def test_ensembles_of_each_size_have_a_histogram_of_their_own() -> None:
    """Scores are means over points of what each says; each has a picture."""
    two, three = pixels([[0.0, 1.0]], [0.5]), pixels([[0.0, 1.0, 2.0]] * 3, [0.5, -1.0, 0.5])
    found = results_of(RankHistogram(), two, three)
    # Ranks among 2: 0, 1, 0 of 1; among 3: 1, 2, 0, 0 of 3.
    among_2 = 1 / 3 + 2 / 3 + 1 / 3
    among_3 = (1 / 3 - 1 / 4) + (2 / 3 - 1 / 4) + 1 / 4 + 1 / 4
    assert found["rank_reliability"] == pytest.approx((1 * among_2 + 3 * among_3) / 4)
    assert found["rank_outliers"] == pytest.approx((1 * 0 + 3 * (1 / 3) / (2 / 4)) / 4)
    score = RankHistogram()
    pictures = score.pictures({**score.sums(two), **score.sums(three)})
    assert [picture.name for picture in pictures] == ["rank_histogram_2", "rank_histogram_3"]
    assert [picture.level for picture in pictures] == pytest.approx([1 / 3, 1 / 4])


def test_other_refusals_and_nothing() -> None:
    """One member, a seed too few, and no case at all."""
    with pytest.raises(ValueError, match="at least 2 members, found 1"):
        RankHistogram().sums(pixels([[1.0]], [1.0]))
    with pytest.raises(ValueError, match="expected 2 seeds, one for each case, found 1"):
        RankHistogram().sums(evolve(pixels([[1.0, 2.0]] * 2, [1.0, 1.0]), seeds=[1]))
    assert RankHistogram().results({}) == {}
    assert RankHistogram().pictures({}) == []


def test_the_picture_shows_shares_beside_the_ideal() -> None:
    """One bar for each rank, and a level where all of them are alike."""
    score: Score = RankHistogram()
    (chart,) = RankHistogram().pictures(score.sums(pixels([[1.0, 2.0]] * 4, [0.0, 1.5, 1.5, 3.0])))
    assert chart.name == "rank_histogram"
    assert list(chart.x) == [0, 1, 2]
    assert [list(line) for line in chart.lines.values()] == [[0.25, 0.5, 0.25]]
    assert (chart.style, chart.level) == ("bar", pytest.approx(1 / 3))
