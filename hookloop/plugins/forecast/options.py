"""The options of forecasts: the states that are learnt, and the network. Nothing heavy is imported here."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import deep_mapping, ge, gt, lt, min_len

from hookloop.data.options import Feature, SourceConfig, SplitOptions, required_first
from hookloop.diffusion_options import Backbone, NoiseConfig, UNetOptions
from hookloop.settings import doc


@frozen(field_transformer=required_first)
class StatesConfig(SplitOptions):
    """One split: which files, which of their times, and how much at once."""

    fields: list[str | SourceConfig] = field(
        validator=min_len(1),
        metadata=doc("files, stores, patterns or URLs; times are joined, variables merged"),
    )
    batch_size: int = field(default=32, validator=ge(1), metadata=doc("pairs of states a batch"))


@frozen
class ModelConfig:
    """What the network sees and gives."""

    state: list[str] = field(validator=min_len(1), metadata=doc("variables that are forecast"))
    forcing: list[str] = field(
        factory=list,
        metadata=doc("variables that are known beforehand: given now and one step ahead, such as sst"),
    )
    residual: bool = field(
        default=True,
        metadata=doc("generate the difference from the present state; otherwise the next state itself"),
    )
    features: list[Feature] = field(
        factory=list,
        metadata=doc(
            "further inputs, at the time that is forecast: hour (local solar time), season, latitude, longitude"
        ),
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
        if again := [name for name in self.variables if self.variables.count(name) > 1]:
            raise ValueError(
                f"state and forcing: {', '.join(dict.fromkeys(again))} found more than once, expected each once"
            )
        if unknown := [name for name in self.loss_weights if name not in self.state]:
            raise ValueError(
                f"loss_weights: {', '.join(unknown)} not forecast; expected some of {', '.join(self.state)}"
            )

    @property
    def variables(self) -> list[str]:
        """The state, then the forcing: the order of channels everywhere."""
        return [*self.state, *self.forcing]
