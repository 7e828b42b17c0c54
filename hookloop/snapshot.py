"""A copy of a state in host memory, taken as fast as the memory allows, so that it can be written in peace."""

from __future__ import annotations

from collections import OrderedDict
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, cast

import torch
from attrs import define, field, frozen
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_ALIGNMENT = 64
_STAGE = 1 << 26
"""Bytes gathered on a GPU before they are copied: thousands of little copies would take several times longer."""


class Copying(Protocol):
    """Makes a state independent of what training does to it."""

    def take(self, state: Mapping[str, object]) -> tuple[dict[str, object], Callable[[], None]]:
        """Copy *state*: give the copy, in host memory, and what to call before it is read."""

    def reserve(self, state: Mapping[str, object]) -> None:
        """Make room for *state* beforehand."""


@frozen(eq=False)
class Copied:
    """Takes what is a copy already."""

    def take(self, state: Mapping[str, object]) -> tuple[dict[str, object], Callable[[], None]]:
        """Give it."""
        return dict(state), lambda: None

    def reserve(self, state: Mapping[str, object]) -> None:
        """Whoever made the copy has made room for it."""


@define(eq=False)
class Snapshots:
    """Takes one snapshot at a time, into one block of memory that is used again for the next.

    What is on a GPU goes to pinned memory without waiting for it: the copies are queued in the stream, so
    whatever changes the state afterwards comes after them. A tensor that occurs twice is copied once.
    """

    _memory: Tensor = field(factory=lambda: torch.empty(0, dtype=torch.uint8), init=False)
    _layout: list[tuple[object, ...]] = field(factory=list, init=False)
    """Type, shape, strides and device of what was copied last."""
    _copies: list[Tensor] = field(factory=list, init=False)
    _devices: set[torch.device] = field(factory=set, init=False)
    """The GPUs that something was copied from last."""
    _moves: list[Callable[[Sequence[Tensor]], None]] = field(factory=list, init=False)

    @torch.no_grad()  # a plugin's state may hold parameters
    def take(self, state: Mapping[str, object]) -> tuple[dict[str, object], Callable[[], None]]:
        """Copy *state*, whose containers are plain; the snapshot before is overwritten.

        :returns: the copy, and what to call before reading it: it waits until the copy is complete.
        """
        tensors, numbers = _distinct(tensors_in(state))
        self._make_room(tensors)
        for move in self._moves:
            move(tensors)
        complete = _completion(self._devices)
        copies = (self._copies[number] for number in numbers)
        return cast("dict[str, object]", replaced(state, copies)), complete

    def reserve(self, state: Mapping[str, object]) -> None:
        """Make room for *state* beforehand: to pin a gigabyte of memory takes longer than to copy it."""
        self._make_room(_distinct(tensors_in(state))[0])
        self._memory.zero_()  # the system gives memory only when it is written to

    def _make_room(self, tensors: Sequence[Tensor]) -> None:
        layout = [(t.dtype, t.shape, t.stride(), t.device) for t in tensors]
        if layout == self._layout:
            return
        self._devices = {t.device for t in tensors if t.is_cuda}
        pinned = bool(self._devices)
        size = sum(_room(t) for t in tensors)
        self._layout, self._copies, self._moves = [], [], []  # the old block goes before there is a new one
        if size > self._memory.numel() or pinned != self._memory.is_pinned():
            self._memory = torch.empty(0, dtype=torch.uint8)
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        stages = {
            device: torch.empty(min(size, _STAGE), dtype=torch.uint8, device=device)
            for device in self._devices
        }
        copies: dict[int, Tensor] = {}
        block = self._memory
        for part in _parts(tensors):
            places, rest = _laid_out(block, [tensors[number] for number in part])
            copies |= zip(part, places, strict=True)
            move: _Direct | _Staged = _Direct(part, places)
            stage = stages.get(tensors[part[0]].device)
            if stage is not None and len(part) > 1:
                near, free = _laid_out(stage, [tensors[number] for number in part])
                used = stage.numel() - free.numel()
                move = _Staged(_Direct(part, near), stage[:used], block[:used])
            self._moves.append(move)
            block = rest
        self._copies = [copies[number] for number in range(len(tensors))]
        self._layout = cast("list[tuple[object, ...]]", layout)


@frozen(eq=False)
class _Direct:
    """Copies some of the tensors, each to its place."""

    numbers: Sequence[int]
    places: Sequence[Tensor]

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """Queue the copies."""
        chosen = [tensors[number] for number in self.numbers]
        torch._foreach_copy_(list(self.places), chosen, non_blocking=chosen[0].is_cuda)


