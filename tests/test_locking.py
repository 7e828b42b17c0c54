"""One directory has one run; what a dead one held is taken over."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from attrs import evolve

from hookloop import locking
from hookloop.errors import HookloopError
from hookloop.locking import Holder
from hookloop.logs import events_to
from hookloop.manager import listing_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Site
    from structlog.typing import EventDict

ENOUGH = 30.0
"""Seconds within which what is waited for happens on any machine."""


def lock(directory: Path, **options: object) -> AbstractContextManager[None]:
    """Take the lock, telling events to ``log.jsonl`` there."""
    events = events_to(directory / "log.jsonl", io.StringIO())
    return locking.lock(directory, events, **options)  # type: ignore[arg-type]


def told(directory: Path) -> list[str]:
    """Name the events there, in order."""
    path = directory / "log.jsonl"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []


def until(happened: Callable[[], object]) -> None:
    """Wait for something that happens in another thread or process."""
    end = time.monotonic() + ENOUGH
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


def unsupported(*_: object) -> None:
    """Stand in for a file system without flock."""
    raise OSError(errno.ENOLCK, "No locks available")


HOLDER = """
import errno, fcntl, os, sys, time
from pathlib import Path
from hookloop.errors import HookloopError
from hookloop.locking import lock
from hookloop.logs import events_to

def unsupported(*_):
    raise OSError(errno.ENOLCK, "No locks available")

directory, beat, *how = sys.argv[1:]
if "unsupported" in how:
    fcntl.flock = unsupported
if "start" in how:
    print("ready", flush=True)
    sys.stdin.readline()
try:
    host = "elsewhere" if "elsewhere" in how else None
    with lock(Path(directory), events_to(None), host=host, beat=float(beat), watch=0.2):
        if "fork" in how and os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
        if "leave" not in how or (worker := os.fork()):
            if "leave" in how:
                os.waitpid(worker, 0)
            if "fork" not in how:
                print("held", flush=True)
            sys.stdin.read()
except HookloopError:
    print("refused", flush=True)
"""

Holding = subprocess.Popen[str]


def start(directory: Path, *how: str, beat: float = 0.05) -> Holding:
    """Start a process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(directory), str(beat), *how]
    return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)


def said(process: Holding) -> str:
    """Read the next line that a process writes."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def holder(directory: Path, *how: str) -> Iterator[Holding]:
    """Have another process hold the lock."""
    process = start(directory, *how)
    try:
        assert said(process) == "held"
        yield process
    finally:
        process.kill()
        process.communicate()


def killed(directory: Path, *how: str) -> int:
    """Have a process die as it holds the lock: killed, and what is left of it cleared away; its number."""
    with holder(directory, *how) as process:
        pass
    return process.pid


def write(directory: Path, record: bytes) -> None:
    """Leave a record as somebody else would."""
    (directory / "run.lock").write_bytes(record)


def us(**changes: object) -> Holder:
    """Describe this process as one whose kernel knows nothing of the lock, but for *changes*."""
    return evolve(Holder.this(platform.node(), flocked=False), **changes)  # type: ignore[misc]


def record_of(directory: Path) -> dict[str, object]:
    """Read the record there."""
    record = json.loads((directory / "run.lock").read_bytes())
    assert isinstance(record, dict)
    return record


def test_a_second_run_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    """Host, process and start of the holder, and what to do; released, it can be had, silently."""
    with holder(tmp_path) as process:
        began = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
        who = rf"run\.lock: .*process {process.pid} on {re.escape(platform.node())} since {began}.*; wait for it"
        with pytest.raises(HookloopError, match=who), lock(tmp_path):
            pass
        process.communicate()
        assert process.returncode == 0
    with lock(tmp_path):
        pass
    assert told(tmp_path) == []


@pytest.mark.parametrize("supported", [True, False])
def test_the_file_names_the_holder_and_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, supported: bool
) -> None:
    """While held it is JSON; afterwards it is gone, also after an error."""
    if not supported:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    with lock(tmp_path):
        content = record_of(tmp_path)
        assert (content["pid"], content["host"]) == (os.getpid(), platform.node())
        assert content["flocked"] is supported
    assert not (tmp_path / "run.lock").exists()
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        1 / 0  # noqa: B018
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize("supported", [True, False])
def test_one_process_cannot_hold_it_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, supported: bool
) -> None:
    """The second one of the same process is refused too, and breaks nothing."""
    if not supported:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    with lock(tmp_path):
        for _ in range(2):
            with pytest.raises(HookloopError, match=str(os.getpid())), lock(tmp_path):
                pass


@pytest.mark.parametrize("how", ["flock", "unsupported"])
def test_the_lock_of_a_killed_holder_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its file is still there, with nothing behind it: nobody is watched, and one event says so."""
    if how == "unsupported":
        monkeypatch.setattr(fcntl, "flock", unsupported)
    killed(tmp_path, how)
    assert (tmp_path / "run.lock").exists()
    with lock(tmp_path, beat=0.05):
        assert record_of(tmp_path)["pid"] == os.getpid()
    assert told(tmp_path) == ["lock.taken_over"]


