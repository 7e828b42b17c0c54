"""The forecast task on states whose forecasts are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_forecast import MEAN, NAMES, SHAPE, SIZE, ExactDenoiser, LinearModel, section
from torch import Tensor

import hookloop.data.places
import hookloop.data.readers
import hookloop.plugins.forecast.task
from hookloop import yamlfile
from hookloop.config import build
from hookloop.core import Run, evaluate, prepare
from hookloop.distributed import Ranks, Share
from hookloop.errors import HookloopError, Told
from hookloop.looper import ensembles
from hookloop.plugins.forecast import Forecast
from hookloop.plugins.forecast.dataset import StepData
from hookloop.plugins.forecast.states import open_states
from hookloop.plugins.forecast.task import ForecastTask
from hookloop.plugins.generation import Generation
from hookloop.task import Generative, NoiseLevels, Paired
from hookloop.testing import events_of, fake_run, prepared

SAMPLER = {"steps": 8}
FINE = {"steps": 120, "schedule": "log_linear", "sigma_min": 0.005, "sigma_max": 1000.0}
"""What it adds to the variance, 0.1 %, and leaves of the initial noise, 1/1000 of a wave's conditional mean, are far
less than the Monte-Carlo errors, 2.9 % and 1/20 of the standard deviation."""


def plugin(directory: Path, **changes: object) -> Forecast:
    document = yamlfile.Document({"forecast": section(directory, **changes)})  # type: ignore[dict-item]
    made = build(Forecast, document, "forecast")
    assert isinstance(made, Forecast)
    return made


def exact_run(directory: Path, where: Path, *others: object, **changes: object) -> Run:
    """A run whose network is the exact denoiser."""
    run = prepared(where, plugin(directory, **{"sampler": SAMPLER, **changes}), *others)
    assert isinstance(run.task, ForecastTask)
    run.task.model.denoiser = ExactDenoiser(run.task.model)  # type: ignore[assignment]
    return run


def forecasts(run: Run, *, members: int = 3, max_batch: int = 6, limit: int | None = None) -> list[Paired]:
    task = run.task
    assert isinstance(task, Generative)
    with torch.no_grad():
        found = ensembles(run, task, "validation", members=members, max_batch=max_batch, limit=limit)
        return [generated.paired for generated in found if generated is not None]


@pytest.mark.parametrize("world", [2, 5])
def test_a_step_of_ranks_is_that_of_one(states_on_disk: Path, tmp_path: Path, world: int) -> None:
    """Of the last three steps: weighted losses and gradients have the mean of the whole, whoever has no step."""
    task = prepared(tmp_path, plugin(states_on_disk)).task
    assert isinstance(task, ForecastTask)
    data = task.data["train"]
    assert isinstance(data, StepData)
    data = StepData(data.states, data.store, data.n_samples - 3, data.order_seed, data.device)

    def step(share: Share) -> Tensor:
        (batch,) = data.shared(share).batches(0, 1, 2)
        assert batch.rows.total == 3
        torch.manual_seed(7)
        loss = share.weight(3) * task.loss(batch)["loss"]
        gradients = torch.autograd.grad(loss, list(task.model.parameters()))
        return torch.cat([loss.detach()[None], *(gradient.flatten() for gradient in gradients)])

    whole = step(Share())
    mean = torch.stack([step(Share(rank, world)) for rank in range(world)]).mean(0)
    assert mean[0].item() == pytest.approx(whole[0].item(), rel=1e-5)
    assert (mean - whole)[1:].norm() < 1e-5 * whole[1:].norm()


@pytest.mark.parametrize("world", [2, 5])
def test_a_loss_of_known_levels_is_that_of_one(states_on_disk: Path, tmp_path: Path, world: int) -> None:
    """Each rank's are its rows of the losses of the whole batch, with the levels and the noise that they have there."""
    task = prepared(tmp_path, plugin(states_on_disk)).task
    assert isinstance(task, ForecastTask)
    data = task.data["train"]
    assert isinstance(data, StepData)
    data = StepData(data.states, data.store, 3, data.order_seed, data.device)

    def losses(share: Share) -> Tensor:
        (batch,) = data.shared(share).batches(0, 0, 1)
        torch.manual_seed(7)
        return task.loss_at(batch, torch.tensor([0.1, 0.5, 0.9]))["loss"].detach()

    whole = losses(Share())
    for rank in range(world):
        own = Share(rank, world)
        torch.testing.assert_close(losses(own), whole[list(own.rows(3))], rtol=1e-5, atol=0)


