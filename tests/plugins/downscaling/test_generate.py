"""``hookloop generate``: the fields of a trained model without a fine truth, whole or gone on with, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import cftime
import numpy as np
import pytest
import torch
import xarray as xr
from attrs import evolve, frozen
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hookloop import files, locking, logs, yamlfile
from hookloop.cli import main
from hookloop.config import build
from hookloop.core import train
from hookloop.data.options import SourceConfig
from hookloop.errors import Diverged, HookloopError
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling import generate as module
from hookloop.plugins.downscaling.generate import Request, data_sources, generate, member_seed, parts
from hookloop.plugins.downscaling.generate_command import generate as command
from hookloop.plugins.downscaling.generated_store import encoded_times
from hookloop.plugins.downscaling.model import DownscalingTask
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.synthetic import Recipe
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.task import Window
from hookloop.testing import events_of, fake_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hookloop.core import Run

EVENTS = logs.events_to(None)
FIRST, LAST = "2020-01-02T02", "2020-01-02T04"
"""The validation begins on the second day."""


@frozen
class Trained:
    """A run that has learnt a little from files in *data*, and its plugin that averages."""

    data: Path
    run: Run
    ema: EMA

    @property
    def task(self) -> DownscalingTask:
        assert isinstance(self.run.task, DownscalingTask)
        return self.run.task

    @property
    def latest(self) -> Path:
        return self.run.dir / "checkpoints" / "latest.ckpt"

    @property
    def best(self) -> Path:
        return self.run.dir / "checkpoints" / "best.ckpt"

    @property
    def coarse(self) -> Path:
        return self.data / "validation_coarse.nc"

    def request(self, out: Path, **changes: object) -> Request:
        whole = {"data": [str(self.coarse)], "members": 3, "device": "cpu"} | changes
        return Request(out=out, **whole)  # type: ignore[arg-type]


def section(data: Path) -> dict[str, object]:
    backbone = {"name": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": False}
    return {
        "train": {
            "coarse": [str(data / "train_coarse.zarr")],
            "fine": [str(data / "train_fine.zarr")],
            "batch_size": 4,
        },
        "validation": {
            "coarse": [str(data / "validation_coarse.nc")],
            "fine": [str(data / "validation_fine.nc")],
        },
        "statics": [{"path": str(data / "static.nc"), "variable": "terrain"}],
        "model": {
            "inputs": ["t2m"],
            "outputs": ["t2m"],
            "features": ["hour", "season"],
            "backbone": backbone,
        },
        "sampler": {"steps": 4},
    }


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained on 16x16 fine and 4x4 coarse cells for 9 batches, at a rate at which weights and averages part."""
    directory = tmp_path_factory.mktemp("generate")
    data = directory / "data"
    write(data, Recipe(n=16, factor=4), 12, 6, 0)
    document = yamlfile.Document({"downscaling": section(data)})  # type: ignore[dict-item]
    plugin = build(Downscaling, document, "downscaling")
    others = EMA(decay=0.9), Checkpoint(ema_epochs="-1:"), OptimizationPlugin(lr=3e-3)
    run = fake_run(directory / "run", plugin, *others, max_epochs=3)
    train(run)
    return Trained(data, run, others[0])


def opened(path: Path) -> xr.Dataset:
    with xr.open_zarr(path) as data:
        loaded: xr.Dataset = data.load()
        return loaded


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_member_is_what_the_run_would_have_generated(trained: Trained, tmp_path: Path) -> None:
    """With the averages that the run validates with, whole fields in physical units, for every time and member."""
    generate(trained.latest, trained.request(tmp_path / "a.zarr"), EVENTS)
    found = opened(tmp_path / "a.zarr")
    stamps = [str(time) for time in found.time.values.astype("datetime64[ms]")]
    seeds = [[member_seed(0, stamp, 0, member) for member in range(3)] for stamp in stamps]
    model = trained.task.model.eval()
    with torch.no_grad():
        with trained.ema.lent():
            expected, _ = trained.task.predict_paired(None, Window("validation", range(6)), seeds)
        raw, _ = trained.task.predict_paired(None, Window("validation", range(6)), seeds)
    assert model.latitude.tolist() == found.latitude.values.tolist()
    assert np.isfinite(found.t2m.values).all()
    np.testing.assert_array_equal(found.t2m.values, expected.prediction["t2m"].numpy())
    assert np.abs(found.t2m.values - raw.prediction["t2m"].numpy()).max() > 1e-3  # or this test says nothing


