"""The downscaling task on several ranks: the same losses, gradients and statistics as on one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from attrs import evolve
from ranks import on_ranks

import hookloop.data.places
import hookloop.data.readers
import hookloop.plugins.downscaling.splits
from hookloop import yamlfile
from hookloop.config import build
from hookloop.core import prepare
from hookloop.distributed import Ranks, Share
from hookloop.evaluation import mean_losses
from hookloop.noise_levels import loss_by_noise
from hookloop.plugins.distributed import Distributed
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.model import DownscalingTask
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.splits import open_data, open_pairs
from hookloop.plugins.downscaling.synthetic import Recipe
from hookloop.testing import events_of, fake_run, prepared

BACKBONE = {"name": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": False}


def plugin(data: Path, cache: str = "auto") -> Downscaling:
    """Patches of 12 hours in batches of five, and 6 hours to look at in batches of four."""
    kinds = {"train": "zarr", "validation": "nc"}
    splits = {
        name: {side: [str(data / f"{name}_{side}.{kind}")] for side in ("coarse", "fine")} | {"cache": cache}
        for name, kind in kinds.items()
    }
    section = {
        "train": splits["train"] | {"batch_size": 5, "workers": 0},
        "validation": splits["validation"] | {"batch_size": 4, "workers": 0},
        "model": {"inputs": ["t2m"], "outputs": ["t2m"], "features": ["hour"], "backbone": BACKBONE},
        "patch": {"coarse": [3, 2], "per_sample": 1},
    }
    document = yamlfile.Document({"downscaling": section})  # type: ignore[dict-item]
    return build(Downscaling, document, "downscaling")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files of 16x16 and 4x4 cells."""
    write(directory := tmp_path_factory.mktemp("shared") / "data", Recipe(n=16, factor=4), 12, 6, 0)
    return directory


def gradients(task: DownscalingTask, share: Share, number: int) -> tuple[float, torch.Tensor]:
    """The weighted loss of a batch, and its gradient with respect to all weights."""
    split = task.data["train"].shared(share)  # type: ignore[attr-defined]
    (batch,) = split.batches(0, number, number + 1)
    torch.manual_seed(7)
    loss = share.weight(batch.rows.total) * task.loss(batch)["loss"]
    return loss.item(), torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(task.model.parameters()))]
    )


@pytest.mark.parametrize("world", [2, 4, 7])
@pytest.mark.parametrize("number", [0, 2])
def test_a_step_of_ranks_is_that_of_one(data: Path, tmp_path: Path, world: int, number: int) -> None:
    """Of a whole batch and of the last two samples: weighted losses and gradients have the mean of the whole."""
    task = prepared(tmp_path, plugin(data)).task
    assert isinstance(task, DownscalingTask)
    loss, gradient = gradients(task, Share(), number)
    found = [gradients(task, Share(rank, world), number) for rank in range(world)]
    assert sum(own for own, _ in found) / world == pytest.approx(loss, rel=1e-5)
    mean = torch.stack([own for _, own in found]).mean(0)
    assert (mean - gradient).norm() < 1e-5 * gradient.norm()


def test_processes_of_a_machine_divide_its_memory_and_cores(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splits that take a fifth of what may be filled are held by four processes; of six each reads with 32/6 - 1."""
    options = plugin(data)
    options = evolve(options, validation=evolve(options.validation, workers="auto"))
    nbytes = sum(pair.nbytes for pair in open_pairs(options).values())
    monkeypatch.setattr(hookloop.data.places, "memory_of_machine", lambda: 4 * 5 * nbytes)
    monkeypatch.setattr(hookloop.data.readers.os, "sched_getaffinity", lambda _: range(32))
    for processes, expected in ((4, None), (6, 4)):
        monkeypatch.setattr(hookloop.plugins.downscaling.splits, "on_this_host", lambda _, n=processes: n)
        run = fake_run(tmp_path / str(processes), options)
        store = open_data(options, open_pairs(options), run)["validation"].store
        assert getattr(store, "workers", None) == expected
        run.cleanup.close()


def on_a_rank(ranks: Ranks, data: Path, directory: Path, cache: str) -> dict[str, object]:
    """What a rank of a run measures, and of whom it knows what has been measured before."""
    with TemporaryDirectory() as alone, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOOKLOOP_CACHE", ranks.broadcast(alone))
        run = fake_run(directory / str(ranks.rank), plugin(data, cache), Distributed())
        run.ranks = ranks
        prepare(run)
        assert isinstance(run.task, DownscalingTask)
        by_noise = loss_by_noise(run, run.task, "validation", 3, 8)
        assert by_noise is not None
        found = {
            "weights": [value.numpy().tobytes() for value in run.task.model.state_dict().values()],
            "losses": mean_losses(run, "validation"),
            "by_noise": by_noise.metrics(),
            "cached": [(event["event"], event["cached"]) for event in events_of(run) if "cached" in event],
        }
        ranks.gather(None)  # nobody removes the cache that others read
    return found


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_two_processes_measure_once_and_validate_as_one(data: Path, tmp_path: Path, cache: str) -> None:
    """Rank 0 measures and checks, the other one finds that; both have the losses of one process."""
    first, second = on_ranks(2, on_a_rank, data, tmp_path, cache)
    measured = ["data.measured"] if cache == "ram" else ["data.measured", "data.checked"]
    assert first.pop("cached") == [(event, False) for event in measured]
    assert second.pop("cached") == [(event, True) for event in measured]
    assert first == second
    one = on_a_rank(Ranks(), data, tmp_path, cache)
    assert first["weights"] == one["weights"]
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert first["by_noise"] == pytest.approx(one["by_noise"], rel=1e-6)
