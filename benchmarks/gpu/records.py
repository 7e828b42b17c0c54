"""What was measured: a line of JSON each, and a table of those that have a target."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpu.clock import Times

ROOT = Path(__file__).parents[2]


@define(eq=False)
class Book:
    """Writes every measurement as a line of *file*, and remembers it for the table."""

    device: torch.device
    file: TextIO
    context: dict[str, object] = field(factory=dict)
    """What every line says too, such as the setting that all of it was measured with."""
    lines: list[dict[str, object]] = field(factory=list, init=False)
    failed: list[str] = field(factory=list, init=False)
    """What was found to be wrong, and what broke."""
    common: dict[str, object] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Describe the machine once."""
        self.common = {**described(self.device), **self.context}

    def add(self, what: str, value: object, unit: str, **more: object) -> None:
        """Write a measurement; smaller is better, where there is a ``target``.

        :param more: ``target``, ``bound``, ``peer`` in the same unit, and whatever else belongs to it.
        """
        fixed = {"target": None, "bound": None, "peer": None}
        line = {"what": what, "value": rounded(value), "unit": unit}
        line |= {name: rounded(number) for name, number in {**fixed, **more}.items()}
        self.write(line)

    def timed(self, what: str, times: Times, peer: Times | None = None, **more: object) -> None:
        """Write the median of *times* in milliseconds, with its quartiles and the number of blocks."""
        between = [1e3 * limit for limit in times.quartiles]
        other = None if peer is None else 1e3 * peer.median
        self.add(
            what, 1e3 * times.median, "ms", quartiles=between, blocks=len(times.seconds), peer=other, **more
        )

    def check(
        self, what: str, value: float, limit: float, unit: str = "relative error", **more: object
    ) -> None:
        """Write how far something is off, and note it down if that is more than *limit*, or no number."""
        holds = value <= limit
        self.add(what, value, unit, limit=limit, holds=holds, **more)
        if not holds:
            self.failed.append(f"{what}: {value:.3g}, expected no more than {limit:.3g}")

    def skip(self, what: str, why: str) -> None:
        """Write what was not measured, and why."""
        self.write({"what": what, "skipped": why})

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Go on to the next part where one breaks: too little memory is a result, all else a failure."""
        try:
            yield
        except torch.OutOfMemoryError as problem:
            self.write(
                {"what": what, "error": "out of memory", "details": str(problem).partition("\n")[0][:300]}
            )
        except Exception as problem:  # noqa: BLE001 - the other parts are worth having
            traceback.print_exc()
            self.failed.append(f"{what}: {problem!r}")
            self.write({"what": what, "error": repr(problem)[:300]})

    def write(self, line: dict[str, object]) -> None:
        """Write a line, with the machine in it."""
        self.lines.append(line)
        print(json.dumps({**line, **self.common}, ensure_ascii=False), file=self.file, flush=True)
        print(_short(line), file=sys.stderr, flush=True)

    def table(self) -> str:
        """Those with a target, and whether they reach it."""
        rows = [f"{'what':<56}{'measured':>10}{'target':>10}{'bound':>10}{'fme':>10}  "]
        for line in self.lines:
            if line.get("target") is None:
                continue
            numbers = [line["value"], line["target"], line["bound"], line["peer"]]
            cells = "".join(f"{'–' if n is None else format(n, '.4g'):>10}" for n in numbers)
            met = "reached" if float(line["value"]) <= float(line["target"]) else "MISSED"  # type: ignore[arg-type]
            rows.append(f"{line['what']:<56}{cells}  {line['unit']:<8}{met}")
        rows += [f"WRONG  {what}" for what in self.failed]
        rows.append("correctness holds" if not self.failed else f"{len(self.failed)} things are wrong")
        return "\n".join(rows)


def rounded(value: object) -> object:
    """Five digits of every number."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def _short(line: dict[str, object]) -> str:
    shown = {name: value for name, value in line.items() if value is not None and name != "what"}
    return f"{line['what']}: " + ", ".join(f"{name} {value}" for name, value in shown.items())


def described(device: torch.device) -> dict[str, object]:
    """Device, versions and revision; neither host nor path."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("hookloop", "fme", "triton"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = f"CPU, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine = f"{properties.name}, {properties.multi_processor_count} SMs"
        machine += f", {properties.total_memory / 2**30:.0f} GiB"
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        versions["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "machine": machine,
        "versions": versions,
        "revision": _said("git", "describe", "--always", "--dirty"),
        "sources": _digest(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _digest() -> str:
    """Tell the sources measured from any others, also where there is no repository."""
    found = hashlib.blake2b(digest_size=6)
    for folder in ("hookloop", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()
