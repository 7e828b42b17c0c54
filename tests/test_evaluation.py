from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field
from torch import nn

from hookloop.evaluation import evaluating, mean_losses
from hookloop.testing import TinyData, TinyTask, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@define(eq=False)
class Watching(TinyTask):
    """Notes how its loss is called; the loss has a second, named part."""

    modes: list[tuple[bool, bool]] = field(factory=list)
    batches: list[list[float]] = field(factory=list)

    def loss(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The mean of the batch, and a constant."""
        self.modes.append((self.model.training, torch.is_grad_enabled()))
        self.batches.append(batch.tolist())
        noise = self.noise * torch.randn(())
        return {"loss": batch.mean() + noise, "loss/two": torch.tensor(2.0, dtype=torch.bfloat16)}


def watching(n_samples: int, batch_size: int, noise: float = 0.0) -> Watching:
    """A task with as many validation samples."""
    data = {"train": TinyData(), "validation": TinyData(n_samples, batch_size)}
    return Watching(data=data, noise=noise)


def test_a_short_last_batch_counts_by_its_samples(tmp_path: Path) -> None:
    """The mean of 0…4 is 2, also in batches of 2, 2 and 1."""
    run = prepared(tmp_path, task=watching(5, 2))
    assert mean_losses(run, "validation") == {"loss": 2.0, "loss/two": 2.0}


def test_only_so_many_batches(tmp_path: Path) -> None:
    """Of batches (0, 1), (2, 3), (4) the first two have the mean 1.5; the alternate order is 4, 3, 2, 1."""
    run = prepared(tmp_path, task=watching(5, 2))
    assert mean_losses(run, "validation", batches=2) == {"loss": 1.5, "loss/two": 2.0}
    assert mean_losses(run, "validation", batches=2, order="alternate") == {"loss": 2.5, "loss/two": 2.0}
    assert mean_losses(run, "validation", batches=9) == mean_losses(run, "validation")


def test_noise_is_the_same_at_every_call(tmp_path: Path) -> None:
    """Two evaluations agree whatever was drawn in between, and their batches have different noise."""
    run = prepared(tmp_path, task=watching(4, 1, noise=1.0))
    first = mean_losses(run, "validation")
    torch.rand(7)
    assert mean_losses(run, "validation") == first
    noise = [
        torch.randn((), generator=torch.Generator().manual_seed(run.seed("evaluate", i))) for i in range(4)
    ]
    assert len({float(n) for n in noise}) == 4
    assert first is not None
    assert first["loss"] == pytest.approx(float(1.5 + torch.stack(noise).mean()))


def test_evaluates_without_gradients_in_evaluation_mode(tmp_path: Path) -> None:
    """The model is in evaluation mode meanwhile, builds no graph, and is trained on afterwards."""
    task = watching(2, 1)
    run = prepared(tmp_path, task=task)
    mean_losses(run, "validation")
    assert task.modes == [(False, False)] * 2
    assert task.model.training


def test_a_request_to_stop_ends_it(tmp_path: Path) -> None:
    """Asked to stop, nothing more is looked at and there is no mean."""
    task = watching(4, 1)
    run = prepared(tmp_path, task=task)
    run.stop("enough")
    assert mean_losses(run, "validation") is None
    assert task.batches == []


def test_the_mode_comes_back_after_an_error() -> None:
    """Whatever is raised meanwhile, the model has the mode it had."""
    model = nn.Dropout()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training
        raise RuntimeError
    assert model.training
    model.eval()
    with evaluating(model):
        pass
    assert not model.training
