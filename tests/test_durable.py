from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from hookloop import durable


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made durable: directories by name, files as ``file``."""
    found: list[str] = []

    def fsync(number: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(number).st_mode)
        found.append(Path(f"/proc/self/fd/{number}").readlink().name if is_directory else "file")

    monkeypatch.setattr(os, "fsync", fsync)
    return found


@pytest.mark.parametrize("there", [False, True])
def test_every_directory_is_synced_in_the_one_above_it(
    tmp_path: Path,
    synced: list[str],
    there: bool,  # noqa: FBT001
) -> None:
    """A checkpoint is not lost with the directory that it lies in, whoever has made it, up to the root."""
    directory = tmp_path / "runs" / "uk" / "checkpoints"
    if there:
        directory.mkdir(parents=True)
    durable.make_directory(directory)
    assert directory.is_dir()
    assert synced == ["uk", "runs", *(above.name for above in (tmp_path, *tmp_path.parents))]


@pytest.mark.parametrize(("number", "raised"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_a_directory_that_cannot_be_synced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    raised: bool,  # noqa: FBT001
) -> None:
    """An error is one, also of a file that is there by then; a file system without such a thing is none."""

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output") if raised else nullcontext():
        durable.write_whole(tmp_path / "x", lambda file: file.flush())
    assert (tmp_path / "x").exists()


def test_where_a_file_stands_there_is_no_directory(tmp_path: Path) -> None:
    """The error is the system's."""
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match="runs"):
        durable.make_directory(tmp_path / "runs" / "uk")


def test_the_file_then_its_directory(tmp_path: Path, synced: list[str]) -> None:
    """A file is durable before it has its name, and its name before anybody hears of it."""
    path = tmp_path / "x"
    names: list[bool] = []

    def write(file: object) -> None:
        file.write(b"new")  # type: ignore[attr-defined]
        names.append(path.exists())

    durable.write_whole(path, write)
    assert names == [False]
    assert synced == ["file", tmp_path.name]
    assert path.read_bytes() == b"new"
