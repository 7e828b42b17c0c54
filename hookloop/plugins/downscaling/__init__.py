"""Downscaling: a diffusion model that turns coarse fields into fine ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from hookloop.hookspecs import hookimpl
from hookloop.plugins.downscaling.data_options import (
    NormalizationConfig,
    PatchConfig,
    SplitConfig,
    StaticConfig,
    are_split_names,
)
from hookloop.plugins.downscaling.options import ModelConfig, SamplerConfig
from hookloop.settings import doc

if TYPE_CHECKING:
    from hookloop.core import Run
    from hookloop.task import Task


@define(eq=False)
class Downscaling:
    """Learn p(fine | coarse) from pairs of fields, and generate ensembles from it."""

    train: SplitConfig = field(metadata=doc("the pairs that are learnt", learned=True))
    model: ModelConfig = field(metadata=doc("the network and what it sees", learned=True))
    validation: SplitConfig | None = field(
        default=None, metadata=doc("the pairs that are only looked at", learned=True)
    )
    validation_sets: dict[str, SplitConfig] = field(
        factory=dict,
        validator=are_split_names,
        metadata=doc(
            "further pairs that are only looked at, by name; fields are generated for validation alone",
            learned=True,
        ),
    )
    statics: list[StaticConfig] = field(
        factory=list, metadata=doc("fine fields that do not change, such as terrain", learned=True)
    )
    patch: PatchConfig = field(
        factory=PatchConfig, metadata=doc("what is cut out of each field", learned=True)
    )
    normalization: NormalizationConfig | None = field(
        default=None,
        metadata=doc("means and stds of the inputs; from the training split if not given", learned=True),
    )
    sampler: SamplerConfig = field(factory=SamplerConfig, metadata=doc("how fields are generated"))

    @hookimpl
    def make_task(self, run: Run) -> Task:
        """Open the data, then build the network for it."""
        from hookloop.plugins.downscaling.model import make_task

        return make_task(self, run)
