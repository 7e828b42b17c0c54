"""Several processes that train one model: who is who, and what they tell one another."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

from attrs import define, field, frozen

from hookloop.errors import HookloopError, PeerLost, Told

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import Tensor
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup, Work

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for one that lives and does not answer.

Rank 0 may write a checkpoint or draw figures meanwhile. A rank that has died is noticed at once.
"""
FIRST_TIMEOUT = timedelta(hours=24)
"""How long the others wait for what rank 0 does first, such as measuring terabytes."""
_SEEN_SECONDS = 1.0
"""How long whoever watches the ranks may need to see which died first."""
_SEPARATE_STORES = "torchrun on several nodes needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for that"
_PR_SET_PDEATHSIG = 1


@frozen
class Stop:
    """Why the run was asked to stop, and what the process should answer."""

    why: str
    code: int = 0


@define
class Requests:
    """What somebody asks of the loop: to stop, to save the state.

    A signal may ask between any two instructions, so each is set by itself.
    """

    stop: Stop | None = None
    save: str | None = None
    """Why the state is to be saved."""


@frozen
class Share:
    """Which rows of every batch are a rank's own: those whose number modulo *world* is *rank*."""

    rank: int = 0
    world: int = 1

    def rows(self, size: int) -> range:
        """Number the rows of a batch of *size* that are read here: its own, or the first where there is none.

        So every rank has something to learn from in every step; :meth:`weight` is 0 where it is not its own.
        """
        return range(self.rank, size, self.world) or range(1)

    def weight(self, size: int) -> float:
        """How much a mean over :meth:`rows` counts: the mean over the ranks of weight · mean is that of the batch."""
        return len(range(self.rank, size, self.world)) * self.world / size


@define(eq=False)
class Ranks:
    """The processes of a run. This class is the trivial case, one process; :func:`joined` gives others."""

    rank: int = 0
    """Which of them this one is; 0 leads: it logs, shows progress and owns the files."""
    world: int = 1
    """How many there are."""
    local: int = 0
    """Which of those on this host this one is."""

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """Which rows of every batch are its own."""
        return Share(self.rank, self.world)

    def exchange(self, requests: Requests) -> Requests:
        """Send these *requests*, and give what all ranks sent at the call before: nobody waits for the network.

        Every rank calls it as often. Of several requests to stop that of the lowest rank counts.
        """
        return requests

    def agree(self, requests: Requests) -> Requests:
        """Give at once what all ranks ask for, also in the last :meth:`exchange`. Every rank calls it as often."""
        return requests

    def gather(self, value: T) -> list[T]:
        """Give every rank's *value* to every rank, by rank."""
        return [value]

    def broadcast(self, value: T) -> T:
        """Give rank 0's *value* to every rank."""
        return value

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let rank 0 do first what others then find done, such as measuring data that is remembered."""
        yield

    def fail(self, error: BaseException) -> None:
        """Tell people of an *error* here before anything is closed, which could wait for other ranks."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that the environment tells of (``RANK``, ``WORLD_SIZE`` …, as torchrun sets them).

    They part when all have come to a good end. After an error nothing is said to the others any more, since one
    may be gone and another would wait for ever; they notice. What has gone wrong is told once.

    :raises Told: after an error, with the exit code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    ranks = _join()
    try:
        yield ranks
        ranks.part()
    except BaseException as error:
        with _undisturbed() as asked:
            raise Told(ranks.tell(error, asked)) from error


