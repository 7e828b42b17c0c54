"""How much arithmetic a step is, and how much of it this device can do: the two sides of MFU."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from hookloop.evaluation import evaluating
from hookloop.seeding import seed_torch

if TYPE_CHECKING:
    from hookloop.core import Run

_GPU_SIZE, _CPU_SIZE = 8192, 1024
_WARM_UP, _REPEATS = 3, 10


def flops_of_step(run: Run) -> int | None:
    """Count the floating-point operations of one batch, forward and backward, that this process does.

    The first batch is read again and its gradients are dropped, so nothing that was learnt changes. Products and
    convolutions are counted, a multiplication and an addition as two operations (torch's ``FlopCounterMode``);
    normalisation, activations and the optimizer are not.

    :returns: ``None`` where the weights are not whole here, so that a backward pass by itself cannot be had.
    """
    weights = [p for p in run.task.model.parameters() if p.requires_grad]
    if not weights or any(hasattr(p, "full_tensor") for p in weights):  # a DTensor, of which this is a shard
        return None
    batch = next(iter(run.data["train"].batches(0, start=0, stop=1)))
    seed_torch(run.seed("profile"), run.device)
    with FlopCounterMode(display=False) as counter, evaluating(run.task.model):
        with run.optimization.autocast():
            loss = run.task.loss(batch)["loss"]
        torch.autograd.grad(loss, weights, allow_unused=True)
    return int(counter.get_total_flops())


@torch.no_grad()
def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations a second of a large matrix product: what this device reaches at best.

    8192³ on a GPU, 1024³ elsewhere; the median of ten. float32 runs as torch is set to run it, with TF32 or without.

    :raises RuntimeError: where there is no memory for three such matrices.
    """
    size = _CPU_SIZE if device.type == "cpu" else _GPU_SIZE
    draw = torch.Generator(device).manual_seed(0)  # zeros would draw less power, and run faster than data
    one, other = (torch.randn(size, size, dtype=dtype, device=device, generator=draw) for _ in range(2))
    product = torch.empty_like(one)
    for _ in range(_WARM_UP):
        torch.mm(one, other, out=product)
    durations = []
    for _ in range(_REPEATS):
        wait(device)
        began = time.perf_counter()
        torch.mm(one, other, out=product)
        wait(device)
        durations.append(time.perf_counter() - began)
    return 2.0 * size**3 / median(durations)


def wait(device: torch.device) -> None:
    """Wait until *device* has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
