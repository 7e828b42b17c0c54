"""Spectra against sums of cosines and sines written out, against Parseval, and on fields of known spectra."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from attrs import evolve
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hookloop.scores.score import Cases, Chart
from hookloop.scores.spectra import (
    Spectra,
    hann,
    log_spectral_distance,
    radial_spectrum,
    rings,
    small_scale_energy,
    spectral_bias,
    zonal_spectrum,
)

CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cases(members: Tensor, truth: Tensor, baseline: Tensor | None = None, *, wraps: bool = True) -> Cases:
    weights = torch.ones(truth.shape[1:], dtype=torch.float64)
    return Cases("x", members, truth, weights, range(len(truth)), baseline=baseline, wraps=wraps)


def window(n: int) -> np.ndarray:
    """sin² at the middles of n cells, of mean square 1."""
    values = np.array([math.sin(math.pi * (i + 0.5) / n) ** 2 for i in range(n)])
    return values / math.sqrt(np.mean(values**2))


def zonal_by_loops(field: np.ndarray, rows: np.ndarray, *, wraps: bool) -> list[float]:
    """Both signs of each wave number, each a sum over cells."""
    n = field.shape[1]
    power = [0.0] * (n // 2 + 1)
    for values, row in zip(field, rows / rows.sum(), strict=True):
        mean = 0.0 if wraps else values.mean()
        tapered = values if wraps else (values - mean) * window(n)
        for k in range(n):
            total = sum(value * cmath.exp(-2j * math.pi * k * i / n) for i, value in enumerate(tapered))
            power[min(k, n - k)] += row * abs(total) ** 2 / n**2
        power[0] += row * mean**2
    return power


def radial_by_loops(field: np.ndarray, *, wraps: bool) -> tuple[list[float], list[int]]:
    """Each mode of both signs, its sum over all cells, put into its ring; and how many there are."""
    h, w = field.shape
    mean = field.mean()
    tapered = (field - mean) * window(h)[:, None]
    if not wraps:
        tapered = tapered * window(w)
    y, x = np.arange(h)[:, None], np.arange(w)
    power, modes = [0.0] * (max(h, w) // 2 + 1), [0] * (max(h, w) // 2 + 1)
    for l in range(-((h - 1) // 2), h // 2 + 1):  # noqa: E741
        for k in range(-((w - 1) // 2), w // 2 + 1):
            ring = math.isqrt(((l * w) ** 2 + (k * h) ** 2) * max(h, w) ** 2 // (h * w) ** 2)
            if ring < len(power):
                power[ring] += (
                    abs((tapered * np.exp(-2j * math.pi * (l * y / h + k * x / w))).sum()) ** 2 / (h * w) ** 2
                )
                modes[ring] += 1
    power[0] += mean**2
    return power, modes


@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_zonal_spectra_are_sums_written_out(n: int, *, wraps: bool) -> None:
    """For even and odd numbers of cells, rows weighted by their area."""
    field, rows = drawn(3, n) + 2, torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    expected = zonal_by_loops(field.numpy(), rows.numpy(), wraps=wraps)
    found = zonal_spectrum(field, rows, wraps=wraps)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize(("h", "w"), [(8, 8), (9, 9), (6, 12), (12, 5), (1, 6), (5, 1), (1, 1), (2, 2)])
def test_radial_spectra_are_sums_written_out(h: int, w: int, *, wraps: bool) -> None:
    """On any rectangle, and each ring has as many modes as there are."""
    field = drawn(h, w) + 2
    expected, modes = radial_by_loops(field.numpy(), wraps=wraps)
    np.testing.assert_allclose(radial_spectrum(field, wraps=wraps).numpy(), expected, rtol=1e-11, atol=1e-13)
    _, often = rings(h, w, CPU)
    assert often.sum(1).tolist() == modes
    assert modes[0] == 1
    assert all(modes)


@many(30)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
def test_modes_on_the_edge_of_a_ring_are_put_there_by_whole_numbers(d: int, a: int, b: int) -> None:
    """Counts of all rings are those of exact integers, also where √(k_x² + k_y²) is a whole number, as of 3 and 4."""
    h, w = d * a, d * b
    expected = [0] * (max(h, w) // 2 + 1)
    for l in range(-((h - 1) // 2), h // 2 + 1):  # noqa: E741
        for k in range(-((w - 1) // 2), w // 2 + 1):
            ring = math.isqrt(((l * w) ** 2 + (k * h) ** 2) * max(h, w) ** 2 // (h * w) ** 2)
            if ring < len(expected):
                expected[ring] += 1
    assert rings(h, w, CPU)[1].sum(1).tolist() == expected


@many(50)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_parseval_holds_round_the_globe(h: int, w: int, seed: int) -> None:
    """The powers of all zonal waves add up to the mean square over the area, for even and odd numbers."""
    field = drawn(h, w, seed=seed) + 1
    rows = 0.1 + drawn(h, seed=seed + 1).abs()
    mean_square = (field.square().mean(1) * rows).sum() / rows.sum()
    assert float(zonal_spectrum(field, rows, wraps=True).sum()) == pytest.approx(
        float(mean_square), rel=1e-12
    )


def test_the_shortest_wave_is_counted_once() -> None:
    """Of a field 3, -3, 3, … the mean square is 9, and so is its power at k = n/2."""
    field = 3 * (-1.0) ** torch.arange(8).expand(2, 8)
    found = zonal_spectrum(field, torch.ones(2), wraps=True)
    np.testing.assert_allclose(found.numpy(), [0, 0, 0, 0, 9], atol=1e-14)


def test_a_wave_has_the_power_of_its_variance() -> None:
    """A²/2 for a cosine of amplitude A, at its wave number alone, also under a window up to its neighbours."""
    wave = 4 * torch.cos(2 * math.pi * 5 * torch.arange(32) / 32).expand(24, 32)
    found = zonal_spectrum(wave, torch.ones(24), wraps=True)
    assert float(found[5]) == pytest.approx(8)
    assert float(found.sum()) == pytest.approx(8)
    tapered = zonal_spectrum(wave, torch.ones(24), wraps=False)
    assert float(tapered[4:7].sum()) == pytest.approx(float(tapered.sum()))
    assert float(tapered.sum()) == pytest.approx(8, rel=1e-6)
    # Zonal wave number 5 of 32 cells is ring 5 as 32 is the longer side; the window of rows spreads it a little.
    ringed = radial_spectrum(wave, wraps=True)
    assert float(ringed[5]) == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize("wraps", [True, False])
def test_a_constant_field_has_power_at_zero_alone(*, wraps: bool) -> None:
    """Its square."""
    field = torch.full((6, 9), 7.0)
    for found in (zonal_spectrum(field, torch.ones(6), wraps=wraps), radial_spectrum(field, wraps=wraps)):
        assert float(found[0]) == pytest.approx(49)
        np.testing.assert_allclose(found[1:].numpy(), 0, atol=1e-24)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_a_window_keeps_the_power_of_white_noise(n: int) -> None:
    """Exactly, in expectation: spectra are quadratic, so that of unit variance is the sum over unit vectors.

    Half of Parseval for limited areas; a uniform window would give the other half, equality for each field.
    """
    expected = zonal_spectrum(torch.eye(n)[:, None], torch.ones(1), wraps=False).sum(0)
    assert float(expected.sum()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize(("h", "w"), [(8, 8), (7, 12)])
def test_windowed_white_noise_is_white(h: int, w: int, *, wraps: bool) -> None:
    """In expectation, exactly: every mode has 1/(HW), beyond the waves from which the mean was taken."""
    unit = torch.eye(h * w).view(-1, h, w)
    _, often = rings(h, w, CPU)
    white = radial_spectrum(unit, wraps=wraps).sum(0) / often.sum(1) * h * w
    np.testing.assert_allclose(white[2:].numpy(), 1, rtol=1e-11)
    rows = zonal_spectrum(unit, torch.ones(h), wraps=wraps).sum(0) * w
    np.testing.assert_allclose(rows[2:-1].numpy(), 2, rtol=1e-11)


def red(n: int, size: int, slope: float) -> Tensor:
    """Draw *n* periodic squares whose modes have the power |κ|^-slope, κ in cycles across the square."""
    k = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    kappa = (k[:, None].square() + k.square()).sqrt()
    kappa[0, 0] = math.inf
    white = torch.fft.fft2(drawn(n, size, size)) / size
    return torch.fft.ifft2(white * kappa ** (-slope / 2)).real * size**2


def test_a_red_spectrum_is_found_again() -> None:
    """Power |κ|^-3 for each mode of a periodic field to 3 %, and of a part cut out of it the slope to 0.1."""
    found = radial_spectrum(red(400, 64, 3.0), wraps=True).mean(0)
    _, often = rings(64, 64, CPU)
    k = torch.fft.fftfreq(64, 1 / 64, dtype=torch.float64)
    kappa = (k[:, None].square() + k.square()).sqrt()
    for ring in (10, 20, 30):
        inside = (kappa >= ring) & (kappa < ring + 1)
        expected = float(kappa[inside].pow(-3).sum())
        assert float(found[ring]) == pytest.approx(expected, rel=0.03)
    cut = radial_spectrum(red(40, 128, 3.0)[:, 30:94, 20:84], wraps=False).mean(0) / often.sum(1)
    ring = torch.arange(4, 30)
    slope = np.polyfit(np.log(ring.numpy() + 0.5), cut[ring].log().numpy(), 1)[0]
    assert slope == pytest.approx(-3, abs=0.1)


def test_without_a_window_the_edges_would_be_heard() -> None:
    """A slope across the domain, periodic or not: only a window keeps it out of the small scales."""
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).expand(8, 64)
    tapered = zonal_spectrum(ramp, torch.ones(8), wraps=False)
    bare = zonal_spectrum(ramp, torch.ones(8), wraps=True)
    assert float(tapered[20:].sum()) < 1e-4 * float(bare[20:].sum())


def test_the_window_has_mean_square_one() -> None:
    for n in (1, 2, 3, 50):
        np.testing.assert_allclose(hann(n).numpy(), window(n), rtol=1e-13)


def test_twice_the_power_is_three_decibels() -> None:
    """10 log10 2 at every wave number but the mean, whatever the spectrum; likewise half the power."""
    truth = torch.tensor([100.0, 8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    for factor in (2.0, 0.5):
        power = torch.cat([truth[:1] * 9, truth[1:] * factor])
        assert log_spectral_distance(power, truth) == pytest.approx(10 * math.log10(2))
        assert small_scale_energy(power, truth) == pytest.approx(factor)
    assert spectral_bias(2 * truth, truth) == pytest.approx(1)
    assert spectral_bias(torch.tensor([1.0, 3.0, 9.0]), torch.ones(3)) == pytest.approx(2)  # k = 1 alone
    # k = 1, 2, 3 are within 0.8 · 4; k = 3, 4 lie above half of it.
    power = truth * torch.tensor([1.0, 1.5, 0.5, 1.0, 7.0])
    assert spectral_bias(power, truth) == pytest.approx(1 / 3)
    assert small_scale_energy(power, truth) == pytest.approx(9 / 3)


def test_what_is_resolved_ends_at_four_fifths_of_the_highest_wave_number() -> None:
    """Of 0 to 10, k = 8 counts among eight and k = 9 does not."""
    truth = torch.ones(11, dtype=torch.float64)
    for wrong, expected in ((8, 1 / 8), (9, 0.0)):
        power = truth.clone()
        power[wrong] = 2
        assert spectral_bias(power, truth) == pytest.approx(expected)


def by_numpy(sample: Cases) -> dict[str, float]:
    """Scores from spectra written out, averaged over members and cases before any ratio."""
    rows = sample.weights.mean(1).numpy()

    def zonal(fields: Tensor) -> np.ndarray:
        return np.mean([zonal_by_loops(f, rows, wraps=sample.wraps) for f in fields.numpy()], 0)

    def radial(fields: Tensor) -> np.ndarray:
        return np.mean([radial_by_loops(f, wraps=sample.wraps)[0] for f in fields.numpy()], 0)

    every = sample.members.flatten(0, 1)
    lines = zonal(every)[1:] / zonal(sample.truth)[1:]
    members, truth = radial(every), radial(sample.truth)
    ratio, k = members[1:] / truth[1:], np.arange(1, len(truth))
    return {
        "lsd_zonal": 10 * math.sqrt(np.mean(np.log10(lines) ** 2)),
        "lsd_radial": 10 * math.sqrt(np.mean(np.log10(ratio) ** 2)),
        "spectral_bias": np.abs(ratio - 1)[k <= 0.8 * k[-1]].mean(),
        "small_scale_energy": members[1:][k > k[-1] / 2].sum() / truth[1:][k > k[-1] / 2].sum(),
    }


@pytest.mark.parametrize("wraps", [True, False])
def test_scores_are_those_written_out(*, wraps: bool) -> None:
    sample = cases(drawn(3, 2, 6, 9), 2 * drawn(3, 6, 9, seed=1) + 1, wraps=wraps)
    sample = evolve(sample, weights=torch.linspace(0.2, 1.8, 6, dtype=torch.float64)[:, None].expand(6, 9))
    score = Spectra()
    assert score.results(score.sums(sample)) == pytest.approx(by_numpy(sample), rel=1e-9)


def test_autocast_changes_nothing() -> None:
    """Scores are counted where generating may use half precision."""
    sample, score = cases(drawn(2, 3, 6, 7).float(), drawn(2, 6, 7, seed=1).float()), Spectra()
    with torch.autocast("cpu", torch.bfloat16):
        found = score.results(score.sums(sample))
    assert found == score.results(score.sums(sample))


@many(40)
@given(st.integers(0, 1000), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans())
def test_batches_of_any_size_score_as_one(seed: int, sizes: list[int], wraps: bool) -> None:  # noqa: FBT001
    """One window too; ratios of means, so a case of great power counts more than one of little."""
    n = sum(sizes)
    scale = torch.arange(1.0, n + 1)[:, None, None]
    members, truth = drawn(n, 2, 5, 6, seed=seed) * scale[:, None], drawn(n, 5, 6, seed=seed + 1) * scale
    score = Spectra()
    whole = score.sums(cases(members, truth, truth / 2, wraps=wraps))
    parts = [
        score.sums(cases(*pair, pair[1] / 2, wraps=wraps))
        for pair in zip(members.split(sizes), truth.split(sizes), strict=True)
    ]
    merged = dict(parts[0])
    for part in parts[1:]:
        merged = {name: merged[name] + part[name] for name in merged}
    assert score.results(merged) == pytest.approx(score.results(whole), rel=1e-9)
    repeated = score.results({name: total * 3 for name, total in whole.items()})
    assert repeated == pytest.approx(score.results(whole), rel=1e-9)


def test_members_like_the_truth_score_well_and_their_mean_would_not() -> None:
    """The spectrum is that of the members: an ensemble's mean is smoother than any of them."""
    members, truth = red(240, 32, 2.0).view(30, 8, 32, 32), red(270, 32, 2.0)[240:]
    score = Spectra()
    good = score.results(score.sums(cases(members, truth)))
    smooth = score.results(score.sums(cases(members.mean(1, keepdim=True).expand(-1, 2, -1, -1), truth)))
    assert good["lsd_radial"] < 0.5
    assert good["small_scale_energy"] == pytest.approx(1, abs=0.05)
    assert smooth["lsd_radial"] == pytest.approx(10 * math.log10(8), abs=0.5)
    assert smooth["small_scale_energy"] == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("wraps", [True, False])
