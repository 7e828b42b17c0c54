"""The sampler's options: what they mean, and that whatever is accepted can be used."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st

from hookloop.config import build
from hookloop.diffusion.gaussian import independent_modes
from hookloop.diffusion.schedules import karras_schedule, log_linear_schedule
from hookloop.diffusion_options import SolverConfig
from hookloop.errors import ConfigError
from hookloop.yamlfile import Document

RANGE = (18, 0.002, 80.0)


def configured(**options: Any) -> SolverConfig:
    return build(SolverConfig, Document({"sampler": options}), "sampler")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({}, log_linear_schedule(*RANGE)),
        ({"schedule": "log_linear"}, log_linear_schedule(*RANGE)),
        ({"rho": 7.0}, karras_schedule(*RANGE, 7.0)),
        ({"rho": 5.0}, karras_schedule(*RANGE, 5.0)),
        ({"rho": 5.0, "schedule": "karras"}, karras_schedule(*RANGE, 5.0)),
        ({"schedule": "karras"}, karras_schedule(*RANGE, 7.0)),
    ],
    ids=str,
)
def test_which_noise_levels_are_meant(options: dict[str, Any], levels: list[float]) -> None:
    """Even in the logarithm by default, Karras's where rho is given or they are asked for, with 7 if it is not."""
    assert configured(**options).levels() == levels


def test_configurations_of_old_checkpoints_mean_what_they_meant() -> None:
    """They hold every option of their time: the schedule and its rho, or rho alone before there was another."""
    old = {"solver": "dpmpp_2m", "steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "churn": 0.0}
    for options in (old, {**old, "schedule": "karras", "churn_max": None, "eta": 1.0}):
        assert configured(**options).levels() == karras_schedule(*RANGE, 7.0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rho", [0.001, 0.99, 1001.0, math.inf, math.nan, -7.0]),
        ("sigma_max", [math.inf, math.nan, 1e7, 0.002, 0.00201, -1.0]),
        ("sigma_min", [5e-324, 0.0, 1e-7, math.nan, -1.0, 80.0, math.inf]),
        ("steps", [1, 0, -3, 10_001]),
        ("eta", [-0.1, 101.0, math.inf, math.nan]),
        ("churn", [-1.0, 1e7, math.inf, math.nan]),
        ("churn_min", [-1.0, math.inf, math.nan]),
        ("churn_max", [0.0, 5e-324, -1.0, math.inf, math.nan]),
        ("churn_noise", [0.0, 5e-324, 11.0, math.inf, math.nan]),
    ],
)
def test_numbers_that_cannot_be_used_are_refused_before_training(name: str, values: list[float]) -> None:
    """Infinities, denormal and other extreme numbers are configuration errors that name the option."""
    solver = "dpmpp_2m_sde" if name == "eta" else "heun" if name.startswith("churn") else "dpmpp_2m"
    others = {"solver": solver} | ({"churn": 5.0} if name.startswith("churn_") else {})
    for value in values:
        with pytest.raises(ConfigError, match=rf"sampler.*\b{name}\b"):
            configured(**others | {name: value})


@pytest.mark.parametrize(
    "window",
    [
        {"churn_min": 81.0},
        {"churn_max": 0.0019},
        {"churn_min": 2.0, "churn_max": 1.0},
        {"churn_min": 81.0, "churn_max": 100.0},
        {"churn_min": 79.0, "churn_max": 79.5},  # between the two highest of 18 levels
    ],
    ids=str,
)
def test_churn_where_no_noise_level_lies_is_refused(window: dict[str, Any]) -> None:
    """It would do nothing; as soon as a single level lies within, it is accepted."""
    with pytest.raises(ConfigError, match=r"none of the 18 noise levels from 80\.0 to 0\.002 lies between"):
        configured(solver="heun", churn=5.0, **window)
    level = configured().levels()[9]
    one = configured(solver="heun", churn=5.0, churn_min=level, churn_max=level)
    drawn: list[int] = []

    def draw() -> torch.Tensor:
        drawn.append(1)
        return torch.ones(1)

    one.sample(lambda x, _: x / 2, torch.ones(1), draw)
    assert len(drawn) == 1


