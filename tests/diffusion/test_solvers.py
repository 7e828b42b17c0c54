"""The samplers against an exact Gaussian denoiser, with scalar recursions in float64 as the oracle."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from hookloop.diffusion.schedules import karras_schedule
from hookloop.diffusion.solvers import Churn, dpmpp_2m, dpmpp_2m_sde, euler, heun, stochastic_heun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Recursion = Callable[[Sequence[float], float], float]
    Solver = Callable[[Callable[[Tensor, float], Tensor], Tensor, Sequence[float]], Tensor]

SCHEDULE = (18, 0.002, 80.0, 7.0)


class Gaussian:
    """The exact denoiser λ/(λ + σ²) x of fields of variance λ; it counts its evaluations."""

    def __init__(self, variance: float = 1.0) -> None:
        self.variance = variance
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Denoise, with one noise level on the host for all fields."""
        assert type(sigma) is float
        self.sigmas.append(sigma)
        return x * (self.variance / (self.variance + sigma**2))


class Drawing:
    """Standard normal fields from a seed; it counts its draws."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self.generator = torch.Generator().manual_seed(1)
        self.draws = 0

    def __call__(self) -> Tensor:
        """Draw."""
        self.draws += 1
        return torch.randn(self.shape, generator=self.generator, dtype=self.dtype)


def drawn(shape: Sequence[int] = (2, 1, 4, 4)) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def euler_recursion(sigmas: Sequence[float], variance: float) -> float:
    """Gain of Euler's method for dx/dσ = σ/(λ + σ²) x."""
    return sigmas[0] * math.prod(1 + (b - a) * a / (variance + a * a) for a, b in pairwise(sigmas))


def heun_recursion(sigmas: Sequence[float], variance: float) -> float:
    """Gain of Heun's method: dx/dσ = σ/(λ + σ²) x by the trapezoid of Euler's end, and Euler to 0."""
    gain = sigmas[0]
    for a, b in pairwise(sigmas):
        f = a / (variance + a * a)
        euler = 1 + (b - a) * f
        gain *= euler if b == 0 else 1 + (b - a) / 2 * (f + b / (variance + b * b) * euler)
    return gain


def dpmpp_recursion(sigmas: Sequence[float], variance: float) -> float:
    """Gain of the two-step method: in t = -ln σ the data prediction is extrapolated to the half step."""
    x, previous = sigmas[0], None
    for i, (a, b) in enumerate(pairwise(sigmas)):
        data = variance / (variance + a * a) * x
        if b == 0:
            return data
        slope = 0.0
        if previous is not None:
            slope = (data - previous) / math.log(sigmas[i - 1] / a)
        x = b / a * x + (1 - b / a) * (data + slope * math.log(a / b) / 2)
        previous = data
    return x


SOLVERS = [
    pytest.param(euler, euler_recursion, id="euler"),
    pytest.param(heun, heun_recursion, id="heun"),
    pytest.param(dpmpp_2m, dpmpp_recursion, id="dpmpp_2m"),
]


@pytest.mark.parametrize(("solver", "recursion"), SOLVERS)
@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0])
def test_solvers_follow_the_scalar_recursion(solver: Solver, recursion: Recursion, variance: float) -> None:
    """Every pixel is the noise times the recursion's gain, to float32."""
    noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    sigmas = karras_schedule(*SCHEDULE)
    x = solver(Gaussian(variance), noise, sigmas)
    torch.testing.assert_close(x.double(), noise.double() * recursion(sigmas, variance), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("solver", "ratio", "evaluations"),
    [(heun, 1.045, 35), (dpmpp_2m, 1.051, 18), (euler, 0.86, 18)],
    ids=["heun", "dpmpp_2m", "euler"],
)
def test_eighteen_steps_misjudge_the_deviation_by_so_much(
    solver: Solver, ratio: float, evaluations: int
) -> None:
    """The known bias of the default schedule for λ = 1, at the known number of evaluations."""
    denoiser = Gaussian()
    x = solver(denoiser, torch.ones(1, 1, 1, 1), karras_schedule(*SCHEDULE))
    assert x.item() == pytest.approx(ratio, abs=5e-3 if solver is euler else 5e-4)
    assert len(denoiser.sigmas) == evaluations
    assert min(denoiser.sigmas) == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("solver", "recursion", "order"),
    [(euler, euler_recursion, 1), (heun, heun_recursion, 2), (dpmpp_2m, dpmpp_recursion, 2)],
    ids=["euler", "heun", "dpmpp_2m"],
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(
    solver: Solver, recursion: Recursion, order: int
) -> None:
    """Between two positive noise levels the exact gain is √((λ + σ_b²)/(λ + σ_a²)); in float64."""
    a, b = 5.0, 1.0
    exact = a * math.sqrt((1 + b * b) / (1 + a * a))
    errors = []
    for steps in (32, 64, 128):
        sigmas = [a * (b / a) ** (i / steps) for i in range(steps + 1)]
        gain = solver(Gaussian(), torch.ones(1, 1, 1, 1, dtype=torch.float64), sigmas).item()
        assert gain == pytest.approx(recursion(sigmas, 1.0), rel=1e-12)
        errors.append(abs(gain - exact))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.03)


