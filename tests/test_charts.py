"""Pictures of scores, looked at through what matplotlib was given to draw."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attrs import evolve
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_hex

from hookloop.charts import chart_figure, maps_figure, with_units
from hookloop.figures import beyond, limits
from hookloop.scores.score import Chart, Maps

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

SPECTRUM = Chart(
    name="spectrum",
    title="Spectrum",
    x=[0.0, 1.0, 2.0, 4.0],
    lines={"truth": [9.0, 4.0, 0.0, 1.0], "members": [9.0, 3.0, 2.0, 0.5], "baseline": [9.0, 2.0, 1.0, 0.1]},
    xlabel="wave number",
    ylabel="power ({units}²)",
    xscale="log",
    yscale="log",
)


def lines_of(figure: Figure) -> dict[str, Any]:
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_truth_prediction_and_baseline_are_told_apart_without_colour(tmp_path: Path) -> None:
    """The truth is black, the baseline grey and dashed, the prediction neither."""
    figure = chart_figure(SPECTRUM, "t2m", "K")
    figure.savefig(tmp_path / "spectrum.png")
    lines = lines_of(figure)
    assert (to_hex(lines["truth"].get_color()), lines["truth"].get_linestyle()) == ("#000000", "-")
    assert lines["baseline"].get_linestyle() == "--"
    red, green, blue = bytes.fromhex(to_hex(lines["baseline"].get_color())[1:])
    assert red == green == blue
    red, green, blue = bytes.fromhex(to_hex(lines["members"].get_color())[1:])
    assert max(red, green, blue) - min(red, green, blue) > 100
    assert figure.axes[0].get_ylabel() == "power (K²)"
    assert figure.axes[0].get_title() == "Spectrum: t2m"


def test_logarithms_are_taken_of_what_is_positive_only(tmp_path: Path) -> None:
    """An x of zero goes; a y of zero breaks its line there; nothing warns."""
    figure = chart_figure(SPECTRUM, "t2m", "K")
    figure.savefig(tmp_path / "spectrum.png")
    truth = lines_of(figure)["truth"]
    assert truth.get_xdata().tolist() == [1.0, 2.0, 4.0]
    np.testing.assert_array_equal(truth.get_ydata(), [4.0, np.nan, 1.0])
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


def test_a_point_between_gaps_is_seen() -> None:
    """A line needs two points; one alone is a dot."""
    chart = evolve(SPECTRUM, x=[1.0, 2.0, 3.0, 4.0, 5.0], lines={"members": [1.0, 1.0, 0.0, 2.0, 0.0]})
    ax = chart_figure(chart, "t2m", "K").axes[0]
    dots = [tuple(point) for scatter in ax.collections for point in scatter.get_offsets()]
    assert dots == [(4.0, 2.0)]


@pytest.mark.parametrize(
    "lines",
    [
        {},
        {"truth": []},
        {"truth": [0.0, 0.0, 0.0, 0.0]},
        {"truth": [np.nan] * 4},
        {"truth": [-1.0, np.inf, 0.0, np.nan]},
    ],
    ids=["none", "empty", "zeros", "nan", "nothing positive"],
)
def test_what_no_logarithm_can_show_is_drawn_linearly_or_not_at_all(
    lines: dict[str, list[float]], tmp_path: Path
) -> None:
    """Never an error, never a warning, never a blank page without a word."""
    x = [] if lines.get("truth") == [] else SPECTRUM.x
    figure = chart_figure(evolve(SPECTRUM, x=x, lines=lines, diagonal=True, level=1.0), "t2m", "K")
    figure.savefig(tmp_path / "nothing.png")
    assert figure.axes[0].get_yscale() == "linear"
    finite = np.isfinite([value for line in lines.values() for value in line]).any()
    assert [text.get_text() for text in figure.axes[0].texts] == ([] if finite else ["nothing to show"])


def test_bars_of_several_lines_stand_side_by_side_below_their_ideal() -> None:
    """Each at its own place, none over another, with the level of a perfect ensemble across."""
    chart = Chart(
        name="ranks",
        title="Ranks",
        x=[0, 1, 2],
        lines={"now": [0.2, 0.3, 0.5], "before": [0.5, 0.2, 0.3]},
        xlabel="rank",
        ylabel="share",
        style="bar",
        level=1 / 3,
    )
    figure = chart_figure(chart, "t2m", "")
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in figure.axes[0].patches)
    assert len(spans) == 6
    assert all(left[1] <= right[0] + 1e-12 for left, right in pairwise(spans))
    heights = [bar.get_height() for bars in figure.axes[0].containers for bar in bars]
    assert heights == [0.2, 0.3, 0.5, 0.5, 0.2, 0.3]
    assert set(lines_of(figure)["ideal"].get_ydata()) == {1 / 3}


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_diagonal_reaches_over_everything_that_is_drawn(scale: Any, tmp_path: Path) -> None:
    """On logarithmic axes too, where y = x is a line as well."""
    chart = evolve(
        SPECTRUM, x=[1.0, 2.0], lines={"members": [0.5, 8.0]}, xscale=scale, yscale=scale, diagonal=True
    )
    figure = chart_figure(chart, "t2m", "K")
    figure.savefig(tmp_path / "diagonal.png")
    ideal = lines_of(figure)["ideal"]
    assert list(ideal.get_xdata()) == list(ideal.get_ydata()) == [0.5, 8.0]


def test_notes_stand_below_and_what_belongs_together_shares_a_colour() -> None:
    """``above 1: useful from`` is drawn in the colour of ``above 1``, and thinner."""
    lines = {"above 1": [0.5, 0.9], "above 1: useful from": [0.6, 0.6], "above 5": [0.1, 0.2]}
    chart = evolve(SPECTRUM, x=[1.0, 2.0], lines=lines, notes=["so many points"])
    figure = chart_figure(chart, "Spectrum, epoch 3", "K")
    drawn = lines_of(figure)
    assert drawn["above 1"].get_color() == drawn["above 1: useful from"].get_color()
    assert drawn["above 1"].get_color() != drawn["above 5"].get_color()
    assert drawn["above 1"].get_linewidth() > drawn["above 1: useful from"].get_linewidth()
    assert figure.get_supxlabel() == "so many points"
    assert figure.axes[0].get_title() == "Spectrum, epoch 3"  # which says it already


@pytest.mark.parametrize(
    ("label", "units", "printed"),
    [
        ("power ({units}²)", "K", "power (K²)"),
        ("power ({units}²)", "mm h-1", "power ((mm h⁻¹)²)"),
        ("density (1 / {units})", "mm h-1", "density (1 / (mm h⁻¹))"),
        ("density (1 / {units})", "", "density"),
        ("quantile [{units}]", "", "quantile"),
        ("{units}", "", ""),
        ("scale (cells)", "", "scale (cells)"),
        ("{a} {units}", "K", "{a} K"),
    ],
)
def test_units_take_their_place_in_labels(label: str, units: str, printed: str) -> None:
    """Where there are none, the brackets around them go too, and no others."""
    assert with_units(label, units) == printed


def maps(height: int, width: int) -> Maps:
    field = torch.linspace(-1, 3, height * width, dtype=torch.float64).reshape(height, width)
    fields = {"RMSE": field + 1, "spread": 2 * (field + 1), "bias": field}
    return Maps(name="map", title="Errors", fields=fields, signed=frozenset({"bias"}))


def test_maps_share_a_scale_but_signed_ones_lie_around_zero(tmp_path: Path) -> None:
    """What is to be compared has the same colours; zero is the middle of what has a sign."""
    latitude, longitude = list(np.linspace(60, 50, 20)), list(np.linspace(355, 366, 22) % 360)
    figure = maps_figure(maps(20, 22), latitude, longitude, "t2m", "K", gridded=True, shapes=lambda _: [])
    figure.savefig(tmp_path / "maps.png")
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert list(panels) == ["RMSE", "spread", "bias"]
    images = {name: ax.images[0] for name, ax in panels.items()}
    assert images["RMSE"].get_clim() == images["spread"].get_clim()
    low, high = images["bias"].get_clim()
    assert low == -high
    assert images["bias"].get_cmap().name == "RdBu_r"
    # North is up although latitudes descend: the first row of the field is the last that is drawn.
    np.testing.assert_array_equal(images["bias"].get_array()[-1], maps(20, 22).fields["bias"][0])
    assert panels["bias"].get_ylim()[0] < panels["bias"].get_ylim()[1]


@pytest.mark.parametrize("shape", [(1, 1), (8, 64), (64, 8)])
def test_maps_without_degrees_are_numbered(shape: tuple[int, int], tmp_path: Path) -> None:
    """Of any shape, and whatever the coordinates were."""
    rows, columns = shape
    figure = maps_figure(maps(*shape), [0.0] * rows, [0.0] * columns, "t2m", "", gridded=False)
    figure.savefig(tmp_path / "maps.png")
    ax = figure.axes[0]
    assert ax.get_xlim() == (-0.5, columns - 0.5)
    assert "°" not in ax.xaxis.get_major_formatter()(1.0)


def test_a_hostile_name_is_no_formula(tmp_path: Path) -> None:
    """Dollars and braces in titles, labels and units are text."""
    evil = "$\\frac{ {0} $"
    chart = evolve(SPECTRUM, lines={evil: [1.0, 2.0, 3.0, 4.0], "x": [1.0] * 4}, xlabel=evil, notes=[evil])
    chart_figure(chart, evil, evil).savefig(tmp_path / "chart.png")
    named = Maps(name="m", title=evil, fields={evil: torch.ones(2, 2)})
    maps_figure(named, [0.0, 1.0], [0.0, 1.0], evil, evil, gridded=True).savefig(tmp_path / "maps.png")


@pytest.mark.parametrize(
    ("values", "ends"),
    [((0.0, 1.0), "neither"), ((-1.0, 1.0), "min"), ((0.0, 3.0), "max"), ((-1.0, 3.0), "both")],
)
def test_a_colour_bar_points_where_there_is_more(values: tuple[float, ...], ends: str) -> None:
    """Not below zero where nothing is."""
    assert beyond(np.array(values), ScalarMappable(Normalize(0.0, 2.0))) == ends


def test_what_is_nowhere_negative_begins_at_zero_if_it_comes_close() -> None:
    """Nothing lies below then; temperatures in kelvin do not."""
    assert limits([np.linspace(0.01, 2.0, 1001)])[0] == 0.0
    assert limits([np.linspace(-0.01, 2.0, 1001)])[0] < 0.01
    assert limits([np.linspace(270.0, 300.0, 1001)])[0] > 270.0


def scales_of(fields: dict[str, torch.Tensor]) -> dict[str, Any]:
    picture = Maps(name="map", title="Maps", fields=fields)
    figure = maps_figure(picture, list(range(10)), list(range(10)), "pr", "mm h-1", shapes=lambda _: [])
    return {ax.get_title(): ax.images[0].norm for ax in figure.axes if ax.get_title()}


def test_crps_has_a_scale_of_its_own() -> None:
    """In that of the RMSE, which is much larger where it rains, it would be dark all over."""
    field = torch.linspace(0.0, 3.0, 100, dtype=torch.float64).reshape(10, 10) + 1e-3
    scales = scales_of({"RMSE": field, "spread": field / 2, "fair CRPS": field / 10})
    assert (scales["RMSE"].vmin, scales["RMSE"].vmax) == (scales["spread"].vmin, scales["spread"].vmax)
    assert scales["fair CRPS"].vmax == pytest.approx(0.3, rel=0.02)


def test_means_of_rain_are_drawn_as_rain_where_some_places_stayed_dry() -> None:
    """Elsewhere they span too little for a logarithm."""
    wet = torch.linspace(0.1, 2.0, 100, dtype=torch.float64).reshape(10, 10)
    dry = torch.cat([torch.zeros(2, 10), wet[2:]]).double()
    assert {type(scale) for scale in scales_of({"truth": dry, "members": wet}).values()} == {LogNorm}
    assert {type(scale) for scale in scales_of({"truth": wet, "members": wet}).values()} == {Normalize}


def test_quantiles_are_marked_one_by_one() -> None:
    """A hundred of them lie so unevenly that a line hides where they are."""
    x = list(np.geomspace(0.1, 10, 100))
    figure = chart_figure(evolve(SPECTRUM, x=x, lines={"members": x}, diagonal=True), "pr", "mm h-1")
    assert lines_of(figure)["members"].get_marker() == "o"
    assert lines_of(figure)["ideal"].get_marker() == "None"


def distribution(truth: list[float], members: list[float], first: float = 1.0) -> Chart:
    """Densities in bins of width 2."""
    x = [first + 2.0 * k for k in range(len(truth))]
    lines = {"truth": truth, "members": members}
    return evolve(SPECTRUM, name="histogram", x=x, lines=lines, xscale="linear", yscale="log")


def test_one_extreme_value_does_not_stretch_a_histogram() -> None:
    """The axis ends as far beyond the truth as that is wide; what lies farther is said: x = 7 at most here."""
    truth, members = [0.2, 0.2, 0.1] + [0.0] * 97, [0.2, 0.2, 0.05] + [0.0] * 96 + [0.05]
    figure = chart_figure(distribution(truth, members, first=-1.0), "t2m", "K")
    assert max(lines_of(figure)["members"].get_xdata()) <= 7.0
    assert figure.axes[0].get_xscale() == "linear"
    assert "not drawn: members of 197" in figure.get_supxlabel()


def test_a_histogram_of_rain_has_a_logarithmic_axis_and_says_how_dry_it_is() -> None:
    """The share of the first bin is its density times its width: 0.45 · 2 and 0.475 · 2."""
    figure = chart_figure(distribution([0.45, 0.04, 0.01], [0.475, 0.02, 0.005]), "pr", "mm")
    assert figure.axes[0].get_xscale() == "log"
    assert "less than 2: truth 90 %, members 95 %" in figure.get_supxlabel()
    wind = distribution([0.1, 0.3, 0.1], [0.1, 0.3, 0.1])
    assert chart_figure(wind, "ws", "m s-1").axes[0].get_xscale() == "linear"
