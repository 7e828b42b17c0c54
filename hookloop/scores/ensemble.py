"""Scores of ensembles against the truth, pixel by pixel.

The ensemble axis is ``dim=1`` of ``[case, member, lat, lon]``; the truth is ``[case, lat, lon]``. Members are
sorted as they are and everything is summed in float64, in the units of the fields.

Sources: Ferro 2014 (doi:10.1002/qj.2270) and Zamo & Naveau 2018 (doi:10.1007/s11004-017-9709-7) for the fair
CRPS; Batcher 1968 (doi:10.1145/1468075.1468121) for sorting by a network; Fortin et al. 2014
(doi:10.1175/JHM-D-14-0008.1) for the spread-skill ratio.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, cast

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.scores.score import Cases, Chart, Maps, Sum


_NETWORK = 256
"""Members at most that a network sorts: one of more takes long to make."""


def _with_float64(field: Tensor) -> Tensor:
    """Give *field* on a device that has float64: on the host instead of MPS."""
    return field.cpu() if field.device.type == "mps" else field


def _float64(field: Tensor) -> Tensor:
    """Give *field* in float64, on the host where the device (MPS) has none."""
    return _with_float64(field).double()


def check_ensemble(members: Tensor, truth: Tensor) -> None:
    """Refuse what would be broadcast by accident, and ensembles of one.

    :raises ValueError: for fewer than two members or shapes that do not fit.
    """
    expected = (*members.shape[:1], *members.shape[2:])
    if truth.shape != expected:
        raise ValueError(
            f"members {list(members.shape)} expect a truth of {list(expected)}, found {list(truth.shape)}"
        )
    if members.shape[1] <= 1:
        raise ValueError(f"fair CRPS and spread need at least 2 members, found {members.shape[1]}")


@lru_cache
def _comparators(n: int) -> tuple[tuple[int, int], ...]:
    """Pairs to put in order, one after the other, so that *n* are sorted: Batcher's odd-even merge sort."""
    strides = [2**i for i in range((n - 1).bit_length())]
    return tuple(
        (i, i + step)
        for stride in strides
        for step in reversed(strides[: strides.index(stride) + 1])
        for start in range(step % stride, n - step, 2 * step)
        for i in range(start, min(start + step, n - step))
        if i // (2 * stride) == (i + step) // (2 * stride)
    )


def ascending(members: Tensor) -> list[Tensor]:
    """Members in ascending order in each pixel: as many fields ``[case, lat, lon]``, of the same type.

    On the CPU by a sorting network of whole fields, several times as fast there as ``torch.sort``.

    :param members: ``[case, member, lat, lon]``.
    """
    import torch

    members = _with_float64(members)
    if members.device.type != "cpu" or members.shape[1] > _NETWORK:
        return list(members.sort(dim=1).values.unbind(1))
    fields = list(members.unbind(1))
    for low, high in _comparators(len(fields)):
        a, b = fields[low], fields[high]
        fields[low], fields[high] = torch.minimum(a, b), torch.maximum(a, b)
    return fields


