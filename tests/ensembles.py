"""Random ensembles beside their truth, and what holds for every score of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from attrs import evolve
from hypothesis import strategies as st
from torch import Tensor

from hookloop.scores.score import Cases, Score
from hookloop.scores.tally import Tally


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cases_of(members: Tensor, truth: Tensor, baseline: Tensor | None = None, **others: object) -> Cases:
    """Cases of variable ``pr`` on cells of one size, unless *others* say differently."""
    given = {
        "name": "pr",
        "weights": torch.ones(truth.shape[1:], dtype=torch.float64),
        "seeds": range(len(truth)),
    }
    return Cases(members=members, truth=truth, baseline=baseline, **given | others)  # type: ignore[arg-type]


def pixels(members: Sequence[Sequence[float]], truth: Sequence[float], **others: object) -> Cases:
    """Cases of one pixel, each with the members listed."""
    ensemble = torch.tensor(members, dtype=torch.float64)[:, :, None, None]
    return cases_of(ensemble, torch.tensor(truth, dtype=torch.float64)[:, None, None], **others)


KINDS = {
    "normal": lambda values: values,
    "float32": lambda values: (values * 3 + 280).float(),
    "ties": lambda values: values.round(),
    "dry": lambda values: (values - 0.7).clamp(min=0).float(),
    "all dry": torch.zeros_like,
}
"""What becomes of standard normal numbers."""


@st.composite
def ensembles(draw: st.DrawFn) -> Cases:
    """Any number of cases and members on any small grid, ties and zeros among them, on cells of any area."""
    n, m = draw(st.integers(1, 5)), draw(st.integers(2, 9))
    lat, lon, factor = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    seed = draw(st.integers(0, 2**32))
    grid = lat * factor, lon * factor
    areas = drawn(*grid, seed=seed + 1).abs() + 0.01
    return cases_of(
        kind(drawn(n, m, *grid, seed=seed + 2)),
        kind(drawn(n, *grid, seed=seed + 3)),
        kind(drawn(n, *grid, seed=seed + 4)) if draw(st.booleans()) else None,
        coarse=kind(drawn(n, lat, lon, seed=seed + 5)) if draw(st.booleans()) else None,
        weights=areas / areas.mean() if draw(st.booleans()) else torch.ones(grid, dtype=torch.float64),
        seeds=[seed + i for i in range(n)],
    )


def rows(cases: Cases, part: slice) -> Cases:
    """Some of the *cases*."""
    return evolve(
        cases,
        members=cases.members[part],
        truth=cases.truth[part],
        seeds=cases.seeds[part],
        baseline=None if cases.baseline is None else cases.baseline[part],
        coarse=None if cases.coarse is None else cases.coarse[part],
    )


def results_of(score: Score, *batches: Cases) -> dict[str, float]:
    """Results of all batches together."""
    tally = Tally(score)
    for batch in batches:
        tally.add("", score.sums(batch))
    return dict(tally.results())


def check_score(score: Score, cases: Cases) -> dict[str, float]:
    """Check what every score promises, and give its results.

    They are finite, the same for one batch, batches of unequal size and halves merged, and the sums keep no
    case apart.
    """
    assert isinstance(score, Score)
    whole = results_of(score, cases)
    assert all(math.isfinite(value) for value in whole.values())
    for cut in range(1, len(cases.truth)):
        first, rest = rows(cases, slice(cut)), rows(cases, slice(cut, None))
        assert results_of(score, first, rest) == pytest.approx(whole, rel=1e-9, abs=1e-9)
        here, there = Tally(score), Tally(score)
        here.add("", score.sums(first))
        there.add("", score.sums(rest))
        there.merge(here.to_host())
        assert there.results() == pytest.approx(whole, rel=1e-9, abs=1e-9)
    assert results_of(score, cases, cases, cases) == pytest.approx(whole, rel=1e-9, abs=1e-9)
    one = score.sums(rows(cases, slice(1)))
    for name, value in score.sums(cases).items():
        found = cast("Tensor", value)
        assert found.dtype in (torch.float64, torch.int64)
        assert found.shape == cast("Tensor", one[name]).shape
    return whole
