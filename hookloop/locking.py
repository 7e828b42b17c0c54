"""One run a directory: ``run.lock`` is held while a run writes there, and taken over from a holder that is dead.

Who is dead is known, on one machine, from the kernel: it gives an flock back when its holder dies, however it
dies. Where the file system has no flock, the process and when it began tell. Of a holder on another machine only
its heartbeat is known: the file's time, which it renews. Clocks of two machines are never compared.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import asdict, field, frozen
from attrs.validators import and_, ge, instance_of, lt

from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from structlog.typing import FilteringBoundLogger

_NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_RECORD_BYTES = 512
_MOST_BYTES = 4096
_text = field(default="", validator=instance_of(str))


@frozen
class Holder:
    """Who holds a lock: what ``run.lock`` says while it is held."""

    host: str = field(validator=instance_of(str))
    pid: int = field(validator=and_(instance_of(int), ge(1), lt(2**31)))
    started: str = _text
    """When the lock was had, for people."""
    system: str = _text
    """Boot and process namespace, within which *pid* means something."""
    born: str = _text
    """When the process began, in its system's own terms: a number may be given to another process later."""
    flocked: bool = field(default=True, validator=instance_of(bool))
    """Whether its kernel knows of the lock."""

    @classmethod
    def this(cls, host: str, *, flocked: bool) -> Holder:
        """Describe this process."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(host, os.getpid(), now, _system(), _born(os.getpid()), flocked)

    @classmethod
    def written(cls, record: bytes) -> Holder | None:
        """Read a record; ``None`` for what is none."""
        try:
            return cls(**json.loads(record))
        except (ValueError, TypeError, RecursionError):
            return None

    def record(self) -> bytes:
        """Write the record: all are of one length, so that one replaces another at once."""
        return json.dumps(asdict(self)).encode().ljust(_RECORD_BYTES - 1) + b"\n"

    def lives(self) -> bool:
        """Whether the process, one of this system, is still there; what cannot be told is taken for alive."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's
            pass
        return not self.born or _born(self.pid) in ("", self.born)

    def __str__(self) -> str:
        """Say who, to people."""
        return f"process {self.pid} on {self.host} since {self.started}"


def _system() -> str:
    found = []
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        found.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(found)


def _born(pid: int) -> str:
    """When a process began; ``dead`` for one that is only waiting to be asked how it ended; else empty."""
    if not Path("/proc/self/stat").exists():
        return _born_by_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()  # what is before is the command, with any characters
    return "dead" if state in "ZX" else fields[18]


