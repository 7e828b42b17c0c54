"""What the loop costs: a tiny network trained by a bare PyTorch loop, by hookloop and by its peers, in one run.

The bound is the bare loop: the same network, batches and optimizer, nothing else. Everybody learns blocks of
steps between which the bare loop learns its own (see ``overhead_case.py``); what is reported is the ratio of each
block to its bare neighbour, the median over blocks, then over rounds. The peers need an environment of their own,
see ``requirements-peers.txt``; those that are not installed are skipped.

    OMP_NUM_THREADS=1 PEERS/bin/python benchmarks/overhead.py 2>errors.txt
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import define, field
from overhead_case import RATE, STEPS, Bare, Feed, network
from overhead_peers import PEERS
from torch import nn

from hookloop import hookimpl
from hookloop.core import train
from hookloop.manager import ALWAYS, load
from hookloop.optimizers import eager
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import fake_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


def bare(feed: Feed, _directory: Path) -> None:
    """The bound itself: how far from 1 it is shows how far to trust the others."""
    Bare().learn(iter(feed))


def seeded(feed: Feed, _directory: Path) -> None:
    """The bare loop, which seeds torch at each step by the step's number, as exact resume needs it."""
    learner = Bare()
    generator = torch.default_generator

    def seeding() -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(feed):
            digest = hashlib.blake2b(f"0/train/{step}".encode(), digest_size=8).digest()
            generator.manual_seed(int.from_bytes(digest, "big") >> 1)
            yield batch

    learner.learn(seeding())


def lean(feed: Feed, _directory: Path) -> None:
    """The bare loop with the optimizer as hookloop has it: without torch's compiler and marks for its profiler."""
    model = network()
    optimizer = eager(torch.optim.SGD)(model.parameters(), lr=RATE)
    for x, y in feed:
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def averaged(feed: Feed, _directory: Path) -> None:
    """The bare loop, with an average of the weights by one foreach call."""
    learner = Bare()
    weights = list(learner.model.parameters())
    averages = [weight.detach().clone() for weight in weights]

    def averaging() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in feed:
            yield batch
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1e-4)

    learner.learn(averaging())


@define(eq=False)
class Batches:
    """The feed as a split; what is read beside training is not timed."""

    feed: Feed
    batch_size: int = 16

    @property
    def n_batches(self) -> int:
        """One epoch is the whole measurement."""
        return self.feed.n_steps

    @property
    def n_samples(self) -> int:
        """Samples an epoch."""
        return self.n_batches * self.batch_size

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: str = "main"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every batch the same."""
        if stop is not None:
            return self.feed.bare.repeated(stop - start)
        return iter(self.feed)


@define(eq=False)
class Regression:
    """The task: mean squared error of the tiny network."""

    data: dict[str, Batches] = field(init=False, factory=dict)
    model: nn.Module = field(init=False, factory=network)

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Mean squared error."""
        return {"loss": nn.functional.mse_loss(self.model(batch[0]), batch[1])}

    @hookimpl
    def make_task(self) -> Regression:
        """Itself."""
        return self


def hookloop(feed: Feed, directory: Path, *names: str) -> None:
    """One epoch of the real loop with the plugins of these names."""
    plugins = [load(name)() for name in names]
    task = Regression()
    task.data["train"] = Batches(feed)
    train(fake_run(directory, *plugins, task, OptimizationPlugin(optimizer="SGD", lr=RATE)))


DEFAULT = [name for name in ALWAYS if name != "optimization"]
"""The plugins that are on unless they are left out."""
VARIANTS: dict[str, Callable[[Feed, Path], None]] = {
    "bare PyTorch loop": bare,
    "bare loop, seeded each step": seeded,
    "bare loop, optimizer as in hookloop": lean,
    "bare loop, weights averaged": averaged,
    "hookloop, empty": hookloop,
    "hookloop, default plugins": lambda feed, directory: hookloop(feed, directory, *DEFAULT),
    "hookloop, default plugins and ema": lambda feed, directory: hookloop(feed, directory, "ema", *DEFAULT),
    **PEERS,
}


@define
class Row:
    """What was measured of a variant."""

    ratios: list[float] = field(factory=list)
    """To the bare loop, of each round the median over its blocks."""
    added: list[float] = field(factory=list)
    """Seconds a step more than the bare loop, likewise."""
    totals: list[float] = field(factory=list)
    """Ratios of the sums, in which rare work such as saving counts, and every disturbance too."""
    quiet: list[float] = field(factory=list)
    """Ratios of the tenth percentiles: what disturbs a machine that others use does not count."""

    def add(self, pairs: list[tuple[float, float]]) -> None:
        """Take in a round."""
        self.ratios.append(statistics.median(own / plain for own, plain in pairs))
        self.added.append(statistics.median(own - plain for own, plain in pairs))
        own, plain = (sorted(times)[len(pairs) // 10] for times in zip(*pairs, strict=True))
        self.quiet.append(own / plain)
        self.totals.append(sum(own for own, _ in pairs) / sum(plain for _, plain in pairs))

    def __str__(self) -> str:
        """The row of the table after its name."""
        span = f"[{min(self.ratios):.2f}–{max(self.ratios):.2f}]"
        return (
            f"{statistics.median(self.ratios):>8.3f} {span:>13}{statistics.median(self.added) * 1e6:>9.1f}"
            f"{statistics.median(self.quiet):>9.3f}{statistics.median(self.totals):>9.3f}"
        )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=20, help=f"blocks a round, of {STEPS} steps each")
    parser.add_argument("--only", default="", help="those whose names hold this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.remove(str(Path(__file__).resolve().parent))  # a script beside this one is no package "kernels"
    rows = {name: Row() for name in VARIANTS if options.only in name}
    bound: list[float] = []
    for _ in range(options.rounds):
        for name in list(rows):
            feed = Feed(options.blocks)
            try:
                with tempfile.TemporaryDirectory() as directory, redirect_stdout(sys.stderr):
                    VARIANTS[name](feed, Path(directory))
            except ModuleNotFoundError as missing:
                print(f"skipped: {name}: {missing}")
                del rows[name]
                continue
            rows[name].add(feed.pairs)
            bound += [plain for _, plain in feed.pairs]
    machine = platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(
        f"{options.rounds} rounds of {options.blocks} blocks of {STEPS} steps; a step of the bare loop: ",
        end="",
    )
    print(f"{statistics.median(bound) * 1e6:.0f} µs")
    print(f"{'':<44}{'ratio':>8} {'of rounds':>13}{'added µs':>9}{'quiet':>9}{'of sums':>9}")
    for name, row in rows.items():
        print(f"{name:<44}{row}")


if __name__ == "__main__":
    main()