def test_the_store_is_labelled_like_the_training_data(trained: Trained, tmp_path: Path) -> None:
    """It can be subtracted from the truth and written as netCDF."""
    generate(trained.best, trained.request(tmp_path / "a.zarr"), EVENTS)
    found = opened(tmp_path / "a.zarr")
    truth = xr.open_dataset(trained.data / "validation_fine.nc")
    assert found.t2m.dims == ("time", "member", "latitude", "longitude")
    assert found.t2m.attrs["units"] == "K"
    assert found.t2m.attrs["standard_name"] == "air_temperature"
    assert found.member.values.tolist() == [0, 1, 2]
    xr.testing.assert_equal(found.time.drop_attrs(), truth.time.drop_attrs())
    assert (found.t2m - truth.t2m).sizes == {"time": 6, "member": 3, "latitude": 16, "longitude": 16}
    assert found.t2m.encoding["chunks"] == (1, 1, 16, 16)
    found.drop_encoding().to_netcdf(tmp_path / "a.nc")


def test_the_averages_are_the_same_in_every_file(trained: Trained, tmp_path: Path) -> None:
    """``latest.ckpt`` holds them beside the weights, ``ema_epoch_0003.ckpt`` in their place."""
    for name in ("latest", "ema_epoch_0003"):
        generate(trained.latest.with_name(f"{name}.ckpt"), trained.request(tmp_path / name), EVENTS)
    assert contents(tmp_path / "latest" / "t2m") == contents(tmp_path / "ema_epoch_0003" / "t2m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "averages of ema in x.ckpt"),
        ({"plugins": {}}, "those of x.ckpt, not averaged"),
        ({"config": {"ema": {"validate": False}}}, "those of x.ckpt, not averaged"),
    ],
)
def test_which_weights_are_used_is_said(
    trained: Trained, tmp_path: Path, change: dict[str, dict[str, object]], said: str
) -> None:
    """In the store too; they are the averages only where the run validated with them."""
    state = files.load(trained.latest)
    state |= {"config": state["config"] | change.pop("config", {}), **change}  # type: ignore[operator]
    files.save(state, path := tmp_path / "x.ckpt")
    generate(path, trained.request(tmp_path / "a.zarr", times=[(FIRST, FIRST)]), EVENTS)
    assert said in opened(tmp_path / "a.zarr").attrs["source"]


def test_a_field_is_the_same_for_any_batch(trained: Trained, tmp_path: Path) -> None:
    """To rounding, alone as in company, and with more members."""
    for batch, members in ((1, 3), (2, 3), (32, 3), (5, 6)):
        generate(trained.best, trained.request(tmp_path / str(batch), batch=batch, members=members), EVENTS)
    fields = [opened(tmp_path / str(batch)).t2m.values for batch in (1, 2, 32, 5)]
    for other in fields[1:]:
        np.testing.assert_allclose(other[:, :3], fields[0], rtol=0, atol=1e-3)
    assert np.abs(fields[-1][:, 3:] - fields[-1][:, :3]).max() > 0.1


def test_a_longer_request_repeats_the_fields_of_a_shorter_one(trained: Trained, tmp_path: Path) -> None:
    """The seed is of the time, not of its number; another seed draws others."""
    generate(trained.best, trained.request(tmp_path / "all"), EVENTS)
    generate(trained.best, trained.request(tmp_path / "some", times=[(FIRST, LAST)]), EVENTS)
    generate(trained.best, trained.request(tmp_path / "other", times=[(FIRST, LAST)], seed=1), EVENTS)
    every, some, other = (opened(tmp_path / name).t2m for name in ("all", "some", "other"))
    assert some.sizes["time"] == 3
    np.testing.assert_allclose(some.values, every.sel(time=some.time).values, rtol=0, atol=1e-3)
    assert np.abs(some.values - other.values).max() > 0.1


def test_times_may_be_chosen_in_several_ranges(trained: Trained, tmp_path: Path) -> None:
    """As in a configuration."""
    ranges = [("2020-01-02T00", "2020-01-02T01"), ("2020-01-02T05", "2020-01-02T05")]
    generate(trained.best, trained.request(tmp_path / "a", times=ranges), EVENTS)
    assert opened(tmp_path / "a").time.dt.hour.values.tolist() == [0, 1, 5]


