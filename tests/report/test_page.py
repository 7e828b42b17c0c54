"""The page, read as a browser reads it: by its elements."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from written_run import WrittenRun, whole_run

from hookloop.cli import main
from hookloop.report.command import report
from hookloop.report.page import write

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
EVIL = "<script>alert(1)</script>\"'&$x{y}"
SVG = "data:image/svg+xml;base64,"


class Page(HTMLParser):
    """Elements, their attributes and texts; fails where tags are not balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements with this *tag*."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        """Everything that is read, but the style."""
        return " ".join(data for tag, data in self.texts if tag != "style")


def page_of(run: WrittenRun) -> Page:
    return Page(write(run.directory))


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return WrittenRun(tmp_path / "run")


def test_the_page_stands_alone(run: WrittenRun) -> None:
    """No script, no address but data and places in the page, and a policy that forbids others."""
    page = page_of(whole_run(run))
    assert page.of("script") == []
    addresses = [
        a for _, attributes in page.elements for k, a in attributes.items() if k in {"src", "href", "srcset"}
    ]
    assert addresses
    assert all(address and address.startswith(("data:", "#")) for address in addresses)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not re.search(r"url\(|@import", page.source)
    (policy,) = [m for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy["content"]).startswith("default-src 'none'")


def test_the_page_can_be_read_without_seeing_it(run: WrittenRun) -> None:
    """Images have words, table headers a scope, sections a name, and links lead somewhere."""
    whole_run(WrittenRun(run.directory / "evaluations" / "best"))
    page = page_of(whole_run(run))
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("img")) > 8
    assert all(len(str(image["alt"])) > 10 for image in page.of("img"))
    assert page.of("th")
    assert all(header["scope"] in {"col", "row", "rowgroup"} for header in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))
    places = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(places)) == len(places)
    targets = {str(link["href"]).removeprefix("#") for link in page.of("a")}
    assert targets == set(places) == {section["aria-labelledby"] for section in page.of("section")}


def test_scores_stand_beside_their_intervals_and_baselines(run: WrittenRun) -> None:
    """By variable, with what they mean and which direction is good."""
    words = page_of(whole_run(run)).words
    assert "CRPS (fair)" in words
    assert "Smaller is better." in words
    assert "0.2000 0.1500 to 0.2500 0.4000 50 % better" in words  # 1 - 0.2 / 0.4
    assert "t2m" in words
    assert "pr" in words
    assert "after epoch 3, step 30" in words


def test_a_mean_over_one_variable_is_not_said_twice(run: WrittenRun) -> None:
    """Over two it has a row of its own."""
    one = {"inference/crps_relative/x": 0.5, "inference/crps_relative": 0.5}
    run.metrics({"step": 1, "epoch": 1, **one})
    assert "all variables" not in page_of(run).words
    run.metrics({"step": 1, "epoch": 1, **one, "inference/crps_relative/y": 0.5})
    assert "all variables" in page_of(run).words


@pytest.mark.parametrize(
    ("high", "words", "colours"), [(0.98, "5 % better", 2), (1.02, "5 % better, within the interval", 0)]
)
def test_a_baseline_is_beaten_where_the_ratio_to_it_says_so(
    run: WrittenRun, high: float, words: str, colours: int
) -> None:
    """The CRPS and its ratio to the baseline say one thing; without the ratio's interval nothing is coloured."""
    run.metrics(
        {
            "step": 1,
            "epoch": 1,
            "inference/crps/x": 1.9,
            "inference/crps_low/x": 1.0,
            "inference/crps_high/x": 3.0,
            "inference/mae_baseline/x": 2.0,
            "inference/crps_relative/x": 0.95,
            "inference/crps_relative_low/x": 0.9,
            "inference/crps_relative_high/x": high,
            "inference/rmse/x": 0.5,
            "inference/rmse_low/x": 0.4,
            "inference/rmse_high/x": 0.6,
            "inference/rmse_baseline/x": 1.0,
        }
    )
    page = page_of(run)
    assert page.words.count(words) == 2
    assert "50 % better" in page.words
    assert len([css for css in page.of("span") if css.get("class") == "good"]) == colours


