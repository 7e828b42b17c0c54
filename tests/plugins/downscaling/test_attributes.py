"""What files say of their variables, for generated ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from hookloop.data.files import open_fields
from hookloop.data.options import SourceConfig
from hookloop.plugins.downscaling.attributes import attributes_of

if TYPE_CHECKING:
    from pathlib import Path


def test_attributes_are_those_of_the_first_file(tmp_path: Path) -> None:
    """Of each variable, whatever it is called there; what is true of that file alone is left out."""
    for day, name in ((1, "second"), (0, "first")):
        times = (
            np.datetime64("2020-01-01", "ns")
            + np.timedelta64(day, "D")
            + np.arange(2) * np.timedelta64(6, "h")
        )
        axes = {"time": times, "latitude": [50.0, 51.0], "longitude": [0.0, 1.0, 2.0]}
        values = (tuple(axes), np.zeros((2, 2, 3), np.float32))
        data = xr.Dataset({"T": values, "pr": values}, axes)
        data["T"].attrs = {
            "units": "K",
            "long_name": name,
            "standard_name": "air_temperature",
            "history": "made",
        }
        data.to_netcdf(tmp_path / f"{name}.nc")
    fields = open_fields(
        [SourceConfig(str(tmp_path / "*.nc"), rename={"t2m": "T"})],
        ["t2m", "pr"],
    )
    assert attributes_of(fields) == {
        "t2m": {"units": "K", "long_name": "first", "standard_name": "air_temperature"},
        "pr": {},
    }
