"""Downscaling: a diffusion model that turns coarse fields into fine ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import define, field
from attrs.validators import optional

from hookloop.data.options import NormalizationConfig, StaticConfig, are_split_names, is_duration
from hookloop.hookspecs import hookimpl
from hookloop.plugins.downscaling.data_options import PatchConfig, SplitConfig, TransformConfig
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
            "further pairs that are only looked at, by name; generation.sets says for which fields are generated",
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
    transforms: dict[str, TransformConfig] = field(
        factory=dict,
        metadata=doc(
            "by variable, what is done before normalising and undone after generating", learned=True
        ),
    )
    fill: dict[str, float] = field(
        factory=dict, metadata=doc("by variable, what stands in for missing values", learned=True)
    )
    gap: str | None = field(
        default=None,
        validator=optional(is_duration),
        metadata=doc(
            "training times nearer than this to one that is only looked at are left out",
            learned=True,
            example="1d",
        ),
    )
    pairing: Literal["cells", "index"] = field(
        default="cells",
        metadata=doc(
            "cells: fine cells fill coarse ones; index: by row and column, whatever the coordinates are",
            learned=True,
        ),
    )
    sampler: SamplerConfig = field(factory=SamplerConfig, metadata=doc("how fields are generated"))

    def __attrs_post_init__(self) -> None:
        """Refuse options of variables that the model does not have."""
        variables = list(dict.fromkeys([*self.model.inputs, *self.model.outputs]))
        for option, names in (("transforms", self.transforms), ("fill", self.fill)):
            if unknown := [name for name in names if name not in variables]:
                raise ValueError(
                    f"{option}: {', '.join(unknown)} neither an input nor an output of the model; "
                    f"expected some of {', '.join(variables)}"
                )

    @hookimpl
    def make_task(self, run: Run) -> Task:
        """Open the data, then build the network for it."""
        from hookloop.plugins.downscaling.model import make_task

        return make_task(self, run)

    @hookimpl(trylast=True)  # whatever the run starts from has been loaded
    def before_run(self, run: Run) -> None:
        """Refuse networks that cannot generate beside the model, before anything is learnt."""
        from hookloop.plugins.downscaling.model import DownscalingTask

        if isinstance(run.task, DownscalingTask):
            run.task.networks.expect_fitting()