def test_where_there_are_no_intervals_the_page_says_why(run: WrittenRun) -> None:
    """And the scores that matter are among the main ones all the same."""
    run.metrics({"step": 1, "epoch": 1, "inference/crps/x": 1.0, "inference/tail_error/x": 0.5})
    page = page_of(run)
    assert "There are no intervals: they take cases of five days or more." in page.words
    assert "All other scores" not in page.words


def test_an_older_run_without_intervals_has_no_empty_columns(run: WrittenRun) -> None:
    """Nor has one without baselines, sets or lead times."""
    run.metrics({"step": 1, "epoch": 1, "inference/crps/x": 0.5, "inference/error": 0.5})
    page = page_of(run)
    headers = [data for tag, data in page.texts if tag == "th"]
    assert headers[:2] == ["Variable", "Score"]
    assert not {"95 % interval", "Baseline", "Against the baseline", "Set", "Lead time"} & set(headers)


def test_sets_and_lead_times_are_told_apart(run: WrittenRun) -> None:
    """Each set has its rows; lead times have curves, and rows among the other scores."""
    scores: dict[str, float] = {"inference/error": 1.0}
    for name in ("summer", "winter"):
        scores |= {f"inference/{name}/error": 1.0, f"inference/{name}/crps/x": 2.0}
        scores |= {f"inference/{name}/lead/{hours}h/crps/x": float(hours) for hours in (12, 6)}
    run.metrics({"step": 1, "epoch": 1, **scores})
    page = page_of(run)
    headers = [data for tag, data in page.texts if tag == "th"]
    assert {"Set", "Lead time"} <= set(headers)
    assert "CRPS (fair) by lead time" in page.words
    alt = [str(image["alt"]) for image in page.of("img")]
    assert (
        "x, summer, this run: from 6 at lead time in hours 6 to 12 at lead time in hours 12, lowest 6 at 6."
        in alt
    )


@pytest.mark.parametrize(("minutes", "last"), [(10, "0.5"), (90, "4.5"), (360, "18")])
def test_lead_times_as_forecast_writes_them_are_hours(run: WrittenRun, minutes: int, last: str) -> None:
    """Also those that are no whole hours, such as 1h30m: three steps of *minutes*, which are *last* hours."""
    from hookloop.plugins.forecast.states import duration

    scores = {f"inference/lead/{duration(k * minutes)}/crps/x": float(k) for k in (1, 2, 3)}
    run.metrics({"step": 1, "epoch": 1, "inference/error": 1.0, "inference/crps/x": 2.0, **scores})
    page = page_of(run)
    (alt,) = [str(image["alt"]) for image in page.of("img") if "lead time" in str(image["alt"])]
    assert alt.startswith("x, this run: from 1 at lead time in hours")
    assert f"to 3 at lead time in hours {last}," in alt


def test_lead_times_that_are_no_durations_are_said(run: WrittenRun) -> None:
    """The others are drawn all the same."""
    scores = {f"inference/lead/{lead}/crps/x": 1.0 for lead in ("6h", "12h", "week 2")}
    run.metrics({"step": 1, "epoch": 1, "inference/crps/x": 2.0, **scores})
    page = page_of(run)
    assert "CRPS (fair) by lead time" in page.words
    assert "no durations such as 6h or 1h30m: lead times week 2." in page.words


def test_curves_by_lead_time_stand_beside_one_another(run: WrittenRun) -> None:
    """As all curves do: in a grid, not a small one on a line of its own."""
    names = ("crps", "rmse")
    scores = {f"inference/lead/{lead}h/{name}/x": 1.0 for lead in (6, 12) for name in names}
    run.metrics({"step": 1, "epoch": 1, **{f"inference/{name}/x": 1.0 for name in names}, **scores})
    source = write(run.directory).read_text()
    (grid,) = re.findall(
        r"By lead time</h3>\s*(<div class=.curves.>.*?</figure>\s*</div>)", source, re.DOTALL
    )
    assert grid.count("<figure") == 2


