"""A model's networks, compiled by torch where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator


def compile_networks(model: nn.Module, backend: str = "inductor") -> list[str]:
    """Have torch compile the networks in *model* once they are called; no parameter gets another name.

    Those are the outermost modules with a method forward of their own and parameters. Torch passes over its own,
    such as Sequential, where they are.

    :param backend: torch's name of what compiles.
    :returns: their names.
    :raises HookloopError: where there is none.
    """
    found = dict(_networks("", model))
    if not found:
        raise HookloopError(
            f"optimization.compile: inductor: {type(model).__name__} holds no module with parameters and a method "
            "forward that is not one of torch's; set optimization.compile=off"
        )
    for module in found.values():
        module.compile(backend=backend)
    return [name or type(model).__name__ for name in found]


def _networks(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not any(True for _ in module.parameters()):
        return
    kind = type(module)
    if kind.forward is not nn.Module.forward and not kind.__module__.startswith("torch."):
        yield name, module
        return
    for child, inner in module.named_children():
        yield from _networks(f"{name}.{child}" if name else child, inner)
