"""``fully_shard``: every rank holds a part of each weight, moment and average; layers are put together when needed.

With FSDP2, in place: parameters keep their names, what changes is that they are shards (see :mod:`hookloop.sharding`).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from attrs import define
from torch import Tensor, nn

from hookloop.errors import HookloopError
from hookloop.sharding import gathered, is_shard, part_of
from hookloop.snapshot import Copied, Copying
from hookloop.strategies import Gradients, Together, mean_gradients, parts_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence

    from torch.distributed.fsdp import FSDPModule

    from hookloop.distributed import Ranks


@define(eq=False)
class FullyShard(Together):
    """Every rank holds a part. Gradients are reduced with every batch, or whole ones would have to wait."""

    _parameters: Sequence[nn.Parameter]
    _units: Sequence[FSDPModule]
    """What is put together at once."""

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        bf16: bool = False,
    ) -> FullyShard:
        """Divide *model* in place, and have its *optimizer*, which has no moments yet, move the parts.

        :param bf16: send gradients in half as many bytes.
        :raises HookloopError: for a model that cannot be divided.
        """
        _expect_divisible(model)
        if optimizer.state:
            raise HookloopError(
                "distributed.strategy: fully_shard: the optimizer has moments before the first step"
            )
        before = dict(model.named_parameters())
        units = _divide(model, device, ranks.world, bf16=bf16)
        after = dict(model.named_parameters())
        parts = {id(p): after[name] for name, p in before.items()}
        for group in optimizer.param_groups:
            group["params"] = [parts[id(p)] for p in group["params"]]
        model.register_load_state_dict_pre_hook(_take_parts)  # type: ignore[no-untyped-call]
        optimizer.register_load_state_dict_pre_hook(_with_parts)
        return cls(ranks, [p for group in optimizer.param_groups for p in group["params"]], units)

    def taken(self, state: Mapping[str, object]) -> Gradients:
        """Take this rank's parts of the mean."""
        means = mean_gradients(parts_in(state))
        return [None if g is None else part_of(g, p) for g, p in zip(means, self._parameters, strict=False)]

    def gathered(self, state: dict[str, object]) -> dict[str, object]:
        """Put every shard together, on the CPU of rank 0."""
        return cast("dict[str, object]", gathered(state, keep=self.ranks.leads))

    def copying(self) -> Copying:
        """What is gathered is a copy."""
        return Copied()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Put all weights together once, instead of each layer's at every call of the model."""
        for unit in self._units:
            unit.set_reshard_after_forward(reshard_after_forward=False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self._units:
                unit.reshard()
                unit.set_reshard_after_forward(reshard_after_forward=True, recurse=False)


def _divide(model: nn.Module, device: torch.device, world: int, *, bf16: bool) -> list[FSDPModule]:
    """Divide each part of *model* that is called as a whole, and the blocks in it, and give all of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if bf16 else None)
    mesh = init_device_mesh(device.type, (world,))
    units: list[FSDPModule] = []
    for root in roots(model):
        units += [
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            for module in (*blocks(root), root)
        ]
    return units


def _expect_divisible(model: nn.Module) -> None:
    """Refuse what FSDP2 cannot divide, or would leave undivided."""
    named = list(model.named_parameters(remove_duplicate=False))
    names: dict[int, str] = {}
    divided = {id(p) for root in roots(model) for p in root.parameters()}
    for name, p in named:
        other = names.setdefault(id(p), name)
        if other != name:
            problem = f"{name} is {other} too, expected parameters that are not shared"
        elif p.ndim == 0:
            problem = f"{name} is a single number, expected at least one dimension"
        elif id(p) not in divided:
            problem = f"{name} is in no module with a forward of its own"
        else:
            continue
        raise HookloopError(
            f"distributed.strategy: fully_shard: {problem}; set distributed.strategy to replicate"
        )


def roots(module: nn.Module) -> Iterator[nn.Module]:
    """Find the topmost modules that can be called and have parameters."""
    if _is_called(module):
        yield module
    else:
        for child in module.children():
            yield from roots(child)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Find the topmost elements of lists within *module* that can be called and have parameters."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and _is_called(child):
            yield child
        else:
            yield from blocks(child)


def _is_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward and any(True for _ in module.parameters())


def _take_parts(module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
    """Before a state dict is loaded, take this rank's parts of it."""
    for name, p in module.named_parameters(remove_duplicate=False):
        if is_shard(p) and prefix + name in state:
            state[prefix + name] = part_of(state[prefix + name], p)


def _with_parts(optimizer: torch.optim.Optimizer, state: dict[str, object]) -> dict[str, object]:
    """Before an optimizer's state is loaded, take this rank's parts of what is like a parameter."""
    groups = cast("Sequence[Mapping[str, Sequence[int]]]", state["param_groups"])
    numbers = [number for group in groups for number in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    owners = dict(zip(numbers, parameters, strict=True))
    moments = cast("Mapping[int, Mapping[str, object]]", state["state"])
    return {
        **state,
        "state": {
            number: {key: _part(value, owners[number]) for key, value in of.items()}
            for number, of in moments.items()
        },
    }


def _part(value: object, like: Tensor) -> object:
    return part_of(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value
