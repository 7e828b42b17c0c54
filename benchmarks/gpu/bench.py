"""What every part is given."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu import peer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from gpu.clock import Clock
    from gpu.records import Book
    from gpu.sizes import Sizes


class Bench:
    """The device, the book, the clock, sizes and the peer.

    :param scratch: a folder that is removed.
    """

    def __init__(self, book: Book, clock: Clock, sizes: Sizes, scratch: Path, cleanup: ExitStack) -> None:
        self.book, self.clock, self.sizes, self.scratch = book, clock, sizes, scratch
        self.device = clock.device
        self._cleanup = cleanup

    @property
    def on_gpu(self) -> bool:
        """Whether there are graphs, and marks of memory."""
        return self.device.type == "cuda"

    @cached_property
    def peer(self) -> peer.Peer | None:
        """fme, imported when it is first asked for; without it the rest is measured."""
        with self.book.attempt("fme"):
            found = peer.found(self._cleanup)
            if found is None:
                self.book.skip("fme", "not installed")
            return found
        return None

    @cached_property
    def flops(self) -> float:
        """Floating-point operations a second in a large bfloat16 product."""
        n = self.sizes.product
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        times = self.clock.interleaved({"product": lambda: a @ b}, self.sizes.rounds)["product"]
        return 2 * n**3 / times.median

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second, read and written, in a large copy on the device."""
        source = torch.randint(255, (self.sizes.block_bytes,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        times = self.clock.interleaved({"copy": lambda: target.copy_(source)}, self.sizes.rounds)["copy"]
        return 2 * self.sizes.block_bytes / times.median

    def bound_ms(self, call: Callable[[], object]) -> float:
        """Milliseconds that the operations of *call* take at the rate of a large product.

        Count one sample, and multiply: a large batch takes memory that is not there.
        """
        with FlopCounterMode(display=False) as counter:
            call()
        return 1e3 * counter.get_total_flops() / self.flops
