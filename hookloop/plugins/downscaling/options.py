"""The options of the network and the sampler; what the data needs stands beside the data."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read when options are structured
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen
from attrs.validators import deep_mapping, gt, lt, min_len

from hookloop.data.options import Feature  # noqa: TC001 - read when options are structured
from hookloop.diffusion_options import Backbone, NoiseConfig, SolverConfig, UNetOptions
from hookloop.errors import HookloopError
from hookloop.settings import doc

if TYPE_CHECKING:
    from hookloop.data.grids import Grid

__all__ = ["Backbone", "ModelConfig", "NoiseConfig", "SamplerConfig", "UNetOptions"]


@frozen
class ModelConfig:
    """What the network sees and gives."""

    inputs: list[str] = field(validator=min_len(1), metadata=doc("coarse variables it is given"))
    outputs: list[str] = field(validator=min_len(1), metadata=doc("fine variables it generates"))
    residual: bool = field(
        default=True,
        metadata=doc(
            "generate the difference from bicubic interpolation; needed off for outputs that are no inputs"
        ),
    )
    features: list[Feature] = field(
        factory=list, metadata=doc("further inputs: hour (local solar time), season, latitude, longitude")
    )
    backbone: Backbone = field(
        factory=UNetOptions,
        metadata={**doc("the network, by name, and its options"), "group": "hookloop.backbones"},
    )
    noise: NoiseConfig = field(factory=NoiseConfig, metadata=doc("training noise"))
    loss_weights: dict[str, float] = field(
        factory=dict,
        validator=deep_mapping(value_validator=[gt(0.0), lt(float("inf"))]),
        metadata=doc("weights of variables; 1 where not given"),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse what does not fit together."""
        missing = [name for name in self.outputs if name not in self.inputs]
        if missing and self.residual:
            raise ValueError(
                f"outputs: {', '.join(missing)} not among the inputs {', '.join(self.inputs)}, whose "
                "interpolation is what they are the difference from; set residual: false to generate the "
                "fields themselves"
            )
        for what, names in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: found {', '.join(names)}, expected each once")
        if unknown := [name for name in self.loss_weights if name not in self.outputs]:
            raise ValueError(
                f"loss_weights: {', '.join(unknown)} are no outputs; expected {', '.join(self.outputs)}"
            )

    def expect_places(self, grid: Grid) -> None:
        """Refuse features of latitude or longitude on a fine *grid* that has neither.

        :raises HookloopError: with these features.
        """
        if not grid.gridded and (placed := [name for name in self.features if name != "season"]):
            raise HookloopError(
                f"downscaling.model.features: {', '.join(placed)}: rows and columns of the fine grid have no latitude "
                "and longitude of their own; leave them out, or give the 2-D fields of these as statics"
            )


def _are_used(instance: SamplerConfig | None, _attribute: object, value: list[ExpertConfig]) -> None:
    """Refuse experts that are never asked, and those that leave the run's own network none."""
    if instance is None:
        return
    for expert in value:
        if not instance.sigma_min < expert.sigma_min < instance.sigma_max:
            raise ValueError(
                f"expected experts whose sigma_min lies between the sampler's {instance.sigma_min} and "
                f"{instance.sigma_max}, found {expert.sigma_min}"
            )
    lowest = [expert.sigma_min for expert in value]
    if len(set(lowest)) < len(lowest):
        raise ValueError(f"expected experts with a sigma_min each of their own, found {lowest}")


@frozen
class ExpertConfig:
    """A network for high noise levels."""

    checkpoint: Path = field(
        metadata=doc("of another run: the same outputs, scaled alike; see docs/sampling.md")
    )
    sigma_min: float = field(
        validator=gt(0.0), metadata=doc("from this noise level up to where the next expert's begin")
    )


@frozen
class SamplerConfig(SolverConfig):
    """How fields are generated: by which steps, and with which networks."""

    experts: list[ExpertConfig] = field(
        factory=list,
        validator=_are_used,
        metadata=doc("checkpoints whose networks denoise high noise in the place of the run's own"),
    )
    ensemble: list[Path] = field(
        factory=list,
        metadata=doc(
            "checkpoints of further runs: members are drawn with the run's own network and these in turn"
        ),
    )
    compile: Literal["off", "graph"] = field(
        default="off",
        metadata=doc(
            "graph: on a GPU, generate fields of the same shape by replaying one CUDA graph; it keeps its memory"
        ),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse options that would do nothing."""
        super().__attrs_post_init__()
        if self.compile == "graph" and self.draws:
            raise ValueError(
                f"compile: found graph, but solver {self.solver} draws noise on the way, which no graph holds; "
                "expected off, or a solver without noise"
            )
