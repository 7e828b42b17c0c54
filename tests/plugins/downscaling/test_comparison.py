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
