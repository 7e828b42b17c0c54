"""Torch's optimizers without torch's compiler."""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def eager(kind: type[Kind]) -> type[Kind]:
    """Make *kind* an optimizer that does not import ``torch._dynamo``, which takes a third of the start of a run.

    Torch wraps these methods for a compiler that traces them. Nobody compiles them here, so what is wrapped is
    called itself; a method that is not wrapped, in another version of torch, stays as it is. There is one such class
    of each *kind*, and its optimizers can be pickled.
    """
    return cast("type[Kind]", _made(kind))  # type: ignore[arg-type]  # a class can be hashed


@cache
def _made(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods: dict[str, Callable[..., object]] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    methods["__reduce__"] = lambda self: (_blank, (kind,), self.__getstate__())  # by the name of its kind
    return type(kind.__name__, (kind,), methods)


def _blank(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One whose state is still to be set."""
    made = _made(kind)  # type: ignore[arg-type]
    return made.__new__(made)
