"""Forecasts: a diffusion model that turns the present state into the next one, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field
from attrs.validators import ge, optional

from hookloop.data.options import StaticConfig, are_split_names, is_duration, minutes
from hookloop.diffusion_options import SolverConfig
from hookloop.hookspecs import hookimpl
from hookloop.plugins.forecast.options import ModelConfig, StatesConfig  # noqa: TC001 - types of options
from hookloop.settings import doc

if TYPE_CHECKING:
    from attrs import Attribute

    from hookloop.core import Run
    from hookloop.task import Task


def _is_step(instance: object, attribute: Attribute[str], value: str) -> None:
    is_duration(instance, attribute, value)
    if not minutes(value):
        raise ValueError(f"expected a duration longer than nothing, found {value}")


@define(eq=False)
class Forecast:
    """Learn p(next state | state, forcing) from single steps, and generate ensembles of many steps from it.

    Sources: Price et al. 2023 (GenCast, arXiv:2312.15796), which learns the normalised difference from the
    present state by the denoising loss of Karras et al. 2022 (arXiv:2206.00364).
    """

    train: StatesConfig = field(metadata=doc("the states whose steps are learnt", learned=True))
    model: ModelConfig = field(metadata=doc("the network and what it sees", learned=True))
    validation: StatesConfig | None = field(
        default=None, metadata=doc("the states that are only looked at", learned=True)
    )
    validation_sets: dict[str, StatesConfig] = field(
        factory=dict,
        validator=are_split_names,
        metadata=doc("further states that are only looked at, by name", learned=True),
    )
    step: str | None = field(
        default=None,
        validator=optional(_is_step),
        metadata=doc(
            "from a state to the next; the shortest distance between times of the training split if unset",
            learned=True,
            example="6h",
        ),
    )
    statics: list[StaticConfig] = field(
        factory=list, metadata=doc("fields that do not change, such as terrain", learned=True)
    )
    fill: dict[str, float] = field(
        factory=dict, metadata=doc("by variable, what stands in for missing values", learned=True)
    )
    sampler: SolverConfig = field(factory=SolverConfig, metadata=doc("how each step is generated"))
    n_forward_steps: int = field(
        default=4,
        validator=ge(1),
        metadata=doc("steps of a window, which are held in memory together", learned=True),
    )
    windows_per_start: int = field(
        default=1,
        validator=ge(1),
        metadata=doc("windows of a forecast; each goes on where the one before it ends", learned=True),
    )
    starts: int | None = field(
        default=None,
        validator=optional(ge(1)),
        metadata=doc(
            "most times from which forecasts start, spread over the split; null for all that can be scored",
            learned=True,
        ),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse options of variables that the model does not have."""
        if unknown := [name for name in self.fill if name not in self.model.variables]:
            raise ValueError(
                f"fill: {', '.join(unknown)} neither state nor forcing of the model; "
                f"expected some of {', '.join(self.model.variables)}"
            )

    @property
    def horizon(self) -> int:
        """Steps of a whole forecast."""
        return self.n_forward_steps * self.windows_per_start

    @hookimpl
    def make_task(self, run: Run) -> Task:
        """Open the data, then build the network for it."""
        from hookloop.plugins.forecast.task import make_task

        return make_task(self, run)