def test_a_truth_without_power_has_no_score(*, wraps: bool) -> None:
    """Constant, dry, or of one cell: absent, even where the constant is not exact in binary."""
    score = Spectra()
    for truth in (torch.zeros(2, 6, 7), torch.full((2, 6, 7), 280.1, dtype=torch.float64), drawn(2, 1, 1)):
        sums = score.sums(cases(drawn(2, 3, *truth.shape[1:]), truth, wraps=wraps))
        assert score.results(sums) == {}
    assert score.results({}) == {}
    assert score.pictures({}) == []


def test_a_prediction_without_power_is_a_hundred_decibels_off() -> None:
    """Constant members are as bad as can be: not infinite, and not absent."""
    score = Spectra()
    found = score.results(score.sums(cases(torch.zeros(1, 2, 8, 8), drawn(1, 8, 8))))
    assert found == {
        "lsd_zonal": pytest.approx(100),
        "lsd_radial": pytest.approx(100),
        "spectral_bias": pytest.approx(1),
        "small_scale_energy": 0,
    }


@pytest.mark.parametrize(("h", "w"), [(1, 8), (8, 1), (2, 2), (3, 2)])
def test_narrow_domains_give_finite_numbers(h: int, w: int) -> None:
    score = Spectra()
    for wraps in (True, False):
        found = score.results(score.sums(cases(drawn(4, 2, h, w), drawn(4, h, w, seed=1), wraps=wraps)))
        assert found
        assert all(map(math.isfinite, found.values()))


def test_charts_show_the_power_of_a_mode() -> None:
    """Means over cases, from wave number 1 on, on log axes; the radial one by the number of modes of a ring."""
    truth, members = drawn(3, 6, 10), drawn(3, 2, 6, 10, seed=1)
    score = Spectra()
    radial, zonal = score.pictures(score.sums(cases(members, truth, truth / 2, wraps=False)))
    assert isinstance(radial, Chart)
    assert isinstance(zonal, Chart)
    by_ring = [radial_by_loops(field, wraps=False) for field in truth.numpy()]
    expected = np.mean([power for power, _ in by_ring], 0) / by_ring[0][1]
    np.testing.assert_allclose(radial.lines["truth"], expected[1:])
    np.testing.assert_allclose(radial.lines["baseline"], expected[1:] / 4)
    lines = np.mean([zonal_by_loops(field, np.ones(6), wraps=False) for field in truth.numpy()], 0)
    np.testing.assert_allclose(zonal.lines["truth"], lines[1:])
    for chart in (radial, zonal):
        assert list(chart.lines) == ["truth", "members", "baseline"]
        assert chart.x == [1, 2, 3, 4, 5]
        assert (chart.xscale, chart.yscale) == ("log", "log")
