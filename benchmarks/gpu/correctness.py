"""Before any speed: precisions against float64, graphs against eager, a resumed run against one never stopped."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor, nn

from gpu.ours import (
    GraphedDenoiser,
    awakened,
    bare_step,
    denoiser_inputs,
    fields_task,
    forward,
    graphed,
    pairs,
)
from hookloop import hookimpl
from hookloop.core import Run, train
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import fake_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpu.bench import Bench
    from hookloop.diffusion.edm import Precondition
    from hookloop.plugins.downscaling.dataset import PairBatch
    from hookloop.plugins.downscaling.model import Downscaler, DownscalingTask

LIMITS = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 3e-2}
"""Relative errors of a network's answer; those of its gradient may be three times as large."""


def measure(bench: Bench) -> None:
    """All of it."""
    for part in (_precisions, _graphs, _resumed):
        with bench.book.attempt(f"correct: {part.__name__}"):
            part(bench)
        bench.clock.release()


def off(found: Tensor, exact: Tensor) -> float:
    """‖found - exact‖ / ‖exact‖ in float64; NaN stays NaN, which no limit lets pass."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    return float((found - exact).norm() / exact.norm())


def exactly(denoiser: Precondition, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
    """D = c_skip x + c_out F(c_in x; ln σ / 4) with σ_data = 1 (Karras et al. 2022, Table 1), in float64 on the CPU.

    :param denoiser: whose backbone is float64 on the CPU.
    """
    s = sigma.double().cpu()[:, None, None, None]
    x, scale = x.double().cpu(), (s**2 + 1).rsqrt()
    raw: Tensor = denoiser.backbone(scale * x, condition.double().cpu(), sigma.double().cpu().log() / 4)
    return scale**2 * x + s * scale * raw


def _precisions(bench: Bench) -> None:
    """The full network on a small field, forward and gradient."""
    network = bench.sizes.main
    denoiser = awakened(fields_task(network, bench.device).model).denoiser
    inputs = denoiser_inputs(evolve(network, size=min(64, network.size)), 2, bench.device)
    doubled = copy.deepcopy(denoiser).cpu()
    doubled.backbone.double()
    exact = exactly(doubled, *inputs)
    towards = torch.randn(exact.shape, dtype=torch.float64)
    (exact * towards).mean().backward()
    expected = _gradient(doubled)
    before = torch.backends.cudnn.allow_tf32
    for name, limit in LIMITS.items():
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=name == "bf16"):
            found = denoiser(*inputs)
        (found * towards.to(found)).mean().backward()
        bench.book.check(f"correct: denoiser, {name} against float64", off(found, exact), limit)
        bench.book.check(
            f"correct: gradient, {name} against float64", off(_gradient(denoiser), expected), 3 * limit
        )
        denoiser.zero_grad(set_to_none=True)
    torch.backends.cudnn.allow_tf32 = before


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().cpu().flatten() for p in model.parameters() if p.grad is not None])


def _graphs(bench: Bench) -> None:
    """What a graph computes against eager: fields that it has not seen, and where twenty steps lead."""
    if not bench.on_gpu:
        bench.book.skip("correct: graphs", "on a GPU only")
        return
    network, warm = bench.sizes.main, 3
    denoiser = awakened(fields_task(network, bench.device).model).denoiser
    copied = GraphedDenoiser(denoiser, 2, network, bench.device)
    inputs = denoiser_inputs(network, 2, bench.device)
    answer, eager = copied(*inputs), forward(copied.copied, *inputs)()
    bench.book.check("correct: graph of the denoiser against eager", off(answer, eager), 1e-3)
    far = off(answer, forward(denoiser, *inputs)())
    bench.book.check("correct: bfloat16 weights of the denoiser against float32", far, LIMITS["bf16"])
    batch = pairs(bench.sizes.learner, 4, bench.device)
    before = flat(Noiseless(fields_task(bench.sizes.learner, bench.device)).model)
    tasks = [Noiseless(fields_task(bench.sizes.learner, bench.device)) for _ in range(2)]
    step = bare_step(tasks[0], batch)
    replay, _ = graphed(bare_step(tasks[1], batch), warm)
    for _ in range(20):
        step()
    for _ in range(20 - warm):
        replay()
    moved = [flat(task.model) - before for task in tasks]
    bench.book.check("correct: way of the weights in a graph against eager", off(moved[1], moved[0]), 0.02)


def flat(model: nn.Module) -> Tensor:
    """All weights in one."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@frozen(eq=False)
class Noiseless:
    """A task whose loss draws no number: a graph draws others than eager does."""

    task: DownscalingTask

    @property
    def model(self) -> Downscaler:
        """The same."""
        return self.task.model

    def loss(self, batch: PairBatch) -> dict[str, Tensor]:
        """How far one evaluation is off the target, which it is not given."""
        upsampled = self.model.interpolated(batch.coarse, self.task.factor)
        target = self.model.target(batch.fine, upsampled)
        sigma = torch.ones(len(target), device=target.device)
        answer = self.model.denoiser(target.flip(-1), sigma, self.model.condition(batch, upsampled))
        return {"loss": (answer - target).square().mean()}


@define(eq=False)
class Batches:
    """Batches on the device, the same ones in every epoch."""

    kept: Sequence[PairBatch]

    @property
    def batch_size(self) -> int:
        """Samples a batch."""
        return len(self.kept[0])

    @property
    def n_batches(self) -> int:
        """Batches an epoch."""
        return len(self.kept)

    @property
    def n_samples(self) -> int:
        """Samples an epoch."""
        return self.batch_size * self.n_batches

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: str = "main"
    ) -> Iterator[PairBatch]:
        """In order."""
        yield from self.kept[start:stop]


@define(eq=False)
class Stops:
    """Asks the run to stop after a batch."""

    after: int = field(default=-1, init=False)

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop there."""
        if run.progress.step == self.after:
            run.stop("the benchmark", 75)


def _resumed(bench: Bench) -> None:
    """Two runs never stopped, and one stopped within an epoch: the same bits everywhere."""
    whole, again = (_learnt(bench, name, []) for name in ("whole", "again"))
    parts = _learnt(bench, "parts", [3])
    bench.book.check("correct: tensors that differ in a second run", _differing(whole, again), 0, "tensors")
    bench.book.check("correct: tensors that differ in a resumed run", _differing(whole, parts), 0, "tensors")


def _learnt(bench: Bench, name: str, stops: Sequence[int]) -> list[Tensor]:
    """Weights, averages and moments after two epochs of a run that was stopped so often."""
    for after in (*stops, -1):
        task = fields_task(
            bench.sizes.learner,
            bench.device,
            {"train": Batches([pairs(bench.sizes.learner, 4, bench.device, seed) for seed in range(4)])},
        )
        average, stopping = EMA(decay=0.9), Stops()
        stopping.after = after
        run = fake_run(
            bench.scratch / name,
            OptimizationPlugin(lr=1e-3, precision="bf16", clip_norm=1.0),
            average,
            stopping,
            Checkpoint(),
            task=task,
            max_epochs=2,
        )
        run.device = bench.device
        train(run)
    assert run.progress.step == 8
    moments = run.optimization.optimizer.state.values()
    return [
        *task.model.state_dict().values(),
        *average.averages,
        *(value for state in moments for value in state.values()),
    ]


def _differing(one: Sequence[Tensor], other: Sequence[Tensor]) -> int:
    return sum(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
