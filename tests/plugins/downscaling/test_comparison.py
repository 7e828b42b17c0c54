"""The table of scores that a run is compared by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.comparison import table

LINE = {
    "step": 30,
    "epoch": 2,
    "inference/error": 0.5,
    "inference/crps/t2m": 0.25,
    "inference/crps_relative/t2m": 0.5,
    "inference/rmse/t2m": 0.75,
    "inference/spread_skill/t2m": 0.875,
    "inference/mae_baseline/t2m": 0.5,
    "inference/rmse_baseline/t2m": 2.0,
}


def write(run: Path, *lines: dict[str, float]) -> Path:
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_shows_the_last_inference_beside_bicubic(tmp_path: Path) -> None:
    """Of several inferences the last one counts."""
    older = LINE | {"step": 15, "inference/crps/t2m": 9.0}
    text = table(write(tmp_path / "run", older, LINE, {"step": 30, "epoch": 2, "best/best": 1.0}), None)

    assert "after epoch 2, step 30" in text
    (crps,) = [line.split()[-2:] for line in text.splitlines() if line.startswith("CRPS (")]
    assert crps == ["0.2500", "0.5000"]
    assert str(tmp_path / "run" / "figures") in text


def test_shows_the_exact_answer_where_it_is_known(tmp_path: Path) -> None:
    """Each score has the exact posterior's own in the last column."""
    (tmp_path / "exact.json").write_text(json.dumps({"crps": 0.125, "spread_skill": 1.0}))
    text = table(write(tmp_path / "run", LINE), tmp_path / "exact.json")

    rows = {
        line.split()[0]: line.split()[-3:]
        for line in text.splitlines()
        if line.startswith(("CRPS (", "RMSE"))
    }
    assert rows["CRPS"] == ["0.2500", "0.5000", "0.1250"]
    assert rows["RMSE"] == ["0.7500", "2.0000", "-"]


def test_a_variable_without_baseline_has_its_own_scores_alone(tmp_path: Path) -> None:
    """There is nothing beside them, and nothing they are relative to."""
    line = {key: value for key, value in LINE.items() if "baseline" not in key and "relative" not in key}
    text = table(write(tmp_path / "run", line), None)
    cells = {row.split()[0]: row.split()[-2:] for row in text.splitlines() if row[:4] in ("CRPS", "RMSE")}
    assert cells["RMSE"] == ["0.7500", "-"]
    (relative,) = [row for row in text.splitlines() if row.startswith("CRPS relative")]
    assert relative.split()[-2:] == ["-", "-"]


def test_each_inference_set_has_its_scores(tmp_path: Path) -> None:
    """Those of each are under its name; the exact answer is of the validation data, and beside these alone."""
    sets = {
        key.replace("inference/", f"inference/{name}/"): value + more
        for name, more in (("wet", 1.0), ("validation", 0.0))
        for key, value in LINE.items()
        if key.startswith("inference/")
    }
    lead = {"inference/lead/6h/crps/t2m": 9.0, "inference/wet/lead/6h/crps/t2m": 9.0}
    (tmp_path / "exact.json").write_text(json.dumps({"crps": 0.125}))
    run = write(tmp_path / "run", sets | lead | {"step": 3, "epoch": 1, "inference/error": 1.0})
    _, wet, validation, _ = table(run, tmp_path / "exact.json").split("\n\n")
    assert wet.split()[:3] == ["wet:", "t2m", "model"]
    assert wet.splitlines()[1].split()[-2:] == ["1.2500", "1.5000"]
    assert validation.split()[:2] == ["validation:", "t2m"]
    assert validation.splitlines()[1].split()[-3:] == ["0.2500", "0.5000", "0.1250"]


@pytest.mark.parametrize(
    ("plugins", "name"),
    [(["downscaling", "ema"], "bicubic"), (["ema", "forecast"], "persistence"), (["my_task"], "baseline")],
)
def test_the_baseline_is_called_what_it_is(tmp_path: Path, plugins: list[str], name: str) -> None:
    """Known from the task of the run's configuration; of a task from elsewhere it is the baseline."""
    run = write(tmp_path / "run", LINE)
    (run / "config.yaml").write_text(json.dumps({"plugins": plugins}))
    text = table(run, None)
    assert text.splitlines()[2].split() == ["t2m", "model", name]
    assert f"CRPS relative to {name} " in text


def test_a_run_without_intervals_has_the_demo_s_table(tmp_path: Path) -> None:
    """To the space, as the README prints it."""
    run = write(tmp_path / "run", LINE)
    (run / "config.yaml").write_text("plugins: [downscaling]")
    (tmp_path / "exact.json").write_text(json.dumps({"crps": 0.125}))
    assert table(run, tmp_path / "exact.json").splitlines()[2:4] == [
        "t2m                                             model  bicubic    exact",
        "CRPS (of bicubic: its mean absolute error)     0.2500   0.5000   0.1250",
    ]


def test_intervals_are_shown_where_they_are_logged(tmp_path: Path) -> None:
    """In a column of their own, to three digits."""
    ends = {"inference/rmse_low/t2m": 0.70012, "inference/rmse_high/t2m": 128.4}
    text = table(write(tmp_path / "run", LINE | ends), None)
    (rmse,) = [row for row in text.splitlines() if row.startswith("RMSE")]
    assert rmse.endswith("0.7500   [0.700, 128]    2.0000")
    assert text.splitlines()[2].split() == ["t2m", "model", "95", "%", "interval", "baseline"]
    assert "95 %" not in table(write(tmp_path / "other", LINE), None)


def test_an_exact_answer_beside_the_run_is_hinted_at(tmp_path: Path) -> None:
    """Only where it is there and not given."""
    run = write(tmp_path / "run", LINE)
    assert "--exact" not in table(run, None)
    (tmp_path / "exact.json").write_text(json.dumps({"crps": 0.125}))
    assert f"--exact {tmp_path / 'exact.json'}" in table(run, None)
    assert "--exact" not in table(run, tmp_path / "exact.json")


def test_small_units_keep_their_digits(tmp_path: Path) -> None:
    """Precipitation in kg m⁻² s⁻¹ is some 1e-5, which four decimals would print as nothing."""
    line = LINE | {"inference/crps/t2m": 2.345e-5}
    (row,) = [
        row for row in table(write(tmp_path / "run", line), None).splitlines() if row.startswith("CRPS (")
    ]
    assert row.split()[-2] == "2.35e-05"  # the nearest even digit: 2.345 is stored as 2.34500…01


@pytest.mark.parametrize("lines", [[], [{"step": 1, "epoch": 0, "batch/loss": 1.0}]])
def test_a_run_without_inference_is_told(tmp_path: Path, lines: list[dict[str, float]]) -> None:
    """The message names the file and what was expected."""
    with pytest.raises(HookloopError, match=r"metrics.jsonl: no inference in it, expected"):
        table(write(tmp_path / "run", *lines), None)


def test_a_directory_that_is_no_run_is_told(tmp_path: Path) -> None:
    """A missing file is the user's mistake, not a traceback."""
    with pytest.raises(HookloopError, match=r"metrics.jsonl: cannot be read"):
        table(tmp_path, None)
