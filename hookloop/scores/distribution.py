"""The distribution of single values and above all its tails: quantiles of the members against the truth's.

Errors of several tails are made positive before their mean is taken: what is too heavy in one does not make
up for what is too light in another. Where bins are too wide to tell a difference, it counts as wide as
they are: one absurd value hides no error, and no number is given that it made false. ∫|F - G| is the
1-Wasserstein distance (Vallender 1974, doi:10.1137/1118101).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, cast

from attrs import Attribute, field, frozen
from attrs.validators import ge

from hookloop.scores.ensemble import check_cases
from hookloop.scores.score import Cases, Chart, Maps, Sum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hookloop.scores.histogram import Histogram, Quantile

TOLD = 0.1
"""A quantile is told if its bin is no wider than this, in parts of what errors are measured by."""
DRAWN = 128
"""So many bins of a histogram are drawn at most."""
LEVELS = (
    *(0.0001, 0.001, 0.01, 0.1),
    *(float(level) for level in range(1, 100)),
    *(99.9, 99.99, 99.999, 99.9999),
)
"""Percentiles that are drawn against one another."""


def _percentiles(_: object, attribute: Attribute[list[float]], found: list[float]) -> None:
    if not found or not all(50 < one < 100 for one in found) or len(set(found)) < len(found):  # noqa: PLR2004
        raise ValueError(
            f"'{attribute.name}' must be different numbers above 50 and below 100, such as [99, 99.9]: {found}"
        )


@frozen
class Tail:
    """One quantile of the truth beside that of the members."""

    percentile: str
    truth: float | None
    """None where its bin is too wide to tell it."""
    members: float | None
    """Likewise."""
    points: int
    """So many points of the truth lie beyond it."""
    error: float | None
    """Positive or 0, of a bin's width at least where that is too wide; none where too few points lie beyond, or
    nothing is there to measure it by."""


@frozen
class Quantiles:
    """Tails of the distribution of single values; every member counts alike."""

    chosen_as: ClassVar[str] = "quantiles"
    smaller_is_better: ClassVar[tuple[str, ...]] = ("tail_error", "wasserstein")
    comparable: ClassVar[tuple[str, ...]] = ("tail_error",)
    headline: ClassVar[tuple[str, ...]] = ("tail_error",)

    percentiles: list[float] = field(
        factory=lambda: [99.0, 99.9, 99.99, 99.9999],
        validator=_percentiles,
        metadata={"help": "of the upper tail; the lower one mirrors them"},
    )
    positive: list[str] = field(
        factory=list,
        metadata={"help": "variables such as precipitation: an upper tail alone, compared by ratio"},
    )
    least: int = field(
        default=10,
        validator=ge(1),
        metadata={"help": "a quantile is scored if so many points of the truth lie beyond it"},
    )
    bins: int = field(
        default=4096,
        validator=ge(64),
        metadata={"help": "of each histogram at most: more are finer and take more memory"},
    )

    @property
    def variables(self) -> Sequence[str]:
        """Those that are positive."""
        return self.positive

    def sums(self, cases: Cases) -> Mapping[str, Sum]:
        """Histograms of the truth, the members and the baseline; and whether it is a positive variable.

        :raises ValueError: for fewer than two members, shapes that do not fit, or values that are not finite.
        """
        import torch

        from hookloop.scores.histogram import Histogram

        check_cases(cases)
        fields = {"truth": cases.truth, "members": cases.members, "baseline": cases.baseline}
        sums: dict[str, Sum] = {
            name: Histogram.of(values, cases.weights, self.bins)
            for name, values in fields.items()
            if values is not None
        }
        if cases.name in self.positive:
            sums["positive"] = torch.tensor(len(cases.truth))
        return sums

    def results(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Give each quantile with its error and the points behind it, and the mean error of all tails."""
        from hookloop.scores.histogram import wasserstein

        histograms = _histograms(sums)
        if not histograms:
            return {}
        found: dict[str, float] = {}
        tails = self._tails(histograms, positive="positive" in sums)
        for tail in tails:
            found[f"points_{tail.percentile}"] = float(tail.points)
            if tail.error is None:
                continue
            if tail.members is not None:
                found[f"quantile_{tail.percentile}"] = tail.members
            if tail.truth is not None:
                found[f"quantile_truth_{tail.percentile}"] = tail.truth
            found[f"quantile_error_{tail.percentile}"] = tail.error
        errors = [tail.error for tail in tails if tail.error is not None]
        if errors:
            found["tail_error"] = math.fsum(errors) / len(errors)
        truth, members = histograms["truth"], histograms["members"]
        width = truth.bins.joined(members.bins, self.bins).width
        wide = width > TOLD * truth.deviation()
        found["wasserstein"] = max(wasserstein(truth, members), width if wide else 0.0)
        return found

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:
        """Densities, and quantiles against the truth's."""
        from hookloop.scores.histogram import densities

        histograms = _histograms(sums)
        if not histograms:
            return []
        middles, lines = densities(list(histograms.values()), DRAWN)
        histogram = Chart(
            name="histogram",
            title="Distribution of values",
            x=middles,
            lines=dict(zip(histograms, lines, strict=True)),
            xlabel="{units}",
            ylabel="probability density (1 / {units})",
            yscale="log",
        )
        return [histogram, *self._quantile_chart(histograms)]

    def _tails(self, histograms: Mapping[str, Histogram], *, positive: bool) -> list[Tail]:
        truth, members = histograms["truth"], histograms["members"]
        upper = sorted(self.percentiles)
        lower = [] if positive else [100 - percentile for percentile in reversed(upper)]
        percentiles = [*lower, *upper]
        shares = [percentile / 100 for percentile in percentiles]
        # What is smaller than a bin of the truth is taken for its width: a ratio to nothing is none.
        width, deviation = truth.bins.width, truth.deviation()
        widest = max(width, members.bins.width)
        tails = []
        for percentile, ours, theirs in zip(
            percentiles, truth.quantiles(shares), members.quantiles(shares), strict=True
        ):
            points, error = _beyond(percentile, ours), None
            scale = ours.value if positive else deviation
            too_wide = TOLD * scale
            if points >= self.least and positive and scale >= width:
                least = math.log1p(widest / scale) if widest > too_wide else 0.0
                error = max(abs(math.log(max(theirs.value, width) / scale)), least)
            elif points >= self.least and not positive and scale > 0:
                least = widest / scale if widest > too_wide else 0.0
                error = max(abs(theirs.value / scale - ours.value / scale), least)
            tails.append(
                Tail(
                    _label(percentile),
                    None if width > too_wide else ours.value,
                    None if members.bins.width > too_wide else theirs.value,
                    points,
                    error,
                )
            )
        return tails

    def _quantile_chart(self, histograms: Mapping[str, Histogram]) -> list[Chart]:
        shares = [level / 100 for level in LEVELS]
        found = {name: histogram.quantiles(shares) for name, histogram in histograms.items()}
        kept = [
            k
            for k, (level, quantile) in enumerate(zip(LEVELS, found["truth"], strict=True))
            if _beyond(level, quantile) >= self.least
        ]
        x = [found["truth"][k].value for k in kept]
        if not any(one < other for one, other in pairwise(x)):
            return []
        first, last = _label(LEVELS[kept[0]]), _label(LEVELS[kept[-1]])
        told = TOLD * histograms["truth"].deviation()
        wide = [
            f"{name} to ±{histogram.bins.width:.3g}: single values lie far away"
            for name, histogram in histograms.items()
            if histogram.bins.width > told
        ]
        return [
            Chart(
                name="quantiles",
                title="Quantiles against those of the truth",
                x=x,
                lines={
                    name: [quantiles[k].value for k in kept]
                    for name, quantiles in found.items()
                    if name != "truth"
                },
                xlabel="quantile of the truth ({units})",
                ylabel="quantile ({units})",
                diagonal=True,
                notes=[f"percentiles {first} to {last} of {histograms['truth'].points} points", *wide],
            )
        ]


def _histograms(sums: Mapping[str, Sum]) -> dict[str, Histogram]:
    """Those that have counted something."""
    found = {name: cast("Histogram", sums[name]) for name in ("truth", "members", "baseline") if name in sums}
    return {name: histogram for name, histogram in found.items() if histogram.points}


def _beyond(percentile: float, quantile: Quantile) -> int:
    """How many points lie beyond a quantile, on the side of its tail."""
    return round(quantile.above if percentile > 50 else quantile.below)  # noqa: PLR2004


def _label(percentile: float) -> str:
    """Write a percentile without the rounding of binary fractions: 0.0001 for 100 - 99.9999."""
    return f"{percentile:.10f}".rstrip("0").rstrip(".")
