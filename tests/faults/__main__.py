"""Kill, cut and refuse until it is proven: ``make faults``, or ``python -m faults`` in this folder's parent."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random

import click
from attrs import frozen

from faults.bench import Bench
from faults.plans import Plan
from faults.report import Tally, table
from faults.runner import SCENARIOS, examine
from faults.shim import NoCompilerError


@frozen
class Options:
    """What the command line asks for."""

    kills: int
    rank_kills: int
    sample: int | None
    seconds: float | None
    seed: int
    jobs: int
    only: Sequence[str]
    plans: Sequence[str]
    directory: Path | None

    @property
    def scenarios(self) -> Sequence[str]:
        """The names of the scenarios to go through."""
        return self.only or list(SCENARIOS)

    def plans_of(self, name: str, bench: Bench) -> Iterator[Plan]:
        """Draw what is to be done."""
        drawn = SCENARIOS[name](bench, Random(f"{self.seed}/{name}"))  # noqa: S311 - to be drawn again
        return (plan for plan in drawn if not self.plans or plan.name in self.plans)

    def are_met_by(self, tally: Tally) -> bool:
        """Whether a scenario has been gone through far enough."""
        if self.plans:
            return tally.runs == len(self.plans)
        if self.seconds is not None and time.monotonic() - tally.began > self.seconds / len(self.scenarios):
            return True
        without_end = {"random kills": self.kills, "random kills of ranks": self.rank_kills}
        if tally.name in without_end:
            return tally.kills >= without_end[tally.name]
        return self.sample is not None and tally.runs >= self.sample


_ROOM = 1 << 29


def _fast_folder() -> str | None:
    """A file system in memory if there is one: what survives a power cut is computed, not tried."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    usable = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM
    return str(memory) if usable else None


@click.command(help=__doc__)
@click.option("--kills", default=1000, show_default=True, help="Kills at random instants.")
@click.option("--rank-kills", default=200, show_default=True, help="The same, of runs in two processes.")
@click.option("--sample", type=int, help="At most so many runs of each other scenario; all if not given.")
@click.option("--seconds", type=float, help="Stop early after so many, the same share for each scenario.")
@click.option("--seed", default=0, show_default=True, help="What is drawn: the same seed, the same plans.")
@click.option("--jobs", default=1, show_default=True, help="Fork servers at work.")
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="This scenario; repeatable.")
@click.option("--plan", "plans", multiple=True, help="The run of this name, with --only; repeatable.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Where; a new folder in memory if not given.",
)
def main(**given: object) -> None:
    options = Options(**given)  # type: ignore[arg-type]  # click has converted them
    base = options.directory or Path(tempfile.mkdtemp(prefix="hookloop-faults-", dir=_fast_folder()))
    with ExitStack() as stack:
        tools = stack.enter_context(tempfile.TemporaryDirectory(prefix="hookloop-faults-tools-"))
        bench = Bench(base, Path(tools))
        try:
            bench.prepare()
        except NoCompilerError as error:
            shutil.rmtree(base)
            sys.exit(f"make faults: {error}")
        servers = [stack.enter_context(bench.server()) for _ in range(options.jobs)]
        bench.run_undisturbed(servers[0])
        tallies = [
            examine(name, options.plans_of(name, bench), bench, servers, options.are_met_by)
            for name in options.scenarios
        ]
    click.echo(table(tallies))
    broken = [found for tally in tallies for found in tally.broken]
    for place, problems in broken:
        click.echo("\n  ".join([f"\n{place}:", *(problem.replace("\n", "\n    ") for problem in problems)]))
    if broken:
        sys.exit(
            f"\n{len(broken)} runs are not as they should be; they are kept in {base}. "
            f"--seed {options.seed} --only SCENARIO --plan NAME, of its directory, makes one again."
        )
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
