"""Processes that read for a run: they die with it, ignore its signals, and are replaced where they die alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from multiprocessing import connection, reduction, resource_tracker
from typing import TYPE_CHECKING, Literal, Protocol

from attrs import define, field, frozen

from hookloop.data.reading import Slab, carry_out
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from hookloop.data.fields import Fields
    from hookloop.data.reading import Job, Shape

DEATHS = 3
"""How many more processes than there are may die without any of them getting on."""
_UNANSWERED = 8
"""Jobs that a process has at most: their answers fit into its pipe, so that it never waits for the run to read."""
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""What is meant for the run, and sent to the whole group by terminals and schedulers."""
_LAST_JOB = 5.0
"""Seconds that a process may take to notice the end."""


@frozen
class Done:
    """A job is finished."""

    number: int
    retried: list[str]


@frozen
class Failed:
    """A job cannot be finished."""

    number: int
    message: str
    bug: bool
    """Whether it is ours: then the message is a traceback."""


@frozen
class _NewSlab:
    """The file descriptor follows."""

    number: int
    shapes: tuple[Shape, Shape]


class Tell(Protocol):
    """How a run is told what it should know."""

    def __call__(self, event: str, **values: object) -> object:
        """Tell an event."""


class Reading(Protocol):
    """Whatever carries out jobs."""

    def borrow(self, shapes: tuple[Shape, Shape]) -> Slab:
        """A slab that nobody uses."""

    def give_back(self, slab: Slab) -> None:
        """Give up a slab and the jobs on it."""

    def submit(self, job: Job) -> None:
        """Carry out *job*, now or later; its number is one of its own."""

    def wait(self, number: int) -> None:
        """Return once job *number* is done; each may be waited for once.

        :raises HookloopError: where it cannot be done.
        """


@define(eq=False)
class Inline:
    """Carries out each job in this process, when it is waited for."""

    sides: Sequence[Fields]
    tell: Tell
    _free: list[Slab] = field(factory=list, init=False)
    _used: dict[int, Slab] = field(factory=dict, init=False)
    _jobs: dict[int, Job] = field(factory=dict, init=False)

    def borrow(self, shapes: tuple[Shape, Shape]) -> Slab:
        """One that was given back, or a new one."""
        slab = _taken(self._free, shapes) or Slab.new(len(self._free) + len(self._used), shapes)
        self._used[slab.number] = slab
        return slab

    def give_back(self, slab: Slab) -> None:
        """Forget the jobs on it."""
        self._free.append(self._used.pop(slab.number))
        self._jobs = {number: job for number, job in self._jobs.items() if job.slab != slab.number}

    def submit(self, job: Job) -> None:
        """Remember *job*."""
        self._jobs[job.number] = job

    def wait(self, number: int) -> None:
        """Do it."""
        job = self._jobs.pop(number)
        _report(carry_out(job, self.sides, self._used[job.slab]), self.tell)


def open_reading(
    sides: Sequence[Fields], workers: int | Literal["auto"], tell: Tell, cleanup: ExitStack
) -> tuple[Reading, int]:
    """What reads *sides*, until *cleanup* ends it, and how many jobs it carries out at once; 0 in this process."""
    count = default_workers() if workers == "auto" else workers
    if not count:
        return Inline(sides, tell), 0
    readers = Readers(sides, count, tell)
    cleanup.callback(readers.close)
    return readers, count