@frozen(eq=False)
class _Staged:
    """Gathers some of the tensors in one block of their own GPU, with a kernel or two, then copies the block."""

    gather: _Direct
    stage: Tensor
    block: Tensor

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """Queue the kernels and the copy."""
        self.gather(tensors)
        self.block.copy_(self.stage, non_blocking=True)


def _parts(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Divide the numbers of tensors into runs of one device and type, on a GPU no larger than the stage."""

    def kind(number: int) -> tuple[str, str]:
        return str(tensors[number].device), str(tensors[number].dtype)

    for _, numbers in groupby(sorted(range(len(tensors)), key=kind), kind):
        part: list[int] = []
        size = 0
        for number in numbers:
            size += _room(tensors[number])
            if part and size > _STAGE and tensors[number].is_cuda:
                yield part
                part, size = [], _room(tensors[number])
            part.append(number)
        yield part


def _room(tensor: Tensor) -> int:
    """Bytes for a tensor, aligned."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _laid_out(block: Tensor, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Lay tensors like *tensors* over *block*, one behind the other, and give the rest of it."""
    places = []
    for tensor in tensors:
        places.append(_like(tensor, block))
        block = block[_room(tensor) :]
    return places, block


def _like(tensor: Tensor, block: Tensor) -> Tensor:
    """Lay a tensor like *tensor* over the beginning of *block*.

    On the host it has a storage of its own, since files hold whole storages. It has the same strides where
    they leave no gaps, since the optimizer's kernels follow them.
    """
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=block.device)
    if block.is_cuda:
        flat = block[: tensor.nbytes].view(tensor.dtype)
        return flat.as_strided(
            tensor.shape, torch.empty_like(tensor, device="meta").stride(), flat.storage_offset()
        )
    flat = torch.frombuffer(block.numpy(), dtype=tensor.dtype, count=tensor.numel())
    return flat.as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())


def tensors_in(state: object) -> list[Tensor]:
    """Find every tensor in plain containers, in order."""
    if isinstance(state, Tensor):
        return [state]
    found: list[Tensor] = []
    if isinstance(state, dict | list | tuple | set):
        for part in state.values() if isinstance(state, dict) else state:
            if isinstance(part, Tensor):
                found.append(part)
            else:
                found += tensors_in(part)
    return found


def _distinct(found: Iterable[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Each tensor once, and for each occurrence the number of the one that it is."""
    tensors: list[Tensor] = []
    numbers: list[int] = []
    begins: dict[int, list[int]] = {}
    for tensor in found:
        known = begins.setdefault(tensor.data_ptr(), [])
        number = (
            next((number for number in known if _is_same(tensor, tensors[number])), None) if known else None
        )
        if number is None:
            number = len(tensors)
            known.append(number)
            tensors.append(tensor)
        numbers.append(number)
    return tensors, numbers


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors that begin at one address are one."""
    return one.dtype == other.dtype and one.shape == other.shape and one.stride() == other.stride()


def copied(state: Mapping[str, object]) -> dict[str, object]:
    """Copy plain containers and the tensors in them, each on its device; shards of several ranks too."""
    return cast("dict[str, object]", replaced(state, (t.detach().clone() for t in tensors_in(state))))


def replaced(state: object, copies: Iterator[Tensor]) -> object:
    """Copy plain containers, with the tensors' copies in them, which come in the order of :func:`tensors_in`."""
    if isinstance(state, Tensor):
        return next(copies)
    if isinstance(state, dict):
        items = {key: replaced(value, copies) for key, value in state.items()}
        return _ordered(state, items) if isinstance(state, OrderedDict) else items
    if isinstance(state, list | tuple | set):
        return type(state)(replaced(part, copies) for part in state)
    return state


def _ordered(
    state: OrderedDict[object, object], items: Mapping[object, object]
) -> OrderedDict[object, object]:
    """Copy what a module's state dict holds beside its items too: the versions by which old ones are upgraded."""
    copy = OrderedDict(items)
    copy.__dict__.update(state.__dict__)
    return copy


def _completion(devices: Iterable[torch.device]) -> Callable[[], None]:
    """Mark where the queues of *devices* are now: the answer waits until they have come so far."""
    events = []
    for device in devices:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        events.append(event)

    def wait() -> None:
        for event in events:
            event.synchronize()

    return wait
