"""``jsonl``: every metric as a line of ``metrics.jsonl``."""

from __future__ import annotations

import json
import time
from io import FileIO
from itertools import count
from numbers import Integral, Real
from typing import TYPE_CHECKING

from attrs import define, field

from hookloop.errors import HookloopError
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
    _ended: bool = field(init=False, default=False)
    _failed: bool = field(init=False, default=False)
    """A line may have been written in part."""

    @hookimpl
    def before_run(self) -> None:
        """Begin anew; the file is opened once it is known whether anything was resumed."""
        self._file, self._recorded, self._failed, self._ended = None, {}, False, False

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """Open the file before anything is learnt, if nobody has logged yet."""
        if self._file is None:
            self._file = self._open(run)

    def _open(self, run: Run) -> FileIO:
        """Go on with the file of a resumed run; set aside that of a run which has left nothing to resume.

        A last line that was killed while it was written is cut off.
        """
        path = run.dir / "metrics.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if run.progress.step == 0 and path.exists():
                aside = _free_name(path)
                path.rename(aside)
                run.events.warning("metrics.set_aside", path=str(aside), reason="nothing was resumed")
            _mend(path)
            self._recorded = _keys_by_step(path)
            file = run.cleanup.enter_context(FileIO(path, "a"))
        except OSError as problem:
            raise HookloopError(
                f"{path}: cannot be written: {problem.strerror}; choose another run.dir"
            ) from problem
        run.cleanup.callback(self._end)
        return file

    def _end(self) -> None:
        self._file, self._ended = None, True

    @hookimpl
    def log(self, run: Run, metrics: Mapping[str, float | Figure]) -> None:
        """Write the numbers among *metrics* that were not recorded at this step before a resume."""
        if self._ended:
            return
        if self._file is None:
            self._file = self._open(run)
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


def _free_name(path: Path) -> Path:
    """A name beside *path* that is not taken, such as ``metrics.1.jsonl``."""
    return next(name for n in count(1) if not (name := path.with_name(f"metrics.{n}.jsonl")).exists())


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
