"""Sample data on disk: synthetic fields as files that look like any others, and what is known about them."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from hookloop.errors import HookloopError
from hookloop.plugins.downscaling.sample_kinds import kind_of

if TYPE_CHECKING:
    from pathlib import Path

    from hookloop.plugins.downscaling.sample_kinds import Domain, Kind, Labelled, Recipe

_BEGIN = np.datetime64("2020-01-01T00", "ns")


def write(directory: Path, recipe: Recipe, n_train: int, n_validation: int, seed: int) -> None:
    """Write training and validation pairs, static fields, what is known and a ``cfg.yaml`` that uses them.

    The same arguments write the same arrays.

    :raises HookloopError: where *directory* is a file or not empty.
    """
    _make(directory)
    kind = kind_of(recipe)
    days = -(-n_train // 24)
    for split, n, first in (("train", n_train, 0), ("validation", n_validation, days)):
        fine, coarse = kind.pair(n, [seed, first])
        times = _BEGIN + np.timedelta64(first, "D") + np.arange(n) * np.timedelta64(1, "h")
        for name, fields in (("fine", fine), ("coarse", coarse)):
            data = _dataset(fields, kind.domain, times)
            _save(data, directory / f"{split}_{name}.{'zarr' if split == 'train' else 'nc'}")
    for name, fields in kind.fields(fine, coarse).items():
        _save(_dataset(fields, kind.domain, times), directory / f"{name}.nc")
    for name, numbers in kind.numbers(fine, coarse).items():
        (directory / f"{name}.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (directory / "cfg.yaml").write_text(_configuration(directory, kind))


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


def _dataset(fields: Labelled, domain: Domain, times: np.ndarray) -> xr.Dataset:
    """Put *fields* in their place, and in time where they change, in the way of the CF conventions."""
    dims = ("time", "latitude", "longitude")
    variables = {
        name: (dims[-values.ndim :], values.astype(np.float32), attributes)
        for name, (values, attributes) in fields.items()
    }
    lat, lon = next(iter(fields.values()))[0].shape[-2:]
    north = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
    east = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    coordinates = {
        "latitude": ("latitude", domain.south + domain.height / lat * (np.arange(lat) + 0.5), north),
        "longitude": ("longitude", domain.west + domain.width / lon * (np.arange(lon) + 0.5), east),
    }
    data = xr.Dataset(variables, coordinates, {"Conventions": "CF-1.11", "title": "synthetic sample"})
    if "time" not in data.dims:
        return data
    data = data.assign_coords(time=("time", times, {"standard_name": "time", "axis": "T"}))
    data.time.encoding = {"units": "hours since 2020-01-01", "dtype": "int64", "calendar": "standard"}
    return data


def _save(data: xr.Dataset, path: Path) -> None:
    if path.suffix == ".zarr":
        data.to_zarr(path, zarr_format=2, consolidated=True)
    else:
        data.to_netcdf(path, engine="h5netcdf")


def _configuration(directory: Path, kind: Kind) -> str:
    """Fill in the template; single quotes are YAML's only special character inside single quotes."""
    template = resources.files("hookloop.plugins.downscaling").joinpath(kind.template).read_text("utf-8")
    fine, coarse = kind.recipe.n, kind.recipe.n // kind.recipe.factor
    shapes = f"{fine} x {fine} fine, {coarse} x {coarse} coarse"
    return template.replace("@DIR@", str(directory).replace("'", "''")).replace("@SHAPES@", shapes)
