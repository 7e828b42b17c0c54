from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pytest
import torch
from torch import nn

from hookloop import durable, files

if TYPE_CHECKING:
    from collections.abc import Callable

COMMENT = len(b"hookloop crc32 ") + 8


def sample(path: Path, value: float = 1.0, size: int = 4) -> Path:
    """Write a small checkpoint."""
    files.save({"format": 1, "weights": torch.full((size,), value)}, path)
    return path


def value_in(path: Path) -> float:
    """Read what :func:`sample` wrote."""
    weights = files.load(path)["weights"]
    assert isinstance(weights, torch.Tensor)
    return float(weights[0])


def sign(path: Path) -> None:
    """Add the right checksum to what torch has written, as somebody evil would."""
    data = path.read_bytes()[:-2] + COMMENT.to_bytes(2, "little")
    path.write_bytes(data + b"hookloop crc32 %08x" % zlib.crc32(data))


def in_child(script: str, *arguments: object) -> list[object]:
    """Run *script* in a process of its own and parse each line that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_round_trip(tmp_path: Path) -> None:
    """What is saved is what is loaded."""
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, "two", None, 3.5, True], "c": {"d": {"e": 7}}}
    files.save(state, tmp_path / "x.ckpt")
    loaded = files.load(tmp_path / "x.ckpt")
    assert torch.equal(loaded.pop("a"), state.pop("a"))  # type: ignore[arg-type]
    assert loaded == state


def test_torch_and_zip_read_it(tmp_path: Path) -> None:
    """A checkpoint is an ordinary zip archive that torch loads safely on its own."""
    path = sample(tmp_path / "x.ckpt", 2.5)
    assert torch.load(path, weights_only=True)["weights"].tolist() == [2.5] * 4
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert any(name.endswith("data.pkl") for name in archive.namelist())
        assert archive.comment.startswith(b"hookloop crc32 ")


def test_checksum_is_that_of_every_byte_before_it(tmp_path: Path) -> None:
    """The archive comment is the CRC-32 of the rest of the file, as zlib computes it."""
    data = sample(tmp_path / "x.ckpt").read_bytes()
    assert data[-COMMENT:] == b"hookloop crc32 %08x" % zlib.crc32(data[:-COMMENT])


def test_equal_files_have_equal_checksums_and_others_have_not(tmp_path: Path) -> None:
    """Read from the end of the file, which may be anything."""
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        files.save({"weight": torch.tensor(value)}, tmp_path / name)
    one, same, other = (files.checksum(tmp_path / name) for name in "abc")
    assert one == same != other
    (tmp_path / "d").write_bytes(b"\xff")
    assert files.checksum(tmp_path / "d") not in (one, other)
    with pytest.raises(OSError, match="No such file"):
        files.checksum(tmp_path / "e")


def test_every_single_bit_flip_is_detected(tmp_path: Path) -> None:
    """Whichever bit of a file is flipped, it is refused."""
    path = sample(tmp_path / "x.ckpt")
    data = path.read_bytes()
    assert len(data) < 4000
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(data):
            for bit in range(8):
                file.seek(at)
                file.write(bytes([byte ^ 1 << bit]))
                with pytest.raises(files.DamagedError, match=str(path)):
                    files.load(path)
            file.seek(at)
            file.write(bytes([byte]))
    assert value_in(path) == 1.0


def test_every_truncation_is_detected(tmp_path: Path) -> None:
    """Wherever a file is cut off, it is refused, down to nothing."""
    path = sample(tmp_path / "x.ckpt")
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(files.DamagedError):
            files.load(path)


def test_zeroed_pages_are_detected(tmp_path: Path) -> None:
    """A page that came back as zeros, or any stretch of garbage, is refused."""
    path = sample(tmp_path / "x.ckpt", size=20_000)
    data = path.read_bytes()
    for start in range(0, len(data), 4096):
        path.write_bytes(data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :])
        with pytest.raises(files.DamagedError):
            files.load(path)
    draw = random.Random(0)  # noqa: S311
    for _ in range(50):
        start = draw.randrange(len(data) - 100)
        path.write_bytes(data[:start] + draw.randbytes(100) + data[start + 100 :])
        with pytest.raises(files.DamagedError):
            files.load(path)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    """What torch.save wrote alone has no checksum; it and what is no archive at all are refused."""
    torch.save({"weights": torch.zeros(3)}, tmp_path / "torch.pt")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    body = b"not a zip archive"
    (tmp_path / "signed").write_bytes(body + b"hookloop crc32 %08x" % zlib.crc32(body))
    for name in ("torch.pt", "text", "empty", "signed"):
        with pytest.raises(files.DamagedError, match=name):
            files.load(tmp_path / name)


def test_only_mappings_are_checkpoints(tmp_path: Path) -> None:
    """A whole file that holds no dict is refused, saying what it holds."""
    path = tmp_path / "x.ckpt"
    torch.save([1, 2], path)
    sign(path)
    with pytest.raises(files.DamagedError, match="holds a list"):
        files.load(path)


class Evil:
    """Makes a directory when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    """A pickle that would run code is refused before it does, even with the right checksum."""
    torch.save({"weights": Evil(tmp_path / "pwned")}, tmp_path / "x.ckpt")
    sign(tmp_path / "x.ckpt")
    with pytest.raises(files.DamagedError):
        files.load(tmp_path / "x.ckpt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "value", [np.float64(1.0), np.zeros(2), Path("x"), Evil(Path("x")), {1: [np.int64(3)]}]
)
def test_what_would_not_load_is_not_saved(tmp_path: Path, value: object) -> None:
    """What safe loading would refuse is refused when saving, naming its place, not when it is needed."""
    with pytest.raises(TypeError, match=r"state\['plugins'\]\['mine'\].*expected tensors and plain"):
        files.save({"plugins": {"mine": value}}, tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_whatever_is_saved_loads(tmp_path: Path) -> None:
    """Everything that may be saved is loaded again, the state of modules and optimizers among it."""
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    state = {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plain": [
            {1, 2},
            (1, 2.5, 3j),
            b"x",
            None,
            True,
            OrderedDict(a=1),
            torch.bfloat16,
            torch.device("cpu"),
        ],
        "parameter": nn.Parameter(torch.zeros(2)),
    }
    files.save(state, tmp_path / "x.ckpt")
    loaded = files.load(tmp_path / "x.ckpt")
    assert loaded["plain"] == state["plain"]
    assert loaded.keys() == state.keys()


