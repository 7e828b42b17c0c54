"""The whole chain, from noise to scores, with the exact denoiser in the network's place: exact to Monte-Carlo error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hookloop import yamlfile
from hookloop.config import build
from hookloop.core import Run
from hookloop.looper import ensembles
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.dataset import PairBatch
from hookloop.plugins.downscaling.model import DownscalingTask
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.synthetic import (
    Recipe,
    expected,
    gaussian_crps,
    posterior,
    power,
    transfer,
)
from hookloop.plugins.generation import Generation
from hookloop.scores.ensemble import fair_crps
from hookloop.testing import prepared

RECIPE = Recipe(n=32, factor=4)
N_CASES, MEMBERS = 40, 12
SAMPLER = {"solver": "dpmpp_2m", "schedule": "log_linear", "steps": 32, "sigma_max": 40.0}


class ExactDenoiser(nn.Module):
    """E[clean | noisy, coarse] of the synthetic fields, given their posterior mean as the condition.

    Without the coarse field a wave of prior variance S has mean S/(S + σ²) v and variance S₁ = S σ²/(S + σ²) given
    its noisy value v; waves that are aliased onto one coarse wave are then conditioned on what that is (Rasmussen &
    Williams 2006, Eq. A.6). Everything is relative to the posterior mean, whose coarse field is right already.

    :param std: by which the targets are divided.
    """

    def __init__(self, recipe: Recipe, std: float) -> None:
        super().__init__()
        self.recipe = recipe
        self.power = torch.from_numpy(power(recipe) / std**2)
        self.transfer = torch.from_numpy(transfer(recipe))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Denoise *x* ``[batch, 1, lat, lon]``; *condition* is the posterior mean, normalised like *x*."""
        mean, variance = condition.double(), sigma.double().square().view(-1, 1, 1, 1)
        waves = torch.fft.fft2(x.double() - mean) * self.power / (self.power + variance)
        left = self.power * variance / (self.power + variance)
        missed = self.aliased(self.transfer * waves) / self.aliased(self.transfer.abs().square() * left)
        waves = waves - left * self.transfer.conj() * missed
        return (mean + torch.fft.ifft2(waves).real).float()

    def aliased(self, waves: Tensor) -> Tensor:
        """Sum the fine waves that are one coarse wave, in the place of each."""
        factor, m = self.recipe.factor, self.recipe.n // self.recipe.factor
        folded = waves.unflatten(-1, (factor, m)).unflatten(-3, (factor, m)).sum((-4, -2))
        return folded.repeat(*[1] * (waves.ndim - 2), factor, factor)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files of the synthetic data."""
    directory = tmp_path_factory.mktemp("analytic") / "data"
    write(directory, RECIPE, 64, N_CASES, 3)
    return directory


def exact_run(sample: Path, directory: Path, sampler: dict[str, Any]) -> Run:
    """Make a run whose network is the exact denoiser, conditioned on the posterior mean."""
    section = {
        "train": {"coarse": [str(sample / "train_coarse.zarr")], "fine": [str(sample / "train_fine.zarr")]},
        "validation": {
            "coarse": [str(sample / "validation_coarse.nc")],
            "fine": [str(sample / "validation_fine.nc")],
        },
        "model": {"inputs": ["t2m"], "outputs": ["t2m"], "backbone": {"name": "unet", "channels": 4}},
        "sampler": sampler,
    }
    plugin = build(Downscaling, yamlfile.Document({"downscaling": section}), "downscaling")  # type: ignore[dict-item]
    run = prepared(directory, plugin, Generation(members=MEMBERS, figures=0))
    task = run.task
    assert isinstance(task, DownscalingTask)
    model, data = task.model, task.data["validation"]

    def condition(batch: PairBatch, upsampled: Tensor) -> Tensor:
        coarse = data.inside(batch.coarse)[:, 0].double().numpy()  # type: ignore[attr-defined]
        mean, _ = posterior(RECIPE, coarse, batch.hour.double().numpy())
        return model.target(torch.from_numpy(mean)[:, None].float(), upsampled)

    model.condition = condition  # type: ignore[method-assign]
    model.denoiser = ExactDenoiser(RECIPE, model.target_std.item())  # type: ignore[assignment]
    return run


def generated(run: Run) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Members ``[case, member, lat, lon]``, truth, coarse fields and hours, as the loop of inference has them."""
    with torch.no_grad():
        parts = [
            generated.paired
            for generated in ensembles(run, run.task, "validation", members=MEMBERS, max_batch=64)  # type: ignore[arg-type]
            if generated is not None
        ]
    members, truth, coarse = (
        torch.cat([part[name] for part in fields]).double()
        for name in ["t2m"]
        for fields in (
            [p.prediction for p in parts],
            [p.target for p in parts],
            [p.coarse for p in parts],
        )
    )
    hours = np.array([float(label[11:13]) for part in parts for label in part.labels])
    return members, truth, coarse.numpy(), hours


def test_the_denoiser_is_the_posterior_mean_where_the_noise_is_overwhelming(
    sample: Path, tmp_path: Path
) -> None:
    """And the noisy field itself, made to fit the coarse one, where there is hardly any noise."""
    run = exact_run(sample, tmp_path, SAMPLER)
    task = run.task
    assert isinstance(task, DownscalingTask)
    batch = task.data["validation"].cases([0, 5])  # type: ignore[attr-defined]
    upsampled = task.model.interpolated(batch.coarse, 4)
    mean = task.model.condition(batch, upsampled)
    clean = task.model.target(batch.fine, upsampled)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    far = task.model.denoiser(clean + 1e4 * noise, torch.full((2,), 1e4), mean)
    torch.testing.assert_close(far, mean, rtol=0, atol=1e-2)
    near = task.model.denoiser(clean + 1e-4 * noise, torch.full((2,), 1e-4), mean)
    torch.testing.assert_close(near, clean, rtol=0, atol=1e-3)