ODD = [0.0, 5e-324, 1e-6, 1.0, 1000.0, 1e6, 1e300, math.inf, math.nan, -1.0]


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Mostly numbers of any size between two bounds, both included; sometimes odd ones."""
    usual = st.floats(math.log(low), math.log(high)).map(lambda e: min(max(math.exp(e), low), high))
    return usual | usual | usual | st.sampled_from([low, high]) | st.sampled_from(ODD)


FLOATS = {
    "sigma_min": floats(1e-6, 1e6),
    "sigma_max": floats(1e-6, 1e6),
    "rho": floats(1.0, 1000.0),
    "churn": floats(1e-6, 1e6),
    "churn_min": floats(1e-6, 1e6),
    "churn_max": floats(1e-6, 1e6),
    "churn_noise": floats(0.1, 10.0),
    "eta": floats(1e-6, 100.0),
}
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "solver": st.sampled_from(["dpmpp_2m", "heun", "euler", "dpmpp_2m_sde"]),
    "schedule": st.sampled_from(["auto", "karras", "log_linear"]),
    "steps": st.integers(2, 40),
}


def expect_finite(sampler: SolverConfig) -> None:
    """Sample modes of all sizes in float32 with the exact denoiser."""
    variance = torch.tensor([1e-8, 1e-3, 1.0, 1e3, 1e8])
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(3, 5, generator=generator)

    assert sampler.sample(independent_modes(variance), draw(), draw).isfinite().all()
    levels = sampler.levels()
    assert all(now > after for now, after in pairwise(levels))


@many(150)
@given(options=st.fixed_dictionaries(CHOICES, optional=FLOATS))
def test_what_is_accepted_generates_finite_fields(options: dict[str, Any]) -> None:
    """Any options at all are either a configuration error or sample the exact Gaussian denoiser's finite values."""
    try:
        sampler = configured(**options)
    except ConfigError:
        return
    expect_finite(sampler)


@many(150)
@given(
    options=st.fixed_dictionaries(CHOICES),
    ends=st.tuples(*[st.floats(math.log(1e-6), math.log(1e6))] * 2),
    rho=st.none() | st.floats(1.0, 1000.0),
    amount=st.floats(0.1, 100.0),
)
def test_what_lies_within_the_bounds_is_accepted_and_finite(
    options: dict[str, Any], ends: tuple[float, float], rho: float | None, amount: float
) -> None:
    """Ranges from the narrowest to the widest, with every solver that uses its options."""
    low, high = np.exp(sorted(ends)).clip(1e-6, 1e6).tolist()
    low = min(low, 1e6 / 1.02)
    options |= {"sigma_min": low, "sigma_max": max(high, 1.02 * low)}
    options |= {} if options["schedule"] == "log_linear" else {"rho": rho}
    options |= {"heun": {"churn": amount}, "dpmpp_2m_sde": {"eta": amount}}.get(options["solver"], {})
    expect_finite(configured(**options))


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "euler", "dpmpp_2m_sde"])
@pytest.mark.parametrize(
    "levels",
    [
        {"sigma_min": 1e-6, "sigma_max": 1e6, "rho": 1.0},
        {"sigma_min": 1e-6, "sigma_max": 1e6, "rho": 1000.0},
        {"sigma_min": 1.0, "sigma_max": 1.01, "rho": 1000.0, "steps": 10_000},
        {"sigma_min": 1.0, "sigma_max": 1.01, "rho": 1.0, "steps": 10_000},
    ],
    ids=str,
)
def test_the_bounds_themselves_are_finite(solver: str, levels: dict[str, Any]) -> None:
    """The widest range in the fewest steps, and the narrowest in the most, at either end of rho."""
    expect_finite(configured(solver=solver, **{"steps": 2, **levels}))