@pytest.mark.parametrize("how", ["flock", "unsupported"])
def test_a_killed_holder_that_nobody_waits_for_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A process whose parent has not asked how it ended keeps its number, not its lock."""
    if how == "unsupported":
        monkeypatch.setattr(fcntl, "flock", unsupported)
    with holder(tmp_path, how) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.kill(process.pid, 0)  # it is still there
        with lock(tmp_path, beat=0.05):
            pass
    assert told(tmp_path) == ["lock.taken_over"]


def test_the_lock_of_a_holder_without_flock_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives, so it is refused whether or not the newcomer could have an flock."""
    with holder(tmp_path, "unsupported") as process:
        with pytest.raises(HookloopError, match=f"process {process.pid} "), lock(tmp_path):
            pass
        monkeypatch.setattr(fcntl, "flock", unsupported)
        with pytest.raises(HookloopError, match=f"process {process.pid} "), lock(tmp_path):
            pass


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_holder(tmp_path: Path) -> None:
    """A worker that outlives the run must not block the next one."""
    process = start(tmp_path, "fork")
    worker = int(said(process))
    process.kill()
    process.wait()
    try:
        os.kill(worker, 0)  # it lives
        with lock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        process.communicate()


def test_a_forked_worker_does_not_give_the_lock_back(tmp_path: Path) -> None:
    """Where it leaves what the holder is in as the holder would, the lock stays the holder's."""
    process = start(tmp_path, "leave")
    assert said(process) == "held"
    with pytest.raises(HookloopError, match=f"process {process.pid} "), lock(tmp_path):
        pass
    process.communicate()
    assert process.returncode == 0
    assert not (tmp_path / "run.lock").exists()


def test_a_number_that_was_given_to_another_process_is_no_holder(tmp_path: Path) -> None:
    """The same number and start is one, with another start it is not."""
    write(tmp_path, us().record())
    with pytest.raises(HookloopError, match=f"process {os.getpid()} "), lock(tmp_path):
        pass
    write(tmp_path, us(born="1").record())
    with lock(tmp_path, beat=0.05):
        pass
    assert told(tmp_path) == ["lock.taken_over"]


def test_a_process_whose_start_is_unknown_is_taken_for_alive(tmp_path: Path) -> None:
    """Nothing speaks against it."""
    write(tmp_path, us(born="").record())
    with pytest.raises(HookloopError), lock(tmp_path):
        pass


def test_a_process_of_somebody_else_lives(tmp_path: Path) -> None:
    """The first process of the machine may not be asked by others, but it is there."""
    write(tmp_path, us(pid=1, born=locking._born(1)).record())
    with pytest.raises(HookloopError, match="process 1 "), lock(tmp_path):
        pass


