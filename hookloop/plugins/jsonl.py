"""``jsonl``: every metric as a line of ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from io import FileIO
from numbers import Integral, Real
from typing import TYPE_CHECKING, ClassVar, cast

from attrs import define, field

from hookloop.durable import make_directory, set_aside, sync_directory
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

    from hookloop.core import Run

_OWN = {"step", "epoch", "time"}
_MOST_UNSURE = 1000


@define(eq=False)
class Jsonl:
    """Appends a line per ``log``: ``{"step": …, "epoch": …, "time": unix seconds, key: number, …}``.

    Numbers that are not finite are written as ``NaN``, ``Infinity`` and ``-Infinity``, which Python and
    pandas read back. Lines that a full disk refuses wait, also in the checkpoint, until there is room.
    """

    leader_only: ClassVar[bool] = True

    _file: FileIO | None = field(init=False, default=None)
    _recorded: dict[int, set[str]] = field(init=False, factory=dict)
    """What the file held when it was opened: keys by step."""
    _waiting: list[bytes] = field(init=False, factory=list)
    """Lines that could not be written yet."""
    _unsure: list[bytes] = field(init=False, factory=list)
    """Lines that are written but may not survive a power cut."""
    _told: bool = field(init=False, default=False)
    _ended: bool = field(init=False, default=False)

    @hookimpl
    def before_run(self) -> None:
        """Begin anew; the file is opened once it is known whether anything was resumed."""
        self._file, self._recorded, self._waiting, self._unsure = None, {}, [], []
        self._told, self._ended = False, False

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """Open the file before anything is learnt, if nobody has logged yet."""
        if self._file is None:
            self._file = self._open(run)

    def state_dict(self) -> dict[str, object]:
        """Make durable what a checkpoint counts as written, and give what cannot be made so.

        A power cut must not leave a checkpoint without its metrics.
        """
        self._sync()
        return {"lines": [line.decode() for line in (*self._unsure, *self._waiting)]}

    def _sync(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._flush()
                os.fsync(self._file.fileno())
                self._unsure = []

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over the lines that may be missing in the file."""
        self._waiting = [line.encode() for line in cast("list[str]", state["lines"])]

    def _open(self, run: Run) -> FileIO:
        """Go on with the file of a resumed run; set aside that of a run which has left nothing to resume.

        A last line that was killed while it was written is cut off.
        """
        path = run.dir / "metrics.jsonl"
        try:
            make_directory(path.parent)
            if run.progress.step == 0 and path.exists():
                aside = set_aside(path)
                run.events.warning("metrics.set_aside", path=str(aside), reason="nothing was resumed")
            _mend(path)
            self._recorded = _keys_by_step(path)
            file = FileIO(path, "a")
            sync_directory(path.parent)
        except OSError as problem:
            raise HookloopError(
                f"{path}: cannot be written: {problem.strerror}; choose another run.dir"
            ) from problem
        self._waiting = [line for line in self._waiting if self._is_new(line)]
        run.cleanup.callback(self._end, run)
        return file

    def _is_new(self, line: bytes) -> bool:
        """Whether a line of the checkpoint is missing in the file; it counts as recorded from now on."""
        missing = False
        for step, keys in _keys(line).items():
            recorded = self._recorded.setdefault(step, set())
            missing = not keys <= recorded
            recorded |= keys
        return missing

    def _end(self, run: Run) -> None:
        file, self._file, self._ended = self._file, None, True
        try:
            if file is not None:
                file.close()
        except OSError as problem:  # network file systems tell of earlier troubles here
            run.events.warning("metrics.unwritten", reason=str(problem), hint="the last lines may be missing")

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
        if not new:
            return
        content = {"step": at.step, "epoch": at.epoch, "time": time.time(), **new}
        self._waiting.append((json.dumps(content) + "\n").encode())
        try:
            self._flush()
            self._told = False
            if len(self._unsure) >= _MOST_UNSURE:  # nobody saves, so nobody asks
                self._sync()
        except OSError as problem:  # a full disk must not end a run for the sake of its curves
            if not self._told:
                run.events.warning(
                    "metrics.unwritten", step=at.step, reason=str(problem), hint="tried again at the next log"
                )
            self._told = True

    @hookimpl
    def shutdown(self, run: Run) -> None:
        """Tell what is still not written."""
        if self._file is None:
            return
        with suppress(OSError):
            self._flush()
        if self._waiting:
            run.events.error(
                "metrics.lost", lines=len(self._waiting), hint="the checkpoint holds them, if saved"
            )

    def _flush(self) -> None:
        """Write the lines that wait, oldest first.

        :raises OSError: where one cannot be written; it goes on waiting, and nothing of it is left in the file.
        """
        assert self._file is not None
        while self._waiting:
            line = self._waiting[0]
            end = os.fstat(self._file.fileno()).st_size
            written = self._file.write(line)
            if written != len(line):
                self._file.truncate(end)
                raise OSError(None, f"{written} of {len(line)} bytes were written")
            self._unsure.append(self._waiting.pop(0))


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
