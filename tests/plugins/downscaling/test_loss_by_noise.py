"""The loss of the downscaling task at chosen noise levels: that of training, sample by sample."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

from hookloop import yamlfile
from hookloop.config import build
from hookloop.noise_levels import loss_by_noise
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.dataset import PairedData
from hookloop.plugins.downscaling.model import DownscalingTask
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.synthetic import Recipe
from hookloop.task import NoiseLevels
from hookloop.testing import prepared

MEAN, STD = -0.5, 0.9


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> DownscalingTask:
    """Untrained, two outputs of unequal weight, which are the same field."""
    directory = tmp_path_factory.mktemp("noise")
    write(data := directory / "data", Recipe(n=16, factor=4), 12, 6, 0)
    sources = {"rename": {"u": "t2m"}}
    coarse, fine = ([{"path": str(data / f"train_{side}.zarr"), **sources}] for side in ("coarse", "fine"))
    backbone = {"name": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "attention": False}
    section = {
        "train": {"coarse": coarse, "fine": fine},
        "validation": {"coarse": coarse, "fine": fine, "batch_size": 5},
        "model": {
            "inputs": ["t2m", "u"],
            "outputs": ["t2m", "u"],
            "backbone": backbone,
            "noise": {"mean": MEAN, "std": STD},
            "loss_weights": {"u": 3.0},
        },
    }
    plugin = build(Downscaling, yamlfile.Document({"downscaling": section}), "downscaling")  # type: ignore[dict-item]
    made = prepared(directory / "run", plugin).task
    assert isinstance(made, DownscalingTask)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made


def test_noise_levels_are_quantiles_of_the_training_noise(task: DownscalingTask) -> None:
    """As of ln σ ~ N(mean, std²), by the standard library's inverse."""
    quantiles = torch.tensor([0.001, 0.1, 0.5, 0.77, 0.999], dtype=torch.float64)
    expected = np.exp([NormalDist(MEAN, STD).inv_cdf(q) for q in quantiles.tolist()])
    np.testing.assert_allclose(task.noise_levels(quantiles).numpy(), expected, rtol=1e-9)
    assert isinstance(task, NoiseLevels)


def test_losses_of_samples_are_those_whose_mean_is_learnt(task: DownscalingTask) -> None:
    """At the noise levels that training would draw, with the same noise, for each variable and their mean."""
    data = task.data["train"]
    assert isinstance(data, PairedData)
    batch = data.cases(range(7))
    torch.manual_seed(5)
    expected = task.loss(batch)
    torch.manual_seed(5)
    normal = torch.randn(7).double()  # what the levels are drawn from, before the noise
    with torch.no_grad():
        found = task.loss_at(batch, torch.special.ndtr(normal))
    assert found.keys() == expected.keys()
    for name, losses in found.items():
        assert losses.shape == (7,)
        assert losses.mean().item() == pytest.approx(expected[name].item(), rel=1e-4)
    torch.testing.assert_close(found["loss"], (found["loss/t2m"] + 3 * found["loss/u"]) / 4)


def test_the_loss_of_an_answer_that_is_wrong_by_one(task: DownscalingTask, tmp_path: Path) -> None:
    """The clean field plus 1, whatever the noise, is worth λ(σ) = (σ² + 1)/σ² in every bin: no noise counts."""

    class Wrong(torch.nn.Module):
        clean: torch.Tensor

        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            return self.clean + 1

    wrong = Wrong()
    targets, denoiser = task.model.target, task.model.denoiser

    def remembering(fine: torch.Tensor, upsampled: torch.Tensor) -> torch.Tensor:
        wrong.clean = targets(fine, upsampled)
        return wrong.clean

    task.model.__dict__["target"] = remembering
    task.model.denoiser = wrong  # type: ignore[assignment]
    try:
        found = loss_by_noise(prepared(tmp_path), task, "validation", 3, 8)
    finally:
        del task.model.__dict__["target"]
        task.model.denoiser = denoiser
    assert found is not None
    edges = [0.0, *(np.exp(NormalDist(MEAN, STD).inv_cdf(q)) for q in (1 / 3, 2 / 3)), np.inf]
    for loss, low, high in zip(found.losses["loss"], edges[:-1], edges[1:], strict=True):
        assert 1 + high**-2 < loss < (1 + low**-2 if low else np.inf)