class Following(Ranks):
    """A rank that comes after one which has refused."""

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Not begin."""
        raise Told(2)
        yield


def test_rank_0_measures_first(states_on_disk: Path, tmp_path: Path) -> None:
    """The others wait for it, and measure nothing where it refuses."""
    run = fake_run(tmp_path, plugin(states_on_disk))
    run.ranks = Following(rank=1, world=2)
    with pytest.raises(Told):
        prepare(run)
    assert not [event for event in events_of(run) if event["event"] == "data.measured"]


def test_processes_of_a_machine_divide_its_memory_and_cores(
    states_on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split that takes a fifth of what one may fill is held by four processes, not by six, which read: 32/6 - 1."""
    nbytes = open_states(plugin(states_on_disk))["train"].nbytes
    monkeypatch.setattr(hookloop.data.places, "memory_of_machine", lambda: 4 * 5 * nbytes)
    monkeypatch.setattr(hookloop.data.readers.os, "sched_getaffinity", lambda _: range(32))
    for processes, expected in ((4, None), (6, 4)):
        monkeypatch.setattr(hookloop.plugins.forecast.task, "on_this_host", lambda _, n=processes: n)
        run = prepared(tmp_path / str(processes), plugin(states_on_disk))
        store = run.task.data["train"].store  # type: ignore[attr-defined]
        assert getattr(store, "workers", None) == expected
        run.cleanup.close()


def by_row(found: list[Paired]) -> dict[str, Tensor]:
    """Members of every row, ``[member, variable, lat, lon]``, by label and lead time."""
    rows: dict[str, Tensor] = {}
    for paired in found:
        fields = torch.stack([paired.prediction[name] for name in NAMES], 2)
        for start, lead, field in zip(paired.labels, paired.lead_times, fields, strict=True):
            label = f"{start} + {lead}"
            assert label not in rows
            rows[label] = field
    return rows


@pytest.mark.parametrize("residual", [True, False])
def test_the_exact_denoiser_gives_the_exact_forecast(
    states_on_disk: Path, tmp_path: Path, *, residual: bool
) -> None:
    """Mean A^n x + forcing and variance Σ A^2k q at every lead time, to Monte-Carlo error.

    With S starts, M members and modes of known variance, the mean is off by χ²/(S·modes) = 1 in units of
    variance / M, give or take √(2/(S·modes)); and the variance by √(2/(S·modes·(M - 1))).
    """
    members, starts, linear = 400, 4, LinearModel()
    options = {"model": {"residual": residual}, "sampler": FINE, "starts": starts, "n_forward_steps": 3}
    run = exact_run(states_on_disk, tmp_path, **options)
    (paired,) = forecasts(run, members=members, max_batch=members * starts)
    split = run.task.data["validation"]
    assert isinstance(run.task, ForecastTask)
    chains = run.task.windows("validation", starts)[0].chain
    truth = split.at(chains.ravel()).unflatten(0, chains.shape).numpy()  # type: ignore[attr-defined]
    forcing = linear.to_waves(truth[:, :, 2].astype(np.float64)) / 100

    assert paired.lead_times == ["6h", "12h", "18h"] * starts
    for v, name in enumerate(NAMES):
        start = linear.to_waves((truth[:, 0, v].astype(np.float64) - MEAN[name]) / SIZE[name])
        drawn = (paired.prediction[name].double().numpy() - MEAN[name]) / SIZE[name]
        waves = linear.to_waves(drawn).reshape(starts, 3, members, -1)
        for n in range(3):
            mean, variance = linear.mean(v, start, forcing, n + 1), linear.variance(v, n + 1)
            off = (waves[:, n].mean(1) - mean) ** 2 / (variance / members)
            spread = waves[:, n].var(1, ddof=1) / variance
            modes = off.size
            assert off.mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / modes))
            assert spread.mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / modes / (members - 1)))


