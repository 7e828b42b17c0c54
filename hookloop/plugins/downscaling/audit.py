"""``hookloop audit-sampler``: what a sampler does to the spectrum, with a denoiser that makes no mistake.

For Gaussian fields of independent modes the best denoiser is known exactly, and what a sampler makes of it has a
power that is known exactly too: whatever differs from the true power is the sampler's doing. The modes are
those of the training data, as the network sees them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from attrs import asdict, evolve, frozen

from hookloop.diffusion.gaussian import generated_variance
from hookloop.diffusion_options import SolverConfig
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from hookloop.plugins.downscaling.model import DownscalingTask

    Floats = npt.NDArray[np.float64]

DEFAULT_MODES = (1e-3, 10.0)
"""Variances that are looked at where there are no data, relative to the target's unit variance."""
_PER_DECADE = 2
_GRID_PER_DECADE = 100
"""Variances at which the bias, a smooth function of them, is worked out where there are more modes than that."""
_LOST = 0.01
"""Modes of less variance, in units of σ_min², are left out: with every sampler, σ_min² hides them."""
_SOLVERS: tuple[Literal["dpmpp_2m", "heun", "euler", "dpmpp_2m_sde"], ...] = (
    "dpmpp_2m",
    "heun",
    "euler",
    "dpmpp_2m_sde",
)
_RHOS = (5.0, 7.0, 9.0, 12.0, 15.0, 20.0)
_SIGMA_MAX = tuple(10.0 * 2**i for i in range(8))
_FEWEST, _MOST = 4, 100
"""Evaluations among which a sampler is looked for."""


@frozen(eq=False)
class Band:
    """Modes of like wave number."""

    name: str
    variances: Floats
    """Of each mode, in an orthonormal basis of the normalised target."""


