"""Rank histogram: whether the truth could be one more member.

Sources: Hamill 2001 (doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2) for the histogram and random ranks among
ties; Delle Monache et al. 2006 (doi:10.1029/2005JD006917) for the reliability index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from attrs import frozen

from hookloop.scores.ensemble import check_ensemble
from hookloop.scores.score import Chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.scores.score import Cases, Sum


def ranks(members: Tensor, truth: Tensor, seeds: Sequence[int]) -> Tensor:
    """Rank of the truth among the members in each pixel, 0 to M; among ties each rank is as likely.

    Draws come from generators on the device of *truth*, one for each case: they depend neither on the batch
    nor on the members, but a CPU and a GPU draw differently.

    :param members: ``[case, member, lat, lon]``.
    :param truth: ``[case, lat, lon]``.
    :param seeds: one for each case.
    :returns: ``[case, lat, lon]``, int64.
    :raises ValueError: for fewer than two members or shapes that do not fit.
    """
    import torch

    check_ensemble(members, truth)
    if len(seeds) != len(truth):
        raise ValueError(f"expected {len(truth)} seeds, one for each case, found {len(seeds)}")
    below = (members < truth[:, None]).sum(1)
    tied = (members == truth[:, None]).sum(1)
    drawn = torch.empty_like(truth, dtype=torch.float32)
    for own, seed in zip(drawn, seeds, strict=True):
        own.uniform_(generator=torch.Generator(truth.device).manual_seed(seed))
    # Below 1 in float32, so that times n it is rounded to less than n.
    return below + (drawn * (tied + 1)).long()


@frozen
class RankHistogram:
    """How often the truth takes each rank among the members: equally often if they are reliable.

    Every pixel counts once, whatever its area, so that counts are whole numbers.
    """

    chosen_as: ClassVar[str] = "ranks"
    smaller_is_better: ClassVar[tuple[str, ...]] = ("rank_reliability",)
    comparable: ClassVar[tuple[str, ...]] = ("rank_reliability", "rank_outliers")
    headline: ClassVar[tuple[str, ...]] = ()

    def sums(self, cases: Cases) -> dict[str, Sum]:
        """How many pixels have each rank, ``[M + 1]``, int64, under a name that tells M.

        :raises ValueError: for fewer than two members or shapes that do not fit.
        """
        import torch

        found = ranks(cases.members, cases.truth, cases.seeds).flatten()
        m = cases.members.shape[1]
        counts = torch.zeros(m + 1, dtype=torch.int64, device=found.device)
        return {f"among_{m}": counts.scatter_add_(0, found, torch.ones_like(found))}

    def results(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Shares of the M + 1 ranks, against 1/(M+1) each.

        ``rank_reliability``: Σ |share - 1/(M+1)|, 0 if flat; sampling alone makes it positive, the more so the
        fewer the independent cases. ``rank_outliers``: share of the two outer ranks, over 2/(M+1). Ensembles
        of each M have a histogram of their own; then this is the mean over points of what each says.
        """
        found = {"rank_reliability": 0.0, "rank_outliers": 0.0}
        histograms = _histograms(sums)
        points = sum(int(counts.sum()) for counts in histograms)
        for counts in histograms:
            shares, flat, often = _shares(counts), 1 / len(counts), int(counts.sum()) / points
            found["rank_reliability"] += often * float((shares - flat).abs().sum())
            found["rank_outliers"] += often * float(shares[0] + shares[-1]) / (2 * flat)
        return found if histograms else {}

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart]:
        """Draw the histogram, beside what a reliable ensemble has; one for each M if there are several."""
        histograms = _histograms(sums)
        return [
            Chart(
                name="rank_histogram" if len(histograms) == 1 else f"rank_histogram_{len(counts) - 1}",
                title="Rank of the truth among the members",
                x=list(range(len(counts))),
                lines={"share of points": _shares(counts).tolist()},
                xlabel="members below the truth, ranks drawn at random among ties",
                ylabel="share of points",
                style="bar",
                level=1 / len(counts),
            )
            for counts in histograms
        ]


def _histograms(sums: Mapping[str, Sum]) -> list[Tensor]:
    """Counts of each rank, ``[M + 1]``, for each M that was met."""
    return [counts for value in sums.values() if (counts := cast("Tensor", value).cpu()).any()]


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum().double()
