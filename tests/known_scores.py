"""Scores whose numbers are known by arithmetic, for tests of what adds scores up."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import torch
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.scores.score import Cases, Chart, Maps, Sum


@frozen
class MeanTruth:
    """The mean of the truth, and its inverse where there is one."""

    chosen_as: ClassVar[str] = "mean_truth"
    smaller_is_better: ClassVar[tuple[str, ...]] = ()
    comparable: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[tuple[str, ...]] = ("mean", "inverse")

    def sums(self, cases: Cases) -> Mapping[str, Sum]:
        """Count the truth."""
        truth = cases.truth.double()
        return {"total": truth.sum(), "n": torch.tensor(truth.numel())}

    def results(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Divide."""
        total, n = float(cast("Tensor", sums["total"])), int(cast("Tensor", sums["n"]))
        return {"mean": total / n, **({"inverse": n / total} if total else {})}

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:
        """Nothing to see."""
        return []


@frozen
class Mean(MeanTruth):
    """The mean alone, which is always defined."""

    headline: ClassVar[tuple[str, ...]] = ("mean",)


@frozen
class Quiet(MeanTruth):
    """The same without intervals."""

    headline: ClassVar[tuple[str, ...]] = ()
