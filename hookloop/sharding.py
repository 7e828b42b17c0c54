"""Tensors of which every rank holds a part: their parts, and the whole. All of it is idle where there are none."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard, cast

import torch

from hookloop.snapshot import replaced, tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.distributed.tensor import DTensor


def is_shard(tensor: object) -> TypeGuard[DTensor]:
    """Whether other ranks hold the rest of *tensor*; nothing is imported to find out."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """Give what this rank holds of *tensor*, in the same memory; all of it where it is no shard."""
    if not is_shard(tensor):
        return tensor
    part: Tensor = cast("DTensor", tensor.detach()).to_local()
    return part


def whole(tensor: Tensor) -> Tensor:
    """Put *tensor* together; of a shard every rank has to ask."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Give this rank's shard of a whole *tensor*, divided as *like* is; nobody is asked."""
    if not is_shard(like) or is_shard(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    there = tensor.to(like.device, like.dtype)
    shard = distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
    return shard.clone()  # or it would keep the whole alive


def gathered(state: object, *, keep: bool) -> object:
    """Copy plain containers and the tensors in them, every shard put together; every rank has to ask, for the same.

    The copies are on the CPU, each made while the caller waits, so that no GPU ever holds all of them. A tensor that
    occurs twice is copied once.

    :param keep: whether this rank needs them; others get empty tensors instead.
    """
    copies: dict[int, Tensor] = {}
    tensors = tensors_in(state)
    for tensor in tensors:
        if id(tensor) not in copies:
            copies[id(tensor)] = _copy_of(tensor.detach(), keep=keep)
    return replaced(state, (copies[id(tensor)] for tensor in tensors))


def _copy_of(tensor: Tensor, *, keep: bool) -> Tensor:
    if not is_shard(tensor):
        return tensor.to("cpu", copy=True) if keep else tensor.new_empty(0)
    found = whole(tensor)  # new already
    return found.cpu() if keep else found.new_empty(0)


@contextmanager
def holding(weights: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Have *weights* hold what *others* hold for a while, then again what they held, bit for bit.

    By pointers, without a copy; but what puts shards together knows their memory, so those are copied.
    """
    shards = [(own_part(w), own_part(o)) for w, o in zip(weights, others, strict=True) if is_shard(w)]
    pointed = [(w, o) for w, o in zip(weights, others, strict=True) if not is_shard(w)]
    before = [part.clone() for part, _ in shards], [weight.data for weight, _ in pointed]
    try:
        _copy([part for part, _ in shards], [other for _, other in shards])
        for weight, other in pointed:
            weight.data = other
        yield
    finally:
        _copy([part for part, _ in shards], before[0])
        for (weight, _), data in zip(pointed, before[1], strict=True):
            weight.data = data


def kept(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Have the shards in a state dict, made within :func:`holding`, stay what they are afterwards."""
    for name, tensor in state.items():
        if is_shard(tensor):
            state[name] = tensor.clone()
    return state


@torch.no_grad()
def _copy(to: list[Tensor], tensors: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, tensors)
