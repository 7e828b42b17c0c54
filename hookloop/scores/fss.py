"""Fractions skill score: whether enough of each neighbourhood exceeds a threshold, at which scales.

Source: Roberts & Lean 2008 (doi:10.1175/2007MWR2123.1), the ensemble's fraction being the mean of its
members' as in Schwartz et al. 2010 (doi:10.1175/2009WAF2222267.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from attrs import Attribute, field, frozen

from hookloop.scores.ensemble import _with_float64, check_cases
from hookloop.scores.score import Cases, Chart, Maps, Sum
from hookloop.scores.thresholds import are_thresholds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor


def _scales(_: object, attribute: Attribute[list[int]], found: list[int]) -> None:
    if not found or not all(one > 0 and one % 2 for one in found) or len(set(found)) < len(found):
        raise ValueError(
            f"'{attribute.name}' must be different odd numbers of cells, such as [1, 5, 9]: {found}"
        )


def neighbours(cells: int, scale: int, device: torch.device, *, wraps: bool) -> Tensor:
    """Which cells of a line lie within *scale* cells round each: ``[cells, cells]`` of 0 and 1, float64.

    None is counted twice, and beyond the ends there are none unless the line *wraps*.
    """
    import torch

    place = torch.arange(cells, device=device)
    apart = (place[:, None] - place).abs()
    if wraps:
        apart = torch.minimum(apart, cells - apart)
    return (apart <= scale // 2).double()


def box_mean(fields: Tensor, scale: int, *, wraps: bool) -> Tensor:
    """Mean of the *scale* × *scale* cells round each, of those that are inside the domain.

    Two matrix products, which give the same bits each time; exact sums of whole numbers.

    :param fields: ``[..., lat, lon]``, float64.
    """
    rows = neighbours(fields.shape[-2], scale, fields.device, wraps=False)
    columns = neighbours(fields.shape[-1], scale, fields.device, wraps=wraps)
    return rows @ fields @ columns / (rows.sum(1)[:, None] * columns.sum(1))


@frozen
class FractionsSkill:
    """Fractions skill score by threshold and scale; areas are ignored, as a neighbourhood is one of cells."""

    chosen_as: ClassVar[str] = "fss"
    smaller_is_better: ClassVar[tuple[str, ...]] = ()
    comparable: ClassVar[tuple[str, ...]] = ()

    thresholds: dict[str, list[float]] = field(
        validator=are_thresholds,
        metadata={"help": "by variable, in its units; what is not named is not scored"},
    )
    scales: list[int] = field(
        factory=lambda: [1, 5, 9, 17],
        validator=_scales,
        metadata={"help": "sides of neighbourhoods in cells, odd"},
    )

    @property
    def variables(self) -> Sequence[str]:
        """Those that have thresholds."""
        return list(self.thresholds)

    @property
    def headline(self) -> tuple[str, ...]:
        """``fss_<t>_<n>`` of every threshold, whichever variable's it is, and scale."""
        thresholds = dict.fromkeys(f"{t:g}" for own in self.thresholds.values() for t in own)
        return tuple(f"fss_{threshold}_{scale}" for threshold in thresholds for scale in self.scales)

    def sums(self, cases: Cases) -> Mapping[str, Sum]:
        """Squares of differences and of fractions for each threshold and scale, and how much exceeded.

        :raises ValueError: for fewer than two members or shapes that do not fit.
        """
        import torch

        check_cases(cases)
        sums: dict[str, Sum] = {}
        for threshold in self.thresholds.get(cases.name, ()):
            truth = _exceeding(cases.truth, threshold)
            often = _exceeding(cases.members, threshold).sum(1)
            sums[f"observed_{threshold:g}"] = torch.stack([truth.sum(), torch.ones_like(truth).sum()])
            for scale in self.scales:
                observed = box_mean(truth, scale, wraps=cases.wraps)
                predicted = box_mean(often, scale, wraps=cases.wraps) / cases.members.shape[1]
                sums[f"fss_{threshold:g}_{scale}"] = torch.stack(
                    [
                        (predicted - observed).square().sum(),
                        predicted.square().sum() + observed.square().sum(),
                    ]
                )
        return sums

    def results(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """FSS = 1 - Σ(P_f - P_o)² / (ΣP_f² + ΣP_o²); absent where nothing ever exceeds."""
        found: dict[str, float] = {}
        for name, total in sums.items():
            if name.startswith("fss_"):
                difference, reference = cast("Tensor", total).tolist()
                if reference > 0:
                    found[name] = 1 - difference / reference
        return found

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:
        """The score against the scale for each threshold, and above which value a scale is useful.

        Its name has the thresholds and scales: another ``fss`` of the variable draws another picture.
        """
        results = self.results(sums)
        lines: dict[str, list[float]] = {}
        scales = sorted(self.scales)
        thresholds = [name.removeprefix("observed_") for name in sums if name.startswith("observed_")]
        for threshold in thresholds:
            if f"fss_{threshold}_{scales[0]}" in results:
                exceeding, cells = cast("Tensor", sums[f"observed_{threshold}"]).tolist()
                lines[f"above {threshold}"] = [results[f"fss_{threshold}_{scale}"] for scale in scales]
                lines[f"above {threshold}: useful from"] = [0.5 + exceeding / cells / 2] * len(scales)
        if not lines:
            return []
        return [
            Chart(
                name="_".join(["fss", *thresholds, "at", *map(str, scales)]),
                title="Fractions skill score",
                x=[float(scale) for scale in scales],
                lines=lines,
                xlabel="side of the neighbourhood (cells)",
                ylabel="fractions skill score",
                notes=["useful from 0.5 + f/2, f being the share of cells above in the truth"],
            )
        ]


def _exceeding(values: Tensor, threshold: float) -> Tensor:
    """1 where a value is greater, compared in its own precision: in float32 too, 0.1 does not exceed 0.1."""
    return (_with_float64(values) > threshold).double()