def default_workers(processes: int = 1) -> int:
    """As many as there are cores beside the one that trains, up to eight.

    :param processes: how many of them train on this machine, and divide its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // processes - 1))


def _taken(free: list[Slab], shapes: tuple[Shape, Shape]) -> Slab | None:
    for slab in free:
        if slab.shapes == shapes:
            free.remove(slab)
            return slab
    return None


@define(eq=False)
class _Reader:
    """One process, and the jobs that it has not answered yet."""

    process: SpawnProcess
    link: Connection
    jobs: dict[int, Job] = field(factory=dict)


@define(eq=False)
class Readers:
    """Carries out jobs in processes of their own, which are started when the first slab is borrowed.

    :param sides: coarse and fine fields; sent to each process once.
    :param count: how many processes.
    """

    sides: Sequence[Fields]
    count: int
    tell: Tell
    close: Callable[[], object] = field(init=False)
    """End the processes: they see that nobody is listening any more."""
    _slabs: list[Slab] = field(factory=list, init=False)
    _used: set[int] = field(factory=set, init=False)
    _readers: list[_Reader] = field(factory=list, init=False)
    _waiting: deque[Job] = field(factory=deque, init=False)
    _answers: dict[int, tuple[Job, Done | Failed]] = field(factory=dict, init=False)
    _deaths: int = field(default=0, init=False)
    """Since the last answer."""

    def __attrs_post_init__(self) -> None:
        """Have the processes end with this object at the latest."""
        self.close = weakref.finalize(self, _ended, self._readers, self._slabs)

    def borrow(self, shapes: tuple[Shape, Shape]) -> Slab:
        """One to which no process is writing, known to all of them; the first starts them."""
        if not self._readers:
            self._readers.extend(_started(self.sides) for _ in range(self.count))
        self._listen(0.0)
        written = {job.slab for reader in self._readers for job in reader.jobs.values()}
        free = [s for s in self._slabs if s.number not in self._used | written and s.shapes == shapes]
        if not free:
            free = [Slab.new(len(self._slabs), shapes)]
            self._slabs.extend(free)
            for reader in self._readers:
                _send(reader, free[0])
        self._used.add(free[0].number)
        return free[0]

    def give_back(self, slab: Slab) -> None:
        """Forget the jobs on it; whatever is still being written to it is for nothing."""
        self._used.remove(slab.number)
        self._waiting = deque(job for job in self._waiting if job.slab in self._used)
        self._answers = {
            n: (job, answer) for n, (job, answer) in self._answers.items() if job.slab in self._used
        }

    def submit(self, job: Job) -> None:
        """Have *job* done in its turn."""
        self._waiting.append(job)
        self._hand_out()

    def wait(self, number: int) -> None:
        """Wait for the answer; a process that dies meanwhile is replaced, and its jobs are done again."""
        while number not in self._answers:
            self._listen(None)
        _, answer = self._answers.pop(number)
        if isinstance(answer, Failed):
            raise RuntimeError(answer.message) if answer.bug else HookloopError(answer.message)
        _report(answer.retried, self.tell)

    def _hand_out(self) -> None:
        """Give waiting jobs to the processes with the fewest."""
        while self._waiting:
            reader = min(self._readers, key=lambda reader: len(reader.jobs))
            if len(reader.jobs) == _UNANSWERED:
                return
            job = self._waiting.popleft()
            reader.jobs[job.number] = job
            _send(reader, job)

    def _listen(self, seconds: float | None) -> None:
        """Take in what was answered, notice who has died, and hand out more; wait for that so long at most."""
        links = {reader.link: reader for reader in self._readers}
        ends = {reader.process.sentinel: reader for reader in self._readers}
        ready = connection.wait([*links, *ends], seconds)
        for reader in links.values():
            concerned = reader.link in ready or reader.process.sentinel in ready
            if concerned and not self._heard(reader):
                self._replace(reader)
        self._hand_out()

    def _heard(self, reader: _Reader) -> bool:
        """Take in all that *reader* has answered; whether it is still there."""
        try:
            while reader.link.poll():
                answer = reader.link.recv()
                job = reader.jobs.pop(answer.number)
                self._deaths = 0
                if job.slab in self._used:
                    self._answers[answer.number] = job, answer
        except (EOFError, OSError):
            return False
        return reader.process.is_alive()

    def _replace(self, dead: _Reader) -> None:
        """Start another process in place of one that has died, with its jobs."""
        dead.process.join()
        dead.link.close()
        code = dead.process.exitcode
        self._deaths += 1
        if self._deaths > DEATHS + self.count - 1:
            raise HookloopError(
                f"the processes that read {self.sides[0].where} and {self.sides[1].where} have died "
                f"{self._deaths} times without getting on, the last time with exit code {code}; is there enough "
                "memory? workers: 0 reads in the run's own process"
            )
        self.tell("data.reader_died", code=code, hint="another one goes on with its work")
        reader = self._readers[self._readers.index(dead)] = _started(self.sides)
        for slab in self._slabs:
            _send(reader, slab)
        self._waiting.extendleft(reversed([job for job in dead.jobs.values() if job.slab in self._used]))


def _send(reader: _Reader, message: Slab | Job) -> None:
    with suppress(OSError):  # it has died: whoever waits notices, and all is sent again
        if isinstance(message, Slab):
            reader.link.send(_NewSlab(message.number, message.shapes))
            reduction.send_handle(reader.link, message.handle, reader.process.pid)
        else:
            reader.link.send(message)


def _ended(readers: list[_Reader], slabs: list[Slab]) -> None:
    for reader in readers:
        reader.link.close()
    for reader in readers:
        reader.process.join(_LAST_JOB)
        if reader.process.is_alive():
            reader.process.kill()
            reader.process.join()
    for slab in slabs:
        slab.close()


def _report(retried: Sequence[str], tell: Callable[..., object]) -> None:
    for problem in retried:
        tell("data.read_again", problem=problem)


def _started(sides: Sequence[Fields]) -> _Reader:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, sides), name="hookloop reader", daemon=True)
    with _shielded():
        process.start()
    theirs.close()
    return _Reader(process, ours)


@contextmanager
def _shielded() -> Iterator[None]:
    """Block the run's signals for a process that is made meanwhile: it inherits that, and keeps it."""
    resource_tracker.ensure_running()  # else it is made meanwhile too, and lifts the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(link: Connection, sides: Sequence[Fields]) -> None:
    """Do one job after another until nobody is listening any more."""
    slabs: dict[int, Slab] = {}
    with suppress(EOFError, OSError):
        while True:
            message = link.recv()
            if isinstance(message, _NewSlab):
                handle = reduction.recv_handle(link)
                slabs[message.number] = Slab.mapped(message.number, handle, message.shapes)
            else:
                link.send(_answer(message, sides, slabs[message.slab]))


def _answer(job: Job, sides: Sequence[Fields], slab: Slab) -> Done | Failed:
    try:
        return Done(job.number, carry_out(job, sides, slab))
    except HookloopError as error:
        return Failed(job.number, str(error), bug=False)
    except Exception:  # noqa: BLE001 - whatever it is, the run must hear of it
        return Failed(job.number, traceback.format_exc(), bug=True)
