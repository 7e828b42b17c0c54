"""Where an ensemble errs: maps over all cases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, cast

from attrs import frozen

from hookloop.scores.ensemble import (
    _float64,
    ascending,
    check_cases,
    crps_terms,
    ensemble_mean,
    ensemble_variance,
)
from hookloop.scores.score import Maps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.scores.score import Cases, Sum


@frozen
class ErrorMaps:
    """Maps of the mean, its bias and error, the spread and the CRPS, averaged over cases: all on one grid."""

    chosen_as: ClassVar[str] = "maps"
    smaller_is_better: ClassVar[tuple[str, ...]] = ("mean_bias_rms",)
    comparable: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[tuple[str, ...]] = ()

    def sums(self, cases: Cases) -> dict[str, Sum]:
        """Fields ``[lat, lon]``, summed over cases.

        :raises ValueError: for fewer than two members or shapes that do not fit.
        """
        check_cases(cases)
        truth, m = _float64(cases.truth), cases.members.shape[1]
        skill, spread = crps_terms(ascending(cases.members), cases.truth)
        error = ensemble_mean(cases.members) - truth
        return {
            "truth": truth.sum(0),
            "error": error.sum(0),
            "squared_error": error.square().sum(0),
            "variance": (ensemble_variance(cases.members) * (m + 1) / m).sum(0),
            "crps": (skill - spread / 2).sum(0),
            "weights": cases.weights.to(truth) * len(truth),
            "cases": truth.new_full((), len(truth)),
        }

    def results(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """``mean_bias_rms``: root mean square over the area of the bias over all cases, in units of the variable.

        Errors that differ from case to case leave some of it too, the less the more cases there are.
        """
        means = _means(sums)
        if means is None:
            return {}
        weights = means["weights"]
        return {"mean_bias_rms": math.sqrt((means["error"].square() * weights).sum() / weights.sum())}

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Maps]:
        """Draw the mean of truth and prediction with the bias; then error, spread and CRPS."""
        means = _means(sums)
        if means is None:
            return ()
        truth, bias = means["truth"], means["error"]
        return (
            Maps(
                name="mean_map",
                title="Mean over all cases",
                fields={"truth": truth, "members": truth + bias, "bias": bias},
                signed=frozenset({"bias"}),
            ),
            Maps(
                name="error_map",
                title="Error over all cases",
                fields={
                    "RMSE of the ensemble mean": means["squared_error"].sqrt(),
                    "spread, equal to it if reliable": means["variance"].sqrt(),
                    "fair CRPS": means["crps"],
                },
            ),
        )


def _means(sums: Mapping[str, Sum]) -> dict[str, Tensor] | None:
    """Means over the cases by name, on the CPU; nothing where there was no case."""
    fields = {name: cast("Tensor", value).cpu() for name, value in sums.items()}
    if not fields or not fields["cases"]:
        return None
    return {name: field / fields["cases"] for name, field in fields.items()}
