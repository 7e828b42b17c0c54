"""The downscaling task: what the network is given, what it learns, what it generates."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import xarray as xr
from torch.utils._python_dispatch import TorchDispatchMode

from hookloop import yamlfile
from hookloop.config import build
from hookloop.errors import ConfigError, HookloopError
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.model import DownscalingTask
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.synthetic import Recipe
from hookloop.task import Generative, Window
from hookloop.testing import LifeCycle, fake_run, prepared

BACKBONE = {"name": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": False}


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files of the synthetic data: 16x16 fine, 4x4 coarse, 12 and 6 hours."""
    directory = tmp_path_factory.mktemp("sample") / "data"
    write(directory, Recipe(n=16, factor=4), 12, 6, 0)
    return directory


def section(sample: Path, **changes: object) -> dict[str, object]:
    """A whole ``downscaling:`` section for the sample data."""
    model = {"inputs": ["t2m"], "outputs": ["t2m"], "features": ["hour"], "backbone": BACKBONE}
    whole: dict[str, object] = {
        "train": {"coarse": [str(sample / "train_coarse.zarr")], "fine": [str(sample / "train_fine.zarr")]},
        "validation": {
            "coarse": [str(sample / "validation_coarse.nc")],
            "fine": [str(sample / "validation_fine.nc")],
        },
        "statics": [{"path": str(sample / "static.nc"), "variable": "terrain"}],
        "model": model | changes.pop("model", {}),  # type: ignore[operator]
        "sampler": {"steps": 4},
    }
    return whole | changes


def plugin(sample: Path, **changes: object) -> Downscaling:
    return build(Downscaling, yamlfile.Document({"downscaling": section(sample, **changes)}), "downscaling")  # type: ignore[dict-item]


def task(sample: Path, directory: Path, **changes: object) -> DownscalingTask:
    made = prepared(directory, plugin(sample, **changes)).task
    assert isinstance(made, DownscalingTask)
    return made


class TestDownscaling(LifeCycle):
    plugin = Downscaling

    @pytest.fixture(autouse=True)
    def _use(self, sample: Path) -> None:
        type(self).options = section(sample)


class NoNumbersOfTheHost(TorchDispatchMode):
    """Refuses to read a tensor made of numbers on the host: on a GPU the host would wait until it is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse one."""
        assert func is not torch.ops.aten.lift_fresh.default, "a list of numbers is copied to the device"
        return func(*args, **(kwargs or {}))


def test_the_loss_makes_no_tensor_of_host_numbers(sample: Path, tmp_path: Path) -> None:
    """So that nothing waits, and a CUDA graph can hold it."""
    made = task(sample, tmp_path)
    batch = next(made.data["train"].batches(0))
    with pytest.raises(AssertionError, match="list of numbers"), NoNumbersOfTheHost():
        batch.fine[:, [0]]
    with NoNumbersOfTheHost():
        made.loss(batch)


def test_the_target_has_unit_variance(sample: Path, tmp_path: Path) -> None:
    """What is learnt has mean 0 and standard deviation 1 over the training split, as σ_data = 1 wants."""
    made = task(sample, tmp_path)
    fine = torch.from_numpy(xr.open_zarr(sample / "train_fine.zarr").t2m.values)[:, None]
    coarse = torch.from_numpy(xr.open_zarr(sample / "train_coarse.zarr").t2m.values)[:, None]
    residual = fine - F.interpolate(coarse, scale_factor=4.0, mode="bicubic", align_corners=False)

    normalized = made.model.targets.normalize(residual)

    assert normalized.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert normalized.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)


def test_an_untrained_network_loses_about_one(sample: Path, tmp_path: Path) -> None:
    """The EDM weight gives a network that answers 0 a loss of 1 for unit data, at any noise level.

    D = c_skip x then, and λ E|c_skip (y + σ n) - y|² = 1 for E y² = 1.
    """
    made = task(sample, tmp_path)
    batch = made.data["train"].cases(range(12))  # type: ignore[attr-defined]
    torch.manual_seed(0)
    losses = [made.loss(batch)["loss"].item() for _ in range(20)]
    assert np.mean(losses) == pytest.approx(1.0, abs=0.05)


