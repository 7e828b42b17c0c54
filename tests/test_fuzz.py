"""Whatever is in a configuration or a checkpoint: it is read, or refused in words; nothing else, and nothing runs.

``HOOKLOOP_EXAMPLES=100000`` tries that many inputs of each kind, others at each start.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import random
import re
import subprocess
import sys
import time
import zipfile
import zlib
from collections import OrderedDict
from functools import lru_cache, partial
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from hookloop import config, files, manager, yamlfile
from hookloop.errors import ConfigError, HookloopError
from hookloop.plugins import downscaling
from hookloop.records import masked, write_config

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = int(os.environ.get("HOOKLOOP_EXAMPLES", "0"))
"""How many inputs of each kind; 0 is few, the same at each start."""

CONFIGURATIONS = [
    (Path(__file__).parents[1] / "examples" / "era5_uk.yaml").read_text(encoding="utf-8"),
    (Path(downscaling.__file__).parent / "cfg.yaml.in").read_text(encoding="utf-8").replace("@DIR@", "here"),
]
NUMBERS = [
    "0",
    "-1",
    "4",
    "1e-4",
    "1e999",
    ".inf",
    "-.inf",
    ".nan",
    "9" * 400,
    "0" * 5000,
    "1_0",
    "0x1f",
    "+.5",
]
WORDS = [
    "null",
    "~",
    "true",
    "no",
    "''",
    '"\\0"',
    '"\\uD800"',
    '"a\\nb"',
    '"\\e[31m"',
    "${HOME}",
    "${X:-}",
    "é\u2028",
]
TEXTS = [
    "::5",
    "-1:",
    f"{'9' * 5000}:",
    "5 epochs",
    f"{'1' * 5000} batches",
    "3h50m",
    f"{'9' * 5000}d",
    "cuda:" + "9" * 5000,
]
SHAPES = [
    "[]",
    "{}",
    "[[]]",
    "{a: {b: c}}",
    "[1, x, null]",
    "{name: unet}",
    "{name: []}",
    "? [a]\n: b",
    "- a",
    "a: b: c",
]
MARKS = [
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "---",
    "...",
    "%YAML 1.2",
    "|",
    ">-",
    "# ",
    "\t",
    "\r",
    "\x00",
    "\ufeff",
    ": ",
    ", ",
]
CALLS = [
    "!!python/object/apply:os.mkdir ['{marker}']",
    "!!python/object/new:os.mkdir ['{marker}']",
    "!!python/name:os.mkdir ''",
]


class Mutator:
    """Changes texts a little, by chance."""

    def __init__(self, seed: int | None, marker: Path) -> None:
        self.draw = random.Random(seed)  # noqa: S311
        self.tokens = [
            *NUMBERS,
            *WORDS,
            *TEXTS,
            *SHAPES,
            *MARKS,
            *(c.replace("{marker}", str(marker)) for c in CALLS),
        ]

    def configuration(self) -> str:
        """Make a real configuration with one to six changes."""
        text = self.draw.choice(CONFIGURATIONS)
        for _ in range(self.draw.randint(1, 6)):
            change = self.draw.choice(
                [
                    self._value,
                    self._value,
                    self._value,
                    self._key,
                    self._line,
                    self._swap,
                    self._cut,
                    self._insert,
                ]
            )
            text = change(text)
        return text

    def _replace(self, text: str, pattern: str) -> str:
        places = list(re.finditer(pattern, text, re.MULTILINE))
        if not places:
            return text
        place = self.draw.choice(places)
        return text[: place.start(1)] + self.draw.choice(self.tokens) + text[place.end(1) :]

    def _value(self, text: str) -> str:
        return self._replace(text, r"[:,\[-] +([^\s,{}\[\]#]+)")

    def _key(self, text: str) -> str:
        return self._replace(text, r"(\w+):")

    def _line(self, text: str) -> str:
        lines = text.splitlines(keepends=True) or [""]
        at, other = self.draw.randrange(len(lines)), self.draw.randrange(len(lines))
        changed = ["", lines[at] * 2, "  " + lines[at], lines[at].lstrip(" "), lines[at] + lines[other]]
        return "".join([*lines[:at], self.draw.choice(changed), *lines[at + 1 :]])

    def _swap(self, text: str) -> str:
        a, b, c = sorted(self.draw.randrange(len(text) + 1) for _ in range(3))
        return text[:a] + text[b:c] + text[a:b] + text[c:]

    def _cut(self, text: str) -> str:
        a, b = sorted(self.draw.randrange(len(text) + 1) for _ in range(2))
        return text[:a] + text[min(b, a + 40) :]

    def _insert(self, text: str) -> str:
        at = self.draw.randrange(len(text) + 1)
        return text[:at] + self.draw.choice(self.tokens) + text[at:]


@pytest.fixture(autouse=True)
def _plugins_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed does not change meanwhile, and finding it takes ten times as long as all the rest."""

    @lru_cache
    def found(**by: str) -> EntryPoints:
        return entry_points(**by)

    for module in (manager, config):
        monkeypatch.setattr(module, "entry_points", found)


