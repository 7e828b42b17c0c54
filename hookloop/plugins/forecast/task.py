"""The forecast task: single steps are learnt, and generated one after another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from attrs import define, frozen
from torch import Tensor

from hookloop.data.calendars import calendar_of, labels, only_in
from hookloop.data.places import places
from hookloop.data.readers import default_workers
from hookloop.data.sharing import on_this_host
from hookloop.data.statics import load_statics
from hookloop.diffusion.edm import Objective
from hookloop.diffusion.noise import MemberNoise
from hookloop.errors import HookloopError
from hookloop.plugins.forecast.dataset import StepBatch, StepData
from hookloop.plugins.forecast.measured import checked, measured
from hookloop.plugins.forecast.model import Forecaster
from hookloop.plugins.forecast.states import duration, open_states, split_options
from hookloop.plugins.forecast.stores import open_store
from hookloop.task import Paired, Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hookloop.core import Run
    from hookloop.data.fields import Ints
    from hookloop.diffusion_options import SolverConfig
    from hookloop.plugins.forecast import Forecast
    from hookloop.plugins.forecast.states import States
    from hookloop.task import Data


@frozen(eq=False)
class ForecastWindow(Window):
    """Some steps of forecasts from several starts; a case is a start at the first of these steps."""

    first_step: int
    """How many steps lie before; 0 reads the analysis, others go on from the window before."""
    chain: Ints
    """``[start, horizon + 1]``, numbers of the times of each whole forecast, that of its start first."""


@frozen(eq=False)
class Carried:
    """Where all members are, and what their noise is drawn from."""

    fields: Tensor
    """``[start · member, state, lat, lon]``, physical: the members of a start after one another."""
    seeds: Sequence[int]
    """``[start · member]``, those of the first window: so windows of any length draw the same noise."""


@define(eq=False)
class ForecastTask:
    """A :class:`hookloop.task.Generative`: a window goes on from the last states of the one before."""

    model: Forecaster
    data: Mapping[str, Data]
    sampler: SolverConfig
    n_forward_steps: int
    windows_per_start: int
    starts: int | None

    def loss(self, batch: StepBatch) -> Mapping[str, Tensor]:
        """The EDM denoising loss of a single step: its weighted mean over variables, and each variable's own."""
        return self._objective.loss(self.model.denoiser, *self._learnt(batch), batch.rows)

    def noise_levels(self, quantiles: Tensor) -> Tensor:
        """Give σ at these quantiles of ln σ ~ N(mean, std²), from which training draws."""
        return self._objective.noise_levels(quantiles)

    def loss_at(self, batch: StepBatch, quantiles: Tensor) -> Mapping[str, Tensor]:
        """Give the losses of :meth:`loss` for each sample, with noise of these levels."""
        return self._objective.loss_at(self.model.denoiser, *self._learnt(batch), quantiles, batch.rows)

    @property
    def variables(self) -> Sequence[str]:
        """What is generated."""
        return self.model.config.state

    @property
    def _objective(self) -> Objective:
        config = self.model.config
        return Objective(config.state, config.loss_weights, config.noise.mean, config.noise.std)

    def _learnt(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """What the denoiser is to find, ``[batch, state, lat, lon]``, and what it is given."""
        n = len(self.model.config.state)
        state, forcing, coming = batch.present[:, :n], batch.present[:, n:], batch.following[:, n:]
        condition = self.model.condition(state, forcing, coming, batch.hour, batch.day)
        return self.model.target(state, batch.following[:, :n]), condition

    def windows(self, split: str, size: int, limit: int | None = None) -> Sequence[ForecastWindow]:
        """Forecasts from times spread over *split*, *size* at a time, window after window.

        Forecasts start only where all their states are there to be scored.

        :param limit: most starts in all.
        """
        horizon = self.n_forward_steps * self.windows_per_start
        chains = self._steps(split).states.chains(horizon)
        chains = chains[_spread(len(chains), self.starts)]
        numbers = _spread(len(chains), limit)
        return [
            ForecastWindow(
                split, [horizon * number + first for number in own], first, chains[own], continues=first > 0
            )
            for own in (numbers[n : n + size] for n in range(0, len(numbers), size))
            for first in range(0, horizon, self.n_forward_steps)
        ]

    def initial_condition(self, split: str) -> None:
        """The first window of each forecast reads the analysis itself."""

    def predict_paired(
        self,
        state: Carried | None,
        window: Window,
        seeds: Sequence[Sequence[int]],
        first: int = 0,  # noqa: ARG002 - every member is drawn with the one network
    ) -> tuple[Paired, Carried]:
        """Generate the steps of *window* for one member for each seed of each start.

        What a member draws at a step is a function of its seed in the first window and the number of the
        step, so that one long window gives the same fields as many short ones.

        :param state: of the window before, unless this is a first one.
        :returns: rows of start and step, those of a start after one another; and where the members are now.
        """
        assert isinstance(window, ForecastWindow)
        data, n = self._steps(window.split), len(self.model.config.state)
        begin, members = window.first_step, len(seeds[0])
        own = window.chain[:, begin : begin + self.n_forward_steps + 1]
        truth = _unfolded(data.at(own.ravel()), len(own))
        hour, day = (values.view(own.shape) for values in data.clock(own.ravel()))
        analysis = data.at(window.chain[:, 0])[:, :n]
        if begin == 0:
            state = Carried(_repeated(analysis, members), [seed for case in seeds for seed in case])
        assert state is not None
        fields, steps = state.fields, []
        for k in range(self.n_forward_steps):
            condition = self.model.condition(
                fields,
                _repeated(truth[:, k, n:], members),
                _repeated(truth[:, k + 1, n:], members),
                _repeated(hour[:, k + 1], members),
                _repeated(day[:, k + 1], members),
            )
            drawn = [_seed(seed, begin + k) for seed in state.seeds]
            fields = self.model.following(fields, self._generated(condition, drawn))
            steps.append(_unfolded(fields, len(own)))
        prediction = torch.stack(steps, 1).flatten(0, 1)
        target = truth[:, 1:, :n].flatten(0, 1)
        persisted = analysis.repeat_interleave(self.n_forward_steps, 0)
        return self._paired(data, window, prediction, target, persisted), Carried(fields, state.seeds)

    def _generated(self, condition: Tensor, seeds: Sequence[int]) -> Tensor:
        """Sample the denoiser given *condition*, ``[case, state, lat, lon]``, normalised."""
        shape = (len(self.model.config.state), *condition.shape[-2:])
        noise = MemberNoise(seeds, shape, condition.device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            denoised: Tensor = self.model.denoiser(
                x, torch.full((len(x),), sigma, device=x.device), condition
            )
            return denoised

        return self.sampler.sample(denoise, noise(), noise)

    def _paired(
        self, data: StepData, window: ForecastWindow, prediction: Tensor, target: Tensor, persisted: Tensor
    ) -> Paired:
        names, fields = self.model.config.state, data.states.fields
        ahead = [window.first_step + k + 1 for k in range(self.n_forward_steps)]
        leads = [duration(steps * data.states.step) for steps in ahead]
        began = labels(fields.times[window.chain[:, 0]])
        return Paired(
            prediction={name: prediction[:, :, i] for i, name in enumerate(names)},
            target={name: target[:, i] for i, name in enumerate(names)},
            baseline={name: persisted[:, i] for i, name in enumerate(names)},
            coarse={},
            latitude=fields.latitude.values.tolist(),
            longitude=fields.longitude.values.tolist(),
            labels=[start for start in began for _ in leads],
            days=[start.split("T")[0] for start in began for _ in leads],
            lead_times=leads * len(began),
            units=fields.units,
            gridded=fields.gridded,
            wraps=fields.gridded and fields.longitude.is_circle,
        )

    def _steps(self, split: str) -> StepData:
        data = self.data[split]
        assert isinstance(data, StepData)
        return data


def _repeated(values: Tensor, members: int) -> Tensor:
    return values.repeat_interleave(members, 0)


def _unfolded(values: Tensor, starts: int) -> Tensor:
    """``[start · …, …]`` as ``[start, …, …]``."""
    return values.view(starts, -1, *values.shape[1:])


def _spread(n: int, most: int | None) -> list[int]:
    """Choose at most *most* of *n* numbers, spread evenly."""
    chosen = n if most is None else min(most, n)
    return [i * n // chosen for i in range(chosen)]


def _seed(seed: int, step: int) -> int:
    """Seed what a member draws at a step: 63 bits."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_task(options: Forecast, run: Run) -> ForecastTask:
    """Open and check the data, measure it, and build the network for it on the run's device."""
    config = options.model
    states = open_states(options)
    fields = states["train"].fields
    _expect_places(options, fields.gridded)
    statics = load_statics(options.statics, fields.grid)
    data = _open_data(options, states, run)
    with run.ranks.leader_first():
        found = measured(states["train"], data["train"].store, config, run.events)
        for name, split in data.items():
            if name != "train":  # which was read when it was measured
                checked(name, split.states, split.store, run.events)
    torch.manual_seed(run.seed("model"))
    latitude, longitude = (
        torch.as_tensor(axis.values, dtype=torch.float32) for axis in (fields.latitude, fields.longitude)
    )
    model = Forecaster(config, found, statics, latitude, longitude)
    return ForecastTask(
        model.to(run.device),
        data,
        options.sampler,
        options.n_forward_steps,
        options.windows_per_start,
        options.starts,
    )


def _open_data(options: Forecast, states: Mapping[str, States], run: Run) -> dict[str, StepData]:
    """Serve the splits; what a user should know of them is told."""
    splits = {name: split for name, (_, split) in split_options(options).items()}
    processes = on_this_host(run.ranks)
    chosen = places(splits, states, run.device, processes)
    events, cleanup = run.events, run.cleanup
    for note in dict.fromkeys(note for own in states.values() for note in own.fields.notes):
        events.info(
            "data.note", split=", ".join(n for n in splits if note in states[n].fields.notes), note=note
        )
    data = {}
    for name, split in splits.items():
        own = states[name]
        if name != "train" and (learnt := _overlap(states["train"], own)):
            events.warning(
                "data.learnt_too",
                split=name,
                times=f"{learnt} of {len(own.times)}",
                hint="its scores say little about other times",
            )
        workers = default_workers(processes) if split.workers == "auto" else split.workers
        try:
            store = open_store(own, chosen[name], workers, run.device, events.warning, cleanup)
        except HookloopError as error:
            raise HookloopError(f"forecast.{split_options(options)[name][0]}: {error}") from error
        seed = (lambda epoch, order: run.seed(f"order/{order}", epoch)) if name == "train" else None
        data[name] = StepData(own, store, split.batch_size, seed, run.device)
    return data


def _overlap(train: States, seen: States) -> int:
    """Count the times of *seen* that are also learnt."""
    if calendar_of(seen.times) != calendar_of(train.times):
        return 0
    return len(seen.times) - len(only_in(seen.times, train.times))


def _expect_places(options: Forecast, gridded: bool) -> None:  # noqa: FBT001 - said by the grid
    if not gridded and (placed := [name for name in options.model.features if name != "season"]):
        raise HookloopError(
            f"forecast.model.features: {', '.join(placed)}: rows and columns of the grid have no latitude and "
            "longitude of their own; leave them out, or give the 2-D fields of these as statics"
        )
