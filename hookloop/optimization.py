"""How weights move: one optimizer step from one loss, with precision, clipping and accumulation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

_AS_IT_IS = nullcontext()


@define(eq=False)
class Optimization:
    """The optimizer and what belongs to a step of it; one state dict for all."""

    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: torch.dtype = torch.float32
    clip_norm: float | None = None
    accumulate: int = 1
    scale: float = field(default=1.0, init=False)
    """What trials and plateaus have made of the learning rate: the schedule's rate is multiplied by it."""
    pending: int = field(default=0, init=False)
    """Batches whose gradients wait for the next update."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves, in its own order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def trained(self) -> list[str]:
        """The names of the parameters, in the optimizer's order, as far as it knows them."""
        return [name for group in self.optimizer.param_groups for name in group.get("param_names", ())]

    @property
    def learning_rate(self) -> float:
        """The rate of the last update, or of the next one if it has been set since."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model runs: bfloat16 where that is the precision."""
        if self.precision == torch.float32:
            return _AS_IT_IS  # entering torch's own context to do nothing takes 6 µs
        return torch.autocast(self.device.type, self.precision)

    def update(self, loss: Tensor) -> Mapping[str, Tensor]:
        """Move the weights down the gradient of *loss*, or only add to it while accumulating.

        :returns: the gradient's norm before clipping, on the device, where it is clipped.
        """
        (loss / self.accumulate if self.accumulate > 1 else loss).backward()  # type: ignore[no-untyped-call]
        self.pending += 1
        if self.pending < self.accumulate:
            return {}
        self.pending = 0
        measured = {}
        if self.clip_norm is not None:
            measured["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return measured

    def state_dict(self) -> dict[str, object]:
        """The moments, and the gradients that wait: numbers only, the names are :attr:`trained`."""
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group.pop("param_names", None)
        state: dict[str, object] = {
            "optimizer": optimizer,
            "scale": self.scale,
            "pending": self.pending,
        }
        if self.pending:
            state["gradients"] = [p.grad for p in self.parameters]
        return state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over the moments, the rates and the waiting gradients; other options stay as configured."""
        options = [
            {name: value for name, value in group.items() if name not in ("params", "param_names", "lr")}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        for group, configured in zip(self.optimizer.param_groups, options, strict=True):
            group.update(configured)  # torch has just put the saved ones there
        self.scale = float(state.get("scale", 1.0))  # type: ignore[arg-type]
        self.pending = int(state["pending"])  # type: ignore[call-overload]
        self.optimizer.zero_grad(set_to_none=True)  # what waits here is not part of that state
        for p, gradient in zip(self.parameters, state.get("gradients", ()), strict=False):  # type: ignore[call-overload]
            p.grad = None if gradient is None else gradient.to(p.device)
