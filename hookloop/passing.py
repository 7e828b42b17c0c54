"""What one rank hands to another, and to no third; both must call, in the same order.

Objects and fields on the host go through gloo, fields on GPUs through NCCL: the default group has both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_HOST = torch.device("cpu")


def send(value: object, to: int) -> None:
    """Hand *value*, pickled, to the rank *to*; tensors in it must lie on the host."""
    distributed.send_object_list([value], to, device=_HOST)


def receive(source: int) -> Any:
    """Take what the rank *source* sends."""
    found: list[object] = [None]
    distributed.recv_object_list(found, source, device=_HOST)
    return found[0]


def send_fields(fields: Mapping[str, Tensor], to: int) -> None:
    """Hand *fields* to the rank *to*, which knows their names and shapes."""
    for values in fields.values():
        distributed.send(values.contiguous(), to)


def receive_fields(like: Mapping[str, Tensor], members: int, source: int) -> dict[str, Tensor]:
    """Take fields of so many members ``[row, member, lat, lon]`` from the rank *source*.

    :param like: fields of other members of the same rows, which tell names, shapes, type and device.
    """
    found = {
        name: values.new_empty((len(values), members, *values.shape[2:])) for name, values in like.items()
    }
    for values in found.values():
        distributed.recv(values, source)
    return found