@pytest.mark.parametrize("solver", [{"solver": "dpmpp_2m"}, {"solver": "dpmpp_2m_sde"}])
def test_windows_of_any_length_give_the_same_forecasts(
    states_on_disk: Path, tmp_path: Path, solver: dict[str, object]
) -> None:
    """One window of four steps, two of two and four of one: the same fields bit for bit, and the same scores."""
    found: list[dict[str, Tensor]] = []
    scored: list[dict[str, float]] = []
    for length in (4, 2, 1):
        run = exact_run(
            states_on_disk,
            tmp_path / str(length),
            Generation(members=3, figures=0),
            sampler={**solver, "steps": 4},
            n_forward_steps=length,
            windows_per_start=4 // length,
            starts=3,
        )
        found.append(by_row(forecasts(run)))
        metrics = evaluate(run)
        scored.append({key: value for key, value in metrics.items() if key.startswith("inference/")})

    assert len(found[0]) == 3 * 4
    assert any(key.startswith("inference/lead/24h/crps/") for key in scored[0])
    for other, score in zip(found[1:], scored[1:], strict=True):
        assert other.keys() == found[0].keys()
        for label, fields in other.items():
            torch.testing.assert_close(fields, found[0][label], rtol=0, atol=0)
        assert score == pytest.approx(scored[0], rel=1e-9, nan_ok=False)


def test_members_do_not_depend_on_the_company(states_on_disk: Path, tmp_path: Path) -> None:
    """In whatever parts ensembles are generated, the members are the same, and differ from one another."""
    run = exact_run(states_on_disk, tmp_path, starts=3, n_forward_steps=2, windows_per_start=2)
    together, apart = by_row(forecasts(run, max_batch=9)), by_row(forecasts(run, max_batch=2))
    assert together.keys() == apart.keys()
    for label, fields in together.items():
        torch.testing.assert_close(apart[label], fields, rtol=1e-5, atol=1e-5)
        assert (fields[0] - fields[1]).abs().amax((-1, -2)).min() > 1e-4


def test_steps_draw_noise_of_their_own(states_on_disk: Path, tmp_path: Path) -> None:
    """What a member draws at a step is no repetition of what it, another or another start drew elsewhere.

    The steps of the forecasts minus their conditional mean are uncorrelated: over 48 values |r| < 0.6 is 4.5 σ.
    """
    run = exact_run(states_on_disk, tmp_path, starts=2, n_forward_steps=2, windows_per_start=2)
    linear, task = LinearModel(), run.task
    assert isinstance(task, ForecastTask)
    rows = by_row(forecasts(run, members=2))
    fields = torch.stack(list(rows.values())).numpy().astype(np.float64)  # [start·step, member, v, lat, lon]
    fields = fields.reshape(2, 4, 2, 2, *SHAPE)
    noise = []
    for v, name in enumerate(NAMES):
        waves = linear.to_waves((fields[:, :, :, v] - MEAN[name]) / SIZE[name])
        step = waves[:, 1:] - linear.memory(v) * waves[:, :-1]
        step = step - step.mean(2, keepdims=True)  # both members see the same forcing
        noise.append(step[:, :, 0] / np.sqrt(linear.noise(v) / 2))
    drawn = np.concatenate(noise, -1).reshape(6, -1)
    correlations = np.corrcoef(drawn)
    assert np.abs(correlations - np.eye(6)).max() < 0.6


