"""The command ``hookloop report``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("directory", metavar="RUN_DIR", type=click.Path(path_type=Path))
def report(directory: Path) -> None:
    """Write report.html into RUN_DIR: scores with intervals, curves, figures, configuration, environment.

    The page needs no network, no script and no other file, so it can be mailed. The run may still be going on.
    """
    # Help must not wait for matplotlib.
    from hookloop.report.page import write

    click.echo(write(directory))
