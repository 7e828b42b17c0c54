"""What a score is: pure functions from cases to sums, and from sums to numbers and pictures.

Sums are added up over cases, batches, days and ranks, in any grouping, before anything is divided or
rooted: so batches of unequal size count as they should, and merging is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


@frozen(eq=False)
class Cases:
    """Some cases of one variable: what was generated beside what was true, in physical units, all finite."""

    name: str
    """The variable."""
    members: Tensor
    """``[case, member, lat, lon]``, two members or more."""
    truth: Tensor
    """``[case, lat, lon]``."""
    weights: Tensor
    """``[lat, lon]``, float64, on the same device: the area of each cell, 1 on average."""
    seeds: Sequence[int]
    """One for each case: of whatever a score must draw, such as the order of ties."""
    baseline: Tensor | None = None
    """What is to be beaten, ``[case, lat, lon]``: for all cases of a variable or for none."""
    coarse: Tensor | None = None
    """The variable's own coarse field, ``[case, coarse lat, coarse lon]``, of which each cell is as many
    whole fine cells both ways."""
    wraps: bool = False
    """Whether the eastern edge adjoins the western."""


class Sum(Protocol):
    """What can be added up, repeated as the bootstrap does, and pickled for another rank: a tensor, for one."""

    def __add__(self, other: Self, /) -> Self:
        """Add what another has counted."""

    def __mul__(self, times: int, /) -> Self:
        """Count everything *times* times."""

    def cpu(self) -> Self:
        """Bring it to the host."""


@frozen(eq=False)
class Chart:
    """Lines over a common axis, as plain numbers to draw."""

    name: str
    """Of the file and the log, such as ``zonal_spectrum``."""
    title: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    """By label, as many numbers as *x* each; the label ``truth`` is drawn as what to compare with."""
    xlabel: str
    ylabel: str
    """``{units}`` in a label stands for the units of the variable."""
    xscale: Literal["linear", "log"] = "linear"
    yscale: Literal["linear", "log"] = "linear"
    style: Literal["line", "bar"] = "line"
    level: float | None = None
    """Where the ideal lies, the same for every x."""
    diagonal: bool = False
    """Whether the ideal is y = x."""
    notes: Sequence[str] = ()
    """Said below the chart."""


@frozen(eq=False)
class Maps:
    """Fields on the fine grid to draw beside one another, in units of the variable unless the title says."""

    name: str
    title: str
    fields: Mapping[str, Tensor]
    """By title, ``[lat, lon]``."""
    signed: frozenset[str] = field(default=frozenset())
    """Titles of those fields whose zero means something: drawn with a diverging colour map."""


@runtime_checkable
class Score(Protocol):
    """What an entry point in group ``hookloop.scores`` offers: a frozen attrs class of options.

    Its class says ``chosen_as``, the name of the entry point.
    """

    chosen_as: ClassVar[str]

    @property
    def smaller_is_better(self) -> tuple[str, ...]:
        """Which of its results may be minimised."""

    @property
    def comparable(self) -> tuple[str, ...]:
        """Which of its results have no units, so that their mean over variables is logged too."""

    @property
    def headline(self) -> tuple[str, ...]:
        """Which of its results get an interval: its sums are kept by day then, so they must be small."""

    def sums(self, cases: Cases) -> Mapping[str, Sum]:
        """Sums over *cases*, float64 (or integers) on their device; nothing where the score does not apply.

        No random numbers but from ``cases.seeds``, nothing whose result depends on the order of threads.

        :raises ValueError: where the cases make the score impossible, saying what was expected.
        """

    def results(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Finite numbers by name, from sums over all cases; what is undefined is absent."""

    def pictures(self, sums: Mapping[str, Sum]) -> Sequence[Chart | Maps]:
        """What to draw, from sums over all cases; often nothing."""


@runtime_checkable
class Naming(Protocol):
    """A :class:`Score` whose options name variables: those that nothing generates are a mistake."""

    @property
    def variables(self) -> Sequence[str]:
        """The variables that its options name."""
