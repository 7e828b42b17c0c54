"""Sample data on disk: synthetic fields as files that look like any others, and what is known about them."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling import synthetic

if TYPE_CHECKING:
    from pathlib import Path

    from hookloop.plugins.downscaling.synthetic import Floats, Recipe

_SOUTH, _WEST, _DEGREES = 46.0, 2.0, 8.0
_BEGIN = np.datetime64("2020-01-01T00", "ns")
_TEMPERATURE = {"standard_name": "air_temperature", "long_name": "2 metre temperature", "units": "K"}


def write(directory: Path, recipe: Recipe, n_train: int, n_validation: int, seed: int) -> None:
    """Write training and validation pairs, static fields, the exact answer and a ``cfg.yaml`` that uses them.

    The same arguments write the same arrays.

    :raises HookloopError: where *directory* is a file or not empty.
    """
    _make(directory)
    days = -(-n_train // 24)
    for split, n, first in (("train", n_train, 0), ("validation", n_validation, days)):
        hours = synthetic.hours_of(n)
        # What is scored is what a reader finds in the files: single precision.
        fine = synthetic.generate(recipe, n, [seed, first]).astype(np.float32).astype(np.float64)
        coarse = synthetic.block_mean(fine, recipe.factor)
        times = _BEGIN + np.timedelta64(first, "D") + np.arange(n) * np.timedelta64(1, "h")
        for name, values in (("fine", fine), ("coarse", coarse)):
            data = _dataset({"t2m": (values, _TEMPERATURE)}, times)
            _save(data, directory / f"{split}_{name}.{'zarr' if split == 'train' else 'nc'}")
    mean, std = synthetic.posterior(recipe, coarse, hours)
    answer = {
        "t2m_mean": (mean, _TEMPERATURE),
        "t2m_std": (std, {"long_name": "standard deviation", "units": "K"}),
    }
    _save(_dataset(answer, times), directory / "exact.nc")
    _save(_dataset(_statics(recipe), times[:0]), directory / "static.nc")
    scores = synthetic.exact_scores(recipe, fine, coarse, hours)
    (directory / "exact.json").write_text(json.dumps(scores, indent=2) + "\n")
    (directory / "cfg.yaml").write_text(_configuration(directory, recipe))


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not any(directory.iterdir()):
            return
    except OSError as problem:
        raise HookloopError(
            f"{directory}: cannot be made: {problem.strerror}; name a new directory"
        ) from problem
    raise HookloopError(
        f"{directory}: expected a new or empty directory, found files in it; name another one"
    )


def _statics(recipe: Recipe) -> dict[str, tuple[Floats, dict[str, str]]]:
    height = {"standard_name": "surface_altitude", "long_name": "terrain height", "units": "m"}
    share = {"standard_name": "land_area_fraction", "long_name": "share of land", "units": "1"}
    return {
        "terrain": (synthetic.terrain(recipe), height),
        "land": (synthetic.land(recipe), share),
    }


def _dataset(fields: dict[str, tuple[Floats, dict[str, str]]], times: np.ndarray) -> xr.Dataset:
    """Label *fields* ``[time, lat, lon]`` or ``[lat, lon]`` in the way of the CF conventions."""
    dims = ("time", "latitude", "longitude")
    variables = {
        name: (dims[-values.ndim :], values.astype(np.float32), attributes)
        for name, (values, attributes) in fields.items()
    }
    lat, lon = next(iter(fields.values()))[0].shape[-2:]
    north = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
    east = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    coordinates = {
        "latitude": ("latitude", _SOUTH + _DEGREES / lat * (np.arange(lat) + 0.5), north),
        "longitude": ("longitude", _WEST + _DEGREES / lon * (np.arange(lon) + 0.5), east),
    }
    data = xr.Dataset(variables, coordinates, {"Conventions": "CF-1.11", "title": "synthetic sample"})
    if not len(times):
        return data
    data = data.assign_coords(time=("time", times, {"standard_name": "time", "axis": "T"}))
    data.time.encoding = {"units": "hours since 2020-01-01", "dtype": "int64", "calendar": "standard"}
    return data


def _save(data: xr.Dataset, path: Path) -> None:
    if path.suffix == ".zarr":
        data.to_zarr(path, zarr_format=2, consolidated=True)
    else:
        data.to_netcdf(path, engine="h5netcdf")


def _configuration(directory: Path, recipe: Recipe) -> str:
    """Fill in the template; single quotes are YAML's only special character inside single quotes."""
    template = resources.files("hookloop.plugins.downscaling").joinpath("cfg.yaml.in").read_text("utf-8")
    cells = recipe.n // recipe.factor
    shapes = f"{recipe.n} x {recipe.n} fine, {cells} x {cells} coarse"
    return template.replace("@DIR@", str(directory).replace("'", "''")).replace("@SHAPES@", shapes)
