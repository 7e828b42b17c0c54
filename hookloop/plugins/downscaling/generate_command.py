"""``hookloop generate``: use a trained downscaling model on coarse data."""

from __future__ import annotations

from pathlib import Path

import click


def _ranges(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """Divide each ``FIRST,LAST``; a single date is all of its span."""
    found = [[date.strip() for date in value.split(",")] for value in values]
    for value, dates in zip(values, found, strict=True):
        if len(dates) not in (1, 2) or not all(dates):
            raise click.BadParameter(
                f"{value}: expected FIRST,LAST such as 2019-03-24,2019-03-31, or one date"
            )
    return [(dates[0], dates[-1]) for dates in found]


@click.command("generate")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="DATA",
    help="Coarse file, store, pattern or URL; several are joined. Or options: '{path: x.nc, rename: {u850: u@850}}'.",
)
@click.option(
    "--out",
    required=True,
    metavar="OUT.zarr",
    type=click.Path(path_type=Path),
    help="Where to write; a store that the same command has begun is gone on with.",
)
@click.option(
    "--members", default=8, show_default=True, type=click.IntRange(1), help="Members of each ensemble."
)
@click.option(
    "--time",
    "times",
    multiple=True,
    callback=_ranges,
    metavar="FIRST,LAST",
    help="Only these times, both included, or one date; may be given again. All if not given.",
)
@click.option(
    "--batch", default=32, show_default=True, type=click.IntRange(1), help="Fields generated at once."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Another seed, other members."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda or cuda:N.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override an option of the run, such as downscaling.sampler.steps=35.",
)
def generate(  # noqa: PLR0913 - one for each option
    *,
    checkpoint: Path,
    data: tuple[str, ...],
    out: Path,
    members: int,
    times: list[tuple[str, str]],
    batch: int,
    seed: int,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Generate fine fields from coarse DATA with CHECKPOINT, any file of a downscaling run, into a zarr store.

    The cells that the model was trained on must be among those of DATA. No fine truth is needed, and nothing of
    the training data. Interrupted in whatever way, the same command goes on; every field is a function of the
    seed, its time and its member.
    """
    from hookloop import logs  # help must not wait for torch
    from hookloop.plugins.downscaling.generate import Request
    from hookloop.plugins.downscaling.generate import generate as make

    request = Request(data, out, members, times, batch, seed, device, overrides)
    make(checkpoint, request, logs.events_to(None))
    click.echo(f"complete: {out}")
