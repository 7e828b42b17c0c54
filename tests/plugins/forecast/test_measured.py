"""What is measured of a training split."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import structlog
import torch
import zarr
from linear_forecast import LinearModel, six_hourly, write_states
from structlog.testing import capture_logs

from hookloop.errors import HookloopError
from hookloop.plugins.forecast.measured import measure, measured
from hookloop.plugins.forecast.options import ModelConfig, StatesConfig
from hookloop.plugins.forecast.states import States, open_split
from hookloop.plugins.forecast.stores import open_store

CPU = torch.device("cpu")
CONFIG = ModelConfig(state=["t", "q"], forcing=["f"])


@pytest.fixture
def history(tmp_path: Path) -> dict[str, np.ndarray]:
    """90 states, so that they are read in two blocks, with six hours missing after the fortieth."""
    fields = LinearModel().history(90)
    times = six_hourly(90)
    times[40:] += np.timedelta64(6, "h")
    write_states(tmp_path / "x.zarr", fields, times)
    return {name: values.astype(np.float32).astype(np.float64) for name, values in fields.items()}


def opened(path: Path, place: str = "ram") -> tuple[States, object]:
    states = States.of(open_split(StatesConfig([str(path)]), CONFIG.variables, {}), 360)
    with ExitStack() as cleanup:
        return states, open_store(states, place, 0, CPU, print, cleanup)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["ram", "none"])
@pytest.mark.parametrize("residual", [True, False])
def test_scales_are_those_of_the_fields(
    tmp_path: Path, history: dict[str, np.ndarray], place: str, *, residual: bool
) -> None:
    """Inputs over all times, targets over steps, none of them across the gap: by numpy in float64."""
    states, store = opened(tmp_path / "x.zarr", place)
    config = ModelConfig(state=["t", "q"], forcing=["f"], residual=residual)
    found = measure(states, store, config)  # type: ignore[arg-type]
    for v, name in enumerate(("t", "q", "f")):
        assert found.inputs.mean[v].item() == pytest.approx(history[name].mean(), rel=1e-5, abs=1e-4)
        assert found.inputs.std[v].item() == pytest.approx(history[name].std(), rel=1e-5)
    for v, name in enumerate(("t", "q")):
        steps = np.delete(np.diff(history[name], axis=0), 39, axis=0)
        values = steps if residual else history[name]
        assert found.targets.std[v].item() == pytest.approx(values.std(), rel=1e-5)
        assert found.targets.mean[v].item() == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)


def test_it_is_measured_once(tmp_path: Path, history: dict[str, np.ndarray]) -> None:
    """The same numbers again without reading, until the data or the step change."""
    states, store = opened(tmp_path / "x.zarr")
    events = structlog.get_logger()
    with capture_logs() as told:
        first = measured(states, store, CONFIG, events)  # type: ignore[arg-type]
        second = measured(states, None, CONFIG, events)  # type: ignore[arg-type]
        other = measured(States.of(states.fields, 720), store, CONFIG, events)  # type: ignore[arg-type]
        zarr.open_array(str(tmp_path / "x.zarr"), path="t")[0] = history["t"][0] + 5.0
        measured(*opened(tmp_path / "x.zarr"), CONFIG, events)  # type: ignore[arg-type]
    assert [event["cached"] for event in told if event["event"] == "data.measured"] == [
        False,
        True,
        False,
        False,
    ]
    assert torch.equal(first.targets.std, second.targets.std)
    assert torch.equal(first.inputs.mean, second.inputs.mean)
    assert not torch.equal(first.targets.std, other.targets.std)


def test_what_does_not_change_is_no_target(tmp_path: Path) -> None:
    """A variable that is the same at every time has no differences to normalise."""
    fields = LinearModel().history(10)
    fields["q"][:] = fields["q"][:1]
    write_states(tmp_path / "x.zarr", fields, six_hourly(10))
    states, store = opened(tmp_path / "x.zarr")
    with pytest.raises(HookloopError, match="standard deviation of q in the training data"):
        measure(states, store, CONFIG)  # type: ignore[arg-type]
