"""What networks are told of place and time."""

from __future__ import annotations

import math

import pytest
import torch

from hookloop.data.features import CHANNELS, feature

LATITUDE = torch.tensor([10.0, 20.0, 60.0])
LONGITUDE = torch.tensor([0.0, 90.0, 180.0, 270.0])
GRID = (LATITUDE, LONGITUDE, torch.arange(3)[None], torch.arange(4)[None])


@pytest.mark.parametrize("name", CHANNELS)
def test_every_feature_covers_the_grid(name: str) -> None:
    """Case, channel, latitude, longitude."""
    found = feature(name, torch.zeros(5), torch.zeros(5), *GRID)  # type: ignore[arg-type]
    assert found.shape == (5, CHANNELS[name], 3, 4)  # type: ignore[index]


def test_noon_is_where_the_sun_is() -> None:
    """At 06 UTC it is noon at 90° E: half a turn, everywhere on that meridian."""
    found = feature("hour", torch.tensor([6.0]), torch.zeros(1), *GRID)
    for sine, cosine in found[0, :, :, 1].T:
        assert (sine.item(), cosine.item()) == pytest.approx((0.0, -1.0), abs=1e-6)
    assert found[0, 0, 0, 0].item() == pytest.approx(1.0)  # a quarter turn at 0° E


def test_a_season_is_a_share_of_the_year() -> None:
    """A quarter of a mean year is a quarter turn."""
    found = feature("season", torch.zeros(1), torch.tensor([365.2425 / 4]), *GRID)
    assert found[0, :, 2, 3].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_coordinates_are_normalised() -> None:
    """Mean 0, standard deviation 1, along their own axis."""
    latitude = feature("latitude", torch.zeros(2), torch.zeros(2), *GRID)
    spread = math.sqrt((20**2 + 10**2 + 30**2) / 2)
    assert latitude[1, 0, :, 2].tolist() == pytest.approx([-20 / spread, -10 / spread, 30 / spread])
    longitude = feature("longitude", torch.zeros(2), torch.zeros(2), *GRID)
    assert longitude[0, 0, 1].tolist() == pytest.approx(
        [x / math.sqrt(5 / 3) for x in (-1.5, -0.5, 0.5, 1.5)]
    )


@pytest.mark.parametrize("name", CHANNELS)
def test_a_patch_is_told_what_its_place_in_the_grid_is_told(name: str) -> None:
    """Each case its own rows and columns, also across a seam, with the mean and spread of the whole grid."""
    hour, day = torch.tensor([3.0, 21.0]), torch.tensor([10.0, 200.0])
    rows, columns = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[3, 0, 1], [1, 2, 3]])
    whole = feature(name, hour, day, *GRID)  # type: ignore[arg-type]
    found = feature(name, hour, day, LATITUDE, LONGITUDE, rows, columns)  # type: ignore[arg-type]
    for case in range(2):
        expected = whole[case][:, rows[case]][:, :, columns[case]]
        torch.testing.assert_close(found[case], expected, rtol=0, atol=0)
