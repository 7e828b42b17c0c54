"""What a network may be told of place and time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hookloop.data.calendars import YEAR

if TYPE_CHECKING:
    from torch import Tensor

    from hookloop.data.options import Feature

CHANNELS: dict[Feature, int] = {"hour": 2, "season": 2, "latitude": 1, "longitude": 1}
"""How many channels each feature is."""


def feature(
    name: Feature,
    hour: Tensor,
    day: Tensor,
    latitude: Tensor,
    longitude: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    """One feature of some cells of a grid, ``[case, channel, row, column]``.

    ``hour`` is the local solar time and ``season`` the day of the year, as sine and cosine; the coordinates
    have mean 0 and standard deviation 1 over the grid.

    :param hour: ``[case]``, hours of the day, UTC.
    :param day: ``[case]``, days of the year.
    :param latitude: ``[lat]`` and *longitude* ``[lon]`` of the grid, degrees.
    :param rows: ``[case, row]`` and *columns* ``[case, column]``, numbers of the cells; of one case for all.
    """
    shape = (len(hour), 1, rows.shape[1], columns.shape[1])
    if name == "season":
        return _circle((day.view(-1, 1, 1, 1) / YEAR).expand(shape))
    if name == "latitude":
        north = latitude[rows][:, None, :, None]
        return ((north - latitude.mean()) / latitude.std()).expand(shape)
    east = longitude[columns][:, None, None, :]
    if name == "longitude":
        return ((east - longitude.mean()) / longitude.std()).expand(shape)
    return _circle((hour.view(-1, 1, 1, 1) / 24 + east / 360).expand(shape))


def _circle(turns: Tensor) -> Tensor:
    """An angle as sine and cosine, on the channel axis."""
    return torch.cat([(2 * math.pi * turns).sin(), (2 * math.pi * turns).cos()], 1)
