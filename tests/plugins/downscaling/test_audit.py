"""The audit of a sampler: modes of real data, biases by arithmetic, and what it prints and recommends."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import pytest
import scipy.fft
import torch
from attrs import evolve
from click.testing import CliRunner, Result

from hookloop import yamlfile
from hookloop.cli import _make_run
from hookloop.config import build
from hookloop.diffusion.gaussian import generated_variance
from hookloop.diffusion_options import SolverConfig
from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import Downscaling, audit
from hookloop.plugins.downscaling.audit_command import audit_sampler
from hookloop.plugins.downscaling.model import DownscalingTask
from hookloop.plugins.downscaling.options import SamplerConfig
from hookloop.plugins.downscaling.sample import write
from hookloop.plugins.downscaling.synthetic import Recipe
from hookloop.testing import prepared


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files of the synthetic data and their configuration: 16x16 fine, 4x4 coarse, 40 and 6 hours."""
    directory = tmp_path_factory.mktemp("audit") / "data"
    write(directory, Recipe(n=16, factor=4), 40, 6, 0)
    return directory


def audited(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(audit_sampler, [str(config), *arguments], obj=_make_run)


def test_cosines_are_scipys() -> None:
    """The orthonormal DCT-II."""
    field = np.random.default_rng(0).standard_normal((6, 9))
    found = audit.cosines(6) @ torch.from_numpy(field) @ audit.cosines(9).T
    np.testing.assert_allclose(found.numpy(), scipy.fft.dctn(field, norm="ortho"), atol=1e-12)


def test_wavelengths_of_modes() -> None:
    """Mode k along a side of n cells has k half waves; the mean is as long as the longest wave."""
    found = audit.wavelengths(8, 4)
    assert found[2, 0] == pytest.approx(8.0)
    assert found[0, 2] == pytest.approx(4.0)
    assert found[3, 1] == pytest.approx(1 / math.hypot(3 / 16, 1 / 8))
    assert found[0, 0] == found[1, 0] == 16.0


def test_the_modes_of_the_target_hold_its_variance(sample: Path, tmp_path: Path) -> None:
    """Parseval: over all modes of the normalised target the mean of the variances is 1, and each is scipy's."""
    section = yamlfile.read((sample / "cfg.yaml").read_text(), "cfg.yaml", []).data["downscaling"]
    plugin = build(Downscaling, yamlfile.Document({"downscaling": section}), "downscaling")
    task = prepared(tmp_path, plugin).task
    assert isinstance(task, DownscalingTask)
    bands, n = audit.measured_bands(task, 40)
    assert n == 40
    every = np.concatenate([band.variances for band in bands])
    assert len(every) == 16 * 16
    assert every.mean() == pytest.approx(1.0, abs=1e-3)

    batch = task.data["train"].cases(range(40))  # type: ignore[attr-defined]
    target = task.model.target(batch.fine, task.model.interpolated(batch.coarse, 4))[:, 0].double().numpy()
    power = (scipy.fft.dctn(target, axes=(1, 2), norm="ortho") ** 2).mean(0)
    k = np.hypot(*np.meshgrid(np.arange(16) / 32, np.arange(16) / 32))
    assert [band.name for band in bands] == ["32-64", "16-32", "8-16", "4-8", "2-4", "1-2"]
    short = power[(1 / k.clip(1e-9) < 4) & (1 / k.clip(1e-9) >= 2)]
    np.testing.assert_allclose(np.sort(bands[4].variances), np.sort(short), rtol=1e-4)


def test_the_bias_of_a_band_is_that_of_its_power() -> None:
    """Power is added up over its modes before anything is divided: for Euler by the product over its steps."""
    sampler = SolverConfig(solver="euler", steps=9)
    sigmas = sampler.levels()

    def ratio(variance: float) -> float:
        steps = (1 + (b - a) * a / (variance + a * a) for a, b in pairwise(sigmas))
        return (sigmas[0] * math.prod(steps)) ** 2 / variance

    variances = np.geomspace(1e-3, 10, 23)
    bands = [audit.Band("long", variances[12:]), audit.Band("short", variances[:12])]
    found = audit.bias(sampler, bands)
    for band, got in zip(bands, found.by_band, strict=True):
        exact = sum(ratio(v) * v for v in band.variances) / band.variances.sum() - 1
        assert got == pytest.approx(exact, rel=1e-9)
    assert found.worst == min(found.by_band)
    assert found.mean == pytest.approx(-sum(found.by_band) / 2)
    single = audit.bias(sampler, [audit.Band("one", np.array([0.1]))])
    assert single.worst == pytest.approx(ratio(0.1) - 1, rel=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [
        SolverConfig(),
        SolverConfig(steps=4, rho=7.0),
        SolverConfig(solver="heun", steps=3),
        SolverConfig(solver="heun", steps=9, churn=5.0),
        SolverConfig(solver="euler", steps=5),
        SolverConfig(solver="dpmpp_2m_sde", steps=8, eta=3.0),
    ],
    ids=audit.written,
)
def test_the_power_of_many_modes_is_right_to_five_parts_in_ten_thousand(sampler: SolverConfig) -> None:
    """From the smallest modes that are looked at, σ_min²/100, to far above σ_max²: each beside its exact power."""
    decades = np.random.default_rng(0).uniform(math.log10(sampler.sigma_min**2 / 100), 6, 3000)
    variances = 10**decades
    many = audit.bias(sampler, [audit.Band(str(i), variances[i : i + 1]) for i in range(len(variances))])
    exact = generated_variance(sampler.sample, torch.from_numpy(variances), sampler.draws).numpy() / variances
    np.testing.assert_allclose(1 + np.array(many.by_band), exact, rtol=5e-4)


def test_modes_below_the_last_noise_are_left_out() -> None:
    """Those of a variance below σ_min²/100 are counted, and bands of no others go; with nothing left that is told."""
    bands = [audit.Band("long", np.array([1.0, 1e-30])), audit.Band("short", np.array([1e-30, 3.9e-8]))]
    kept, lost = audit.resolved(bands, 0.002)
    assert [(band.name, band.variances.tolist()) for band in kept] == [("long", [1.0])]
    assert lost == 3
    kept, lost = audit.resolved(bands, 0.0019)
    assert [band.name for band in kept] == ["long", "short"]
    assert lost == 2
    said = audit.table(SolverConfig(), bands, [8], 0.05)
    assert "3 modes of a variance below sigma_min²/100 are left out" in said
    assert "short" not in said
    with pytest.raises(HookloopError, match="no mode with a variance of 4e-08 or more"):
        audit.table(SolverConfig(), bands[1:], [8], 0.05)


@pytest.mark.parametrize("tolerance", [0.02, 0.05, 0.2])
def test_what_is_recommended_is_within_the_tolerance_and_nothing_cheaper_is(tolerance: float) -> None:
    """Also with a few evaluations more; the exact bias is below the tolerance, and a looser one costs less."""
    bands = audit.default_bands(*audit.DEFAULT_MODES)
    best = audit.recommended(SolverConfig(), bands, tolerance)
    assert best is not None
    config, reached = best
    assert reached == audit.bias(config, bands)
    for more in range(config.evaluations, config.evaluations * 3 // 2 + 1):
        same = audit.with_evaluations(config, more)
        assert same is not None
        assert abs(audit.bias(same, bands).worst) <= tolerance
    assert config.sigma_max**2 >= 10 * (2 / tolerance - 1)
    fewer = audit.with_evaluations(config, config.evaluations - 1)
    assert fewer is not None
    assert abs(audit.bias(fewer, bands).worst) > tolerance


def by_hand(
    bands: list[audit.Band], tolerance: float, most: int
) -> dict[int, list[tuple[float, SolverConfig]]]:
    """Worst biases of all samplers right within *tolerance* at a number of evaluations, whatever more would do."""
    found: dict[int, list[tuple[float, SolverConfig]]] = {}
    for config in audit._candidates(SolverConfig(), bands, tolerance):
        for number in range(4, most + 1):
            same = audit.with_evaluations(config, number)
            if same is not None and same.evaluations == number:
                worst = abs(audit.bias(same, bands).worst)
                if worst <= tolerance:
                    found.setdefault(number, []).append((worst, same))
    return found


def test_of_the_cheapest_the_best_is_recommended() -> None:
    """Of several samplers with as many evaluations it is the one with the smallest worst bias that stays right."""
    bands = audit.default_bands(0.1, 1.0)
    best = audit.recommended(SolverConfig(), bands, 0.2)
    assert best is not None
    config, reached = best
    stay = []
    for worst, other in by_hand(bands, 0.2, config.evaluations)[config.evaluations]:
        more = range(config.evaluations, config.evaluations * 3 // 2 + 1)
        others = [audit.with_evaluations(other, number) for number in more]
        if all(abs(audit.bias(each, bands).worst) <= 0.2 for each in others if each is not None):
            stay.append(worst)
    assert len(stay) > 1
    assert stay[0] > min(stay)
    assert abs(reached.worst) == min(stay)


def test_what_is_right_by_luck_is_not_recommended() -> None:
    """Some sampler with fewer evaluations is within the tolerance too, but not with a few more."""
    bands = audit.default_bands(0.1, 1.0)
    best = audit.recommended(SolverConfig(), bands, 0.2)
    assert best is not None
    cost = best[0].evaluations
    lucky = by_hand(bands, 0.2, cost - 1)
    assert lucky
    for number, samplers in lucky.items():
        for _, sampler in samplers:
            more = (audit.with_evaluations(sampler, n) for n in range(number, number * 3 // 2 + 1))
            assert any(abs(audit.bias(each, bands).worst) > 0.2 for each in more if each is not None)


def test_a_larger_tolerance_is_no_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where nothing will do, that is told."""
    bands = audit.default_bands(*audit.DEFAULT_MODES)
    costs = []
    for tolerance in (0.02, 0.05, 0.2):
        best = audit.recommended(SolverConfig(), bands, tolerance)
        assert best is not None
        costs.append(best[0].evaluations)
    assert costs == sorted(costs, reverse=True)
    monkeypatch.setattr(audit, "_MOST", 10)
    tiny = [audit.Band("λ", np.array([1e-9]))]  # far below σ_min², which is what is left of the noise
    assert audit.recommended(SolverConfig(sigma_min=1.0, sigma_max=2.0), tiny, 0.001) is None


def test_steps_are_as_many_as_evaluations_allow() -> None:
    """Heun's method needs two for a step but the last; a single step is none."""
    heun = SolverConfig(solver="heun")
    assert [audit.with_evaluations(heun, n).steps for n in (35, 36, 3)] == [18, 18, 2]  # type: ignore[union-attr]
    assert audit.with_evaluations(heun, 2) is None
    assert audit.with_evaluations(SolverConfig(), 7) == SolverConfig(steps=7)


@pytest.mark.parametrize(
    "sampler",
    [
        SolverConfig(),
        SolverConfig(schedule="log_linear", steps=16, sigma_max=40.0),
        SolverConfig(schedule="karras", sigma_min=1.2345678e-5),
        SolverConfig(solver="heun", churn=2.5, churn_max=50.0, rho=12.0),
        SolverConfig(solver="dpmpp_2m_sde", eta=0.5),
    ],
    ids=audit.written,
)
def test_options_are_written_as_they_are_read(sampler: SolverConfig) -> None:
    """What is recommended can be put into a configuration: the same steps, to the bit, whatever the defaults are."""
    document = yamlfile.read(f"sampler: {audit.written(sampler)}", "text", [])
    read = build(SolverConfig, document, "sampler")
    assert read.levels() == sampler.levels()
    assert audit.written(read) == audit.written(sampler)
    assert evolve(read, schedule="auto", rho=None) == evolve(sampler, schedule="auto", rho=None)
    assert ("schedule" in audit.written(sampler)) != ("rho" in audit.written(sampler))


def test_networks_of_the_sampler_are_not_forgotten() -> None:
    """The recommendation names those that are to stay beside it."""
    sampler = SamplerConfig(ensemble=[Path("other.ckpt")])
    assert "and its ensemble as configured" in audit.table(sampler, audit.default_bands(0.1, 1.0), [8], 0.2)


def test_the_table_of_the_documentation_is_what_the_command_prints(sample: Path) -> None:
    """Every row: evaluations, worst bias and mean of the sampler that it names."""
    text = (Path(__file__).parents[3] / "docs" / "sampling.md").read_text()
    rows = re.findall(r"^\| `(\{.*?\})`.*? \| (\d+) \| ([+-][\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 11
    for options, evaluations, worst, mean in rows:
        done = audited(
            sample / "cfg.yaml",
            *("--modes", "0.001", "10", "--evaluations", "8", "--tolerance", "100"),
            *("--set", f"downscaling.sampler={options}"),
        )
        assert f"}}, {evaluations} evaluations\n  worst {worst} %, mean {mean} %" in done.output, options


def test_the_command_measures_the_training_data(sample: Path) -> None:
    """The configured sampler's worst and mean bias, a row for each number of evaluations, and a recommendation."""
    done = audited(sample / "cfg.yaml", "--evaluations", "8", "--evaluations", "35", "--tolerance", "10")
    assert done.exit_code == 0, done.output
    assert "modes of 40 training patches" in done.output
    assert (
        "as configured: {solver: dpmpp_2m, steps: 18, sigma_min: 0.002, sigma_max: 20, schedule: log_linear}"
        in done.output
    )
    rows = [line.split() for line in done.output.splitlines() if re.match(r" +(8|35) ", line)]
    assert [row[0] for row in rows] == ["8", "35"]
    for few, many in zip(*(re.findall(r"[+-]([\d.]+) /", " ".join(row)) for row in rows), strict=True):
        assert float(many) < float(few)
    recommended = re.search(r"sampler: ({.*})", done.output)
    assert recommended
    build(SolverConfig, yamlfile.read(f"sampler: {recommended[1]}", "text", []), "sampler")


def test_without_data_given_variances_are_looked_at(sample: Path) -> None:
    """The data are not touched then; the biases with ρ = 7 are known."""
    config = sample.parent / "nodata.yaml"
    config.write_text((sample / "cfg.yaml").read_text().replace(str(sample), str(sample.parent / "absent")))
    default = ("--set", "downscaling.sampler={rho: 7}", "--evaluations", "18")
    done = audited(config, "--modes", "0.001", "10", *default)
    assert done.exit_code == 0, done.output
    ratio = {"λ=1": 1.051, "λ=0.1": 1.070, "λ=0.01": 1.081, "λ=0.001": 1.059}
    lines = done.output.splitlines()
    at = next(i for i, line in enumerate(lines) if "λ=10" in line)
    found = dict(zip(lines[at].split(), map(float, lines[at + 1].split()), strict=True))
    assert {name: found[name] for name in ratio} == pytest.approx(
        {name: 100 * (value**2 - 1) for name, value in ratio.items()}, abs=0.2
    )

    fallen = audited(config, *default)
    assert fallen.exit_code == 0
    assert "the data cannot be opened" in fallen.output
    assert "modes of variances 0.001 to 10" in fallen.output


def test_what_cannot_be_audited_is_refused(sample: Path) -> None:
    """Variances the wrong way round, and a configuration without the plugin."""
    done = audited(sample / "cfg.yaml", "--modes", "10", "0.001")
    assert done.exit_code == 2
    assert "expected LOW below HIGH" in done.output
    done = audited(sample / "cfg.yaml", "--plugins", "ema")
    assert isinstance(done.exception, HookloopError)
    assert "downscaling is not listed" in str(done.exception)
    assert isinstance(audit_sampler, click.Command)
