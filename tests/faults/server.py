"""A process that has everything imported, one thread and one run behind it, and forks a child for each start.

A request is a line of JSON, ``{"starts": [Start, …], "limit": seconds}``; the starts run at the same time. The answer
is ``{"codes": […], "seconds": …, "left": …}``, where -N is a death by signal N, ``null`` that the limit was exceeded,
and ``left`` how many of several processes have outlived the command.

A start in several processes is that of the real launcher, but that it forks its workers, which are ready at once.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from faults import points, shim

if TYPE_CHECKING:
    from collections.abc import Sequence

_IMPORTED = (
    "hookloop.launch", "hookloop.strategies", "hookloop.fully_shard", "hookloop.passing", "torch.distributed.fsdp",
    "torch.distributed.launcher.api", "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "torch.distributed.nn", "torch.nn.parallel.distributed", "torch._dynamo",
)  # fmt: skip
"""What several processes need beside what one has imported."""
_BLOCKED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
"""Signals that are waited for, and those that a child gets once it is the command and no more a server."""

_POLL = 0.01
_PARTING = 20.0
"""Seconds that ranks have to save and end after their launcher was killed."""


@frozen
class Shot:
    """A signal sent from outside, so many seconds after the start."""

    after: float
    signal: int
    group: bool = False
    rank: int | None = None
    """Sent to this rank instead, as soon as it is there."""


@frozen
class Start:
    """One call of the command."""

    arguments: Sequence[str]
    directory: str
    """Where it runs, and below which file operations are recorded."""
    console: str
    """What it prints is appended here."""
    records: str
    trap: shim.Trap = field(factory=shim.Trap)
    point: points.Point | None = None
    shots: Sequence[Shot] = ()
    processes: int = 1

    def plain(self) -> dict[str, object]:
        """Give what JSON knows."""
        return attrs.asdict(self)

    @classmethod
    def of(cls, plain: dict[str, object]) -> Start:
        """Make it of what :meth:`plain` gave."""
        made = {
            "trap": shim.Trap(**plain.pop("trap")),  # type: ignore[arg-type]
            "point": points.Point(**found) if (found := plain.pop("point")) else None,  # type: ignore[arg-type]
            "shots": [Shot(**shot) for shot in plain.pop("shots")],  # type: ignore[attr-defined]
        }
        return cls(**plain, **made)  # type: ignore[arg-type]


def serve(channel: socket.socket) -> None:
    """Answer until the other side hangs up; in a child, run and exit."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    with channel.makefile("rw") as lines:
        for line in lines:
            request = json.loads(line)
            starts = [Start.of(plain) for plain in request["starts"]]
            children = {}
            began = time.monotonic()
            for start in starts:
                pid = os.fork()
                if pid == 0:
                    channel.close()
                    _run(start)
                os.setpgid(pid, pid)
                children[pid] = start
            codes, left = _watch(children, began, request["limit"])
            seconds = time.monotonic() - began
            answer = {"codes": [codes[pid] for pid in children], "seconds": seconds, "left": left}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


def _run(start: Start) -> None:
    """Be the command; ends the process."""
    from hookloop import cli

    with suppress(PermissionError):  # the parent was faster
        os.setpgid(0, 0)
    os.chdir(start.directory)
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, start.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    if start.processes == 1:
        _prepare(start, 0)
    else:
        _fork_ranks(start)
    sys.argv = ["hookloop", *start.arguments]
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
        try:
            cli.main(start.arguments)
        finally:  # all that the end of an interpreter does, except for freeing what the parent has imported
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(1)


def _prepare(start: Start, rank: int) -> None:
    """Begin to record, and have happen to this rank what is to happen to it."""
    point = start.point
    points.PLAN.point = point if point and point.rank == rank else None
    trap = start.trap if rank == 0 else shim.Trap()
    shim.arm(start.directory, shim.records_of(rank, start.records), trap)