def test_where_there_is_no_proc_ps_tells_when_a_process_began() -> None:
    """As a time, the one of now for one that has just begun; nothing for one that is not there."""
    now = datetime.now().astimezone()
    with subprocess.Popen(["sleep", "60"]) as process:
        found = locking._born_by_ps(process.pid)
        began = datetime.strptime(f"{found} +0000", "%a %b %d %H:%M:%S %Y %z")
        assert abs((began - now).total_seconds()) < ENOUGH
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert locking._born_by_ps(process.pid) == "dead"
    assert locking._born_by_ps(process.pid) == ""


def test_the_holder_of_another_machine_lives_while_its_heart_beats(tmp_path: Path) -> None:
    """Its kernel's lock is not seen here; it is watched, and the newcomer is told who it is."""
    with holder(tmp_path, "elsewhere", "unsupported") as process:
        who = f"process {process.pid} on elsewhere since "
        with pytest.raises(HookloopError, match=who), lock(tmp_path, watch=ENOUGH, beat=0.05):
            pass
    assert told(tmp_path) == ["lock.watched"]


def test_the_holder_of_another_machine_is_dead_when_its_heart_stands_still(tmp_path: Path) -> None:
    """After as long as was asked for, and not before, its lock is taken over."""
    killed(tmp_path, "elsewhere", "unsupported")
    began = time.monotonic()
    with lock(tmp_path, watch=0.3, beat=0.05):
        assert time.monotonic() - began >= 0.3
        assert record_of(tmp_path)["pid"] == os.getpid()
    assert told(tmp_path) == ["lock.watched", "lock.taken_over"]


def test_a_holder_from_before_a_reboot_is_watched(tmp_path: Path) -> None:
    """Its number means nothing now, and another machine may have the same name."""
    write(tmp_path, us(system="another boot", born="1").record())
    with lock(tmp_path, watch=0.1, beat=0.05):
        pass
    assert told(tmp_path) == ["lock.watched", "lock.taken_over"]


def test_a_holder_that_ends_while_it_is_watched_leaves_the_lock(tmp_path: Path) -> None:
    """What it has given back is not waited for, and not taken over."""
    write(tmp_path, us(host="elsewhere").record())
    seen = []

    def end(_: object, __: str, event: EventDict) -> EventDict:
        seen.append(event["event"])
        (tmp_path / "run.lock").unlink()
        raise structlog.DropEvent

    events = structlog.wrap_logger(None, processors=[end], wrapper_class=structlog.BoundLogger)
    began = time.monotonic()
    with locking.lock(tmp_path, events, watch=ENOUGH, beat=0.05):
        assert time.monotonic() - began < ENOUGH
    assert seen == ["lock.watched"]


GARBAGE = [
    b"garbage",
    b"\xff\xfe\x00",
    b"null",
    b"[" * 100_000,
    b'{"pid": "x", "host": "y"}',
    b'{"pid": -1, "host": "y"}',
    b'{"pid": 1e99, "host": "y"}',
    b'{"pid": 1, "host": ["y"]}',
    b'{"pid": 1}',
    b'{"pid": 1, "host": "y", "more": 1}',
    bytes(5000),
    us().record()[:100],
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))  # every process the same ids
def test_garbage_is_watched_and_replaced(tmp_path: Path, garbage: bytes) -> None:
    """Its writer is unknown; if nothing moves it is dead, and nothing of it is left."""
    write(tmp_path, garbage)
    with lock(tmp_path, watch=0.05, beat=0.05):
        assert record_of(tmp_path)["pid"] == os.getpid()
    assert told(tmp_path) == ["lock.watched", "lock.taken_over"]


def test_a_holder_that_has_not_written_yet_is_still_a_holder(tmp_path: Path) -> None:
    """Between making the file and writing into it there is nothing to name."""
    with lock(tmp_path):
        os.truncate(tmp_path / "run.lock", 0)
        with pytest.raises(HookloopError, match="not said which"), lock(tmp_path, watch=0.1, beat=0.05):
            pass


