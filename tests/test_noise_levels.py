"""The loss by noise level: equally filled bins, the same noise each time, means by arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest
import torch
from attrs import define, field
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from hookloop.distributed import Ranks, Share
from hookloop.noise_levels import LossByNoise, loss_by_noise, stratified
from hookloop.task import NoiseLevels
from hookloop.testing import TinyData, TinyTask, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

T = TypeVar("T")


@define(eq=False)
class Denoising(TinyTask):
    """Its noise level is ten times the quantile, its loss the square of the level, plus the noise drawn."""

    seen: list[tuple[list[float], list[float]]] = field(factory=list)
    """Samples and their quantiles, by batch."""
    drawn: float = 0.0

    def noise_levels(self, quantiles: Tensor) -> Tensor:
        """Ten times the quantile."""
        return 10 * quantiles

    def loss_at(self, batch: Tensor, quantiles: Tensor) -> Mapping[str, Tensor]:
        """The square of the level, and ten times that of a variable."""
        self.seen.append((batch.tolist(), quantiles.tolist()))
        loss = self.noise_levels(quantiles) ** 2 + self.drawn * torch.randn(len(batch))
        return {"loss": loss, "loss/t": 10 * loss}


def denoising(n_samples: int, batch_size: int, **options: float) -> Denoising:
    return Denoising(
        data={"train": TinyData(1), "validation": TinyData(n_samples, batch_size)},
        **options,  # type: ignore[arg-type]
    )


def measured(directory: Path, task: Denoising, bins: int, batches: int) -> LossByNoise:
    assert isinstance(task, NoiseLevels)
    found = loss_by_noise(prepared(directory, task=task), task, "validation", bins, batches)
    assert found is not None
    return found


def test_the_tiny_task_has_no_noise_levels() -> None:
    """So it is left alone."""
    assert not isinstance(TinyTask(), NoiseLevels)


@given(st.integers(0, 200), st.integers(0, 1000), st.integers(1, 30))
def test_bins_are_filled_alike_and_quantiles_lie_within(size: int, offset: int, bins: int) -> None:
    """No bin has two samples more than another, and each quantile lies between the ends of its bin."""
    strata, quantiles = stratified(size, offset, bins, torch.Generator().manual_seed(0))
    counts = torch.bincount(strata, minlength=bins)
    assert counts.max() - counts.min() <= 1
    assert bool(((quantiles * bins >= strata - 1e-6) & (quantiles * bins <= strata + 1 + 1e-6)).all())
    assert bool(((quantiles > 0) & (quantiles < 1)).all())


def test_bins_come_in_random_order() -> None:
    """The first of 4 samples is of each bin as often (χ² over 400 draws), and they are not in turn."""
    drawn = [stratified(4, 0, 4, torch.Generator().manual_seed(seed))[0].tolist() for seed in range(400)]
    assert all(sorted(strata) == [0, 1, 2, 3] for strata in drawn)
    first = [sum(strata[0] == j for strata in drawn) for j in range(4)]
    assert stats.chisquare(first).pvalue > 0.01
    in_turn = sum(strata[(j + 1) % 4] == (strata[j] + 1) % 4 for strata in drawn for j in range(4))
    # Each of the 4 places follows with probability 1/3.
    assert in_turn / 1600 == pytest.approx(1 / 3, abs=0.05)


def test_means_of_what_fell_into_each_bin(tmp_path: Path) -> None:
    """With 5 batches of 4 samples, the last of 3, in 3 bins: the means of the squares, sorted by hand."""
    task = denoising(19, 4)
    found = measured(tmp_path, task, 3, 8)
    quantiles = [q for _, own in task.seen for q in own]
    by_bin = [[100 * q * q for q in quantiles if int(3 * q) == j] for j in range(3)]
    assert [len(own) for own in by_bin] == [7, 6, 6]
    means = [sum(own) / len(own) for own in by_bin]
    assert found.losses["loss"] == pytest.approx(means, rel=1e-6)
    assert found.losses["loss/t"] == pytest.approx([10 * mean for mean in means], rel=1e-6)
    assert found.sigma == pytest.approx([10 / 6, 5.0, 50 / 6])
    assert found.metrics() == {
        "1_sigma_1.67": pytest.approx(means[0]),
        "2_sigma_5": pytest.approx(means[1]),
        "3_sigma_8.33": pytest.approx(means[2]),
    }


@define(eq=False)
class InTurn(Ranks):
    """Ranks that come one after another: the last of them hears of all."""

    heard: list[object] = field(factory=list)

    def gather(self, value: T) -> list[T]:
        """Give what was said so far."""
        self.heard.append(value)
        return list(self.heard)  # type: ignore[arg-type]


@define(eq=False)
class Divided(TinyTask):
    """Its noise level is the quantile, its loss that and the number of the sample."""

    world: int = 1
    rank: int = 0

    def noise_levels(self, quantiles: Tensor) -> Tensor:
        """The quantile."""
        return quantiles

    def loss_at(self, batch: Tensor, quantiles: Tensor) -> Mapping[str, Tensor]:
        """The loss of the own rows of a batch for all of which there are quantiles."""
        own = list(Share(self.rank, self.world).rows(len(quantiles)))
        return {"loss": batch.double() ** 2 + quantiles[own]}


@given(n=st.integers(1, 40), batch_size=st.integers(1, 12), world=st.integers(2, 9), bins=st.integers(1, 6))
@many(60)
def test_ranks_have_what_one_has(
    tmp_path_factory: pytest.TempPathFactory, n: int, batch_size: int, world: int, bins: int
) -> None:
    """For any sizes, also where there are more ranks than samples in a batch: each sample is counted once."""
    data = {"train": TinyData(1), "validation": TinyData(n, batch_size)}
    task = Divided(data=data)
    run = prepared(tmp_path_factory.getbasetemp(), task=task)
    one = loss_by_noise(run, task, "validation", bins, 3)
    heard: list[object] = []
    for rank in range(world):
        run.ranks, task.world, task.rank = InTurn(rank, world, heard=heard), world, rank
        found = loss_by_noise(run, task, "validation", bins, 3)
    assert one is not None
    assert found is not None
    assert (found.numbers, found.sigma) == (one.numbers, one.sigma)
    assert found.losses["loss"] == pytest.approx(one.losses["loss"], rel=1e-12)


def test_batches_are_spread_over_the_split(tmp_path: Path) -> None:
    """Three of ten batches are the first, the fourth and the seventh."""
    task = denoising(20, 2)
    measured(tmp_path, task, 2, 3)
    assert [samples for samples, _ in task.seen] == [[0.0, 1.0], [6.0, 7.0], [12.0, 13.0]]


def test_the_same_noise_at_every_call(tmp_path: Path) -> None:
    """Whatever was drawn in between; another seed of the run draws other noise."""
    task = denoising(12, 4, drawn=1.0)
    run = prepared(tmp_path, task=task)
    first, _, second = (
        loss_by_noise(run, task, "validation", 4, 8),
        torch.randn(7),
        loss_by_noise(run, task, "validation", 4, 8),
    )
    other = loss_by_noise(prepared(tmp_path, task=task, seed=1), task, "validation", 4, 8)
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.losses == second.losses
    assert set(first.losses["loss"]).isdisjoint(other.losses["loss"])


def test_bins_without_samples_are_left_out(tmp_path: Path) -> None:
    """Two samples fill two of five bins, told by their own numbers; nothing is divided by nothing."""
    task = denoising(2, 2)
    found = measured(tmp_path, task, 5, 8)
    (_, quantiles), *_ = task.seen
    assert sorted(found.numbers) == sorted(1 + int(5 * q) for q in quantiles)
    assert found.sigma == pytest.approx([10 * (number - 0.5) / 5 for number in found.numbers])
    assert len(found.losses["loss"]) == 2


def test_keys_sort_by_noise() -> None:
    """Also where levels differ in their number of digits."""
    sigma = [0.00123, 0.5, 3.0, 20.0, 1e5, *(1e5 + i for i in range(1, 7))]
    found = LossByNoise(range(1, 12), 11, sigma, {"loss": [float(i) for i in range(11)]})
    names = list(found.metrics())
    assert names == sorted(names)
    assert names[0] == "01_sigma_0.00123"
    assert list(found.metrics().values()) == [float(i) for i in range(11)]


def test_the_chart_draws_variables_where_there_are_several() -> None:
    """One variable is the loss itself; each has as many points as there are bins."""
    losses = {"loss": [1.0, 2.0], "loss/t": [1.0, 2.0]}
    assert list(LossByNoise([1, 2], 2, [0.1, 1.0], losses).chart().lines) == ["loss"]
    both = LossByNoise([1, 2], 2, [0.1, 1.0], losses | {"loss/u": [3.0, 4.0]}).chart()
    assert both.lines == {"loss": [1.0, 2.0], "t": [1.0, 2.0], "u": [3.0, 4.0]}
    assert both.x == [0.1, 1.0]
    assert both.xscale == "log"


def test_nothing_once_the_run_is_asked_to_stop(tmp_path: Path) -> None:
    """Between batches."""

    @define(eq=False)
    class Stopping(Denoising):
        def loss_at(self, batch: Tensor, quantiles: Tensor) -> Mapping[str, Tensor]:
            run.stop("enough")
            return Denoising.loss_at(self, batch, quantiles)

    task = Stopping(data={"train": TinyData(1), "validation": TinyData(4, 1)})
    run = prepared(tmp_path, task=task)
    assert loss_by_noise(run, task, "validation", 2, 4) is None
    assert len(task.seen) == 1
