"""Figures of ensembles, looked at through what matplotlib was given to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pytest

from hookloop.figures import Case, ensemble_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def case_of(truth: np.ndarray[Any, Any], latitude: Sequence[float], longitude: Sequence[float]) -> Case:
    """Two members around *truth*, and a coarse field of two by two where there is room."""
    return Case(
        title="t2m",
        units="K",
        given_as="coarse input",
        given=truth[:2, :2],
        truth=truth,
        members=np.stack([truth - 1, truth + 3]),
        latitude=np.asarray(latitude),
        longitude=np.asarray(longitude),
    )


@pytest.mark.parametrize("descending", [True, False])
def test_figures_have_north_up_and_one_colour_scale(descending: bool) -> None:  # noqa: FBT001
    """Whichever way the latitudes run, the northernmost row is on top, and fields share their limits."""
    truth = np.arange(12.0).reshape(4, 3)
    latitude = [50.0, 51.0, 52.0, 53.0]
    figure = ensemble_figure(
        case_of(truth[::-1] if descending else truth, latitude[:: -1 if descending else 1], [359.0, 0.0, 1.0])
    )
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert list(panels) == [
        "coarse input",
        "truth",
        "mean of 2 members",
        "error of the mean, RMSE 1 K",  # (3 - 1) / 2
        "member 1",
        "member 2",
        "spread, RMS 2.8 K",  # 4 / sqrt 2
    ]
    (drawn,) = panels["truth"].images
    np.testing.assert_array_equal(drawn.get_array(), truth)
    assert panels["truth"].get_ylim() == (49.5, 53.5)
    assert panels["truth"].get_xlim() == (358.5, 361.5)
    format_longitude = panels["truth"].xaxis.get_major_formatter()
    assert [format_longitude(v) for v in (359.0, 360.0, 361.0)] == ["1°W", "0°", "1°E"]
    shared = [panels[name].images[0].get_clim() for name in ("coarse input", "truth", "member 1", "member 2")]
    assert len(set(shared)) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 5)])
def test_constant_and_tiny_fields_are_drawn(shape: tuple[int, int], tmp_path: Path) -> None:
    """No variation and no neighbours are no reason to fail or to warn."""
    height, width = shape
    case = case_of(np.full(shape, 7.0), list(range(height)), list(range(width)))
    figure = ensemble_figure(attrs.evolve(case, members=np.full((2, *shape), 7.0)))
    figure.savefig(tmp_path / "constant.png", bbox_inches="tight")


def test_what_was_not_given_is_not_drawn() -> None:
    """Its place is taken by one more member."""
    truth = np.arange(12.0).reshape(4, 3)
    case = case_of(truth, [50.0, 51.0, 52.0, 53.0], [0.0, 1.0, 2.0])
    members = np.stack([truth + i for i in range(6)])
    panels = [ax.get_title() for ax in ensemble_figure(attrs.evolve(case, given=None, members=members)).axes]
    fields = [name for name in panels if name and "error" not in name and "spread" not in name]
    assert fields == ["truth", "mean of 6 members", *(f"member {i}" for i in (1, 2, 3, 4))]