def test_an_empty_file_that_stays_empty_is_nobodys(tmp_path: Path) -> None:
    """Its maker died before it could write; it is waited for a fifth of a heartbeat, in which it would have."""
    write(tmp_path, b"")
    began = time.monotonic()
    with lock(tmp_path, watch=30.0, beat=1.0):
        assert 0.2 <= time.monotonic() - began < 10.0
    assert told(tmp_path) == []


def test_the_record_of_an_older_version_names_its_holder() -> None:
    """It has host, process and start only."""
    older = {"host": "old", "pid": 7, "started": "2020-01-01T00:00:00+00:00"}
    assert str(Holder.written(json.dumps(older).encode())) == (
        "process 7 on old since 2020-01-01T00:00:00+00:00"
    )


def test_every_record_is_as_long_as_any_other() -> None:
    """Even with the longest name that a host can have, so that one replaces another in one write."""
    assert len(us(host="x" * 253, pid=2**31 - 1).record()) == len(us(host="a", pid=1).record())


def test_the_heart_beats_and_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's time moves; where it cannot be renewed nothing happens, and later it moves again."""
    path = tmp_path / "run.lock"
    failures = []

    def full(*_: object) -> None:
        failures.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with lock(tmp_path, beat=0.01):
        for _ in range(2):
            before = path.stat().st_mtime_ns
            until(lambda before=before: path.stat().st_mtime_ns != before)  # type: ignore[misc]
        with monkeypatch.context() as patched:
            patched.setattr(os, "utime", full)
            until(lambda: len(failures) > 2)
        before = path.stat().st_mtime_ns
        until(lambda: path.stat().st_mtime_ns != before)
    assert told(tmp_path) == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_lock_that_was_taken_away_is_told(tmp_path: Path, *, taken: bool) -> None:
    """By another run, which keeps its own, or by somebody who removed the file."""
    path = tmp_path / "run.lock"
    with lock(tmp_path, beat=0.01):
        if taken:
            write(tmp_path, us(pid=7).record())
        else:
            path.unlink()
        until(lambda: told(tmp_path))
    assert told(tmp_path) == ["lock.lost"]
    assert path.exists() is taken


TAKE_AND_DROP = """
import errno, fcntl, os, sys, time
from pathlib import Path
from hookloop.errors import HookloopError
from hookloop.locking import lock
from hookloop.logs import events_to

def unsupported(*_):
    raise OSError(errno.ENOLCK, "No locks available")

if sys.argv[2] == "unsupported":
    fcntl.flock = unsupported
events = events_to(Path(sys.argv[1]) / "log.jsonl")
end, got = time.monotonic() + 1.0, 0
while time.monotonic() < end or not got:  # on a busy machine a turn may take long to come
    try:
        with lock(Path(sys.argv[1]), events, beat=0.05):
            inside = os.open(sys.argv[1] + "/inside", os.O_CREAT | os.O_EXCL)
            os.close(inside)
            os.unlink(sys.argv[1] + "/inside")
            got += 1
    except HookloopError:
        pass
print(got)
"""


@pytest.mark.parametrize("how", ["flock", "unsupported"])
def test_only_one_of_many_has_it_at_a_time(tmp_path: Path, how: str) -> None:
    """Processes that take and drop it as fast as they can never hold it together, and find nobody dead."""
    command = [sys.executable, "-c", TAKE_AND_DROP, str(tmp_path), how]
    processes = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(3)]
    for process in processes:
        out, err = process.communicate()
        assert err == ""
        assert int(out) > 0
    assert told(tmp_path) == []


@pytest.mark.parametrize(
    "dead", [("unsupported",), ("elsewhere", "unsupported")], ids=["this machine", "another machine"]
)
@pytest.mark.parametrize("how", ["flock", "unsupported"])
def test_one_of_many_takes_over(tmp_path: Path, dead: tuple[str, ...], how: str) -> None:
    """Of several that find a dead holder at the same time exactly one has its lock afterwards."""
    killed(tmp_path, *dead)
    processes = [start(tmp_path, "start", how, beat=5.0) for _ in range(4)]
    assert [said(process) for process in processes] == ["ready"] * 4
    for process in processes:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
    answers = [said(process) for process in processes]
    for process in processes:
        process.communicate()
    assert sorted(answers) == ["held", "refused", "refused", "refused"]


