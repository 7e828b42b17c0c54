"""Power-function averages against quadrature, and reconstructions against averages that were tracked."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookloop.averaging import UNIFORM, Profile, combination, exponent, inner_product, power_decay

WIDTHS = [0.01, 0.05, 0.1, 0.15, 0.25, 0.288]


def density(profile: Profile, times: np.ndarray) -> np.ndarray:
    """Write the profile down as a density over time; it ends at its own time."""
    inside = (profile.gamma + 1) * times**profile.gamma / profile.time ** (profile.gamma + 1)
    return np.where(times <= profile.time, inside, 0.0)


def midpoints(until: float, n: int = 400_000) -> tuple[np.ndarray, float]:
    """Cut time into cells for the midpoint rule, and give the width of one."""
    return (np.arange(n) + 0.5) * until / n, until / n


def tracked(walk: np.ndarray, gamma: float) -> np.ndarray:
    """Average the rows of *walk* as they come; row t - 1 is the average after update t."""
    averages = np.empty_like(walk)
    average = np.full_like(walk[0], np.nan)  # what was there before the first update must not matter
    for update, weights in enumerate(walk, start=1):
        decay = power_decay(update, gamma)
        average = weights if decay == 0 else decay * average + (1 - decay) * weights
        averages[update - 1] = average
    return averages


def kept(steps: int, n: int, widths: tuple[float, ...] = (0.05, 0.1)) -> list[Profile]:
    """Profiles of *n* snapshots of each width, evenly spaced, the last one at the end."""
    times = [steps * (i + 1) // n for i in range(n)]
    return [Profile(time, exponent(width)) for width in widths for time in times]


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_the_width_is_the_standard_deviation_of_the_profile(sigma_rel: float) -> None:
    """By quadrature: mass 1, and σ_rel is the standard deviation as a share of the time."""
    times, cell = midpoints(40.0)
    p = density(Profile(40.0, exponent(sigma_rel)), times)
    mean = (times * p).sum() * cell
    std = math.sqrt(((times - mean) ** 2 * p).sum() * cell)
    assert p.sum() * cell == pytest.approx(1.0, rel=1e-5)
    assert std / 40.0 == pytest.approx(sigma_rel, rel=1e-5)


@given(st.floats(1e-4, UNIFORM, exclude_max=True))
def test_the_exponent_is_the_largest_root_of_its_cubic(sigma_rel: float) -> None:
    """An independent root finder finds it, and it makes a profile that forgets: γ > 0."""
    roots = np.roots([1.0, 7.0, 16.0 - sigma_rel**-2, 12.0 - sigma_rel**-2])
    found = exponent(sigma_rel)
    assert found == pytest.approx(roots.real.max(), rel=1e-9, abs=1e-9)
    assert found > -1e-14


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, UNIFORM, 0.3, math.nan, math.inf])
def test_an_impossible_width_is_refused(sigma_rel: float) -> None:
    """It says what is allowed and what was found."""
    with pytest.raises(ValueError, match=r"expected 0 < sigma_rel < 0\.2887 \(12\*\*-0\.5\), found"):
        exponent(sigma_rel)


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_the_recurrence_unrolled_is_the_profile_between_updates(sigma_rel: float) -> None:
    """The weights of update i count ∫ p over [i - 1, i], whose antiderivative is (τ/t)^(γ+1)."""
    gamma, t = exponent(sigma_rel), 200
    unrolled = np.zeros(t)
    for update in range(1, t + 1):
        decay = power_decay(update, gamma)
        unrolled *= decay
        unrolled[update - 1] = 1 - decay
    integral = np.diff((np.arange(t + 1) / t) ** (gamma + 1))
    np.testing.assert_allclose(unrolled, integral, rtol=1e-10, atol=1e-300)


def test_the_first_update_replaces_the_average() -> None:
    """Nothing of what was there before stays, at any width."""
    assert {power_decay(1, exponent(width)) for width in WIDTHS} == {0.0}


@pytest.mark.parametrize(
    ("one", "other"),
    list(itertools.combinations_with_replacement([(3.0, 0.25), (7.0, 0.05), (7.0, 0.1), (11.0, 0.15)], 2)),
)
def test_inner_products_are_those_of_quadrature(one: tuple[float, float], other: tuple[float, float]) -> None:
    """Of profiles that end at one time or at different ones, either way round."""
    a, b = (Profile(time, exponent(width)) for time, width in (one, other))
    times, cell = midpoints(min(a.time, b.time))
    expected = (density(a, times) * density(b, times)).sum() * cell
    assert inner_product(a, b) == pytest.approx(expected, rel=1e-6)
    assert inner_product(b, a) == inner_product(a, b)


@pytest.mark.parametrize("n", [1, 8, 50])
def test_a_snapshot_is_reconstructed_as_itself(n: int) -> None:
    """The weights are a unit vector and the profile is met."""
    snapshots = kept(600, n)
    for i in (0, n - 1, 2 * n - 1):
        weights, error = combination(snapshots, snapshots[i])
        np.testing.assert_allclose(weights, np.eye(2 * n)[i], atol=1e-6)
        assert error < 1e-6


@pytest.mark.parametrize("width", [0.07, 0.12, 0.15])
def test_an_average_that_was_not_tracked_is_reconstructed(width: float) -> None:
    """On a walk far from 0 it comes near the tracked one, nearer with every doubling of the snapshots."""
    steps = 600
    walk = 50 + np.random.default_rng(0).standard_normal((steps, 100)).cumsum(0)
    averages = {sigma: tracked(walk, exponent(sigma)) for sigma in (0.05, 0.1, width)}
    expected = averages[width][-1]
    found = []
    for n in (2, 4, 8, 16, 32):
        snapshots = kept(steps, n)
        weights, _ = combination(snapshots, Profile(steps, exponent(width)))
        rows = [
            averages[sigma][int(p.time) - 1]
            for sigma, p in zip(np.repeat([0.05, 0.1], n), snapshots, strict=True)
        ]
        deviation = np.tensordot(weights, rows, axes=1) - expected
        found.append(math.sqrt((deviation**2).mean() / ((expected - 50) ** 2).mean()))
    assert found == sorted(found, reverse=True)
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(found[1:]))
    assert found[0] < 0.05
    assert found[-1] < 1e-4


def test_an_average_at_an_earlier_time_is_reconstructed() -> None:
    """As well as at the end where snapshots were kept, and worse in between: a profile ends all of a sudden."""
    steps, n, gamma = 600, 24, exponent(0.08)
    walk = np.random.default_rng(1).standard_normal((steps, 100)).cumsum(0)
    snapshots, sigmas = kept(steps, n), np.repeat([0.05, 0.1], n)
    rows = [
        tracked(walk, exponent(sigma))[int(p.time) - 1] for sigma, p in zip(sigmas, snapshots, strict=True)
    ]
    deviations, errors = [], []
    for at in (400, 412):  # one was kept every 25 updates
        weights, error = combination(snapshots, Profile(at, gamma))
        deviations.append(np.tensordot(weights, rows, axes=1) - tracked(walk, gamma)[at - 1])
        errors.append(error)
    assert errors[0] < 0.01
    assert errors[1] > 0.1
    assert deviations[0].std() < 1e-3 * walk[399].std()
    assert deviations[1].std() < 0.05 * walk[411].std()


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_error_is_that_of_the_profile(n: int) -> None:
    """‖Σ wᵢ pᵢ - p‖ / ‖p‖ by quadrature, and it falls as snapshots are added."""
    target = Profile(60.0, exponent(0.15))
    snapshots = kept(60, n)
    weights, error = combination(snapshots, target)
    times, cell = midpoints(60.0)
    mixture = sum(w * density(p, times) for w, p in zip(weights, snapshots, strict=True))
    p = density(target, times)
    expected = math.sqrt((((mixture - p) ** 2).sum() * cell) / ((p**2).sum() * cell))
    assert error == pytest.approx(expected, rel=1e-3)


def test_no_other_weights_of_sum_one_are_better() -> None:
    """A step in any direction that keeps the sum makes the error larger."""
    target, snapshots = Profile(60.0, exponent(0.2)), kept(60, 4)
    weights, error = combination(snapshots, target)
    everyone = [*snapshots, target]
    gram = np.array([[inner_product(a, b) for a in everyone] for b in everyone])
    draw = np.random.default_rng(0)
    for _ in range(100):
        step = draw.standard_normal(len(snapshots))
        step -= step.mean()
        other = np.append(np.asarray(weights) + 1e-3 * step / np.linalg.norm(step), -1.0)
        assert math.sqrt(other @ gram @ other / gram[-1, -1]) > error


def test_the_error_is_relative_to_the_noise_that_an_average_leaves() -> None:
    """Where weights are noise about a mean of 1000, the deviation in units of the average's own noise is the error."""
    steps = 200
    noise = np.random.default_rng(0).standard_normal((steps, 4000))
    snapshots, target = kept(steps, 3), Profile(steps, exponent(0.2))
    weights, error = combination(snapshots, target)
    averages = {sigma: tracked(1000 + noise, exponent(sigma)) for sigma in (0.05, 0.1, 0.2)}
    rows = [
        averages[sigma][int(p.time) - 1]
        for sigma, p in zip(np.repeat([0.05, 0.1], 3), snapshots, strict=True)
    ]
    expected = averages[0.2][-1]
    deviation = np.tensordot(weights, rows, axes=1) - expected
    assert error > 0.2
    assert deviation.std() / expected.std() == pytest.approx(error, rel=0.1)


