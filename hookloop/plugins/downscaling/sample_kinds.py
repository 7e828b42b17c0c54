"""The kinds of sample data: which variables they have, where they lie, and what is known about them."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
from attrs import frozen

from hookloop.plugins.downscaling import orographic, precipitation, synthetic
from hookloop.plugins.downscaling.synthetic import Floats, block_mean

Labelled = dict[str, tuple[Floats, dict[str, str]]]
"""By name, values ``[(time,) lat, lon]`` and attributes."""
Recipe = synthetic.Recipe | precipitation.Recipe | orographic.Recipe

RECIPES: dict[str, type[Recipe]] = {
    "temperature": synthetic.Recipe,
    "precipitation": precipitation.Recipe,
    "orographic": orographic.Recipe,
}
"""By what the command line calls them."""

_EARTH = 111_195.0
"""Metres to a degree of latitude on a sphere of 6371 km."""
_TEMPERATURE = {"standard_name": "air_temperature", "long_name": "2 metre temperature", "units": "K"}
_TERRAIN = {"standard_name": "surface_altitude", "long_name": "terrain height", "units": "m"}
_LAND = {"standard_name": "land_area_fraction", "long_name": "share of land", "units": "1"}
_RAIN = {"standard_name": "lwe_precipitation_rate", "long_name": "precipitation", "units": "mm h-1"}
_U = {"standard_name": "eastward_wind", "long_name": "wind eastwards", "units": "m s-1"}
_V = {"standard_name": "northward_wind", "long_name": "wind northwards", "units": "m s-1"}


@frozen
class Domain:
    """Where the fields lie, in degrees."""

    south: float = 46.0
    west: float = 2.0
    height: float = 8.0
    """From south to north."""
    width: float = 8.0


class Kind(Protocol):
    """One kind of sample data."""

    template: ClassVar[str]
    """Of its ``cfg.yaml``, beside this module."""

    @property
    def recipe(self) -> Recipe:
        """What the fields are made of."""

    @property
    def domain(self) -> Domain:
        """Where they lie."""

    def pair(self, n_times: int, seed: list[int]) -> tuple[Labelled, Labelled]:
        """Make hourly fine and coarse fields from midnight on, in single precision as they are stored."""

    def fields(self, fine: Labelled, coarse: Labelled) -> dict[str, Labelled]:
        """What else is stored, by file: static fields, and what is known about the pair."""

    def numbers(self, fine: Labelled, coarse: Labelled) -> dict[str, dict[str, float]]:
        """What is known about the pair, by file."""


def kind_of(recipe: Recipe) -> Kind:
    """Find the kind that a *recipe* is of."""
    match recipe:
        case synthetic.Recipe():
            return Temperature(recipe)
        case precipitation.Recipe():
            return Precipitation(recipe)
        case orographic.Recipe():
            return Orographic(recipe)


@frozen
class Temperature:
    """Gaussian fields, whose exact answer is stored beside them."""

    template: ClassVar[str] = "cfg.yaml.in"
    recipe: synthetic.Recipe
    domain: Domain = Domain()

    def pair(self, n_times: int, seed: list[int]) -> tuple[Labelled, Labelled]:
        """2 metre temperature."""
        return _with_block_mean("t2m", synthetic.generate(self.recipe, n_times, seed), self, _TEMPERATURE)

    def fields(self, fine: Labelled, coarse: Labelled) -> dict[str, Labelled]:
        """Terrain and land; mean and standard deviation of the exact answer."""
        hours = synthetic.hours_of(len(fine["t2m"][0]))
        mean, std = synthetic.posterior(self.recipe, coarse["t2m"][0], hours)
        spread = {"long_name": "standard deviation", "units": "K"}
        return {
            "static": {
                "terrain": (synthetic.terrain(self.recipe), _TERRAIN),
                "land": (synthetic.land(self.recipe), _LAND),
            },
            "exact": {"t2m_mean": (mean, _TEMPERATURE), "t2m_std": (std, spread)},
        }

    def numbers(self, fine: Labelled, coarse: Labelled) -> dict[str, dict[str, float]]:
        """Scores of the exact answer."""
        truth, given = fine["t2m"][0], coarse["t2m"][0]
        return {"exact": synthetic.exact_scores(self.recipe, truth, given, synthetic.hours_of(len(truth)))}


@frozen
class Precipitation:
    """Lognormal showers, whose distribution in a cell is stored beside them."""

    template: ClassVar[str] = "precipitation.yaml.in"
    recipe: precipitation.Recipe
    domain: Domain = Domain()

    def pair(self, n_times: int, seed: list[int]) -> tuple[Labelled, Labelled]:
        """Rain."""
        return _with_block_mean("pr", precipitation.generate(self.recipe, n_times, seed), self, _RAIN)

    def fields(self, fine: Labelled, coarse: Labelled) -> dict[str, Labelled]:  # noqa: ARG002 - a Kind
        """Nothing: all places are alike."""
        return {}

    def numbers(self, fine: Labelled, coarse: Labelled) -> dict[str, dict[str, float]]:  # noqa: ARG002 - a Kind
        """Share of dry cells, mean and quantiles, by formula."""
        return {"distribution": precipitation.distribution(self.recipe)}


@frozen
class Orographic:
    """Rain over mountains, which coarse rain and wind know only together with the terrain."""

    template: ClassVar[str] = "orographic.yaml.in"
    recipe: orographic.Recipe

    @property
    def domain(self) -> Domain:
        """Cells as large as the model's, in a place that has nothing to do with the terrain's."""
        south, height = Domain().south, self.recipe.n * self.recipe.cell / _EARTH
        return Domain(height=height, width=height / float(np.cos(np.radians(south + height / 2))))

    def pair(self, n_times: int, seed: list[int]) -> tuple[Labelled, Labelled]:
        """Rain; on the coarse side the wind too."""
        weather = orographic.generate(self.recipe, n_times, seed)
        fine, coarse = _with_block_mean("pr", weather.rain, self, _RAIN)
        return fine, coarse | {"u": (weather.u, _U), "v": (weather.v, _V)}

    def fields(self, fine: Labelled, coarse: Labelled) -> dict[str, Labelled]:  # noqa: ARG002 - a Kind
        """Terrain."""
        return {"static": {"terrain": (orographic.terrain(self.recipe), _TERRAIN)}}

    def numbers(self, fine: Labelled, coarse: Labelled) -> dict[str, dict[str, float]]:  # noqa: ARG002 - a Kind
        """Nothing: the answer has no closed form."""
        return {}


def _with_block_mean(
    name: str, values: Floats, kind: Kind, attributes: dict[str, str]
) -> tuple[Labelled, Labelled]:
    """Pair fine *values* with their block mean.

    What is scored is what a reader finds in the files: single precision.
    """
    stored = values.astype(np.float32).astype(np.float64)
    return {name: (stored, attributes)}, {name: (block_mean(stored, kind.recipe.factor), attributes)}
