"""Files and directories that survive a power cut once they are said to be there."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from itertools import count
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
    """Make renames in *directory* durable, where its file system knows of such a thing.

    :raises OSError: where that fails: what was renamed may then be gone after a power cut.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make *directory*, and those above it, so that what is saved in it later is not lost with them.

    Those that are there already are made durable too, since whoever made them may have been killed before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for above in directory.absolute().parents:
        with suppress(PermissionError):  # somebody else's, and not ours to make durable
            sync_directory(above)


def set_aside(path: Path) -> Path:
    """Rename a file to a name beside it that is not taken, such as ``metrics.1.jsonl``, and give that."""
    aside = next(
        name for n in count(1) if not (name := path.with_name(f"{path.stem}.{n}{path.suffix}")).exists()
    )
    path.rename(aside)
    return aside
