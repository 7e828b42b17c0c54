from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest
import torch
from attrs import define, field
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks
from torch import nn

from hookloop.distributed import Ranks
from hookloop.evaluation import evaluating, mean_losses
from hookloop.testing import TinyData, TinyTask, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hookloop.core import Run

T = TypeVar("T")


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


def test_one_rank_adds_up_in_single_precision(tmp_path: Path) -> None:
    """Bit for bit float32 arithmetic, batch by batch: Σ loss · size, then divided."""
    task = TinyTask(data={"train": TinyData(), "validation": TinyData(8, 3)})
    run = prepared(tmp_path, task=task)
    with torch.no_grad():
        task.model.get_parameter("weight").fill_(0.1)
    single = torch.tensor(0.0)
    for samples in ([0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0]):
        mean = (torch.tensor(0.1) - torch.tensor(samples)).square().mean()
        single = single + mean * len(samples)
    assert mean_losses(run, "validation") == {"loss": float(single) / 8}


@define(eq=False)
class Exact(TinyTask):
    """The tiny task in float64, its loss in parts of very different size."""

    def loss(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """A mean, and one that nearly cancels."""
        noise = self.noise * torch.randn((), dtype=torch.float64)
        values = batch.double() + 0.1
        return {"loss": values.square().mean() + noise, "loss/sine": (100 * values.sin()).mean()}


@define(eq=False)
class InTurn(Ranks):
    """Ranks that come one after another: the last of them hears of all."""

    heard: list[object] = field(factory=list)

    def gather(self, value: T) -> list[T]:
        """Give what was said so far."""
        self.heard.append(value)
        return list(self.heard)  # type: ignore[arg-type]


def of_ranks(run: Run, world: int, split: str = "validation") -> dict[str, float] | None:
    """What the last of some ranks has."""
    heard: list[object] = []
    for rank in range(world):
        run.ranks = InTurn(rank, world, heard=heard)
        found = mean_losses(run, split)
    assert len(heard) == world
    return found


@given(n=st.integers(1, 40), batch_size=st.integers(1, 12), world=st.integers(2, 9))
@many(60)
def test_ranks_have_what_one_has(
    tmp_path_factory: pytest.TempPathFactory, n: int, batch_size: int, world: int
) -> None:
    """To rounding in float64, for any sizes, also where there are more ranks than samples in a batch."""
    task = Exact(data={"train": TinyData(), "validation": TinyData(n, batch_size)}, noise=0.3)
    run = prepared(tmp_path_factory.getbasetemp(), task=task)
    one = mean_losses(run, "validation")
    assert one is not None
    found = of_ranks(run, world)
    assert found is not None
    assert found["loss"] == pytest.approx(one["loss"], rel=1e-12)
    assert found["loss/sine"] == pytest.approx(one["loss/sine"], rel=1e-12, abs=1e-11)


def on_a_rank(ranks: Ranks, directory: Path) -> list[dict[str, float] | None]:
    """Losses of some splits, the last of which rank 1 asks to stop in, at its third batch."""
    data = {f"s{n}": TinyData(n, 5) for n in (13, 10, 1)} | {"train": TinyData()}
    task = Exact(data=data, noise=0.3)
    run = prepared(directory / str(ranks.rank), task=task)
    run.ranks = ranks
    found = [mean_losses(run, split) for split in ("s13", "s10", "s1")]
    stopping = prepared(directory / str(ranks.rank), task=(asking := Asking(data={"train": TinyData(30, 5)})))
    stopping.ranks, asking.run = ranks, stopping
    found.append(mean_losses(stopping, "train"))
    assert stopping.stopping is not None
    return [*found, {"batches": float(asking.batches)}]


@define(eq=False)
class Asking(TinyTask):
    """Asks to stop in the third batch, on rank 1."""

    run: Run | None = None
    batches: int = 0

    def loss(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The tiny loss."""
        self.batches += 1
        assert self.run is not None
        if self.batches == 3 and self.run.ranks.rank == 1:
            self.run.stop("enough")
        return TinyTask.loss(self, batch)


def test_processes_have_what_one_has(tmp_path: Path) -> None:
    """Three real ones, each the same numbers; asked to stop by one of them, all leave before the same batch."""
    first, *others = on_ranks(3, on_a_rank, tmp_path)
    assert all(other == first for other in others)
    for n, found in zip((13, 10, 1), first, strict=False):
        task = Exact(data={"train": TinyData(n, 5)}, noise=0.3)
        one = mean_losses(prepared(tmp_path, task=task), "train")
        assert found == pytest.approx(one, rel=1e-12)
    assert first[3:] == [None, {"batches": 3.0}]


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
