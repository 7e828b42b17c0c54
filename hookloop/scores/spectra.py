"""Power by scale: zonal and radial spectra of the members against the truth's.

Zonal: E(k) = c_k |rfft_x|² / W², the mean over the area of all rows, with c = 1 for k = 0 and for k = W/2 and
2 else, so that Σ_k E(k) is the mean square (Parseval). Radial: the same in two dimensions, over rings of wave
numbers. Where the domain ends, the mean is taken away, a Hann window tapers the field to its edges, and the
square of the mean is put back at k = 0; the window has mean square 1, so that white noise keeps its power.

Sources: Harris 1978 (doi:10.1109/PROC.1978.10837) for windows and their power; Errico 1985
(doi:10.1175/1520-0493(1985)113<1554:SCFALA>2.0.CO;2) for rings in limited areas; Rabiner & Juang 1993 for the
log-spectral distance.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, cast

from attrs import frozen

from hookloop.scores.ensemble import _float64, check_cases
from hookloop.scores.score import Cases, Chart, Maps, Sum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor

ROUNDING = 1e-24
"""Power below this share of the whole is what rounding leaves of nothing."""
SILENCE = 1e-10
"""Ratios of power are taken to be this at least, -100 dB: nothing at all would be infinitely little."""
RESOLVED = 0.8
"""Up to this share of the highest wave number a model is asked to be right."""


def hann(cells: int) -> Tensor:
    """Give the window sin²(π (i + 1/2) / n) at the middles of *cells*, scaled to mean square 1, in float64."""
    import torch

    window = torch.sin(math.pi * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells).square()
    return window / window.square().mean().sqrt()


def multiplicity(cells: int) -> Tensor:
    """How many of *cells* coefficients each of rfft's stands for: 1 for k = 0 and for k = n/2, 2 else."""
    import torch

    k = torch.arange(cells // 2 + 1)
    return torch.where((k == 0) | (2 * k == cells), 1.0, 2.0).double()


@lru_cache(maxsize=8)
def rings(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of rfft2's coefficients make up each ring, and how often each counts: both ``[ring, most]``.

    Cells are taken for squares, so that κ = √((k_x/W)² + (k_y/H)²) is in cycles a cell whatever H and W are.
    Ring k holds k ≤ κ·max(H, W) < k + 1, for k up to max(H, W)/2, where κ = 1/2: what only the corners resolve
    is left out. So ring 0 is the mean alone, and none is empty. Rows are filled up with coefficient 0,
    counted 0 times.
    """
    import torch

    longer = max(height, width)
    k_y = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)[:, None] * longer / height
    k_x = torch.arange(width // 2 + 1, dtype=torch.float64) * longer / width
    ring = (k_y.square() + k_x.square()).sqrt().floor().long().flatten()
    often = multiplicity(width).expand(height, -1).flatten()
    members = [(ring == k).nonzero()[:, 0] for k in range(longer // 2 + 1)]
    index = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
    counted = torch.nn.utils.rnn.pad_sequence([often[one] for one in members], batch_first=True)
    return index.to(device), counted.to(device)


def zonal_spectrum(fields: Tensor, rows: Tensor, *, wraps: bool) -> Tensor:
    """Power of each zonal wave number, in cycles round (or across) the domain, averaged over rows.

    :param fields: ``[..., lat, lon]``.
    :param rows: ``[lat]``, the area of each row, in any unit.
    :param wraps: whether the last column adjoins the first one, so that no window is needed.
    :returns: ``[..., lon // 2 + 1]``, float64, in squared units; its sum is the mean square over the area if
        *wraps*, in expectation if the field is white noise.
    """
    import torch

    fields, cells = _float64(fields), fields.shape[-1]
    mean = torch.zeros_like(fields[..., :1]) if wraps else fields.mean(-1, keepdim=True)
    if not wraps:
        fields = (fields - mean) * hann(cells).to(fields.device)
    power = _squared(torch.fft.rfft(fields)) / cells**2 * multiplicity(cells).to(fields.device)
    power[..., :1] += mean.square()
    rows = rows.to(power)
    return torch.einsum("...yk,y->...k", power, rows / rows.sum())


def radial_spectrum(fields: Tensor, *, wraps: bool) -> Tensor:
    """Power of each ring of wave numbers, in cycles across the longer side: see :func:`rings`.

    :param fields: ``[..., lat, lon]``; areas are ignored, as cells are taken for squares.
    :param wraps: whether the last column adjoins the first one; rows never adjoin.
    :returns: ``[..., max(lat, lon) // 2 + 1]``, float64, in squared units: summed over the modes of the ring.
    """
    import torch

    fields = _float64(fields)
    height, width = fields.shape[-2:]
    mean = fields.mean((-2, -1), keepdim=True)
    fields = (fields - mean) * hann(height).to(fields.device)[:, None]
    if not wraps:
        fields = fields * hann(width).to(fields.device)
    power = _squared(torch.fft.rfft2(fields)).flatten(-2) / (height * width) ** 2
    index, often = rings(height, width, fields.device)
    summed = (power[..., index] * often).sum(-1)
    summed[..., :1] += mean[..., 0].square()
    return summed


def _squared(coefficients: Tensor) -> Tensor:
    return coefficients.real.square() + coefficients.imag.square()


def log_spectral_distance(power: Tensor, truth: Tensor) -> float | None:
    """Root mean square of the ratio of two spectra in decibels: 10 √(mean_k (log10 P/P_truth)²).

    :param power: by wave number from 0 on, which is left out as it is the mean.
    :param truth: likewise; wave numbers without power are left out, and none is without it if all are.
    """
    scored = _powerful(truth)
    if not scored.any():
        return None
    decibels = 10 * (power[scored] / truth[scored]).clamp(min=SILENCE).log10()
    return float(decibels.square().mean().sqrt())


def spectral_bias(power: Tensor, truth: Tensor) -> float | None:
    """Mean of |P/P_truth - 1| over wave numbers up to 0.8 of the highest; arguments as above."""
    import torch

    k = torch.arange(len(truth))
    scored = _powerful(truth) & (k <= RESOLVED * (len(truth) - 1))
    return float((power[scored] / truth[scored] - 1).abs().mean()) if scored.any() else None


def small_scale_energy(power: Tensor, truth: Tensor) -> float | None:
    """Ratio of the power above half of the highest wave number to the truth's; arguments as above."""
    import torch

    small = _powerful(truth) & (2 * torch.arange(len(truth)) > len(truth) - 1)
    return float(power[small].sum() / truth[small].sum()) if small.any() else None


def _powerful(truth: Tensor) -> Tensor:
    scored = truth > ROUNDING * truth.sum()
    scored[:1] = False
    return scored


@frozen
class Spectra:
    """Spectra of the members against the truth's, each averaged over members and cases before any ratio."""

    chosen_as: ClassVar[str] = "spectra"
    smaller_is_better: ClassVar[tuple[str, ...]] = ("lsd_radial", "lsd_zonal", "spectral_bias")
    comparable: ClassVar[tuple[str, ...]] = ("lsd_radial", "lsd_zonal")
    headline: ClassVar[tuple[str, ...]] = ("lsd_radial", "small_scale_energy")

    def sums(self, cases: Cases) -> Mapping[str, Sum]:
        """Power by wave number, summed over cases: of the truth, the members on average, the baseline.

        :raises ValueError: for fewer than two members or shapes that do not fit.
        """
        check_cases(cases)
        rows = cases.weights.mean(1)
        fields = {"truth": cases.truth[:, None], "members": cases.members}
        if cases.baseline is not None:
            fields["baseline"] = cases.baseline[:, None]
        sums: dict[str, Sum] = {}
        for name, values in fields.items():
            sums[f"zonal_{name}"] = zonal_spectrum(values, rows, wraps=cases.wraps).mean(1).sum(0)
            sums[f"radial_{name}"] = radial_spectrum(values, wraps=cases.wraps).mean(1).sum(0)
        radial = cast("Tensor", sums["radial_truth"])
        _, often = rings(*cases.truth.shape[-2:], radial.device)
        sums["modes"] = often.sum(1) * len(cases.truth)
        return sums

    def results(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Distances in dB, the bias of what is resolved and the energy of what is small."""
        spectra = _on_host(sums)
        if not spectra:
            return {}
        radial = spectra["radial_members"], spectra["radial_truth"]
        found = {
            "lsd_zonal": log_spectral_distance(spectra["zonal_members"], spectra["zonal_truth"]),
            "lsd_radial": log_spectral_distance(*radial),
            "spectral_bias": spectral_bias(*radial),
            "small_scale_energy": small_scale_energy(*radial),
        }
        return {name: value for name, value in found.items() if value is not None}

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:
        """Both spectra, of the truth, the members and the baseline; nothing where there is one wave only."""
        spectra = _on_host(sums)
        if not spectra:
            return []
        modes = spectra["modes"]
        radial = _chart(spectra, "radial", "longer side", modes)
        # Ring 0 is one mode, so its count says how many cases there were.
        zonal = _chart(spectra, "zonal", "domain", modes[:1].expand_as(spectra["zonal_truth"]))
        return [chart for chart in (radial, zonal) if len(chart.x) > 1]


def _on_host(sums: Mapping[str, Sum]) -> dict[str, Tensor]:
    return {name: cast("Tensor", value).cpu() for name, value in sums.items()}


def _chart(spectra: Mapping[str, Tensor], kind: str, across: str, modes: Tensor) -> Chart:
    """Draw the mean power of a mode from wave number 1 on; *modes* of each were added up."""
    lines = {
        label.removeprefix(f"{kind}_"): (power / modes)[1:].tolist()
        for label, power in spectra.items()
        if label.startswith(kind)
    }
    return Chart(
        name=f"{kind}_spectrum",
        title=f"{kind.capitalize()} spectrum",
        x=[float(k) for k in range(1, len(modes))],
        lines=lines,
        xlabel=f"wave number (cycles across the {across})",
        ylabel="power ({units}²)",
        xscale="log",
        yscale="log",
    )
