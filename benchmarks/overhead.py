"""What the loop costs: a tiny network trained by a bare PyTorch loop and by hookloop, interleaved.

The bound is the bare loop itself: the same model, batches, optimizer and number of steps, nothing else.
Blocks of steps alternate between the variants, so that a busy machine slows all of them alike; the ratio of
each block to its bare neighbour is what is reported (median).
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import define, field
from torch import nn

from hookloop import hookimpl
from hookloop.core import train
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.jsonl import Jsonl
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.plugins.progress import ProgressReport
from hookloop.plugins.signals import Signals
from hookloop.testing import fake_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS, ROUNDS = 500, 30


def network() -> nn.Module:
    """The network of the published comparison: 32 → 32 → 1."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


@define(eq=False)
class Batches:
    """The same 16 samples, over and over: no data to wait for."""

    n_samples: int = 16 * STEPS
    batch_size: int = 16
    n_batches: int = STEPS
    batch: tuple[torch.Tensor, torch.Tensor] = field(
        factory=lambda: (torch.randn(16, 32), torch.randn(16, 1))
    )

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: str = "main"
    ) -> Iterator[object]:
        """Every batch the same."""
        for _ in range(start, self.n_batches if stop is None else stop):
            yield self.batch


@define(eq=False)
class Regression:
    """The task: mean squared error of the tiny network."""

    data: dict[str, Batches] = field(init=False, factory=lambda: {"train": Batches()})
    model: nn.Module = field(init=False, factory=network)

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mean squared error."""
        return {"loss": nn.functional.mse_loss(self.model(batch[0]), batch[1])}

    @hookimpl
    def make_task(self) -> Regression:
        """Itself."""
        return self


def bare() -> float:
    """The loop anyone would write: seconds a step."""
    task = Regression()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-3)
    began = time.perf_counter()
    for batch in task.data["train"].batches(0):
        loss = task.loss(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / STEPS


def seeded() -> float:
    """The bare loop, seeded at each step as exact resume needs it."""
    task = Regression()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-3)
    began = time.perf_counter()
    for step, batch in enumerate(task.data["train"].batches(0)):
        torch.default_generator.manual_seed(step)
        loss = task.loss(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / STEPS


@define(eq=False)
class Clock:
    """Times the batches of an epoch from inside, so that start and end of the run do not count."""

    began: float = 0.0
    seconds: float = 0.0

    @hookimpl(trylast=True)  # after everyone else has got ready
    def before_epoch(self) -> None:
        """Start."""
        self.began = time.perf_counter()

    @hookimpl(wrapper=True, tryfirst=True)  # before anything that validation does
    def validate(self) -> Iterator[None]:
        """Stop."""
        self.seconds = (time.perf_counter() - self.began) / STEPS
        return (yield)


def hookloop(*plugins: object) -> float:
    """One epoch of the real loop with these plugins: seconds a step."""
    with tempfile.TemporaryDirectory() as directory:
        clock = Clock()
        run = fake_run(
            Path(directory), Regression(), OptimizationPlugin(optimizer="SGD", lr=1e-3), *plugins, clock
        )
        train(run)
        return clock.seconds


VARIANTS: dict[str, Callable[[], float]] = {
    "bare PyTorch loop": bare,
    "bare loop, seeded each step": seeded,
    "hookloop, empty": hookloop,
    "hookloop, default plugins and ema": lambda: hookloop(
        EMA(), ProgressReport(first_batch=False), Jsonl(), Signals(), Checkpoint()
    ),
}


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name, variant in VARIANTS.items():
            times[name].append(variant())
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, Python {sys.version.split()[0]}"
    )
    print(f"{STEPS} steps a block, {ROUNDS} blocks, medians")
    print(f"{'variant':<36}{'µs/step':>9}{'ratio':>8}{'added µs':>10}")
    for name, seconds in times.items():
        ratios = [s / b for s, b in zip(seconds, times["bare PyTorch loop"], strict=True)]
        added = [(s - b) * 1e6 for s, b in zip(seconds, times["bare PyTorch loop"], strict=True)]
        print(
            f"{name:<36}{statistics.median(seconds) * 1e6:>9.1f}{statistics.median(ratios):>8.3f}"
            f"{statistics.median(added):>10.1f}"
        )


if __name__ == "__main__":
    main()