def _born_by_ps(pid: int) -> str:
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    everywhere_alike = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        answer = subprocess.run(  # noqa: S603 - fixed words and a number
            command, capture_output=True, text=True, timeout=10, check=True, env=everywhere_alike
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    state, _, began = answer.stdout.strip().partition(" ")
    return "dead" if state.startswith("Z") else began.strip()


@contextmanager
def lock(
    directory: Path,
    events: FilteringBoundLogger,
    *,
    option: str = "run.dir",
    host: str | None = None,
    beat: float = 10.0,
    watch: float = 25.0,
) -> Iterator[None]:
    """Hold ``run.lock`` so that no second run writes into *directory*; the file is removed at the end.

    :param events: where to say that a holder is watched, that a lock is taken over, or that ours was.
    :param option: what names *directory*, for an error.
    :param host: what to call this machine; its own name where ``None``.
    :param beat: seconds between heartbeats.
    :param watch: how many seconds the holder of another machine may be without one.
    :raises HookloopError: naming the host, process and start of the run that holds it.
    """
    newcomer = _Newcomer(directory / "run.lock", events, option, host or platform.node(), beat, watch)
    file, record = newcomer.acquire()
    # An flock is shared with forked workers and would outlive its holder in them, so they close the file at once.
    # A POSIX record lock is not inherited, but it does not keep out a second run of the same process, and
    # goes with any descriptor of the file that this process closes, the one of a mere look into it too.
    os.register_at_fork(after_in_child=file.close)
    holder, ended = os.getpid(), threading.Event()
    heart = threading.Thread(target=newcomer.keep, args=(file, record, ended), name="run.lock", daemon=True)
    heart.start()
    try:
        yield
    finally:
        if os.getpid() == holder:
            ended.set()
            heart.join()
            with suppress(OSError):  # a record left behind names a process that is dead
                if newcomer.read() == record:
                    newcomer.path.unlink()  # while still locked, so that nobody else's file is removed
            with suppress(
                OSError
            ):  # network file systems tell of earlier troubles here; the lock is given back
                file.close()


@frozen
class _Newcomer:
    """Wants the lock."""

    path: Path
    events: FilteringBoundLogger
    option: str
    host: str
    beat: float
    watch: float

    @property
    def pause(self) -> float:
        """Seconds between looks."""
        return self.beat / 10

    def acquire(self) -> tuple[FileIO, bytes]:
        """Have the lock: the open file and our record in it.

        :raises HookloopError: where somebody else has it.
        """
        began = time.monotonic()
        while True:
            with ExitStack() as stack:
                file, made = self._open()
                stack.callback(file.close)
                waited = time.monotonic() - began
                if not made and not _contents(file) and waited < self.beat / 5:
                    time.sleep(self.pause)  # whoever made it is about to write who it is
                elif record := self._take(file, made=made, waited=waited):
                    stack.pop_all()
                    return file, record

    def _open(self) -> tuple[FileIO, bool]:
        """Open the file; also whether it was made, which of any number of machines only one does."""
        flags = os.O_RDWR | os.O_NOFOLLOW
        try:
            while True:
                with suppress(FileExistsError):
                    made = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                    return os.fdopen(made, "r+b", buffering=0), True
                with suppress(FileNotFoundError):  # its holder has just removed it
                    return os.fdopen(os.open(self.path, flags), "r+b", buffering=0), False
        except OSError as problem:
            raise self._unusable("written", problem) from None

    def _take(self, file: FileIO, *, made: bool, waited: float) -> bytes | None:
        """Write our record where nobody alive has the lock; ``None`` where it is to be tried again."""
        flocked = self._flock(file)
        if not self._is_still(file):
            return None
        there = _contents(file)
        if not (there or made or flocked) and waited < self.watch:  # only time tells that its maker is dead
            time.sleep(self.pause)
            return None
        before, ours = Holder.written(there), Holder.this(self.host, flocked=flocked)
        here = before if before and (before.host, before.system) == (ours.host, ours.system) else None
        sure = flocked and ((made and not there) or (here is not None and here.flocked))
        if not sure:
            if here and here.lives():
                raise self._held(there)
            if there and not here:
                self._watch(there)
            if self.read() != there or not self._is_still(file):  # another newcomer was faster
                return None
        record = ours.record()
        self._write(file, record)
        if not sure:  # another may be as fast: whoever wrote last has it
            time.sleep(self.pause)
            if (now := self.read()) != record:
                raise self._held(now)
        if there:
            self.events.warning("lock.taken_over", holder=_who(there), hint="it ended without giving it back")
        return record

    def _flock(self, file: FileIO) -> bool:
        """Lock the file; false where its file system cannot."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held(_contents(file)) from None
        except OSError as problem:
            if problem.errno not in _NO_FLOCK:
                raise self._unusable("locked", problem) from None
            return False
        return True

    def _is_still(self, file: FileIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _watch(self, record: bytes) -> None:
        """Return once the holder in *record*, on another machine, is known to be dead or has ended."""
        self.events.info("lock.watched", holder=_who(record), seconds=self.watch)
        first, end = self._look(), time.monotonic() + self.watch
        while time.monotonic() < end:
            time.sleep(self.pause)
            if (now := self._look()) is None:
                return
            if now != first:
                raise self._held(now[1])

    def _look(self) -> tuple[int, bytes] | None:
        """The file's time and contents; opened anew, since NFS answers from memory about what is open."""
        try:
            with self.path.open("rb", buffering=0) as file:
                return os.fstat(file.fileno()).st_mtime_ns, _contents(file)
        except FileNotFoundError:
            return None

    def read(self) -> bytes:
        """What the file at our path says now; nothing where there is none."""
        look = self._look()
        return look[1] if look else b""

    def keep(self, file: FileIO, record: bytes, ended: threading.Event) -> None:
        """Renew the file's time until *ended*; a disk that fails must not end the run."""
        while not ended.wait(self.beat):
            with suppress(OSError):
                os.utime(file.fileno())
                if (now := self.read()) != record:
                    self.events.error("lock.lost", to=_who(now), hint="stop one of the two runs")
                    return

    def _write(self, file: FileIO, record: bytes) -> None:
        try:
            os.pwrite(file.fileno(), record, 0)
            os.ftruncate(file.fileno(), len(record))
            os.fsync(file.fileno())
        except OSError as problem:
            with suppress(OSError):
                self.path.unlink()
            raise self._unusable("written", problem) from None

    def _held(self, record: bytes) -> HookloopError:
        return HookloopError(
            f"{self.path}: another run writes here: {_who(record)}; "
            f"wait for it, stop it, or choose another {self.option}"
        )

    def _unusable(self, what: str, problem: OSError) -> HookloopError:
        remedy = (
            "make room" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else f"choose another {self.option}"
        )
        return HookloopError(f"{self.path}: cannot be {what} ({problem.strerror}); {remedy}")


def _contents(file: FileIO) -> bytes:
    return os.pread(file.fileno(), _MOST_BYTES, 0)


def _who(record: bytes) -> str:
    return str(Holder.written(record) or "a process that has not said which")