def test_a_directory_that_is_not_there_is_the_users_to_know(tmp_path: Path) -> None:
    """One line names the file."""
    with (
        pytest.raises(HookloopError, match=r"run\.lock: cannot be written \(No such"),
        lock(tmp_path / "missing"),
    ):
        pass


def test_a_directory_that_may_not_be_written_is_the_users_to_know() -> None:
    """One line names the file and what the system says."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o555)
        if user == 0:  # whom no permission stops
            os.seteuid(65534)
        try:
            reason = r"run\.lock: cannot be written \(Permission denied\); choose another run\.dir"
            with pytest.raises(HookloopError, match=reason), lock(directory):
                pass
        finally:
            if user == 0:
                os.seteuid(0)
            directory.chmod(0o755)


def test_a_link_to_nowhere_is_the_users_to_know(tmp_path: Path) -> None:
    """It is neither followed nor waited for."""
    (tmp_path / "run.lock").symlink_to("nowhere")
    with pytest.raises(HookloopError, match=r"run\.lock: cannot be written \(.*symbolic"), lock(tmp_path):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_a_disk_that_is_full_at_the_start_is_the_users_to_know(tmp_path: Path) -> None:
    """One line, and no empty file for which the next start would have to wait."""
    script = """
import resource, signal, sys
from pathlib import Path
from hookloop.locking import lock
from hookloop.logs import events_to
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
try:
    with lock(Path(sys.argv[1]), events_to(None)):
        pass
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    reason = "cannot be written (File too large); choose another run.dir"
    assert done.stdout == f"HookloopError {tmp_path / 'run.lock'}: {reason}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_flock_has_locks_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whatever it calls that."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path), pytest.raises(HookloopError, match=f"process {os.getpid()} "), lock(tmp_path):
        pass


def test_a_lock_that_fails_otherwise_is_the_users_to_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that cannot be read is not one without locks."""

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    reason = r"run\.lock: cannot be locked \(Input/output error\)"
    with pytest.raises(HookloopError, match=reason), lock(tmp_path):
        pass


WAITING = """
import time
from pathlib import Path
import attrs
from hookloop import hookimpl

@attrs.define(eq=False)
class Waiting:
    gate: Path

    @hookimpl
    def make_task(self, run):
        from hookloop.testing import TinyTask
        return TinyTask()

    @hookimpl
    def before_batch(self, run):
        while not self.gate.exists():
            time.sleep(0.01)
"""


def test_of_two_runs_in_one_directory_one_trains(tmp_path: Path, site: Site) -> None:
    """Two real processes at once: one is refused with exit code 2 and touches nothing, the other finishes."""
    site.install("waiting", WAITING, {"hookloop": {"waiting": "waiting:Waiting"}})
    gate, config = tmp_path / "gate", tmp_path / "cfg.yaml"
    config.write_text(f"run: {{dir: {tmp_path / 'run'}, device: cpu}}\nwaiting: {{gate: {gate}}}\n")
    plugins = ",".join(listing_of(["waiting", "optimization", "validation", "jsonl"]))
    command = [sys.executable, "-m", "hookloop", "run", "--plugins", plugins, str(config)]
    runs = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    until(lambda: any(run.poll() is not None for run in runs))
    gate.touch()
    ends = sorted((run.returncode, *output) for run in runs if (output := run.communicate()))
    (finished, _, log), (refused, nothing, reason) = ends
    assert (finished, refused, nothing) == (0, 2, "")
    assert "run.finished" in log
    other = re.escape(f"{tmp_path / 'run' / 'run.lock'}: another run writes here: process ")
    assert re.fullmatch(rf"{other}\d+ on .*; wait for it, stop it, or choose another run\.dir\n", reason)
    assert told(tmp_path / "run") == ["run.finished"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]) == 1
