"""What is told of scores that come from elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from hookloop.report.meanings import meaning_of
from hookloop.report.own_scores import said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCE = '''
raise RuntimeError("run")

class WetFraction:
    """How much of the area is wet.

    More words.
    """

    chosen_as: ClassVar[str] = "wet"
    smaller_is_better: ClassVar[tuple[str, ...]] = ("wet_error",)
    comparable = ("wet_error", "wet_ratio")
    headline = tuple(comparable)
'''


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    said.cache_clear()
    yield
    said.cache_clear()


def installed(directory: Path, place: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that offers a score."""
    folder = directory / "their_package-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text(f"[hookloop.scores]\nwet = {place}:WetFraction\n")
    package = directory / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError\n")
    (package / "scores.py").write_text(source)
    monkeypatch.syspath_prepend(directory)


def test_a_score_tells_its_direction_and_its_first_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each result that its class names; nothing of the package is run, which might need torch."""
    installed(tmp_path, "their_package.scores", SOURCE, monkeypatch)
    error, ratio = meaning_of("wet_error"), meaning_of("wet_ratio")
    assert (error.title, error.sentence, error.good) == (
        "wet error",
        "How much of the area is wet.",
        "smaller",
    )
    assert (ratio.sentence, ratio.good) == ("How much of the area is wet.", "")
    assert "their_package" not in sys.modules


@pytest.mark.parametrize(
    ("place", "source"), [("nowhere.at.all", SOURCE), ("their_package.scores", "def"), ("their_package", "")]
)
def test_a_score_whose_source_is_not_there_has_its_name_alone(
    place: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or cannot be read, or does not hold the class."""
    installed(tmp_path, place, source, monkeypatch)
    assert (meaning_of("wet_error").title, meaning_of("wet_error").good) == ("wet error", "")
