"""hookloop's side: the real downscaling task, its batches on the device, the real loop."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import structlog
import torch
from torch import Tensor, nn

from hookloop.data.normalize import Scale
from hookloop.diffusion_options import UNetOptions
from hookloop.plugins.downscaling.dataset import HALO, PairBatch, upsample
from hookloop.plugins.downscaling.model import Downscaler, DownscalingTask
from hookloop.plugins.downscaling.options import ModelConfig, SamplerConfig
from hookloop.plugins.downscaling.transforms import make_transforms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpu.sizes import Network
    from hookloop.diffusion.edm import Precondition
    from hookloop.task import Data, Task

INPUTS = ["t2m", "u10", "v10", "sp"]
LEARNING_RATE = 1e-4
DECAY = 0.9999


class Fields(DownscalingTask):
    """The downscaling task without files: nothing is known of them that a checkpoint should hold."""

    @property
    def facts(self) -> Mapping[str, object]:  # type: ignore[override]
        """None."""
        return {}


def fields_task(
    network: Network,
    device: torch.device,
    data: Mapping[str, Data] | None = None,
    sampler: SamplerConfig | None = None,
) -> Fields:
    """Four coarse inputs, one fine output, the difference from its interpolation learnt; always the same weights."""
    torch.manual_seed(0)
    places = torch.linspace(0.0, 10.0, network.size)
    backbone = UNetOptions(channels=network.channels, multipliers=network.multipliers, blocks=network.blocks)
    model = Downscaler(
        ModelConfig(inputs=INPUTS, outputs=INPUTS[:1], backbone=backbone),
        make_transforms({}, {}),
        Scale(torch.zeros(len(INPUTS)), torch.ones(len(INPUTS))),
        Scale(torch.zeros(1), torch.ones(1)),
        torch.zeros(0, network.size, network.size),
        places,
        places,
    )
    return Fields(
        model.to(device),
        data or {},
        sampler or SamplerConfig(),
        network.factor,
        {},
        {},
        structlog.get_logger(),
    )


def pairs(network: Network, n: int, device: torch.device, seed: int = 0) -> PairBatch:
    """Random coarse fields and fine ones with detail that partly follows from them: there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    rows = network.coarse + 2 * HALO
    coarse = torch.randn(n, len(INPUTS), rows, rows, generator=generator)
    smooth = upsample(coarse, network.factor)
    waves = torch.sin(torch.arange(network.size) * 2.0)
    noise = torch.randn(n, 1, network.size, network.size, generator=generator)
    fine = smooth[:, :1] + smooth[:, 1:2] * waves * waves[:, None] + 0.2 * noise
    return PairBatch(
        coarse.to(device),
        fine.to(device),
        torch.zeros(n, 2, dtype=torch.int64, device=device),
        torch.zeros(n, device=device),
        torch.zeros(n, device=device),
        np.datetime64("2019-03-01", "h") + np.arange(n),
    )


def awakened(model: nn.Module) -> nn.Module:
    """*model* with random numbers where it starts with zeros: otherwise most of it does not reach the result."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                width = parameter[0].numel() if parameter.ndim > 1 else 100
                drawn = torch.randn(parameter.shape, generator=generator) * width**-0.5
                parameter.copy_(drawn)
    return model


def bare_step(task: Task, batch: PairBatch) -> Callable[[], Tensor]:
    """What a training step must do, in the fewest lines: bfloat16 loss, gradient, AdamW, average; it gives the loss."""
    device = batch.fine.device
    weights = list(task.model.parameters())
    # A graph cannot hold numbers of the host: the optimizer's own counters must lie on the device.
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, fused=True, capturable=device.type == "cuda")
    averages = [weight.detach().clone() for weight in weights]

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            loss = task.loss(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - DECAY)
        return loss.detach()

    task.model.train()
    return step


def graphed(call: Callable[[], Tensor], warm: int = 3) -> tuple[Callable[[], None], Tensor]:
    """Capture *call* as a CUDA graph: what replays it, and where its result then lies."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(warm):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result


class GraphedDenoiser(nn.Module):
    """A copy of a denoiser with bfloat16 weights, as one CUDA graph for the one shape it is called with."""

    def __init__(self, denoiser: Precondition, batch: int, network: Network, device: torch.device) -> None:
        super().__init__()
        self.copied = copy.deepcopy(denoiser)
        self.copied.backbone.bfloat16()
        self.x, self.sigma, self.condition = denoiser_inputs(network, batch, device)
        self.replay, self.result = graphed(forward(self.copied, self.x, self.sigma, self.condition))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Denoise, in memory that the next call writes to again."""
        self.x.copy_(x)
        self.sigma.copy_(sigma)
        self.condition.copy_(condition)
        self.replay()
        return self.result.clone()


def forward(denoiser: nn.Module, *inputs: Tensor) -> Callable[[], Tensor]:
    """What evaluates *denoiser* without gradients under bfloat16 autocast; weights are cast at every call.

    No cast weight outlives the call, so that it can be captured in a graph.
    """
    device = inputs[0].device

    def evaluate() -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            answer: Tensor = denoiser(*inputs)
        return answer

    denoiser.eval()
    return evaluate


def denoiser_inputs(network: Network, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random ones: noisy fields, noise levels and condition."""
    x = torch.randn(batch, 1, network.size, network.size, device=device)
    condition = torch.randn(batch, len(INPUTS), network.size, network.size, device=device)
    return x, torch.linspace(0.1, 10.0, batch, device=device), condition
