"""The options of the network and the sampler; what the data needs stands beside the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from attrs import Attribute, field, frozen
from attrs.validators import deep_iterable, deep_mapping, ge, gt, lt, max_len, min_len

from hookloop.errors import HookloopError
from hookloop.settings import doc

if TYPE_CHECKING:
    from torch import nn

    from hookloop.plugins.downscaling.grids import Grid

Feature = Literal["hour", "season", "latitude", "longitude"]


class Backbone(Protocol):
    """What an entry point in group ``hookloop.backbones`` offers: options that can build their network."""

    def build(self, outputs: int, condition: int) -> nn.Module:
        """A network ``f(noisy, condition, label)`` with so many channels: see ``hookloop.diffusion.edm``."""


@frozen
class UNetOptions:
    """The built-in U-Net."""

    chosen_as = "unet"
    channels: int = field(default=64, validator=ge(4), metadata=doc("width of the first level"))
    multipliers: list[int] = field(
        factory=lambda: [1, 2, 2],
        validator=[min_len(1), max_len(8), deep_iterable(ge(1))],
        metadata=doc("width of each level, in units of channels; each level halves the grid"),
    )
    blocks: int = field(default=2, validator=ge(1), metadata=doc("residual blocks a level"))
    attention: bool = field(default=True, metadata=doc("attend over all points of the coarsest level"))
    dropout: float = field(
        default=0.0, validator=[ge(0.0), lt(1.0)], metadata=doc("share dropped while training")
    )

    def build(self, outputs: int, condition: int) -> nn.Module:
        """Build it."""
        from hookloop.diffusion.unet import UNet

        return UNet(
            outputs,
            condition,
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
            dropout=self.dropout,
        )


@frozen
class NoiseConfig:
    """Training noise: ln σ ~ N(mean, std²), σ in units of the normalised target's standard deviation."""

    mean: float = field(default=-1.2, validator=[gt(-20.0), lt(20.0)], metadata=doc("mean of ln σ"))
    std: float = field(default=1.2, validator=[gt(0.0), lt(20.0)], metadata=doc("standard deviation of ln σ"))


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


def _above_sigma_min(instance: SamplerConfig | None, _attribute: Attribute[float], value: float) -> None:
    if instance is not None and value <= instance.sigma_min:
        raise ValueError(f"expected more than sigma_min, {instance.sigma_min}, found {value}")


@frozen
class SamplerConfig:
    """How fields are generated."""

    solver: Literal["dpmpp_2m", "heun"] = field(
        default="dpmpp_2m", metadata=doc("dpmpp_2m: one evaluation a step; heun: two, one in the last")
    )
    steps: int = field(default=18, validator=ge(2), metadata=doc("noise levels"))
    sigma_min: float = field(default=0.002, validator=gt(0.0), metadata=doc("lowest noise level"))
    sigma_max: float = field(
        default=80.0, validator=[gt(0.0), _above_sigma_min], metadata=doc("highest noise level")
    )
    rho: float = field(default=7.0, validator=gt(0.0), metadata=doc("how the steps crowd at low noise"))
