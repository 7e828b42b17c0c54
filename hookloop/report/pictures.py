"""What the files in ``figures/`` show, told from their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_KNOWN = {
    "mean_map": (
        "Means",
        "Averages over all cases of the truth and of the members, and their difference.",
        True,
    ),
    "error_map": (
        "Errors",
        "Over all cases: the error of the ensemble mean, the spread that should equal it, and CRPS.",
        True,
    ),
    "radial_spectrum": (
        "Radial spectrum",
        "Power by scale: where members lie below the truth, fields are too smooth; above it, too noisy.",
        False,
    ),
    "zonal_spectrum": ("Zonal spectrum", "Power along circles of latitude, by scale.", False),
    "histogram": ("Distribution", "How often values occur; the logarithmic axis shows the tails.", False),
    "quantiles": (
        "Quantiles",
        "Those of the members against those of the truth; perfect on the diagonal.",
        False,
    ),
    "rank_histogram": (
        "Rank histogram",
        "Rank of the truth among the members: flat if reliable, U-shaped if there is too little spread.",
        False,
    ),
    "fss": (
        "Fractions skill",
        "By scale and threshold: how far the right amount lies in the right place.",
        False,
    ),
    "loss_by_noise": ("Loss by noise level", "In bins that are equally probable in training.", False),
}
_EXAMPLE = "What was given, the truth, the ensemble's mean and members, its error and its spread."


@frozen(eq=False)
class Picture:
    """A file with its words."""

    path: Path
    of: str
    """Variable, and set if there are several; empty where it is of all."""
    title: str
    caption: str
    wide: bool
    rank: int
    """Examples come first, then in the order above."""


def picture_of(path: Path, variables: Sequence[str], sets: Sequence[str]) -> Picture:
    """Tell what *path* shows: ``<variable>_<picture>.png``, or ``<set>_<variable>_<picture>.png``."""
    stem = path.stem
    own, stem = _prefix(stem, sets)
    variable, stem = _prefix(stem, variables)
    of = ", ".join(part for part in (variable, own) if part)
    if known := next((name for name in _KNOWN if re.fullmatch(rf"{name}(_[0-9].*)?", stem)), None):
        title, caption, wide = _KNOWN[known]
        options = stem.removeprefix(known).replace("_", " ")  # of a score that may be listed more than once
        return Picture(path, of, f"{title}{options}", caption, wide, rank=1 + list(_KNOWN).index(known))
    if variable and stem[:1].isdigit():  # the case's time or number
        return Picture(path, of, f"Example {stem}", _EXAMPLE, wide=True, rank=0)
    return Picture(path, of, stem.replace("_", " "), "", wide=False, rank=len(_KNOWN) + 1)


def _prefix(stem: str, names: Iterable[str]) -> tuple[str, str]:
    """The longest of *names* that *stem* begins with, and what follows."""
    fitting = [name for name in names if stem.startswith(f"{_slug(name)}_")]
    if not fitting:
        return "", stem
    name = max(fitting, key=len)
    return name, stem[len(_slug(name)) + 1 :]


def _slug(name: str) -> str:
    """What the name of a file has in the place of *name*."""
    return re.sub(r"[^\w.-]+", "_", name.strip())
