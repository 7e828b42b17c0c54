"""The test kit keeps its promises to plugin authors."""

from __future__ import annotations

import math
import os
import signal
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from attrs import define, field

from hookloop import hookimpl
from hookloop.core import Run, train
from hookloop.distributed import Share
from hookloop.errors import HookloopError
from hookloop.optimization import Optimization
from hookloop.plugins.ema import EMA
from hookloop.task import Shareable
from hookloop.testing import (
    LEARNING_RATE,
    LifeCycle,
    Recorder,
    TinyData,
    TinyPlugin,
    TinyTask,
    calling,
    check_installed,
    events_of,
    fake_run,
    prepared,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def test_a_relay_calls_its_plugins_in_the_order_given() -> None:
    """Two of one class are two plugins."""
    calls: list[int] = []

    @define(eq=False)
    class Noting:
        number: int

        @hookimpl
        def before_epoch(self) -> None:
            calls.append(self.number)

    calling(Noting(1), Noting(2), Noting(3)).before_epoch(run=None)
    assert calls == [1, 2, 3]


def test_tiny_data_can_be_shared() -> None:
    """Of batches (0, 1, 2) and (3, 4) the second of two ranks has 1 and 4; a third has 2 and, of two, the first."""
    data = TinyData(5, 3)
    assert isinstance(data, Shareable)
    for share, expected in (
        (Share(1, 2), [[1], [4]]),
        (Share(2, 3), [[2], [3]]),
        (Share(), [[0, 1, 2], [3, 4]]),
    ):
        view = data.shared(share)
        assert [batch.tolist() for batch in view.batches(0)] == expected
        assert (view.n_samples, view.batch_size, view.n_batches) == (5, 3, 2)
    assert [batch.tolist() for batch in data.shared(Share(0, 2)).batches(0, order="alternate")] == [
        [4, 2],
        [1],
    ]


def test_a_relay_refuses_what_is_no_hook() -> None:
    """As a real run does."""

    class Misspelt:
        @hookimpl
        def after_bach(self) -> None:
            """Never called."""

    with pytest.raises(HookloopError, match="after_bach"):
        calling(Misspelt())


def test_the_tiny_data_are_numbers_in_order() -> None:
    """Five samples in batches of two: the last one is short; the alternate order is the reverse."""
    data = TinyData(5, batch_size=2)
    assert data.n_batches == 3
    assert [batch.tolist() for batch in data.batches(0)] == [[0, 1], [2, 3], [4]]
    assert [batch.tolist() for batch in data.batches(7, start=1, stop=2)] == [[2, 3]]
    assert [batch.tolist() for batch in data.batches(0, order="alternate")] == [[4, 3], [2, 1], [0]]
    assert list(data.batches(0, start=3)) == []


def test_the_tiny_loss_is_the_mean_squared_difference() -> None:
    """Of the weight, which starts at 0, and the samples: (1 + 9) / 2."""
    assert TinyTask().loss(torch.tensor([1.0, 3.0]))["loss"].item() == 5.0


def test_the_tiny_weight_moves_half_way_to_each_sample(tmp_path: Path) -> None:
    """0, then 1/2 of the way to 1, then to 2: 0 → 0 → 1/2 → 5/4."""
    run = fake_run(tmp_path, task=TinyTask(data={"train": TinyData(3)}))
    train(run)
    assert run.task.model.get_parameter("weight").item() == 1.25


def test_the_tiny_noise_depends_on_the_step_alone(tmp_path: Path) -> None:
    """With gradient noise · N(0, 1) the first step is w ← -lr · noise · N, seeded by the run."""
    run = fake_run(tmp_path, task=TinyTask(data={"train": TinyData(1)}, noise=2.0))
    train(run)
    torch.manual_seed(run.seed("train", 0))
    expected = -LEARNING_RATE * 2.0 * torch.randn(()).item()
    assert run.task.model.get_parameter("weight").item() == pytest.approx(expected, rel=1e-6)


def test_a_task_among_the_plugins_replaces_the_tiny_one(tmp_path: Path) -> None:
    """There is exactly one."""
    task = TinyTask()
    assert prepared(tmp_path, TinyPlugin(task)).task is task


def test_an_optimization_among_the_plugins_replaces_ours(tmp_path: Path) -> None:
    """The first answer counts."""

    @define(eq=False)
    class Own:
        @hookimpl
        def make_optimization(self, run: Run, task: TinyTask) -> Optimization:
            return Optimization(torch.optim.SGD(task.model.parameters(), lr=0.125), run.device)

    assert prepared(tmp_path, Own()).optimization.learning_rate == 0.125


def test_options_are_those_of_the_run_section(tmp_path: Path) -> None:
    """And the directory is where it was asked to be."""
    run = fake_run(tmp_path, max_epochs=3, seed=7)
    assert (run.config.max_epochs, run.config.seed, run.dir) == (3, 7, tmp_path)


def test_a_prepared_run_has_been_told_to_get_ready(tmp_path: Path) -> None:
    """And nothing more."""
    recorder = Recorder()
    run = prepared(tmp_path, recorder)
    assert recorder.names == ["make_optimization", "before_run"]
    assert run.optimization.learning_rate == LEARNING_RATE


def test_what_is_told_to_the_events_is_kept(tmp_path: Path) -> None:
    """With its level and keys, and apart from other runs' events."""
    run, other = fake_run(tmp_path), fake_run(tmp_path)
    run.events.info("thing.happened", count=2)
    run.events.error("thing.failed")
    assert events_of(run) == [
        {"level": "info", "event": "thing.happened", "count": 2},
        {"level": "error", "event": "thing.failed"},
    ]
    assert events_of(other) == []


def test_the_recorder_finds_metrics_by_key(tmp_path: Path) -> None:
    """By the step at which they were logged."""
    recorder = Recorder()
    run = fake_run(tmp_path, recorder)
    run.log({"a": 1.0})
    run.progress.step = 5
    run.log({"a": 2.0, "b": 3.0})
    assert recorder.metrics("a") == {0: 1.0, 5: 2.0}
    assert recorder.metrics("b") == {5: 3.0}
    assert recorder.names == ["log", "log"]


class TestEMA(LifeCycle):
    """A plugin with tensors for state survives the suite."""

    plugin = EMA
    options: ClassVar[Mapping[str, object]] = {"decay": 0.5}


@define(eq=False)
class Rich:
    """Has state of every plain kind."""

    state: dict[str, object] = field(init=False, factory=dict)

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Change all of it."""
        step = run.progress.step
        self.state = {
            "text": f"step {step}",
            "list": [step, None, {"x": (True, "y")}],
            "nan": math.nan,
            "tensor": torch.tensor([math.nan, step]),
        }

    def state_dict(self) -> dict[str, object]:
        """Give it."""
        return self.state

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take it."""
        self.state = state


class TestRich(LifeCycle):
    """A plugin with every plain kind of state survives the suite."""

    plugin = Rich


def life_cycle(cls: type) -> LifeCycle:
    """Make the suite for a plugin without having pytest collect it."""
    suite: LifeCycle = type("Suite", (LifeCycle,), {"plugin": cls})()
    return suite


@pytest.mark.parametrize(
    ("key", "value"), [("text", "other"), ("list", [0, None, {"x": (True, "z")}]), ("tensor", torch.zeros(2))]
)
def test_the_suite_finds_state_that_does_not_come_back(tmp_path: Path, key: str, value: object) -> None:
    """Wherever in the state it differs."""

    class Forgetful(Rich):
        def load_state_dict(self, state: dict[str, object]) -> None:
            self.state = {**state, key: value}

    with pytest.raises(AssertionError):
        life_cycle(Forgetful).test_state_survives_a_round_trip(tmp_path)


def test_the_suite_finds_state_that_is_not_safe_to_load(tmp_path: Path) -> None:
    """Objects do not belong into a checkpoint."""

    class Unsafe(Rich):
        def state_dict(self) -> dict[str, object]:
            return {"path": tmp_path}

    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        life_cycle(Unsafe).test_state_survives_a_round_trip(tmp_path)


def test_the_suite_finds_a_hook_without_its_mark() -> None:
    """It names the method."""

    @define(eq=False)
    class Unmarked:
        def after_batch(self) -> None:
            """Never called."""

    with pytest.raises(AssertionError, match="after_batch: no @hookimpl"):
        life_cycle(Unmarked).test_every_hook_is_one_of_ours()


def test_the_suite_finds_a_plugin_that_needs_a_batch(tmp_path: Path) -> None:
    """A run may end before there is one."""

    @define(eq=False)
    class Eager:
        last: str | None = field(default=None, init=False)

        @hookimpl
        def shutdown(self) -> None:
            assert self.last is not None

    with pytest.raises(AssertionError):
        life_cycle(Eager).test_survives_an_empty_run(tmp_path)


@pytest.mark.parametrize("what", ["signal", "environment", "directory"])
def test_the_suite_finds_what_a_plugin_leaves_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Signal handlers, environment variables and the working directory."""
    found = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)  # and back at the end
    monkeypatch.setenv("HOOKLOOP_LEFT", "before")

    @define(eq=False)
    class Untidy:
        @hookimpl
        def before_run(self, run: Run) -> None:
            if what == "signal":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            elif what == "environment":
                os.environ["HOOKLOOP_LEFT"] = "behind"
            else:
                os.chdir(run.dir.parent)

    try:
        with pytest.raises(AssertionError):
            life_cycle(Untidy).test_leaves_the_process_as_found(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, found)


def test_an_installed_plugin_is_found_by_name() -> None:
    """And what is not installed is not."""
    assert check_installed("ema") is EMA
    with pytest.raises(HookloopError, match="nobody"):
        check_installed("nobody")
