"""What is behind a path: files and stores of every format, found by pattern and opened without being read."""

from __future__ import annotations

import glob
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import xarray as xr

from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hookloop.data.options import SourceConfig

Kind: TypeAlias = Literal["zarr", "netcdf4", "netcdf3", "grib"]

_MAGIC: tuple[tuple[bytes, Kind], ...] = ((b"GRIB", "grib"), (b"CDF", "netcdf3"))
_OLDER = "convert older netCDF with: nccopy -k nc4"


def paths_of(source: SourceConfig) -> list[str]:
    """List the files, stores or URLs that a source means, a pattern's in order of their names.

    :raises HookloopError: where there is none.
    """
    path = source.path.removeprefix("file://")
    if is_url(path):
        return _matching_urls(source) if "*" in path else [path]
    if Path(path).exists():
        return [path]
    if not glob.has_magic(path):
        raise HookloopError(f"{path}: no such file or store; expected a netCDF file or a zarr store")
    # glob, because Path.glob takes no absolute pattern
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    if not found:
        raise HookloopError(f"{path}: no file or store matches this pattern")
    return found


def is_url(path: str) -> bool:
    """Whether *path* is reached through fsspec."""
    return "://" in path


def kind_of(path: str) -> Kind:
    """Tell what is at *path*, from its first bytes; a folder or a URL can only be a zarr store."""
    if is_url(path) or Path(path).is_dir():
        return "zarr"
    with Path(path).open("rb") as file:
        begin = file.read(4)
    return next((kind for magic, kind in _MAGIC if begin.startswith(magic)), "netcdf4")


def open_datasets(path: str, storage_options: Mapping[str, object] | None = None) -> list[xr.Dataset]:
    """Open what is at *path* without reading fields; the caller closes it.

    :returns: one; several for a GRIB file, where variables differ in their levels or times.
    :raises HookloopError: where there is nothing, it cannot be read, or a package is missing that reads it.
    """
    if not is_url(path) and not Path(path).exists():
        raise HookloopError(f"{path}: no such file or store; expected a netCDF file or a zarr store")
    with warnings.catch_warnings():
        # Dates beyond datetime64[ns] are decoded as cftime has them, which is what is wanted.
        warnings.filterwarnings("ignore", "Unable to decode time axis into full numpy.datetime64")
        # Several marks of missing values are all honoured.
        warnings.filterwarnings("ignore", "variable .* has multiple fill values")
        return _open_url(path, storage_options) if is_url(path) else _open_local(path)


def fill_of(path: str, variable: str, storage_options: Mapping[str, object] | None = None) -> int | float:
    """Read what a zarr array holds where a chunk is not there."""
    import zarr

    options = dict(storage_options or {}) or None
    try:
        array = zarr.open_array(store=path, path=variable, mode="r", storage_options=options)
    except Exception as problem:  # every kind of remote store has errors of its own
        raise _unreached(path, problem) from problem
    fill = np.asarray(array.fill_value or 0).item()  # without any, zarr reads zeros
    return fill if isinstance(fill, int) else float(fill)


def _matching_urls(source: SourceConfig) -> list[str]:
    from fsspec.core import url_to_fs

    try:
        system, pattern = url_to_fs(source.path, **source.storage_options)
        found = sorted(system.unstrip_protocol(path) for path in system.glob(pattern))
    except Exception as problem:
        raise _unreached(source.path, problem) from problem
    if not found:
        raise HookloopError(f"{source.path}: no store matches this pattern")
    return found


def _open_url(path: str, storage_options: Mapping[str, object] | None) -> list[xr.Dataset]:
    try:
        with warnings.catch_warnings():
            # Without consolidated metadata a remote store opens slowly: no reason to stop.
            warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata")
            return [
                xr.open_zarr(
                    path,
                    chunks=None,
                    decode_timedelta=False,
                    storage_options=dict(storage_options or {}) or None,
                )
            ]
    except Exception as problem:  # every kind of remote store has errors of its own
        raise _unreached(path, problem) from problem


def _unreached(path: str, problem: Exception) -> HookloopError:
    found = " ".join(f"{type(problem).__name__}: {problem}".split())
    if isinstance(problem, ImportError):
        return HookloopError(
            f"{path}: a package that reaches it is missing ({found}): pip install 'hookloop[remote]'"
        )
    return HookloopError(f"{path}: expected a zarr store, found {found}")


def _open_local(path: str) -> list[xr.Dataset]:
    kind = kind_of(path)
    try:
        return _OPENERS[kind](path)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise HookloopError(f"{path}: {_found(path, kind, problem)}") from problem


def _found(path: str, kind: Kind, problem: Exception) -> str:
    said = " ".join(str(problem).split())
    if kind == "grib" and isinstance(problem, ImportError):
        return f"GRIB needs packages that are missing ({said}): pip install 'hookloop[grib]'"
    if kind == "netcdf3":
        return f"netCDF-3 is read where scipy is installed, found: {said}; pip install scipy, or {_OLDER}"
    if kind == "zarr" and (files := sorted(child.name for child in Path(path).glob("*.nc"))):
        return f"expected a zarr store, found a folder of netCDF files, such as {files[0]}; write {path}/*.nc"
    return f"expected a netCDF-4 file or a zarr store, found: {said}; is it whole?"


def _open_zarr(path: str) -> list[xr.Dataset]:
    # Looking for consolidated metadata first would warn about every store that has none.
    return [xr.open_zarr(path, chunks=None, consolidated=False, decode_timedelta=False)]


def _open_netcdf4(path: str) -> list[xr.Dataset]:
    return [xr.open_dataset(path, engine="h5netcdf", decode_timedelta=False)]


def _open_netcdf3(path: str) -> list[xr.Dataset]:
    return [xr.open_dataset(path, engine="scipy", decode_timedelta=False)]


def _open_grib(path: str) -> list[xr.Dataset]:
    import cfgrib

    # Without an index file: data are read, nothing is written beside them.
    datasets: list[xr.Dataset] = cfgrib.open_datasets(path, backend_kwargs={"indexpath": ""})
    return datasets


_OPENERS: dict[Kind, Callable[[str], list[xr.Dataset]]] = {
    "zarr": _open_zarr,
    "netcdf4": _open_netcdf4,
    "netcdf3": _open_netcdf3,
    "grib": _open_grib,
}
