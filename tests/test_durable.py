from __future__ import annotations

import os
import stat
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


def test_every_new_directory_is_synced_in_the_one_above_it(tmp_path: Path, synced: list[str]) -> None:
    """A checkpoint is not lost with the directory that it lies in."""
    durable.make_directory(tmp_path / "runs" / "uk" / "checkpoints")
    assert (tmp_path / "runs" / "uk" / "checkpoints").is_dir()
    assert synced == [tmp_path.name, "runs", "uk"]


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path, synced: list[str]) -> None:
    """Nothing to make, nothing to sync."""
    durable.make_directory(tmp_path)
    assert synced == []


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
