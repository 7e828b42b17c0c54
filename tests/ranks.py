"""Run a function of a test module on several ranks: real processes, which are kept for the next test."""

from __future__ import annotations

import atexit
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

T = TypeVar("T")

_TEAMS: dict[int, _Team] = {}
"""Those that wait for the next test, by how many they are."""


def on_ranks(world: int, function: Callable[..., T], *arguments: object, seconds: float = 60.0) -> list[T]:
    """Call ``function(ranks, *arguments)`` in *world* processes joined by gloo, and give what each answers.

    *ranks* is what ``run.ranks`` is to be. The function is one of a test module's own, not one within another;
    arguments and answers are pickled (tensors too).

    :raises Exception: the first error of a rank, of those that are no consequence of another's, with its
        traceback as a note.
    :raises TimeoutError: where a rank has not answered after so many *seconds*.
    """
    team = _TEAMS.pop(world, None) or _Team.started(world)
    try:
        answers = team.call(function, arguments, seconds)
    except BaseException:
        team.end()  # whoever has not parted from the others is of no more use
        raise
    _TEAMS[world] = team
    return answers


@define(eq=False)
class _Team:
    """Processes that wait for something to do."""

    processes: list[multiprocessing.process.BaseProcess] = field(factory=list)
    connections: list[Connection] = field(factory=list)

    @classmethod
    def started(cls, world: int) -> _Team:
        team, context = cls(), multiprocessing.get_context("spawn")
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, world), daemon=True)
            process.start()
            theirs.close()
            team.processes.append(process)
            team.connections.append(ours)
        atexit.register(team.end)
        return team

    def call(self, function: Callable[..., T], arguments: tuple[object, ...], seconds: float) -> list[T]:
        from torch.distributed import TCPStore

        world = len(self.processes)
        store = TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
        )
        place = Path(inspect.getfile(function)), function.__module__, function.__qualname__
        for connection in self.connections:
            connection.send_bytes(pickle.dumps((place, arguments, store.port)))
        end = time.monotonic() + seconds
        answers: list[T | None] = [None] * world
        failures: list[tuple[bool, int, BaseException]] = []
        waiting = dict(enumerate(self.connections))
        while waiting:
            ready = multiprocessing.connection.wait(waiting.values(), max(0.0, end - time.monotonic()))
            if not ready:
                if failures:
                    break
                raise TimeoutError(f"ranks {sorted(waiting)} of {world} have not answered after {seconds} s")
            for rank, connection in list(waiting.items()):
                if connection not in ready:
                    continue
                del waiting[rank]
                try:
                    kind, content = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own
                except EOFError:
                    self.processes[rank].join()
                    lost = ChildProcessError(f"rank {rank} ended with {self.processes[rank].exitcode}")
                    failures.append((False, rank, lost))
                    continue
                if kind == "answer":
                    answers[rank] = content
                else:
                    failures.append((kind == "consequence", rank, content))
                    end = min(end, time.monotonic() + 5.0)  # the others are about to notice
        if failures:
            raise min(failures, key=lambda failure: failure[:2])[2]
        return answers  # type: ignore[return-value]

    def end(self) -> None:
        atexit.unregister(self.end)
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.kill()
            process.join()


def _serve(connection: Connection, rank: int, world: int) -> None:
    """Be one rank, for one function after another."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            (path, module, name), arguments, port = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own
        except EOFError:
            return
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
        connection.send_bytes(pickle.dumps(_answer(path, module, name, arguments)))


def _answer(path: Path, module: str, name: str, arguments: tuple[object, ...]) -> tuple[str, object]:
    from hookloop.distributed import joined
    from hookloop.errors import PeerLost, Told

    try:
        function = _function(path, module, name)
        with joined() as ranks:
            answer = function(ranks, *arguments)
        pickle.dumps(answer)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told to the test
        cause = error.__cause__ if isinstance(error, Told) and error.__cause__ else error
        note = f"on rank {os.environ['RANK']}:\n{''.join(traceback.format_exception(cause))}"
        return ("consequence" if isinstance(cause, Told | PeerLost) else "error"), _portable(cause, note)
    return "answer", answer


def _portable(error: BaseException, note: str) -> BaseException:
    """Give the error, or one that can be sent."""
    error.add_note(note)
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever it is
        return RuntimeError(note)
    return error


def _function(path: Path, module: str, name: str) -> Callable[..., object]:
    """Import the test module under the name that pytest has given it, once."""
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    found: object = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
    return found
