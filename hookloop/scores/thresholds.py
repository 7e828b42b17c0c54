"""Scores of what lies beyond thresholds, such as heavy rain or frost.

Sources: Gneiting & Ranjan 2011 (doi:10.1198/jbes.2010.08110) and Allen et al. 2023 (doi:10.1137/22M1532184) for
the threshold-weighted CRPS; Ferro 2014 (doi:10.1002/qj.2270) for the fair Brier score.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs.validators import in_

from hookloop.scores.ensemble import _with_float64, area_sum, ascending, check_cases, crps_terms, numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.scores.score import Cases, Chart, Maps, Sum

_AVERAGED = ("twcrps", "brier")
"""Means over cases and area."""


def are_thresholds(
    _instance: object, attribute: Attribute[dict[str, list[float]]], value: dict[str, list[float]]
) -> None:
    """Refuse no thresholds at all, what is no number, and two that results would call the same.

    :raises ValueError: saying which.
    """
    if not value:
        raise ValueError(f"{attribute.name}: expected thresholds of one variable at least, found none")
    for name, thresholds in value.items():
        if not thresholds or not all(math.isfinite(threshold) for threshold in thresholds):
            raise ValueError(f"{attribute.name}: {name}: expected finite numbers, found {thresholds}")
        if len({f"{threshold:g}" for threshold in thresholds}) < len(thresholds):
            raise ValueError(
                f"{attribute.name}: {name}: expected thresholds that differ in six digits, found {thresholds}"
            )


def fair_brier(probability: Tensor, occurred: Tensor, members: int) -> Tensor:
    """Squared error of a probability, unbiased for the members being a sample (Ferro 2014, eq. 8).

    :param probability: share of the members in which the event occurs.
    :param occurred: 1 where it occurred, else 0.
    :param members: two or more.
    """
    return (probability - occurred).square() - probability * (1 - probability) / (members - 1)


@frozen
class ThresholdScore:
    """Threshold-weighted CRPS, Brier score and frequency bias at thresholds of the variables named."""

    chosen_as: ClassVar[str] = "thresholds"
    comparable: ClassVar[tuple[str, ...]] = ()

    thresholds: dict[str, list[float]] = field(
        validator=are_thresholds,
        metadata={"help": "thresholds by variable, in its units; variables not named are not scored"},
    )
    direction: Literal["above", "below"] = field(
        default="above",
        validator=in_(("above", "below")),
        metadata={"help": "whether values above the thresholds count, or those below"},
    )

    @property
    def variables(self) -> Sequence[str]:
        """Those that have thresholds."""
        return list(self.thresholds)

    @property
    def smaller_is_better(self) -> tuple[str, ...]:
        """``twcrps_above_<t>`` and ``brier_above_<t>`` of every threshold, whichever variable's it is."""
        labels = dict.fromkeys(self._label(t) for thresholds in self.thresholds.values() for t in thresholds)
        return tuple(f"{score}_{label}" for label in labels for score in _AVERAGED)

    @property
    def headline(self) -> tuple[str, ...]:
        """The same."""
        return self.smaller_is_better

    def _label(self, threshold: float) -> str:
        return f"{self.direction}_{threshold:g}"

    def sums(self, cases: Cases) -> dict[str, Sum]:
        """Sums over cases and area for each threshold of the variable; of others nothing.

        :raises ValueError: for fewer than two members or shapes that do not fit.
        """
        import torch

        check_cases(cases)
        thresholds = self.thresholds.get(cases.name)
        if thresholds is None:
            return {}
        # Thresholding keeps the order, so one sorting serves all.
        ordered, truth = ascending(cases.members), _with_float64(cases.truth)
        each = {"area": torch.ones_like(truth, dtype=torch.float64)}
        for threshold in thresholds:
            own = self._at(threshold, ordered, truth)
            each |= {f"{name}_{self._label(threshold)}": values for name, values in own.items()}
        return {name: area_sum(values, cases.weights) for name, values in each.items()}

    def _at(self, threshold: float, ordered: Sequence[Tensor], truth: Tensor) -> dict[str, Tensor]:
        # In the type of the fields: 0.1 is not above 0.1 where it is stored in float32.
        import torch

        beyond = torch.gt if self.direction == "above" else torch.lt
        limits = {"min" if self.direction == "above" else "max": threshold}
        skill, spread = crps_terms([member.clamp(**limits) for member in ordered], truth.clamp(**limits))
        occurred = beyond(truth, threshold).double()
        forecast = torch.zeros_like(occurred)
        for member in ordered:
            forecast += beyond(member, threshold)
        forecast /= len(ordered)
        return {
            "twcrps": skill - spread / 2,
            "brier": fair_brier(forecast, occurred, len(ordered)),
            "occurred": occurred,
            "forecast": forecast,
        }

    def results(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Of each threshold *t*, for ``direction: below`` with that word instead.

        ``twcrps_above_<t>``: fair CRPS of max(x, t) against max(y, t), in units of the variable, and
        ``brier_above_<t>``: fair Brier score of x > t, unless neither truth nor members ever exceed;
        ``frequency_bias_above_<t>``: how often members exceed, over how often the truth does, unless it never does.
        """
        total = numbers(sums)
        area = total.get("area")
        found: dict[str, float] = {}
        for label in [name.removeprefix("occurred_") for name in total if name.startswith("occurred_")]:
            occurred, forecast = total[f"occurred_{label}"], total[f"forecast_{label}"]
            if area and (occurred or forecast):
                found |= {f"{score}_{label}": total[f"{score}_{label}"] / area for score in _AVERAGED}
            if occurred:
                found[f"frequency_bias_{label}"] = forecast / occurred
        return found

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:  # noqa: ARG002 - a Score's
        """Nothing to draw."""
        return ()