@frozen
class Bias:
    """What a sampler does to the power, as shares: 0.05 is 5 % too much."""

    by_band: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The largest, with its sign."""
        return max(self.by_band, key=abs)

    @property
    def mean(self) -> float:
        """The mean of the absolute values."""
        return math.fsum(map(abs, self.by_band)) / len(self.by_band)


def default_bands(low: float, high: float) -> list[Band]:
    """Single modes of variances from *high* to *low*, two a decade or more."""
    n = max(2, math.ceil(_PER_DECADE * math.log10(high / low)) + 1)
    return [Band(f"λ={value:.2g}", np.array([value])) for value in np.geomspace(high, low, n)]


def measured_bands(task: DownscalingTask, cases: int) -> tuple[list[Band], int]:
    """Variances of the cosine modes of the normalised targets of training patches, in octaves of wavelength.

    Cosines (the orthonormal DCT-II) suit patches that do not wrap: mirrored, they are continuous at their edges.
    Each of several variables has bands of its own, of the same names.

    :param cases: patches to look at, at least.
    :returns: bands from long to short waves, and the patches that were looked at.
    """
    total: torch.Tensor | None = None
    n = 0
    data = task.data["train"]
    with torch.no_grad():
        for batch in data.batches(0, 0, -(-cases // data.batch_size)):
            upsampled = task.model.interpolated(batch.coarse, task.factor)
            target = task.model.target(batch.fine, upsampled).double().cpu()
            rows, columns = (cosines(size) for size in target.shape[-2:])
            power = (rows @ target @ columns.T).square().sum(0)
            total = power if total is None else total + power
            n += len(target)
    assert total is not None  # a training split has at least one batch
    variance = (total / n).numpy()
    octave = np.floor(np.log2(wavelengths(*variance.shape[-2:]))).astype(int)
    bands = []
    for power_of_two in sorted(np.unique(octave), reverse=True):
        name = f"{2.0**power_of_two:g}-{2.0 ** (power_of_two + 1):g}"
        for field in variance:
            modes = field[octave == power_of_two]
            if (modes > 0).any():
                bands.append(Band(name, modes[modes > 0]))
    return bands, n


def cosines(n: int) -> torch.Tensor:
    """The orthonormal DCT-II as a matrix ``[mode, cell]``, float64: mode k has k half waves."""
    cell, mode = torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)[:, None]
    matrix = (math.pi * mode * (2 * cell + 1) / (2 * n)).cos() * math.sqrt(2 / n)
    matrix[0] = math.sqrt(1 / n)
    return matrix


def wavelengths(height: int, width: int) -> Floats:
    """Wavelength of each cosine mode, in cells, ``[lat, lon]``; that of the mean is that of the longest other."""
    waves = np.hypot(
        *np.meshgrid(np.arange(height) / (2 * height), np.arange(width) / (2 * width), indexing="ij")
    )
    if waves.size > 1:
        waves.flat[0] = np.partition(waves.ravel(), 1)[1]
    else:
        waves.flat[0] = 0.5
    return np.asarray(1 / waves)


def resolved(bands: Sequence[Band], sigma_min: float) -> tuple[list[Band], int]:
    """Leave out the modes that every sampler with this *sigma_min* loses, and bands that have no other.

    :returns: what is left, and how many modes are not.
    :raises HookloopError: where nothing is left.
    """
    least = _LOST * sigma_min**2
    kept = [Band(band.name, modes) for band in bands if len(modes := band.variances[band.variances >= least])]
    if not kept:
        raise HookloopError(
            f"audit-sampler: found no mode with a variance of {least:g} or more, a hundredth of sigma_min²; expected "
            "some: a lower downscaling.sampler.sigma_min, or data that vary more"
        )
    return kept, sum(len(band.variances) for band in bands) - sum(len(band.variances) for band in kept)


def bias(sampler: SolverConfig, bands: Sequence[Band]) -> Bias:
    """Work out by how much the power that *sampler* generates differs from the true one, band by band.

    Of a few modes it is exact. Of many, the generated power is interpolated between 100 variances a decade, and right
    to 5e-4 of itself.
    """
    distinct = np.unique(np.concatenate([band.variances for band in bands]))
    n = math.ceil(_GRID_PER_DECADE * math.log10(distinct[-1] / distinct[0])) + 1
    grid = distinct if len(distinct) <= n else np.geomspace(distinct[0], distinct[-1], n)
    generated = generated_variance(sampler.sample, torch.from_numpy(grid), sampler.draws)
    ratio = generated.numpy() / grid
    found = []
    for band in bands:
        ratios = np.interp(np.log(band.variances), np.log(grid), ratio)
        found.append(float((ratios * band.variances).sum() / band.variances.sum() - 1))
    return Bias(tuple(found))


def with_evaluations(sampler: SolverConfig, evaluations: int) -> SolverConfig | None:
    """Give the sampler as many steps as so many evaluations allow; ``None`` where it cannot have as few."""
    try:
        return evolve(sampler, steps=(evaluations + 1) // 2 if sampler.solver == "heun" else evaluations)
    except ValueError:  # a single step, or so few that churn falls between them
        return None


def plain(sampler: SolverConfig) -> SolverConfig:
    """Keep what says by which steps, without the networks."""
    options = asdict(sampler, recurse=False)
    return SolverConfig(**{name: options[name] for name in asdict(SolverConfig())})


def others(sampler: SolverConfig) -> list[SolverConfig]:
    """Every solver with the noise levels of *sampler*, which itself comes first."""
    levels = {name: getattr(sampler, name) for name in ("schedule", "steps", "sigma_min", "sigma_max", "rho")}
    alone = [SolverConfig(solver=solver, **levels) for solver in _SOLVERS]
    return [sampler, *(other for other in alone if other != sampler)]


def recommended(
    sampler: SolverConfig, bands: Sequence[Band], tolerance: float
) -> tuple[SolverConfig, Bias] | None:
    """Find the cheapest sampler whose power is right within *tolerance* in each band; of those the best.

    It has to be right with any number of evaluations up to half as many again: errors of a few large steps may
    cancel by luck, which a network that is not quite Gaussian's would not share. Solvers, schedules, their ρ and
    σ_max are tried, with the σ_min of *sampler*; σ_max at which the initial noise lacks no more of any mode than half
    the tolerance.

    :returns: ``None`` where a hundred evaluations are too few.
    """
    found = cache(lambda tried: bias(tried, bands))
    candidates = list(_candidates(sampler, bands, tolerance))

    def is_right(config: SolverConfig) -> bool:
        cost = config.evaluations
        more = (with_evaluations(config, number) for number in range(cost, cost * 3 // 2 + 1))
        return all(abs(found(each).worst) <= tolerance for each in more if each is not None)

    for evaluations in range(_FEWEST, _MOST + 1):
        tried = [config for each in candidates if (config := with_evaluations(each, evaluations)) is not None]
        right = [config for config in tried if config.evaluations == evaluations and is_right(config)]
        if right:
            best = min(right, key=lambda config: abs(found(config).worst))
            return best, found(best)
    return None


def _candidates(sampler: SolverConfig, bands: Sequence[Band], tolerance: float) -> Iterator[SolverConfig]:
    needed = math.sqrt(max(band.variances.max() for band in bands) * max(0.0, 2 / tolerance - 1))
    needed = max(needed, 2 * sampler.sigma_min)
    highest = sorted({sampler.sigma_max, *_SIGMA_MAX})
    enough = [value for value in highest if value >= needed][:3] or [float(math.ceil(needed))]
    for solver, sigma_max, rho in product(_SOLVERS, enough, (*_RHOS, None)):
        with suppress(ValueError):  # a mode so large needs a sigma_max beyond all bounds
            yield SolverConfig(solver=solver, sigma_min=sampler.sigma_min, sigma_max=sigma_max, rho=rho)


def table(sampler: SolverConfig, bands: Sequence[Band], evaluations: Sequence[int], tolerance: float) -> str:
    """Say what *sampler* does to the power, what others do at a like cost, and which is to be recommended.

    :param evaluations: numbers of evaluations to compare at.
    :param tolerance: the largest bias of the power of a band, as a share.
    """
    whole, sampler = sampler, plain(sampler)
    bands, lost = resolved(bands, sampler.sigma_min)
    found = bias(sampler, bands)
    names = list(dict.fromkeys(band.name for band in bands))
    of_name = [
        max((b for b, band in zip(found.by_band, bands, strict=True) if band.name == n), key=abs)
        for n in names
    ]
    lines = [f"as configured: {written(sampler)}, {sampler.evaluations} evaluations"]
    lines += [f"  worst {_percent(found.worst)} %, mean {100 * found.mean:.1f} %, by band:"]
    lines += [
        " " + "".join(f"{name:>9}" for name in names),
        " " + "".join(f"{_percent(b):>9}" for b in of_name),
        "",
    ]
    if lost:
        lines.insert(
            1, f"  {lost} modes of a variance below sigma_min²/100 are left out: sigma_min hides them"
        )
    rows = others(sampler)
    titles = ["configured", *(row.solver for row in rows[1:])]
    lines += ["worst / mean bias against evaluations (of heun the next odd number below), same noise levels:"]
    lines += [f"{'':>11}" + "".join(f"{title:>18}" for title in titles)]
    for number in evaluations:
        cells = [_cell(with_evaluations(row, number), bands) for row in rows]
        lines.append(f"{number:>11}" + "".join(f"{cell:>18}" for cell in cells))
    best = recommended(sampler, bands, tolerance)
    lines.append("")
    if best is None:
        lines.append(f"no sampler found within {100 * tolerance:g} % in up to {_MOST} evaluations")
    else:
        config, reached = best
        lines.append(
            f"recommended, the cheapest within {100 * tolerance:g} %: {config.evaluations} evaluations, "
            f"worst {_percent(reached.worst)} %, mean {100 * reached.mean:.1f} %"
        )
        lines.append(f"  sampler: {written(config)}")
        if beside := [name for name in ("experts", "ensemble") if getattr(whole, name, None)]:
            lines.append(f"  and its {' and '.join(beside)} as configured")
    return "\n".join(lines)


def _cell(sampler: SolverConfig | None, bands: Sequence[Band]) -> str:
    if sampler is None:
        return "-"
    found = bias(sampler, bands)
    return f"{_percent(found.worst)} / {100 * found.mean:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"


def written(sampler: SolverConfig) -> str:
    """Write the options as in a configuration: those that always matter, and others than the defaults.

    The noise levels are said whatever is the default: by their ρ, or as log_linear.
    """
    rho = sampler.karras_rho
    levels = {"schedule": "log_linear"} if rho is None else {"rho": rho}
    options, defaults = asdict(sampler), asdict(SolverConfig())
    shown = {name: options.pop(name) for name in ("solver", "steps", "sigma_min", "sigma_max")} | levels
    others = {n: v for n, v in options.items() if n not in ("schedule", "rho") and v != defaults[n]}
    return "{" + ", ".join(f"{n}: {str(v).removesuffix('.0')}" for n, v in (shown | others).items()) + "}"
