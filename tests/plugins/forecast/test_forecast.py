"""The forecast plugin as a part of runs: its life cycle, that it learns, stops and goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from linear_forecast import NAMES, SHAPE, LinearModel, section, six_hourly, write_states

from hookloop import yamlfile
from hookloop.config import build
from hookloop.core import Run, evaluate, train
from hookloop.errors import ConfigError, HookloopError
from hookloop.files import load
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.forecast import Forecast
from hookloop.plugins.generation import Generation
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import LifeCycle, Recorder, events_of, fake_run, prepared

ROOT = Path(__file__).parents[3]
TINY = {"sampler": {"steps": 2}, "starts": 1, "n_forward_steps": 2}


def plugin(directory: Path, **changes: object) -> Forecast:
    document = yamlfile.Document({"forecast": section(directory, **changes)})  # type: ignore[dict-item]
    made = build(Forecast, document, "forecast")
    assert isinstance(made, Forecast)
    return made


class TestForecast(LifeCycle):
    plugin = Forecast

    @pytest.fixture(autouse=True)
    def _use(self, states_on_disk: Path) -> None:
        type(self).options = section(states_on_disk, **TINY)


def learning(states: Path, directory: Path, *others: object, **options: Any) -> Run:
    adam = OptimizationPlugin(optimizer="AdamW", lr=5e-3)
    return fake_run(directory, plugin(states, **TINY), adam, *others, **options)


def test_a_tiny_network_learns(states_on_disk: Path, tmp_path: Path) -> None:
    """The validation loss falls from 1, that of the untrained network, to below 0.9 in six epochs."""
    run = learning(
        states_on_disk,
        tmp_path,
        recorder := Recorder(),
        max_epochs=6,
        evaluate_before_training=True,
    )
    train(run)
    losses = list(recorder.metrics("val/loss").values())
    assert losses[0] == pytest.approx(1.0, abs=0.1)
    assert losses[-1] < 0.9  # type: ignore[operator]


def test_a_run_that_goes_on_is_bit_equal(states_on_disk: Path, tmp_path: Path) -> None:
    """Two epochs in one go, and stopped after each: the same weights, moments and scores."""
    logged: list[dict[int, object]] = []
    for name, segments in (("whole", [None]), ("parts", [1, 1])):
        own: dict[int, object] = {}
        for segment in segments:
            run = learning(
                states_on_disk,
                tmp_path / name,
                Checkpoint(),
                Generation(members=2, figures=0),
                recorder := Recorder(),
                max_epochs=2,
                segment_epochs=segment,
            )
            train(run)
            own |= recorder.metrics("inference/lead/12h/crps/t")
        logged.append(own)
    whole, parts = (load(tmp_path / name / "checkpoints" / "latest.ckpt") for name in ("whole", "parts"))
    assert whole["progress"] == parts["progress"]
    for part in ("model", "optimization"):
        torch.testing.assert_close(parts[part], whole[part], rtol=0, atol=0)
    assert logged[0] == logged[1]
    assert len(logged[0]) == 2


@pytest.mark.parametrize("option", ["n_forward_steps", "windows_per_start", "starts"])
def test_what_decides_the_score_does_not_change_within_a_run(
    states_on_disk: Path, tmp_path: Path, option: str
) -> None:
    """The best model is chosen by forecasts of one length from the same starts, as by the same validation data."""
    train(fake_run(tmp_path, plugin(states_on_disk, **TINY), Checkpoint(), max_epochs=2, segment_epochs=1))
    other = plugin(states_on_disk, **(TINY | {option: 3}))
    with pytest.raises(
        HookloopError, match=rf"made with other options: forecast\.{option} \(\d there, 3 now\)"
    ):
        train(fake_run(tmp_path, other, Checkpoint(), max_epochs=2))


def test_figures_are_named_by_start_and_lead(states_on_disk: Path, tmp_path: Path) -> None:
    """When the forecast begins, and how far ahead the field is, once each."""
    evaluate(prepared(tmp_path, plugin(states_on_disk, **TINY), Generation(members=2, figures=1)))
    found = [path.name for path in tmp_path.rglob("t_2021-01-01*.png")]
    assert found == ["t_2021-01-01T00_00_12h.png"]


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_a_split_learns_the_same_wherever_it_lives(states_on_disk: Path, tmp_path: Path, cache: str) -> None:
    """Held, or read from its files by two processes: the same weights after two epochs."""
    weights = []
    for where in ("device", cache):
        split = {"fields": [str(states_on_disk / "train.zarr")], "cache": where, "workers": 2}
        run = fake_run(tmp_path / where, plugin(states_on_disk, train=split, **TINY), max_epochs=2)
        train(run)
        weights.append(run.task.model.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)


def test_every_split_can_be_inferred(states_on_disk: Path, tmp_path: Path) -> None:
    """A named validation set has forecasts and scores of its own."""
    others = {
        "late": {"fields": [str(states_on_disk / "validation.zarr")], "time": ["2021-01-04", "2021-01-06"]}
    }
    generation = build(
        Generation,
        yamlfile.Document({"g": {"members": 2, "figures": 0, "sets": {"validation": {}, "late": {}}}}),
        "g",
    )
    metrics = evaluate(prepared(tmp_path, plugin(states_on_disk, validation_sets=others, **TINY), generation))
    assert {"inference/late/lead/6h/crps/q", "inference/validation/lead/12h/crps/t"} <= metrics.keys()


def test_the_baseline_is_persistence(states_on_disk: Path, tmp_path: Path) -> None:
    """The baseline's error at each lead is the mean distance from the state at the start."""
    made = plugin(states_on_disk, sampler={"steps": 2}, n_forward_steps=2)
    metrics = evaluate(prepared(tmp_path, made, Generation(members=2, figures=0)))
    fields = xr.open_zarr(states_on_disk / "validation.zarr", consolidated=False)
    weights = np.cos(np.deg2rad(fields.latitude.values))
    weights = (weights / weights.mean())[:, None]
    starts = [*range(8), *range(10, 22)]
    for name in NAMES:
        values = fields[name].values.astype(np.float64)
        for steps, lead in ((1, "6h"), (2, "12h")):
            distance = np.mean([np.abs(values[s + steps] - values[s]) * weights for s in starts])
            assert metrics[f"inference/lead/{lead}/mae_baseline/{name}"] == pytest.approx(distance, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"forcing": ["t"]}}, r"state and forcing: t found more than once"),
        ({"model": {"loss_weights": {"f": 1.0}}}, r"loss_weights: f not forecast; expected some of t, q"),
        ({"fill": {"sst": 0.0}}, r"fill: sst neither state nor forcing"),
        ({"step": "0h"}, r"longer than nothing"),
        ({"step": "six hours"}, r"expected a duration such as 6h"),
        ({"n_forward_steps": 0}, r"n_forward_steps"),
        ({"validation_sets": {"train": {"fields": ["x"]}}}, r"expected names such as alps"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    states_on_disk: Path, changes: dict[str, Any], message: str
) -> None:
    """While the configuration is read, before any file is opened."""
    with pytest.raises(ConfigError, match=message):
        plugin(states_on_disk, **changes)