def test_its_error_is_the_least_that_any_denoiser_makes(sample: Path, tmp_path: Path) -> None:
    """E|D - clean|² is the mean posterior variance, worked out wave by wave with matrices, at σ = 0.3."""
    run = exact_run(sample, tmp_path, SAMPLER)
    task = run.task
    assert isinstance(task, DownscalingTask)
    sigma, std = 0.3, task.model.target_std.item()
    spectrum, amplitude = power(RECIPE).ravel() / std**2, transfer(RECIPE).ravel()
    index = np.arange(RECIPE.n) % (RECIPE.n // RECIPE.factor)
    group = (index[:, None] * RECIPE.n + index).ravel()
    total = 0.0
    for number in np.unique(group):
        s, a = spectrum[group == number], amplitude[group == number][None]
        covariance = np.diag(s) - (s[:, None] * a.conj().T) @ (a * s) / (a * s @ a.conj().T)
        left = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(len(s))) * sigma**2
        total += np.trace(left).real
    least = total / RECIPE.n**2
    batch = task.data["validation"].cases(range(N_CASES))  # type: ignore[attr-defined]
    upsampled = task.model.interpolated(batch.coarse, 4)
    clean = task.model.target(batch.fine, upsampled)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    denoised = task.model.denoiser(
        clean + sigma * noise, torch.full((N_CASES,), sigma), task.model.condition(batch, upsampled)
    )
    errors = (denoised - clean).square().mean((1, 2, 3))
    assert errors.mean().item() == pytest.approx(least, abs=4 * errors.std().item() / math.sqrt(N_CASES))
    assert errors.std().item() / math.sqrt(N_CASES) < 0.05 * least


STOCHASTIC = {**SAMPLER, "solver": "dpmpp_2m_sde", "steps": 40}


@pytest.mark.parametrize("sampler", [SAMPLER, STOCHASTIC], ids=["dpmpp_2m", "dpmpp_2m_sde"])
def test_generated_ensembles_are_the_exact_ones_to_monte_carlo_error(
    sample: Path, tmp_path: Path, sampler: dict[str, Any]
) -> None:
    """CRPS, spread-skill ratio and spectrum are those of the posterior, which is known in closed form."""
    run = exact_run(sample, tmp_path, sampler)
    members, truth, coarse, hours = generated(run)
    mean, std = posterior(RECIPE, coarse, hours)
    exact = torch.from_numpy(gaussian_crps(mean, std, truth.numpy())).mean((1, 2))

    by_case = fair_crps(members, truth).mean((1, 2)) - exact
    error = by_case.std().item() / math.sqrt(N_CASES)
    assert error < 0.005 * exact.mean().item()
    assert by_case.mean().item() == pytest.approx(0.0, abs=4 * error + 0.002 * exact.mean().item())

    (found,) = run.hook.infer(run=run)
    assert found["inference/crps/t2m"] == pytest.approx(exact.mean().item(), rel=0.01)
    assert 0.97 < found["inference/spread_skill/t2m"] < 1.03

    assert bands(members, coarse, hours) == pytest.approx(1.0, abs=0.05)


def bands(members: Tensor, coarse: np.ndarray, hours: np.ndarray) -> np.ndarray:
    """Power of the members over its expectation given the coarse fields, for wave numbers below 0.8 Nyquist."""
    n = RECIPE.n
    known = expected(RECIPE, hours)
    mean, _ = posterior(RECIPE, coarse, hours)
    spectrum, amplitude = power(RECIPE), transfer(RECIPE)
    m = n // RECIPE.factor
    coarse_power = np.tile(
        (np.abs(amplitude) ** 2 * spectrum).reshape(RECIPE.factor, m, RECIPE.factor, m).sum((0, 2)),
        (RECIPE.factor, RECIPE.factor),
    )
    left = spectrum - spectrum**2 * np.abs(amplitude) ** 2 / coarse_power
    right = (np.abs(np.fft.fft2(mean - known)) ** 2).mean(0) + n**2 * left
    found = (np.abs(np.fft.fft2(members.numpy() - known[:, None])) ** 2).mean((0, 1))
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(n, 1 / n), np.fft.fftfreq(n, 1 / n)))
    rings = [(k >= low) & (k < low + 1) for low in range(1, int(0.8 * n / 2))]
    return np.array([found[ring].sum() / right[ring].sum() for ring in rings])


def test_a_poor_sampler_is_told_apart(sample: Path, tmp_path: Path) -> None:
    """Euler's method in twelve steps: too little spread, a worse score and small scales that lack power."""
    run = exact_run(sample, tmp_path, {"solver": "euler", "steps": 12})
    members, truth, coarse, hours = generated(run)
    mean, std = posterior(RECIPE, coarse, hours)
    exact = gaussian_crps(mean, std, truth.numpy()).mean()
    (found,) = run.hook.infer(run=run)
    assert found["inference/spread_skill/t2m"] < 0.9
    assert found["inference/crps/t2m"] > 1.005 * exact
    assert bands(members, coarse, hours)[-1] < 0.8
