"""What this machine can do at best: products, convolutions, copies, launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from gpu.bench import Bench


def measure(bench: Bench) -> None:
    """Before anything else, so that everything can be compared with it."""
    book, sizes = bench.book, bench.sizes
    book.add("ceiling: bf16 product", bench.flops / 1e12, "TFLOP/s", size=sizes.product)
    book.add("ceiling: copy on the device, read + written", bench.bandwidth / 1e9, "GB/s")
    _products(bench)
    _convolutions(bench)
    _copies_to_host(bench)
    one = torch.ones(1, device=bench.device)
    launch = bench.clock.interleaved({"launch": lambda: one.add_(1.0)}, sizes.rounds)["launch"]
    book.timed("ceiling: launch of the smallest kernel", launch)


def _products(bench: Bench) -> None:
    n = bench.sizes.product // 2
    a, b = (torch.randn(n, n, device=bench.device) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    for name, allowed in (("tf32", True), ("fp32", False)):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        times = bench.clock.interleaved({name: lambda: a @ b}, bench.sizes.rounds)[name]
        bench.book.add(f"ceiling: {name} product", 2 * n**3 / times.median / 1e12, "TFLOP/s", size=n)
    torch.backends.cuda.matmul.allow_tf32 = before


def _convolutions(bench: Bench) -> None:
    """The most frequent 3 by 3 convolution of the network, in both layouts, forward."""
    network = bench.sizes.main
    channels, size, batch = network.channels * network.multipliers[-1], network.size // 2, 16
    calls = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        x = torch.randn(batch, channels, size, size, device=bench.device).bfloat16()
        weight = torch.randn(channels, channels, 3, 3, device=bench.device).bfloat16()
        x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        calls[name] = lambda x=x, weight=weight: functional.conv2d(x, weight, padding=1)
    operations = 2 * 9 * batch * channels**2 * size**2
    for name, times in bench.clock.interleaved(calls, bench.sizes.rounds).items():
        bench.book.add(
            f"ceiling: bf16 convolution, {name}",
            operations / times.median / 1e12,
            "TFLOP/s",
            shape=[batch, channels, size, size],
        )


def _copies_to_host(bench: Bench) -> None:
    nbytes = bench.sizes.block_bytes // 4
    block = torch.ones(nbytes, dtype=torch.uint8, device=bench.device)
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=bench.on_gpu)
    times = bench.clock.interleaved(
        {"host": lambda: host.copy_(block, non_blocking=True)}, bench.sizes.rounds
    )
    bench.book.add("ceiling: copy to pinned host memory", nbytes / times["host"].median / 1e9, "GB/s")
