"""The options that diffusion models share: network, training noise and solver. Nothing heavy is imported here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Protocol

from attrs import Attribute, field, fields, frozen
from attrs.validators import deep_iterable, ge, gt, le, lt, max_len, min_len, optional

from hookloop.settings import doc

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hookloop.diffusion.solvers import Denoiser, Draw


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
    padding: Literal["zeros", "replicate", "circular"] = field(
        default="zeros",
        metadata=doc("what lies beyond the edges; circular: the opposite edge, in both directions"),
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
            padding=self.padding,
        )


@frozen
class NoiseConfig:
    """Training noise: ln σ ~ N(mean, std²), σ in units of the normalised target's standard deviation."""

    mean: float = field(default=-1.2, validator=[gt(-20.0), lt(20.0)], metadata=doc("mean of ln σ"))
    std: float = field(default=1.2, validator=[gt(0.0), lt(20.0)], metadata=doc("standard deviation of ln σ"))


_SIGMA = [ge(1e-6), le(1e6)]
"""What float32 can hold and square."""
_KARRAS_RHO = 7.0
"""Where karras is asked for and nothing else: that of Karras et al. 2022."""


def _above_sigma_min(instance: SolverConfig | None, _attribute: Attribute[float], value: float) -> None:
    if instance is not None and value < 1.01 * instance.sigma_min:
        raise ValueError(
            f"sigma_max: expected more than sigma_min, {instance.sigma_min}, by 1 % at least, found {value}"
        )


@frozen
class SolverConfig:
    """By which steps noise becomes a field: see ``hookloop.diffusion.solvers``."""

    solver: Literal["dpmpp_2m", "heun", "euler", "dpmpp_2m_sde"] = field(
        default="dpmpp_2m",
        metadata=doc(
            "evaluations a step: one; heun: two, one in the last; dpmpp_2m_sde adds noise on the way"
        ),
    )
    schedule: Literal["auto", "karras", "log_linear"] = field(
        default="auto",
        metadata=doc(
            "even in the rho-th root of the noise level, or in its logarithm; auto: karras where rho is given, "
            "else log_linear"
        ),
    )
    steps: int = field(default=18, validator=[ge(2), le(10_000)], metadata=doc("noise levels"))
    sigma_min: float = field(default=0.002, validator=_SIGMA, metadata=doc("lowest noise level"))
    sigma_max: float = field(
        default=80.0, validator=[*_SIGMA, _above_sigma_min], metadata=doc("highest noise level")
    )
    rho: float | None = field(
        default=None,
        validator=optional([ge(1.0), le(1000.0)]),
        metadata=doc("how the steps of karras crowd at low noise; null with schedule karras is 7"),
    )
    churn: float = field(
        default=0.0,
        validator=[ge(0.0), le(1e6)],
        metadata=doc("heun: S_churn, how much noise is added and removed again, in all steps together"),
    )
    churn_min: float = field(
        default=0.0, validator=[ge(0.0), le(1e6)], metadata=doc("no noise is added below this noise level")
    )
    churn_max: float | None = field(
        default=None, validator=optional(_SIGMA), metadata=doc("nor above this one; null for no limit")
    )
    churn_noise: float = field(
        default=1.0,
        validator=[ge(0.1), le(10.0)],
        metadata=doc("standard deviation of the noise that is added"),
    )
    eta: float = field(
        default=1.0,
        validator=[ge(0.0), le(100.0)],
        metadata=doc("dpmpp_2m_sde: how much noise; 0 is none, 1 that of the reverse diffusion"),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse options that would do nothing."""
        if self.solver != "heun":
            self._expect_default("churn", f"solver {self.solver} has no churn; expected heun")
        if self.churn == 0:
            for name in ("churn_min", "churn_max", "churn_noise"):
                self._expect_default(name, "churn is 0, so that it does nothing; expected more churn")
        elif not any(self.churn_min <= level <= self._churn_limit for level in self.levels()[:-1]):
            raise ValueError(
                f"churn_min: found {self.churn_min}, and churn_max {self.churn_max}, but none of the {self.steps} "
                f"noise levels from {self.sigma_max} to {self.sigma_min} lies between; expected some, or no churn"
            )
        if self.solver != "dpmpp_2m_sde":
            self._expect_default("eta", f"solver {self.solver} has none; expected dpmpp_2m_sde")
        if self.schedule == "log_linear":
            self._expect_default("rho", "schedule log_linear has none; expected karras")

    def _expect_default(self, name: str, otherwise: str) -> None:
        default, found = getattr(fields(SolverConfig), name).default, getattr(self, name)
        if found != default:
            raise ValueError(f"{name}: found {found}, but {otherwise}, or leave {name} out")

    @property
    def evaluations(self) -> int:
        """How often the network is asked for one field."""
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    @property
    def draws(self) -> int:
        """How often noise is drawn on the way, at most."""
        draws = self.churn > 0 or (self.solver == "dpmpp_2m_sde" and self.eta > 0)
        return self.steps if draws else 0

    @property
    def karras_rho(self) -> float | None:
        """ρ of the noise levels, whether given or meant; ``None`` where they are even in the logarithm, its limit."""
        return _KARRAS_RHO if self.schedule == "karras" and self.rho is None else self.rho

    @property
    def _churn_limit(self) -> float:
        return math.inf if self.churn_max is None else self.churn_max

    def levels(self) -> list[float]:
        """Noise levels to step down, ending in 0."""
        from hookloop.diffusion.schedules import karras_schedule, log_linear_schedule

        if self.karras_rho is None:
            return log_linear_schedule(self.steps, self.sigma_min, self.sigma_max)
        return karras_schedule(self.steps, self.sigma_min, self.sigma_max, self.karras_rho)

    def sample(self, denoiser: Denoiser, noise: Tensor, draw: Draw) -> Tensor:
        """Generate normalised fields from standard normal *noise* ``[batch, channel, lat, lon]``.

        :param denoiser: ``D(x, sigma)``, *sigma* a host float.
        :param draw: gives further noise of the same shape; it is called only where noise is used.
        """
        from hookloop.diffusion import solvers

        levels = self.levels()
        if self.solver == "euler":
            return solvers.euler(denoiser, noise, levels)
        if self.solver == "dpmpp_2m_sde":
            return solvers.dpmpp_2m_sde(denoiser, noise, levels, draw, self.eta)
        if self.solver == "dpmpp_2m":
            return solvers.dpmpp_2m(denoiser, noise, levels)
        if self.churn == 0:
            return solvers.heun(denoiser, noise, levels)
        churn = solvers.Churn(self.churn, self.churn_min, self._churn_limit, self.churn_noise)
        return solvers.stochastic_heun(denoiser, noise, levels, draw, churn)