@settings(deadline=None)
@given(st.integers(1, 12), st.floats(0.01, 0.28), st.sampled_from([(0.05,), (0.05, 0.1), (0.05, 0.05)]))
def test_the_weights_sum_to_one(n: int, width: float, widths: tuple[float, ...]) -> None:
    """Weights that never moved come out as they are, however poor the fit and however alike the snapshots."""
    weights, _ = combination(kept(1200, n, widths), Profile(1200, exponent(width)))
    assert sum(weights) == pytest.approx(1.0, abs=1e-9)


def test_snapshots_that_are_alike_share_their_weight() -> None:
    """Two runs of one width are no problem, and neither is preferred."""
    one = kept(100, 4, (0.05,))
    weights, error = combination([*one, *one], Profile(100, exponent(0.06)))
    alone, error_alone = combination(one, Profile(100, exponent(0.06)))
    np.testing.assert_allclose(weights[:4], weights[4:], atol=1e-9)
    np.testing.assert_allclose(np.multiply(weights[:4], 2), alone, atol=1e-7)
    assert error == pytest.approx(error_alone, abs=1e-6)


def test_the_unit_of_time_does_not_matter() -> None:
    """A run a million times as long has the same weights."""
    short, error = combination(kept(60, 6), Profile(60, exponent(0.07)))
    long, error_long = combination(kept(60_000_000, 6), Profile(60_000_000, exponent(0.07)))
    np.testing.assert_allclose(long, short, rtol=1e-9)
    assert error_long == pytest.approx(error, rel=1e-9)
