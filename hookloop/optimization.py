"""How weights move: one optimizer step from one loss, with precision, clipping and accumulation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from attrs import define, field

from hookloop.sharding import whole
from hookloop.strategies import Alone

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from hookloop.core import Run
    from hookloop.graphs import Gradients
    from hookloop.strategies import Strategy
    from hookloop.task import Batch

_AS_IT_IS = nullcontext()


@define(eq=False)
class Optimization:
    """The optimizer and what belongs to a step of it; one state dict for all."""

    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: torch.dtype = torch.float32
    clip_norm: float | None = None
    accumulate: int = 1
    strategy: Strategy = field(factory=Alone)
    """How the processes of the run learn together; the plugin ``distributed`` sets it."""
    scale: float = field(default=1.0, init=False)
    """What trials and plateaus have made of the learning rate: the schedule's rate is multiplied by it."""
    pending: int = field(default=0, init=False)
    """Batches whose gradients wait for the next update."""
    repeated: Gradients | None = field(default=None, init=False)
    """What replays forward and backward, if they are to be replayed."""

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

    def losses(self, run: Run, batch: Batch) -> Mapping[str, Tensor]:
        """Give the task's losses of *batch* in the precision asked for; of several ranks, what this one adds."""
        with self.autocast():
            return self.strategy.losses(run, batch, last=self.pending + 1 >= self.accumulate)

    def update(self, loss: Tensor) -> Mapping[str, Tensor]:
        """Move the weights down the gradient of *loss*, or only add to it while accumulating.

        :param loss: one of :meth:`losses`, or made of it.
        :returns: the gradient's norm before clipping, on the device, where it is clipped.
        """
        self.strategy.backward(loss / self.accumulate if self.accumulate > 1 else loss)
        return self._move()

    def learn(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        """Learn *batch*: :meth:`losses` and :meth:`update`, or the same replayed.

        :returns: the means over the whole batch, and what the update has measured; on the device.
        """
        if self.repeated is not None:
            return {**self.repeated(run, batch), **self._move()}
        losses = self.losses(run, batch)
        norms = self.update(losses["loss"])
        return {**self.strategy.means(losses), **norms}

    def _move(self) -> Mapping[str, Tensor]:
        """Take the optimizer's step with the gradients there are, unless more are to be added."""
        self.pending += 1
        if self.pending < self.accumulate:
            return {}
        self.pending = 0
        measured = {}
        if self.clip_norm is not None:
            measured["grad_norm"] = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm))
        self.optimizer.step()
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad = None  # as zero_grad does, which takes 10 µs more to tell torch's profiler
        return measured

    def state_dict(self) -> dict[str, object]:
        """The moments, and this rank's gradients that wait: numbers only, the names are :attr:`trained`."""
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

    def shared_state(self) -> dict[str, object]:
        """Give :meth:`state_dict` with the gradients of all ranks, for a file; every rank has to ask."""
        state = self.state_dict()
        if self.pending:
            del state["gradients"]
            state |= self.strategy.waiting(self.parameters)
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
        for p, gradient in zip(self.parameters, self.strategy.taken(state), strict=False):
            p.grad = None if gradient is None else gradient.to(p.device)
