"""Arrays in files and stores, opened once in each process, and boxes of them read many at a time.

Nothing of torch is imported here, so that the processes that read start quickly.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    import h5py
    from zarr import AsyncArray as _AsyncArray

    AsyncArray: TypeAlias = _AsyncArray[Any]

T = TypeVar("T")
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[Any]
"""Values as they are in the file, whatever their type."""

ATTEMPTS = 3
_PAUSE = 0.2
"""Seconds before the second attempt; four times as long before the third."""
_OPEN_FILES = 64
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, zlib.error)
"""What damaged chunks and failing disks raise; what is behind a URL may raise anything."""


@frozen(eq=False)
class Part:
    """One variable of one file or store, and which of its times are used. Small, and sent to other processes."""

    path: str
    name: str
    """In the file."""
    format: Literal["zarr", "hdf5", "xarray"]
    """``xarray`` reads, and decodes, whatever the other two cannot."""
    dims: tuple[str, ...]
    """In the order of the file: time, member, latitude and longitude as far as it has them, and those in ``fixed``."""
    index: Ints
    """Where each used time lies in the file, ascending."""
    fixed: Mapping[str, int] = field(factory=dict)
    """Positions along all other dimensions, such as a level."""
    chunks: Mapping[str, int] = field(factory=dict)
    """Cells that are read at once along each dimension, 1 where any can be had by itself; all if it is not here."""
    scale: float = 1.0
    offset: float = 0.0
    missing: tuple[int | float, ...] = ()
    """Stored values that stand for none, exactly as they are stored."""
    storage_options: Mapping[str, object] = field(factory=dict)


@frozen(eq=False)
class Box:
    """A box of a part: where it begins and ends along every dimension of the file."""

    part: Part
    selection: Mapping[str, slice]


@frozen(eq=False)
class Fetched:
    """What boxes hold, and what had to be read again."""

    values: list[Floats]
    """For each box ``[time, latitude, longitude]``, NaN where nothing is stored."""
    retried: list[str]
    """What failed at first, in words."""


def fetch(boxes: Sequence[Box]) -> Fetched:
    """Read *boxes*: those of zarr stores all at once, those of other files one after another.

    :raises HookloopError: where one cannot be read, after :data:`ATTEMPTS`; it names file, variable and place.
    """
    retried: list[str] = []
    chunked = [
        (box, _patiently(box, retried, partial(_zarr_array, box.part)))
        for box in boxes
        if box.part.format == "zarr"
    ]
    gathered = iter(_run(_gathered(chunked, retried)) if chunked else [])
    stored = [
        next(gathered) if box.part.format == "zarr" else _patiently(box, retried, partial(_read, box))
        for box in boxes
    ]
    _expect_there(box.part for box, _ in chunked)
    return Fetched([_decoded(box, values) for box, values in zip(boxes, stored, strict=True)], retried)


def _expect_there(parts: Iterable[Part]) -> None:
    """Tell arrays that have vanished from those in which nothing was written: zarr reads both as its fill value."""
    for path, name in {(part.path, part.name) for part in parts if "://" not in part.path}:
        if not (Path(path) / name).exists():
            raise HookloopError(f"{path}: {name} was there at opening, and is no longer; expected it to stay")


def _run(work: Coroutine[Any, Any, T]) -> T:
    from zarr.core.sync import sync  # runs it on zarr's own loop, where remote stores have their connections

    return sync(work)


async def _gathered(chunked: Sequence[tuple[Box, AsyncArray]], retried: list[str]) -> list[Stored]:
    return list(await asyncio.gather(*(_read_chunked(box, array, retried) for box, array in chunked)))


async def _read_chunked(box: Box, array: AsyncArray, retried: list[str]) -> Stored:
    for attempt in range(1, ATTEMPTS):
        try:
            return np.asarray(await array.getitem(_key(box)))
        except _failures(box.part) as problem:
            retried.append(_said(box, problem))
            await asyncio.sleep(_PAUSE * 4 ** (attempt - 1))
    try:
        return np.asarray(await array.getitem(_key(box)))
    except _failures(box.part) as problem:
        raise _unreadable(box, problem) from problem


def _patiently(box: Box, retried: list[str], read: Callable[[], T]) -> T:
    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except _failures(box.part) as problem:
            retried.append(_said(box, problem))
            _reopen(box.part)
            time.sleep(_PAUSE * 4 ** (attempt - 1))
    try:
        return read()
    except _failures(box.part) as problem:
        raise _unreadable(box, problem) from problem


def _failures(part: Part) -> tuple[type[Exception], ...]:
    return (Exception,) if "://" in part.path else _UNREADABLE


def _reopen(part: Part) -> None:
    """Forget open files of its kind: this one may have been replaced."""
    if part.format == "hdf5":
        _hdf5_file.cache_clear()
    elif part.format == "zarr":
        _open_zarr.cache_clear()
    else:
        from hookloop.data.files import forget_open

        forget_open()


def _read(box: Box) -> Stored:
    part = box.part
    if part.format == "hdf5":
        return np.asarray(_hdf5_file(part.path)[part.name][_key(box)])
    from hookloop.data.files import open_variable

    return np.asarray(open_variable(part)[_key(box)])


def _unreadable(box: Box, problem: Exception) -> HookloopError:
    return HookloopError(
        f"{_said(box, problem)}; it cannot be read in {ATTEMPTS} attempts: is the file damaged?"
    )


def _said(box: Box, problem: Exception) -> str:
    found = " ".join(f"{type(problem).__name__}: {problem}".split())
    return f"{box.part.path}: {_place(box)}: {found}"


def _place(box: Box) -> str:
    part = box.part
    ranges = [f"{name} {s.start} to {s.stop - 1}" for name, s in box.selection.items() if name in part.dims]
    fixed = [f"{name.removeprefix('fixed ')} {at}" for name, at in part.fixed.items()]
    return f"{part.name} at index {', '.join([*ranges, *fixed])}"


def _key(box: Box) -> tuple[slice | int, ...]:
    return tuple(
        box.part.fixed[name] if name in box.part.fixed else box.selection[name] for name in box.part.dims
    )


def _decoded(box: Box, stored: Stored) -> Floats:
    """Turn stored values into ``[time, latitude, longitude]`` in physical units (CF conventions, §8.1)."""
    part = box.part
    dims = [name for name in part.dims if name not in part.fixed and name != "member"]
    if "member" in part.dims:
        stored = stored.squeeze([name for name in part.dims if name not in part.fixed].index("member"))
    if "time" not in dims:
        dims, stored = ["time", *dims], stored[None]
    stored = stored.transpose([dims.index(name) for name in ("time", "latitude", "longitude")])
    if (part.scale, part.offset) == (1.0, 0.0):
        values = stored.astype(np.float32, copy=False)
    else:
        values = (stored.astype(np.float64) * part.scale + part.offset).astype(np.float32)
    for number in part.missing:
        absent = stored == number
        if absent.any():
            values = np.where(absent, np.float32(np.nan), values)
    return values


def _zarr_array(part: Part) -> AsyncArray:
    return _open_zarr(part.path, part.name, tuple(part.storage_options.items()))


@lru_cache(maxsize=4096)
def _open_zarr(path: str, name: str, storage_options: tuple[tuple[str, object], ...]) -> AsyncArray:
    from zarr.api.asynchronous import open_array

    options = dict(storage_options) or None
    return _run(open_array(store=path, path=name, mode="r", storage_options=options))


@lru_cache(maxsize=_OPEN_FILES)
def _hdf5_file(path: str) -> h5py.File:
    import h5py

    return h5py.File(path, "r")