def test_missing_values_are_told_or_filled(tmp_path: Path) -> None:
    """NaN is refused, also in a split that is streamed and only looked at, unless something stands in for it."""
    linear = LinearModel()
    write_states(tmp_path / "train.zarr", linear.history(20), six_hourly(20))
    spoilt = linear.history(12, seed=1)
    spoilt["f"][3, 1, 2] = np.nan
    write_states(tmp_path / "validation.zarr", spoilt, six_hourly(12, "2021-01-01T00"))
    for cache in ("ram", "none"):
        split = {"fields": [str(tmp_path / "validation.zarr")], "cache": cache, "workers": 0}
        run = fake_run(tmp_path / cache, plugin(tmp_path, validation=split))
        with pytest.raises(HookloopError, match=r"variable f: 1 of 288 values .* NaN.*2021-01-01T18:00"):
            train(run)
        filled = fake_run(tmp_path / f"{cache}2", plugin(tmp_path, validation=split, fill={"f": 0.0}, **TINY))
        train(filled)
        assert filled.progress.epoch == 1


def test_times_that_are_learnt_too_are_told(states_on_disk: Path, tmp_path: Path) -> None:
    """A validation split within the training times is warned of."""
    split = {"fields": [str(states_on_disk / "train.zarr")], "time": ["2020-01-02", "2020-01-04"]}
    run = fake_run(tmp_path, plugin(states_on_disk, validation=split, **TINY))
    train(run)
    assert [event["times"] for event in events_of(run) if event["event"] == "data.learnt_too"] == ["12 of 12"]


def test_other_grids_are_refused(states_on_disk: Path, tmp_path: Path) -> None:
    """What is looked at lies on the grid that is learnt."""
    fields = xr.open_zarr(states_on_disk / "validation.zarr", consolidated=False)
    fields.assign_coords(longitude=fields.longitude + 5).drop_encoding().to_zarr(
        tmp_path / "moved.zarr", consolidated=False
    )
    run = fake_run(tmp_path, plugin(states_on_disk, validation={"fields": [str(tmp_path / "moved.zarr")]}))
    with pytest.raises(
        HookloopError, match=r"forecast\.validation: grid 4x6 .*expected that of forecast\.train"
    ):
        train(run)