def _fork_ranks(start: Start) -> None:
    """Have the launcher, which this process is going to be, fork its workers."""
    from torch.distributed.launcher import api

    from hookloop import launch

    work = launch._work

    def be_a_rank(*arguments: object) -> int:
        for number in launch._PASSED_ON:  # a process of its own would not have the launcher's handlers
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _prepare(start, int(os.environ["RANK"]))
        return work(*arguments)  # type: ignore[arg-type]

    launch._work = be_a_rank
    api.LaunchConfig = partial(api.LaunchConfig, start_method="fork")  # type: ignore[assignment, misc]


def _send(shot: Shot, pid: int) -> bool:
    """Send a signal to the command *pid*; answer whether the rank that is to get it is there."""
    if shot.rank is None:
        (os.killpg if shot.group else os.kill)(pid, shot.signal)
        return True
    ranks = _children(pid)
    if len(ranks) <= shot.rank:
        return False
    descriptor = os.pidfd_open(ranks[shot.rank])
    try:
        if ranks[shot.rank] in _children(pid):  # no stranger who has got the number meanwhile
            signal.pidfd_send_signal(descriptor, shot.signal)
    finally:
        os.close(descriptor)
    return True


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _others_of(group: int) -> list[int]:
    """Find the processes of a group that live, but for its leader."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid = int(stat.parent.name)
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and pid != group and state not in "ZX":
                found.append(pid)
    return found


def _watch(children: dict[int, Start], began: float, limit: float) -> tuple[dict[int, int | None], int]:
    """Send the signals that are due, collect the codes and count the processes that are left over.

    A child that has ended is not yet reaped while signals are sent, so that none can reach a stranger.
    """
    due = sorted(
        ((shot.after, pid, shot) for pid, start in children.items() for shot in start.shots),
        key=lambda item: item[0],
    )
    codes: dict[int, int | None] = {}
    ended: dict[int, float] = {}
    left = 0
    while len(codes) < len(children):
        now = time.monotonic() - began
        while due and due[0][0] <= now:
            _, pid, shot = due.pop(0)
            if pid not in codes and not _send(shot, pid) and pid not in ended:
                due.insert(0, (now + _POLL, pid, shot))
        if now > limit:
            for pid in children.keys() - codes:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = None
            break
        pause = max(0.0, (due[0][0] if due else limit) - now)
        signal.sigtimedwait([signal.SIGCHLD], min(pause, _POLL) if ended.keys() - codes else pause)
        for pid in children.keys() - codes:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                if children[pid].processes > 1 and _others_of(pid):
                    if now - ended.setdefault(pid, now) < _PARTING:
                        continue
                    left += len(_others_of(pid))
                os.killpg(pid, signal.SIGKILL)  # what it has forked
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return codes, left


def _warm_up(lines: Sequence[Sequence[str]]) -> None:
    """Run once in this process, so that children need not import anything."""
    from hookloop import cli

    for arguments in lines:
        try:
            cli.main(arguments)
        except SystemExit as end:
            if end.code:
                raise


def _expect_one_thread(patience: float = 10.0) -> None:
    """Wait for the threads of the warm-up to end: a fork would lose them, with what they have locked."""
    until = time.monotonic() + patience
    while (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        if time.monotonic() > until:
            names = [thread.name for thread in threading.enumerate()]
            sys.exit(f"{threads} threads after warming up, expected one: {', '.join(names)}")
        time.sleep(0.01)


def main() -> None:
    """Warm up with the command lines given as JSON, say that it is done, then serve the socket given."""
    import torch

    for module in _IMPORTED:
        import_module(module)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.environ.pop("LD_PRELOAD")  # it is loaded; what is started from here does not need it
    _warm_up(json.loads(sys.argv[2]))
    _expect_one_thread()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        channel.sendall(b"ready\n")
        serve(channel)


if __name__ == "__main__":
    main()
