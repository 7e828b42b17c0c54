"""The zarr store of generated fields: written shard by shard, each whole or not at all, so that any kill is survived.

A shard is made in memory, put durably into a temporary file and renamed to its place (:mod:`hookloop.durable`).
So a shard that is there is complete, unless a disk or a copy has cut it off: then it is not as long as its index
says, and made again like one that is missing.
"""

from __future__ import annotations

import json
import math
import warnings
from itertools import product
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import zarr
from attrs import frozen
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from hookloop.durable import make_directory, write_whole
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from zarr.abc.store import Store
    from zarr.core.metadata import ArrayV3Metadata

    from hookloop.data.calendars import Times

    Floats = npt.NDArray[np.float32]
    Coordinates = npt.NDArray[np.float64]
    Attributes = Mapping[str, str]

_OURS = "hookloop"
"""The attribute of the group that says how the store was made: JSON, since netCDF has no attributes within others."""
_ROOT = "zarr.json"
_LOCK = "run.lock"
_NOTHING = 2**64 - 1
"""The length, in a shard's index, of a chunk that is not there."""
_CRC = 4
"""Bytes of the checksum behind the index."""
_UNITS = {"hours": 3_600_000, "minutes": 60_000, "seconds": 1000, "milliseconds": 1}
"""Milliseconds."""