def test_places_without_coordinates_have_no_features_of_them(states_on_disk: Path, tmp_path: Path) -> None:
    """On rows and columns the hour, the latitude and the longitude are unknown."""
    fields = xr.open_zarr(states_on_disk / "train.zarr", consolidated=False)
    plain = fields.rename(latitude="y", longitude="x").drop_vars(["y", "x"]).drop_encoding()
    plain.to_zarr(tmp_path / "plain.zarr", consolidated=False)
    options = section(states_on_disk, model={"features": ["season", "hour"]}, **TINY)
    options |= {"train": {"fields": [str(tmp_path / "plain.zarr")]}, "validation": None}
    made = build(Forecast, yamlfile.Document({"forecast": options}), "forecast")  # type: ignore[dict-item]
    with pytest.raises(HookloopError, match=r"forecast\.model\.features: hour: rows and columns"):
        train(fake_run(tmp_path, made))


def _yaml_of(page: Path) -> dict[str, Any]:
    found = re.search(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    document = yaml.safe_load(found[1])
    assert isinstance(document, dict)
    return document


def test_the_documented_configuration_runs(tmp_path: Path) -> None:
    """What docs/forecast.md shows, with a smaller network and fewer epochs, trains, infers, stops and goes on."""
    assert "forecast" in {entry.name for entry in entry_points(group="hookloop")}
    document = _yaml_of(ROOT / "docs" / "forecast.md")
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    (tmp_path / "era5").mkdir()
    for year in (2017, 2018):
        _write_year(tmp_path / "era5" / f"{year}.nc", year)
    coordinates = xr.open_dataset(tmp_path / "era5" / "2017.nc", engine="h5netcdf").drop_dims("time").coords
    xr.Dataset(
        {"orography": (("latitude", "longitude"), np.arange(24.0).reshape(SHAPE))}, coordinates
    ).to_netcdf(tmp_path / "era5" / "static.nc", engine="h5netcdf")
    overrides = {
        "run.max_epochs": 2,
        "run.validate_every": "1 epoch",
        "forecast.train.fields": "[era5/2017.nc]",
        "forecast.validation.fields": "[era5/2018.nc]",
        "forecast.model.backbone.channels": 8,
        "forecast.model.backbone.multipliers": "[1, 2]",
        "forecast.sampler.steps": 2,
        "forecast.windows_per_start": 2,
        "forecast.starts": 2,
        "generation.members": 2,
        "generation.figures": 0,
    }
    base = [sys.executable, "-m", "hookloop", "run"]
    for key, value in overrides.items():
        base += ["--set", f"{key}={value}"]
    whole = [[*base, "--dir", "whole", "cfg.yaml"]]
    parts = [[*base, "--dir", "parts", "--set", "run.segment_epochs=1", "cfg.yaml"]] * 2
    for command in [*whole, *parts]:
        done = subprocess.run(
            command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    metrics = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in metrics if "inference/error" in line][-1]
    leads = {key.split("/")[2] for key in last if key.startswith("inference/lead/")}
    assert leads == {f"{6 * n}h" for n in range(1, 9)}
    saved = [load(tmp_path / name / "checkpoints" / "latest.ckpt") for name in ("whole", "parts")]
    for part in ("model", "optimization", "plugins"):
        _assert_equal(saved[1][part], saved[0][part])


def _assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if "seconds" not in str(key):
                _assert_equal(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_equal(one, other)
    elif attrs.has(type(expected)):
        _assert_equal(attrs.asdict(found), attrs.asdict(expected))
    else:
        assert found == expected


def _write_year(path: Path, year: int) -> None:
    """Write 40 six-hourly states and their forcing under the names of the page."""
    fields = LinearModel().history(40, seed=year)
    names = {"t": "t850", "q": "z500", "f": "insolation"}
    coordinates = {
        "time": six_hourly(40, f"{year}-01-01T00"),
        "latitude": ("latitude", np.linspace(-67.5, 67.5, SHAPE[0]), {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(SHAPE[1]) * 60.0, {"units": "degrees_east"}),
    }
    data = {
        names[name]: (("time", "latitude", "longitude"), values.astype(np.float32))
        for name, values in fields.items()
    }
    xr.Dataset(data, coordinates).to_netcdf(path, engine="h5netcdf")
