"""The data of ``data.py``: a pair of fields as in kilometre-scale downscaling, and what is asked of it.

Runs in the environments of the peers too, so nothing of hookloop is imported.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

FACTOR, SEED = 8, 0
OUTPUTS = ("t2m",)
INPUTS = ("t2m", "u10", "v10", "place")
PLACE = INPUTS.index("place")
"""Numbers every cell of every time, so that it shows where a patch was cut from."""
EXACT = 2**24
"""Integers below are exact in float32."""
STEP = 1 / 64
"""Values are rounded to it, as packed files are; without that nothing would compress."""
FIRST = np.datetime64("2020-01-01T00", "h")


class Job(NamedTuple):
    """What one process serves."""

    feeder: str
    folder: str
    """Where the files are, of both formats."""
    format: str
    times: int
    """How many of them, from the first, are served."""
    size: int
    """Fine cells of a field along each axis."""
    patch: int
    """Fine cells of a patch along each axis."""
    per_sample: int
    """Patches of each time: one, or all that tile the field."""
    batch: int
    shuffle: int = 64
    """Times that hookloop reads at once and shuffles."""
    cache: str = "none"
    workers: int = 0
    chunk: int = 0
    """Fine cells of a chunk along each axis; 0 for the whole field. Coarse fields are one chunk."""

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """South-west corners of the patches that tile a field, in coarse cells."""
        steps = range(0, self.size // FACTOR, self.patch // FACTOR)
        return [(row, column) for row in steps for column in steps]

    @property
    def patch_bytes(self) -> int:
        """Bytes of a coarse and a fine patch in float32."""
        return 4 * (len(OUTPUTS) * self.patch**2 + len(INPUTS) * (self.patch // FACTOR) ** 2)

    @property
    def field_bytes(self) -> int:
        """Bytes of the coarse and the fine fields of one time in float32."""
        return 4 * (len(OUTPUTS) * self.size**2 + len(INPUTS) * (self.size // FACTOR) ** 2)

    def file(self, grid: str) -> Path:
        """The store or file of the ``coarse`` or ``fine`` grid."""
        return Path(self.folder) / f"{grid}.{'zarr' if self.format == 'zarr' else 'nc'}"


def make(job: Job) -> None:
    """Write the files of *job*, unless they are there."""
    if job.times * (job.size // FACTOR) ** 2 > EXACT:
        raise SystemExit(
            f"{job.times} times of {job.size} x {job.size} cells cannot be numbered exactly; expected fewer"
        )
    write = _write_zarr if job.format == "zarr" else _write_netcdf
    for grid, names, cells in (("fine", OUTPUTS, job.size), ("coarse", INPUTS, job.size // FACTOR)):
        path = job.file(grid)
        if path.exists():
            continue
        unfinished = path.with_name(f"unfinished-{path.name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        chunk = job.chunk if grid == "fine" and job.chunk else cells
        fields, coordinates = _fields(grid, job.times, job.size), _coordinates(job.times, job.size, cells)
        write(unfinished, names, fields, coordinates, (1, chunk, chunk))
        unfinished.rename(path)


def files(job: Job) -> list[Path]:
    """All files, those of the chunks too."""
    paths = [job.file("coarse"), job.file("fine")]
    return [path for top in paths for path in (top, *top.rglob("*")) if path.is_file()]


def _fields(grid: str, times: int, size: int) -> Iterator[list[Floats]]:
    """The variables of one time after another, ``[lat, lon]`` each."""
    cells = size // FACTOR
    for t in range(times):
        fine = np.float32(280) + red_noise(size, t, 0)
        if grid == "fine":
            yield [rounded(fine)]
        else:
            means = fine.reshape(cells, FACTOR, cells, FACTOR).mean((1, 3))
            place = np.arange(t * cells**2, (t + 1) * cells**2, dtype=np.float32).reshape(cells, cells)
            yield [rounded(means), *(rounded(red_noise(cells, t, v)) for v in (1, 2)), place]


def red_noise(cells: int, time: int, variable: int) -> Floats:
    """A random field ``[cells, cells]`` with a power spectrum of k⁻³ and a standard deviation of 5."""
    rng = np.random.default_rng([SEED, time, variable])
    k = np.hypot(np.fft.fftfreq(cells)[:, None], np.fft.rfftfreq(cells)[None, :])
    k[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((cells, cells)))
    # In two dimensions a spectrum of k⁻³ is one of k⁻⁴ at each wave vector.
    red = np.fft.irfft2(white * k**-2, (cells, cells))
    return np.asarray(5 * red / red.std(), dtype=np.float32)


def rounded(values: Floats) -> Floats:
    """To multiples of :data:`STEP`."""
    return np.asarray(np.round(values / STEP) * STEP, dtype=np.float32)


def _coordinates(
    times: int, size: int, cells: int
) -> dict[str, tuple[npt.NDArray[np.generic], dict[str, str]]]:
    """Hours, latitudes and longitudes, with their attributes; cells are ``10.24 / cells`` degrees wide."""
    centres = (np.arange(cells) + 0.5) * 0.02 * size / cells
    since = {"units": f"hours since {FIRST.astype('datetime64[D]')}", "calendar": "proleptic_gregorian"}
    return {
        "time": (np.arange(times), since),
        "lat": (40 + centres, {"units": "degrees_north"}),
        "lon": (5 + centres, {"units": "degrees_east"}),
    }


def _write_zarr(
    path: Path,
    names: tuple[str, ...],
    fields: Iterator[list[Floats]],
    coordinates: dict[str, tuple[npt.NDArray[np.generic], dict[str, str]]],
    chunks: tuple[int, int, int],
) -> None:
    """Zarr 3 with its default codecs."""
    import zarr

    group = zarr.create_group(path, zarr_format=3)
    for name, (values, attributes) in coordinates.items():
        group.create_array(name, data=values, dimension_names=[name], attributes={**attributes})
    shape = tuple(len(values) for values, _ in coordinates.values())
    arrays = [
        group.create_array(
            name, shape=shape, chunks=chunks, dtype="float32", dimension_names=list(coordinates)
        )
        for name in names
    ]
    for t, at_once in enumerate(fields):
        for array, field in zip(arrays, at_once, strict=True):
            array[t] = field


def _write_netcdf(
    path: Path,
    names: tuple[str, ...],
    fields: Iterator[list[Floats]],
    coordinates: dict[str, tuple[npt.NDArray[np.generic], dict[str, str]]],
    chunks: tuple[int, int, int],
) -> None:
    """netCDF-4 with shuffle and zlib, level 4."""
    import h5netcdf

    with h5netcdf.File(path, "w") as file:
        file.dimensions = {name: len(values) for name, (values, _) in coordinates.items()}
        for name, (values, attributes) in coordinates.items():
            file.create_variable(name, (name,), data=values).attrs.update(attributes)
        variables = [
            file.create_variable(
                name, tuple(coordinates), "float32", chunks=chunks, compression="gzip", shuffle=True
            )
            for name in names
        ]
        for t, at_once in enumerate(fields):
            for variable, field in zip(variables, at_once, strict=True):
                variable[t] = field


def describe(job: Job) -> str:
    """One sentence about the data."""
    decoded, stored = job.times * job.field_bytes, stored_bytes(job)
    chunks = f"{job.chunk} x {job.chunk} fine cells" if job.chunk else "whole fields"
    cells = job.size // FACTOR
    return (
        f"{job.format}, {job.times} times, fine {len(OUTPUTS)} x {job.size} x {job.size}, "
        f"coarse {len(INPUTS)} x {cells} x {cells}, chunks of {chunks}: "
        f"{decoded / 1e6:.0f} MB, {stored / 1e6:.0f} MB stored"
    )


def stored_bytes(job: Job) -> int:
    """Bytes of all files, compressed as they are."""
    return sum(path.stat().st_size for path in files(job))