def test_a_patch_is_conditioned_as_the_same_place_of_the_whole_field(sample: Path, tmp_path: Path) -> None:
    """Everything the network is given for a patch is the crop of what it is given for the whole field."""
    whole = task(sample, tmp_path / "a", model={"features": ["hour", "season", "latitude", "longitude"]})
    cut = task(
        sample,
        tmp_path / "b",
        patch={"coarse": [2, 3]},
        model={"features": ["hour", "season", "latitude", "longitude"]},
    )
    from hookloop.plugins.downscaling.dataset import upsample

    batch = next(iter(cut.data["train"].batches(0)))
    patches = cut.model.condition(batch, upsample(batch.coarse, 4))
    times = list(whole.data["train"].pair.times)  # type: ignore[attr-defined]
    cases = whole.data["train"].cases([times.index(time) for time in batch.times])  # type: ignore[attr-defined]
    fields = whole.model.condition(cases, upsample(cases.coarse, 4))

    for patch, field, (row, column) in zip(patches, fields, batch.corner.tolist(), strict=True):
        torch.testing.assert_close(patch, field[:, row : row + 8, column : column + 12], rtol=0, atol=1e-4)


def test_a_member_depends_on_its_seed_alone(sample: Path, tmp_path: Path) -> None:
    """The same seed gives the same field whatever else is generated with it, to float32 rounding."""
    made = task(sample, tmp_path)
    made.model.eval()
    with torch.no_grad():
        together, _ = made.predict_paired(None, Window("validation", [0, 3]), [[1, 2, 3], [4, 5, 6]])
        alone, _ = made.predict_paired(None, Window("validation", [3]), [[5]])

    assert together.prediction["t2m"].shape == (2, 3, 16, 16)
    torch.testing.assert_close(
        alone.prediction["t2m"][0, 0], together.prediction["t2m"][1, 1], rtol=0, atol=1e-3
    )
    assert alone.labels == [together.labels[1]]


def test_generation_starts_from_bicubic_interpolation(sample: Path, tmp_path: Path) -> None:
    """The baseline is torch's cell-centred bicubic interpolation, the coarse field what was in the file."""
    made = task(sample, tmp_path)
    coarse = torch.from_numpy(xr.open_dataset(sample / "validation_coarse.nc").t2m.values)
    with torch.no_grad():
        paired, _ = made.predict_paired(None, Window("validation", range(6)), [[0, 1]] * 6)

    bicubic = F.interpolate(coarse[:, None], scale_factor=4.0, mode="bicubic", align_corners=False)[:, 0]
    torch.testing.assert_close(paired.baseline["t2m"], bicubic, rtol=0, atol=1e-3)
    torch.testing.assert_close(paired.coarse["t2m"], coarse)


def test_the_task_can_be_inferred_with(sample: Path, tmp_path: Path) -> None:
    """It fulfils the protocol that generation asks for."""
    assert isinstance(task(sample, tmp_path), Generative)


def test_every_checkpoint_is_complete(sample: Path, tmp_path: Path) -> None:
    """Scales, static fields and coordinates are in the model's own state."""
    state = task(sample, tmp_path).model.state_dict()
    assert {
        "input_mean",
        "input_std",
        "target_mean",
        "target_std",
        "statics",
        "latitude",
        "longitude",
    } <= state.keys()


def test_validation_on_another_grid_is_refused(sample: Path, tmp_path: Path) -> None:
    """Both extents are named."""
    west = {"coarse": [str(sample / "validation_coarse.nc")], "fine": [str(sample / "validation_fine.nc")]}
    with pytest.raises(HookloopError, match=r"grid 16x8 .* expected that of downscaling.train, 16x16"):
        prepared(tmp_path, plugin(sample, validation=west | {"lon": [2.0, 6.0]}))


def test_further_validation_sets_are_validated_by_name(sample: Path, tmp_path: Path) -> None:
    """Beside ``validation``; the same data has the same losses, and fields are generated for that one alone."""
    same = {"coarse": [str(sample / "validation_coarse.nc")], "fine": [str(sample / "validation_fine.nc")]}
    early = same | {"time": ["2020-01-02T00", "2020-01-02T01"], "batch_size": 1}
    made = plugin(sample, validation_sets={"again": same, "early": early})
    run = prepared(tmp_path, made)
    assert list(run.task.data) == ["train", "validation", "again", "early"]
    assert [data.n_samples for data in run.task.data.values()] == [12, 6, 6, 2]
    (found,) = (answer for answer in run.hook.validate(run=run) if "val/loss" in answer)
    assert found["val/again/loss/t2m"] == found["val/validation/loss/t2m"]
    expected = (2 * found["val/validation/loss"] + found["val/early/loss"]) / 3
    assert found["val/loss"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["train", "validation", "loss", "the alps", "a/b", "", "3"])
