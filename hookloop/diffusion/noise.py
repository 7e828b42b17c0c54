"""Noise that is drawn for members, a stream for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


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
