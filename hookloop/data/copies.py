"""Batches on their way to the device that learns, which never waits for them where it can be helped."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

import torch
from attrs import AttrsInstance, evolve, fields
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

B = TypeVar("B", bound=AttrsInstance)


def copied_ahead(batches: Iterator[B], place: torch.device, device: torch.device) -> Iterator[B]:
    """Bring *batches*, whose tensors are at *place*, to *device*.

    To a GPU they are copied from pinned memory on a side stream, one batch ahead of the one that is learnt.
    """
    if place.type == device.type:
        return batches
    if device.type != "cuda":
        return (moved(batch, device) for batch in batches)
    return _streamed(batches, device)


def moved(batch: B, device: torch.device) -> B:
    """Copy every tensor of *batch* to *device*."""
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _streamed(batches: Iterable[B], device: torch.device) -> Iterator[B]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: deque[B] = deque()
    for batch in batches:
        pinned = _each(batch, Tensor.pin_memory)  # which is the tensor itself where it is pinned already
        with torch.cuda.stream(stream):
            ahead.append(moved(pinned, device))
        if len(ahead) > 1:
            yield _arrived(ahead.popleft(), stream, device)
    while ahead:
        yield _arrived(ahead.popleft(), stream, device)


def _arrived(batch: B, stream: torch.cuda.Stream, device: torch.device) -> B:
    """Let the current stream wait for the copies, and keep their memory until it has used them."""
    current = torch.cuda.current_stream(device)
    # The wait also covers the batch copied after this one; copies are short beside a training step.
    current.wait_stream(stream)
    for tensor in _tensors(batch).values():
        tensor.record_stream(current)
    return batch


def _each(batch: B, change: Callable[[Tensor], Tensor]) -> B:
    changed = {name: change(tensor) for name, tensor in _tensors(batch).items()}
    return evolve(batch, **changed)  # type: ignore[misc]  # B is bound to a protocol, not to a class


def _tensors(batch: AttrsInstance) -> dict[str, Tensor]:
    values = {attribute.name: getattr(batch, attribute.name) for attribute in fields(type(batch))}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
