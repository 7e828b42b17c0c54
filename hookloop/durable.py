"""Files and directories that survive a power cut once they are said to be there."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_whole(path: Path, write: Callable[[BinaryIO], None], keep_as: Path | None = None) -> None:
    """Have *write* fill a temporary file beside *path*, make it durable, then put it in *path*'s place.

    :param keep_as: what to call the file that was at *path* before.
    """
    partial = path.with_name(f".{path.name}.tmp")  # one name: what a killed writer has left is written over
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None:
            _keep_as(path, keep_as)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _keep_as(path: Path, name: Path) -> None:
    """Give *path* a second name, so that there is no instant without it."""
    spare = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    try:
        spare.hardlink_to(path)
        spare.replace(name)
    except FileNotFoundError:  # there is nothing to keep yet
        return
    except OSError:  # a file system without hard links
        path.replace(name)
    finally:
        spare.unlink(missing_ok=True)  # still there if both names were one file already


def sync_directory(directory: Path) -> None:
    """Make renames in *directory* durable, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make *directory*, and those above it, so that what is saved in it later is not lost with them."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)