def crps_terms(ordered: Sequence[Tensor], truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of the fair CRPS of each pixel, skill - spread / 2: equal on average if all is reliable.

    The mean absolute difference of two distinct members is 2/(M(M-1)) Σ_{i ≤ M/2} (M+1-2i) (x_(M+1-i) - x_(i))
    with x_(1) ≤ … ≤ x_(M) (Zamo & Naveau 2018, eq. 27, opposite ranks taken together), so nothing cancels.

    :param ordered: the members as :func:`ascending` gives them, two or more.
    :param truth: ``[case, lat, lon]``.
    :returns: mean |x - y| and mean |x - x'|, each ``[case, lat, lon]`` in float64.
    """
    import torch

    truth = _float64(truth)
    m = len(ordered)
    skill, spread = torch.zeros_like(truth), torch.zeros_like(truth)
    for field in ordered:
        skill += (field - truth).abs_()
    for i in range(m // 2):
        spread.add_(ordered[-1 - i].double() - ordered[i], alpha=2 * (m - 1 - 2 * i) / (m * (m - 1)))
    return skill / m, spread


def fair_crps(members: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of each pixel, unbiased for the members being a sample.

    mean|x - y| - 1/2 mean|x - x'| over distinct members, in O(M log² M) (see :func:`crps_terms`).

    :param members: ``[case, member, lat, lon]``.
    :param truth: ``[case, lat, lon]``.
    :returns: ``[case, lat, lon]`` in float64; single pixels may be negative, the expectation is not.
    :raises ValueError: for fewer than two members or shapes that do not fit.
    """
    check_ensemble(members, truth)
    skill, spread = crps_terms(ascending(members), truth)
    return skill - spread / 2


def ensemble_mean(members: Tensor) -> Tensor:
    """Mean over the members of each pixel in float64, ``[case, member, lat, lon]`` to ``[case, lat, lon]``."""
    import torch

    return _with_float64(members).mean(1, dtype=torch.float64)


def ensemble_variance(members: Tensor) -> Tensor:
    """Unbiased variance over the members of each pixel, ``[case, member, lat, lon]`` to ``[case, lat, lon]``.

    :raises ValueError: for fewer than two members.
    """
    import torch

    m = members.shape[1]
    if m <= 1:
        raise ValueError(f"an ensemble's variance needs at least 2 members, found {m}")
    mean = ensemble_mean(members)
    squares = torch.zeros_like(mean)
    for member in _with_float64(members).unbind(1):  # several times as fast as Tensor.var on the CPU
        squares += (member - mean).square_()
    return squares / (m - 1)


def check_cases(cases: Cases) -> None:
    """Refuse cases whose parts do not fit together.

    :raises ValueError: for fewer than two members or shapes that do not fit.
    """
    check_ensemble(cases.members, cases.truth)
    expected = {
        "areas": (cases.weights, cases.truth.shape[1:]),
        "a baseline": (cases.baseline, cases.truth.shape),
    }
    for what, (found, shape) in expected.items():
        if found is not None and found.shape != shape:
            raise ValueError(f"expected {what} of {list(shape)}, found {list(found.shape)}")


def area_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over cases and pixels, each pixel as often as its area says.

    :param values: ``[case, lat, lon]``, float64.
    :param weights: ``[lat, lon]``.
    """
    return (values.sum(0) * weights.to(values)).sum()


def numbers(sums: Mapping[str, Sum]) -> dict[str, float]:
    """Sums of one number each, as Python has them."""
    return {name: float(cast("Tensor", value)) for name, value in sums.items()}


@frozen
class EnsembleScore:
    """Fair CRPS, error and bias of the mean, and spread, averaged over cases and area, beside the baseline."""

    chosen_as: ClassVar[str] = "ensemble"
    smaller_is_better: ClassVar[tuple[str, ...]] = ("crps", "crps_relative", "rmse")
    comparable: ClassVar[tuple[str, ...]] = ("crps_relative", "spread_skill")
    headline: ClassVar[tuple[str, ...]] = ("crps", "crps_relative", "rmse", "bias", "spread_skill")

    def sums(self, cases: Cases) -> dict[str, Sum]:
        """Sums over cases and area of what :meth:`results` divides.

        :raises ValueError: for fewer than two members or shapes that do not fit.
        """
        import torch

        check_cases(cases)
        m = cases.members.shape[1]
        skill, spread = crps_terms(ascending(cases.members), cases.truth)
        truth = _float64(cases.truth)
        error = ensemble_mean(cases.members) - truth
        each = {
            "area": torch.ones_like(truth),
            "crps_skill": skill,
            "crps_spread": spread,
            "bias": error,
            "squared_error": error.square(),
            # The factor of Fortin et al. here, so that windows of other ensembles may follow.
            "variance": ensemble_variance(cases.members) * (m + 1) / m,
        }
        if cases.baseline is not None:
            missed = _float64(cases.baseline) - truth
            each |= {
                "baseline_area": each["area"],
                "baseline_crps": skill - spread / 2,
                "baseline_absolute": missed.abs(),
                "baseline_squared": missed.square(),
            }
        return {name: area_sum(values, cases.weights) for name, values in each.items()}

    def results(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Means before ratios and roots.

        ``crps`` (fair), of which ``crps_skill`` is mean |x - y| and ``crps_spread`` is mean |x - x'|;
        ``rmse`` and ``bias`` of the ensemble mean; ``spread_skill``, unless that mean is exact everywhere. Of
        cases with a baseline ``mae_baseline``, ``rmse_baseline`` and, unless it is exact everywhere,
        ``crps_relative``: mean CRPS over mean absolute error.
        """
        total = numbers(sums)
        if not total.get("area"):
            return {}
        area = total["area"]
        skill, spread = total["crps_skill"] / area, total["crps_spread"] / area
        found = {
            "crps": skill - spread / 2,
            "crps_skill": skill,
            "crps_spread": spread,
            "rmse": math.sqrt(total["squared_error"] / area),
            "bias": total["bias"] / area,
        }
        if total["squared_error"]:
            found["spread_skill"] = math.sqrt(total["variance"] / total["squared_error"])
        if compared := total.get("baseline_area"):
            found["mae_baseline"] = total["baseline_absolute"] / compared
            found["rmse_baseline"] = math.sqrt(total["baseline_squared"] / compared)
        if total.get("baseline_absolute"):
            found["crps_relative"] = total["baseline_crps"] / total["baseline_absolute"]
        return found

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:  # noqa: ARG002 - a Score's
        """Nothing to draw."""
        return ()
