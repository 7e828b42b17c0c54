"""Figures of an inference: its cases, and what its scores have to show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from hookloop.charts import chart_figure, maps_figure
from hookloop.figure_files import keep
from hookloop.figures import Case, ensemble_figure
from hookloop.scores.score import Maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hookloop.core import Run
    from hookloop.scoring import Results
    from hookloop.task import Paired


@frozen
class Drawing:
    """Draws into ``figures/``, and for whoever logs figures."""

    run: Run
    prefix: str
    """Of what is drawn: the inference set and a slash, or nothing."""

    def case(self, paired: Paired, row: int) -> None:
        """Draw every variable of one row of *paired*."""
        for name, prediction in paired.prediction.items():
            given = paired.coarse.get(name, paired.baseline.get(name))
            figure = ensemble_figure(
                Case(
                    title=self._title(name, paired.name_of(row)),
                    units=paired.units.get(name, ""),
                    given_as="coarse input" if name in paired.coarse else "baseline",
                    given=None if given is None else given[row].float().numpy(force=True),
                    truth=paired.target[name][row].float().numpy(force=True),
                    members=prediction[row].float().numpy(force=True),
                    latitude=np.asarray(paired.latitude),
                    longitude=np.asarray(paired.longitude),
                    gridded=paired.gridded,
                )
            )
            self._keep(figure, name, _slug(paired.name_of(row)))

    def pictures(self, results: Results, paired: Paired) -> None:
        """Draw what the scores have to show, on the grid of *paired*."""
        for name, picture in results.pictures():
            title, units = self._title(name), paired.units.get(name, "")
            if isinstance(picture, Maps):
                figure = maps_figure(
                    picture,
                    paired.latitude,
                    paired.longitude,
                    title=title,
                    units=units,
                    gridded=paired.gridded,
                )
            else:
                figure = chart_figure(picture, title=title, units=units)
            self._keep(figure, name, picture.name)

    def _title(self, *parts: str) -> str:
        at = self.run.progress
        when = f"epoch {at.epoch + 1}" if at.step else "before training"
        return ", ".join(part for part in (self.prefix.rstrip("/"), *parts, when) if part)

    def _keep(self, figure: Figure, name: str, what: str) -> None:
        stem = f"{_slug(self.prefix)}{_slug(name)}_{what}"
        keep(self.run, figure, stem, f"inference/{self.prefix}figure/{name}/{what}")


def _slug(text: str) -> str:
    """Make *text* fit for the name of a file."""
    return re.sub(r"[^\w.-]+", "_", text.strip())
