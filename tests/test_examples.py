"""The configurations in examples/, on files laid out as the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

EXAMPLES = Path(__file__).parents[1] / "examples"
PREDICTORS = [f"{name}_{level}" for name in "uvtqz" for level in (850, 700, 500)]
DAYS = np.concatenate([np.arange(f"{year}-01-01", f"{year}-01-07", dtype="M8[D]") for year in (1961, 1975)])


def write_cordex(directory: Path, domain: str, gcm: str, hour: int) -> None:
    """Write a domain of CORDEX-ML-Bench as it is unpacked: six days of 1961 and of 1975, random fields.

    Predictors are on 16×16 cells of 2° at 12 UTC; the Alps' targets have rows and columns on a Lambert grid.
    """
    noise = np.random.default_rng(0)
    train = directory / f"{domain}_domain" / "train" / "ESD_pseudo_reality"
    (train / "predictors").mkdir(parents=True)
    (train / "target").mkdir()
    n = len(DAYS)
    noon = (DAYS + np.timedelta64(12, "h")).astype("M8[ns]")
    degrees = {"units": "degrees_north", "standard_name": "latitude"}, {"units": "degrees_east"}
    xr.Dataset(
        {
            name: (("time", "lat", "lon"), noise.standard_normal((n, 16, 16), np.float32))
            for name in PREDICTORS
        },
        {
            "time": noon,
            "lat": ("lat", (30.0 if domain == "ALPS" else -50.0) + 2 * np.arange(16), degrees[0]),
            "lon": ("lon", (-5.0 if domain == "ALPS" else 150.0) + 2 * np.arange(16), degrees[1]),
        },
    ).to_netcdf(train / "predictors" / f"{gcm}_1961-1980.nc", engine="h5netcdf")
    rows, columns = np.mgrid[0:128, 0:128]
    plane = ("y", "x") if domain == "ALPS" else ("lat", "lon")
    places = (
        {"lat": (plane, 40.0 + 0.1 * rows), "lon": (plane, 5.0 + 0.1 * columns + 0.01 * rows)}
        if domain == "ALPS"
        else {"lat": -40.0 + 0.1 * np.arange(128), "lon": 160.0 + 0.1 * np.arange(128)}
    )
    rain = np.maximum(noise.gamma(0.3, 5.0, (n, 128, 128)) - 1, 0).astype(np.float32)
    heat = (290 + noise.standard_normal((n, 128, 128), np.float32)).astype(np.float32)
    xr.Dataset(
        {"pr": (("time", *plane), rain, {"units": "mm"}), "tasmax": (("time", *plane), heat, {"units": "K"})},
        {"time": (DAYS + np.timedelta64(hour, "h")).astype("M8[ns]"), **places},
    ).to_netcdf(train / "target" / f"pr_tasmax_{gcm}_1961-1980.nc", engine="h5netcdf")
    xr.Dataset({"orog": (plane, 100.0 * rows)}, places).to_netcdf(
        train / "predictors" / "Static_fields.nc", engine="h5netcdf"
    )


@pytest.mark.parametrize(("domain", "gcm", "hour"), [("ALPS", "CNRM-CM5", 12), ("NZ", "ACCESS-CM2", 0)])
def test_cordex_ml_bench_runs_as_it_is(tmp_path: Path, domain: str, gcm: str, hour: int) -> None:
    """Predictors by row and column over projected targets, at noon or midnight, are learnt and scored."""
    write_cordex(tmp_path / "data", domain, gcm, hour)
    small = {
        "run.max_epochs": 1,
        "downscaling.train.batch_size": 3,
        "downscaling.model.backbone": "{name: unet, channels: 8, multipliers: [1, 1], blocks: 1, attention: false}",
        "downscaling.sampler.steps": 2,
        "generation.epochs": '"-1:"',
        "generation.members": 2,
        "generation.windows": 2,
        "train_evaluation.batches": 1,
    }
    overrides = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "hookloop", "run", "--dir", str(tmp_path / "run"), *overrides]
    done = subprocess.run(
        [*command, str(EXAMPLES / "cordex_ml_bench.yaml")],
        cwd=tmp_path,
        env={**os.environ, "DATA": str(tmp_path / "data"), "DOMAIN": domain, "GCM": gcm},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = next(line for line in lines if "inference/error" in line)
    assert scores["step"] == 2  # six days in batches of three
    assert scores["inference/error"] == pytest.approx(
        (scores["inference/crps/pr"] + scores["inference/crps/tasmax"]) / 2
    )
    assert "inference/crps_relative/pr" not in scores
