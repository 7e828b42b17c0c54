"""The downscaling task: what the network is given, what it learns, how fields are generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import define, field
from torch import Tensor, nn

from hookloop.data.features import CHANNELS, feature
from hookloop.data.normalize import Scale
from hookloop.data.statics import load_statics
from hookloop.diffusion.edm import Objective, Precondition
from hookloop.plugins.downscaling.attributes import attributes_of
from hookloop.plugins.downscaling.dataset import PairBatch, PairedData, upsample
from hookloop.plugins.downscaling.measured import checked, measured
from hookloop.plugins.downscaling.sampling import Networks
from hookloop.plugins.downscaling.splits import open_data, open_pairs
from hookloop.plugins.downscaling.transforms import Transforms, make_transforms
from hookloop.task import Paired, Window, independent_windows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from hookloop.core import Run
    from hookloop.plugins.downscaling import Downscaling
    from hookloop.plugins.downscaling.options import ModelConfig, SamplerConfig
    from hookloop.task import Data
    from hookloop.yamlfile import Plain


class Downscaler(nn.Module):
    """A denoiser of normalised targets and everything needed to make them from physical fields and back.

    Scales, knots, static fields and coordinates are buffers, so that any checkpoint is complete by itself.

    :param config: the options of the model.
    :param transforms: what is done to variables before anything else, and undone last.
    :param inputs: scale of the coarse variables, transformed.
    :param targets: scale of what is generated: the residual, or the fine variables themselves, transformed.
    :param statics: ``[static, lat, lon]``, normalised, on the fine grid; latitude and longitude in degrees.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    statics: Tensor
    latitude: Tensor
    longitude: Tensor

    def __init__(
        self,
        config: ModelConfig,
        transforms: Transforms,
        inputs: Scale,
        targets: Scale,
        statics: Tensor,
        latitude: Tensor,
        longitude: Tensor,
    ) -> None:
        super().__init__()
        self.config = config
        self.transforms = transforms
        buffers = {
            "input_mean": inputs.mean,
            "input_std": inputs.std,
            "target_mean": targets.mean,
            "target_std": targets.std,
            "statics": statics,
            "latitude": latitude,
            "longitude": longitude,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        extra = sum(CHANNELS[name] for name in config.features)
        condition = len(config.inputs) + len(statics) + extra
        self.denoiser = Precondition(config.backbone.build(len(config.outputs), condition))

    @property
    def inputs(self) -> Scale:
        """Scale of the coarse variables."""
        return Scale(self.input_mean, self.input_std)

    @property
    def targets(self) -> Scale:
        """Scale of what is generated."""
        return Scale(self.target_mean, self.target_std)

    def interpolated(self, coarse: Tensor, factor: int) -> Tensor:
        """Transform the inputs with their halo, then interpolate: bicubic, ``[batch, input, lat, lon]``."""
        return upsample(self.transforms(coarse, self.config.inputs), factor)

    def condition(self, batch: PairBatch, upsampled: Tensor) -> Tensor:
        """Everything the network is given, ``[batch, condition, lat, lon]``.

        :param upsampled: see :meth:`interpolated`.
        """
        height, width = upsampled.shape[-2:]
        rows = batch.corner[:, 0, None] + torch.arange(height, device=upsampled.device)
        columns = batch.corner[:, 1, None] + torch.arange(width, device=upsampled.device)
        columns = columns % len(self.longitude)  # a patch may cross the seam of a global grid
        parts = [self.inputs.normalize(upsampled)]
        if len(self.statics):
            parts.append(self.statics[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1))
        parts += [
            feature(name, batch.hour, batch.day, self.latitude, self.longitude, rows, columns)
            for name in self.config.features
        ]
        return torch.cat(parts, 1).float()

    def target(self, fine: Tensor, upsampled: Tensor) -> Tensor:
        """What is learnt to be generated for physical fields ``[batch, output, lat, lon]``, normalised."""
        transformed = self.transforms(fine, self.config.outputs)
        return self.targets.normalize(transformed - self._origin(upsampled))

    def fields(self, generated: Tensor, upsampled: Tensor) -> Tensor:
        """Back from :meth:`target` to physical fields.

        :param generated: as many members of each case after one another as there are cases in *upsampled*.
        """
        members = len(generated) // len(upsampled)
        transformed = self.targets.denormalize(generated) + _repeated(self._origin(upsampled), members)
        return self.transforms.inverse(transformed, self.config.outputs)

    def _origin(self, upsampled: Tensor) -> Tensor:
        """What the target is measured from: the outputs' own inputs, or nothing."""
        if not self.config.residual:
            return torch.zeros((), device=upsampled.device)
        own = [upsampled[:, self.config.inputs.index(name)] for name in self.config.outputs]
        return torch.stack(own, 1)  # a list of numbers as index would have the device waited for


@define(eq=False)
class DownscalingTask:
    """A :class:`hookloop.task.Generative`: one full sampling of each evaluation window, nothing carried on."""

    model: Downscaler
    data: Mapping[str, Data]
    sampler: SamplerConfig
    factor: int
    units: Mapping[str, str]
    attributes: Mapping[str, Mapping[str, str]]
    """Those of the fine files, by output."""
    events: FilteringBoundLogger
    networks: Networks = field(init=False)
    """What members are drawn with."""

    def __attrs_post_init__(self) -> None:
        """Name the networks; they are read when fields are generated."""
        self.networks = Networks(self.model, self.sampler, self.events)

    @property
    def facts(self) -> Mapping[str, Plain]:
        """How many fine cells a coarse one has along each axis, attributes of the outputs, units of the inputs."""
        known = {
            name: {"units": self.units[name]} for name in self.model.config.outputs if self.units.get(name)
        }
        attributes: dict[str, Plain] = {
            name: {**own, **known.get(name, {})} for name, own in self.attributes.items()
        }
        given: dict[str, Plain] = {**self._paired("train").pair.coarse.units}
        return {"factor": self.factor, "attributes": attributes, "input_units": given}

    def loss(self, batch: PairBatch) -> Mapping[str, Tensor]:
        """The EDM denoising loss: its weighted mean over variables, and each variable's own."""
        return self._objective.loss(self.model.denoiser, *self._learnt(batch), batch.rows)

    def noise_levels(self, quantiles: Tensor) -> Tensor:
        """Give σ at these quantiles of ln σ ~ N(mean, std²), from which training draws."""
        return self._objective.noise_levels(quantiles)

    def loss_at(self, batch: PairBatch, quantiles: Tensor) -> Mapping[str, Tensor]:
        """Give the losses of :meth:`loss` for each sample, with noise of these levels."""
        return self._objective.loss_at(self.model.denoiser, *self._learnt(batch), quantiles, batch.rows)

    @property
    def _objective(self) -> Objective:
        config = self.model.config
        return Objective(config.outputs, config.loss_weights, config.noise.mean, config.noise.std)

    def _learnt(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """What the denoiser is to find, ``[batch, output, lat, lon]``, and what it is given."""
        upsampled = self.model.interpolated(batch.coarse, self.factor)
        return self.model.target(batch.fine, upsampled), self.model.condition(batch, upsampled)

    def windows(self, split: str, size: int, limit: int | None = None) -> Sequence[Window]:
        """The times of *split* in order, *size* at a time."""
        return independent_windows(split, self._paired(split).n_cases, size, limit)

    def initial_condition(self, split: str) -> None:
        """Nothing is carried from one window to the next."""

    def predict_paired(
        self, state: None, window: Window, seeds: Sequence[Sequence[int]], first: int = 0
    ) -> tuple[Paired, None]:
        """Generate one member for each seed of each case, whole fields.

        :param first: the number of the first of these members, where they are part of an ensemble.
        """
        data = self._paired(window.split)
        batch = data.cases(window.cases)
        upsampled = self.model.interpolated(batch.coarse, self.factor)
        fields = self.members(batch, upsampled, seeds, first)
        return self._paired_fields(data, window.cases, batch, upsampled, fields), state

    def members(
        self, batch: PairBatch, upsampled: Tensor, seeds: Sequence[Sequence[int]], first: int = 0
    ) -> Tensor:
        """Generate physical fields ``[case, member, output, lat, lon]``; see :meth:`Networks.draw`."""
        generated = self.networks.draw(batch, upsampled, seeds, first)
        fields = self.model.fields(generated, upsampled)
        return fields.view(len(seeds), -1, *fields.shape[1:])

    def _paired(self, split: str) -> PairedData:
        data = self.data[split]
        assert isinstance(data, PairedData)
        return data

    @property
    def variables(self) -> Sequence[str]:
        """What is generated."""
        return self.model.config.outputs

    @property
    def without_baseline(self) -> Sequence[str]:
        """Outputs that are no inputs."""
        config = self.model.config
        return [name for name in config.outputs if name not in config.inputs]

    def _baseline(self, coarse: Tensor, upsampled: Tensor) -> dict[str, Tensor]:
        """Bicubic interpolation of the outputs' own physical fields, ``[case, lat, lon]`` each."""
        inputs, outputs = self.model.config.inputs, self.model.config.outputs
        known = [name for name in outputs if name in inputs]
        if self.model.transforms.any_of(known):  # otherwise they are what has been interpolated already
            upsampled = upsample(coarse, self.factor)
        bounded = self.model.transforms.not_below  # as what is generated is, or it were beaten too easily
        return {name: bounded(name, upsampled[:, inputs.index(name)]) for name in known}

    def _paired_fields(
        self, data: PairedData, cases: Sequence[int], batch: PairBatch, upsampled: Tensor, fields: Tensor
    ) -> Paired:
        config = self.model.config
        return Paired(
            prediction={name: fields[:, :, i] for i, name in enumerate(config.outputs)},
            target={name: batch.fine[:, i] for i, name in enumerate(config.outputs)},
            baseline=self._baseline(batch.coarse, upsampled),
            coarse={name: data.inside(batch.coarse)[:, i] for i, name in enumerate(config.inputs)},
            latitude=self.model.latitude.tolist(),
            longitude=self.model.longitude.tolist(),
            labels=data.labels(cases),
            days=data.days(cases),
            units=self.units,
            gridded=data.pair.fine_grid.gridded,
            wraps=data.pair.periodic,
        )


def _repeated(origin: Tensor, members: int) -> Tensor:
    return origin.repeat_interleave(members, 0) if origin.ndim else origin


def make_task(options: Downscaling, run: Run) -> DownscalingTask:
    """Open and check the data, measure it, and build the network for it on the run's device."""
    config = options.model
    pairs = open_pairs(options)
    pair = pairs["train"]
    config.expect_places(pair.fine_grid)
    statics = load_statics(options.statics, pair.fine_grid)
    given = options.normalization.scale(config.inputs) if options.normalization else None
    data = open_data(options, pairs, run)
    with run.ranks.leader_first():
        found = measured(pair, data["train"].store, config, options.transforms, given, run.events)
        for name, split in data.items():
            if name != "train":  # which was read when it was measured
                checked(name, pairs[name], split.store, run.events)
    torch.manual_seed(run.seed("model"))
    model = Downscaler(
        config,
        make_transforms(options.transforms, found.knots),
        found.inputs,
        found.targets,
        statics,
        torch.as_tensor(pair.fine_grid.latitude, dtype=torch.float32),
        torch.as_tensor(pair.fine_grid.longitude, dtype=torch.float32),
    )
    task = DownscalingTask(
        model.to(run.device),
        data,
        options.sampler,
        pair.factor,
        pair.units,
        attributes_of(pair.fine),
        run.events,
    )
    task.networks.read()
    return task