def test_units_stand_beside_the_variable_where_a_score_has_them(run: WrittenRun) -> None:
    """In tables and on axes; a ratio has none."""
    run.write("figures/units.json", '{"pr": "mm h-1"}')
    page = page_of(whole_run(run))
    rows = re.findall(r'<th scope="row">(pr|t2m)(.*?)</th>', page.source)
    assert rows.count(("pr", ' <span class="soft">(mm h⁻¹)</span>')) == 1  # CRPS
    assert rows.count(("pr", "")) == 1  # the spread-skill ratio
    assert rows.count(("t2m", "")) == 2  # of which no units are known
    assert any(str(image["alt"]).startswith("pr, this run, in mm h⁻¹: from") for image in page.of("img"))


def test_the_loss_by_noise_level_does_not_flood_the_curves(run: WrittenRun) -> None:
    """It has a figure; its ten series are no curves of training, nor are losses of single variables."""
    noise = {f"val/loss_by_noise/{n:02d}_sigma_{n}": 1.0 for n in range(1, 11)}
    losses = {"val/loss": 1.0, "val/loss/x": 1.0, "val/alps/loss": 1.0, **noise}
    run.metrics(*({"step": step, "epoch": step, **losses} for step in (1, 2)))
    (alt,) = [str(image["alt"]) for image in page_of(run).of("img")]
    assert alt.count("lowest") == 2
    assert "all validation sets: from" in alt
    assert "validation set alps: from" in alt


def test_curves_are_there_for_light_and_for_dark_pages(run: WrittenRun) -> None:
    """Two well-formed images each, with the same words for those who see neither."""
    from xml.etree import ElementTree as ET

    page = page_of(whole_run(run))
    sources, images = page.of("source"), [i for i in page.of("img") if str(i["src"]).startswith(SVG)]
    assert len(sources) == len(images) >= 5
    assert {source["media"] for source in sources} == {"(prefers-color-scheme: dark)"}
    drawn = [str(i["src"]) for i in images] + [str(source["srcset"]) for source in sources]
    assert len(set(drawn)) == len(drawn)
    for uri in drawn:
        root = ET.fromstring(base64.b64decode(uri.removeprefix(SVG)))  # noqa: S314 - our own
        assert root.tag.endswith("svg")
    assert any(
        "validation: from 1 at epoch 0 to 0.25 at epoch 3, lowest 0.25 at 3." in str(i["alt"]) for i in images
    )


def test_values_that_are_not_finite_are_said(run: WrittenRun) -> None:
    """A gap in a curve alone could be overlooked."""
    run.write(
        "metrics.jsonl",
        '{"step": 1, "epoch": 1, "val/loss": 1.0}\n{"step": 2, "epoch": 2, "val/loss": NaN}\n'
        '{"step": 3, "epoch": 3, "val/loss": Infinity, "inference/crps/x": NaN}\n',
    )
    words = page_of(run).words
    assert "2 values are not finite." in words
    assert "NaN" in words


def test_figures_are_embedded_with_captions(run: WrittenRun) -> None:
    """By variable, examples first, as the files' own bytes."""
    page = page_of(whole_run(run))
    images = [image for image in page.of("img") if str(image["src"]).startswith("data:image/png;base64,")]
    assert len(images) == 4
    content = (run.directory / "figures" / "pr_2020-01-01T00.png").read_bytes()
    assert base64.b64decode(str(images[0]["src"]).partition(",")[2]) == content
    assert [str(image["alt"]).partition(".")[0] for image in images] == [
        "Example 2020-01-01T00 of pr",
        "Rank histogram of pr",
        "Example 2020-01-01T00 of t2m",
        "Rank histogram of t2m",
    ]