def test_names_of_validation_sets_are_simple_words(sample: Path, name: str) -> None:
    """They stand in the keys of metrics; and two mean something else."""
    split = {"coarse": ["a"], "fine": ["b"]}
    with pytest.raises(ConfigError, match=r"downscaling\.validation_sets: expected names such as alps"):
        plugin(sample, validation_sets={name: split})


def test_a_further_validation_set_on_another_grid_is_refused(sample: Path, tmp_path: Path) -> None:
    """By its own name."""
    west = {"coarse": [str(sample / "validation_coarse.nc")], "fine": [str(sample / "validation_fine.nc")]}
    with pytest.raises(HookloopError, match=r"downscaling\.validation_sets\.west: grid 16x8"):
        prepared(tmp_path, plugin(sample, validation_sets={"west": west | {"lon": [2.0, 6.0]}}))


def test_a_residual_needs_its_origin_among_the_inputs(sample: Path) -> None:
    """The message names what is missing and the way out."""
    message = r"downscaling.model: outputs: pr not among the inputs t2m, .* set residual: false"
    with pytest.raises(ConfigError, match=message):
        plugin(sample, model={"outputs": ["pr"]})


@pytest.fixture(scope="session")
def rain(sample: Path) -> Path:
    """Fine files with precipitation beside the temperature, and coarse files without."""
    random = np.random.default_rng(0)
    for name in ("train_fine.zarr", "validation_fine.nc"):
        path = sample / name
        data = xr.open_zarr(path) if path.suffix == ".zarr" else xr.open_dataset(path)
        wet = random.gamma(0.5, 4.0, data.t2m.shape)
        pr = np.where(random.random(wet.shape) < 0.6, 0, wet).astype(np.float32)
        with_rain = data.load().assign(pr=(data.t2m.dims, pr, {"units": "mm"})).drop_encoding()
        with_rain.to_netcdf(sample / f"rain_{name.partition('_')[0]}.nc", engine="h5netcdf")
        data.close()
    return sample


def rainy(rain: Path, **changes: object) -> dict[str, object]:
    """Options of a model that is given temperature and generates precipitation."""
    model = {"outputs": ["pr"], "residual": False} | changes.pop("model", {})  # type: ignore[operator]
    splits = {
        split: {"coarse": [str(rain / coarse)], "fine": [str(rain / f"rain_{split}.nc")]}
        for split, coarse in (("train", "train_coarse.zarr"), ("validation", "validation_coarse.nc"))
    }
    return {**splits, "model": model, **changes}


def test_an_output_need_not_be_an_input(rain: Path, tmp_path: Path) -> None:
    """It is learnt and generated in its own units, beside another one, and has no baseline."""
    made = task(rain, tmp_path, **rainy(rain, model={"outputs": ["pr", "t2m"]}))
    assert made.without_baseline == ["pr"]
    batch = next(iter(made.data["train"].batches(0)))
    assert set(made.loss(batch)) == {"loss", "loss/pr", "loss/t2m"}
    with torch.no_grad():
        paired, _ = made.predict_paired(None, Window("validation", [0, 5]), [[0, 1]] * 2)
    assert set(paired.prediction) == set(paired.target) == {"pr", "t2m"}
    assert set(paired.baseline) == set(paired.coarse) == {"t2m"}
    coarse = torch.from_numpy(xr.open_dataset(rain / "validation_coarse.nc").t2m.values[[0, 5]])
    bicubic = F.interpolate(coarse[:, None], scale_factor=4.0, mode="bicubic", align_corners=False)[:, 0]
    torch.testing.assert_close(paired.baseline["t2m"], bicubic, rtol=0, atol=1e-3)
    assert paired.units["pr"] == "mm"


