"""Noise: a stream for each member, and that of a batch which several processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@frozen
class Rows:
    """Which rows of a batch are here, where several processes share it: noise is drawn for all of it.

    So a row has the same noise whoever has it. That takes each process the memory and time to draw the whole.
    """

    numbers: range
    """The own rows."""
    total: int
    """How many there are in all."""

    @classmethod
    def whole(cls, total: int) -> Rows:
        """All rows of a batch."""
        return cls(range(total), total)

    def of(self, drawn: Tensor) -> Tensor:
        """Take the own rows of what was *drawn* for all, ``[total, …]``."""
        own = self.numbers
        return drawn if len(own) == self.total else drawn[own.start : own.stop : own.step]

    def part(self, device: torch.device) -> None:
        """Reseed torch's generators, which have drawn alike in all processes: masks of dropout are to differ.

        Where the whole batch is here they stay as they are. Nothing waits for the *device*.
        """
        if len(self.numbers) == self.total:
            return
        seed = int(torch.randint(2**62, ())) + self.numbers.start
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)


class MemberNoise:
    """Standard normal noise of several members, each from a generator of its own, so that it is the same alone.

    :param seeds: of each member.
    :param shape: of one member.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> None:
        self.shape, self.device = tuple(shape), device
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self) -> Tensor:
        """Draw on: ``[member, *shape]``, float32."""
        return torch.stack(
            [torch.randn(self.shape, device=self.device, generator=g) for g in self.generators]
        )
