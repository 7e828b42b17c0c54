"""What a checkpoint costs the training loop: about 60 million parameters, their averages and AdamW's moments.

The bound is the copy of those bytes to (pinned) host memory, measured here as one block. The stall is what
training waits: from an idle device before ``after_batch`` to an idle device after it. Writing afterwards is timed
too, and how much steps slow down meanwhile. Beside it: the same plugin without its thread, a plain ``torch.save``
over the old file, and what ACE's Trainer does (averages cloned, ``torch.save`` to a temporary file, ``os.replace``;
re-enacted, not its code).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import define, field
from torch import nn

from hookloop.core import prepare
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import TinyData, fake_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hookloop.core import Run

TENSORS, SIZE, ROUNDS = 540, 113_000, 5


@define(eq=False)
class Large:
    """540 tensors of 113,000 numbers, about as many as a 60 M U-Net has; the loss pulls them to zero."""

    model: nn.Module
    data: Mapping[str, TinyData] = field(factory=lambda: {"train": TinyData(1_000_000)})

    def loss(self, _batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sum of squares."""
        return {"loss": torch.stack(torch._foreach_norm(list(self.model.parameters()))).square().sum()}  # noqa: SLF001


def make(directory: Path, device: torch.device, checkpoint: Checkpoint) -> Run:
    """A run that has learnt one batch, so that all moments are there."""
    model = nn.ParameterList([torch.randn(SIZE, device=device) for _ in range(TENSORS)])
    run = fake_run(directory, OptimizationPlugin(lr=1e-4), EMA(), checkpoint, task=Large(model))
    run.device = device
    prepare(run)
    step(run)
    checkpoint.after_batch(run)  # the writer gets ready
    checkpoint._hear(run)  # noqa: SLF001
    return run


def step(run: Run) -> None:
    """Learn one batch and average, without saving."""
    batch = torch.zeros(1, device=run.device)
    losses = run.hook.train_step(run=run, batch=batch)
    run.progress.step += 1
    assert losses is not None
    averaging = run.manager.subset_hook_caller("after_batch", [run.plugins["checkpoint"]])
    averaging(run=run, batch=batch, losses=losses)


def synchronized(device: torch.device) -> float:
    """The time at which the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds from idle to idle."""
    began = synchronized(device)
    action()
    return synchronized(device) - began


def bound(nbytes: int, device: torch.device) -> float:
    """Seconds to copy one block of so many bytes to the host: the best of several."""
    host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    block = torch.ones(nbytes, dtype=torch.uint8, device=device)
    return min(timed(lambda: host.copy_(block, non_blocking=True), device) for _ in range(ROUNDS))


def stalls(run: Run, checkpoint: Checkpoint) -> tuple[list[float], list[float], list[float]]:
    """Seconds that training waits for a save, that the rest takes, and of a step meanwhile."""
    waiting, writing, steps = [], [], []
    for _ in range(ROUNDS):
        run.save("benchmark")
        waiting.append(timed(lambda: checkpoint.after_batch(run), run.device))
        began = time.perf_counter()
        while checkpoint._saving is not None and not checkpoint._saving.outcome.done():  # noqa: SLF001
            steps.append(timed(partial(step, run), run.device))
        checkpoint._hear(run)  # noqa: SLF001
        writing.append(time.perf_counter() - began)
        step(run)
    return waiting, writing, steps


def state_of(run: Run) -> dict[str, object]:
    """The same contents, for the others."""
    ema = run.plugins["ema"]
    assert isinstance(ema, EMA)
    return {
        "model": run.task.model.state_dict(),
        "ema": ema.state_dict(),
        "optimization": run.optimization.state_dict(),
    }


def torch_save(run: Run, path: Path) -> None:
    """Over the old file."""
    torch.save(state_of(run), path)


def as_ace(run: Run, path: Path) -> None:
    """Clone the averages, write a temporary file, replace."""
    state = state_of(run)
    state["ema"] = [average.clone() for average in run.plugins["ema"].averages]  # type: ignore[attr-defined]
    temporary = path.with_name(".0.tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def row(name: str, seconds: list[float], least: float, more: str = "") -> None:
    """Print the median, the worst and how often the bound fits into the median."""
    middle = statistics.median(seconds)
    print(
        f"{name:<42}{middle * 1e3:9.1f} ms  worst {max(seconds) * 1e3:8.1f} ms  {middle / least:7.2f} x  {more}"
    )


def main() -> None:
    """Measure on the device named, in a directory that is removed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        for asynchronous in (True, False):
            checkpoint = Checkpoint(every_n_batches=0, asynchronous=asynchronous)
            run = make(directory / str(asynchronous), device, checkpoint)
            nbytes = 4 * TENSORS * SIZE * 4
            least = bound(nbytes, device)
            if asynchronous:
                print(f"{nbytes / 1e9:.3f} GB of state; medians of {ROUNDS}; x is the bound")
                row("bound: copy as one block", [least], least, f"{nbytes / least / 1e9:.1f} GB/s")
                alone = [timed(partial(step, run), device) for _ in range(20)]
            waiting, writing, steps = stalls(run, checkpoint)
            row(f"stall, asynchronous: {asynchronous}", waiting, least)
            if asynchronous:
                row("  writing after it", writing, least)
                row("  a step alone", alone, least)
                row("  a step meanwhile", steps, least, f"{len(steps)} steps")
            with run.cleanup:
                pass
        for label, save in (
            ("torch.save over the old file", torch_save),
            ("as ACE: clone, save, replace", as_ace),
        ):
            path = directory / "other.pt"
            save(run, path)
            row(label, [timed(partial(save, run, path), device) for _ in range(ROUNDS)], least)


if __name__ == "__main__":
    main()
