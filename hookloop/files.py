"""Checkpoint files: written whole or not at all, and known to be damaged when they are.

A checkpoint is what ``torch.save`` writes (a zip archive), whose archive comment holds a CRC-32 of every byte
before it: ``torch.load`` and ``unzip`` read it as it is, and :func:`load` verifies what torch does not.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, BinaryIO, cast

import torch

from hookloop.durable import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_MARK = b"hookloop crc32 "
_COMMENT = len(_MARK) + 8
_CHUNK = 1 << 22
_PLAIN = (str, bytes, int, float, complex, bool, type(None))


class DamagedError(Exception):
    """A file is not what was written; the message says how."""


def save(state: Mapping[str, object], path: Path, keep_as: Path | None = None) -> None:
    """Write *state* to *path* durably: afterwards it survives a power cut, before nothing has changed.

    :param keep_as: what to call the file that was at *path* before, once the new one is sure.
    :raises OSError: where it cannot be written; *path* is then as it was.
    :raises TypeError: for what :func:`load` would refuse.
    """
    _check_plain(state, "state")

    def write(file: BinaryIO) -> None:
        tail = _Tail(file)
        torch.save(dict(state), tail)  # type: ignore[arg-type]  # it only writes and flushes
        end = tail.held[:-2] + struct.pack("<H", _COMMENT)
        crc = zlib.crc32(end, tail.crc)
        file.write(end + _MARK + b"%08x" % crc)

    try:
        write_whole(path, write, keep_as)
    except RuntimeError as error:  # torch's writer hides a full disk behind its own error
        raise OSError(_reason(error, path)) from error


def _check_plain(value: object, place: str) -> None:
    """Refuse what is written gladly but never loaded safely again, such as a numpy number."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, item in cast("Mapping[object, object]", value).items():
            _check_plain(key, f"a key of {place}")
            _check_plain(item, f"{place}[{key!r}]")
    elif kind in (list, tuple, set):
        for i, item in enumerate(cast("Iterable[object]", value)):
            _check_plain(item, f"{place}[{i}]")
    elif kind not in _PLAIN and not isinstance(value, (torch.Tensor, torch.dtype, torch.device)):
        raise TypeError(
            f"{place}: found {kind.__module__}.{kind.__qualname__}, expected tensors and plain containers"
        )


class _Tail:
    """Pass bytes on, but hold back the last 22: the zip's end record, whose comment length is not yet set."""

    size = 22

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.held = b""
        self.crc = 0

    def write(self, data: bytes) -> int:
        if len(data) < self.size:  # little pieces: put together what is held
            joined = self.held + bytes(data)
            self._pass_on(joined[: -self.size])
            self.held = joined[-self.size :]
        else:  # a gigabyte is not copied
            self._pass_on(self.held)
            whole = memoryview(data)
            self._pass_on(whole[: -self.size])
            self.held = bytes(whole[-self.size :])
        return len(data)

    def _pass_on(self, data: bytes | memoryview) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _reason(error: BaseException, path: Path) -> str:
    """What the system said, below what torch made of it."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError):
            return f"{path}: {below.strerror}"
        below = below.__cause__ or below.__context__
    return f"{path}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    """Shorten what an error says, which may be nothing, to its first line."""
    return (str(error) or repr(error)).splitlines()[0]


def load(path: Path) -> dict[str, object]:
    """Read what :func:`save` wrote, on the CPU, after verifying every byte; nothing in it is executed.

    :raises DamagedError: where it is not what was written.
    :raises OSError: where it cannot be read.
    """
    verify(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DamagedError(f"{path}: {_first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise DamagedError(f"{path}: holds a {type(loaded).__name__}, expected a checkpoint")
    return loaded


def checksum(path: Path) -> str:
    """Give what :func:`save` has written at the end of *path*: equal files have equal ones.

    :raises OSError: where it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _COMMENT, 0))
        return file.read().decode(errors="replace")


def verify(path: Path) -> None:
    """Compare every byte of *path* with the checksum at its end.

    :raises DamagedError: where they differ or there is none.
    """
    body = path.stat().st_size - _COMMENT
    crc = 0
    with path.open("rb") as file:
        left = max(body, 0)
        while left and (chunk := file.read(min(_CHUNK, left))):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        comment = file.read()
    if not comment.startswith(_MARK):
        raise DamagedError(f"{path}: has no checksum at its end: cut off, or not written by hookloop")
    if comment != _MARK + b"%08x" % crc:
        raise DamagedError(f"{path}: its bytes do not match their checksum")
