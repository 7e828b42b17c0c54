"""From the command to the first training step, as a user waits for it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpu.bench import Bench

_BENCHMARKS = Path(__file__).parents[1]
_PATIENCE = 120.0
"""Seconds."""


def measure(bench: Bench) -> None:
    """``hookloop run`` of the full network on files, until it tells its first batch; the peer's import alone."""
    network, data = bench.sizes.main, bench.scratch / "data"
    made = ["init", "downscaling", str(data), "--size", str(network.size), "--times", "48"]
    subprocess.run([sys.executable, "-m", "hookloop", *made], check=True, capture_output=True)
    options = {
        "run.device": bench.device.type,
        "run.max_epochs": 1,
        "progress.every_n_batches": 1,
        "downscaling.train.batch_size": 16,
        "downscaling.model.backbone.channels": network.channels,
        "downscaling.model.backbone.multipliers": network.multipliers,
        "downscaling.model.backbone.blocks": network.blocks,
    }
    settings = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    seconds = []
    for turn in range(2 if bench.sizes.targets else 1):
        command = ["run", *settings, "--dir", str(bench.scratch / f"start{turn}"), str(data / "cfg.yaml")]
        seconds.append(_until_first_batch(command, bench.scratch / f"start{turn}.txt"))
    peer = None
    if bench.peer is not None:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True, cwd=_BENCHMARKS)
        peer = time.perf_counter() - began
    bench.book.add(
        "from the start to the first training step",
        statistics.median(seconds),
        "s",
        target=20.0 if bench.sizes.targets else None,
        peer_imports_for=peer,
        all=seconds,
    )


_IMPORT = """
from gpu.stand_ins import UNUSED_BY_FME, stand_in
stand_in(UNUSED_BY_FME)
import fme.downscaling.train
"""


def _until_first_batch(arguments: Sequence[str], said: Path) -> float:
    """Seconds until the run tells of a batch that is learnt; then it is ended, since nothing of it is kept.

    :raises RuntimeError: with the last it said, where it ends or waits before.
    """
    began = time.perf_counter()
    with said.open("w") as file:
        run = subprocess.Popen([sys.executable, "-m", "hookloop", *arguments], stderr=file, stdout=file)
    try:
        while "progress.made" not in (text := said.read_text()):
            if run.poll() is not None or time.perf_counter() - began > _PATIENCE:
                raise RuntimeError(f"no batch was learnt: {text[-500:]}")
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        run.kill()
        run.wait()
