"""Nothing waits for the device between two logs, and what would is found, also without a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from attrs import define, field
from torch import Tensor

from hookloop import hookimpl
from hookloop.core import Run, train
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.generation import Generation
from hookloop.plugins.jsonl import Jsonl
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.plugins.profile import Profile
from hookloop.plugins.progress import ProgressReport
from hookloop.plugins.signals import Signals
from hookloop.plugins.train_evaluation import TrainEvaluation
from hookloop.testing import TinyData, TinyTask, fake_run, no_hidden_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

EVERY, STEPS = 10, 40


def vector() -> Tensor:
    """Two numbers."""
    return torch.tensor([1.0, 2.0])


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t[0].item(),
        lambda t: float(t[0]),
        lambda t: int(t[0]),
        lambda t: 1 if t[0] > 0 else 2,
        lambda t: f"{t[0]:.3f}",
        lambda t: list(range(t.long()[0])),
        lambda t: bool(torch.isfinite(t).all()),
        lambda t: t.tolist(),
        lambda t: t.numpy(),
        np.asarray,
        lambda t: t.cpu(),
        lambda t: t.nonzero(),
        lambda t: torch.where(t > 1),
        lambda t: t[t > 1],
        lambda t: t.masked_select(t > 1),
        lambda t: t.index_put_((t > 0,), torch.tensor([3.0, 4.0])),
        lambda t: t.unique(),
        lambda t: torch.equal(t, t),
        lambda t: torch.allclose(t, t),
        lambda t: torch.nn.utils.clip_grad_norm_([torch.nn.Parameter(t)], 1.0).item(),
    ],
)
def test_what_waits_is_found(wait: Callable[[Tensor], object]) -> None:
    """Whatever needs a value, or how many there are of something, on the host."""
    wait(vector())
    with pytest.raises(AssertionError, match="waits for the device"), no_hidden_sync():
        wait(vector())


def test_what_does_not_wait_is_left_alone() -> None:
    """Learning with clipping, masks that fill, choices by index, and numbers that lie on the host already."""
    weight = torch.nn.Parameter(vector())
    optimizer = torch.optim.AdamW([weight], fused=True)
    with no_hidden_sync():
        weight.square().mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        found = weight.detach().masked_fill(weight > 1, 0.0)
        found[found > 1] = 0.0
        torch.where(found > 1, found, 0.0)[torch.tensor([1, 0])].add_(torch.randn(2))
        float(np.float32(1.0))
    assert optimizer.state[weight]["step"] == 1


def test_only_tensors_on_the_device_are_looked_at() -> None:
    """What lies elsewhere may be read."""
    with no_hidden_sync(torch.device("mps")):
        assert vector().tolist() == [1.0, 2.0]


def test_it_ends_where_it_ends() -> None:
    """Also after it has found something."""
    with pytest.raises(AssertionError), no_hidden_sync():
        vector().sum().item()
    assert vector().sum().item() == 3.0


@define(eq=False)
class Watch:
    """Watches the whole loop from the end of one batch to the end of another, between all logs but the first."""

    device: torch.device
    watched: int = 0
    _held: ExitStack = field(factory=ExitStack, init=False)

    @hookimpl(trylast=True)
    def after_batch(self, run: Run) -> None:
        """Begin after the batch behind a log, end before the next."""
        if run.progress.step % EVERY == 1 and run.progress.step > EVERY:
            self._held.enter_context(no_hidden_sync(self.device))
        elif run.progress.step % EVERY == EVERY - 1 and run.progress.step > EVERY:
            self._held.close()
            self.watched += EVERY - 2

    @hookimpl
    def shutdown(self) -> None:
        """Let go, whatever happened."""
        self._held.close()


def watched(directory: Path, *extra: object) -> Watch:
    """Train with the default plugins, an average and checkpoints, watched; tell how many batches were."""
    watch = Watch(torch.device("cpu"))
    task = TinyTask(
        data={"train": TinyData(4 * STEPS, 4), "validation": TinyData(4, 2), "more": TinyData(2)}, noise=1.0
    )
    default = (
        OptimizationPlugin(clip_norm=1.0),
        TrainEvaluation(batches=2),
        Generation(),
        ProgressReport(every_n_batches=EVERY),
        Jsonl(),
        Signals(),
        Checkpoint(every_n_batches=2 * EVERY),
    )
    train(fake_run(directory, watch, EMA(), *extra, *default, task=task))
    return watch


def test_a_run_waits_for_nothing_between_its_logs(tmp_path: Path) -> None:
    """Eight of every ten batches are watched, but for the first ten, in which the checkpoint gets ready."""
    assert watched(tmp_path).watched == 3 * (EVERY - 2)


def test_neither_does_one_that_is_profiled(tmp_path: Path) -> None:
    """It measures without waiting."""
    assert watched(tmp_path, Profile(every_n_batches=EVERY, skip=0)).watched == 3 * (EVERY - 2)


@define(eq=False)
class Curious:
    """Looks at the loss of every batch."""

    @hookimpl
    def after_batch(self, losses: Mapping[str, Tensor]) -> None:
        """Wait for it."""
        float(losses["loss"])


def test_a_plugin_that_waits_is_found(tmp_path: Path) -> None:
    """And named by what it did."""
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        watched(tmp_path, Curious())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_the_host_are_found_on_a_gpu() -> None:
    """By torch itself, which knows what waits there; its mode is put back."""
    there = vector().cuda()
    with pytest.raises((AssertionError, RuntimeError)), no_hidden_sync(there.device):
        there.to("cpu")
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_waits_for_nothing_between_its_logs(tmp_path: Path) -> None:
    """By torch's own account."""
    device = torch.device("cuda")
    watch = Watch(device)
    task = TinyTask(data={"train": OnGPU(4 * STEPS, 4), "validation": OnGPU(4, 2)}, noise=1.0)
    task.model.to(device)
    plugins = (EMA(), OptimizationPlugin(), ProgressReport(every_n_batches=EVERY), Jsonl(), Checkpoint())
    run = fake_run(tmp_path, watch, *plugins, task=task)
    run.device = device
    train(run)
    assert watch.watched == 3 * (EVERY - 2)


@define(eq=False)
class OnGPU(TinyData):
    """Batches that are on the GPU already."""

    def batches(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        """All of them, pinned and copied without waiting."""
        for batch in super().batches(*args, **kwargs):  # type: ignore[arg-type]
            yield batch.pin_memory().to("cuda", non_blocking=True)
