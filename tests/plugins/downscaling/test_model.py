"""The downscaling task: what the network is given, what it learns, what it generates."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import xarray as xr

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


def test_outputs_must_be_among_the_inputs(sample: Path) -> None:
    """The baseline needs them; the message names what is missing."""
    with pytest.raises(ConfigError, match=r"downscaling.model: outputs: pr not among the inputs t2m"):
        plugin(sample, model={"outputs": ["pr"]})


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
    with pytest.raises(HookloopError, match=r"t2m cannot be read: .*; is the file damaged\?"):
        prepared(tmp_path / "run", plugin(sample, train=train))
