"""What the name of a figure's file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hookloop.report.pictures import picture_of


@pytest.mark.parametrize(
    ("stem", "of", "title"),
    [
        ("t2m_rank_histogram", "t2m", "Rank histogram"),
        ("t2m_rank_histogram_8", "t2m", "Rank histogram 8"),
        ("pr_fss_1_10_at_1_5", "pr", "Fractions skill 1 10 at 1 5"),
        ("storms_pr_fss_1_at_5", "pr, storms", "Fractions skill 1 at 5"),
        ("pr_2020-01-03T06_00", "pr", "Example 2020-01-03T06_00"),
        ("pr_something_else", "pr", "something else"),
    ],
)
def test_a_file_is_told_by_its_name(stem: str, of: str, title: str) -> None:
    """The variable, the set, and which picture it is, with the options of its score."""
    picture = picture_of(Path(f"{stem}.png"), ["t2m", "pr"], ["storms"])
    assert (picture.of, picture.title) == (of, title)


def test_known_pictures_come_before_others() -> None:
    """Also those of a score with options."""
    names = ("pr_fss_1_at_5", "pr_something_else", "pr_2020-01-03T06_00")
    known, other, example = (picture_of(Path(f"{name}.png"), ["pr"], []) for name in names)
    assert example.rank < known.rank < other.rank