def test_best_checkpoints_say_by_what_and_when(run: WrittenRun) -> None:
    """And whether the file is there."""
    whole_run(run)
    assert "inference/error 0.6000 after epoch 3, step 30 not there" in page_of(run).words
    (run.directory / "checkpoints").mkdir()
    (run.directory / "checkpoints" / "best_inference.ckpt").write_bytes(b"x" * 2**21)
    assert "2.0 MiB" in page_of(run).words


def test_of_equal_scores_the_last_one_is_the_checkpoint(run: WrittenRun) -> None:
    """Since ties take the later; the best so far is logged again and again, which tells nothing."""
    run.write("config.yaml", "checkpoint: {best: {best: val/loss, tail: inference/tail_error}}\n")
    run.metrics(
        *(
            {"step": 10 * epoch, "epoch": epoch, "val/loss": loss, "best/best": best, "best/other": best}
            for epoch, loss, best in ((1, 0.5, 0.5), (2, 0.25, 0.25), (3, 0.25, 0.25), (4, 0.3, 0.25))
        )
    )
    words = page_of(run).words
    assert "best.ckpt val/loss 0.2500 after epoch 3, step 30" in words
    assert "other.ckpt not in the configuration 0.2500 after epoch 2, step 20" in words
    assert "tail.ckpt inference/tail_error never: that was not logged not there" in words


def test_a_checkpoint_that_was_never_chosen_is_said(run: WrittenRun) -> None:
    """Also where none was chosen at all: its metric was not logged, or there is no best yet."""
    run.write("config.yaml", "checkpoint: {best: {best: val/loss, tail: inference/tail_error}}\n")
    run.metrics({"step": 1, "epoch": 1, "val/loss": 1.0})
    words = page_of(run).words
    assert "best.ckpt val/loss not yet not there" in words
    assert "tail.ckpt inference/tail_error never: that was not logged not there" in words


def test_a_long_value_of_a_warning_is_cut(run: WrittenRun) -> None:
    """The log holds it whole."""
    keys = [f"key{n:03d}" for n in range(100)]
    run.log({"event": "metric.unmeasured", "level": "warning", "there": keys, "why": "because"})
    words = page_of(run).words
    assert "there: key000 key001" in words
    assert "key050" not in words
    assert "… (whole in log.jsonl), why: because" in words


def test_scores_that_choose_checkpoints_are_main_ones(run: WrittenRun) -> None:
    """Those of generation.error and checkpoint.best, whatever they are called; without intervals too."""
    run.write(
        "config.yaml", "generation: {error: own}\ncheckpoint: {best: {best_fss: inference/fss_1_5/pr}}\n"
    )
    names = ("fss_1_5", "own", "fss_1_9", "tail_error", "lsd_radial", "small_scale_energy")
    run.metrics({"step": 1, "epoch": 1, **{f"inference/{name}/pr": 1.0 for name in names}})
    page = page_of(run)
    main, _, others = page.words.partition("All other scores (1)")
    for title in ("above 1, 5 cells", "own", "Error of the tails", "(radial)", "Small-scale energy"):
        assert title in main
    assert "above 1, 9 cells" in others


def test_a_mean_over_one_variable_is_not_among_the_others_either(run: WrittenRun) -> None:
    """Nor with sets."""
    scores = {"rank_reliability": 0.1, "rank_reliability/pr": 0.1, "crps/pr": 1.0, "error": 1.0}
    run.metrics(
        {
            "step": 1,
            "epoch": 1,
            "inference/error": 1.0,
            **{f"inference/{name}/{key}": value for name in ("a", "b") for key, value in scores.items()},
        }
    )
    words = page_of(run).words
    assert "All other scores (2)" in words
    assert "all variables" not in words.partition("All other scores")[2].partition("Training")[0]


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ("[downscaling, ema]", "The baseline is bicubic interpolation."),
        ("[forecast]", "The baseline is persistence."),
    ],
)
def test_the_baseline_has_a_name(run: WrittenRun, plugins: str, words: str) -> None:
    """By the plugin that gives the task; where that is another, or there is no baseline, nothing is said."""
    baseline = {"inference/crps/x": 1.0, "inference/mae_baseline/x": 2.0}
    run.metrics({"step": 1, "epoch": 1, **baseline})
    run.write("config.yaml", f"plugins: {plugins}\n")
    assert words in page_of(run).words
    run.write("config.yaml", "plugins: [my_own]\n")
    assert "The baseline is" not in page_of(run).words
    run.write("config.yaml", f"plugins: {plugins}\n")
    run.metrics({"step": 1, "epoch": 1, "inference/crps/x": 1.0})
    assert "The baseline is" not in page_of(run).words


