"""A training step with everything in it: hookloop's real loop and fme's, a block of steps of each in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: TC003 - annotates a class
from itertools import repeat
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import torch
from attrs import define, field
from torch import nn

from gpu.clock import Clock, Times
from gpu.ours import DECAY, LEARNING_RATE, bare_step, fields_task, graphed, pairs
from hookloop.core import train
from hookloop.plugins.downscaling.dataset import PairBatch  # noqa: TC001 - annotates a class
from hookloop.plugins.ema import EMA
from hookloop.plugins.jsonl import Jsonl
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.plugins.progress import ProgressReport
from hookloop.testing import fake_run

if TYPE_CHECKING:
    from gpu.bench import Bench
    from gpu.sizes import Network
    from hookloop.plugins.downscaling.model import DownscalingTask

OURS = "hookloop"
TF32 = "fp32 with TF32 convolutions"
PRECISIONS = ("bf16", TF32)


@define(eq=False)
class Blocks:
    """One epoch of one batch over and over; between blocks of it others take their turn."""

    batch: PairBatch
    steps: int
    """A block."""
    rounds: int
    """Blocks that count; one before them warms up."""
    clock: Clock
    others: Mapping[str, Callable[[], object]]
    times: dict[str, Times] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Nothing is timed yet."""
        self.times = {name: Times() for name in (OURS, *self.others)}

    @property
    def batch_size(self) -> int:
        """Samples a batch."""
        return len(self.batch)

    @property
    def n_batches(self) -> int:
        """Batches an epoch."""
        return self.steps * (self.rounds + 1)

    @property
    def n_samples(self) -> int:
        """Samples an epoch."""
        return self.batch_size * self.n_batches

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: str = "main"
    ) -> Iterator[PairBatch]:
        """A block of batches, timed from idle to idle, then a block of each other."""
        for turn in range(self.rounds + 1):
            began = self.clock.idle()
            yield from repeat(self.batch, self.steps)
            seconds = {OURS: (self.clock.idle() - began) / self.steps}
            seconds |= {name: self.clock.block(call, self.steps) for name, call in self.others.items()}
            if turn:
                for name, own in seconds.items():
                    self.times[name].seconds.append(own)
                if self.clock.late:
                    return


def in_the_loop(
    bench: Bench,
    task: DownscalingTask,
    batch: PairBatch,
    others: Mapping[str, Callable[[], object]],
    **options: str,
) -> dict[str, Times]:
    """Seconds a step of the real loop: optimization, EMA, progress, whose log waits once a block, and jsonl.

    :param options: of the optimization, beside its learning rate.
    """
    sizes = bench.sizes
    data = Blocks(batch, sizes.steps, sizes.rounds, bench.clock, others)
    task.data = {"train": data}
    run = fake_run(
        Path(mkdtemp(prefix="loop", dir=bench.scratch)),
        OptimizationPlugin(lr=LEARNING_RATE, **{"precision": "bf16", **options}),
        EMA(decay=DECAY),
        ProgressReport(every_n_batches=sizes.steps, first_batch=False),
        Jsonl(),
        task=task,
    )
    run.device = bench.device
    train(run)
    return data.times


def measure(bench: Bench) -> None:
    """Each batch size, with the peer where it fits."""
    for n, target in bench.sizes.step_targets.items():
        with bench.book.attempt(f"training step, batch {n}"):
            peer = bench.peer if n in bench.sizes.peer_batches else None
            others: dict[str, Callable[[], object]] = {}
            if peer is not None:
                for name in PRECISIONS:
                    others[f"fme, {name}"] = peer.step(bench.sizes.main, n, bf16=name == "bf16")
            _compare(bench, bench.sizes.main, n, f"training step, batch {n}", target, others)
        bench.clock.release()
    n = min(bench.sizes.step_targets)
    for part in (_precise, _beside_the_network, _graphed):
        with bench.book.attempt(f"training step, batch {n}: {part.__name__}"):
            part(bench, n)
        bench.clock.release()


def hiro(bench: Bench) -> None:
    """The shape of HiRO-ACE's network, with the memory it takes."""
    sizes = bench.sizes
    what = f"training step, {sizes.hiro.size}², batch {sizes.hiro_batch}"
    with bench.book.attempt(f"{what}: memory"):
        _memory(bench, sizes.hiro, sizes.hiro_batch, what, 14.0 if sizes.targets else None)
    target = 100.0 if sizes.targets else None
    with bench.book.attempt(what):
        # One after the other: three models at once would leave the allocator short of memory.
        found = _peer_alone(bench, sizes.hiro, sizes.hiro_batch, what)
        _compare(bench, sizes.hiro, sizes.hiro_batch, what, target, {}, found)
    bench.clock.release()


def _memory(bench: Bench, network: Network, n: int, what: str, target: float | None) -> None:
    """Alone on the device, since the marks of all who are there add up."""
    if not bench.on_gpu:
        bench.book.skip(f"{what}: memory", "on a GPU only")
        return
    bench.clock.release()
    step = bare_step(fields_task(network, bench.device), pairs(network, n, bench.device))
    peaks = [_peak(bench, step)]
    del step
    if bench.peer is not None:
        bench.clock.release()
        peaks.append(_peak(bench, bench.peer.step(network, n, bf16=True)))
    bench.clock.release()
    bench.book.add(f"{what}: memory", peaks[0], "GB", target=target, peer=(*peaks, None)[1])


def _peak(bench: Bench, step: Callable[[], object]) -> float | None:
    for _ in range(2):
        step()
    return bench.clock.peak_gigabytes()


