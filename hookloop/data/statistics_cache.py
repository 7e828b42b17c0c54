"""What was measured of data, kept below the user's cache directory until the data change."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hookloop.durable import write_whole
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Plain: TypeAlias = "bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] | None"
"""What JSON knows; floats are written so that they are read back exactly."""

_VERSION = 2
"""Of how things are measured: another one measures everything anew."""
_METADATA = ("zarr.json", ".zmetadata", ".zgroup", ".zarray", ".zattrs")


def cache_directory() -> Path | None:
    """``$HOOKLOOP_CACHE``, else ``$XDG_CACHE_HOME/hookloop``, else ``~/.cache/hookloop``.

    :returns: ``None`` where nothing is to be kept, since ``HOOKLOOP_CACHE`` is empty or there is no home.
    """
    chosen = os.environ.get("HOOKLOOP_CACHE")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # noqa: PTH117 - the XDG specification has any other ignored
        return Path(shared) / "hookloop"
    try:
        return Path.home() / ".cache" / "hookloop"
    except RuntimeError:
        return None


def fingerprint(
    paths: Sequence[str],
    what: Mapping[str, Plain],
    storage_options: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> str:
    """SHA-256 over what the data at *paths* are, as far as can be told without reading them, and *what*.

    A file is known by its path, size and time of change; a zarr store by the number, total size and latest
    change of its files and by its metadata; a URL by the metadata at its root alone.

    :param paths: every file, store and URL that is read, in the order of reading.
    :param what: everything else that the result depends on.
    :param storage_options: by path, how to reach a URL, as fsspec takes it.
    :raises OSError: where a path, or the metadata of a URL, cannot be read.
    """
    data = [_known(path, storage_options.get(path, {})) for path in paths]
    known = {"version": _VERSION, "data": data, "what": what}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _known(path: str, storage_options: Mapping[str, object]) -> Plain:
    if path.startswith("file://"):
        path = url2pathname(urlsplit(path).path)
    if "://" in path:
        return [path, _remote_metadata(path, storage_options)]
    local = Path(path).absolute()
    status = local.stat()
    if not local.is_dir():
        return [str(local), status.st_size, status.st_mtime_ns]
    count, size, latest, metadata = 0, 0, 0, {}
    for file in _files_below(local):
        count, size = count + 1, size + file.stat().st_size
        latest = max(latest, file.stat().st_mtime_ns)
        if file.name in _METADATA:
            content = Path(file.path).read_bytes()
            metadata[os.path.relpath(file.path, local)] = hashlib.sha256(content).hexdigest()
    return [str(local), count, size, latest, metadata]


def _files_below(directory: Path) -> Iterator[os.DirEntry[str]]:
    waiting = [str(directory)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                else:
                    yield entry


def _remote_metadata(url: str, storage_options: Mapping[str, object]) -> Mapping[str, str]:
    """Hash the metadata files at the root of a store.

    :raises OSError: where there is none that can be read.
    """
    try:
        import fsspec

        files = fsspec.get_mapper(url, **storage_options).getitems(_METADATA, on_error="omit")
    except Exception as error:  # whatever a file system raises
        raise OSError(f"{url}: {error}") from error
    if not files:
        raise OSError(f"{url}: no metadata that can be read")
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def recall(key: str) -> Plain:
    """Give what was kept under *key*, a fingerprint; ``None`` where nothing was.

    :raises HookloopError: where it is there but cannot be read, or is damaged.
    """
    directory = cache_directory()
    if directory is None:
        return None
    path = _path(directory, key)
    try:
        return _checked(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HookloopError(f"{path}: cannot be used: {error!r}; it is made anew") from error


def _checked(stored: Mapping[str, Plain]) -> Plain:
    if stored["sha256"] != _checksum(stored["kept"]):
        raise ValueError("its checksum is another")
    return stored["kept"]


def keep(key: str, kept: Plain) -> None:
    """Keep something under *key*, a fingerprint, where there is a place for it.

    :raises OSError: where it cannot be written.
    """
    directory = cache_directory()
    if directory is None:
        return
    path = _path(directory, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, partial(_write, json.dumps({"sha256": _checksum(kept), "kept": kept})))


def _write(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _path(directory: Path, key: str) -> Path:
    return directory / "statistics" / f"{key}.json"


def _checksum(kept: Plain) -> str:
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