def test_two_inferences_are_points_at_whole_epochs(run: WrittenRun) -> None:
    """Neither a line between two values nor half an epoch means anything; a bias is never on a logarithmic axis."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    from hookloop.report.contents import read
    from hookloop.report.curves import LIGHT, _draw
    from hookloop.report.training import score_curves

    scores = {"bias": 0.1, "bias_low": 0.05, "bias_high": 0.2, "crps": 1.0, "mae_baseline": 2.0}
    timed = [{"step": 10 * n, "epoch": n, "epoch/total_seconds": 1.0} for n in (1, 2, 3)]
    run.metrics(
        *timed,
        *(
            {"step": 10 * n, "epoch": n, **{f"inference/{k}/x": v * 50**n for k, v in scores.items()}}
            for n in (1, 3)
        ),
    )
    scales = {}
    for curve in score_curves(read(run.directory)):
        ax = Figure().subplots()
        _draw(ax, curve.panels[0], LIGHT)
        own = [line for line in ax.lines if to_rgb(line.get_color()) == to_rgb(LIGHT.colours[0])]
        assert {line.get_linestyle() for line in own} == {"None"}
        assert all(tick == round(tick) for tick in ax.get_xticks())
        scales[curve.title] = ax.get_yscale()
    assert scales == {"CRPS (fair)": "log", "Bias": "linear"}


def test_times_that_no_clock_can_tell_are_left_out_and_said(run: WrittenRun) -> None:
    """Not a traceback, nor a share of NaN."""
    run.write(
        "metrics.jsonl",
        '{"step": 1, "epoch": 1, "epoch/train_seconds": 30, "epoch/validation_seconds": NaN}\n'
        '{"step": 2, "epoch": 2, "epoch/train_seconds": 1e300, "epoch/inference_seconds": Infinity}\n'
        '{"step": 3, "epoch": 3, "epoch/train_seconds": -5}\n',
    )
    words = page_of(run).words
    assert "30.0 s in epochs that were finished and evaluations. Left out: 4 that are no times." in words
    assert "training 30.0 s 100 %" in words


def test_odd_values_make_a_page_all_the_same(run: WrittenRun) -> None:
    """The largest numbers there are, deep nesting, text where numbers are expected; it is said what was not read."""
    whole_run(run)
    odd = {
        "inference/crps/x": 1e308,
        "inference/mae_baseline/x": 5e-324,
        "val/loss": -1e308,
        "best/a": math.nan,
    }
    run.metrics(
        {"step": 0, "epoch": 0, **odd},
        {"step": 2**53 - 1, "epoch": 2**53 - 1, **odd, "val/loss": 1e308, "best/a": math.nan},
        {"step": math.inf, "epoch": 1},
        {"step": 1, "epoch": 1},
    )
    nested: object = "end"
    for _ in range(400):
        nested = [{"a": nested}]
    run.write("config.yaml", "checkpoint: {best: {a: [1]}}\nrun: []\n")
    run.write("environment.json", json.dumps({"starts": [{"x": nested}]}))
    run.log({"event": "odd", "level": "warning", "x": nested})
    words = page_of(run).words
    assert "1 line of metrics.jsonl could not be read." in words
    assert "x: a: a: a: …" in words


def test_time_is_told_by_phase(run: WrittenRun) -> None:
    """Shares of what was measured: three epochs of 30 and 10 seconds."""
    words = page_of(whole_run(run)).words
    assert "training 1 min 30 s 75 % validation 30.0 s 25 %" in words


def test_warnings_configuration_and_environment_are_there(run: WrittenRun) -> None:
    """With how often, as they are in the files."""
    words = page_of(whole_run(run)).words
    assert "figure.unwritten warning 2 ×" in words
    assert "path: b.png" in words
    assert "checkpoint: {best: {best_inference: inference/error}}" in words
    assert "Of the last of 2 starts." in words
    assert "2.13.0" in words


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "run.finished"}, "Finished"),
        ({"event": "run.stopped", "why": "the time limit is reached"}, "Stopped the time limit is reached"),
        ({"event": "run.failed", "error": "Diverged('loss')"}, "Failed Diverged('loss')"),
        ({"event": "checkpoint.saved"}, "Not ended it is running, or was killed"),
    ],
)
def test_the_state_is_said_first(run: WrittenRun, event: dict[str, str], words: str) -> None:
    """And why, where the log tells."""
    run.log(event)
    assert f"State {words}" in page_of(run).words


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "environment.json", "log.jsonl"])
def test_what_is_missing_is_said(run: WrittenRun, name: str) -> None:
    """A directory with one file makes a page whose every section has words."""
    run.write(name, "")
    page = page_of(run)
    for words in (
        "There was no inference",
        "No metrics were logged yet",
        "There are no figures",
        "None was chosen yet",
    ):
        assert words in page.words
    assert "No epoch was timed yet." in page.words


def test_evaluations_are_sections_of_their_own(run: WrittenRun) -> None:
    """With their scores and figures."""
    whole_run(run)
    whole_run(WrittenRun(run.directory / "evaluations" / "best"), variables=["z500"])
    page = page_of(run)
    assert "Evaluation: best" in page.words
    assert "Rank histogram of z500" in page.words


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """Of variables, files, options and events: nothing of them becomes an element."""
    run = whole_run(WrittenRun(tmp_path / "a<b>&'$"), variables=["x" + EVIL.replace("/", "")])
    whole_run(WrittenRun(run.directory / "evaluations" / "<i>&"))
    run.log({"event": EVIL, "level": "warning", EVIL: EVIL}, {"event": "run.failed", "error": EVIL})
    run.write("config.yaml", f"a: {json.dumps(EVIL)}\n")
    run.write("environment.json", json.dumps({"starts": [{EVIL: {EVIL: [EVIL]}}, {"command": EVIL}]}))
    run.figure('"><script>x.png')
    page = page_of(run)
    assert page.of("script") == page.of("i") == []
    assert EVIL in page.words
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_the_page_is_whole_or_not_there(run: WrittenRun) -> None:
    """A second one takes the place of the first, and nothing is left beside it."""
    first = write(whole_run(run).directory).read_bytes()
    assert write(run.directory).stat().st_size == pytest.approx(len(first), rel=0.01)
    assert not list(run.directory.glob(".report*"))


def test_the_command_prints_where_the_page_is(run: WrittenRun) -> None:
    """And nothing else."""
    run.log({"event": "run.finished"})
    answer = CliRunner().invoke(report, [str(run.directory)])
    assert answer.output == f"{run.directory / 'report.html'}\n"
    assert answer.exit_code == 0


def test_the_command_line_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line."""
    with pytest.raises(SystemExit) as left:
        main(["report", str(tmp_path)])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(
        f"{tmp_path}: no run's directory; expected one with metrics.jsonl"
    )


def test_a_page_that_cannot_be_put_in_its_place_is_said(run: WrittenRun) -> None:
    """Here because something else is there; nothing half-written is left."""
    from hookloop.errors import HookloopError

    (whole_run(run).directory / "report.html").mkdir()
    with pytest.raises(HookloopError, match=r"report.html: cannot be written"):
        write(run.directory)
    assert not list(run.directory.glob(".report*"))
