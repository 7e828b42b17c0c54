"""A moving average of the weights, lent to validation and inference."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from attrs import Attribute, define, field, fields
from attrs.validators import and_, ge, lt, optional

from hookloop.averaging import exponent, power_decay
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from hookloop.core import Run


def _is_a_width(_instance: object, _attribute: Attribute[float | None], value: float) -> None:
    exponent(value)


def _stands_alone(instance: EMA, _attribute: Attribute[float | None], _value: float) -> None:
    defaults = fields(EMA)
    for option in (defaults.decay, defaults.faster_decay_at_start):
        if getattr(instance, option.name) != option.default:
            raise ValueError(f"{option.name} and sigma_rel: two kinds of average; give one of them")


@define(eq=False)
class EMA:
    """Average the weights as they move; validate and infer with the average.

    The average is exponential, or with ``sigma_rel`` a power function of time (Karras et al. 2024, see
    :mod:`hookloop.averaging`). Several run side by side as ``ema``, ``ema@slow`` and so on; one of them is lent.

    Parameters that are trained are averaged, buffers stay as they are. One foreach kernel a step, no wait
    for the device; lending moves pointers, so no second model is kept and nothing is copied.
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
        default=True,
        alias="validate",
        metadata=doc("lend the average to validation and inference", learned=True),
    )
    sigma_rel: float | None = field(
        default=None,
        validator=optional(and_(_is_a_width, _stands_alone)),
        metadata=doc(
            "relative width of a power-function profile instead of a decay, such as 0.1; above 0 and below 12**-0.5",
            learned=True,
        ),
    )
    name: str = field(default="ema", init=False)
    gamma: float | None = field(default=None, init=False)
    """The exponent of the power-function profile."""
    updates: int = field(default=0, init=False)
    names: list[str] = field(factory=list, init=False)
    every_name: list[str] = field(factory=list, init=False)
    """Those and the further names of weights that are shared."""
    weights: list[Tensor] = field(factory=list, init=False)
    averages: list[Tensor] = field(factory=list, init=False)
    _parts: tuple[list[Tensor], list[Tensor]] = field(factory=lambda: ([], []), init=False)
    """What this rank holds of the averages and of the weights: all of them, unless they are sharded."""
    _untracked: AbstractContextManager[None] = field(init=False, repr=False)
    _foreach_lerp: Callable[[list[Tensor], list[Tensor], float], None] = field(init=False, repr=False)

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Start from the model's own weights.

        :raises HookloopError: where several averages are to be validated with.
        """
        import torch

        from hookloop.sharding import own_part

        self.name = next(name for name, plugin in run.plugins.items() if plugin is self)
        _expect_one_lent(run.plugins)
        # looked up once: import and a new context would take 5 µs a step
        self._untracked, self._foreach_lerp = torch.no_grad(), torch._foreach_lerp_
        trained = _trained(run.task.model)
        named = run.task.model.named_parameters(remove_duplicate=False)
        self.names = list(trained)
        self.every_name = [name for name, p in named if p.requires_grad]
        self.weights = list(trained.values())
        self.averages = [p.detach().clone() for p in self.weights]
        self._parts = [own_part(a) for a in self.averages], [own_part(w) for w in self.weights]
        self.updates = 0
        self.gamma = None if self.sigma_rel is None else exponent(self.sigma_rel)

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """Before the first update the average is the model, also one restored from a run without averages.

        :raises HookloopError: where other weights are trained than those that are averaged.
        """
        self._expect_the_same(_trained(run.task.model))
        if self.updates == 0:
            for average, weight in zip(self.averages, self.weights, strict=True):
                average.copy_(weight.detach())

    def _expect_the_same(self, trained: Mapping[str, Tensor]) -> None:
        odd = [f"{name} is trained no more" for name in self.names if name not in trained]
        odd += [f"{name} is trained now" for name in trained if name not in self.names]
        if odd:
            raise HookloopError(
                f"{self.name}: expected to average the weights that were trained at the start, found that "
                f"{'; '.join(odd[:3])}; freeze and free weights before the run, such as in make_task"
            )

    @hookimpl
    def after_batch(self) -> None:
        """Move every average towards its weight: a += (1 - decay) (w - a)."""
        self.updates += 1
        with self._untracked:
            self._foreach_lerp(*self._parts, 1.0 - self.decay_now())

    def decay_now(self) -> float:
        """The decay of update number ``updates``."""
        if self.gamma is not None:
            return power_decay(self.updates, self.gamma)
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
        from hookloop.sharding import holding

        with holding(self.weights, self.averages):
            yield

    def validation_weights(self, model: nn.Module) -> Mapping[str, Tensor] | None:
        """The model's state dict as validation sees it; ``None`` if it sees the raw weights."""
        return self.averaged_weights(model) if self.validate_with else None

    def averaged_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Give the model's state dict with the averages in it, under every name of a shared weight."""
        from hookloop.sharding import holding, kept

        with holding(self.weights, self.averages):
            return kept(model.state_dict())

    def state_dict(self) -> dict[str, object]:
        """The averages by parameter name, and how many updates made them."""
        return {"updates": self.updates, "averages": dict(zip(self.names, self.averages, strict=True))}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over saved averages, in place.

        :raises HookloopError: naming the first ones that are missing or of another shape; nothing is changed then.
        """
        from hookloop.sharding import part_of

        saved = cast("Mapping[str, Tensor]", state["averages"])
        own = dict(zip(self.names, self.averages, strict=True))
        odd = [f"{name} is missing" for name in own if name not in saved]
        odd += [
            f"{name} is {tuple(saved[name].shape)} there, {tuple(average.shape)} here"
            for name, average in own.items()
            if name in saved and saved[name].shape != average.shape
        ]
        if odd:
            raise HookloopError(
                f"{self.name}: saved averages of other weights: {'; '.join(odd[:3])}; expected those trained here"
            )
        for name, average in own.items():
            average.copy_(part_of(saved[name], average))
        self.updates = int(state["updates"])  # type: ignore[call-overload]

    def average_facts(self) -> dict[str, object]:
        """How the averages came about, for the files that hold them: see ``hookloop ema reconstruct``."""
        return {"sigma_rel": self.sigma_rel, "updates": self.updates, "names": list(self.every_name)}


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained; one that is shared stands under its first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _expect_one_lent(plugins: Mapping[str, object]) -> None:
    lent = [name for name, plugin in plugins.items() if isinstance(plugin, EMA) and plugin.validate_with]
    if len(lent) > 1:
        options = ", ".join(f"{name}.validate: false" for name in lent[1:])
        raise HookloopError(
            f"{' and '.join(lent)}: each is to be validated with, expected one average; set {options}"
        )