def assembled(text: str) -> manager.Assembly | None:
    """Read and check a configuration; ``None`` where it is refused as people are to be told."""
    try:
        return manager.assemble(yamlfile.read(text, "cfg.yaml"), None)
    except HookloopError as error:
        for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
            assert problem.startswith(("cfg.yaml:", "--plugins: ")), (problem, text)
            # The names of plugins are told as they were given.
            assert problem.isprintable() or problem.startswith("--plugins: "), (problem, text)
        return None


def test_a_changed_configuration_is_read_or_refused(tmp_path: Path) -> None:
    """In words, a line each, that name the file; and what is accepted reads back as the same from the record."""
    mutator = Mutator(None if EXAMPLES else 0, tmp_path / "marker")
    accepted = 0
    for _ in range(EXAMPLES or 500):
        text = mutator.configuration()
        began = time.process_time()
        if (assembly := assembled(text)) is not None:
            accepted += 1
            write_config(tmp_path, assembly.document, manager.listing_of(list(assembly.plugins)))
            again = assembled((tmp_path / "config.yaml").read_text(encoding="utf-8"))
            assert again is not None, text
            assert repr(masked(again.document)) == repr(masked(assembly.document)), text
        assert time.process_time() - began < 5, text
        assert not (tmp_path / "marker").exists(), text
    assert accepted


@pytest.mark.parametrize("call", CALLS)
def test_nothing_in_a_configuration_is_executed(tmp_path: Path, call: str) -> None:
    """A call in the place of each value and of each key, in turn, is refused and makes no directory."""
    marker = tmp_path / "marker"
    text = CONFIGURATIONS[0]
    for place in re.finditer(r"^ *(\w+): (.+)$", text, re.MULTILINE):
        for group in (1, 2):
            evil = text[: place.start(group)] + call.format(marker=marker) + text[place.end(group) :]
            assert assembled(evil) is None
            assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 2000))]),
        "a: &a [" + "x, " * 9_000 + "]\nb: [*a, *a]",
        "a: &a {b: &b {c: [*a, *b]}}",
        "run: " + "{a: " * 100_000,
        "- [" * 100_000,
        "? " * 100_000,
        "a: " + "[]," * 100_000,
        "".join(f"a{i}: 1\n" for i in range(12_000)),
        "run: {" + "dir: x, " * 12_000 + "}",
        "a: '" + "x" * 1_000_000,
        "a: " + "1" * 1_000_000,
        "&a " * 100_000,
        "# x\n" * 100_000 + "run: 1",
        "a: " + "${A:-" * 25_000,
    ],
    ids=lambda text: text[:12],
)
def test_bombs_are_refused_in_bounded_time(text: str) -> None:
    """Aliases that multiply, nesting without an end, and too much of anything."""
    began = time.process_time()
    assert assembled(text) is None
    assert time.process_time() - began < 20


