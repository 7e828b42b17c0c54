"""``jsonl``: every metric as a line of ``metrics.jsonl``."""

from __future__ import annotations

import json
import time
from io import FileIO
from numbers import Integral, Real
from typing import TYPE_CHECKING

from attrs import define, field

from hookloop.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

    from hookloop.core import Run

_OWN = {"step", "epoch", "time"}


@define(eq=False)
class Jsonl:
    """Appends a line per ``log``: ``{"step": …, "epoch": …, "time": unix seconds, key: number, …}``.

    Numbers that are not finite are written as ``NaN``, ``Infinity`` and ``-Infinity``, which Python and
    pandas read back.
    """

    _file: FileIO | None = field(init=False, default=None)
    _recorded: dict[int, set[str]] = field(init=False, factory=dict)
    """What the file held when it was opened: keys by step."""
    _failed: bool = field(init=False, default=False)
    """A line may have been written in part."""

    @hookimpl(tryfirst=True)  # so that what others log while they get ready is written too
    def before_run(self, run: Run) -> None:
        """Open the file, cutting off a last line that was killed while it was written."""
        path = run.dir / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        self._recorded = _keys_by_step(path)
        self._failed = False
        self._file = run.cleanup.enter_context(FileIO(path, "a"))
        run.cleanup.callback(self._forget)

    def _forget(self) -> None:
        self._file = None

    @hookimpl
    def log(self, run: Run, metrics: Mapping[str, float | Figure]) -> None:
        """Write the numbers among *metrics* that were not recorded at this step before a resume."""
        if self._file is None:
            return
        at = run.progress
        old = self._recorded.get(at.step, _OWN) | _OWN
        new = {
            key: _number(value)
            for key, value in metrics.items()
            if isinstance(value, Real) and key not in old
        }
        if new:
            self._write(run, self._file, {"step": at.step, "epoch": at.epoch, "time": time.time(), **new})

    def _write(self, run: Run, file: FileIO, content: Mapping[str, float]) -> None:
        line = (("\n" if self._failed else "") + json.dumps(content) + "\n").encode()
        reason = "written in part"
        try:
            whole = file.write(line) == len(line)
        except OSError as problem:  # a full disk must not end a run for the sake of its curves
            whole, reason = False, str(problem)
        if not whole and not self._failed:
            run.events.warning("metrics.unwritten", step=content["step"], reason=reason)
        self._failed = not whole


def _number(value: Real) -> float:
    return int(value) if isinstance(value, Integral) else float(value)


def _mend(path: Path) -> None:
    """End the file with a newline: by adding it to a whole line, by cutting off a torn one."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    with path.open("r+b") as file:
        if _keys(content[whole:]):
            file.seek(0, 2)
            file.write(b"\n")
        else:
            file.truncate(whole)


def _keys_by_step(path: Path) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                for step, keys in _keys(line).items():
                    found.setdefault(step, set()).update(keys)
    return found


def _keys(line: bytes) -> dict[int, set[str]]:
    """Read the step and the keys of a line; nothing of a corrupt one."""
    try:
        content = json.loads(line)
        return {int(content["step"]): set(content)}
    except (ValueError, KeyError, TypeError):
        return {}
