"""Pairs on disk whose every value tells where it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from hookloop.data.fields import Fields, Part
from hookloop.data.grids import Axis, Grid
from hookloop.plugins.downscaling.pairs import Pair

FACTOR = 4


def _side(path: Path, values: np.ndarray, members: int, chunks: tuple[int, ...]) -> Fields:
    """Write ``[time, (member,) variable, lat, lon]`` as a zarr store, and describe it."""
    *_, variables, height, width = values.shape
    dims = ("time", "member", "latitude", "longitude") if members > 1 else ("time", "latitude", "longitude")
    parts = {}
    for v, name in enumerate("ab"[:variables]):
        own = values[..., v, :, :]
        shape = (chunks[0], *(1,) * (own.ndim - 3), min(chunks[1], height), min(chunks[2], width))
        zarr.create_array(str(path), name=name, shape=own.shape, chunks=shape, dtype="f4")[:] = own
        part = Part(
            str(path), name, "zarr", dims, np.arange(len(values)), chunks=dict(zip(dims, shape, strict=True))
        )
        parts[name] = [part]
    times = np.datetime64("2020-01-31T00", "ns") + np.arange(len(values)) * np.timedelta64(3, "h")
    step = FACTOR * height / 6 / height
    axes = [Axis((np.arange(n) + 0.5) * step, np.arange(n), step) for n in (height, width)]
    return Fields(path.name, parts, times, axes[0], axes[1], members=members)


@pytest.fixture
def pair_on_disk(tmp_path: Path) -> Callable[..., Pair]:
    """Make pairs of random fine fields and their block means, two variables, three-hourly."""
    made = iter(range(100))

    def make(
        n_times: int = 10,
        lat: int = 6,
        lon: int = 8,
        *,
        members: int = 1,
        periodic: bool = False,
        chunks: tuple[int, int, int] = (1, 16, 16),
    ) -> Pair:
        directory = tmp_path / f"pair{next(made)}"
        noise = np.random.default_rng(5)
        fine = noise.standard_normal((n_times, 2, lat * FACTOR, lon * FACTOR)).astype(np.float32)
        coarse = fine.reshape(n_times, 2, lat, FACTOR, lon, FACTOR).mean((3, 5))
        if members > 1:
            coarse = coarse[:, None] + np.arange(members, dtype=np.float32)[:, None, None, None]
        sides = (
            _side(directory / "coarse", coarse, members, chunks),
            _side(directory / "fine", fine, 1, chunks),
        )
        grids = [Grid(side.latitude.values, side.longitude.values) for side in sides]
        return Pair(
            coarse=sides[0],
            fine=sides[1],
            times=sides[0].times,
            coarse_grid=grids[0],
            fine_grid=grids[1],
            factor=FACTOR,
            inputs=["a", "b"],
            outputs=["a", "b"],
            units={"a": "K", "b": "m"},
            members=members,
            periodic=periodic,
            notes=[],
        )

    return make
