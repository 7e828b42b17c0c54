"""States whose forecasts are known: a linear model on a small periodic grid, with noise and a forcing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from attrs import field, frozen
from torch import Tensor, nn

SHAPE = (4, 6)
CELLS = SHAPE[0] * SHAPE[1]
NAMES = ("t", "q")
UNITS = {"t": "K", "q": "kg kg-1", "f": "W m-2"}
MEAN = {"t": 280.0, "q": 5e-3}
SIZE = {"t": 8.0, "q": 2e-3}
NOW, COMING = 0.3, -0.2
"""What the forcing does to the next anomaly: at the present time, and one step later."""
STEP = np.timedelta64(6, "h")


def _modes() -> tuple[np.ndarray, np.ndarray]:
    """Wave numbers of the periodic grid, and an orthonormal real basis of waves with these: ``[cell, mode]``."""
    y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    waves, columns = [], []
    for k in range(SHAPE[0]):
        for m in range(SHAPE[1]):
            angle = 2 * np.pi * (k * y / SHAPE[0] + m * x / SHAPE[1])
            for wave in (np.cos(angle), np.sin(angle)):
                left = wave.ravel() - sum((c * (c @ wave.ravel()) for c in columns), np.zeros(CELLS))
                if np.linalg.norm(left) > 1e-6:
                    columns.append(left / np.linalg.norm(left))
                    waves.append(np.hypot(min(k, SHAPE[0] - k), min(m, SHAPE[1] - m)))
    return np.array(waves), np.stack(columns, 1)


@frozen(eq=False)
class LinearModel:
    """x' = A x + NOW f + COMING f' + noise in units of the climate, with A and the noise diagonal in waves."""

    waves: np.ndarray = field(factory=lambda: _modes()[0])
    basis: np.ndarray = field(factory=lambda: _modes()[1])
    """``[cell, mode]``, orthonormal."""

    def memory(self, v: int) -> np.ndarray:
        """A of a variable, ``[mode]``: small waves are forgotten sooner."""
        return (0.95, 0.7)[v] * np.exp(-0.1 * self.waves)

    def noise(self, v: int) -> np.ndarray:
        """Variance of what is added in a step, ``[mode]``."""
        return (0.2, 0.5)[v] / (1 + self.waves**2)

    def mean(self, v: int, start: np.ndarray, forcing: np.ndarray, steps: int) -> np.ndarray:
        """Exact mean of the forecast, in waves.

        :param start: ``[…, mode]``, anomalies in units of the climate.
        :param forcing: ``[…, time, mode]`` from the start on.
        """
        x = start
        for n in range(steps):
            x = self.memory(v) * x + NOW * forcing[..., n, :] + COMING * forcing[..., n + 1, :]
        return x

    def variance(self, v: int, steps: int) -> np.ndarray:
        """Exact variance of the forecast: Σ A^2k q, ``[mode]``."""
        return sum(self.memory(v) ** (2 * k) * self.noise(v) for k in range(steps))

    def to_waves(self, fields: np.ndarray) -> np.ndarray:
        """``[…, lat, lon]`` as ``[…, mode]``."""
        return fields.reshape(*fields.shape[:-2], CELLS) @ self.basis

    def history(self, n_times: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Draw physical fields, ``[time, lat, lon]`` by variable, after many steps."""
        draw, spin = np.random.default_rng(seed), 40
        forcing = draw.standard_normal((spin + n_times, CELLS))
        found = {"f": 100 * (forcing @ self.basis.T)}
        for v, name in enumerate(NAMES):
            x, rows = np.zeros(CELLS), []
            for n in range(spin + n_times):
                rows.append(x)
                if n + 1 < spin + n_times:
                    x = self.memory(v) * x + NOW * forcing[n] + COMING * forcing[n + 1]
                    x = x + np.sqrt(self.noise(v)) * draw.standard_normal(CELLS)
            found[name] = MEAN[name] + SIZE[name] * (np.stack(rows) @ self.basis.T)
        return {name: values[spin:].reshape(-1, *SHAPE) for name, values in found.items()}


class ExactDenoiser(nn.Module):
    """E[z | z + σ n, condition] of the linear model, for z the normalised step: what a network can only learn.

    It knows the condition as the network does: normalised states, forcing now, forcing to come.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.linear = LinearModel()
        self.basis = torch.from_numpy(self.linear.basis)
        self.input_mean, self.input_std = model.input_mean.double(), model.input_std.double()
        self.target_mean, self.target_std = model.target_mean.double(), model.target_std.double()
        self.residual = model.config.residual

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Denoise ``[case, variable, lat, lon]``."""
        sizes = torch.tensor([SIZE[name] for name in NAMES])
        means = torch.tensor([MEAN[name] for name in NAMES])
        given = condition.double().flatten(2)
        order = [0, 1, 2, 2]  # the forcing to come is scaled as the forcing is
        physical = given * self.input_std[order, None] + self.input_mean[order, None]
        anomaly = (physical[:, :2] - means[:, None]) / sizes[:, None] @ self.basis
        now, coming = (physical[:, i] / 100 @ self.basis for i in (2, 3))
        answer = torch.empty_like(x, dtype=torch.float64)
        for v in range(2):
            memory = torch.from_numpy(self.linear.memory(v))
            expected = memory * anomaly[:, v] + NOW * now + COMING * coming
            if self.residual:
                expected = expected - anomaly[:, v]
            unit = self.target_std[v] / sizes[v]
            offset = (self.target_mean[v] - (0.0 if self.residual else means[v])) / sizes[v]
            prior = (expected - offset * self.basis.sum(0)) / unit
            variance = torch.from_numpy(self.linear.noise(v)) / unit**2
            noisy = x[:, v].double().flatten(1) @ self.basis
            gain = variance / (variance + sigma.double()[:, None] ** 2)
            answer[:, v] = ((prior + gain * (noisy - prior)) @ self.basis.T).unflatten(1, SHAPE)
        return answer.float()


def write_states(path: Path, fields: dict[str, np.ndarray], times: np.ndarray) -> Path:
    """Write ``[time, lat, lon]`` fields by variable as a zarr store on a global grid."""
    coordinates = {
        "time": times,
        "latitude": np.linspace(-67.5, 67.5, SHAPE[0]),
        "longitude": np.arange(SHAPE[1]) * (360.0 / SHAPE[1]),
    }
    data = {
        name: (("time", "latitude", "longitude"), values.astype(np.float32), {"units": UNITS[name]})
        for name, values in fields.items()
    }
    xr.Dataset(data, coordinates).to_zarr(path, consolidated=False)
    return path


def six_hourly(n: int, first: str = "2020-01-01T00") -> np.ndarray:
    """So many times."""
    return np.datetime64(first, "ns") + np.arange(n) * STEP


BACKBONE = {"name": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": False}


def section(directory: Path, **changes: object) -> dict[str, object]:
    """A whole ``forecast:`` section for these files."""
    model = {"state": list(NAMES), "forcing": ["f"], "backbone": BACKBONE}
    whole: dict[str, object] = {
        "train": {"fields": [str(directory / "train.zarr")]},
        "validation": {"fields": [str(directory / "validation.zarr")]},
        "model": {**model, **changes.pop("model", {})},  # type: ignore[dict-item]
    }
    return {**whole, **changes}