def test_what_has_no_baseline_is_scored_without(rain: Path, tmp_path: Path) -> None:
    """A relative error is refused before the run; an absolute one is given, and drawn."""
    from hookloop.plugins.generation import Generation

    with pytest.raises(
        HookloopError, match=r"generation\.error: crps_relative, .* no baseline of pr .* crps"
    ):
        prepared(tmp_path / "a", plugin(rain, **rainy(rain)), Generation())
    run = prepared(tmp_path / "b", plugin(rain, **rainy(rain)), Generation(error="crps", members=2))
    (found,) = run.hook.infer(run=run)
    assert {"inference/crps/pr", "inference/rmse/pr", "inference/spread_skill/pr"} <= set(found)
    assert not any("baseline" in key or "relative" in key for key in found)
    assert found["inference/error"] == found["inference/crps/pr"]
    assert list((tmp_path / "b" / "figures").glob("pr_20*.png"))


def test_the_baseline_is_not_below_the_minimum_either(sample: Path, tmp_path: Path) -> None:
    """Bicubic interpolation overshoots; what is generated could not be as wrong as that."""
    least = float(xr.open_dataset(sample / "validation_coarse.nc").t2m.median())
    bounds = {"t2m": {"name": "log1p", "minimum": least}}
    free, bounded = (
        task(sample, tmp_path / name, transforms=transforms)
        for name, transforms in (("a", {"t2m": {"name": "log1p"}}), ("b", bounds))
    )
    window = Window("validation", [0, 5])
    with torch.no_grad():
        (known, _), (found, _) = (made.predict_paired(None, window, [[0, 1]] * 2) for made in (free, bounded))
    assert torch.equal(found.baseline["t2m"], known.baseline["t2m"].clamp(min=least))
    assert (known.baseline["t2m"] < least).any()


TRANSFORMS: list[dict[str, object]] = [
    {"name": "log1p", "scale": 100.0},
    {"name": "sqrt"},
    {"name": "quantile"},
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: str(transform["name"]))
@pytest.mark.parametrize("residual", [True, False])
def test_a_transformed_target_has_unit_variance_and_is_undone(
    sample: Path, tmp_path: Path, transform: dict[str, object], *, residual: bool
) -> None:
    """Over the training split; what is made of a target again is the fine field, for each of its members."""
    made = task(sample, tmp_path, transforms={"t2m": transform}, model={"residual": residual})
    batch = made.data["train"].cases(range(12))  # type: ignore[attr-defined]
    upsampled = made.model.interpolated(batch.coarse, 4)

    target = made.model.target(batch.fine, upsampled)
    assert target.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert target.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    given = made.model.condition(batch, upsampled)[:, 0]
    assert given.mean().item() == pytest.approx(0.0, abs=0.1)

    twice = made.model.fields(target.repeat_interleave(2, 0), upsampled)
    torch.testing.assert_close(twice, batch.fine.repeat_interleave(2, 0), rtol=0, atol=0.02)


def test_scores_stay_in_physical_units(sample: Path, tmp_path: Path) -> None:
    """With a transform the baseline is the interpolation of the physical field still, and so is what was given."""
    made = task(sample, tmp_path, transforms={"t2m": {"name": "sqrt"}})
    with torch.no_grad():
        paired, _ = made.predict_paired(None, Window("validation", range(6)), [[0, 1]] * 6)
    coarse = torch.from_numpy(xr.open_dataset(sample / "validation_coarse.nc").t2m.values)
    bicubic = F.interpolate(coarse[:, None], scale_factor=4.0, mode="bicubic", align_corners=False)[:, 0]
    torch.testing.assert_close(paired.baseline["t2m"], bicubic, rtol=0, atol=1e-3)
    torch.testing.assert_close(paired.coarse["t2m"], coarse)
    assert (paired.prediction["t2m"].mean() - coarse.mean()).abs() < 50


def test_dry_places_are_learnt_as_one_score_and_generated_as_zero(rain: Path, tmp_path: Path) -> None:
    """Zeros, the share p, are all learnt as Φ⁻¹(p/2), normalised; normal noise for targets is dry as often, exactly."""
    made = task(rain, tmp_path, **rainy(rain, transforms={"pr": {"name": "quantile"}}))
    batch = made.data["train"].cases(range(12))  # type: ignore[attr-defined]
    upsampled = made.model.interpolated(batch.coarse, 4)
    target, dry = made.model.target(batch.fine, upsampled), batch.fine == 0
    share = dry.double().mean()
    mid = (torch.special.ndtri(share / 2) - made.model.target_mean) / made.model.target_std
    torch.testing.assert_close(target[dry], mid.float().expand(int(dry.sum())), rtol=1e-5, atol=0)
    again = made.model.fields(target, upsampled)
    assert torch.equal(again == 0, dry)
    torch.testing.assert_close(again, batch.fine, rtol=1e-4, atol=1e-4)
    scores = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    fields = made.model.fields(made.model.targets.normalize(scores), upsampled)
    assert fields.min() == 0
    # Five standard deviations of a binomial share.
    expected = share.item()
    assert (
        abs((fields == 0).double().mean().item() - expected) < 5 * (expected * (1 - expected) / 3072) ** 0.5
    )


