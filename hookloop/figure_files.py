"""Where figures go, drawn by rank 0 alone: a file below the run's directory, and whoever logs them."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from hookloop.durable import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure

    from hookloop.core import Run


def keep(run: Run, figure: Figure, stem: str, key: str) -> None:
    """Write *figure* to ``figures/<stem>.png``, log it as *key*, and empty it.

    A disk that is full costs a picture, not the run.
    """
    _write(run, f"{stem}.png", partial(figure.savefig, format="png", bbox_inches="tight"))
    run.log({key: figure})
    figure.clear()


def keep_units(run: Run, units: Mapping[str, str]) -> None:
    """Write the *units* of variables to ``figures/units.json``, for whoever reads figures and metrics."""
    text = json.dumps(units, ensure_ascii=False, indent=1)

    def write(file: BinaryIO) -> None:
        file.write(f"{text}\n".encode())

    _write(run, "units.json", write)


def _write(run: Run, name: str, write: Callable[[BinaryIO], None]) -> None:
    path = run.dir / "figures" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as error:
        run.events.warning("figure.unwritten", path=str(path), error=str(error))
