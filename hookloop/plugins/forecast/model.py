"""The network of a forecast: what it is given, what it generates, and from there to physical fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hookloop.data.features import CHANNELS, feature
from hookloop.data.normalize import Scale
from hookloop.diffusion.edm import Precondition

if TYPE_CHECKING:
    from hookloop.plugins.forecast.measured import Measured
    from hookloop.plugins.forecast.options import ModelConfig


class Forecaster(nn.Module):
    """A denoiser of normalised steps and everything needed to make them from physical fields and back.

    Scales, static fields and coordinates are buffers, so that any checkpoint is complete by itself.

    :param config: the options of the model.
    :param scales: of the state and the forcing, and of what is generated.
    :param statics: ``[static, lat, lon]``, normalised; latitude and longitude in degrees.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    statics: Tensor
    latitude: Tensor
    longitude: Tensor

    def __init__(
        self, config: ModelConfig, scales: Measured, statics: Tensor, latitude: Tensor, longitude: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        buffers = {
            "input_mean": scales.inputs.mean,
            "input_std": scales.inputs.std,
            "target_mean": scales.targets.mean,
            "target_std": scales.targets.std,
            "statics": statics,
            "latitude": latitude,
            "longitude": longitude,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        extra = sum(CHANNELS[name] for name in config.features)
        condition = len(config.variables) + len(config.forcing) + len(statics) + extra
        self.denoiser = Precondition(config.backbone.build(len(config.state), condition))

    @property
    def targets(self) -> Scale:
        """Scale of what is generated."""
        return Scale(self.target_mean, self.target_std)

    def condition(self, state: Tensor, forcing: Tensor, coming: Tensor, hour: Tensor, day: Tensor) -> Tensor:
        """Everything the network is given, ``[case, condition, lat, lon]``.

        :param state: present, ``[case, state, lat, lon]``, physical.
        :param forcing: present, ``[case, forcing, lat, lon]``, and *coming*, that of the next state.
        :param hour: of the next state, ``[case]``, and *day*, of the year.
        """
        inputs = Scale(self.input_mean, self.input_std)
        known = slice(len(self.config.state), None)
        parts = [
            inputs.normalize(torch.cat([state, forcing], 1)),
            Scale(self.input_mean[known], self.input_std[known]).normalize(coming),
            self.statics.expand(len(state), -1, -1, -1),
        ]
        axes = self.latitude, self.longitude
        cells = [torch.arange(len(axis), device=axis.device)[None] for axis in axes]
        parts += [feature(name, hour, day, *axes, *cells) for name in self.config.features]
        return torch.cat(parts, 1).float()

    def target(self, state: Tensor, following: Tensor) -> Tensor:
        """What is learnt to be generated for physical states ``[case, state, lat, lon]``, normalised."""
        return self.targets.normalize(following - state if self.config.residual else following)

    def following(self, state: Tensor, generated: Tensor) -> Tensor:
        """Back from :meth:`target`: the next state, physical."""
        change = self.targets.denormalize(generated)
        return state + change if self.config.residual else change
