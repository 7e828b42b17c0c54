"""Scores of ensembles against the truth, as pure functions and one accumulator for streaming.

The ensemble axis is ``dim=1`` of ``[case, member, lat, lon]``; the truth is ``[case, lat, lon]``. Everything
is computed in float64, in the units of the fields, without area weights.

Sources: Ferro 2014 (doi:10.1002/qj.2270) and Zamo & Naveau 2018 (doi:10.1007/s11004-017-9709-7) for the fair
CRPS; Fortin et al. 2014 (doi:10.1175/JHM-D-14-0008.1) for the spread-skill ratio.
"""

from __future__ import annotations

import math

import torch
from attrs import asdict, define
from torch import Tensor


def _float64(field: Tensor) -> Tensor:
    """Give *field* in float64, on the host where the device (MPS) has none."""
    return (field.cpu() if field.device.type == "mps" else field).double()


def _checked(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Give both in float64, so that nothing is broadcast by accident and nothing is lost to rounding."""
    expected = (*members.shape[:1], *members.shape[2:])
    if truth.shape != expected:
        raise ValueError(
            f"members {list(members.shape)} expect a truth of {list(expected)}, found {list(truth.shape)}"
        )
    if members.shape[1] <= 1:
        raise ValueError(f"fair CRPS and spread need at least 2 members, found {members.shape[1]}")
    return _float64(members), _float64(truth)


def fair_crps(members: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of each pixel, unbiased for the members being a sample.

    mean|x - y| - 1/(M(M-1)) Σ_i (2i - M - 1) x_(i) with x_(1) ≤ … ≤ x_(M): the second term is half the mean
    absolute difference of two distinct members, from the sorted ones in O(M log M) (Zamo & Naveau 2018).

    :param members: ``[case, member, lat, lon]``.
    :param truth: ``[case, lat, lon]``.
    :returns: ``[case, lat, lon]`` in float64; single pixels may be negative, the expectation is not.
    :raises ValueError: for fewer than two members or shapes that do not fit.
    """
    members, truth = _checked(members, truth)
    m = members.shape[1]
    # The weights sum to zero, so measuring from the truth changes nothing but the rounding.
    departures = (members - truth[:, None]).sort(dim=1).values
    weights = torch.arange(1 - m, m, 2, dtype=torch.float64, device=departures.device) / (m * (m - 1))
    return departures.abs().mean(1) - torch.einsum("cmyx,m->cyx", departures, weights)


def mean_squared_error(members: Tensor, truth: Tensor) -> Tensor:
    """Squared error of the ensemble mean of each pixel.

    Shapes and errors as for :func:`fair_crps`.
    """
    members, truth = _checked(members, truth)
    return (members.mean(1) - truth).square()


def ensemble_variance(members: Tensor) -> Tensor:
    """Unbiased variance over the members of each pixel, ``[case, member, lat, lon]`` to ``[case, lat, lon]``.

    :raises ValueError: for fewer than two members.
    """
    if members.shape[1] <= 1:
        raise ValueError(f"an ensemble's variance needs at least 2 members, found {members.shape[1]}")
    return _float64(members).var(1, correction=1)


def spread_skill_ratio(variance: float, squared_error: float, members: int) -> float:
    """Sqrt((M+1)/M · mean variance / mean squared error): 1 for a reliable ensemble, less if overconfident.

    :param variance: unbiased ensemble variance, averaged over cases and pixels before the ratio and the root
        (Fortin et al. 2014).
    :param squared_error: squared error of the ensemble mean, averaged alike.
    :raises ValueError: where the squared error is zero.
    """
    if squared_error == 0:
        raise ValueError("the spread-skill ratio is undefined: the ensemble mean is exact everywhere")
    return math.sqrt((members + 1) / members * variance / squared_error)


@define
class EnsembleScores:
    """Sums over the cases and pixels of one variable, in float64, so that batches of any size score alike."""

    members: int = 0
    """Members of every case; 0 before the first update."""
    n: int = 0
    """Cases times pixels."""
    crps: float = 0.0
    squared_error: float = 0.0
    """Of the ensemble mean."""
    variance: float = 0.0
    compared: int = 0
    """Cases times pixels with a baseline: all of them or none."""
    baseline_absolute: float = 0.0
    baseline_squared: float = 0.0

    def update(self, prediction: Tensor, target: Tensor, baseline: Tensor | None) -> None:
        """Count more cases.

        :param prediction: ``[case, member, lat, lon]``.
        :param target: the truth, ``[case, lat, lon]``.
        :param baseline: what is to be beaten, ``[case, lat, lon]``, if there is anything.
        :raises ValueError: for fewer than two members, shapes that do not fit, another number of members
            than before, a baseline for some cases only, or any value that is not finite; nothing is counted
            then.
        """
        own = EnsembleScores(
            members=prediction.shape[1],
            n=target.numel(),
            crps=fair_crps(prediction, target).sum().item(),
            squared_error=mean_squared_error(prediction, target).sum().item(),
            variance=ensemble_variance(prediction).sum().item(),
        )
        if baseline is not None:
            own._compare(baseline, target)
        self.merge(own)

    def _compare(self, baseline: Tensor, target: Tensor) -> None:
        if baseline.shape != target.shape:
            raise ValueError(f"expected a baseline of {list(target.shape)}, found {list(baseline.shape)}")
        missed = _float64(baseline) - _float64(target)
        self.compared = target.numel()
        self.baseline_absolute = missed.abs().sum().item()
        self.baseline_squared = missed.square().sum().item()

    def merge(self, other: EnsembleScores) -> None:
        """Count what *other* has counted too, say on another rank.

        :raises ValueError: where the numbers of members differ, one has a baseline and the other has none,
            or a sum of *other* is not finite.
        """
        if not other.n:
            return
        if self.n and self.members != other.members:
            raise ValueError(f"expected {self.members} members as before, found {other.members}")
        if self.n and bool(self.compared) is not bool(other.compared):
            raise ValueError("expected a baseline for all cases or for none, found one for some")
        sums = asdict(other)
        if broken := [name for name, total in sums.items() if not math.isfinite(total)]:
            raise ValueError(f"found values that are not finite: they spoil {', '.join(broken)}")
        self.members = other.members
        for name in sums.keys() - {"members"}:
            setattr(self, name, getattr(self, name) + sums[name])

    def result(self) -> dict[str, float]:
        """Scores of everything counted so far, means before ratios and roots; all of them finite.

        ``crps`` (fair), ``rmse`` (of the ensemble mean) and ``spread_skill``; with a baseline also
        ``crps_relative`` (mean CRPS over mean absolute error of the baseline), ``mae_baseline`` and
        ``rmse_baseline``.

        :raises ValueError: where nothing was counted, or the baseline or the ensemble mean is exact, so that
            a ratio is undefined.
        """
        if not self.n:
            raise ValueError("no case was counted, so there is nothing to score")
        if self.compared and self.baseline_absolute == 0:
            raise ValueError("the relative CRPS is undefined: the baseline is exact everywhere")
        scores = {
            "crps": self.crps / self.n,
            "rmse": math.sqrt(self.squared_error / self.n),
            "spread_skill": spread_skill_ratio(
                self.variance / self.n, self.squared_error / self.n, self.members
            ),
        }
        if not self.compared:
            return scores
        return scores | {
            "crps_relative": self.crps / self.baseline_absolute,
            "mae_baseline": self.baseline_absolute / self.n,
            "rmse_baseline": math.sqrt(self.baseline_squared / self.n),
        }