def test_absent_file_is_not_called_damaged(tmp_path: Path) -> None:
    """What cannot be read is the system's error."""
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "none.ckpt")


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import torch
from hookloop import durable, files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
for limit in (0, 1, 63, 500, 1000, 1500, 5_000, 100_000, 399_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        files.save({"weights": torch.zeros(100_000)}, path)
        said = ""
    except OSError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps(said))
"""


def test_full_disk_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """Wherever the room ends, the error is the system's, the old file is whole and no other is left."""
    path = sample(tmp_path / "x.ckpt")
    said = in_child(FULL_DISK, path)
    assert len(said) == 9
    assert all("File too large" in str(message) for message in said), said
    assert value_in(path) == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_failing_writer_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """An error of the writing function passes on, and nothing has changed."""
    path = sample(tmp_path / "x.ckpt")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        durable.write_whole(path, fail, keep_as=tmp_path / "previous")
    assert value_in(path) == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_absent_directory_is_an_os_error(tmp_path: Path) -> None:
    """There is nothing to write into."""
    with pytest.raises(FileNotFoundError):
        sample(tmp_path / "none" / "x.ckpt")


def test_order_of_a_durable_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes are handed over, then synced, then renamed, then the directory is synced."""
    done: list[tuple[str, int]] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        done.append(("directory", 0) if stat.S_ISDIR(status.st_mode) else ("file", status.st_size))
        real_fsync(descriptor)

    def replace(source: Path, target: Path, **options: int) -> None:
        done.append((Path(target).name, Path(source).stat().st_size))
        real_replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    size = sample(tmp_path / "x.ckpt").stat().st_size
    assert done == [("file", size), ("x.ckpt", size), ("directory", 0)]


def test_the_file_before_is_kept(tmp_path: Path) -> None:
    """With ``keep_as`` the file that was there gets that name, and a third save replaces it."""
    path, before = tmp_path / "x.ckpt", tmp_path / "before.ckpt"
    for number in range(4):
        files.save({"weights": torch.full((1,), float(number))}, path, keep_as=before)
        assert value_in(path) == number
        assert before.exists() == (number > 0)
        assert number == 0 or value_in(before) == number - 1
    assert sorted(tmp_path.iterdir()) == [before, path]


def test_keeping_when_both_names_are_one_file(tmp_path: Path) -> None:
    """A crash may leave two names of one file; the next save separates them and leaves no third."""
    path, before = sample(tmp_path / "x.ckpt", 1.0), tmp_path / "before.ckpt"
    before.hardlink_to(path)
    files.save({"weights": torch.full((1,), 2.0)}, path, keep_as=before)
    assert (value_in(before), value_in(path)) == (1.0, 2.0)
    assert sorted(tmp_path.iterdir()) == [before, path]


def test_keeping_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no hard links the file before is kept all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path, before = sample(tmp_path / "x.ckpt", 1.0), tmp_path / "before.ckpt"
    files.save({"weights": torch.full((1,), 2.0)}, path, keep_as=before)
    assert (value_in(before), value_in(path)) == (1.0, 2.0)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from hookloop import durable, files

OPERATIONS = {"open", "write", "flush", "fsync", "replace", "link", "unlink", "close"}
path, before = Path(sys.argv[1]), Path(sys.argv[2])

def save(value):
    files.save({"weights": torch.full((4,), value)}, path, keep_as=before)

def value_in(file):
    return float(files.load(file)["weights"][0])

def saved_but_killed_at(number):
    left = number
    def count(frame, event, function):
        nonlocal left
        if event == "c_call" and function.__name__ in OPERATIONS:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
    child = os.fork()
    if child == 0:
        sys.setprofile(count)
        save(2.0)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for number in range(1000):
    for value in (0.0, 1.0):
        save(value)
    status = saved_but_killed_at(number)
    print(json.dumps([status, value_in(path), value_in(before)]))
    for stale in path.parent.glob(".*.tmp"):
        stale.unlink()
    if status == 0:
        break
"""


def test_killed_at_any_file_operation(tmp_path: Path) -> None:
    """Killed before any single operation of a save, the old or the new file is there, whole, and so is the kept one."""
    outcomes = in_child(KILLED, tmp_path / "x.ckpt", tmp_path / "before.ckpt")
    *killed, finished = outcomes
    assert finished == [0, 2.0, 1.0]
    assert len(killed) > 10
    assert {json.dumps(outcome) for outcome in killed} == {
        "[-9, 1.0, 0.0]",  # before anything was renamed
        "[-9, 1.0, 1.0]",  # the old file has two names
        "[-9, 2.0, 1.0]",  # only the directory was not synced
    }
