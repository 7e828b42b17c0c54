"""The commands of downscaling: ``init downscaling``, ``compare`` and ``inspect``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from hookloop.arguments import config_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hookloop.core import Run


class MakeRun(Protocol):
    """What the command line has for commands that need a run."""

    def __call__(self, config: Path, plugins: Sequence[str] | None, overrides: Sequence[str]) -> Run:
        """Make the run that a configuration describes, and touch nothing on the disk."""


@click.command("downscaling")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    default="temperature",
    show_default=True,
    type=click.Choice(["temperature", "precipitation", "orographic"]),
    help="temperature: Gaussian, with the exact answer; precipitation: lognormal showers, mostly dry; "
    "orographic: rain over real terrain.",
)
@click.option(
    "--size", default=32, show_default=True, type=click.IntRange(4), help="Fine cells along a side."
)
@click.option(
    "--factor",
    default=4,
    show_default=True,
    type=click.IntRange(2),
    help="Fine cells to a coarse one along a side.",
)
@click.option("--times", default=1024, show_default=True, type=click.IntRange(1), help="Hours to train on.")
@click.option(
    "--validation-times", default=48, show_default=True, type=click.IntRange(1), help="Hours to validate on."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="The same seed, the same data."
)
def init_downscaling(
    directory: Path, kind: str, size: int, factor: int, times: int, validation_times: int, seed: int
) -> None:
    """Write sample data and a cfg.yaml that runs as it is into DIR, which must be new or empty.

    Nothing is downloaded: the fields are synthetic. For temperature the best possible answer is known
    (exact.json), for precipitation how a cell's values are distributed (distribution.json).
    """
    # Help must not wait for torch.
    from hookloop.plugins.downscaling.sample import write
    from hookloop.plugins.downscaling.sample_kinds import RECIPES

    write(directory, RECIPES[kind](n=size, factor=factor), times, validation_times, seed)
    config = shlex.quote(str(directory / "cfg.yaml"))
    click.echo("Check and run it with:")
    click.echo(f"  hookloop config check {config}")
    click.echo(f"  hookloop run {config}")


@click.command("compare")
@click.argument("directory", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option("--exact", type=click.Path(path_type=Path), help="exact.json beside the sample data.")
def compare(directory: Path, exact: Path | None) -> None:
    """Print the scores of a run's last inference beside those of the baseline and, if known, the exact answer.

    The baseline is bicubic interpolation, of a forecast persistence. Intervals are those of 95 %, where the run has
    logged any.
    """
    from hookloop.plugins.downscaling.comparison import table

    click.echo(table(directory, exact))


@click.command("inspect")
@config_options
@click.option(
    "--statistics/--no-statistics",
    default=True,
    show_default=True,
    help="Read all splits whole: for statistics of the training split, and for values that are not finite in any.",
)
@click.option(
    "--figure", metavar="PATH", type=click.Path(path_type=Path), help="Draw the domain and its patches there."
)
@click.pass_obj
def inspect(
    make_run: MakeRun,
    config: Path,
    plugins: list[str] | None,
    overrides: tuple[str, ...],
    *,
    statistics: bool,
    figure: Path | None,
) -> None:
    """Print what the data of CONFIG are: grids, times, patches, how they are read, statistics.

    Everything that a run checks when it opens its data is checked. Values of a split that is streamed
    (cache: none) a run checks only as it reads them; here they are read at once, unless --no-statistics
    is given. Nothing is written but --figure.
    """
    from hookloop.plugins.downscaling.inspection import report

    report(make_run(config, plugins, overrides), statistics=statistics, figure=figure)
