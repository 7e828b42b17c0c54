"""The last cases of an inference, whose figures are wanted, on whichever rank they were generated."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from hookloop.passing import receive, send

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hookloop.distributed import Ranks
    from hookloop.looper import Generated
    from hookloop.task import Paired


@define(eq=False)
class LastRows:
    """Keeps a few rows; a row's place is the number of its window, then that within the window."""

    most: int
    latest: Paired | None = field(init=False, default=None)
    """What was added last: its grid and units are those of all."""
    _rows: deque[tuple[int, int, Paired]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Keep no more than wanted."""
        self._rows = deque(maxlen=self.most)

    def add(self, generated: Generated) -> None:
        """Keep the rows of a later window."""
        self.latest = generated.paired
        for row in range(len(generated.paired.labels)):
            self._rows.append((generated.number, row, generated.paired))

    def collect(self, ranks: Ranks) -> list[tuple[Paired, int]]:
        """Bring the last rows of all *ranks* to rank 0, in order: each as what holds it, and which row it is there."""
        here = {(number, row): paired for number, row, paired in self._rows}
        places = sorted((*place, rank) for rank, own in enumerate(ranks.gather(list(here))) for place in own)
        found: list[tuple[Paired, int]] = []
        for number, row, rank in places[max(0, len(places) - self.most) :]:
            if rank == ranks.rank and ranks.leads:
                found.append((here[number, row], row))
            elif rank == ranks.rank:
                send(_alone(here[number, row], row), 0)
            elif ranks.leads:
                found.append((receive(rank), 0))
        return found


def _alone(paired: Paired, row: int) -> Paired:
    """Give one row on the host, without the memory of the others."""

    def taken(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[row : row + 1].cpu().clone() for name, values in fields.items()}

    return evolve(
        paired,
        prediction=taken(paired.prediction),
        target=taken(paired.target),
        baseline=taken(paired.baseline),
        coarse=taken(paired.coarse),
        labels=paired.labels[row : row + 1],
        days=paired.days[row : row + 1],
        lead_times=paired.lead_times[row : row + 1],
    )
