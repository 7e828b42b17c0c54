"""Several ranks count windows of their own: together they have counted what one would have."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NoReturn

import pytest
import torch
from ensembles import drawn
from known_scores import Mean
from ranks import on_ranks

from hookloop.scores.consistency import CoarseConsistency
from hookloop.scores.distribution import Quantiles
from hookloop.scores.energy import EnergyScore
from hookloop.scores.ensemble import EnsembleScore
from hookloop.scores.fss import FractionsSkill
from hookloop.scores.maps import ErrorMaps
from hookloop.scores.ranks import RankHistogram
from hookloop.scores.score import Maps, Score
from hookloop.scores.spectra import Spectra
from hookloop.scores.thresholds import ThresholdScore
from hookloop.scoring import Results, Scoring, days_of
from hookloop.task import Paired

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hookloop.distributed import Ranks

GRID = (4, 6)


def scores() -> list[Score]:
    """Every built-in one."""
    return [
        EnsembleScore(),
        EnergyScore(tile=2),
        RankHistogram(),
        Quantiles(percentiles=[90.0], positive=["pr"], least=1, bins=64),
        Spectra(),
        CoarseConsistency(),
        ErrorMaps(),
        FractionsSkill({"pr": [0.5]}, [1, 3]),
        ThresholdScore({"pr": [0.5], "t": [280.0]}),
    ]


def seed(purpose: str) -> int:
    """Any function of the text."""
    return sum(map(ord, purpose))


def window(numbers: Sequence[int], hours: int, leads: int) -> Paired:
    """Cases of so many hours a day, each with so many lead times: rain with ties, and a temperature."""
    rows = [(number, lead) for number in numbers for lead in range(leads or 1)]
    fields = torch.stack([drawn(5, *GRID, seed=1000 * lead + number) for number, lead in rows])
    values = {"pr": (fields - 0.3).clamp(min=0).float(), "t": (fields * 3 + 280).float()}
    truth = {name: each[:, 0] for name, each in values.items()}
    return Paired(
        prediction={name: each[:, 1:] for name, each in values.items()},
        target=truth,
        baseline={"pr": truth["pr"] + 1, "t": truth["t"].roll(1, -1)},
        coarse={name: each[:, ::2, ::2] for name, each in truth.items()},
        latitude=[0.0, 20.0, 40.0, 60.0],
        longitude=[float(degree) for degree in range(6)],
        labels=[f"hour {number}" for number, _ in rows],
        days=[f"day {number // hours}" for number, _ in rows],
        lead_times=[f"{6 * (lead + 1)}h" for _, lead in rows] if leads else [],
    )


def windows_of(sizes: Sequence[int], hours: int, leads: int) -> list[Paired]:
    """Windows of so many cases, one after another."""
    ends = accumulate(sizes)
    return [window(range(end - size, end), hours, leads) for end, size in zip(ends, sizes, strict=True)]


def turns(windows: Sequence[Paired], world: int) -> list[list[Paired | None]]:
    """What each rank has counted in turn, none in the last one perhaps."""
    padded = [*windows, *[None] * (-len(windows) % world)]
    return [padded[start : start + world] for start in range(0, len(padded), world)]


def of_one(scores: Sequence[Score], windows: Sequence[Paired]) -> Scoring:
    """What one rank counts."""
    scoring = Scoring(scores, seed)
    for own in windows:
        scoring.count(own)
    return scoring


def of_several(scores: Sequence[Score], windows: Sequence[Paired], world: int) -> Scoring:
    """What the first of several ranks has when all have counted theirs."""
    each = [Scoring(scores, seed) for _ in range(world)]
    for n, turn in enumerate(turns(windows, world)):
        for scoring in each:
            for rank, own in enumerate(turn):
                scoring.know(n * world + rank, days_of(own) if own is not None else ())
        for scoring, own in zip(each, turn, strict=True):
            if own is not None:
                scoring.count(own)
    first, *others = each
    for other in others:
        for lead, name, tallies in other.counted():
            first.merge(lead, name, [tally.to_host() for tally in tallies])
    first.order()
    return first


def check_equal(found: Results, expected: Results) -> None:
    """Numbers and intervals to rounding, and so every picture; in the same order."""
    assert found.metrics() == pytest.approx(expected.metrics(), rel=1e-12, abs=1e-12)
    assert list(found.metrics()) == list(expected.metrics())
    for (name, one), (other, two) in zip(found.pictures(), expected.pictures(), strict=True):
        assert (name, one.name) == (other, two.name)
        if isinstance(one, Maps):
            assert isinstance(two, Maps)
            torch.testing.assert_close(dict(one.fields), dict(two.fields), rtol=1e-12, atol=1e-12)
        else:
            assert not isinstance(two, Maps)
            assert one.x == pytest.approx(two.x, rel=1e-12)
            assert one.lines.keys() == two.lines.keys()
            for label, line in one.lines.items():
                assert line == pytest.approx(two.lines[label], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("sizes", "world", "hours", "leads"),
    [([3, 1, 4, 2], 2, 1, 0), ([2, 2, 3], 3, 2, 2), ([1, 2], 5, 3, 1)],
    ids=["uneven", "shared-days", "more-ranks-than-windows"],
)
def test_ranks_have_together_what_one_has(sizes: list[int], world: int, hours: int, leads: int) -> None:
    """Of every score, with its intervals, lead times and pictures."""
    windows = windows_of(sizes, hours, leads)
    check_equal(of_several(scores(), windows, world).results(), of_one(scores(), windows).results())


def test_intervals_of_years_are_those_of_one_rank() -> None:
    """Of 1700 days, more than are kept apart, ranks let the same neighbours share: equal intervals."""
    windows = [window(range(start, start + 17), 1, 0) for start in range(0, 1700, 17)]
    expected = of_one([Mean()], windows).results().metrics()
    assert expected["mean_low/t"] < expected["mean/t"] < expected["mean_high/t"]
    for world in (2, 3, 8):
        found = of_several([Mean()], windows, world).results().metrics()
        assert found == pytest.approx(expected, rel=1e-12)


def test_the_order_of_days_is_that_of_the_cases() -> None:
    """The bootstrap numbers the days: had the second rank's come last, it would draw others."""
    windows = [window([number], 1, 0) for number in range(8)]
    expected = of_one([Mean()], windows).results().metrics()
    shuffled = of_one([Mean()], [*windows[::2], *windows[1::2]]).results().metrics()
    assert shuffled["mean_low/pr"] != pytest.approx(expected["mean_low/pr"], rel=1e-9)
    found = of_several([Mean()], windows, 2).results().metrics()
    assert found == pytest.approx(expected, rel=1e-12)


class Rooted(Mean):
    """A score that cannot be sent to another process, only what it has counted."""

    def __reduce__(self) -> NoReturn:
        """Refuse."""
        raise TypeError("it holds on to something of its process")


def collected(ranks: Ranks, sizes: Sequence[int]) -> dict[str, float] | None:
    """Count, collect, and answer what rank 0 has then."""
    windows = windows_of(sizes, 2, 2)
    scoring = Scoring([*scores(), Rooted()], seed)
    for n, turn in enumerate(turns(windows, ranks.world)):
        own = turn[ranks.rank]
        for rank, days in enumerate(ranks.gather(days_of(own) if own is not None else ())):
            scoring.know(n * ranks.world + rank, days)
        if own is not None:
            scoring.count(own)
    scoring.collect(ranks)
    return scoring.results().metrics() if ranks.leads else None


def test_processes_send_their_sums_to_the_first() -> None:
    """Three of them, five uneven windows, a day that two of them have seen; and one window, for one of them."""
    for sizes in ([3, 2, 2, 3, 1], [3]):
        windows = windows_of(sizes, 2, 2)
        expected = of_one([*scores(), Rooted()], windows).results().metrics()
        found, *others = on_ranks(3, collected, sizes)
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert others == [None, None]
