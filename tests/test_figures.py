"""Figures of ensembles, looked at through what matplotlib was given to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pytest

from hookloop.figures import Case, ensemble_figure, in_print

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
    assert [format_longitude(v) for v in (359.0, 360.0, 361.0, 180.0)] == ["1°W", "0°", "1°E", "180°"]
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


@pytest.mark.parametrize(
    ("height", "width", "layout"),
    [(32, 32, (2, 4)), (8, 32, (4, 2)), (32, 6, (1, 8)), (64, 128, (2, 4))],
    ids=["square", "wide", "tall", "globe"],
)
def test_panels_are_arranged_to_fill_a_slide(height: int, width: int, layout: tuple[int, int]) -> None:
    """Wide domains lie above one another, tall ones stand in a row, and no figure is a strip."""
    truth = np.zeros((height, width)) + np.arange(width)
    step = 0.1 if height < 64 else 2.7
    figure = ensemble_figure(case_of(truth, list(step * np.arange(height)), list(step * np.arange(width))))
    assert figure.axes[0].get_gridspec().get_geometry() == layout
    assert 0.3 < figure.get_figheight() / figure.get_figwidth() < 1.2


@pytest.mark.parametrize("shape", [(8, 32), (32, 6), (32, 32)])
def test_titles_do_not_run_into_one_another(shape: tuple[int, int]) -> None:
    """Measured as they are drawn."""
    truth = np.random.default_rng(0).normal(280, 5, shape)
    figure = ensemble_figure(case_of(truth, list(0.1 * np.arange(shape[0])), list(0.1 * np.arange(shape[1]))))
    figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def wet_case(truth: np.ndarray[Any, Any]) -> Case:
    rows, columns = truth.shape
    case = case_of(truth, list(range(rows)), list(range(columns)))
    return attrs.evolve(case, members=np.stack([truth, 2 * truth]), given=None)


def test_rain_has_a_logarithmic_scale_and_dry_cells_a_colour_of_their_own(tmp_path: Path) -> None:
    """Two decades are told apart; less than that, and nothing at all, is grey and said to be."""
    truth = np.zeros((10, 10))
    truth[:5] = np.geomspace(0.001, 50, 50).reshape(5, 10)
    figure = ensemble_figure(wet_case(truth))
    figure.savefig(tmp_path / "rain.png")
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    (image,) = panels["truth"].images
    low, high = image.get_clim()
    assert 50 < high <= 100  # members reach twice the truth
    assert low == float(f"{high / 100:.0e}")
    grey = (0xEE / 255,) * 3
    np.testing.assert_allclose(image.to_rgba(np.array([[0.0, low / 2]]))[0, :, :3], [grey, grey])
    assert image.to_rgba(np.array([[low]]))[0, 0, 2] < 0.5  # the dark end of viridis
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert any(label.endswith(f"grey: less than {low:g}") for label in labels)


def test_a_field_that_is_dry_everywhere_is_drawn(tmp_path: Path) -> None:
    """There is nothing to take a logarithm of."""
    ensemble_figure(wet_case(np.zeros((4, 4)))).savefig(tmp_path / "dry.png")


def test_fields_with_negative_values_or_few_zeros_are_not_taken_for_rain() -> None:
    """Temperatures in degrees, and rain that falls everywhere, keep a linear scale."""
    falling = np.ones((10, 10))
    for truth in (falling, np.where(np.eye(10, dtype=bool), 0.0, -falling)):
        image = ensemble_figure(wet_case(truth)).axes[0].images[0]
        assert type(image.norm).__name__ == "Normalize"


def test_without_degrees_rows_and_columns_are_numbered() -> None:
    """No degrees, no stretching towards the poles, and no coastlines are asked for."""

    def refuse(scale: str) -> list[np.ndarray[Any, Any]]:
        raise AssertionError(scale)

    truth = np.arange(12.0).reshape(4, 3)
    case = attrs.evolve(case_of(truth, [80.0, 81.0, 82.0, 83.0], [0.0, 1.0, 2.0]), gridded=False)
    ax = ensemble_figure(case, refuse).axes[1]
    assert ax.get_ylim() == (-0.5, 3.5)
    assert ax.get_aspect() == 1.0
    assert "°" not in ax.xaxis.get_major_formatter()(1.0)


def test_coastlines_lie_over_every_field_and_leave_the_limits_alone() -> None:
    """They are drawn in the longitudes of the domain, here across the seam."""
    coast = np.array([[-0.5, 50.0], [0.5, 52.0], [90.0, 52.0]])
    truth = np.arange(12.0).reshape(4, 3)
    figure = ensemble_figure(case_of(truth, [50.0, 51.0, 52.0, 53.0], [359.0, 0.0, 1.0]), lambda _: [coast])
    drawn = [ax for ax in figure.axes if ax.images and ax.get_title()]
    assert len(drawn) == 7
    for ax in drawn:
        (segment,) = [segment for lines in ax.collections for segment in lines.get_segments()]
        np.testing.assert_array_equal(segment, coast + np.array([360.0, 0.0]))
        assert ax.get_xlim() == (358.5, 361.5)
        assert ax.get_ylim() == (49.5, 53.5)


def test_names_with_dollars_are_no_formulae(tmp_path: Path) -> None:
    """A hostile name of a variable neither fails nor is typeset."""
    case = attrs.evolve(case_of(np.eye(4), [0, 1, 2, 3], [0, 1, 2, 3]), title="a$b$ and $\\frac{", units="$")
    ensemble_figure(case).savefig(tmp_path / "dollar.png")


@pytest.mark.parametrize(
    ("units", "printed"),
    [
        ("mm h-1", "mm h⁻¹"),
        ("kg m**-2 s^-1", "kg m⁻² s⁻¹"),
        ("m2 s-2", "m² s⁻²"),
        ("1e-3 kg", "1e-3 kg"),
        ("CO2", "CO2"),
        ("K", "K"),
        ("", ""),
    ],
)
def test_units_are_printed_with_their_exponents(units: str, printed: str) -> None:
    """Numbers and formulae stay as they are."""
    assert in_print(units) == printed
