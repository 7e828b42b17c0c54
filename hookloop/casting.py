"""Weights in half precision: each cast once, however often its network is asked."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn


@contextmanager
def cast_once(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Have autocast keep the weights that it casts, also frozen ones: it keeps only those that need gradients.

    Without gradients, and with weights that stay as they are while autocast lasts. The casts are the same, bit for bit.
    """
    frozen = [p for network in networks for p in network.parameters() if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad = True
        yield
    finally:
        for p in frozen:
            p.requires_grad = False