@frozen(eq=False)
class Contents:
    """What a store of generated fields holds, beside the fields."""

    variables: Mapping[str, Attributes]
    """By name, with the attributes of the CF conventions."""
    times: Times
    members: int
    latitude: Coordinates
    """Degrees north; row numbers, where *gridded* is false."""
    longitude: Coordinates
    gridded: bool
    coarse_members: int
    """Of the input: output members come in as many groups, of equal size."""
    made_with: dict[str, object]
    """All that the values are a function of, as plain data: a store is only gone on with by the same."""
    attributes: Attributes
    """Of the group."""

    @property
    def dimensions(self) -> tuple[str, str, str, str]:
        """Names of the dimensions."""
        return ("time", "member", "latitude", "longitude") if self.gridded else ("time", "member", "y", "x")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sizes of the dimensions."""
        return len(self.times), self.members, len(self.latitude), len(self.longitude)


@frozen
class Item:
    """The work behind one shard of each variable."""

    number: tuple[int, int]
    """Of the shard along time and member."""
    times: range
    members: range


@frozen(eq=False)
class GeneratedStore:
    """A store on a disk, some of whose shards may be missing."""

    path: Path
    contents: Contents
    shard: tuple[int, int]
    """Times and members of a shard."""

    def items(self) -> list[Item]:
        """All shards, in the order of time, then of members."""
        (n_times, n_members), (times, members) = self.contents.shape[:2], self.shard
        starts = product(range(0, n_times, times), range(0, n_members, members))
        return [
            Item(
                (t // times, m // members),
                range(t, min(t + times, n_times)),
                range(m, min(m + members, n_members)),
            )
            for t, m in starts
        ]

    def has(self, item: Item) -> bool:
        """Whether the shards of all variables are there, and whole."""
        return all(self._is_whole(path, item) for path in self._places(item))

    def damaged(self, item: Item) -> list[Path]:
        """The shards that are there but not whole."""
        return [path for path in self._places(item) if path.exists() and not self._is_whole(path, item)]

    def write(self, item: Item, values: Floats) -> None:
        """Write the shards of an *item*, ``[variable, time, member, lat, lon]``; afterwards they survive a power cut.

        :raises HookloopError: where they cannot be written; the store can be gone on with.
        """
        for name, own in zip(self.contents.variables, values, strict=True):
            _write(self._place(name, item), self._encoded(own))

    def _places(self, item: Item) -> list[Path]:
        return [self._place(name, item) for name in self.contents.variables]

    def _is_whole(self, path: Path, item: Item) -> bool:
        """Whether a shard has a chunk for each field, and their lengths and the index's are the file's.

        The index (zarr's ``sharding_indexed`` codec) is at the end: of each chunk where it begins and its length,
        64 bits each and all ones where there is none, and a CRC-32C.
        """
        fields = len(item.times) * len(item.members)
        index = 16 * math.prod(self.shard)
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(0, size - index - _CRC))
                found = np.frombuffer(file.read(index), "<u8")[1::2]
        except OSError:
            return False
        lengths = [int(length) for length in found if length != _NOTHING]
        return len(lengths) == fields and min(lengths) > 0 and sum(lengths) + index + _CRC == size

    def _place(self, name: str, item: Item) -> Path:
        time, member = item.number
        return self.path / name / "c" / str(time) / str(member) / "0" / "0"

    def _encoded(self, values: Floats) -> bytes:
        """Encode one shard: it is that of a store in memory which holds nothing else."""
        files: dict[str, object] = {}
        array = _array(MemoryStore(files), None, (*self.shard, *values.shape[2:]), self.shard, (), {})  # type: ignore[arg-type]
        array[: values.shape[0], : values.shape[1]] = values
        return cast("bytes", files["c/0/0/0/0"].to_bytes())  # type: ignore[attr-defined]


def open_store(path: Path, contents: Contents, shard: tuple[int, int]) -> GeneratedStore:
    """Make the store at *path*, or go on with the one that is there, whose shards stay as large as they are.

    :param shard: times and members of a shard of a new store.
    :raises HookloopError: where something else is there, or a store made with other options; it is left as it is.
    """
    if not (path / _ROOT).exists():
        _make(path, contents, shard)
        return GeneratedStore(path, contents, shard)
    try:
        there = json.loads(json.loads((path / _ROOT).read_bytes())["attributes"][_OURS])
        before, (times, members) = dict(there["made_with"]), there["shard"]
    except (ValueError, KeyError, TypeError, OSError) as problem:
        raise HookloopError(f"{path}: no store of hookloop generate; choose another --out") from problem
    now = json.loads(json.dumps(contents.made_with))
    if odd := _differing(before, now):
        raise HookloopError(f"{path}: made with other options: {', '.join(odd)}; choose another --out")
    return GeneratedStore(path, contents, (int(times), int(members)))


def _differing(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Say what differs; of a digest, which tells people nothing, what it is of."""
    odd = {}
    for key in {**before, **now}:
        name = key.removesuffix("_digest")
        if before.get(name) != now.get(name):
            odd[name] = f"{name} ({before.get(name)!r:.120} there, {now.get(name)!r:.120} now)"
        elif before.get(key) != now.get(key):
            odd[name] = f"{name} ({now.get(name)!r:.120} there and now, but not the same{_BY.get(name, '')})"
    return list(odd.values())


_BY = {"data": ": by paths, sizes and times of change"}
"""What the digest of something is of, where its name does not say."""


def make_place(path: Path, contents: Sequence[str]) -> None:
    """Make the directory of a store, unless something else is there.

    :param contents: names of the variables that it is to hold.
    :raises HookloopError: where something else is there, or it cannot be made.
    """
    try:
        make_directory(path)
        if (path / _ROOT).exists():
            return
        own = {*contents, *_COORDINATES, _LOCK, f".{_ROOT}.tmp"}  # what is left where one was killed at once
        if others := sorted(entry.name for entry in path.iterdir() if entry.name not in own):
            raise HookloopError(f"{path}: there is {others[0]} already; choose a new --out")
    except OSError as problem:
        raise HookloopError(f"{path}: cannot be made: {problem.strerror}; choose another --out") from problem


_COORDINATES = ("time", "member", "coarse_member", "latitude", "longitude", "y", "x")


def _make(path: Path, contents: Contents, shard: tuple[int, int]) -> None:
    """Write everything but the fields; the root comes last, so that with it all is there."""
    files = _files(contents, shard)
    for name in sorted(files, key=lambda name: name == _ROOT):
        _write(path / name, files[name])


def _write(path: Path, content: bytes) -> None:
    def write(file: BinaryIO) -> None:
        file.write(content)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as problem:
        raise HookloopError(
            f"{path}: cannot be written: {problem.strerror}; what is there is kept: make room, and give the same "
            "command again"
        ) from problem


def _files(contents: Contents, shard: tuple[int, int]) -> dict[str, bytes]:
    """Metadata and coordinates, by path within the store."""
    files: dict[str, object] = {}
    store = MemoryStore(files)  # type: ignore[arg-type]
    ours = json.dumps({"made_with": contents.made_with, "shard": shard})
    zarr.create_group(store, attributes={**contents.attributes, _OURS: ours})
    for name, attributes, values in _coordinates(contents):
        dimension = "member" if name == "coarse_member" else name
        array = zarr.create_array(
            store,
            name=name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            dimension_names=[dimension],
            attributes=dict(attributes),
        )
        array[:] = values
    for name, attributes in contents.variables.items():
        further = {"coordinates": "coarse_member"} if contents.coarse_members > 1 else {}
        _array(store, name, contents.shape, shard, contents.dimensions, {**attributes, **further})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")  # of the standard
        zarr.consolidate_metadata(store)
    return {name: cast("bytes", file.to_bytes()) for name, file in files.items()}  # type: ignore[attr-defined]


def _array(
    store: Store,
    name: str | None,
    shape: tuple[int, int, int, int],
    shard: tuple[int, int],
    dimensions: Sequence[str],
    attributes: Attributes,
) -> zarr.Array[ArrayV3Metadata]:
    """Make the array of a variable: a chunk is a field, so that one is read without the others."""
    return zarr.create_array(
        store,
        name=name,
        shape=shape,
        chunks=(1, 1, *shape[2:]),
        shards=(*shard, *shape[2:]),
        dtype="float32",
        compressors=ZstdCodec(level=3, checksum=True),  # so that damage is noticed
        fill_value=np.nan,  # so that what is lost is missing
        dimension_names=list(dimensions) or None,
        attributes=dict(attributes),
    )


def _coordinates(contents: Contents) -> list[tuple[str, Attributes, npt.NDArray[np.generic]]]:
    """Name, attributes and values of each coordinate."""
    units, calendar, times = encoded_times(contents.times)
    time = {"standard_name": "time", "axis": "T", "units": units, "calendar": calendar}
    member = {"standard_name": "realization", "long_name": "generated member"}
    found: list[tuple[str, Attributes, npt.NDArray[np.generic]]] = [
        ("time", time, times),
        ("member", member, np.arange(contents.members)),
    ]
    if (groups := contents.coarse_members) > 1:
        of = np.repeat(np.arange(groups), contents.members // groups)
        found.append(("coarse_member", {"long_name": "ensemble member of the coarse input"}, of))
    if contents.gridded:
        north = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
        east = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
        found += [("latitude", north, contents.latitude), ("longitude", east, contents.longitude)]
    return found


def encoded_times(times: Times) -> tuple[str, str, npt.NDArray[np.int64]]:
    """Give *times* as CF has them: units, calendar and whole numbers of the largest unit that fits all."""
    if times.dtype.kind == "M":
        calendar, ticks = "proleptic_gregorian", times.astype("datetime64[ms]").astype(np.int64)
    else:
        import cftime

        calendar = str(times[0].calendar)
        ticks = np.asarray(cftime.date2num(times, "milliseconds since 1970-01-01", calendar), np.int64)
    unit = next(unit for unit, length in _UNITS.items() if not (ticks % length).any())
    return f"{unit} since 1970-01-01", calendar, ticks // _UNITS[unit]
