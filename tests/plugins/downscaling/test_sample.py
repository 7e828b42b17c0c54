"""Sample data of each kind: files that open as pairs, and a configuration that runs as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from click.testing import CliRunner

from hookloop.data.options import StaticConfig
from hookloop.data.statics import load_statics
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import orographic, precipitation
from hookloop.plugins.downscaling.commands import init_downscaling
from hookloop.plugins.downscaling.data_options import SplitConfig
from hookloop.plugins.downscaling.pairs import open_pair
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.sample_kinds import RECIPES
from hookloop.plugins.downscaling.stores import held
from hookloop.plugins.downscaling.synthetic import Recipe, block_mean

KINDS = list(RECIPES)
SMALL = {
    "run.max_epochs": 1,
    "run.validate_every": "1 epoch",
    "downscaling.train.batch_size": 8,
    "downscaling.model.backbone": "{name: unet, channels: 8, multipliers: [1, 2], blocks: 1}",
    "downscaling.sampler.steps": 3,
    "generation.members": 3,
    "generation.windows": 4,
}


def made(directory: Path, kind: str) -> Path:
    """Sample data, 16x16 on 4x4, of 30 and 26 hours."""
    write(directory, RECIPES[kind](n=16, factor=4), 30, 26, seed=1)
    return directory


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "units", "statics"),
    [
        ("temperature", ["t2m"], "t2m", "K", ["terrain", "land"]),
        ("precipitation", ["pr"], "pr", "mm h-1", []),
        ("orographic", ["pr", "u", "v"], "pr", "mm h-1", ["terrain"]),
    ],
)
def test_files_are_what_the_configuration_says(
    kind: str, inputs: list[str], output: str, units: str, statics: list[str], tmp_path: Path
) -> None:
    """Training and validation pairs open with the model's variables, coarse is the block mean, statics fit."""
    config = yaml.safe_load((made(tmp_path, kind) / "cfg.yaml").read_text())["downscaling"]
    times = []
    assert (config["model"]["inputs"], config["model"]["outputs"]) == (inputs, [output])
    for split, n in (("train", 30), ("validation", 26)):
        pair = open_pair(SplitConfig(**config[split]), inputs, [output])
        assert (len(pair.times), pair.coarse.shape, pair.fine.shape) == (n, (4, 4), (16, 16))
        assert pair.units[output] == units
        if kind != "orographic":
            np.testing.assert_array_equal(pair.fine_grid.latitude, 46.25 + np.arange(16) / 2)
        assert not pair.notes
        times.append(pair.times)
        fields = held(pair, torch.device("cpu"))
        own = fields.coarse[:, [0]].double().numpy()
        np.testing.assert_allclose(own, block_mean(fields.fine.double().numpy(), 4), rtol=1e-6)
        if kind != "temperature":
            fine = fields.fine.numpy()
            assert fine.min() == 0
            assert 0.2 < (fine == 0).mean() < 0.9
    assert not np.isin(*times).any()
    named = [static["variable"] for static in config.get("statics", [])]
    assert named == statics
    loaded = load_statics([StaticConfig(**static) for static in config.get("statics", [])], pair.fine_grid)
    assert loaded.shape == (len(statics), 16, 16)


def test_exact_answer_is_written_beside(tmp_path: Path) -> None:
    """exact.nc holds the answer whose scores on the validation data are in exact.json."""
    write(tmp_path, Recipe(n=16, factor=4), 2, 6, seed=1)
    scores = json.loads((tmp_path / "exact.json").read_text())
    exact = xr.load_dataset(tmp_path / "exact.nc", engine="h5netcdf")
    truth = xr.load_dataset(tmp_path / "validation_fine.nc", engine="h5netcdf")
    error = exact.t2m_mean - truth.t2m
    assert float(np.sqrt((error.astype(float) ** 2).mean())) == pytest.approx(scores["rmse"], rel=1e-4)
    spread = float(np.sqrt((exact.t2m_std.astype(float) ** 2).mean()))
    assert spread / scores["rmse"] == pytest.approx(scores["spread_skill"], rel=1e-4)


def test_distribution_is_written_beside_precipitation(tmp_path: Path) -> None:
    """distribution.json is what the formulae say."""
    recipe = RECIPES["precipitation"](n=16, factor=4)
    assert isinstance(recipe, precipitation.Recipe)
    written = json.loads((made(tmp_path, "precipitation") / "distribution.json").read_text())
    assert written == precipitation.distribution(recipe)


