"""What each score means, in a sentence, and which direction is good."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from attrs import evolve, frozen

from hookloop.figures import in_print
from hookloop.report.own_scores import Said, said

if TYPE_CHECKING:
    from collections.abc import Sequence

Good = Literal["smaller", "larger", "one", "zero", ""]

DIRECTIONS = {
    "smaller": "Smaller is better.",
    "larger": "Larger is better; 1 is perfect.",
    "one": "1 is ideal.",
    "zero": "0 is ideal.",
    "": "",
}


@frozen
class Meaning:
    """How a score is called and understood."""

    title: str
    sentence: str
    good: Good
    units: str = ""
    """Of the score; ``{units}`` stands for those of the variable."""


_KNOWN: Sequence[tuple[str, Meaning]] = [
    (
        r"error",
        Meaning(
            "Error", "What is minimised to choose the best checkpoint: a mean over variables.", "smaller"
        ),
    ),
    (
        r"crps_relative",
        Meaning(
            "CRPS relative to the baseline",
            "The ensemble's CRPS over the mean absolute error of the baseline: below 1 it beats the baseline.",
            "smaller",
        ),
    ),
    (
        r"crps",
        Meaning(
            "CRPS (fair)",
            "How far the ensemble's distribution is from the truth, in units of the variable; for a single field, "
            "such as the baseline, it is the mean absolute error.",
            "smaller",
            "{units}",
        ),
    ),
    (
        r"crps_skill",
        Meaning(
            "Mean distance to the truth",
            "The mean of |member − truth|, the first part of CRPS.",
            "smaller",
            "{units}",
        ),
    ),
    (
        r"crps_spread",
        Meaning(
            "Mean distance between members",
            "The mean of |member − member|; a reliable ensemble has as much as its mean distance to the truth.",
            "",
            "{units}",
        ),
    ),
    (
        r"rmse",
        Meaning(
            "RMSE of the ensemble mean",
            "Root mean square error of the mean of all members.",
            "smaller",
            "{units}",
        ),
    ),
    (r"bias", Meaning("Bias", "Mean of the ensemble minus mean of the truth.", "zero", "{units}")),
    (
        r"spread_skill",
        Meaning(
            "Spread–skill ratio",
            "The ensemble's spread over the error of its mean: below 1 it is too sure of itself, above 1 too unsure.",
            "one",
        ),
    ),
    (
        r"energy_score",
        Meaning(
            "Energy score",
            "CRPS of whole fields: it also sees whether values at different places belong together.",
            "smaller",
            "{units}",
        ),
    ),
    (
        r"energy_score_([0-9]+)",
        Meaning(
            "Energy score of tiles of {0} cells",
            "CRPS of fields of that size: whether neighbouring values belong together.",
            "smaller",
            "{units}",
        ),
    ),
    (
        r"twcrps_(above|below)_(.+)",
        Meaning(
            "CRPS {0} {1}", "CRPS of what lies {0} {1} alone (threshold-weighted).", "smaller", "{units}"
        ),
    ),
    (
        r"brier_(above|below)_(.+)",
        Meaning(
            "Brier score {0} {1}", "Squared error of the probability of values {0} {1} (fair).", "smaller"
        ),
    ),
    (
        r"frequency_bias_(above|below)_(.+)",
        Meaning("Frequency bias {0} {1}", "How often values are {0} {1}, relative to the truth.", "one"),
    ),
    (
        r"mean_bias_rms",
        Meaning(
            "Bias of the mean field",
            "Root mean square over the area of the bias over all cases.",
            "smaller",
            "{units}",
        ),
    ),
    (
        r"rank_reliability",
        Meaning(
            "Unevenness of ranks",
            "How far the histogram of the truth's rank among the members is from flat.",
            "zero",
        ),
    ),
    (
        r"rank_outliers",
        Meaning(
            "Outliers",
            "How often the truth lies outside all members, relative to what is expected: above 1 there is "
            "too little spread.",
            "one",
        ),
    ),
    (
        r"tail_error",
        Meaning(
            "Error of the tails",
            "Mean error of the extreme quantiles: |log ratio| of precipitation and the like, else "
            "|difference| in standard deviations.",
            "smaller",
        ),
    ),
    (
        r"wasserstein",
        Meaning(
            "Wasserstein distance",
            "How far values would have to be moved to turn the members' distribution into the truth's.",
            "smaller",
            "{units}",
        ),
    ),
    (
        r"quantile_error_(.+)",
        Meaning("Error of the {0} % quantile", "As in the error of the tails.", "smaller"),
    ),
    (
        r"quantile_truth_(.+)",
        Meaning("{0} % quantile of the truth", "In units of the variable.", "", "{units}"),
    ),
    (
        r"quantile_(.+)",
        Meaning("{0} % quantile", "Of all members together, in units of the variable.", "", "{units}"),
    ),
    (
        r"points_(.+)",
        Meaning("Points beyond the {0} % quantile", "Of the truth: few of them make it uncertain.", ""),
    ),
    (
        r"lsd_(radial|zonal)",
        Meaning(
            "Log-spectral distance ({0})",
            "Difference of the {0} power spectra, in decibels.",
            "smaller",
            "dB",
        ),
    ),
    (
        r"spectral_bias",
        Meaning(
            "Spectral error",
            "Mean relative error of the power below 0.8 of the Nyquist wave number.",
            "smaller",
        ),
    ),
    (
        r"small_scale_energy",
        Meaning(
            "Small-scale energy",
            "Power of the smaller half of the scales, relative to the truth: below 1 fields are too smooth, above "
            "1 too noisy.",
            "one",
        ),
    ),
    (
        r"fss_([^_]+)_([^_]+)",
        Meaning(
            "Fractions skill score above {0}, {1} cells",
            "Whether as much of each neighbourhood of {1} × {1} cells lies above {0} as in the truth.",
            "larger",
        ),
    ),
    (
        r"coarse_error",
        Meaning(
            "Coarse consistency",
            "How far block means of the members are from the coarse input; the truth has a distance of its own.",
            "smaller",
            "{units}",
        ),
    ),
    (
        r"coarse_error_truth",
        Meaning(
            "Coarse consistency of the truth",
            "How far block means of the truth are from the input.",
            "",
            "{units}",
        ),
    ),
    (
        r"mae_baseline",
        Meaning("MAE of the baseline", "Mean absolute error of what is to be beaten.", "smaller", "{units}"),
    ),
    (r"rmse_baseline", Meaning("RMSE of the baseline", "Of what is to be beaten.", "smaller", "{units}")),
]


def meaning_of(result: str) -> Meaning:
    """What *result* means; of a score that is not known here, what its class says, or its name alone."""
    for pattern, meaning in _KNOWN:
        if found := re.fullmatch(pattern, result):
            return evolve(
                meaning,
                title=meaning.title.format(*found.groups()),
                sentence=meaning.sentence.format(*found.groups()),
            )
    own = said().get(result, Said("", smaller_is_better=False))
    return Meaning(result.replace("_", " "), own.sentence, "smaller" if own.smaller_is_better else "")


def units_of(result: str, units: str) -> str:
    """The units of *result* as they are printed, where those of its variable are *units*; or nothing."""
    return meaning_of(result).units.replace("{units}", in_print(units))
