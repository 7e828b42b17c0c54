"""Which state follows which, and where forecasts can start."""

from __future__ import annotations

from pathlib import Path

import cftime
import numpy as np
import pytest
from hypotheses import many
from hypothesis import given
from hypothesis import strategies as st
from linear_forecast import LinearModel, six_hourly, write_states

from hookloop.data.fields import Fields
from hookloop.data.grids import Axis
from hookloop.plugins.forecast.options import StatesConfig
from hookloop.plugins.forecast.states import States, duration, open_split


def states_at(times: np.ndarray, step: int) -> States:
    """States at *times*, with nothing in them."""
    axis = Axis(np.arange(2.0), np.arange(2), 1.0)
    return States.of(Fields("nowhere", {}, times, axis, axis), step)


@many(200)
@given(
    hours=st.lists(st.integers(0, 40), min_size=1, max_size=30, unique=True).map(sorted),
    step=st.integers(1, 12),
    horizon=st.integers(1, 4),
)
def test_what_follows_is_exactly_a_step_later(hours: list[int], step: int, horizon: int) -> None:
    """Against a search of every time, whatever is missing."""
    times = np.datetime64("2020-01-01", "ns") + np.array(hours) * np.timedelta64(1, "h")
    states = states_at(times, 60 * step)
    assert states.following.tolist() == [
        hours.index(hour + step) if hour + step in hours else -1 for hour in hours
    ]
    assert states.presents.tolist() == [n for n, hour in enumerate(hours) if hour + step in hours]
    assert states.chains(horizon).tolist() == [
        [hours.index(hour + k * step) for k in range(horizon + 1)]
        for hour in hours
        if all(hour + k * step in hours for k in range(horizon + 1))
    ]


def test_calendars_of_models_have_steps_too() -> None:
    """In a year of 360 days the 30th of February is followed by the 1st of March."""
    times = np.array(
        [cftime.datetime(2000, 2, day, calendar="360_day") for day in (29, 30)]
        + [cftime.datetime(2000, 3, day, calendar="360_day") for day in (1, 3)]
    )
    assert states_at(times, 1440).following.tolist() == [1, 2, -1, -1]


@pytest.mark.parametrize(
    ("length", "text"), [(360, "6h"), (14400, "240h"), (90, "1h30m"), (10, "10m"), (1440, "24h")]
)
def test_lead_times_are_written_in_hours(length: int, text: str) -> None:
    """Minutes as people write lead times."""
    assert duration(length) == text


def test_a_split_chooses_its_times(tmp_path: Path) -> None:
    """Ranges, one time in so long, blocks that repeat: as in every split."""
    write_states(tmp_path / "x.zarr", LinearModel().history(40), six_hourly(40))
    split = StatesConfig([str(tmp_path / "x.zarr")], time=("2020-01-02", "2020-01-05"), every="12h")
    fields = open_split(split, ["f", "t"], {})
    assert [str(time)[:13] for time in fields.times] == [
        f"2020-01-0{day}T{hour}" for day in (2, 3, 4, 5) for hour in ("00", "12")
    ]
    assert list(fields.parts) == ["f", "t"]
