"""Settings of a whole process, each in a process of its own: what cuDNN's search, layouts and compilation bring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpu.ours import awakened, bare_step, denoiser_inputs, fields_task, forward, pairs
from hookloop.compiling import compile_networks
from hookloop.diffusion.kernels import Plain

if TYPE_CHECKING:
    from gpu.bench import Bench
    from hookloop.plugins.downscaling.model import DownscalingTask

_LONGEST = 300.0
"""Seconds for one of them, where there is time."""


def measure(bench: Bench) -> None:
    """Start a process for each, the slowest to start last; a line is written where one is cut off."""
    for name in bench.sizes.settings:
        left = min(_LONGEST, bench.clock.deadline - time.monotonic())
        if left < 20:
            bench.book.skip(f"setting: {name}", "no time left")
            continue
        said = bench.scratch / f"{name}.jsonl"
        script = Path(__file__).parents[1] / "gpu.py"
        command = [sys.executable, str(script), "--only", f"setting:{name}", "--out", str(said)]
        command += ["--device", bench.device.type, *([] if bench.sizes.targets else ["--small"])]
        # What makes cuBLAS repeat itself must be set before it starts; all have it, to be comparable.
        environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        with bench.book.attempt(f"setting: {name}"):
            try:
                done = subprocess.run(
                    command, check=False, timeout=left, env=environment, capture_output=True, text=True
                )
            except subprocess.TimeoutExpired:
                bench.book.skip(f"setting: {name}", f"not done after {left:.0f} s")
            else:
                if done.returncode:
                    raise RuntimeError(done.stderr[-300:])
            _take_over(bench, said)


def _take_over(bench: Bench, said: Path) -> None:
    """Write what the process has written: numbers alone, for the machine is the same."""
    for text in said.read_text(encoding="utf-8").splitlines() if said.exists() else []:
        line = {key: value for key, value in json.loads(text).items() if key not in bench.book.common}
        bench.book.write(line)


def one(bench: Bench, name: str) -> None:
    """Forward and training step under the setting *name*, and whether the same step gives the same bits twice."""
    network, n = bench.sizes.main, min(bench.sizes.step_targets)
    torch.backends.cudnn.benchmark = name == "cudnn benchmark"
    if name == "deterministic":
        be_deterministic()
    task = fields_task(network, bench.device)
    awakened(task.model)
    if name == "torch's norms":
        task.model.denoiser.backbone.passes = Plain()
    if name == "channels last":
        task.model.to(memory_format=torch.channels_last)
    if name == "compiled":
        compile_networks(task.model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for batch in (n, *[b for b in bench.sizes.forward_targets if b < n]):
            evaluate = forward(task.model.denoiser, *denoiser_inputs(network, batch, bench.device))
            began = bench.clock.idle()
            evaluate()
            first = bench.clock.idle() - began
            times = bench.clock.interleaved({name: evaluate}, bench.sizes.rounds)[name]
            bench.book.timed(f"setting {name}: forward, batch {batch}", times, first_seconds=first)
        step = bare_step(task, pairs(network, n, bench.device))
        began = bench.clock.idle()
        step()
        first = bench.clock.idle() - began
        times = bench.clock.interleaved({name: step}, bench.sizes.rounds)[name]
    without = sorted(
        {str(w.message).partition(" does not have")[0][:80] for w in said if "determin" in str(w.message)}
    )
    bench.book.timed(
        f"setting {name}: bare training step, batch {n}",
        times,
        first_seconds=first,
        repeats_bit_for_bit=_repeats(task, bench, n),
        without_deterministic_kernel=without,
        gigabytes=bench.clock.peak_gigabytes(),
    )


def be_deterministic() -> None:
    """Ask torch for algorithms that repeat themselves; what is allocated is not filled, which is another thing."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True


def _repeats(task: DownscalingTask, bench: Bench, n: int) -> bool:
    """Whether two gradients of the same weights, batch and noise are the same."""
    found = []
    batch = pairs(bench.sizes.main, n, bench.device)
    for _ in range(2):
        torch.manual_seed(0)
        with torch.autocast(bench.device.type, torch.bfloat16):
            task.loss(batch)["loss"].backward()
        found.append([p.grad for p in task.model.parameters() if p.grad is not None])
        task.model.zero_grad(set_to_none=True)
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))
