"""The preconditioning and the loss against float64 arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hookloop.diffusion.edm import (
    Objective,
    Precondition,
    denoising_loss,
    lognormal_sigma,
    loss_weight,
)


class Recorder(nn.Module):
    """A backbone that answers 2·noisy + condition and remembers what it was given."""

    def forward(self, noisy: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        """Record, and answer."""
        self.noisy, self.label = noisy, label
        return 2 * noisy + condition


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_precondition_is_float64_arithmetic(sigma_data: float) -> None:
    """D = c_skip x + c_out F(c_in x; ln σ / 4) with Table 1's coefficients, for σ from 0.002 to 80."""
    backbone = Recorder()
    sigmas = [0.002, 0.1, 1.0, 80.0]
    x, condition = torch.randn(4, 2, 3, 5), torch.randn(4, 2, 3, 5)
    denoised = Precondition(backbone, sigma_data)(x, torch.tensor(sigmas), condition)
    for i, s in enumerate(sigmas):
        root = math.sqrt(s * s + sigma_data**2)
        raw = 2 * x[i].double() / root + condition[i].double()
        expected = sigma_data**2 / root**2 * x[i].double() + s * sigma_data / root * raw
        torch.testing.assert_close(denoised[i].double(), expected, rtol=1e-5, atol=1e-6)
        assert backbone.label[i].item() == pytest.approx(math.log(s) / 4, rel=1e-6)


def test_the_backbone_sees_unit_variance() -> None:
    """Clean fields of σ_data plus noise of σ arrive with standard deviation 1."""
    backbone = Recorder()
    for sigma in (0.01, 0.5, 80.0):
        noisy = 0.5 * torch.randn(1, 1, 200, 200) + sigma * torch.randn(1, 1, 200, 200)
        Precondition(backbone, 0.5)(noisy, torch.tensor([sigma]), torch.zeros(1, 1, 1, 1))
        assert backbone.noisy.std().item() == pytest.approx(1.0, abs=0.02)


def test_without_noise_the_field_is_left_alone() -> None:
    """At vanishing noise D is the identity, whatever the backbone says."""
    x = torch.randn(1, 1, 4, 4)
    denoised = Precondition(Recorder())(x, torch.tensor([1e-6]), torch.full((1, 1, 4, 4), 9.0))
    torch.testing.assert_close(denoised, x, rtol=0, atol=2e-5)


def test_a_reduced_precision_backbone_answers_in_float32() -> None:
    """What comes out of bfloat16 inside is float32 outside."""
    x, sigma = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 3.0])

    class Half(nn.Module):
        def forward(self, noisy: Tensor, condition: Tensor, label: Tensor) -> Tensor:
            assert noisy.dtype == condition.dtype == label.dtype == torch.float32
            return noisy.bfloat16()

    assert Precondition(Half())(x.bfloat16(), sigma, x).dtype == torch.float32


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_the_loss_weight_undoes_the_output_scale(sigma_data: float) -> None:
    """λ(σ) c_out(σ)² = 1: every noise level weighs the same on the raw network's error."""
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    torch.testing.assert_close(loss_weight(sigma, sigma_data) * c_out**2, torch.ones_like(sigma))


def test_denoising_loss_by_arithmetic() -> None:
    """σ = σ_data = 1 weighs 2: errors of 3 and 1 cost 18 and 2, per sample and channel."""
    clean = torch.zeros(2, 2, 3, 3)
    denoised = torch.zeros(2, 2, 3, 3)
    denoised[0, 0], denoised[1, 1] = 3.0, -1.0
    losses = denoising_loss(denoised, clean, torch.ones(2), 1.0)
    assert losses.tolist() == [[18.0, 0.0], [0.0, 2.0]]


def test_lognormal_sigma_has_its_mean_and_deviation() -> None:
    """The logarithms are N(-1.2, 1.2²), and one seed draws one sample."""
    cpu = torch.device("cpu")
    first = lognormal_sigma(40000, -1.2, 1.2, device=cpu, generator=torch.Generator().manual_seed(3))
    again = lognormal_sigma(40000, -1.2, 1.2, device=cpu, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert first.log().mean().item() == pytest.approx(-1.2, abs=0.03)
    assert first.log().std().item() == pytest.approx(1.2, abs=0.03)


def test_the_noise_levels_of_an_objective_are_quantiles_of_its_noise() -> None:
    """The mean of ln σ at the median, and one standard deviation more at Φ(1)."""
    levels = Objective(["t"], {}, -1.2, 1.5).noise_levels(
        torch.tensor([0.5, 0.5 * (1 + math.erf(math.sqrt(0.5)))], dtype=torch.float64)
    )
    assert levels.log().tolist() == pytest.approx([-1.2, 0.3], abs=1e-12)


def test_an_objective_weighs_its_variables() -> None:
    """Answers wrong by 1 and 2 are worth λ(σ) = (σ² + 1)/σ² and four times that; weights 3 and 1 make 7/4 of it."""
    clean = torch.randn(5, 2, 3, 4)
    wrong = clean + torch.tensor([1.0, 2.0])[:, None, None]
    objective = Objective(["t", "q"], {"t": 3.0}, -1.2, 1.2)
    quantiles = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    found = objective.loss_at(lambda *_: wrong, clean, torch.zeros(5, 0, 3, 4), quantiles)
    worth = 1 + objective.noise_levels(quantiles) ** -2
    for name, times in (("loss/t", 1.0), ("loss/q", 4.0), ("loss", 7 / 4)):
        torch.testing.assert_close(found[name].double(), times * worth, rtol=1e-5, atol=0)


def test_the_loss_of_an_objective_is_that_at_the_levels_it_draws() -> None:
    """Same seed, same noise: the mean over the samples of the losses at the quantiles that were drawn."""
    clean, condition = torch.randn(6, 2, 3, 4), torch.zeros(6, 0, 3, 4)
    objective = Objective(["t", "q"], {"q": 2.0}, -1.2, 1.2)
    torch.manual_seed(1)
    expected = objective.loss(lambda x, *_: x, clean, condition)
    torch.manual_seed(1)
    quantiles = torch.special.ndtr(torch.randn(6).double())
    found = objective.loss_at(lambda x, *_: x, clean, condition, quantiles)
    assert list(expected) == list(found) == ["loss", "loss/t", "loss/q"]
    for name, loss in expected.items():
        assert found[name].mean().item() == pytest.approx(loss.item(), rel=1e-5)
