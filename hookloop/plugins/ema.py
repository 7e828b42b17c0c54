"""An exponential moving average of the weights, lent to validation and inference."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from attrs import define, field
from attrs.validators import and_, ge, lt

from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from torch import Tensor, nn

    from hookloop.core import Run


@define(eq=False)
class EMA:
    """Average the weights as they move; validate and infer with the average.

    Parameters that are trained are averaged, buffers stay as they are. One foreach kernel a step, no wait
    for the device; lending swaps pointers, so no second model is kept and nothing is copied.
    """

    decay: float = field(
        default=0.9999,
        validator=and_(ge(0.0), lt(1.0)),
        metadata=doc("how much of the old average stays at each step", learned=True),
    )
    faster_decay_at_start: bool = field(
        default=True, metadata=doc("let the n-th decay be no more than (1+n)/(10+n)", learned=True)
    )
    validate_with: bool = field(
        default=True, alias="validate", metadata=doc("lend the average to validation and inference")
    )
    updates: int = field(default=0, init=False)
    names: list[str] = field(factory=list, init=False)
    weights: list[Tensor] = field(factory=list, init=False)
    averages: list[Tensor] = field(factory=list, init=False)

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Start from the model's own weights."""
        trained = [(name, p) for name, p in run.task.model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.weights = [p for _, p in trained]
        self.averages = [p.detach().clone() for p in self.weights]
        self.updates = 0

    @hookimpl
    def before_epoch(self) -> None:
        """Before the first update the average is the model, also one restored from a run without averages."""
        if self.updates == 0:
            for average, weight in zip(self.averages, self.weights, strict=True):
                average.copy_(weight.detach())

    @hookimpl
    def after_batch(self) -> None:
        """Move every average towards its weight: a += (1 - decay) (w - a)."""
        import torch

        self.updates += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1.0 - self.decay_now())

    def decay_now(self) -> float:
        """The decay of update number ``updates``."""
        if self.faster_decay_at_start:
            return min(self.decay, (1 + self.updates) / (10 + self.updates))
        return self.decay

    @hookimpl(wrapper=True)
    def validate(self) -> Generator[None, list[object], list[object]]:
        """Validate with the average."""
        with self.lent():
            return (yield)

    @hookimpl(wrapper=True)
    def infer(self) -> Generator[None, list[object], list[object]]:
        """Infer with the average."""
        with self.lent():
            return (yield)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Have the model hold the averages for a while, if it is to be validated with them."""
        if not self.validate_with:
            yield
            return
        with self._swapped():
            yield

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for weight, average in zip(self.weights, self.averages, strict=True):
            weight.data, average.data = average.data, weight.data

    def validation_weights(self, model: nn.Module) -> Mapping[str, Tensor] | None:
        """The model's state dict as validation sees it; ``None`` if it sees the raw weights."""
        return self.averaged_weights(model) if self.validate_with else None

    def averaged_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Give the model's state dict with the averages in it, under every name of a shared weight."""
        with self._swapped():
            return model.state_dict()

    def state_dict(self) -> dict[str, object]:
        """The averages by parameter name, and how many updates made them."""
        return {"updates": self.updates, "averages": dict(zip(self.names, self.averages, strict=True))}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over saved averages, in place."""
        saved = cast("Mapping[str, Tensor]", state["averages"])
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(saved[name])
        self.updates = int(state["updates"])  # type: ignore[call-overload]
