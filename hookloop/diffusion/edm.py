"""The EDM formulation: preconditioning, training noise and loss weight.

Source: Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*,
NeurIPS 2022 (arXiv:2206.00364), Table 1, last column. Equation numbers are that paper's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from attrs import frozen
from torch import Tensor, nn

from hookloop.diffusion.noise import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
    """``D(x, sigma, condition)``, *sigma* of shape ``[batch]``."""


class Backbone(Protocol):
    """A network between the preconditioning: noisy field, condition and noise label in, field out."""

    def __call__(self, noisy: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        """Map ``[batch, channel, lat, lon]`` fields and a ``[batch]`` label to a field like *noisy*."""


def lognormal_sigma(
    n: int, mean: float, std: float, *, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draw *n* training noise levels with ln σ ~ N(mean, std²) (Table 1, "Training")."""
    normal = torch.randn(n, device=device, generator=generator)
    return (normal * std + mean).exp()


def loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """λ(σ) = (σ² + σ_data²) / (σ σ_data)²: every noise level starts with equal weight (Eq. 144 ff.)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def _per_sample(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


class Precondition(nn.Module):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise), Eq. 7, computed in float32 around the backbone.

    :param backbone: the raw network F.
    :param sigma_data: standard deviation of the clean fields, in their own (normalised) units.
    """

    def __init__(self, backbone: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Denoise *x* ``[batch, channel, lat, lon]`` of noise *sigma* ``[batch]``, given *condition*.

        Returns float32 of the shape of *x*.
        """
        x = x.float()
        s = _per_sample(sigma.float())
        total = s**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = s * self.sigma_data * total.rsqrt()
        c_in = total.rsqrt()
        c_noise = sigma.float().log() / 4
        raw: Tensor = self.backbone(c_in * x, condition, c_noise)
        return c_skip * x + c_out * raw.float()


def denoising_loss(denoised: Tensor, clean: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Weighted squared error per sample and channel, ``[batch, channel]`` (Eq. 2 with λ of Table 1)."""
    error = (denoised.float() - clean).square().mean((-2, -1))
    return error * loss_weight(sigma, sigma_data)[:, None]


@frozen(eq=False)
class Objective:
    """What is learnt of some variables: to remove noise of ln σ ~ N(mean, std²) from fields of σ_data = 1."""

    variables: Sequence[str]
    weights: Mapping[str, float]
    """Of variables in the loss; 1 where not given."""
    mean: float
    std: float

    def loss(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor, rows: Rows | None = None
    ) -> dict[str, Tensor]:
        """Draw noise, and give ``loss``, the weighted mean over variables, and ``loss/<variable>``.

        :param clean: ``[batch, variable, lat, lon]``.
        :param rows: which rows of a batch these are, if not all: each has the noise that it has in the whole.
        """
        rows = rows or Rows.whole(len(clean))
        sigma = lognormal_sigma(rows.total, self.mean, self.std, device=clean.device)
        return self._named(_noisy_loss(denoiser, clean, sigma, condition, rows).mean(0))

    def loss_at(
        self,
        denoiser: Denoiser,
        clean: Tensor,
        condition: Tensor,
        quantiles: Tensor,
        rows: Rows | None = None,
    ) -> dict[str, Tensor]:
        """Give the losses of :meth:`loss` for each sample, ``[batch]``, at these *quantiles* of the noise.

        :param quantiles: of the whole batch, also where only some *rows* of it are here.
        """
        sigma = self.noise_levels(quantiles).float().to(clean.device)
        return self._named(_noisy_loss(denoiser, clean, sigma, condition, rows or Rows.whole(len(clean))).T)

    def noise_levels(self, quantiles: Tensor) -> Tensor:
        """Give σ at these *quantiles*, between 0 and 1, of the training noise."""
        normal: Tensor = torch.special.ndtri(quantiles)
        return (self.mean + self.std * normal).exp()

    def _named(self, losses: Tensor) -> dict[str, Tensor]:
        """Name the *losses* ``[variable, …]``, and their weighted mean."""
        own = dict(zip(self.variables, losses, strict=True))
        weights = {name: self.weights.get(name, 1.0) for name in own}
        total = sum(weights[name] * loss for name, loss in own.items())
        return {
            "loss": total / sum(weights.values()),
            **{f"loss/{name}": loss for name, loss in own.items()},
        }


def _noisy_loss(denoiser: Denoiser, clean: Tensor, sigma: Tensor, condition: Tensor, rows: Rows) -> Tensor:
    """Loss ``[row, variable]`` of the own rows *clean* with noise of *sigma*, which is that of all rows."""
    noise = torch.randn((rows.total, *clean.shape[1:]), dtype=clean.dtype, device=clean.device)
    sigma = rows.of(sigma)
    noisy = clean + _per_sample(sigma) * rows.of(noise)
    rows.part(clean.device)
    return denoising_loss(denoiser(noisy, sigma, condition), clean, sigma, sigma_data=1.0)