@pytest.mark.parametrize(
    "churn",
    [Churn(0.0), Churn(40.0, minimum=100.0), Churn(40.0, maximum=0.001)],
    ids=["none", "all levels below", "all levels above"],
)
def test_without_churn_nothing_is_drawn(churn: Churn) -> None:
    """Algorithm 2 is Algorithm 1 then, bit for bit, and so is the SDE form with η = 0."""
    draw, sigmas = Drawing((2, 1, 4, 4)), karras_schedule(*SCHEDULE)
    assert torch.equal(
        stochastic_heun(Gaussian(), drawn(), sigmas, draw, churn), heun(Gaussian(), drawn(), sigmas)
    )
    assert torch.equal(
        dpmpp_2m_sde(Gaussian(), drawn(), sigmas, draw, 0.0), dpmpp_2m(Gaussian(), drawn(), sigmas)
    )
    assert draw.draws == 0


def test_noise_is_drawn_where_it_is_used_alone() -> None:
    """Churn: in the steps that begin within its range; the SDE: in all steps but the last, which ends at 0."""
    sigmas, draw = karras_schedule(*SCHEDULE), Drawing((2, 1, 4, 4))
    stochastic_heun(Gaussian(), drawn(), sigmas, draw, Churn(10.0, 0.05, 50.0))
    assert draw.draws == sum(0.05 <= sigma <= 50 for sigma in sigmas[:-1])
    draw = Drawing((2, 1, 4, 4))
    dpmpp_2m_sde(Gaussian(), drawn(), sigmas, draw, 1.0)
    assert draw.draws == 17


@pytest.mark.parametrize(
    ("amount", "gamma"), [(1.8, 0.1), (18.0, math.sqrt(2) - 1), (80.0, math.sqrt(2) - 1)]
)
def test_churn_raises_the_noise_level_by_its_share_and_never_more_than_the_cap(
    amount: float, gamma: float
) -> None:
    """γ = min(S_churn/N, √2 - 1): the first evaluation of each step is at (1 + γ) times its level."""
    sigmas, denoiser = karras_schedule(*SCHEDULE), Gaussian()
    stochastic_heun(denoiser, drawn(), sigmas, Drawing((2, 1, 4, 4)), Churn(amount, maximum=1.0))
    expected = []
    for now, after in pairwise(sigmas):
        expected += [now * (1 + gamma) if now <= 1 else now] + [after] * (after > 0)
    assert denoiser.sigmas == pytest.approx(expected, rel=1e-12)


def test_a_step_of_churn_by_hand() -> None:
    """One raised step: x̂ = x + √(σ̂² - σ²) S_noise ε, then Heun's from σ̂; the second goes to 0."""
    sigmas, first = [2.0, 1.0, 0.0], torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    draws = iter([torch.full_like(first, 0.25), torch.full_like(first, -1.0)])
    x = stochastic_heun(Gaussian(), first, sigmas, lambda: next(draws), Churn(0.5, noise=1.5))
    raised = 2.5
    state = 0.5 * 2.0 + math.sqrt(raised**2 - 4) * 1.5 * 0.25
    slope = raised / (1 + raised**2) * state
    end = state + (1 - raised) * slope
    state += (1 - raised) * (slope + 1 / 2 * end) / 2
    raised = 1.25
    state += math.sqrt(raised**2 - 1) * 1.5 * -1.0
    assert x.item() == pytest.approx(state - raised * raised / (1 + raised**2) * state, rel=1e-12)


