"""The command ``audit-sampler``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import click

from hookloop.arguments import config_options
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hookloop.core import Run


class MakeRun(Protocol):
    """What the command line has for commands that need a run."""

    def __call__(self, config: Path, plugins: Sequence[str] | None, overrides: Sequence[str]) -> Run:
        """Make the run that a configuration describes, and touch nothing on the disk."""


@click.command("audit-sampler")
@config_options
@click.option(
    "--evaluations",
    metavar="N",
    multiple=True,
    type=click.IntRange(4, 1000),
    default=(8, 12, 18, 24, 35, 50, 71),
    show_default=True,
    help="Evaluations of the network for a field, to compare at; may be given several times.",
)
@click.option(
    "--tolerance",
    metavar="PERCENT",
    type=click.FloatRange(0.1, 100),
    default=5.0,
    show_default=True,
    help="Largest bias of the power of a band with which a sampler is recommended.",
)
@click.option(
    "--modes",
    metavar="LOW HIGH",
    nargs=2,
    type=click.FloatRange(1e-12, 1e12),
    help="Read no data: look at modes with variances from LOW to HIGH, the target's being 1.",
)
@click.option(
    "--cases",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Training patches whose modes are measured.",
)
@click.pass_obj
def audit_sampler(  # noqa: PLR0913 - its options
    make_run: MakeRun,
    config: Path,
    plugins: list[str] | None,
    overrides: tuple[str, ...],
    *,
    evaluations: tuple[int, ...],
    tolerance: float,
    modes: tuple[float, float] | None,
    cases: int,
) -> None:
    """Print how wrong the sampler of CONFIG makes the spectrum, with a network that makes no mistake.

    Generated power in percent too much or too little, by wavelength in fine cells, for fields that are Gaussian
    with the spectrum of the training data: worked out exactly, nothing is trained or drawn. Then other solvers at
    like cost, and the cheapest sampler within the tolerance.
    """
    from hookloop.plugins.downscaling import Downscaling, audit
    from hookloop.plugins.downscaling.model import make_task

    run = make_run(config, plugins, overrides)
    options = next((plugin for plugin in run.plugins.values() if isinstance(plugin, Downscaling)), None)
    if options is None:
        raise HookloopError(
            f"{config}: the plugin downscaling is not listed; expected it, whose sampler to look at"
        )
    if modes is not None and modes[0] >= modes[1]:
        raise click.UsageError(f"--modes: expected LOW below HIGH, found {modes[0]:g} and {modes[1]:g}")
    bands, looked_at = (
        None,
        f"modes of variances {' to '.join(f'{v:g}' for v in modes or audit.DEFAULT_MODES)}",
    )
    if modes is None:
        try:
            bands, n = audit.measured_bands(make_task(options, run), cases)
            looked_at = f"modes of {n} training patches, in bands of wavelength (fine cells)"
        except HookloopError as error:
            click.echo(f"the data cannot be opened, so that default modes are looked at: {error}", err=True)
    if bands is None:
        bands = audit.default_bands(*(modes or audit.DEFAULT_MODES))
    click.echo(f"bias of the generated power, %; {looked_at}\n")
    click.echo(audit.table(options.sampler, bands, evaluations, tolerance / 100))
