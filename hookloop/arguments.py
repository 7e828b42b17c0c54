"""Arguments of the commands that take a configuration, those of plugins too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable


def names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """Divide ``a,b`` into names, for ``--plugins``."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def config_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add ``CONFIG``, ``--set`` and ``--plugins``: parameters config, overrides and plugins.

    A command of a plugin makes a run of them with the context's object (``click.pass_obj``):
    ``make_run(config, plugins, overrides)``.
    """
    for decorate in (
        click.argument("config", type=click.Path(path_type=Path)),
        click.option(
            "--set", "overrides", metavar="SECTION.KEY=VALUE", multiple=True, help="Override an option."
        ),
        click.option("--plugins", callback=names, metavar="LIST", help="Plugins in firing order: a,b,no:c."),
    ):
        function = decorate(function)
    return function