class Checkpoints:
    """A real checkpoint, its bytes, and what may befall them."""

    def __init__(self, path: Path, seed: int | None) -> None:
        self.path = path
        self.draw = random.Random(seed)  # noqa: S311
        model = torch.nn.Sequential(torch.nn.Linear(24, 60), torch.nn.Linear(60, 24))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 24)).square().sum().backward()
        optimizer.step()
        state = {
            "format": 1,
            "model": model.state_dict(),
            "optimization": optimizer.state_dict(),
            "why": ["x", None],
        }
        files.save(state, path)
        self.data = path.read_bytes()

    def damaged(self) -> tuple[str, bytes]:
        """Damage the bytes in one way; also how."""
        kinds: list[Callable[[bytes], bytes]] = [
            self._flip, self._cut, self._zero, self._insert, self._swap, self._append, self._drop, self._noise
        ]  # fmt: skip
        kind = self.draw.choice(kinds)
        return kind.__name__, kind(self.data)

    def _at(self, data: bytes) -> int:
        """Anywhere, and as often near the end, where the zip's directory is."""
        return self.draw.randrange(max(0, len(data) - 2000) if self.draw.random() < 0.5 else 0, len(data))

    def _flip(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.draw.choice([1, 1, 2, 8])):
            changed[self._at(data)] ^= 1 << self.draw.randrange(8)
        return bytes(changed)

    def _cut(self, data: bytes) -> bytes:
        return data[: self._at(data)]

    def _zero(self, data: bytes) -> bytes:
        at = self.draw.randrange(len(data))
        return data[:at] + bytes(len(data[at : at + 4096])) + data[at + 4096 :]

    def _insert(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[:at] + self.draw.randbytes(self.draw.choice([1, 2, 64, 4096])) + data[at:]

    def _swap(self, data: bytes) -> bytes:
        size = self.draw.choice([1, 64, 512, 4096])
        a, b = sorted(self.draw.sample(range(0, len(data) - size, size), 2))
        return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]

    def _append(self, data: bytes) -> bytes:
        return data + self.draw.choice([b"\0", data[-23:], data, self.draw.randbytes(100), bytes(4096)])

    def _drop(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[:at] + data[at + self.draw.choice([1, 16, 4096]) :]

    def _noise(self, data: bytes) -> bytes:
        at = self._at(data)
        noise = self.draw.randbytes(len(data[at : at + self.draw.choice([4, 100, 4096])]))
        return data[:at] + noise + data[at + len(noise) :]


def signed(data: bytes) -> bytes:
    """Give a zip archive without a comment the checksum that belongs to it, as somebody evil would."""
    comment = b"hookloop crc32 "
    data = data[:-2] + (len(comment) + 8).to_bytes(2, "little")
    return data + comment + b"%08x" % zlib.crc32(data)


def test_no_damage_to_a_checkpoint_is_silent(tmp_path: Path) -> None:
    """However its bytes were changed, it is called damaged, and by no other error; unchanged it loads."""
    checkpoints = Checkpoints(tmp_path / "x.ckpt", None if EXAMPLES else 0)
    seen = set()
    for _ in range(EXAMPLES or 2000):
        kind, data = checkpoints.damaged()
        checkpoints.path.write_bytes(data)
        if data == checkpoints.data:
            files.load(checkpoints.path)
            continue
        seen.add(kind)
        with pytest.raises(files.DamagedError, match=re.escape(str(checkpoints.path))):
            files.load(checkpoints.path)
    assert len(seen) == 8


def test_damage_that_is_signed_anew_ends_in_no_other_error(tmp_path: Path) -> None:
    """Where somebody made the checksum fit, what torch's own reader makes of it is a checkpoint or damage."""
    checkpoints = Checkpoints(tmp_path / "x.ckpt", None if EXAMPLES else 0)
    body = len(checkpoints.data) - 23
    outcomes = set()
    for _ in range(EXAMPLES or 1000):
        _, data = checkpoints.damaged()
        checkpoints.path.write_bytes(signed(data[:body]))
        try:
            files.load(checkpoints.path)
            outcomes.add("loaded")
        except files.DamagedError:
            outcomes.add("damaged")
    assert outcomes == {"loaded", "damaged"}


class Call:
    """Is pickled as the call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Have it called when it is unpickled carelessly."""
        return self.function, self.arguments


def crafted(path: Path, pickled: bytes) -> None:
    """Put another pickle into the archive at *path*, with every checksum right."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
        for entry in before.infolist():
            after.writestr(entry, pickled if entry.filename.endswith("data.pkl") else before.read(entry))
    path.write_bytes(signed(out.getvalue()))


def evil(marker: Path) -> dict[str, bytes]:
    """Make pickles that would make a directory, or read beyond their storage."""
    make = f"__import__('os').mkdir({str(marker)!r})"
    calls: dict[str, object] = {
        "mkdir": Call(os.mkdir, str(marker)),
        "system": Call(os.system, f"mkdir {marker}"),
        "eval": Call(eval, make),
        "exec": Call(exec, make),
        "attribute": Call(getattr, Call(importlib.import_module, "os"), "mkdir"),
        "partial": Call(partial, os.mkdir, str(marker)),
        "process": Call(subprocess.run, ["mkdir", str(marker)]),
        "import": Call(importlib.import_module, "antigravity"),
        "load": Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(marker)))),
        "storage": Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.mkdir, str(marker)))),
        "path": Path("x"),
        "hookloop": Call(files.load, marker),
    }
    made = {name: pickle.dumps({"format": 1, "x": call}, protocol=2) for name, call in calls.items()}
    made["key"] = pickle.dumps({Call(os.mkdir, str(marker)): 1}, protocol=2)
    made["newer"] = pickle.dumps({"x": calls["mkdir"]}, protocol=5)
    made["global"] = b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR."
    made["inst"] = b"(V" + str(marker).encode() + b"\nios\nmkdir\n."
    made["build"] = b"\x80\x02}cos\nmkdir\n}b."
    made["persistent"] = b"\x80\x02Vos.mkdir\nQ."
    made["empty"] = b""
    made["deep"] = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    made["memory"] = b"\x80\x02j\xff\xff\xff\x7f."
    made["long"] = b"\x80\x02\x8b\xff\xff\xff\x7f."
    return made


@pytest.mark.parametrize("name", sorted(evil(Path("x"))))
def test_a_crafted_pickle_is_refused_and_nothing_in_it_is_called(tmp_path: Path, name: str) -> None:
    """In a valid archive with every checksum right."""
    path, marker = Checkpoints(tmp_path / "x.ckpt", 0).path, tmp_path / "marker"
    crafted(path, evil(marker)[name])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with pytest.raises(files.DamagedError, match=re.escape(str(path))):
        files.load(path)
    assert not marker.exists()
    assert "antigravity" not in sys.modules


class Stored:
    """Stands for the checkpoint's first storage, and claims to hold so many numbers."""

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers


class Pickler(pickle.Pickler):
    """Writes storages as torch does."""

    def persistent_id(self, item: object) -> tuple[object, ...] | None:
        """Name where the numbers are."""
        return ("storage", torch.FloatStorage, "0", "cpu", item.numbers) if isinstance(item, Stored) else None


@pytest.mark.parametrize(
    ("numbers", "offset", "size", "stride"),
    [
        (1440, 0, (10**6,), (1,)),
        (1440, 0, (4,), (10**9,)),
        (1440, 10**9, (4,), (1,)),
        (1440, -4, (4,), (1,)),
        (1440, 0, (-4,), (1,)),
        (1440, 0, (4,), (-1,)),
        (1440, 0, (2**62, 4), (4, 1)),
        (10**6, 0, (10**6,), (1,)),
        (2**62, 0, (4,), (1,)),
        (-1, 0, (4,), (1,)),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    tmp_path: Path, numbers: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """Its shape stands in the pickle, which no checksum holds against the numbers that are there."""
    path = Checkpoints(tmp_path / "x.ckpt", 0).path
    rebuild = torch._utils._rebuild_tensor_v2
    tensor = Call(rebuild, Stored(numbers), offset, size, stride, False, OrderedDict())  # noqa: FBT003
    Pickler(pickled := io.BytesIO(), protocol=2).dump({"x": tensor})
    crafted(path, pickled.getvalue())
    with pytest.raises(files.DamagedError, match=re.escape(str(path))):
        files.load(path)


def test_a_crafted_pickle_of_what_is_there_loads(tmp_path: Path) -> None:
    """Else the tests above would pass for another reason."""
    path = Checkpoints(tmp_path / "x.ckpt", 0).path
    whole = files.load(path)["model"]
    tensor = Call(torch._utils._rebuild_tensor_v2, Stored(1440), 0, (60, 24), (24, 1), False, OrderedDict())  # noqa: FBT003
    Pickler(pickled := io.BytesIO(), protocol=2).dump({"x": tensor})
    crafted(path, pickled.getvalue())
    assert torch.equal(files.load(path)["x"], whole["0.weight"])  # type: ignore[arg-type, index]
