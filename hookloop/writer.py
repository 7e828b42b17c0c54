"""Who writes the checkpoint files of one moment: whoever asks, or a thread while training goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, cast

from attrs import define, evolve, field, frozen

from hookloop import files
from hookloop.resume import LATEST, PREVIOUS
from hookloop.snapshot import Copying, Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

Outcome = dict[str, Exception]
"""What could not be written, by file name."""


@frozen(eq=False)
class Files:
    """The checkpoint files of one moment: states by file name, in the order in which they are written."""

    directory: Path
    states: Mapping[str, Mapping[str, object]]
    conditions: Collection[str] = ()
    """Files that ``latest.ckpt`` tells of: it is written only if they are there."""
    check: Callable[[], None] = lambda: None
    """Raises if the states are not worth writing; asked while the copy is under way."""


class Writer(Protocol):
    """Writes one group of files at a time; ask for the next when the future of the last is done."""

    def write(self, group: Files) -> Future[Outcome]:
        """Write what the states are at this moment."""

    def prepare(self, group: Files) -> Future[Outcome]:
        """Get ready for files such as these."""

    def close(self) -> None:
        """Wait for what is being written."""


@frozen(eq=False)
class AtOnce:
    """Writes while the caller waits, from the state itself."""

    def write(self, group: Files) -> Future[Outcome]:
        """Write."""
        group.check()
        future: Future[Outcome] = Future()
        future.set_result(_write(group))
        return future

    def prepare(self, group: Files) -> Future[Outcome]:  # noqa: ARG002 - a Writer's
        """Nothing to do."""
        future: Future[Outcome] = Future()
        future.set_result({})
        return future

    def close(self) -> None:
        """Nothing is being written."""


@frozen(eq=False)
class Elsewhere(AtOnce):
    """Writes nothing, since another rank writes the same; but it is asked whether that is worth it."""

    def write(self, group: Files) -> Future[Outcome]:
        """Check."""
        return super().write(evolve(group, states={}))


@define(eq=False)
class Background:
    """Copies the states to host memory, then writes them in a thread; there is one copy at most."""

    _snapshots: Copying = field(factory=Snapshots)
    _thread: ThreadPoolExecutor = field(init=False)

    @_thread.default
    def _start(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def write(self, group: Files) -> Future[Outcome]:
        """Copy now, write later.

        :raises RuntimeError: where there is no memory for the copy; :class:`MemoryError` likewise.
        """
        copy, ready = self._snapshots.take(group.states)
        group.check()
        copied = evolve(group, states=cast("Mapping[str, Mapping[str, object]]", copy))

        def write(_: Files) -> Outcome:
            ready()
            return _write(copied)

        # The thread gets the originals as well, to be the one that frees them: for each tensor whoever frees it has
        # to wait for the interpreter, and training would do so a thousand times while the thread is at work.
        return self._thread.submit(write, group)

    def prepare(self, group: Files) -> Future[Outcome]:
        """Get the memory for the copy."""

        def reserve() -> Outcome:
            with suppress(RuntimeError, MemoryError):  # told where the copy is needed
                self._snapshots.reserve(group.states)
            return {}

        return self._thread.submit(reserve)

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown()


def _write(group: Files) -> Outcome:
    """Write each file, also after one that has failed."""
    failed: Outcome = {}
    for name, state in group.states.items():
        if name == LATEST and (missing := [n for n in group.conditions if n in failed]):
            failed[name] = OSError(None, f"not written, since it tells of {', '.join(missing)}")
            continue
        try:
            files.save(state, group.directory / name, group.directory / PREVIOUS if name == LATEST else None)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and costs this file only
            failed[name] = error
    return failed