def _compare(
    bench: Bench,
    network: Network,
    n: int,
    what: str,
    target: float | None,
    others: Mapping[str, Callable[[], object]],
    peer: Times | None = None,
) -> None:
    """The loop in bfloat16, and *others* in turn with it; *peer* is what was timed before."""
    task, batch = fields_task(network, bench.device), pairs(network, n, bench.device)
    bound = n * bench.bound_ms(bare_step(task, pairs(network, 1, bench.device)))
    before = bench.clock.allocation_retries()
    times = in_the_loop(bench, task, batch, others)
    retries = bench.clock.allocation_retries() - before
    weights = sum(p.numel() for p in task.model.parameters())
    ours = times.pop(OURS)
    more = {"bound": bound, "weights": weights, "samples_per_second": n / ours.median}
    bench.book.timed(
        what, ours, times.get("fme, bf16", peer), target=target, allocation_retries=retries, **more
    )
    for name, own in times.items():
        bench.book.timed(
            f"{what}: {name}", own, samples_per_second=n / own.median, allocation_retries=retries
        )


def _peer_alone(bench: Bench, network: Network, n: int, what: str) -> Times | None:
    """The peer in each precision with the memory for itself; the time of the first is given back."""
    times = []
    for name in PRECISIONS if bench.peer is not None else ():
        bench.clock.release()
        before = bench.clock.allocation_retries()
        step = {name: bench.peer.step(network, n, bf16=name == "bf16")}
        times.append(bench.clock.interleaved(step, bench.sizes.rounds)[name])
        del step
        retries = bench.clock.allocation_retries() - before
        more = {"samples_per_second": n / times[-1].median, "allocation_retries": retries}
        bench.book.timed(f"{what}: fme, {name}", times[-1], **more)
    bench.clock.release()
    return times[0] if times else None


def _precise(bench: Bench, n: int) -> None:
    """Without bfloat16."""
    task, batch = fields_task(bench.sizes.main, bench.device), pairs(bench.sizes.main, n, bench.device)
    times = in_the_loop(bench, task, batch, {}, precision="fp32")[OURS]
    bench.book.timed(f"training step, batch {n}: hookloop, {TF32}", times)


def _beside_the_network(bench: Bench, n: int) -> None:
    """What is left of a step without forward and backward of the network, and of one whose network does nothing."""
    network, what = bench.sizes.main, f"training step, batch {n}"
    task, batch = fields_task(network, bench.device), pairs(network, n, bench.device)
    alone = _network_alone(fields_task(network, bench.device), batch)
    times = in_the_loop(bench, task, batch, {"network": alone})
    bench.book.timed(f"{what}: network alone, forward and backward", times["network"])
    left = Times([a - b for a, b in zip(times[OURS].seconds, times["network"].seconds, strict=True)])
    target = 1.5 if bench.sizes.targets else None
    bench.book.timed(f"{what}: everything that is not the network", left, target=target)
    idle = fields_task(network, bench.device)
    idle.model.denoiser.backbone = Nothing(idle.model.denoiser.backbone)
    times = in_the_loop(bench, idle, batch, {})
    bench.book.timed(f"{what}: with a network that does nothing", times[OURS])


def _network_alone(task: DownscalingTask, batch: PairBatch) -> Callable[[], None]:
    """Forward and backward of the backbone; gradients are thrown away."""
    backbone = task.model.denoiser.backbone.train()
    condition = task.model.condition(batch, task.model.interpolated(batch.coarse, task.factor))
    noisy, label = torch.randn_like(batch.fine), torch.zeros(len(batch), device=batch.fine.device)

    def once() -> None:
        with torch.autocast(batch.fine.device.type, torch.bfloat16):
            answer = backbone(noisy, condition, label)
        answer.float().mean().backward()
        backbone.zero_grad(set_to_none=True)

    return once


class _Untouched(torch.autograd.Function):
    """Gives a field as it is, and to every weight a gradient, in one pass over all."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, noisy: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        ctx.weights = weights  # type: ignore[attr-defined]
        return noisy * 1.0

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return (gradient, *torch._foreach_mul(ctx.weights, 1e-3))  # type: ignore[attr-defined]  # noqa: SLF001


class Nothing(nn.Module):
    """A network with the weights of another, which does nothing with them."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = other

    def forward(self, noisy: torch.Tensor, _condition: torch.Tensor, _label: torch.Tensor) -> torch.Tensor:
        """Give the noisy field."""
        answer: torch.Tensor = _Untouched.apply(noisy, *self.other.parameters())
        return answer


def _graphed(bench: Bench, n: int) -> None:
    """The loop with ``compile: off`` and ``compile: graph``, each beside a bare step done alike."""
    if not bench.on_gpu:
        bench.book.skip("training step as a CUDA graph", "on a GPU only")
        return
    network = bench.sizes.main
    for size in (n, *_smaller(bench.sizes.forward_targets, n)):
        batch = pairs(network, size, bench.device)
        what = f"training step, batch {size}"
        for kind in ("off", "graph"):
            bare: Callable[[], object] = bare_step(fields_task(network, bench.device), batch)
            if kind == "graph":
                bare, _ = graphed(bare)
            times = in_the_loop(
                bench, fields_task(network, bench.device), batch, {"bare": bare}, compile=kind
            )
            bench.book.timed(f"{what}: compile {kind}", times[OURS])
            bench.book.timed(f"bare {what}: {kind}", times["bare"])
            del bare
            bench.clock.release()


def _smaller(batches: Mapping[int, object], n: int) -> Sequence[int]:
    return [batch for batch in batches if batch < n]
