"""Real files of states whose forecasts are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from linear_forecast import STEP, LinearModel, six_hourly, write_states


@pytest.fixture(scope="session")
def states_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files: 200 states to learn from, and 24 to look at, of which six hours are missing after the tenth."""
    directory = tmp_path_factory.mktemp("states")
    linear = LinearModel()
    write_states(directory / "train.zarr", linear.history(200), six_hourly(200))
    times = six_hourly(24, "2021-01-01T00")
    times[10:] += STEP
    write_states(directory / "validation.zarr", linear.history(24, seed=1), times)
    return directory