def test_cells_over_terrain_are_as_large_as_the_model_has_them(tmp_path: Path) -> None:
    """Coordinates of the orographic kind put cells as far apart, north and east, as the waves were computed for."""
    data = xr.load_dataset(made(tmp_path, "orographic") / "validation_fine.nc", engine="h5netcdf")
    degree = np.pi * 6371e3 / 180
    cell = orographic.Recipe(n=16).cell
    middle = np.cos(np.radians(data.latitude.mean().item()))
    np.testing.assert_allclose(np.diff(data.latitude) * degree, cell, rtol=1e-4)
    np.testing.assert_allclose(np.diff(data.longitude) * degree * middle, cell, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_arrays(kind: str, tmp_path: Path) -> None:
    """Arrays are equal for equal seeds and differ for others, and training is not validation."""
    fields = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, RECIPES[kind](n=8, factor=2), 3, 3, seed=seed)
        for split, suffix in (("train", "zarr"), ("validation", "nc")):
            engine = "zarr" if suffix == "zarr" else "h5netcdf"
            for side in ("fine", "coarse"):
                data = xr.load_dataset(tmp_path / name / f"{split}_{side}.{suffix}", engine=engine)
                fields[name, split, side] = {key: value.to_numpy().tobytes() for key, value in data.items()}
    for side in ("fine", "coarse"):
        assert fields["a", "train", side] == fields["b", "train", side]
        assert fields["a", "validation", side] == fields["b", "validation", side]
        assert fields["a", "train", side] != fields["c", "train", side]
        assert fields["a", "train", side] != fields["a", "validation", side]


def test_the_command_offers_all_kinds(tmp_path: Path) -> None:
    """--kind takes the kinds there are, and temperature is what comes without."""
    (option,) = (each for each in init_downscaling.params if each.name == "kind")
    assert list(option.type.choices) == KINDS
    small = ["--size", "8", "--factor", "2", "--times", "2", "--validation-times", "2"]
    for kind, arguments in (("temperature", []), ("precipitation", ["--kind", "precipitation"])):
        result = CliRunner().invoke(init_downscaling, [str(tmp_path / kind), *small, *arguments])
        assert result.exit_code == 0, result.output
        assert (tmp_path / kind / "exact.json").exists() == (kind == "temperature")


def test_command_writes_and_says_how_to_go_on(tmp_path: Path) -> None:
    """The command fills a new directory, quotes what it prints, and its YAML survives odd names."""
    target = tmp_path / "it's new"
    arguments = [str(target), "--size", "8", "--factor", "2", "--times", "3", "--validation-times", "2"]
    result = CliRunner().invoke(init_downscaling, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    check, run = result.output.splitlines()[-2:]
    assert check.strip().startswith("hookloop config check")
    assert run.strip().startswith("hookloop run")
    config = yaml.safe_load((target / "cfg.yaml").read_text())
    assert config["plugins"] == ["downscaling", "ema"]
    assert config["run"]["dir"] == f"{target}/run"
    assert "8 x 8 fine, 4 x 4 coarse" in (target / "cfg.yaml").read_text()


def test_a_size_that_the_terrain_does_not_have(tmp_path: Path) -> None:
    """The error comes before anything is written."""
    arguments = [str(tmp_path / "new"), "--kind", "orographic", "--size", "256"]
    result = CliRunner().invoke(init_downscaling, arguments)
    assert isinstance(result.exception, HookloopError)
    assert "expected 230 at most" in str(result.exception)
    assert not (tmp_path / "new").exists()


def test_directory_in_use(tmp_path: Path) -> None:
    """A directory with something in it is left alone."""
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(HookloopError, match="expected a new or empty directory"):
        write(tmp_path, Recipe(n=8, factor=2), 1, 1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    """A file in the way is named."""
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(HookloopError, match="file: cannot be made"):
        write(path, Recipe(n=8, factor=2), 1, 1, seed=0)


@pytest.mark.parametrize("kind", ["precipitation", "orographic"])
def test_configuration_runs_as_it_is(kind: str, tmp_path: Path) -> None:
    """It is sound, and an epoch of it with a tiny network is trained, generated, scored and drawn."""
    config = made(tmp_path / "data", kind) / "cfg.yaml"
    hookloop = [sys.executable, "-m", "hookloop"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    check = subprocess.run(
        [*hookloop, "config", "check", config], env=environment, check=False, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr
    assert "sound" in check.stdout
    overrides = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    run = subprocess.run(
        [*hookloop, "run", config, *overrides], env=environment, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    lines = (tmp_path / "data" / "run" / "metrics.jsonl").read_text().splitlines()
    scores = {key: value for line in lines for key, value in json.loads(line).items()}
    assert 0 < scores["inference/crps/pr"] < scores["inference/mae_baseline/pr"] * 3
    assert scores["inference/error"] == scores["inference/crps_relative/pr"]
    assert list((tmp_path / "data" / "run" / "figures").glob("pr_*.png"))
