"""What came out, scenario by scenario, while it goes on and at the end."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from faults.bench import Trial

_EVERY_SECONDS = 10.0


@define(eq=False)
class Tally:
    """Sums over the trials of a scenario."""

    name: str
    runs: int = 0
    kills: int = 0
    cuts: int = 0
    resumes: int = 0
    equal: int = 0
    redone: int = 0
    seconds: float = 0.0
    began: float = field(factory=time.monotonic)
    broken: list[tuple[str, list[str]]] = field(factory=list)

    def add(self, trial: Trial) -> None:
        """Count a trial that is over."""
        self.runs += 1
        self.kills += trial.kills
        self.cuts += trial.cuts
        self.resumes += trial.starts - 1
        self.redone = max(self.redone, trial.redone)
        if trial.problems:
            self.broken.append((str(trial.place), trial.problems))
        else:
            self.equal += 1
        self.seconds = time.monotonic() - self.began

    def row(self) -> list[str]:
        """What the table says of it."""
        numbers = (
            self.runs,
            self.kills,
            self.cuts,
            self.resumes,
            self.equal,
            self.runs - self.equal,
            self.redone,
        )
        return [self.name, *map(str, numbers), f"{self.seconds:.0f}"]


HEAD = ["scenario", "runs", "kills", "power cuts", "resumes", "equal", "unequal", "redone", "seconds"]


def table(tallies: list[Tally]) -> str:
    """All scenarios; ``redone`` is the most steps that any resume had to do again."""
    rows = [HEAD, *(tally.row() for tally in tallies)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(line))
        for line in (list(zip(row, widths, strict=True)) for row in rows)
    )


@define
class Progress:
    """Says how far it is: on one line of a terminal, every ten seconds elsewhere."""

    told: float = field(factory=time.monotonic)

    def tell(self, tally: Tally, *, last: bool = False) -> None:
        """Tell, if it is time."""
        terminal = sys.stderr.isatty()
        if not last and time.monotonic() - self.told < (0.2 if terminal else _EVERY_SECONDS):
            return
        self.told = time.monotonic()
        text = (
            f"{tally.name}: {tally.runs} runs, {tally.kills} kills, {tally.equal} equal, "
            f"{len(tally.broken)} not, {tally.seconds:.0f} s"
        )
        ends = "\n" if last or not terminal else ""
        sys.stderr.write(f"\r\x1b[K{text}{ends}" if terminal else text + ends)
        sys.stderr.flush()
