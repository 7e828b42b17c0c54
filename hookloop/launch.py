"""Several processes for one command: torch's elastic launcher, in this process, which answers as one would.

Workers that come to a good end, finished or stopped, give their answers back. Any other end is a failure to torch's
launcher, which ends the others, and starts all anew while there are restarts left; a file tells those started after a
mistake that there is nothing to do.
"""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from hookloop.distributed import is_joined, leave
from hookloop.errors import HookloopError
from hookloop.logs import log_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from multiprocessing.process import BaseProcess
    from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SAVING = (signal.SIGUSR1, signal.SIGUSR2)
_PASSED_ON = (*_ENDING, *_SAVING)
_SAME_SECONDS = 5.0
"""A request that arrives by two ways is one: see the plugin signals."""
_OWN_SECONDS = 2.0
"""How long a worker that is to stop at once may take; one that waits for another rank hears nothing."""


@frozen
class Processes:
    """How many processes there are to be, and where they meet."""

    per_node: int = 1
    nodes: int = 1
    meeting: str | None = None
    """``HOST:PORT`` where the launchers of several nodes meet; one of them is on HOST."""
    job: str = "hookloop"
    """What the launchers of one job have in common."""
    restarts: int = 0
    """How often all are started anew after a crash."""

    @classmethod
    def asked(
        cls, nproc: str | None, nnodes: int, rdzv_endpoint: str | None, rdzv_id: str, max_restarts: int
    ) -> Processes | None:
        """Read the options of the command line; ``None`` where this process does it all.

        :raises HookloopError: for several nodes that do not know where to meet.
        """
        if "TORCHELASTIC_RUN_ID" in os.environ:  # a worker
            return None
        if nnodes > 1 and rdzv_endpoint is None:
            raise HookloopError(
                f"--nnodes {nnodes}: no --rdzv-endpoint; name a node and a port that all reach"
            )
        per_node = _gpus() if nproc == "auto" else int(nproc or 1)
        if per_node == 1 and nnodes == 1 and max_restarts == 0:
            return None
        return cls(per_node, nnodes, rdzv_endpoint, rdzv_id, max_restarts)


def _gpus() -> int:
    """Count the GPUs; one process does it where there are none."""
    import torch

    return torch.cuda.device_count() or 1


