"""The feeders that ``data.py`` compares: each an endless iterator of batches of patches.

A batch is the coarse and the fine patches, ``(coarse, fine)``, one after another along the first axis of both:
``coarse[i]`` is ``[input, lat, lon]`` and ``fine[i]`` is ``[output, lat, lon]``, float32. The patches are the tiles
of the fields, in random order. A loader hands over tensors that own their memory, as a model takes them.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from data_pair import FACTOR, FIRST, INPUTS, OUTPUTS, SEED, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

Batch: TypeAlias = tuple[Any, Any]
"""Tensors, or lists of views."""


def arrays(job: Job) -> tuple[list[Any], list[Any]]:
    """The coarse and the fine variables, nothing between us and zarr or HDF5."""
    if job.format == "zarr":
        import zarr

        stores = [zarr.open_group(job.file(grid), mode="r") for grid in ("coarse", "fine")]
    else:
        import h5py  # type: ignore[import-untyped]

        stores = [h5py.File(job.file(grid)) for grid in ("coarse", "fine")]
    return [stores[0][name] for name in INPUTS], [stores[1][name] for name in OUTPUTS]


def cut(fields: list[Any], row: int, column: int, cells: int) -> list[Any]:
    """A patch of every variable, as views."""
    return [field[..., row : row + cells, column : column + cells] for field in fields]


def views(job: Job, coarse: list[Any], fine: list[Any], tiles: list[tuple[int, int]]) -> Batch:
    """These tiles of the fields of one time."""
    above = [cut(coarse, row, column, job.patch // FACTOR) for row, column in tiles]
    return above, [cut(fine, row * FACTOR, column * FACTOR, job.patch) for row, column in tiles]


class OfTime(NamedTuple):
    """A stored field, of which only what is asked for is read."""

    array: Any
    time: int

    def __getitem__(self, key: Any) -> Any:
        """Read a patch; the dots stand for nothing."""
        return self.array[(self.time, *key[1:])]


def plain_fields(job: Job) -> Iterator[Batch]:
    """One field after another, in random order; the patches are views, so this is the cost of reading alone."""
    coarse, fine = arrays(job)
    rng = np.random.default_rng(SEED)
    while True:
        for t in rng.permutation(job.times).tolist():
            tiles = [job.tiles[i] for i in rng.permutation(len(job.tiles))[: job.per_sample]]
            above = [array[t] for array in coarse]
            if job.per_sample < len(job.tiles):
                yield views(job, above, [OfTime(array, t) for array in fine], tiles)
            else:
                yield views(job, above, [array[t] for array in fine], tiles)


def plain_whole(job: Job) -> Iterator[Batch]:
    """All times of a variable with one read, as many chunks at once as zarr sees fit."""
    coarse, fine = arrays(job)
    while True:
        above, below = [array[: job.times] for array in coarse], [array[: job.times] for array in fine]
        tiles = job.tiles[: job.per_sample]
        batches = [views(job, [a[t] for a in above], [b[t] for b in below], tiles) for t in range(job.times)]
        yield [patch for batch in batches for patch in batch[0]], [p for batch in batches for p in batch[1]]


def stacked(dataset: Any) -> torch.Tensor:
    """The variables of an xarray dataset, ``[variable, lat, lon]``."""
    import torch

    return torch.from_numpy(np.concatenate([array.to_numpy() for array in dataset.data_vars.values()]))


def xbatcher(job: Job) -> Iterator[Batch]:
    """Two generators of patches in xbatcher's map-style dataset, and torch's loader around it."""
    import xarray as xr
    from torch.utils.data import DataLoader
    from xbatcher import BatchGenerator  # type: ignore[import-not-found]
    from xbatcher.loaders.torch import MapDataset  # type: ignore[import-not-found]

    generators = []
    for grid, names, cells in (("coarse", INPUTS, job.patch // FACTOR), ("fine", OUTPUTS, job.patch)):
        engine = "zarr" if job.format == "zarr" else "netcdf4"
        # Without dask, whose graphs cost more than these chunks do.
        data = xr.open_dataset(job.file(grid), engine=engine, chunks=None)
        generators.append(BatchGenerator(data[list(names)], {"time": 1, "lat": cells, "lon": cells}))
    loader = DataLoader(
        MapDataset(*generators, transform=stacked, target_transform=stacked),
        batch_size=job.batch,
        sampler=Order(job),
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        # zarr has threads, which do not survive a fork.
        multiprocessing_context="forkserver" if job.workers else None,
    )
    while True:
        yield from loader


class Order:
    """The patches of an epoch by number, those of all times mixed, other ones in each epoch."""

    def __init__(self, job: Job) -> None:
        self.job, self.rng = job, np.random.default_rng(SEED)

    def __len__(self) -> int:
        """Count them."""
        return self.job.times * self.job.per_sample

    def __iter__(self) -> Iterator[int]:
        """Draw the tiles of each time, and mix."""
        tiles = len(self.job.tiles)
        chosen = [
            t * tiles + self.rng.permutation(tiles)[: self.job.per_sample] for t in range(self.job.times)
        ]
        return iter(self.rng.permutation(np.concatenate(chosen)).tolist())


def fme(job: Job) -> Iterator[Batch]:
    """The loader of ``fme.downscaling`` as its trainer uses it, with the offset at 0 so that patches tile.

    It cuts a batch of whole fields into batches of patches, all at the same place; there is no option for
    fewer patches than tile the field, so the first of each such batch is taken where one is asked for.
    """
    import torch
    from fme.core.dataset.xarray import XarrayDataConfig  # type: ignore[import-not-found]
    from fme.downscaling.data.config import PairedDataLoaderConfig  # type: ignore[import-not-found]
    from fme.downscaling.requirements import DataRequirements  # type: ignore[import-not-found]

    engine = "zarr" if job.format == "zarr" else "netcdf4"
    coarse, fine = (
        [XarrayDataConfig(data_path=job.folder, file_pattern=job.file(grid).name, engine=engine)]
        for grid in ("coarse", "fine")
    )
    loader = PairedDataLoaderConfig(
        fine=fine,
        coarse=coarse,
        batch_size=job.batch,
        num_data_workers=job.workers,
        strict_ensemble=True,
    ).build(train=True, requirements=DataRequirements(list(OUTPUTS), list(INPUTS), n_timesteps=1))
    cells = job.patch // FACTOR
    while True:
        for i, batch in enumerate(loader.get_patched_generator((cells, cells), shuffle=True)):
            if i % len(job.tiles) < job.per_sample:
                above = torch.stack([batch.coarse.data[name] for name in INPUTS], 1)
                yield above, torch.stack([batch.fine.data[name] for name in OUTPUTS], 1)


def hookloop(job: Job) -> Iterator[Batch]:
    """A training split with ``cache`` and ``workers`` as asked for."""
    import torch

    from hookloop.data.places import places
    from hookloop.plugins.downscaling.data_options import PatchConfig, SplitConfig
    from hookloop.plugins.downscaling.dataset import PairedData
    from hookloop.plugins.downscaling.pairs import open_pair
    from hookloop.plugins.downscaling.stores import open_store

    split = SplitConfig(
        coarse=[str(job.file("coarse"))],
        fine=[str(job.file("fine"))],
        time=(str(FIRST), str(FIRST + job.times - 1)),
        batch_size=job.batch,
        cache=job.cache,  # type: ignore[arg-type]
        workers=job.workers,
    )
    cells, device = job.patch // FACTOR, torch.device("cpu")
    patch = PatchConfig(
        coarse=(cells, cells), per_sample=job.per_sample, random_offset=False, shuffle=job.shuffle
    )
    pair = open_pair(split, INPUTS, OUTPUTS)
    with ExitStack() as cleanup:
        place = places({"train": split}, {"train": pair}, device)["train"]
        store = open_store(pair, place, job.workers, patch.together, device, told, cleanup)
        data = PairedData(pair, store, patch, job.batch, lambda epoch, _: epoch, device)
        for epoch in count():
            for batch in data.batches(epoch):
                yield data.inside(batch.coarse), batch.fine


def told(event: str, **values: object) -> None:
    """Nothing happens here that is worth telling, such as a read that was repeated."""
    raise SystemExit(f"{event}: {values}")


FEEDERS: dict[str, Callable[[Job], Iterator[Batch]]] = {
    "plain_fields": plain_fields,
    "plain_whole": plain_whole,
    "xbatcher": xbatcher,
    "fme": fme,
    "hookloop": hookloop,
}
MODULES = {
    "plain_fields": ("zarr",),
    "plain_whole": ("zarr",),
    "xbatcher": ("zarr", "torch", "xarray", "xbatcher.loaders.torch"),
    "fme": ("zarr", "fme.downscaling.data.config"),
    "hookloop": ("zarr", "torch", "hookloop.plugins.downscaling.dataset"),
}
"""Imported before the clock of a feeder starts."""
