"""Whether bfloat16 learns and generates what float32 does: curves of the loss, and fields, as numbers."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping  # noqa: TC003 - read by the hook's specification
from functools import partial
from typing import TYPE_CHECKING

import torch
from attrs import define, field
from torch import Tensor

from gpu.correctness import Batches, exactly, off
from gpu.ours import fields_task, pairs
from hookloop import hookimpl
from hookloop.core import train
from hookloop.diffusion_options import SolverConfig
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import fake_run

if TYPE_CHECKING:
    from gpu.bench import Bench
    from hookloop.diffusion.edm import Precondition
    from hookloop.plugins.downscaling.model import DownscalingTask

_POINTS = 10
"""Of a curve."""


@define(eq=False)
class Losses:
    """Keeps the loss of every batch on the device."""

    kept: list[Tensor] = field(factory=list, init=False)

    @hookimpl
    def after_batch(self, losses: Mapping[str, Tensor]) -> None:
        """Keep it."""
        self.kept.append(losses["loss"])


def measure(bench: Bench) -> None:
    """The same batches and noise in both, then fields by the network that float32 has made."""
    learner, fp32 = _learnt(bench, "fp32")
    _, bf16 = _learnt(bench, "bf16")
    bench.book.add("precision: loss of fp32 by tenths of the run", fp32, "loss", bf16=bf16)
    apart = [abs(b / a - 1) for a, b in zip(fp32, bf16, strict=True)]
    bench.book.check("precision: curves of bf16 and fp32 apart, last half", statistics.fmean(apart[5:]), 0.03)
    bench.book.check(
        "precision: loss of bf16 at the end over that at the start", bf16[-1] / bf16[0], 0.9, "ratio"
    )
    _fields(bench, learner)


def _learnt(bench: Bench, precision: str) -> tuple[DownscalingTask, list[float]]:
    sizes = bench.sizes
    data = Batches([pairs(sizes.learner, 16, bench.device, seed) for seed in range(8)])
    task, losses = fields_task(sizes.learner, bench.device, {"train": data}), Losses()
    run = fake_run(
        bench.scratch / precision,
        OptimizationPlugin(lr=2e-3, precision=precision, clip_norm=1.0),
        losses,
        task=task,
        max_epochs=sizes.learning_steps // len(data.kept),
    )
    run.device = bench.device
    train(run)
    kept = torch.stack(losses.kept).tolist()
    length = len(kept) // _POINTS
    return task, [statistics.fmean(kept[i * length : (i + 1) * length]) for i in range(_POINTS)]


def _fields(bench: Bench, task: DownscalingTask) -> None:
    """Generated from the same noise: in float32 and bfloat16 against float64 on the CPU."""
    batch = pairs(bench.sizes.learner, 4, bench.device, seed=100)
    with torch.no_grad():
        condition = task.model.condition(batch, task.model.interpolated(batch.coarse, task.factor))
    noise = torch.randn(batch.fine.shape, generator=torch.Generator().manual_seed(0)).to(bench.device)
    solver = SolverConfig(solver="dpmpp_2m", steps=18)
    denoiser = task.model.denoiser.eval()
    doubled = copy.deepcopy(denoiser).cpu()
    doubled.backbone.double()
    with torch.no_grad():
        exact = solver.sample(partial(_at, exactly, doubled, condition), noise.double().cpu(), _none)
        for name, limit in (("fp32", 5e-3), ("bf16", 5e-2)):
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=name == "bf16"):
                found = solver.sample(partial(_at, _asked, denoiser, condition), noise, _none)
            bench.book.check(f"precision: generated fields, {name} against float64", off(found, exact), limit)


def _at(how, denoiser: Precondition, condition: Tensor, x: Tensor, sigma: float) -> Tensor:  # noqa: ANN001
    answer: Tensor = how(denoiser, x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), condition)
    return answer


def _asked(denoiser: Precondition, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
    answer: Tensor = denoiser(x, sigma, condition)
    return answer


def _none() -> Tensor:
    raise AssertionError("a solver of the ordinary equation draws nothing")
