"""The network without gradients, and whole ensembles generated with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import evolve

from gpu.ours import GraphedDenoiser, awakened, denoiser_inputs, fields_task, forward, pairs
from hookloop.plugins.downscaling.options import SamplerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu.bench import Bench
    from hookloop.plugins.downscaling.model import DownscalingTask


def forwards(bench: Bench) -> None:
    """The denoiser by batch: as it is, as a graph, and the peer's."""
    for n, target in bench.sizes.forward_targets.items():
        with bench.book.attempt(f"forward, batch {n}"):
            _forward(bench, n, target)
        bench.clock.release()


def _forward(bench: Bench, n: int, target: float | None) -> None:
    network, sizes, what = bench.sizes.main, bench.sizes, f"forward, batch {n}"
    denoiser = awakened(fields_task(network, bench.device).model).denoiser
    calls: dict[str, Callable[[], object]] = {
        "hookloop": forward(denoiser, *denoiser_inputs(network, n, bench.device))
    }
    if bench.on_gpu:
        copied = GraphedDenoiser(denoiser, n, network, bench.device)
        calls["graph, bf16 weights"] = copied.replay
    if bench.peer is not None and n in sizes.peer_batches:
        calls["fme"] = bench.peer.forward(network, n)
    bound = n * bench.bound_ms(forward(denoiser, *denoiser_inputs(network, 1, bench.device)))
    times = bench.clock.interleaved(calls, sizes.rounds)
    bench.book.timed(what, times.pop("hookloop"), times.get("fme"), target=target, bound=bound)
    for name, own in times.items():
        bench.book.timed(f"{what}: {name}", own)


def generation(bench: Bench) -> None:
    """All members of some windows through the task's own path, by solver; the peer's Heun beside them."""
    sizes, network = bench.sizes, bench.sizes.main
    fields = sizes.windows * sizes.members
    calls: dict[str, Callable[[], object]] = {}
    evaluations = {}
    for solver, steps in sizes.solver_targets:
        schedule = "karras" if solver == "heun" else "auto"
        sampler = SamplerConfig(solver=solver, steps=steps, schedule=schedule)
        task = fields_task(network, bench.device, sampler=sampler)
        awakened(task.model)
        name = f"generation, {fields} fields, {sampler.evaluations} evaluations of {solver}"
        evaluations[name] = sampler.evaluations
        calls[name] = _generating(bench, task)
        if bench.on_gpu:
            replayed = fields_task(network, bench.device, sampler=evolve(sampler, compile="graph"))
            awakened(replayed.model)
            calls[f"{name}: compile graph"] = _generating(bench, replayed)
            calls[f"{name}: compile graph"]()  # what comes once is not recorded; the next call records
    ((_, steps), *_) = sizes.solver_targets
    if bench.peer is not None:
        calls["fme"] = bench.peer.generate(network, sizes.windows, sizes.members, steps)
    times = bench.clock.interleaved(calls, min(3, sizes.rounds))
    peer = times.pop("fme", None)
    inputs = denoiser_inputs(network, 1, bench.device)
    once = fields * bench.bound_ms(forward(task.model.denoiser, *inputs))
    targets = dict(zip(evaluations, sizes.solver_targets.values(), strict=True))
    for name, own in times.items():
        target, n = targets.get(name), evaluations[name.partition(":")[0]]
        bench.book.timed(
            name,
            own,
            peer,
            target=None if target is None else 1e3 * target,
            bound=n * once,
            fields_per_second=fields / own.median,
        )
    if peer is not None:
        bench.book.timed(f"generation, {fields} fields: fme, {2 * steps - 1} evaluations of heun", peer)


def _generating(bench: Bench, task: DownscalingTask) -> Callable[[], torch.Tensor]:
    """What draws every member of every window, physical fields, as the generation plugin does it."""
    network, sizes = bench.sizes.main, bench.sizes
    batch = pairs(network, sizes.windows, bench.device)
    seeds = [
        [case * sizes.members + member for member in range(sizes.members)] for case in range(sizes.windows)
    ]
    task.model.eval()

    def generate() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
            return task.members(batch, task.model.interpolated(batch.coarse, task.factor), seeds)

    return generate
