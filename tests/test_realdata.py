"""The real ERA5 sample, through the whole command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ERA5_UK", ROOT.parent / "shared" / "data" / "era5_uk"))

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason="the ERA5 sample is not here; set ERA5_UK to its directory"),
]


def test_learns_from_real_fields(tmp_path: Path) -> None:
    """A short version of examples/era5_uk.yaml beats bicubic interpolation on the test days.

    Two epochs of a tiny network; the files have descending latitude and a longitude that crosses 0°.
    """
    overrides = {
        "run.max_epochs": 2,
        "downscaling.model.backbone.channels": 16,
        "downscaling.model.backbone.dropout": 0.0,
        "optimization.lr": 4e-3,
        "optimization.scheduler.warmup": 10,
        "ema.decay": 0.9,
        "generation.members": 4,
        "generation.windows": 12,
        "generation.figures": 1,
        "train_evaluation.batches": 1,
    }
    command = [
        sys.executable,
        "-m",
        "hookloop",
        "run",
        "--plugins",
        "downscaling,ema",
        "--dir",
        str(tmp_path / "run"),
    ]
    for key, value in overrides.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / "era5_uk.yaml")],
        cwd=tmp_path,
        env={**os.environ, "ERA5_UK": str(DATA)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = next(line for line in lines if "inference/error" in line)
    assert scores["step"] == 2 * 33  # 22 days of 24 hours in batches of 16
    assert scores["inference/crps_relative/t2m"] < 1.0
    assert (tmp_path / "run" / "checkpoints" / "best_inference.ckpt").exists()
    assert list((tmp_path / "run" / "figures").glob("t2m_*.png"))