def is_restarted() -> bool:
    """Whether torch's launcher has started this process in the place of one that crashed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def leave(code: int) -> NoReturn:
    """End this process at once: destructors of what ranks share could wait for one that is gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def is_joined() -> bool:
    """Whether the processes have not parted: what belongs to them may wait for ever when it is destroyed."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


def _join() -> Joined:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise HookloopError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)}: not set; expected what torchrun "
            "sets; use hookloop run --nproc N or torchrun, or unset WORLD_SIZE"
        )
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _stop_with_parent()  # before what takes seconds

    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    rank, world, local = (int(os.environ[name]) for name in names[:3])
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        everything, *_ = next(rendezvous("env://", timeout=TIMEOUT))
        store = PrefixStore(f"hookloop/{_attempt()}", everything)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
        control = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        hint = f" after a restart; {_SEPARATE_STORES}" if is_restarted() else ""
        raise PeerLost(f"rank {rank} of {world}: cannot meet the others at {where}{hint}: {error}") from error
    return Joined(rank, world, local, control=control, store=store)


def _attempt() -> str:
    """Tell this meeting from earlier ones of the same launcher, whose store still holds their addresses.

    Several nodes may count differently, so their launchers must have a store for each meeting.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"


def _stop_with_parent() -> None:
    """Be interrupted, and so stop with the state saved, where the launcher is killed. Linux only."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


@define(eq=False)
class Joined(Ranks):
    """Several processes, which tell one another small things through gloo, apart from the gradients."""

    control: ProcessGroup = field(kw_only=True)
    store: Store = field(kw_only=True)
    """Where a rank leaves what others may read later or never."""
    _sent: tuple[Work, Tensor, Requests] | None = field(init=False, default=None)
    """The request that is under way."""
    _stop: Stop | None = field(init=False, default=None)
    """What has been agreed on, which is told once."""
    _failure: tuple[BaseException, int] | None = field(init=False, default=None)
    """What has been told of this rank, and its exit code."""

    def exchange(self, requests: Requests) -> Requests:
        """Send *requests*, without those that have just been agreed on, and give what was agreed on."""
        agreed = self._receive()
        self._send(Requests(requests.stop, None if agreed.save else requests.save))
        return agreed

    def agree(self, requests: Requests) -> Requests:
        """Ask anew: what is under way is asked for still."""
        self._settle()
        self._send(Requests(requests.stop, requests.save))
        return self._receive()

    def _send(self, requests: Requests) -> None:
        """Begin to find the greatest of every rank's numbers; a lower rank's are greater."""
        import torch
        from torch.distributed import AllreduceOptions, ReduceOp

        priority = self.world - self.rank
        stops, saves = requests.stop is not None, requests.save is not None
        numbers = torch.tensor([priority * stops, not stops, priority * saves])
        options = AllreduceOptions()
        options.reduceOp = ReduceOp(ReduceOp.MAX)
        try:
            self._sent = (self.control.allreduce([numbers], options), numbers, requests)
        except RuntimeError as error:
            raise self._lost() from error

    def _settle(self) -> tuple[Tensor, Requests] | None:
        """Wait until what is under way has arrived, and give it with what was asked for here."""
        if self._sent is None:
            return None
        (work, numbers, requests), self._sent = self._sent, None
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost() from error
        return numbers, requests

    def _receive(self) -> Requests:
        """Give what all ranks have sent; only if somebody has asked for something, ask why."""
        settled = self._settle()
        if settled is None:
            return Requests()
        numbers, requests = settled
        stops, somebody_does_not, saves = numbers.tolist()
        if stops and self._stop is None:
            self._stop = self._told(requests.stop, self.world - stops, by_all=not somebody_does_not)
        save = self._from(self.world - saves, requests.save) if saves else None
        return Requests(self._stop if stops else None, save)

    def _told(self, own: Stop | None, rank: int, *, by_all: bool) -> Stop | None:
        stop = self._from(rank, own)
        return stop if stop is None or by_all else Stop(f"{stop.why} (rank {rank})", stop.code)

    def _from(self, rank: int, value: T) -> T:
        """Give *rank*'s value to every rank."""
        from torch import distributed

        box = [value]
        try:
            distributed.broadcast_object_list(box, src=rank, group=self.control)
        except RuntimeError as error:
            raise self._lost() from error
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Give every rank's *value* to every rank, by rank."""
        from torch import distributed

        values: list[T] = [value] * self.world
        try:
            distributed.all_gather_object(values, value, group=self.control)
        except RuntimeError as error:
            raise self._lost() from error
        return values

    def broadcast(self, value: T) -> T:
        """Give rank 0's *value* to every rank."""
        return self._from(0, value)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let rank 0 do first what others then find done; where it refuses, they do not begin.

        :raises Told: where rank 0 has raised a :class:`HookloopError`.
        """
        if not self.leads:
            code = self._after_leader(None)
            if code is not None:
                raise Told(code)
            yield
            return
        try:
            yield
        except HookloopError as error:
            told = Told(self.tell(error))  # before others end, since all are ended when the first is
            self._after_leader(told.code)
            raise told from error
        self._after_leader(None)

    def _after_leader(self, code: int | None) -> int | None:
        from torch.distributed import BarrierOptions

        options = BarrierOptions()
        options.timeout = FIRST_TIMEOUT
        try:
            self.control.barrier(options).wait()
        except RuntimeError as error:
            raise self._lost() from error
        return self._from(0, code)

    def part(self) -> None:
        """Wait for the others, then let go of them."""
        from torch import distributed

        with _undisturbed():
            self.gather(None)
            distributed.destroy_process_group()

    def _lost(self) -> PeerLost:
        return PeerLost(
            f"rank {self.rank} of {self.world}: lost another rank, which has ended or has not answered for "
            f"{TIMEOUT.seconds // 60} minutes; its own error is above or in its log; "
            "run the same command to go on from the last checkpoint"
        )

    def fail(self, error: BaseException) -> None:
        """Tell people of an *error* here, unless it is a consequence of another rank's."""
        if not isinstance(error, Told) and not _is_loss(error):
            self._failure = error, self.tell(error)

    def tell(self, error: BaseException, asked: Collection[int] = ()) -> int:
        """Tell people what has ended this rank, unless it has been told, and give the exit code.

        The same mistake on several ranks is told by the first of them, and so is the first crash; of another
        crash a line is told, of its consequences nothing.

        :param asked: grows with every request to end this process.
        """
        if self._failure is not None and error is self._failure[0]:
            return self._failure[1]
        if isinstance(error, Told):
            return error.code
        if isinstance(error, KeyboardInterrupt):
            return 128 + signal.SIGINT
        return self._tell_loss(asked) if _is_loss(error) else self._tell_own(error)

    def _tell_own(self, error: BaseException) -> int:
        from hashlib import blake2b

        code = error.code if isinstance(error, HookloopError) else 1
        if isinstance(error, HookloopError):
            text = str(error)
        else:
            text = "".join([f"rank {self.rank} of {self.world}:\n", *traceback.format_exception(error)])
            if not self._is_first("crash"):
                text = f"rank {self.rank} of {self.world}: {' '.join(repr(error).split())}"
        if self._is_first(f"told/{blake2b(text.encode(), digest_size=16).hexdigest()}"):
            _say(text)
        with suppress(RuntimeError):
            self.store.set("code", str(code))
        return code

    def _tell_loss(self, asked: Collection[int]) -> int:
        """Take over the exit code of whoever has told why; else tell it, unless this process is to end first."""
        with suppress(RuntimeError):
            if self.store.check(["code"]):
                return int(self.store.get("code"))
        end = time.monotonic() + _SEEN_SECONDS
        while not asked and time.monotonic() < end:
            time.sleep(0.01)
        if not asked and self._is_first("lost"):
            _say(str(self._lost()))
        return PeerLost.code

    def _is_first(self, what: str) -> bool:
        """Whether no other rank has said *what*; this one has, from now on."""
        try:
            return bool(self.store.add(what, 1) == 1)
        except RuntimeError:  # whoever keeps the store is gone
            return True


@contextmanager
def _undisturbed() -> Iterator[Collection[int]]:
    """Only note requests to end at the very end: one may come by several ways, and the last one late.

    After an error this stays so: the process is about to answer.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in numbers}
    yield asked
    for number, handler in before.items():
        signal.signal(number, handler or signal.SIG_DFL)


def _is_loss(error: BaseException) -> bool:
    """Whether another rank is behind it; gloo's own errors have no class."""
    if isinstance(error, PeerLost):
        return True
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201
