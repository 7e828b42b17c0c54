"""fme's side, by its own classes: the same shapes, one network of about as many weights."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from attrs import define

from gpu.ours import DECAY, INPUTS, LEARNING_RATE
from gpu.stand_ins import UNUSED_BY_FME, stand_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from types import ModuleType

    from gpu.sizes import Network


@define(eq=False)
class Peer:
    """fme 2026.10.0, imported once."""

    fme: ModuleType

    def model(self, network: Network, *, bf16: bool, steps: int = 18) -> object:
        """A ``DiffusionModel``: SongUNet with attention at its coarsest level, no dropout, residual learnt."""
        from fme.core.coordinates import LatLonCoordinates
        from fme.core.loss import LossConfig
        from fme.core.normalizer import NormalizationConfig
        from fme.downscaling.models import DiffusionModelConfig, PairedNormalizationConfig
        from fme.downscaling.modules.diffusion_registry import DiffusionModuleRegistrySelector
        from fme.downscaling.noise import LogNormalNoiseDistribution

        coarsest = network.size >> len(network.multipliers) - 1
        options = {
            "model_channels": network.channels,
            "channel_mult": network.multipliers,
            "num_blocks": network.blocks,
            "attn_resolutions": [coarsest],
            "dropout": 0.0,
        }
        unit = NormalizationConfig(means=dict.fromkeys(INPUTS, 0.0), stds=dict.fromkeys(INPUTS, 1.0))
        config = DiffusionModelConfig(
            module=DiffusionModuleRegistrySelector("unet_diffusion_song", options),
            loss=LossConfig(),
            in_names=INPUTS,
            out_names=INPUTS[:1],
            normalization=PairedNormalizationConfig(fine=unit, coarse=unit),
            sigma_min=0.002,
            sigma_max=80.0,
            churn=0.0,
            num_diffusion_generation_steps=steps,
            predict_residual=True,
            use_amp_bf16=bf16,
            training_noise_distribution=LogNormalNoiseDistribution(p_mean=-1.2, p_std=1.2),
        )
        torch.manual_seed(0)
        places = _places(network.size)
        shape = (network.coarse, network.coarse)
        return config.build(shape, network.factor, LatLonCoordinates(lat=places, lon=places))

    def batch(self, network: Network, n: int) -> object:
        """A ``PairedBatchData`` on the device."""
        from fme.downscaling.data import PairedBatchData
        from fme.downscaling.data.datasets import BatchData
        from fme.downscaling.data.utils import BatchedLatLonCoordinates

        times = xr.DataArray(np.datetime64("2019-03-01", "ns") + np.arange(n), dims="batch")

        def part(names: list[str], size: int) -> object:
            places = _places(size).expand(n, -1)
            fields = {name: torch.randn(n, size, size, device=places.device) for name in names}
            return BatchData(fields, times, BatchedLatLonCoordinates(places, places))

        return PairedBatchData(part(INPUTS[:1], network.size), part(INPUTS, network.coarse))

    def step(self, network: Network, n: int, *, bf16: bool) -> Callable[[], object]:
        """One batch of its trainer's epoch: ``train_on_batch``, averages, aggregator, the loss on the host."""
        from fme.core.ema import EMAConfig
        from fme.core.optimization import OptimizationConfig
        from fme.downscaling.aggregators import Aggregator

        model, batch = self.model(network, bf16=bf16), self.batch(network, n)
        options = OptimizationConfig(optimizer_type="AdamW", lr=LEARNING_RATE, kwargs={"fused": True})
        optimization = options.build(model.modules, max_epochs=1)
        average = EMAConfig(decay=DECAY).build(model.modules)
        aggregator = Aggregator(["lat", "lon"], network.factor)
        model.module.train()

        def step() -> object:
            outputs = model.train_on_batch(batch, optimization)
            average(model.modules)
            with torch.no_grad():
                aggregator.record_batch(outputs=outputs, coarse=batch.coarse.data, batch=batch)
            return outputs.loss.detach().cpu().numpy()

        return step

    def forward(self, network: Network, n: int) -> Callable[[], object]:
        """Its preconditioned network, bfloat16, without gradients."""
        module = self.model(network, bf16=True).module.eval()
        x = torch.randn(n, 1, network.size, network.size, device=_device())
        condition = torch.randn(n, len(INPUTS), network.size, network.size, device=_device())
        sigma = torch.ones(n, 1, 1, 1, device=_device())

        def evaluate() -> object:
            with torch.no_grad():
                return module(x, condition, sigma)

        return evaluate

    def generate(self, network: Network, windows: int, members: int, steps: int) -> Callable[[], object]:
        """Its sampler: so many Heun steps for members of some windows, bfloat16."""
        model, batch = self.model(network, bf16=True, steps=steps), self.batch(network, windows)
        model.module.eval()
        return lambda: model.generate_on_batch_no_target(batch.coarse, n_samples=members)

    def average(self, network: Network) -> Callable[[], object]:
        """The update of its averages."""
        from fme.core.ema import EMAConfig

        model = self.model(network, bf16=True)
        average = EMAConfig(decay=DECAY).build(model.modules)
        return lambda: average(model.modules)


def _device() -> torch.device:
    from fme.core.device import get_device

    return get_device()


def _places(size: int) -> torch.Tensor:
    return torch.linspace(1.0, 11.0, size, device=_device())


def found(cleanup: ExitStack) -> Peer | None:
    """fme, if it is installed: what it imports without need may be missing."""
    stand_in(UNUSED_BY_FME)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        import fme
        from fme.core.distributed import Distributed
    except ImportError as problem:
        if problem.name == "fme":
            return None
        raise
    logging.getLogger().setLevel(logging.ERROR)
    cleanup.enter_context(Distributed.context(handle_signals=False))
    return Peer(fme)
