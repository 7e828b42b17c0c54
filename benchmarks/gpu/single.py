"""Single operations: the norm that the network is full of, the averages, a checkpoint."""

from __future__ import annotations

import copy
import statistics
from functools import partial
from typing import TYPE_CHECKING

import checkpoint
import torch
from torch import nn
from torch.nn import functional

from gpu.correctness import off
from gpu.ours import DECAY, fields_task
from hookloop.core import prepare
from hookloop.diffusion.kernels import TOLERANCE, Plain, deviation, passes_on
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.testing import fake_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu.bench import Bench
    from hookloop.diffusion.kernels import Passes


def norms(bench: Bench) -> None:
    """GroupNorm and SiLU in one, as the network does it and as torch has them; benchmarks/kernels.py has the rest."""
    batch, channels, size = bench.sizes.norm
    what = f"GroupNorm + SiLU, {batch}×{channels}×{size}², bf16"
    passes = passes_on(bench.device.type)
    far = deviation(passes, bench.device, torch.bfloat16)
    bench.book.check("correct: passes between convolutions, bf16 against float32", far, TOLERANCE)
    if bench.on_gpu and isinstance(passes, Plain):
        bench.book.failed.append("the network's fused kernels are not used: see the warning above")
    nbytes = 2 * batch * channels * size**2
    # Forward reads twice and writes once; backward reads the gradient twice too.
    forward, both = (1e3 * n * nbytes / bench.bandwidth for n in (3, 3 + 5))
    norm = nn.GroupNorm(min(32, channels // 4), channels).to(bench.device)
    for layout in (torch.contiguous_format, torch.channels_last):
        name = f"{what}, {'channels last' if layout is torch.channels_last else 'contiguous'}"
        x = torch.randn(batch, channels, size, size, device=bench.device).bfloat16()
        x = x.contiguous(memory_format=layout)
        exact = functional.silu(copy.deepcopy(norm).cpu().double()(x[:1].cpu().double()))
        bench.book.check(f"correct: {name}", off(_once(passes, norm, x)[:1], exact), 5e-3)
        contestants = {"hookloop": passes, "torch": Plain()}
        calls: dict[str, Callable[[], object]] = {
            n: partial(_once, p, norm, x) for n, p in contestants.items()
        }
        calls |= {f"{n}, with backward": partial(_and_back, p, norm, x) for n, p in contestants.items()}
        calls["SiLU alone"] = partial(functional.silu, x)
        times = bench.clock.interleaved(calls, bench.sizes.rounds)
        target = 0.18 if bench.sizes.targets else None
        bench.book.timed(name, times.pop("hookloop"), target=target, bound=forward)
        for more, own in times.items():
            bench.book.timed(f"{name}: {more}", own, bound=both if "backward" in more else forward)


def _once(passes: Passes, norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
        return passes.normalised(norm, x)


def _and_back(passes: Passes, norm: nn.GroupNorm, x: torch.Tensor) -> None:
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16):
        y = passes.normalised(norm, x)
    torch.autograd.grad(y, [x, *norm.parameters()], y.detach())


def averages(bench: Bench) -> None:
    """The EMA plugin's update of all weights."""
    task, plugin = fields_task(bench.sizes.main, bench.device), EMA(decay=DECAY)
    run = fake_run(bench.scratch / "averages", plugin, task=task)
    run.device = bench.device
    prepare(run)
    weights = sum(average.numel() for average in plugin.averages)
    calls: dict[str, Callable[[], object]] = {"hookloop": plugin.after_batch}
    if bench.peer is not None:
        calls["fme"] = bench.peer.average(bench.sizes.main)
    times = bench.clock.interleaved(calls, bench.sizes.rounds)
    bench.book.timed(
        "EMA update",
        times["hookloop"],
        times.get("fme"),
        target=0.45 if bench.sizes.targets else None,
        bound=1e3 * 12 * weights / bench.bandwidth,  # an average and a weight read, an average written
        weights=weights,
        tensors=len(plugin.averages),
    )


def checkpoints(bench: Bench) -> None:
    """How long training waits for a save, as ``benchmarks/checkpoint.py`` measures it."""
    checkpoint.TENSORS, checkpoint.SIZE = bench.sizes.checkpoint
    saving = Checkpoint(every_n_batches=0)
    run = checkpoint.make(bench.scratch / "checkpoint", bench.device, saving)
    with run.cleanup:
        nbytes = 16 * checkpoint.TENSORS * checkpoint.SIZE  # weights, averages, two moments
        bound = checkpoint.bound(nbytes, bench.device)
        waiting, writing, _ = checkpoint.stalls(run, saving)
        path = bench.scratch / "as_fme.ckpt"
        others = [checkpoint.timed(partial(checkpoint.as_ace, run, path), bench.device) for _ in range(2)]
    bench.book.add(
        "stall for a checkpoint",
        1e3 * statistics.median(waiting),
        "ms",
        target=60.0 if bench.sizes.targets else None,
        bound=1e3 * bound,
        peer=1e3 * min(others),
        worst=1e3 * max(waiting),
        written_after=1e3 * statistics.median(writing),
        gigabytes=nbytes / 1e9,
    )
