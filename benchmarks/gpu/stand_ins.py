"""Empty modules in the place of what a package imports and does not use."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

UNUSED_BY_FME = (
    "cartopy",
    "gcsfs",
    "moviepy",
    "netCDF4",
    "numcodecs",
    "omegaconf",
    "plotly",
    "s3fs",
    "tensorly",
    "tltorch",
    "torch_harmonics",
    "wandb",
    "zarr",
    "zarrs",
)
"""What fme imports for other models, files, logs and maps: its downscaling neither trains nor samples with them."""


class _Nothing:
    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def __call__(self, *_args: object, **_options: object) -> None:
        return None


class _Empty(types.ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in(names: Sequence[str]) -> None:
    """Let those of *names* that are not installed be found, last of all, as empty modules."""
    sys.meta_path.append(_Finder(names))