def launch(processes: Processes, command: Callable[[], int], directory: Path | None = None) -> int:
    """Run *command* in several processes, and give the exit code of them all.

    Signals are passed on to them: it is they who stop or save. Where a rank is killed this is told, with the step
    to go on from.

    :param command: what can be pickled; it tells its errors and gives the exit code.
    :param directory: of the run.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes.per_node)))
    alone = processes.nodes == 1
    if not alone:
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # see hookloop.distributed on attempts
    with _silence(), TemporaryDirectory(prefix="hookloop-") as scratch:
        ended = Path(scratch) / "ended"
        config = LaunchConfig(
            min_nodes=processes.nodes, max_nodes=processes.nodes, nproc_per_node=processes.per_node,
            run_id=f"hookloop-{os.getpid()}" if alone else processes.job,
            rdzv_backend="c10d", rdzv_endpoint="localhost:0" if alone else processes.meeting or "",
            local_addr="127.0.0.1" if alone else None, max_restarts=processes.restarts,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            signals_to_handle="SIGQUIT",  # it would end the workers at any other that it handles
        )  # fmt: skip
        passing_on = _PassingOn(ended)
        try:
            with passing_on.installed():
                answers: Mapping[int, int] = elastic_launch(config, _work)(command, ended, os.getpid())
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if passing_on.at_once:
                return passing_on.at_once
            return _tell(rank, failure.exitcode, directory)
        except SignalException as problem:
            return 128 + problem.sigval
        except RendezvousError as problem:
            raise HookloopError(
                f"--rdzv-endpoint {config.rdzv_endpoint}: cannot meet the other nodes there: {problem}"
            ) from problem
    return max(answers.values())


def _work(command: Callable[[], int], ended: Path, launcher: int) -> int:
    """Be one of the processes.

    :param ended: holds the exit code once the run is over, for those who would start after that.
    :param launcher: the process that has started this one.
    """
    try:
        code = _ending(ended) or _begin(command, launcher)
        # A KeyboardInterrupt from now on would leave the launcher waiting for the answer.
        signal.signal(signal.SIGINT, lambda number, _: leave(128 + number))
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT)
    except BaseException:  # noqa: BLE001 - ours: the traceback is the message
        traceback.print_exc()
        leave(1)
    if code == 1:  # a crash
        leave(code)
    if is_joined():  # another try would make the same mistake
        ended.write_text(str(code), encoding="ascii")
        leave(code)
    if os.getppid() != launcher:  # nobody is left to hear the answer
        leave(code)
    return code


def _begin(command: Callable[[], int], launcher: int) -> int:
    """Listen to signals, which have been kept waiting until now, and do it."""
    for number in _SAVING:  # until there is a state to save
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    if os.getppid() != launcher:  # killed meanwhile
        leave(1)
    atexit.register(leave, 0)  # what is left to take down takes seconds
    return command()


def _ending(ended: Path) -> int:
    """Read the exit code of a run that is over, 0 while it is not."""
    try:
        return int(ended.read_text(encoding="ascii") or 0)
    except FileNotFoundError:
        return 0


def _tell(rank: int, code: int, directory: Path | None) -> int:
    """Tell who was killed, if somebody was, and give the exit code; what a worker answers it has told itself."""
    if code > 0:
        return code
    number = signal.Signals(-code)
    again = "run the same command again" if directory is None else _going_on(directory)
    hint = ", perhaps for want of memory" if number == signal.SIGKILL else ""
    print(f"rank {rank} was killed by {number.name}{hint}; {again}", file=sys.stderr, flush=True)  # noqa: T201
    return 128 + number if number in _ENDING else 1


def _going_on(directory: Path) -> str:
    """Say where the same command would go on."""
    step = None
    with suppress(OSError):
        for line in (directory / log_of(0)).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] == "checkpoint.saved" and event["path"].endswith("latest.ckpt"):
                    step = event["step"]
    if step is None:
        return "nothing was saved, so the same command starts anew"
    return f"run the same command to go on from step {step}"


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the launcher from telling what the workers tell themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@define
class _PassingOn:
    """Passes signals on to the workers, and remembers one that is to end the run."""

    ended: Path
    at_once: int | None = field(default=None, init=False)
    """The exit code, once the run was asked to end again: workers that do not are killed."""
    _first: float | None = field(default=None, init=False)
    """When the run was asked to end."""

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        code = 128 + number
        ending = number in _ENDING
        if ending and not self.ended.exists():
            self.ended.write_text(str(code), encoding="ascii")
        workers = multiprocessing.active_children()
        _tell_each(workers, number)
        if ending and not workers:  # nobody to wait for
            sys.exit(code)
        if ending and self._first is None:
            self._first = time.monotonic()
        elif ending and self._first is not None and time.monotonic() - self._first > _SAME_SECONDS:
            self.at_once = code
            killing = threading.Timer(_OWN_SECONDS, _tell_each, (workers, signal.SIGKILL))
            killing.daemon = True
            killing.start()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen for a while.

        Workers inherit that their main thread does not listen, until :func:`_work` is ready to. Here another thread
        does.
        """
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = [number for number in _PASSED_ON if number != signal.SIGHUP or not nohup]
        before = {number: signal.signal(number, self) for number in numbers}
        over = threading.Event()
        threading.Thread(target=over.wait, daemon=True).start()
        resource_tracker.ensure_running()  # it would unblock some of them
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            over.set()
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


def _tell_each(workers: Iterable[BaseProcess], number: int) -> None:
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker.pid or 0, number)
