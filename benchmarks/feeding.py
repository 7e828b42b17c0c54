"""Whether a training step waits for its data: patches a second from each cache, and steps with and without reading.

The bound is the step itself, on one batch again and again. Patches of 128×128 (4 inputs of 16×16, factor 8)
out of fields of 512×512 in zarr, chunks of one field each; a network of 128 channels, [1, 2, 2, 2], 4 blocks.

    python benchmarks/feeding.py DIR [--times N] [--size N] [--patch N] [--channels N] [--steps N]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
import zarr

from hookloop.core import prepare
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.data_options import PatchConfig, SplitConfig
from hookloop.plugins.downscaling.options import ModelConfig, UNetOptions
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import fake_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hookloop.core import Run

FACTOR, INPUTS, BATCH = 8, ["a", "b", "c", "d"], 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write(directory: Path, times: int, size: int) -> None:
    """Write random fields, one output and four inputs, the output's own coarse field among them."""
    if (directory / "fine.zarr").exists():
        return
    noise = np.random.default_rng(0)
    hours = np.datetime64("2020-01-01", "ns") + np.arange(times) * np.timedelta64(1, "h")
    fine = noise.standard_normal((times, size, size), np.float32)
    block = fine.reshape(times, size // FACTOR, FACTOR, size // FACTOR, FACTOR).mean((2, 4))
    others = {name: noise.standard_normal(block.shape, np.float32) for name in INPUTS[1:]}
    for name, values, step in (("fine", {"a": fine}, 1), ("coarse", {"a": block, **others}, FACTOR)):
        n = size // step
        axis = (np.arange(n) + 0.5) * step * 50 / size
        data = xr.Dataset(
            {key: (("time", "latitude", "longitude"), field) for key, field in values.items()},
            {"time": hours, "latitude": axis, "longitude": axis},
        )
        chunks = {key: {"chunks": (1, n, n)} for key in values}
        data.to_zarr(directory / f"{name}.zarr", zarr_format=3, consolidated=False, encoding=chunks)


def opened(directory: Path, options: argparse.Namespace, **split: Any) -> Run:
    """A prepared run with one split, not yet trained."""
    train = SplitConfig(
        coarse=[str(directory / "coarse.zarr")],
        fine=[str(directory / "fine.zarr")],
        batch_size=BATCH,
        **split,
    )
    cells = options.patch // FACTOR
    plugin = Downscaling(
        train=train,
        model=ModelConfig(
            inputs=INPUTS,
            outputs=["a"],
            backbone=UNetOptions(
                channels=options.channels, multipliers=[1, 2, 2, 2], blocks=4, attention=False
            ),
        ),
        patch=PatchConfig(coarse=(cells, cells), per_sample=options.per_sample),
    )
    run = fake_run(directory / "run", plugin, OptimizationPlugin(optimizer="AdamW", precision="auto"))
    run.device = DEVICE
    prepare(run)
    return run


def forever(run: Run) -> Iterator[Any]:
    """One epoch after another."""
    for epoch in cycle(range(1_000_000)):
        yield from run.task.data["train"].batches(epoch)


def wait() -> None:
    """Let the GPU finish."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(batches: Iterable[Any], count: int, run: Run | None = None) -> float:
    """Seconds a batch, taken only, or learnt too."""
    wait()
    began = time.perf_counter()
    for batch in islice(batches, count):
        if run is not None:
            run.hook.train_step(run=run, batch=batch)
    wait()
    return (time.perf_counter() - began) / count


def plain(directory: Path) -> str:
    """What zarr reads of the fine store in one go."""
    array = zarr.open_array(directory / "fine.zarr", path="a", mode="r")
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        array[:]
        spent.append(time.perf_counter() - began)
    n, megabytes = array.shape[0], array.nbytes / 1e6
    best = statistics.median(spent)
    return (
        f"| plain zarr, everything in one go | {n / best:,.0f} fields/s | {megabytes / best:,.0f} MB/s | | |"
    )


def line(directory: Path, options: argparse.Namespace, name: str, **split: Any) -> str:
    """What one cache feeds, and what it adds to a step, rounds interleaved."""
    began = time.perf_counter()
    run = opened(directory, options, **split)
    with run.cleanup:
        batches = forever(run)
        first = next(batches)
        start = time.perf_counter() - began
        seconds(batches, options.steps // 4)
        feed = statistics.median(seconds(batches, options.steps) for _ in range(3))
        seconds([first] * 4, 4, run)
        rounds = [
            (seconds([first] * options.steps, options.steps, run), seconds(batches, options.steps, run))
            for _ in range(5)
        ]
        batches.close()
    bare = statistics.median(one for one, _ in rounds)
    ratio = statistics.median(fed / one for one, fed in rounds)
    fine = BATCH * options.patch**2 * 4 / feed / 1e6
    fed = f"{BATCH / feed:,.0f} patches/s | {fine:,.0f} MB/s of fine patches"
    return f"| {name} | {fed} | {1e3 * bare:.1f} ms | {ratio:.3f} × ({start:.1f} s) |"


def main() -> None:
    """Print a table for RESULTS.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    for name, value in (
        ("times", 600),
        ("size", 512),
        ("patch", 128),
        ("per_sample", 4),
        ("channels", 128),
        ("steps", 40),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    write(options.directory, options.times, options.size)
    place = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor()
    print(
        f"{place}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(f"python benchmarks/feeding.py {' '.join(sys.argv[1:])}\n")
    print("| | feeds | | a step on one batch | a step on what is fed (start) |\n|---|---|---|---|---|")
    print(plain(options.directory), flush=True)
    kinds: dict[str, dict[str, Any]] = {
        "`cache: device`": {"cache": "device"},
        "`cache: ram`": {"cache": "ram"},
    }
    kinds |= {f"`cache: none`, {n} workers": {"cache": "none", "workers": n} for n in options.workers}
    for name, split in kinds.items():
        print(line(options.directory, options, name, **split), flush=True)


if __name__ == "__main__":
    main()
