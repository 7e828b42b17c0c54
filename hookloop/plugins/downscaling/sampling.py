"""With which network each member is drawn: the run's own, those of an ensemble, experts for high noise."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from hookloop import warm_start
from hookloop.casting import cast_once
from hookloop.config import build, options_of
from hookloop.data.normalize import Scale
from hookloop.diffusion.noise import MemberNoise
from hookloop.errors import HookloopError
from hookloop.graphs import CudaGraphs, Replays, places
from hookloop.plugins.downscaling import Downscaling
from hookloop.plugins.downscaling.transforms import make_transforms
from hookloop.resume import load_weights
from hookloop.yamlfile import Document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from hookloop.diffusion.edm import Precondition
    from hookloop.plugins.downscaling.dataset import PairBatch
    from hookloop.plugins.downscaling.model import Downscaler
    from hookloop.plugins.downscaling.options import SamplerConfig
    from hookloop.yamlfile import Plain

_SHAPED = ("input_mean", "input_std", "target_mean", "target_std", "statics", "latitude", "longitude")
_CLOSE = 1e-4
"""What is the same differs by less: scales in standard deviations, since a member would be wrong by as much."""


@frozen(eq=False)
class _Stage:
    """A network and the noise levels that are its own: from *lowest* up to where the next stage begins."""

    lowest: float
    network: Precondition
    condition: Tensor
    """What it is given for each member."""


@define(eq=False)
class Networks:
    """Draws normalised members with the networks that the sampler names; others than the run's own are read once.

    What they generate is compared when they are read. Scales are compared only when training begins, or else before
    the first member: until then what a run starts from may replace its own.

    They lie outside the model: neither trained nor averaged nor saved with it.
    """

    model: Downscaler
    sampler: SamplerConfig
    events: FilteringBoundLogger
    others: dict[Path, Downscaler] = field(init=False, factory=dict)
    """Those that have been read, and generate the same thing."""
    fitting: set[Path] = field(init=False, factory=set)
    """Those whose scales are known to be the same too."""
    replays: Replays = field(init=False, factory=lambda: Replays(CudaGraphs()))
    """Generations that are repeated on a GPU."""
    _told: bool = field(init=False, default=False)
    """That nothing is repeated."""

    def read(self) -> None:
        """Read the other networks, long before they are needed.

        :raises HookloopError: for one that is not there, cannot be read or generates something else.
        """
        for path in self._options:
            self._read(path)

    def expect_fitting(self) -> None:
        """Refuse networks with other scales than the model has now.

        :raises HookloopError: for these, and as :meth:`read` does.
        """
        for path in self._options:
            self._other(path)

    def digests(self) -> dict[Path, str]:
        """Read the other networks now, and give the :func:`digest` of each.

        :raises HookloopError: for checkpoints that are not there, cannot be read or do not fit.
        """
        return {path: digest(self._other(path)) for path in self._options}

    @property
    def _options(self) -> dict[Path, str]:
        """Which option names a checkpoint: the first one that does."""
        experts, ensemble = self.sampler.experts, self.sampler.ensemble
        named = [(f"ensemble[{i}]", path) for i, path in enumerate(ensemble)]
        named += [(f"experts[{i}].checkpoint", expert.checkpoint) for i, expert in enumerate(experts)]
        return {path: f"downscaling.sampler.{option}" for option, path in reversed(named)}

    def to(self, device: torch.device) -> None:
        """Move all that have been read to *device*."""
        for model in (self.model, *self.others.values()):
            model.to(device)

    def draw(
        self, batch: PairBatch, upsampled: Tensor, seeds: Sequence[Sequence[int]], first: int = 0
    ) -> Tensor:
        """Draw a member for each seed of each case: ``[case · member, output, lat, lon]``, normalised.

        All noise of a member is drawn in order from one generator, seeded with its seed, so that it is the same
        field in any company. Member number k is drawn with network k modulo the number of networks.

        :param upsampled: what the model's ``interpolated`` makes of the batch.
        :param seeds: ``seeds[case][member]``.
        :param first: the number of the first of these members within its ensemble.
        :raises HookloopError: for checkpoints that cannot be read or do not fit.
        """
        networks = [self.model, *map(self._other, self.sampler.ensemble)]
        members = len(seeds[0])
        shape = (len(self.model.config.outputs), *upsampled.shape[-2:])
        drawn = torch.empty((len(seeds), members, *shape), device=upsampled.device)
        for i, network in enumerate(networks):
            turns = slice((i - first) % len(networks), None, len(networks))
            own = [seed for case in seeds for seed in case[turns]]
            if own:
                noise = MemberNoise(own, shape, upsampled.device)
                stages = self._stages(network, batch, upsampled, len(own) // len(seeds))
                with cast_once([stage.network for stage in stages]):
                    generated = self._generated(stages, noise)
                drawn[:, turns] = generated.view(len(seeds), -1, *shape)
        return drawn.flatten(0, 1)

    def _generated(self, stages: Sequence[_Stage], noise: MemberNoise) -> Tensor:
        """Step from noise to normalised members: as the sampler does, or as it has done with the same networks."""
        if not self._repeats(noise.device):
            return self.sampler.sample(partial(_denoise, stages), noise(), noise)

        def work(start: Tensor, *conditions: Tensor) -> Tensor:
            given = [evolve(s, condition=c) for s, c in zip(stages, conditions, strict=True)]
            return self.sampler.sample(partial(_denoise, given), start, noise)

        kind = noise.device.type
        precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        weights = tuple(places(stage.network) for stage in stages)
        return self.replays((weights, precision), work, [noise(), *(stage.condition for stage in stages)])

    def _repeats(self, device: torch.device) -> bool:
        """Whether generations are recorded here; tells once where they were to be and are not."""
        if self.sampler.compile == "off" or device.type == "cuda":
            return self.sampler.compile != "off"
        if not self._told:
            self.events.info("sampler.not_compiled", why=f"{device.type} has no CUDA graphs")
        self._told = True
        return False

    def _stages(self, network: Downscaler, batch: PairBatch, upsampled: Tensor, members: int) -> list[_Stage]:
        """Whom to ask at which noise levels, from low to high, each with its own condition of every member."""
        experts = sorted(self.sampler.experts, key=lambda expert: expert.sigma_min)
        above = [(expert.sigma_min, self._other(expert.checkpoint)) for expert in experts]
        return [
            _Stage(
                lowest,
                asked.denoiser,
                asked.condition(batch, upsampled).repeat_interleave(members, 0),
            )
            for lowest, asked in [(0.0, network), *above]
        ]

    def _other(self, path: Path) -> Downscaler:
        """Give a network that fits."""
        other = self._read(path)
        if path not in self.fitting:
            self._refuse(path, _other_numbers(other, self.model))
            self.fitting.add(path)
        return other

    def _read(self, path: Path) -> Downscaler:
        """Read a network once, to be used beside the model: on its device, not trained."""
        if path in self.others:
            return self.others[path]
        try:
            state = warm_start.read(path)
            other = restored(path, state)
        except HookloopError as problem:
            raise HookloopError(f"{self._options[path]}: {problem}") from problem
        self._refuse(path, _differences(other, self.model))
        self.events.info("network.read", path=str(path), weights=which_weights(path, state))
        self.others[path] = other.to(self.model.latitude.device)
        return self.others[path]

    def _refuse(self, path: Path, odd: Sequence[str]) -> None:
        if odd:
            raise HookloopError(
                f"{self._options[path]}: {path}: a checkpoint of another model, which cannot generate beside this "
                f"one: {'; '.join(odd)}"
            )


def _denoise(stages: Sequence[_Stage], x: Tensor, sigma: float) -> Tensor:
    stage = next(stage for stage in reversed(stages) if sigma >= stage.lowest)
    denoised: Tensor = stage.network(x, torch.full((len(x),), sigma, device=x.device), stage.condition)
    return denoised


def digest(model: Downscaler) -> str:
    """Tell a network with its weights, scales and static fields from any others."""
    found = hashlib.blake2b(json.dumps(options_of(model.config)).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def restored(path: Path, state: Mapping[str, object]) -> Downscaler:
    """Build the model that a checkpoint of a downscaling run holds, on the CPU, as it is generated with.

    Its weights are those that the run validated with: the averages, if it validated with averages, also where the
    checkpoint is one to go on from, which holds the others too.

    :param path: what *state* was read from, for errors.
    :raises HookloopError: for a checkpoint of anything else.
    """
    from hookloop.plugins.downscaling.model import Downscaler

    document = Document(cast("dict[str, Plain]", state.get("config", {})), source=str(path))
    if "downscaling" not in document.data:
        raise HookloopError(
            f"{path}: its configuration has no section downscaling; expected a run that downscales"
        )
    options, weights = build(Downscaling, document, "downscaling"), warm_start.weights_in(state)
    if missing := [name for name in _SHAPED if name not in weights]:
        raise HookloopError(f"{path}: no model of a downscaling run: {missing[0]} is missing")
    shaped = [w for name, w in weights.items() if name.startswith("transforms.") and name.endswith(".values")]
    # They are loaded below, but their number must be known here; each variable needs tensors of its own.
    knots = {n: (torch.zeros_like(w), torch.zeros_like(w)) for w in shaped[:1] for n in options.transforms}
    model = Downscaler(
        options.model,
        make_transforms(options.transforms, knots),
        Scale(weights["input_mean"], weights["input_std"]),
        Scale(weights["target_mean"], weights["target_std"]),
        *(weights[name] for name in ("statics", "latitude", "longitude")),
    )
    load_weights(model, path, weights)
    _take_averages(model, state)
    return model.eval().requires_grad_(requires_grad=False)


def which_weights(path: Path, state: Mapping[str, object]) -> str:
    """Say which of its weights :func:`restored` takes from a checkpoint, for people."""
    if lent := _averages(state):
        return f"averages of {lent[0]} in {path.name}"
    if "plugins" in state:
        return f"those of {path.name}, not averaged"
    return f"those of {path.name}, {'averages' if 'average' in state else 'as they were validated'}"


def _take_averages(model: Downscaler, state: Mapping[str, object]) -> None:
    """Put the averages that were validated with in the place of the weights, where the checkpoint has both."""
    if lent := _averages(state):
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                weight.copy_(lent[1].get(parameter, weight))


def _averages(state: Mapping[str, object]) -> tuple[str, Mapping[str, Tensor]] | None:
    """Find the averages that the run validated with beside its weights, and the name of their plugin."""
    options = cast("Mapping[str, Mapping[str, object]]", state["config"])
    plugins = cast("Mapping[str, Mapping[str, object]]", state.get("plugins", {}))
    for name, plugin in plugins.items():
        averages = plugin.get("averages")
        if isinstance(averages, dict) and options.get(name, {}).get("validate", True):
            return name, averages
    return None


def _differences(there: Downscaler, here: Downscaler) -> list[str]:
    """Say what keeps two models from generating the same thing; their networks and conditions may differ.

    What they have measured of their data is compared by :func:`_other_numbers`.
    """
    odd = [
        f"{option} {found} there, {expected} here"
        for option in ("inputs", "outputs", "residual")
        if (found := getattr(there.config, option)) != (expected := getattr(here.config, option))
    ]
    if odd:
        return odd
    kinds = [{n: type(m).__name__ for n, m in each.transforms.named_modules()} for each in (here, there)]
    bounds = [(each.transforms.least, each.transforms.dry) for each in (here, there)]
    if kinds[0] != kinds[1] or bounds[0] != bounds[1]:
        return ["other transforms"]
    for name in ("latitude", "longitude"):
        a, b = getattr(there, name), getattr(here, name).cpu()
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=_CLOSE):
            return [f"another grid, {_extent(there)} there, {_extent(here)} here"]
    return []


def _other_numbers(there: Downscaler, here: Downscaler) -> list[str]:
    """Say which scales, or numbers in transforms, of two models on one device differ."""
    odd = []
    for what, theirs, ours in (
        ("inputs", there.inputs, here.inputs),
        ("target", there.targets, here.targets),
    ):
        shift = ((theirs.mean - ours.mean) / ours.std).abs().max()
        if shift > _CLOSE or (theirs.std / ours.std).log().abs().max() > _CLOSE:
            odd.append(f"another scale of the {what}, {_scale(theirs)} there, {_scale(ours)} here")
    buffers = dict(here.transforms.named_buffers())
    if any(
        not torch.allclose(b, buffers[n], rtol=_CLOSE, atol=0) for n, b in there.transforms.named_buffers()
    ):
        odd.append("other numbers in the transforms")
    return odd


def _scale(scale: Scale) -> str:
    return f"mean {scale.mean.flatten().tolist()} and std {scale.std.flatten().tolist()}"


def _extent(model: Downscaler) -> str:
    sides = [(axis[0].item(), axis[-1].item(), len(axis)) for axis in (model.latitude, model.longitude)]
    return " by ".join(f"{start:g} … {end:g} ({n})" for start, end, n in sides)