@pytest.mark.parametrize("name", ["log1p", "sqrt"])
def test_nothing_below_the_minimum_is_generated(rain: Path, tmp_path: Path, name: str) -> None:
    """An untrained network makes rain below zero of noise; with a minimum all of that is zero, and no more."""

    def generated(directory: str, **minimum: float) -> torch.Tensor:
        options = rainy(rain, transforms={"pr": {"name": name, **minimum}})
        with torch.no_grad():
            paired, _ = task(rain, tmp_path / directory, **options).predict_paired(
                None, Window("validation", [0]), [[0]]
            )
        return paired.prediction["pr"]

    free = generated("a")
    assert free.min() < 0
    assert torch.equal(generated("b", minimum=0.0), free.clamp(min=0))


def test_a_checkpoint_of_transforms_is_complete(rain: Path, tmp_path: Path) -> None:
    """A model of other data generates the same fields once it has loaded the weights: knots are among them."""
    options = rainy(rain, transforms={"pr": {"name": "quantile"}, "t2m": {"name": "log1p", "scale": 9.0}})
    made = task(rain, tmp_path / "a", **options)
    torch.save(made.model.state_dict(), tmp_path / "weights.pt")
    early = {**options["train"], "time": ["2020-01-01T00", "2020-01-01T02"]}  # type: ignore[dict-item]
    other = task(rain, tmp_path / "b", **(options | {"train": early}))
    generated = torch.linspace(-3, 3, 256).view(1, 1, 16, 16)
    upsampled = torch.zeros(1, 1, 16, 16)
    expected = made.model.fields(generated, upsampled)
    assert not torch.equal(other.model.fields(generated, upsampled), expected)
    other.model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other.model.fields(generated, upsampled), expected)


def test_a_patch_may_cross_the_seam_of_the_globe(sample: Path, tmp_path: Path) -> None:
    """East of the last column lies the first: what it is conditioned on is the whole field, rolled."""
    from attrs import evolve

    made = task(sample, tmp_path, model={"features": ["hour", "season", "latitude", "longitude"]})
    whole = made.data["train"].cases([3])  # type: ignore[attr-defined]
    fields = made.model.interpolated(whole.coarse, 4)
    across = evolve(whole, corner=torch.tensor([[0, 12]]))
    rolled = made.model.condition(across, fields.roll(-12, -1))
    assert torch.equal(rolled, made.model.condition(whole, fields).roll(-12, -1))


@pytest.fixture(scope="session")
def projected(sample: Path) -> Path:
    """The fine files on y and x, whose latitudes and longitudes are 2-D fields."""
    for name in ("train_fine.zarr", "validation_fine.nc"):
        path = sample / name
        data = (xr.open_zarr(path) if path.suffix == ".zarr" else xr.open_dataset(path)).load()
        names = {str(dim): axis for dim, axis in zip(data.t2m.dims[1:], "yx", strict=True)}
        degrees = xr.broadcast(*(data[dim].reset_coords(drop=True) for dim in names))
        flat = data.drop_vars(list(names)).rename_dims(names)
        units = ("degrees_north", "degrees_east")
        flat = flat.assign_coords(
            {
                f"{axis}_degrees": (("y", "x"), field.values, {"units": unit})
                for axis, field, unit in zip("yx", degrees, units, strict=True)
            }
        )
        flat = flat.assign_coords(
            {
                axis: (axis, 1e3 * np.arange(16.0), {"standard_name": f"projection_{axis}_coordinate"})
                for axis in "yx"
            }
        )
        flat.drop_encoding().to_netcdf(sample / f"projected_{name.partition('_')[0]}.nc", engine="h5netcdf")
        data.close()
    return sample