def test_rows_are_named_by_start_and_lead(states_on_disk: Path, tmp_path: Path) -> None:
    """Rows are steps within starts, which name them: the lead time stands beside; the baseline is the start."""
    run = exact_run(states_on_disk, tmp_path, starts=3, n_forward_steps=2, windows_per_start=2)
    task = run.task
    assert isinstance(task, ForecastTask)
    windows = task.windows("validation", 2)
    assert [(window.first_step, list(window.cases)) for window in windows] == [
        (0, [0, 4]),
        (2, [2, 6]),
        (0, [8]),
        (2, [10]),
    ]
    assert [window.continues for window in windows] == [False, True, False, True]
    found = forecasts(run, members=2, max_batch=4)
    # 10 states, a gap, 14 more: 6 + 10 states are followed by four; of these, numbers 0, 5 and 10.
    assert found[0].labels == ["2021-01-01T00:00"] * 2 + ["2021-01-02T06:00"] * 2
    assert found[0].lead_times == ["6h", "12h"] * 2
    assert found[1].lead_times == ["18h", "24h"] * 2
    assert found[2].days == ["2021-01-04"] * 2
    for paired in found:
        assert paired.gridded
        assert paired.wraps
        assert paired.units == {"t": "K", "q": "kg kg-1", "f": "W m-2"}
    data = task.data["validation"]
    there = {str(time)[:16]: n for n, time in enumerate(data.states.times)}  # type: ignore[attr-defined]
    for paired in found:
        for row, (start, lead) in enumerate(zip(paired.labels, paired.lead_times, strict=True)):
            at = [there[start], there[str(np.datetime64(start) + np.timedelta64(int(lead[:-1]), "h"))]]
            analysis, truth = data.at(np.array(at))  # type: ignore[attr-defined]
            for v, name in enumerate(NAMES):
                assert torch.equal(paired.baseline[name][row], analysis[v])
                assert torch.equal(paired.target[name][row], truth[v])


def test_a_limit_keeps_the_seeds_of_those_it_leaves(states_on_disk: Path, tmp_path: Path) -> None:
    """Fewer starts, spread over the split; their forecasts are what they were among all."""
    run = exact_run(states_on_disk, tmp_path, n_forward_steps=2, sampler={"steps": 4})
    # 8 and 12 states on either side of the gap are followed by two: numbers 0, 5, 10 and 15 of these.
    every, some = by_row(forecasts(run)), by_row(forecasts(run, limit=4))
    assert len(every) == 2 * (8 + 12)
    assert sorted({label[:13] for label in some}) == [
        "2021-01-01T00",
        "2021-01-02T06",
        "2021-01-04T06",
        "2021-01-05T12",
    ]
    for label, fields in some.items():
        torch.testing.assert_close(fields, every[label], rtol=1e-5, atol=1e-5)


def test_the_loss_of_the_exact_denoiser_is_that_of_the_irreducible_noise(
    states_on_disk: Path, tmp_path: Path
) -> None:
    """At noise σ the posterior variance of a mode is λσ²/(λ + σ²): the loss is its mean by the loss weight."""
    run = exact_run(states_on_disk, tmp_path)
    task, linear = run.task, LinearModel()
    assert isinstance(task, ForecastTask)
    assert isinstance(task, NoiseLevels)
    batches = list(task.data["train"].batches(0))
    sigma = task.noise_levels(torch.tensor([0.5], dtype=torch.float64)).item()
    assert sigma == pytest.approx(np.exp(-1.2))
    torch.manual_seed(0)
    losses = [
        task.loss_at(batch, torch.full((len(batch),), 0.5, dtype=torch.float64))
        for _ in range(4)
        for batch in batches
    ]
    for v, name in enumerate(NAMES):
        prior = linear.noise(v) / (task.model.target_std[v].item() / SIZE[name]) ** 2
        posterior = prior * sigma**2 / (prior + sigma**2)
        expected = posterior.mean() * (sigma**2 + 1) / sigma**2
        found = torch.cat([loss[f"loss/{name}"] for loss in losses])
        assert found.mean().item() == pytest.approx(expected, rel=4 * np.sqrt(2 / (len(found) * 24)))