def test_what_is_missing_is_made_again_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    """And nothing else is touched; a half-made store, without its root, is made whole too."""
    request = trained.request(tmp_path / "a", batch=2)
    generate(trained.best, request, EVENTS)
    whole = contents(tmp_path / "a")
    shards = sorted(path for path in (tmp_path / "a" / "t2m" / "c").rglob("*") if path.is_file())
    assert len(shards) > 3
    times = {path: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    shards[-1].unlink()
    generate(trained.best, request, EVENTS)
    assert contents(tmp_path / "a") == whole
    assert {p for p in shards if p.stat().st_mtime_ns != times[p]} == {shards[1], shards[-1]}

    (tmp_path / "a" / "zarr.json").unlink()
    (tmp_path / "a" / "member" / "zarr.json").unlink()
    generate(trained.best, request, EVENTS)
    assert contents(tmp_path / "a") == whole


@pytest.mark.parametrize("left", ["nothing", "one byte less", "half", "zeros"])
def test_a_shard_that_was_cut_off_is_made_again(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    """Whether in the middle of the time or at its end, where a shard is not full; the others stay, and it is told."""
    request = trained.request(tmp_path / "a", batch=6, times=[("2020-01-02T00", "2020-01-02T04")])
    generate(trained.best, request, EVENTS)
    whole = contents(tmp_path / "a")
    shards = sorted(path for path in (tmp_path / "a" / "t2m" / "c").rglob("*") if path.is_file())
    assert len(shards) == 2
    capsys.readouterr()
    generate(trained.best, request, EVENTS)
    assert "shard.damaged" not in capsys.readouterr().err
    for shard in shards:
        content = shard.read_bytes()
        damaged = {"nothing": b"", "one byte less": content[:-1], "half": content[: len(content) // 2]}
        shard.write_bytes(damaged.get(left, bytes(len(content))))
        generate(trained.best, request, EVENTS)
        said = [text for text in capsys.readouterr().err.splitlines() if "shard.damaged" in text]
        assert [str(shard) in text for text in said] == [True]
        assert contents(tmp_path / "a") == whole


def test_a_complete_store_is_left_alone(trained: Trained, tmp_path: Path) -> None:
    """The same command says that it is complete, and asks the network nothing."""
    arguments = [str(trained.best), "--data", str(trained.coarse), "--out", str(tmp_path / "a")]
    arguments += ["--members", "2", "--device", "cpu", "--time", f"{FIRST},{LAST}"]
    for _ in range(2):
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert (result.exit_code, result.stdout) == (0, f"complete: {tmp_path / 'a'}\n")
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    assert "begun" not in result.stderr


def _is_there(store: Path, shards: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many shards are there, while the process lives."""
    deadline = time.monotonic() + 120
    while len(list((store / "t2m" / "c").glob("*/*/0/0"))) < shards:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_killed_at_once_and_gone_on_with(trained: Trained, tmp_path: Path) -> None:
    """SIGKILL in the middle of its work, twice: what the same command then completes is, bit for bit, one go's."""
    store = tmp_path / "killed"
    options = ["--data", str(trained.coarse), "--out", str(store), "--members", "8", "--batch", "1"]
    code = "from hookloop.plugins.downscaling.generate_command import generate; generate()"
    start = [sys.executable, "-c", code, str(trained.best), *options, "--device", "cpu"]
    for shards in (2, 9):
        with subprocess.Popen(start, stderr=subprocess.DEVNULL) as process:
            _is_there(store, shards, process)
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        done = len(list((store / "t2m" / "c").glob("*/*/0/0")))
        assert shards <= done < 24
    whole = evolve(trained.request(tmp_path / "whole"), members=8, batch=1)
    generate(trained.best, whole, EVENTS)
    generate(trained.best, evolve(whole, out=store), EVENTS)
    assert contents(store) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 4}, r"members \(3 there, 4 now\)"),
        ({"seed": 1}, r"seed \(0 there, 1 now\)"),
        ({"times": [(FIRST, LAST)]}, r"times \('6 from .*there, '3 from .* now\)"),
        ({"overrides": ["downscaling.sampler.steps=5"]}, "sampler"),
    ],
)
def test_a_store_made_with_other_options_is_refused(
    trained: Trained, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """With what differs, and left as it is."""
    out = tmp_path / "a"
    generate(trained.best, trained.request(out), EVENTS)
    before = contents(out)
    with pytest.raises(
        HookloopError, match=rf"a: made with other options: .*{message}.*choose another --out"
    ):
        generate(trained.best, trained.request(out, **changes), EVENTS)
    assert contents(out) == before


def test_other_times_between_the_same_ends_are_refused(trained: Trained, tmp_path: Path) -> None:
    """With the times there and now, which people know, and no digest."""
    hours = [[(f"2020-01-02T0{h}", f"2020-01-02T0{h}") for h in chosen] for chosen in ((0, 1, 5), (0, 2, 5))]
    generate(trained.best, trained.request(tmp_path / "a", times=hours[0]), EVENTS)
    with pytest.raises(HookloopError) as refused:
        generate(trained.best, trained.request(tmp_path / "a", times=hours[1]), EVENTS)
    ends = "3 from 2020-01-02T00:00:00.000 to 2020-01-02T05:00:00.000"
    assert f"times ('{ends}' there and now, but not the same)" in str(refused.value)
    assert "digest" not in str(refused.value)


def test_other_thresholds_of_dry_are_refused(trained: Trained, tmp_path: Path) -> None:
    """A store never has two: the same network makes other fields with them."""
    state = files.load(trained.best)
    config = dict(state["config"])  # type: ignore[call-overload]
    transforms = {"t2m": {"name": "sqrt", "minimum": 1.0, "dry_below": 2.0}}
    config["downscaling"] = {**config["downscaling"], "transforms": transforms}
    files.save({**state, "config": config}, path := tmp_path / "x.ckpt")
    request = trained.request(tmp_path / "a", times=[(FIRST, FIRST)])
    generate(path, request, EVENTS)
    for option, there, now in (("dry_below", 2.0, 3.0), ("minimum", 1.0, 0.5)):
        said = rf"other options: transforms.t2m.{option} \({there} there, {now} now\); choose another --out"
        with pytest.raises(HookloopError, match=said):
            generate(path, evolve(request, overrides=[f"downscaling.transforms.t2m.{option}={now}"]), EVENTS)


@pytest.mark.parametrize("option", ["ensemble", "experts"])
def test_other_weights_of_a_further_network_are_refused(
    trained: Trained, tmp_path: Path, option: str
) -> None:
    """Also where the file is called the same; the same network in another place is the same."""
    state = files.load(trained.best)
    files.save(state, here := tmp_path / "here.ckpt")
    files.save(state, there := tmp_path / "there.ckpt")

    def request(path: Path) -> Request:
        values = {"ensemble": f"['{path}']", "experts": f"[{{checkpoint: '{path}', sigma_min: 1.0}}]"}
        override = f"downscaling.sampler.{option}={values[option]}"
        return trained.request(tmp_path / "a", times=[(FIRST, FIRST)], overrides=[override])

    generate(trained.best, request(here), EVENTS)
    before = contents(tmp_path / "a")
    generate(trained.best, request(there), EVENTS)
    state["model"]["denoiser.backbone.stem.bias"] += 1e-3  # type: ignore[index]
    files.save(state, here)
    with pytest.raises(HookloopError, match=rf"made with other options: sampler\.{option} \("):
        generate(trained.best, request(here), EVENTS)
    assert contents(tmp_path / "a") == before


def test_data_that_have_changed_are_refused(trained: Trained, tmp_path: Path) -> None:
    """In place, by size or time of change: one store never holds the fields of two."""
    shutil.copy(trained.coarse, data := tmp_path / "x.nc")
    request = trained.request(tmp_path / "a", data=[str(data)], times=[(FIRST, FIRST)])
    generate(trained.best, request, EVENTS)
    before = contents(tmp_path / "a")
    (xr.open_dataset(trained.coarse).load() + 5.0).to_netcdf(new := tmp_path / "new.nc")
    new.replace(data)
    with pytest.raises(
        HookloopError,
        match=r"other options: data \('.*x\.nc' there and now, but not the same: by paths, sizes and",
    ):
        generate(trained.best, request, EVENTS)
    assert contents(tmp_path / "a") == before


def test_the_same_data_may_be_named_in_several_ways(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From here, absolutely, by a link or by a pattern."""
    monkeypatch.chdir(trained.data)
    (tmp_path / "link.nc").symlink_to(trained.coarse)
    for data in (trained.coarse.name, str(trained.coarse), str(tmp_path / "link.nc"), "validation_c*.nc"):
        generate(trained.best, trained.request(tmp_path / "a", data=[data], times=[(FIRST, FIRST)]), EVENTS)


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        ("https://me:secret@host:80/a.zarr", "https://***@host:80/a.zarr"),
        ("s3://bucket/a.zarr?signature=secret&x=1", "s3://bucket/a.zarr?***"),
        ("simplecache::https://secret@host/a.zarr", "simplecache::https://***@host/a.zarr"),
        ("s3://bucket/a@b.zarr", "s3://bucket/a@b.zarr"),
        ("/data/what?@home.nc", "/data/what?@home.nc"),
    ],
)
def test_no_secret_of_a_url_is_written_down(path: str, masked: str) -> None:
    """Names and passwords in it and its query; the place is still to be seen."""
    assert module.without_secrets(path) == masked


def test_a_store_made_with_other_weights_is_refused(trained: Trained, tmp_path: Path) -> None:
    """Whatever the file is called."""
    state = files.load(trained.best)
    state["model"]["denoiser.backbone.stem.bias"] += 1e-3  # type: ignore[index]
    generate(trained.best, trained.request(tmp_path / "a"), EVENTS)
    files.save(state, tmp_path / "best.ckpt")
    with pytest.raises(HookloopError, match="made with other options: weights"):
        generate(tmp_path / "best.ckpt", trained.request(tmp_path / "a"), EVENTS)


@pytest.mark.parametrize("name", ["thesis.tex", "zarr.json"])
def test_what_is_no_store_of_ours_is_left_alone(trained: Trained, tmp_path: Path, name: str) -> None:
    """A directory with other files, or another store."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text("{}")
    with pytest.raises(HookloopError, match=r"choose (a new|another) --out"):
        generate(trained.best, trained.request(tmp_path / "a"), EVENTS)
    assert (tmp_path / "a" / name).read_text() == "{}"


def test_what_cannot_be_written_is_told(trained: Trained, tmp_path: Path) -> None:
    """With the path and what to do, and it surfaces from the thread that writes."""
    out = tmp_path / "a"
    generate(trained.best, trained.request(out), EVENTS)
    shutil.rmtree(out / "t2m" / "c")
    (out / "t2m" / "c").write_text("in the way")
    with pytest.raises(
        HookloopError, match=r"a/t2m/c/0/0/0/0: cannot be written: .*give the same command again"
    ):
        generate(trained.best, trained.request(out), EVENTS)


def padded(trained: Trained, path: Path) -> Path:
    """The coarse fields among further cells on all sides, from north to south and 0 to 360."""
    coarse = xr.open_dataset(trained.coarse)
    wider = coarse.pad(latitude=2, longitude=3, constant_values=300.0)
    step = float(coarse.latitude[1] - coarse.latitude[0])
    wider["latitude"] = coarse.latitude.values[0] + step * (np.arange(wider.sizes["latitude"]) - 2)
    longitude = coarse.longitude.values[0] + step * (np.arange(wider.sizes["longitude"]) - 3)
    wider["longitude"] = longitude % 360
    wider.isel(latitude=slice(None, None, -1)).sortby("longitude").to_netcdf(path)
    return path


def test_the_trained_region_is_cut_out_of_more(trained: Trained, tmp_path: Path) -> None:
    """Whichever way the file runs; what lies beside the region changes nothing, as in training."""
    data = padded(trained, tmp_path / "wide.nc")
    generate(trained.best, trained.request(tmp_path / "a"), EVENTS)
    generate(trained.best, trained.request(tmp_path / "b", data=[str(data)]), EVENTS)
    assert contents(tmp_path / "a" / "t2m") == contents(tmp_path / "b" / "t2m")


def test_other_cells_are_refused(trained: Trained, tmp_path: Path) -> None:
    """Too few, elsewhere, or of another size; both extents are named."""
    coarse = xr.open_dataset(trained.coarse)
    changed = {
        "few": coarse.isel(latitude=slice(0, 3)),
        "aside": coarse.assign_coords(longitude=coarse.longitude + 0.5),
        "half": xr.open_dataset(halved(trained, tmp_path / "halved.nc")),
        "odd": coarse.isel(latitude=slice(0, 3)).assign_coords(latitude=[46.0, 47.5, 49.0]),
    }
    trained_on = "4 x 4 cells with centres 47 to 53 N, 3 to 9 E"
    expected = {
        "few": f"3 x 4 coarse cells with centres 47 to 51 N, 3 to 9 E; the model was trained on {trained_on}",
        "aside": f"4 x 4 coarse cells with centres 47 to 53 N, 3.5 to 9.5 E; the model was trained on {trained_on}",
        "half": "2 fine cells to a coarse one along each axis; the model was trained with 4",
        "odd": "46 to 49 N, 3 to 9 E; the model was trained on 16 x 16 fine cells with centres 46.25 to 53.75 N",
    }
    for name, data in changed.items():
        data.to_netcdf(path := tmp_path / f"{name}.nc")
        with pytest.raises(HookloopError, match=expected[name].replace(".", r"\.")):
            generate(trained.best, trained.request(tmp_path / "a", data=[str(path)]), EVENTS)
    assert not (tmp_path / "a").exists()


def test_nothing_of_the_training_data_is_needed(trained: Trained, tmp_path: Path) -> None:
    """Where its files are gone, the fields are the same, and so are their units and names."""
    generate(trained.best, trained.request(tmp_path / "a"), EVENTS)
    moved = tmp_path / "elsewhere.nc"
    shutil.copy(trained.coarse, moved)
    generate(
        without_training_data(trained, tmp_path / "best.ckpt"),
        trained.request(tmp_path / "b", data=[str(moved)]),
        EVENTS,
    )
    a, b = opened(tmp_path / "a"), opened(tmp_path / "b")
    np.testing.assert_array_equal(a.t2m.values, b.t2m.values)
    assert a.t2m.attrs == b.t2m.attrs
    assert a.t2m.attrs["units"] == "K"


def without_training_data(trained: Trained, path: Path) -> Path:
    """The checkpoint of a run whose files are out of reach."""
    state = files.load(trained.best)
    config = dict(state["config"])  # type: ignore[call-overload]
    config["downscaling"] = section(path.parent / "gone") | {"sampler": config["downscaling"]["sampler"]}
    files.save({**state, "config": config}, path)
    return path


def halved(trained: Trained, path: Path) -> Path:
    """Coarse fields whose cells are half as wide as those of the training."""
    south, west = np.arange(46.5, 54, 1.0), np.arange(2.5, 10, 1.0)
    coarse = xr.open_dataset(trained.coarse).reindex(latitude=south, longitude=west, method="nearest")
    coarse.to_netcdf(path)
    return path


def test_cells_of_another_width_are_refused_without_the_training_data(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2: the checkpoint knows how many fine cells a coarse one had."""
    checkpoint, data = without_training_data(trained, tmp_path / "x.ckpt"), halved(trained, tmp_path / "h.nc")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "generate",
                str(checkpoint),
                "--data",
                str(data),
                "--out",
                str(tmp_path / "a"),
                "--device",
                "cpu",
            ]
        )
    assert ended.value.code == 2
    said = f"{data}: 2 fine cells to a coarse one along each axis; the model was trained with 4"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("units", ["degC", "kelvin", "mK"])
def test_input_in_other_units_is_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], units: str
) -> None:
    """With exit code 2, before anything is written: the store would carry the units of the training."""
    coarse = xr.open_dataset(trained.coarse).load()
    coarse.t2m.attrs["units"] = units
    coarse.to_netcdf(data := tmp_path / "x.nc")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "generate",
                str(trained.best),
                "--data",
                str(data),
                "--out",
                str(tmp_path / "a"),
                "--device",
                "cpu",
            ]
        )
    assert ended.value.code == 2
    assert f"--data: t2m is in {units}, the model was trained with K" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_units_that_cannot_be_compared_are_noted(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that say none are taken as they are."""
    assert trained.task.facts["input_units"] == {"t2m": "K"}
    request = trained.request(tmp_path / "a", times=[(FIRST, FIRST)])
    generate(trained.best, request, EVENTS)
    assert "cannot be compared" not in capsys.readouterr().err
    coarse = xr.open_dataset(trained.coarse).load()
    del coarse.t2m.attrs["units"]
    coarse.to_netcdf(data := tmp_path / "x.nc")
    generate(trained.best, evolve(request, out=tmp_path / "b", data=[str(data)]), EVENTS)
    assert "units of t2m cannot be compared: none in the data, K in the training" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["g7.nc", "g7.NC4", "g7.h5", "g7.grib2", "g7.tif", "g7.zip"])
def test_a_name_of_another_format_is_refused(trained: Trained, tmp_path: Path, name: str) -> None:
    """Rather than a directory of that name made; a dot in a name is none."""
    with pytest.raises(HookloopError, match=rf"--out: .*{name}: a zarr store is written.*g7\.zarr"):
        generate(trained.best, trained.request(tmp_path / name), EVENTS)
    assert not (tmp_path / name).exists()
    generate(trained.best, trained.request(tmp_path / "uk.v2", times=[(FIRST, FIRST)]), EVENTS)


def test_a_store_that_another_process_writes_names_its_option(trained: Trained, tmp_path: Path) -> None:
    """It is --out; there is no run.dir here."""
    (tmp_path / "a").mkdir()
    with (
        locking.lock(tmp_path / "a", EVENTS),
        pytest.raises(HookloopError, match=r"another run writes here: .* or choose another --out$"),
    ):
        generate(trained.best, trained.request(tmp_path / "a"), EVENTS)


def test_progress_is_told_now_and_then(tmp_path: Path) -> None:
    """Where there is no terminal: every ten seconds, more rarely after minutes, and with the time left."""
    run, now = fake_run(tmp_path), [0.0]
    told = module.Told(run.events, 1000, lambda: now[0])
    for _ in range(500):
        now[0] += 2.0
        told.advance(1)
    events = [event for event in events_of(run) if event["event"] == "generation.going_on"]
    assert (events[0]["done"], events[0]["fields"], events[0]["left"]) == (5, 1000, "0:33:10")
    done = [event["done"] for event in events]
    assert done[1] == 10
    assert 20 < len(done) < 40  # every 10 s there were 100
    assert done[-1] - done[-2] > 20


def test_a_checkpoint_without_facts_is_warned_of(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As older ones are: what could not be checked is said, and units are not made up."""
    state = files.load(trained.best)
    del state["task"]
    files.save(state, path := tmp_path / "old.ckpt")
    generate(path, trained.request(tmp_path / "a", times=[(FIRST, FIRST)]), EVENTS)
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "checkpoint.without_facts" in text]
    assert "factor=4" in line
    assert "old.ckpt" in line
    assert opened(tmp_path / "a").t2m.attrs == {}
    generate(trained.best, trained.request(tmp_path / "b", times=[(FIRST, FIRST)]), EVENTS)
    assert "without_facts" not in capsys.readouterr().err


def test_missing_values_are_named(trained: Trained, tmp_path: Path) -> None:
    """The variable and the time; filled, they are none."""
    coarse = xr.open_dataset(trained.coarse).load()
    coarse.t2m[3, 1, 2] = np.nan
    coarse.to_netcdf(path := tmp_path / "nan.nc")
    request = trained.request(tmp_path / "a", data=[str(path)])
    with pytest.raises(
        HookloopError,
        match=r"variable t2m: 1 of .* NaN .* the first at time 2020-01-02T03:00.*; "
        r"--set downscaling\.fill\.t2m=VALUE puts a value in their place",
    ):
        generate(trained.best, request, EVENTS)
    filled = evolve(request, out=tmp_path / "b", overrides=["downscaling.fill.t2m=280"])
    generate(trained.best, filled, EVENTS)
    assert not bool(opened(tmp_path / "b").t2m.isnull().any())


def test_a_generated_field_that_is_not_finite_ends_it(trained: Trained, tmp_path: Path) -> None:
    """With the time and the member, as a crash; nothing of it is kept."""
    state = files.load(trained.best)
    state["model"]["denoiser.backbone.stem.bias"][0] = torch.nan  # type: ignore[index]
    files.save(state, tmp_path / "bad.ckpt")
    with pytest.raises(Diverged, match=r"t2m at 2020-01-02T00:00, member 0: 100\.00% .*not finite") as raised:
        generate(tmp_path / "bad.ckpt", trained.request(tmp_path / "a"), EVENTS)
    assert raised.value.code == 1
    assert not (tmp_path / "a" / "t2m" / "c").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("downscaling.model.residual=false", r"--set downscaling.model.residual: True in the checkpoint"),
        (
            "downscaling.sampler.stops=3",
            r"^--set: downscaling\.sampler\.stops: unknown option; did you mean 'steps'\?$",
        ),
        ("downscaling.fill.pr=0", "^--set: downscaling: fill: pr neither an input nor an output"),
        ("run.seed=3", "--set run.seed: does nothing here"),
        ("optimization.precision=fp8", "expected one of bf16, fp32, auto"),
    ],
)
def test_overrides_that_make_no_sense(trained: Trained, tmp_path: Path, override: str, message: str) -> None:
    """What has been learnt with stays; what would do nothing is not passed over."""
    with pytest.raises(HookloopError, match=message):
        generate(trained.best, trained.request(tmp_path / "a", overrides=[override]), EVENTS)


def test_in_half_precision(trained: Trained, tmp_path: Path) -> None:
    """Where it is asked for: nearly the same fields, and another store."""
    for name in ("fp32", "bf16"):
        override = f"optimization.precision={name}"
        generate(trained.best, trained.request(tmp_path / name, overrides=[override]), EVENTS)
    whole, half = (opened(tmp_path / name).t2m.values for name in ("fp32", "bf16"))
    assert 0 < np.abs(whole - half).max() < 0.5


def test_a_coarse_ensemble_has_members_of_each(trained: Trained, tmp_path: Path) -> None:
    """The first group is that of the single input, the second that of another one; each says where it belongs."""
    coarse = xr.open_dataset(trained.coarse)
    both = xr.concat([coarse, coarse + 5.0], "number").transpose("time", "number", ...)
    both.t2m.attrs = coarse.t2m.attrs
    both.to_netcdf(path := tmp_path / "both.nc")
    generate(trained.best, trained.request(tmp_path / "one"), EVENTS)
    data = f"{{path: '{path}', ensemble: number}}"
    generate(trained.best, trained.request(tmp_path / "two", data=[data]), EVENTS)
    one, two = (opened(tmp_path / name) for name in ("one", "two"))
    assert two.coarse_member.values.tolist() == [0, 0, 0, 1, 1, 1]
    assert "coarse_member" in two.t2m.coords
    np.testing.assert_allclose(two.t2m.values[:, :3], one.t2m.values, rtol=0, atol=1e-3)
    assert 4 < float(two.t2m[:, 3:].mean() - two.t2m[:, :3].mean()) < 6


def test_members_are_drawn_with_several_networks_in_turn(trained: Trained, tmp_path: Path) -> None:
    """Whatever the batch: member 1 has the other network also where it is generated alone."""
    state = files.load(trained.best)
    state["model"]["denoiser.backbone.stem.bias"] += 1.0  # type: ignore[index]
    files.save(state, other := tmp_path / "other.ckpt")
    override = [f"downscaling.sampler.ensemble=['{other}']"]
    for batch in (1, 32):
        generate(
            trained.best, trained.request(tmp_path / str(batch), batch=batch, overrides=override), EVENTS
        )
    generate(trained.best, trained.request(tmp_path / "single"), EVENTS)
    alone, together, single = (opened(tmp_path / name).t2m.values for name in ("1", "32", "single"))
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-3)
    np.testing.assert_allclose(together[:, ::2], single[:, ::2], rtol=0, atol=1e-3)
    assert np.abs(together[:, 1] - single[:, 1]).max() > 1e-2


def test_a_device_that_is_not_there(trained: Trained, tmp_path: Path) -> None:
    """Told before anything else."""
    with pytest.raises(HookloopError, match="--device: tpu: not on this machine"):
        generate(trained.best, trained.request(tmp_path / "a", device="tpu"), EVENTS)


def test_data_that_are_not_there(trained: Trained, tmp_path: Path) -> None:
    """With what was asked for."""
    with pytest.raises(HookloopError, match=r"--data: nowhere.nc: no such file or store"):
        generate(trained.best, trained.request(tmp_path / "a", data=["nowhere.nc"]), EVENTS)


def test_a_checkpoint_of_something_else(trained: Trained, tmp_path: Path) -> None:
    """Which downscales nothing."""
    state = files.load(trained.best)
    files.save({**state, "config": {"run": {}}}, path := tmp_path / "x.ckpt")
    with pytest.raises(HookloopError, match=r"x.ckpt: its configuration has no section downscaling"):
        generate(path, trained.request(tmp_path / "a"), EVENTS)


@pytest.mark.parametrize(("value", "times"), [("2020", ("2020", "2020")), ("a, b", ("a", "b"))])
def test_a_single_date_is_all_of_its_span(value: str, times: tuple[str, str]) -> None:
    """``--time 2020`` is that year."""
    context = command.make_context("generate", ["c", "--data", "d", "--out", "o", "--time", value])
    assert context.params["times"] == [times]


def test_times_that_are_no_range() -> None:
    """Refused by click, with an example."""
    result = CliRunner().invoke(command, ["c", "--data", "d", "--out", "o", "--time", "a,b,c"])
    assert result.exit_code == 2
    assert "expected FIRST,LAST" in result.stderr


def source(path: str, **options: object) -> SourceConfig:
    return SourceConfig(path, **options)  # type: ignore[arg-type]


def test_data_are_read_as_the_training_files_were() -> None:
    """Renamed alike, from whichever of them; a URL is reached alike; options of its own take the place of all."""
    before: Sequence[str | SourceConfig] = [
        "a.nc",
        source("s3://b/b.zarr", rename={"u850": "u@850"}, storage_options={"anon": True}),
        source("c.nc", rename={"t": "t2m"}, ensemble="number"),
    ]
    rename = {"u850": "u@850", "t": "t2m"}
    assert data_sources(["x.nc", "s3://c/y.zarr", " {path: z.nc, rename: {t: T}}"], before) == [
        source("x.nc", rename=rename, ensemble="number"),
        source("s3://c/y.zarr", rename=rename, ensemble="number", storage_options={"anon": True}),
        source("z.nc", rename={"t": "T"}),
    ]


def test_training_files_that_contradict_one_another() -> None:
    """Which of the names is meant must be said."""
    before = [source("a.nc", rename={"t": "t2m"}), source("b.nc", rename={"t": "tas"})]
    with pytest.raises(HookloopError, match=r"t as t2m and as tas; say which it is here: --data '{path: "):
        data_sources(["x.nc"], before)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))
def test_batches_hold_every_field_once_and_no_more_than_asked(times: int, members: int, batch: int) -> None:
    """None is empty."""
    seen = []
    for some, own in parts(times, members, batch):
        fields = list(product(range(times)[some], own))
        assert 0 < len(fields) <= batch
        seen += fields
    assert sorted(seen) == list(product(range(times), range(members)))


@pytest.mark.parametrize(
    ("times", "units"),
    [
        (["2020-01-01T00", "2020-01-01T06"], "hours"),
        (["2020-01-01T00:00", "2020-01-01T00:10"], "minutes"),
        (["1900-01-01T00:00:00.250"], "milliseconds"),
    ],
)
def test_times_come_back_as_they_were(times: list[str], units: str) -> None:
    """In the largest unit that is exact, also before 1970."""
    given_times = np.array(times, "datetime64[ns]")
    unit, calendar, values = encoded_times(given_times)
    assert unit == f"{units} since 1970-01-01"
    decoded = xr.decode_cf(xr.Dataset({"time": ("time", values, {"units": unit, "calendar": calendar})}))
    np.testing.assert_array_equal(decoded.time.values.astype("datetime64[ns]"), given_times)


def test_times_of_other_calendars_come_back_as_they_were() -> None:
    """30 February is one of a year of 360 days."""
    times = np.array([cftime.datetime(2001, 2, day, 12, calendar="360_day") for day in (29, 30)])
    units, calendar, values = encoded_times(times)
    assert calendar == "360_day"
    assert (cftime.num2date(values, units, calendar) == times).all()


def test_a_time_has_one_seed_however_it_is_held() -> None:
    """By numpy or by cftime; another time, group, member or seed has another."""
    standard = module._stamp(np.datetime64("2020-01-02T03:00", "ns"))
    assert module._stamp(cftime.datetime(2020, 1, 2, 3, calendar="standard")) == standard
    others = [
        (0, "2020-01-02T04:00:00.000", 0, 0),
        (0, standard, 1, 0),
        (0, standard, 0, 1),
        (1, standard, 0, 0),
    ]
    seeds = {member_seed(*key) for key in [(0, standard, 0, 0), *others]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_writing_goes_on_meanwhile_and_is_bounded() -> None:
    """While one is written, another waits and a third is made; only the fourth has to wait for the first."""
    going, done = threading.Event(), []

    def slow(item: int, _values: object) -> None:
        assert going.wait(60)
        done.append(item)

    with module._writing(slow) as submit:  # type: ignore[arg-type]
        submit(0, None)  # type: ignore[arg-type]
        submit(1, None)  # type: ignore[arg-type]
        assert done == []
        waiting = threading.Thread(target=submit, args=(2, None))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        going.set()
        waiting.join()
    assert done == [0, 1, 2]