def on_rows_and_columns(projected: Path, features: list[str], **changes: object) -> dict[str, object]:
    """Options of a model whose fine grid has no latitude and longitude."""
    splits = {
        split: {"coarse": [str(projected / coarse)], "fine": [str(projected / f"projected_{split}.nc")]}
        for split, coarse in (("train", "train_coarse.zarr"), ("validation", "validation_coarse.nc"))
    }
    return {**splits, "pairing": "index", "statics": [], "model": {"features": features}, **changes}


@pytest.mark.parametrize("feature", ["hour", "latitude", "longitude"])
def test_rows_and_columns_are_no_degrees(projected: Path, tmp_path: Path, feature: str) -> None:
    """A feature of latitude or longitude is refused where the fine grid has neither, with what to do instead."""
    message = rf"model\.features: {feature}: rows and columns .* no latitude and longitude .* as statics"
    with pytest.raises(HookloopError, match=message):
        prepared(tmp_path, plugin(projected, **on_rows_and_columns(projected, ["season", feature])))


def test_degrees_of_rows_and_columns_may_be_statics(projected: Path, tmp_path: Path) -> None:
    """As that error says; the season has no place, and is given."""
    fields = [{"path": str(projected / "projected_train.nc"), "variable": f"{axis}_degrees"} for axis in "yx"]
    made = task(projected, tmp_path, **on_rows_and_columns(projected, ["season"], statics=fields))
    rows = torch.linspace(-1, 1, 16) / torch.linspace(-1, 1, 16).std(correction=0)
    torch.testing.assert_close(made.model.statics[0], rows[:, None].expand(16, 16), rtol=0, atol=1e-4)
    torch.testing.assert_close(made.model.statics[1], rows.expand(16, 16), rtol=0, atol=1e-4)


def test_a_coarse_ensemble_names_the_member(sample: Path, tmp_path: Path) -> None:
    """Two cases of one time are told apart by their labels."""
    coarse = xr.open_dataset(sample / "validation_coarse.nc").load()
    both = xr.concat([coarse, coarse + 1], "number").transpose("time", "number", ...)
    both.t2m.attrs = coarse.t2m.attrs
    both.drop_encoding().to_netcdf(tmp_path / "ensemble.nc", engine="h5netcdf")
    ensemble = {
        "coarse": [{"path": str(tmp_path / "ensemble.nc"), "ensemble": "number"}],
        "fine": [str(sample / "validation_fine.nc")],
    }
    made = task(sample, tmp_path / "run", validation=ensemble)
    with torch.no_grad():
        paired, _ = made.predict_paired(None, Window("validation", [2, 3]), [[0], [1]])
    hour = str(coarse.time.values[1])[:16]
    assert paired.labels == [f"{hour}, coarse member 0", f"{hour}, coarse member 1"]


def test_a_misspelt_backbone_option_is_told(sample: Path) -> None:
    """The network's options are as strict as all others."""
    with pytest.raises(
        ConfigError, match=r"model.backbone.chanels: unknown option; did you mean 'channels'\?"
    ):
        plugin(sample, model={"backbone": {"name": "unet", "chanels": 8}})


def test_training_lowers_the_loss(sample: Path, tmp_path: Path) -> None:
    """A hundred steps on twelve fields learn something: validation ends well below the untrained 1."""
    from hookloop import train
    from hookloop.plugins.optimization import OptimizationPlugin
    from hookloop.testing import Recorder

    recorder = Recorder()
    run = fake_run(
        tmp_path,
        plugin(sample),
        OptimizationPlugin(lr=3e-3),
        recorder,
        max_epochs=100,
        validate_every="100 epochs",
    )
    train(run)
    assert recorder.metrics("val/loss")[100] < 0.9  # type: ignore[operator]


def test_a_damaged_chunk_is_named(sample: Path, tmp_path: Path) -> None:
    """Bytes that no longer decompress are the data's fault: the variable is named, and there is no traceback."""
    broken = tmp_path / "fine.zarr"
    shutil.copytree(sample / "train_fine.zarr", broken)
    chunks = [path for path in (broken / "t2m").rglob("*") if path.is_file() and path.name[0].isdigit()]
    chunks[0].write_bytes(b"not a chunk")
    train = {"coarse": [str(sample / "train_coarse.zarr")], "fine": [str(broken)]}
    with pytest.raises(HookloopError, match=r"fine.zarr: t2m .* cannot be read .*: is the file damaged\?"):
        prepared(tmp_path / "run", plugin(sample, train=train))
