"""What was measured is kept until the data change, and nothing wrong is ever given back."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr

from hookloop.data.statistics_cache import cache_directory, fingerprint, keep, recall
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a test a cache directory that is not there yet."""
    monkeypatch.setenv("HOOKLOOP_CACHE", str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Write a zarr store of two chunks."""
    path = tmp_path / "x.zarr"
    data = xr.Dataset({"t2m": (("time", "x"), np.arange(8.0).reshape(4, 2))})
    data.to_zarr(path, zarr_format=2, consolidated=True, encoding={"t2m": {"chunks": (2, 2)}})
    return path


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HOOKLOOP_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/hookloop"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/hookloop"),
        ({}, "/home/me/.cache/hookloop"),
        ({"HOOKLOOP_CACHE": "~/c"}, "/home/me/c"),
        ({"HOOKLOOP_CACHE": "", "XDG_CACHE_HOME": "/x"}, None),
    ],
)
def test_where_it_lies(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's own variable, the desktop's, the usual place; an empty one turns it off."""
    for name in ("HOOKLOOP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == (None if expected is None else Path(expected))


@pytest.mark.parametrize("number", [0.1, 1 / 3, 5e-324, -1.7976931348623157e308, float(np.float32(0.1))])
def test_numbers_come_back_exactly(number: float, place: Path) -> None:
    """Every bit of them, from below a directory that is made."""
    keep("k", {"mean": [number, 1], "name": "Ü"})
    assert recall("k") == {"mean": [number, 1], "name": "Ü"}
    assert place.is_dir()


def test_nothing_there() -> None:
    """An unknown key has nothing."""
    assert recall("unknown") is None


def test_off_it_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And looks nowhere."""
    monkeypatch.setenv("HOOKLOOP_CACHE", "")
    monkeypatch.chdir(tmp_path)
    keep("k", 1)
    assert recall("k") is None
    assert list(tmp_path.iterdir()) == []


def flipped(text: bytes) -> bytes:
    """Change one digit of a number."""
    return text.replace(b"0.25", b"0.35")


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda text: text[:-5],
        flipped,
        lambda _: b"\xff\xfe",
        lambda _: b"{}",
        lambda _: b"[1]",
    ],
    ids=["empty", "cut", "digit", "bytes", "another", "list"],
)
def test_damage_is_told(damage: Callable[[bytes], bytes], place: Path) -> None:
    """Whatever it is, the file is named, and no number of it is used."""
    keep("k", [0.25])
    path = place / "statistics" / "k.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(HookloopError, match=f"{re.escape(str(path))}: cannot be used"):
        recall("k")


def test_a_file_in_its_place_is_no_cache(place: Path) -> None:
    """There is nothing in it, and nothing can be kept."""
    place.parent.mkdir()
    place.write_text("in the way")
    assert recall("k") is None
    with pytest.raises(OSError, match="cache"):
        keep("k", 1)


def test_a_fingerprint_is_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place, size and time of change; reading it, or naming it relatively, changes nothing."""
    path = tmp_path / "x.nc"
    path.write_bytes(b"abc")
    os.utime(path, ns=(1, 5_000_000_001))
    before = fingerprint([str(path)], {})
    path.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert fingerprint(["x.nc"], {}) == fingerprint([path.as_uri()], {}) == before
    os.utime(path, ns=(1, 5_000_000_002))
    later = fingerprint([str(path)], {})
    path.write_bytes(b"abcd")
    os.utime(path, ns=(1, 5_000_000_002))
    longer = fingerprint([str(path)], {})
    moved = path.rename(tmp_path / "y.nc")
    assert len({before, later, longer, fingerprint([str(moved)], {})}) == 4


def test_a_fingerprint_is_of_the_selection_and_the_order() -> None:
    """And of nothing else: the same question has the same one."""
    here, there = __file__, str(Path(__file__).parent)
    asked: list[tuple[list[str], dict[str, list[float] | str]]] = [
        ([here], {}),
        ([here, here], {}),
        ([here, there], {}),
        ([there, here], {}),
        ([here], {"lat": [1.0, 2.0]}),
        ([here], {"lat": [1.0, math.nextafter(2, 3)]}),
        ([here], {"lat": "[1.0, 2.0]"}),
    ]
    assert len({fingerprint(paths, what) for paths, what in asked}) == len(asked)
    assert fingerprint([here], {"a": 1, "b": 2}) == fingerprint([here], {"b": 2, "a": 1})


def test_a_fingerprint_is_of_the_store(store: Path) -> None:
    """A chunk rewritten, a chunk more, and other metadata of the same size and time are each another one."""
    seen = [fingerprint([str(store)], {})]
    assert fingerprint([str(store)], {}) == seen[0]
    chunk = store / "t2m" / "0.0"
    after = max(path.stat().st_mtime_ns for path in store.rglob("*")) + 1_000_000
    os.utime(chunk, ns=(after, after))
    seen.append(fingerprint([str(store)], {}))
    (store / "t2m" / "2.0").write_bytes(b"")
    os.utime(store / "t2m" / "2.0", ns=(0, 0))
    seen.append(fingerprint([str(store)], {}))
    attributes = store / ".zattrs"
    times = attributes.stat()
    attributes.write_bytes(b" " * times.st_size)
    os.utime(attributes, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.append(fingerprint([str(store)], {}))
    assert len(set(seen)) == 4


def test_a_fingerprint_is_of_a_url_s_metadata(store: Path) -> None:
    """Of what is at the root of the store; a chunk of it is not looked at."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.put(str(store), "/there.zarr", recursive=True)
    before = fingerprint(["memory://there.zarr"], {})
    files.pipe("/there.zarr/t2m/0.0", b"another")
    assert fingerprint(["memory://there.zarr"], {}) == before
    metadata = json.loads(files.cat("/there.zarr/.zmetadata"))
    files.pipe("/there.zarr/.zmetadata", json.dumps(metadata | {"more": 1}).encode())
    assert fingerprint(["memory://there.zarr"], {}) != before


@pytest.mark.parametrize("path", ["nowhere.nc", "memory://nowhere.zarr", "nosuch://x.zarr"])
def test_what_cannot_be_told_is_an_error_to_be_caught(path: str) -> None:
    """It is not somebody else's fingerprint."""
    with pytest.raises(OSError, match=r"nowhere|nosuch"):
        fingerprint([path], {})
