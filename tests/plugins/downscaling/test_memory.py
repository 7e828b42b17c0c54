"""Reading a whole split takes as much memory as a few of its fields, however many times it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

if TYPE_CHECKING:
    from collections.abc import Sequence

COARSE, FACTOR, TIMES = 70, 40, 8
FIELD = 4 * (COARSE * FACTOR) ** 2
"""Bytes, some 30 MiB."""

SETUP = """
import sys
import torch
from hookloop.plugins.downscaling import inspection_statistics, measured, stores
from hookloop.plugins.downscaling.data_options import SplitConfig, TransformConfig
from hookloop.plugins.downscaling.options import ModelConfig
from hookloop.plugins.downscaling.pairs import open_pair
import structlog

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

pair = open_pair(SplitConfig(coarse=[sys.argv[1]], fine=[sys.argv[2]]), ["pr"], ["pr"])
store = stores.Streamed(pair, None, 0, 1, pinned=False)
config, quantile = ModelConfig(inputs=["pr"], outputs=["pr"]), {"pr": TransformConfig("quantile")}
before = status("VmRSS")
"""
MEASURE = "measured.measured(pair, store, config, {}, None, structlog.get_logger())"
SAMPLE = "measured.measured(pair, store, config, quantile, None, structlog.get_logger())"
INSPECT = "inspection_statistics.measure(pair, 'train', {})"
HOLD = "stores.held(pair, torch.device('meta'))"  # where nothing is kept, as on a GPU


def save(path: Path, values: Sequence[np.ndarray], step: float) -> str:
    """Write one field a chunk."""
    group = zarr.open_group(path, mode="w")
    shape = len(values), *values[0].shape
    names = "time", "lat", "lon"
    array = group.create_array(
        "pr", shape=shape, chunks=(1, *shape[1:]), dtype="f4", dimension_names=names, compressors=None
    )
    for n, field in enumerate(values):
        array[n] = field
    for name, size, units in zip(
        names, shape, ("hours since 2000-01-01", "degrees_north", "degrees_east"), strict=True
    ):
        axis = np.arange(size) if name == "time" else (np.arange(size) + 0.5) * step
        made = group.create_array(name, shape=(size,), dtype="f8", dimension_names=(name,))
        made[:] = axis
        made.attrs["units"] = units
    return str(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Write coarse and fine fields, these of some 30 MiB each."""
    folder = tmp_path_factory.mktemp("large")
    small = np.random.default_rng(0).standard_normal((TIMES, COARSE, COARSE)).astype(np.float32)
    large = np.repeat(np.repeat(small[0], FACTOR, 0), FACTOR, 1)
    coarse = save(folder / "coarse.zarr", list(small), 0.5)
    return coarse, save(folder / "fine.zarr", [large + n for n in range(TIMES)], 0.5 / FACTOR)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted as Linux does")
@pytest.mark.parametrize(
    ("what", "most"),
    [(MEASURE, 30), (SAMPLE, 45), (INSPECT, 24), (HOLD, 14)],
    ids=["measure", "sample", "inspect", "hold"],
)
def test_memory_is_that_of_a_few_fields(stores: tuple[str, str], what: str, most: int) -> None:
    """Two of its eight fields are read at once, and what is made of these takes a small multiple."""
    code = f"{SETUP}{what}\nprint(status('VmHWM') - before)"
    environment = {**os.environ, "HOOKLOOP_CACHE": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *stores]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    assert int(done.stdout.splitlines()[-1]) < most * FIELD
