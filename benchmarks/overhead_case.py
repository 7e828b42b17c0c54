"""What ``overhead.py`` trains, and how it is timed: blocks of steps beside blocks of the bare loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from attrs import define, field
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

STEPS = 100
"""A block: what is done every 50 or 100 steps falls into each."""
WARM_UP = 2
"""Blocks that are not counted."""
RATE = 1e-3


def network() -> nn.Module:
    """The network of the published comparison: 32 → 32 → 1."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


@define(eq=False)
class Bare:
    """The loop anyone would write, and the bound."""

    model: nn.Module = field(factory=network)
    optimizer: torch.optim.Optimizer = field(init=False)
    batch: tuple[Tensor, Tensor] = field(factory=lambda: (torch.randn(16, 32), torch.randn(16, 1)))

    def __attrs_post_init__(self) -> None:
        """Make the optimizer."""
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)

    def learn(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Learn from each batch."""
        for x, y in batches:
            nn.functional.mse_loss(self.model(x), y).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def repeated(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batch, over and over: no data to wait for."""
        for _ in range(n):
            yield self.batch


@define(eq=False)
class Feed:
    """The batches of whoever is measured. Before each block the bare loop learns as many of its own.

    So a machine that is slow for a while slows both alike, and neither the start nor the end of a run counts. Time
    is that of the process on the CPU, all threads of it: what others do on the machine does not count. A loop that
    fetches one batch ahead is timed for as many steps as one that does not.
    """

    blocks: int
    bare: Bare = field(factory=Bare)
    pairs: list[tuple[float, float]] = field(factory=list)
    """Seconds a step of each block, and of the bare loop just before it."""

    @property
    def n_steps(self) -> int:
        """All steps, those of the warm-up too."""
        return (WARM_UP + self.blocks) * STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every batch, and time what happens between two of them."""
        for block in range(WARM_UP + self.blocks):
            began = time.process_time()
            self.bare.learn(self.bare.repeated(STEPS))
            between = time.process_time()
            yield from self.bare.repeated(STEPS)
            ended = time.process_time()
            if block >= WARM_UP:
                self.pairs.append(((ended - between) / STEPS, (between - began) / STEPS))