def test_what_is_learnt_has_unit_variance(states_on_disk: Path, tmp_path: Path) -> None:
    """Differences of states one step apart have mean 0 and standard deviation 1, as σ_data = 1 wants."""
    run = prepared(tmp_path, plugin(states_on_disk))
    task = run.task
    assert isinstance(task, ForecastTask)
    targets = torch.cat(
        [task.model.target(b.present[:, :2], b.following[:, :2]) for b in task.data["train"].batches(0)]
    )
    torch.testing.assert_close(targets.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(targets.std((0, 2, 3), correction=0), torch.ones(2), rtol=0, atol=1e-4)


def test_weights_of_variables_count_in_the_loss(states_on_disk: Path, tmp_path: Path) -> None:
    """The total is the weighted mean of the variables' own."""
    run = prepared(tmp_path, plugin(states_on_disk, model={"loss_weights": {"t": 3.0}}))
    losses = run.task.loss(next(iter(run.task.data["train"].batches(0))))
    expected = (3 * losses["loss/t"] + losses["loss/q"]) / 4
    torch.testing.assert_close(losses["loss"], expected)


def test_features_and_statics_are_given(states_on_disk: Path, tmp_path: Path) -> None:
    """States, forcing twice, two statics and six channels of features: and the hour is that of the next state."""
    import xarray as xr

    terrain = np.random.default_rng(0).standard_normal(SHAPE)
    train = xr.open_zarr(states_on_disk / "train.zarr", consolidated=False)
    xr.Dataset({"z": (("latitude", "longitude"), terrain)}, train.drop_dims("time").coords).to_zarr(
        tmp_path / "z.zarr", consolidated=False
    )
    features = ["hour", "season", "latitude", "longitude"]
    static = {"path": str(tmp_path / "z.zarr"), "variable": "z"}
    run = prepared(tmp_path, plugin(states_on_disk, model={"features": features}, statics=[static]))
    task, batch = run.task, next(iter(run.task.data["validation"].batches(0)))
    assert isinstance(task, ForecastTask)
    present, following = batch.present, batch.following
    found = task.model.condition(present[:, :2], present[:, 2:], following[:, 2:], batch.hour, batch.day)
    assert found.shape == (len(batch), 3 + 1 + 1 + 6, *SHAPE)
    anomaly = torch.from_numpy((terrain - terrain.mean()) / terrain.std()).float()
    torch.testing.assert_close(found[0, 4], anomaly)
    turns = (np.arange(len(batch)) + 1) * 6 / 24
    torch.testing.assert_close(
        found[:9, 5, 0, 0], torch.from_numpy(np.sin(2 * np.pi * turns))[:9].float(), atol=1e-5, rtol=0
    )
    scale = task.model.input_std[2] / 1.0
    torch.testing.assert_close(found[:, 3], (following[:, 2] - task.model.input_mean[2]) / scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "5h"}, r"forecast\.train: no state is followed by 1 more, each 5h .* distance is 6h"),
        ({"n_forward_steps": 14}, r"forecast\.validation: no state is followed by 14 more"),
        ({"model": {"forcing": ["sst"]}}, r"forecast\.train: no variable sst in"),
        ({"train": {"fields": ["nowhere.zarr"]}}, r"forecast\.train: .*nowhere\.zarr"),
    ],
)
def test_what_cannot_be_forecast_is_refused(
    states_on_disk: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """One line: what was found, what was expected."""
    with pytest.raises(HookloopError, match=message):
        prepared(tmp_path, plugin(states_on_disk, **changes))
