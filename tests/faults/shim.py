"""The preloaded library that counts and records file operations: compiling it, arming it, reading its records."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import asdict, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Operation(IntEnum):
    """What a process can do to files; the same numbers stand in shim.c."""

    OPEN = 0
    WRITE = 1
    SYNC = 2
    RENAME = 3
    LINK = 4
    UNLINK = 5
    TRUNCATE = 6
    CLOSE = 7
    MKDIR = 8
    RMDIR = 9
    LOOK = 10
    """Opened only to be read: a directory that is going to be synced."""


class Action(IntEnum):
    """What happens at the operation that was waited for; the same numbers stand in shim.c."""

    NOTHING = 0
    KILL_BEFORE = 1
    KILL_WITHIN = 2
    """Half of what is written is there."""
    KILL_AFTER = 3
    FAIL_ONCE = 4
    FAIL_FROM = 5
    SIGNAL_BEFORE = 6


CHANGES = frozenset(Operation) - {Operation.LOOK, Operation.CLOSE}
"""Operations between which a crash leaves something different."""


@frozen
class Trap:
    """At the *number*-th of *operations* on a path that ends with *suffix*, *action* happens."""

    action: Action = Action.NOTHING
    number: int = 0
    argument: int = 0
    """The signal's or the error's number."""
    operations: Sequence[int] = tuple(sorted(CHANGES))
    suffix: str = ""

    def plain(self) -> dict[str, object]:
        """Give what JSON knows."""
        return asdict(self)


@frozen
class Record:
    """One operation that was done."""

    operation: Operation
    descriptor: int
    """-1 where it was done by name."""
    number: int
    """Flags of OPEN, offset of WRITE, length of TRUNCATE."""
    first: str
    """The path, as it was when it was opened."""
    second: str
    data: bytes


class NoCompilerError(Exception):
    """The library cannot be made here; the message says why."""


def compile_in(directory: Path) -> Path:
    """Make the library in *directory*.

    :raises NoCompilerError: where there is none, or the system has no ``LD_PRELOAD``.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if not sys.platform.startswith("linux"):
        raise NoCompilerError(f"file operations can be intercepted on Linux only, not on {sys.platform}")
    if compiler is None:
        raise NoCompilerError("no C compiler: install gcc or name one in CC")
    library = directory / "shim.so"
    source = Path(__file__).with_name("shim.c")
    done = subprocess.run(
        [compiler, "-O1", "-Wall", "-shared", "-fPIC", str(source), "-o", str(library), "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NoCompilerError(f"{compiler} cannot compile {source.name}: {done.stderr.strip()}")
    return library


def arm(directory: str, records: str, trap: Trap) -> None:
    """Begin to record, in the process that has preloaded the library."""
    mask = sum(1 << operation for operation in trap.operations)
    failed = ctypes.CDLL(None).faults_arm(
        directory.encode(),
        records.encode(),
        ctypes.c_uint(mask),
        trap.suffix.encode(),
        ctypes.c_long(trap.number),
        int(trap.action),
        trap.argument,
    )
    if failed:
        raise OSError(f"{records}: cannot record there")


def read_all(records: Path) -> Iterable[Record]:
    """Yield what every rank of a start has recorded, rank by rank: no two write the same files."""
    for path in [records, *sorted(records.parent.glob(f"{records.name}.rank*"))]:
        yield from read(path)


def records_of(rank: int, records: str) -> str:
    """Name the file of a rank's records."""
    return f"{records}.rank{rank}" if rank else records


_HEAD = struct.Struct("@iiqIII0q")  # padded at its end as in C


def read(records: Path) -> Iterable[Record]:
    """Yield what was recorded, in order; a record that was cut off by a kill from outside ends it."""
    content = memoryview(records.read_bytes())
    opened: dict[int, str] = {}
    at = 0
    while at + _HEAD.size <= len(content):
        operation, descriptor, number, first, second, data = _HEAD.unpack_from(content, at)
        ends = [at + _HEAD.size]
        for length in (first, second, data):
            ends.append(ends[-1] + length)
        if ends[-1] > len(content):
            return
        parts = [bytes(content[start:end]) for start, end in pairwise(ends)]
        one, other = (os.path.normpath(part.decode()) if part else "" for part in parts[:2])
        if one:
            opened[descriptor] = one
        elif descriptor >= 0:
            one = opened[descriptor]
        yield Record(Operation(operation), descriptor, number, one, other, parts[2])
        at = ends[-1]