@pytest.mark.parametrize(
    ("churn", "share"),
    [(Churn(1.8, 0.5, 2.0), 0.1), (Churn(1.8, 0.5), 0.1), (Churn(1.8, maximum=2.0), 0.1)],
    ids=["both", "above", "below"],
)
def test_the_ends_of_churns_range_belong_to_it(churn: Churn, share: float) -> None:
    """S_tmin ≤ σ ≤ S_tmax (Algorithm 2): at either end noise is added, just outside none."""
    for end, outside in ((churn.minimum, -1), (churn.maximum, 1)):
        if 0 < end < math.inf:
            assert churn.gamma(end, 18) == pytest.approx(share, rel=1e-12)
            assert churn.gamma(end * (1 + 1e-9 * outside), 18) == 0.0


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 2.5])
def test_steps_of_the_sde_by_hand(eta: float) -> None:
    """Exact Ornstein-Uhlenbeck steps about the data: x shrinks by e^-(1+η)h, and gains σ²(1 - e^-2ηh)."""
    sigmas, first = [4.0, 2.0, 0.5, 0.0], torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    draws = iter([0.25, -1.0])
    x = dpmpp_2m_sde(Gaussian(), first, sigmas, lambda: torch.full_like(first, next(draws)), eta).item()

    def step(state: float, target: float, ratio: float, after: float, noise: float) -> float:
        kept = ratio ** (1 + eta)  # e^-(1+η)h, with e^-h = σ_after / σ_now
        return kept * state + (1 - kept) * target + after * math.sqrt(1 - ratio ** (2 * eta)) * noise

    state = 0.5 * 4
    data = [state / (1 + 16)]
    state = step(state, data[0], 1 / 2, 2.0, 0.25)
    data.append(state / (1 + 4))
    middle = data[1] + (data[1] - data[0]) / math.log(2) * math.log(4) / 2  # extrapolated in -ln σ
    state = step(state, middle, 1 / 4, 0.5, -1.0)
    assert x == pytest.approx(state / (1 + 0.25), rel=1e-12)


def variance_of(steps: int, variance: float, kind: float | str) -> float:
    """Variance of what a stochastic sampler makes of modes of that *variance*, by linearity: no Monte Carlo.

    :param kind: η of the SDE, or ``"churn"``.
    """
    sigmas = karras_schedule(steps, 0.002, 80.0, 7.0)
    units = iter(torch.eye(steps + 1, dtype=torch.float64).view(steps + 1, steps + 1, 1, 1, 1))
    if isinstance(kind, float):
        x = dpmpp_2m_sde(Gaussian(variance), next(units), sigmas, lambda: next(units), kind)
    else:
        x = stochastic_heun(Gaussian(variance), next(units), sigmas, lambda: next(units), Churn(10.0))
    return float(x.square().sum())


@pytest.mark.parametrize("kind", ["churn", 0.3, 1.0, 2.5])
@pytest.mark.parametrize("variance", [0.01, 1.0, 4.0])
def test_stochastic_samplers_reach_the_variance_as_steps_grow(kind: float | str, variance: float) -> None:
    """Ten times the steps leave a tenth of the error or less, and at last less than 0.3 %."""
    errors = [abs(variance_of(steps, variance, kind) / variance - 1) for steps in (40, 400)]
    assert errors[1] < errors[0] / 10
    assert errors[1] < 3e-3


def test_stochastic_samplers_give_normal_fields_of_that_variance() -> None:
    """By Monte Carlo, as they are used: five standard errors of a variance of 20,000 values."""
    shape, sigmas = (2, 1, 100, 100), karras_schedule(100, 0.002, 80.0, 7.0)
    for x in (
        dpmpp_2m_sde(Gaussian(), drawn(shape), sigmas, Drawing(shape), 1.0),
        stochastic_heun(Gaussian(), drawn(shape), sigmas, Drawing(shape), Churn(30.0)),
    ):
        assert x.double().var().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / 20_000) + 0.02)
        assert x.double().mean().item() == pytest.approx(0.0, abs=5 / math.sqrt(20_000))


def test_states_on_the_way_are_kept_where_asked() -> None:
    """Each step's number and state, of which the last is the answer; asking changes no bit of it."""
    sigmas = karras_schedule(5, 0.002, 80.0, 7.0)
    for solver in (euler, heun, dpmpp_2m):
        kept: list[tuple[int, Tensor]] = []
        x = solver(Gaussian(), drawn(), sigmas, keep=lambda i, state, kept=kept: kept.append((i, state)))  # type: ignore[misc]
        assert [i for i, _ in kept] == [0, 1, 2, 3, 4]
        assert torch.equal(kept[-1][1], x)
        assert torch.equal(x, solver(Gaussian(), drawn(), sigmas))
        assert kept[0][1].std() > kept[-1][1].std()


@pytest.mark.parametrize("solver", [euler, heun, dpmpp_2m])
def test_a_field_does_not_depend_on_its_neighbours_in_the_batch(solver: Solver) -> None:
    """Each field is sampled as if it were alone, and half-precision noise becomes a float32 field."""
    noise = torch.randn(3, 1, 4, 4)
    sigmas = karras_schedule(*SCHEDULE)
    alone = solver(Gaussian(), noise[1:2], sigmas)
    assert torch.equal(solver(Gaussian(), noise, sigmas)[1:2], alone)
    assert solver(Gaussian(), noise.half(), sigmas).dtype == torch.float32
