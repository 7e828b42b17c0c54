"""How long steps take and how long they wait for their batch, as the host's clock has it."""

from __future__ import annotations

from array import array
from time import perf_counter_ns as now
from typing import TYPE_CHECKING

from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen
class StepSummary:
    """Of some steps, in seconds."""

    steps: int
    mean: float
    median: float
    p90: float
    wait: float
    """The mean time that a step has waited for its batch."""

    @property
    def wait_share(self) -> float:
        """Of the time of the steps."""
        return self.wait / self.mean if self.mean else 0.0


@define(eq=False)
class StepTimes:
    """A step lasts from where the last hook before its batch ended until its own hooks have ended.

    What lies between, the iterator of batches above all, is the wait. So evaluations, which are hooks, are
    in neither.
    """

    seen: int = field(default=0, init=False)
    """Steps, with those that are left out."""
    waited: int = field(default=0, init=False)
    """Nanoseconds that they have waited for batches, all of them."""
    _spent: array[int] = field(factory=lambda: array("q"), init=False)
    """Nanoseconds of each step that counts."""
    _waits: array[int] = field(factory=lambda: array("q"), init=False)
    """How long it has waited for its batch."""
    _told: int = field(default=0, init=False)
    """Steps that were in an earlier window."""
    _began: int = field(default=0, init=False)
    _wait: int = field(default=0, init=False)

    def begin(self, left: int) -> None:
        """A batch is here.

        :param left: when the last hook before it ended, as ``perf_counter_ns`` tells.
        """
        self._began, self._wait = left, now() - left
        self.waited += self._wait

    def end(self) -> None:
        """The batch is learnt, and everybody has been told."""
        spent = now() - self._began
        self.seen += 1
        self._spent.append(spent)
        self._waits.append(self._wait)

    def leave_out(self) -> None:
        """The batch is learnt, but it took longer than others do."""
        self.seen += 1

    def all(self) -> StepSummary | None:
        """Sum up every step that is not left out; ``None`` where there is none."""
        return _summed_up(self._spent, self._waits)

    def window(self) -> StepSummary | None:
        """Sum up the steps since the last window."""
        first, self._told = self._told, len(self._spent)
        return _summed_up(self._spent[first:], self._waits[first:])


def _summed_up(spent: Sequence[int], waits: Sequence[int]) -> StepSummary | None:
    import numpy as np

    if not spent:
        return None
    seconds = np.asarray(spent) / 1e9
    median, p90 = np.percentile(seconds, [50, 90])
    return StepSummary(
        len(seconds), float(seconds.mean()), float(median), float(p90), float(np.mean(waits)) / 1e9
    )
