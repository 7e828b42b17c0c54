"""The preconditioning and the loss against float64 arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hookloop.diffusion.edm import (
    Objective,
    Precondition,
    denoising_loss,
    lognormal_sigma,
    loss_weight,
)
from hookloop.diffusion.noise import Rows
from hookloop.distributed import Share


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


def drawn_as_before(clean: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Draw σ, then noise like the clean fields."""
    sigma = (torch.randn(len(clean)) * objective.std + objective.mean).exp()
    return sigma, torch.randn_like(clean)


def test_noise_of_a_batch_is_one_draw_of_levels_and_one_of_fields() -> None:
    """Bit for bit what the denoiser is given: ln σ from the first draw, noise like the fields from the second."""
    clean, objective = torch.randn(6, 2, 3, 4), Objective(["t", "q"], {}, -1.2, 1.2)
    torch.manual_seed(4)
    sigma, noise = drawn_as_before(clean, objective)
    given: list[tuple[Tensor, Tensor]] = []

    def denoiser(x: Tensor, sigma: Tensor, _: Tensor) -> Tensor:
        given.append((x, sigma))
        return x

    torch.manual_seed(4)
    objective.loss(denoiser, clean, torch.zeros(6, 0, 3, 4))
    ((x, levels),) = given
    assert torch.equal(levels, sigma)
    assert torch.equal(x, clean + sigma[:, None, None, None] * noise)


@pytest.mark.parametrize("world", [2, 3, 4, 9])
def test_rows_of_a_batch_have_the_losses_that_they_have_in_the_whole(world: int) -> None:
    """At given quantiles, row by row, to rounding: level and noise are those of the row's number."""
    clean, objective = torch.randn(7, 2, 3, 4), Objective(["t", "q"], {"q": 2.0}, -1.2, 1.2)
    condition, quantiles = torch.randn(7, 1, 3, 4), torch.linspace(0.1, 0.9, 7, dtype=torch.float64)

    def denoiser(x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        return x / (1 + sigma[:, None, None, None]) + condition

    torch.manual_seed(2)
    whole = objective.loss_at(denoiser, clean, condition, quantiles)
    for rank in range(world):
        own = range(rank, 7, world) or range(1)
        torch.manual_seed(2)
        here = list(own)
        found = objective.loss_at(denoiser, clean[here], condition[here], quantiles, Rows(own, 7))
        for name, loss in whole.items():
            torch.testing.assert_close(found[name], loss[here], rtol=1e-6, atol=0)


@given(size=st.integers(1, 12), world=st.integers(1, 15), seed=st.integers(0, 99))
@many(60)
def test_weighted_losses_and_gradients_of_ranks_are_those_of_the_batch(
    size: int, world: int, seed: int
) -> None:
    """The mean over ranks of weight · mean over own rows, and its gradient, in float64, whoever has no row."""
    generator = torch.Generator().manual_seed(seed)
    clean, condition = (
        torch.randn(size, 2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    objective = Objective(["t", "q"], {"q": 2.0}, -1.2, 1.2)

    def measured(own: range) -> tuple[float, float]:
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(seed)
        here = list(own)
        losses = objective.loss(
            lambda x, sigma, c: weight * x / (1 + sigma[:, None, None, None]) + weight**2 * c,
            clean[here],
            condition[here],
            Rows(own, size),
        )
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        return losses["loss"].item(), weight.grad.item()

    shares = [Share(rank, world) for rank in range(world)]
    found = [(share.weight(size), measured(share.rows(size))) for share in shares]
    loss, gradient = measured(range(size))
    assert sum(weight * own for weight, (own, _) in found) / world == pytest.approx(loss, rel=1e-12)
    # The answer of the denoiser is float32, and so is what comes back through it, divided by other counts.
    assert sum(weight * own for weight, (_, own) in found) / world == pytest.approx(
        gradient, rel=1e-5, abs=1e-4
    )
