"""Profiled runs: what is found is what a clock was told, and nothing else changes."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import define, field
from clocks import Clock
from ranks import on_ranks
from torch import Tensor, nn

from hookloop import files
from hookloop.core import Run, train
from hookloop.hookspecs import hookimpl
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.distributed import Distributed
from hookloop.plugins.ema import EMA
from hookloop.plugins.profile import Profile, TraceOptions
from hookloop.profiling import device_times, hook_times, step_times
from hookloop.profiling.device_times import HostOnly
from hookloop.testing import LifeCycle, Recorder, TinyData, TinyTask, events_of, fake_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from hookloop.distributed import Ranks
    from hookloop.task import Order


class TestLifeCycle(LifeCycle):
    plugin = Profile


class TestLifeCycleOfEverything(LifeCycle):
    plugin = Profile
    options = {
        "every_n_batches": 2,
        "skip": 0,
        "peak_tflops": 1.0,
        "trace": {"start": 2, "steps": 2},
    }


def found_in(directory: Path) -> dict[str, Any]:
    """What the file says."""
    content = json.loads((directory / "profile.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def hooks_in(directory: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Its rows, by hook and plugin."""
    return {(row["hook"], row["plugin"]): row for row in found_in(directory)["hooks"]}


def named(run: Run, event: str) -> list[dict[str, object]]:
    """The events of one kind."""
    return [entry for entry in events_of(run) if entry["event"] == event]


@define(eq=False)
class Slow:
    """Batches that the clock says to take 30 ns, the first of an epoch 50."""

    clock: Clock
    n_samples: int = 8
    batch_size: int = 2
    n_batches: int = 4

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[Tensor]:
        """Take the time."""
        self.clock.spend(20)
        for n in range(self.n_batches)[start:stop]:
            self.clock.spend(30)
            yield torch.full((2,), float(n))


@define(eq=False)
class Spending:
    """Lets time pass in hooks, also in one that calls another."""

    clock: Clock

    @hookimpl
    def before_batch(self) -> None:
        """10 ns."""
        self.clock.spend(10)

    @hookimpl(wrapper=True)
    def train_step(self) -> Iterator[None]:
        """55 and 5 ns around learning, which takes the clock none."""
        self.clock.spend(55)
        answer = yield
        self.clock.spend(5)
        return answer

    @hookimpl
    def validate(self) -> None:
        """1000 ns."""
        self.clock.spend(1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What steps and hooks are measured with."""
    made = Clock()
    for module in (hook_times, step_times):
        monkeypatch.setattr(module, "now", made)
    return made


def test_a_run_by_the_clock(tmp_path: Path, clock: Clock) -> None:
    """Two epochs of four steps: 30 ns wait (50 in the first of each), 10 before, 60 in train_step.

    Seven of them count: six of 100 ns and one of 120.
    """
    data = {"train": Slow(clock), "validation": TinyData(2)}
    task = TinyTask(data=data)  # type: ignore[arg-type]
    run = fake_run(tmp_path, Spending(clock), Profile(skip=1), task=task, max_epochs=2)
    train(run)
    found = found_in(tmp_path)
    speed = found["speed"]
    assert (found["step"], found["seen"], speed["steps"]["steps"]) == (8, 8, 7)
    assert speed["steps"]["mean"] == pytest.approx((6 * 100 + 120) / 7 * 1e-9)
    assert speed["steps"]["median"] == pytest.approx(100e-9)
    assert speed["steps"]["wait"] == pytest.approx((6 * 30 + 50) / 7 * 1e-9)
    assert speed["samples_per_second"] == pytest.approx(2 * 7 / 720e-9)
    assert speed["compute_share"] == pytest.approx(7 * 60 / 720)
    assert speed["verdict"] == "data-bound"
    phases = found["phases"]
    assert phases["waiting for batches"] == pytest.approx((6 * 30 + 2 * 50) * 1e-9)
    assert phases["training"] == pytest.approx(8 * 70e-9)
    assert phases["validation"] == pytest.approx(2000e-9)
    assert sum(phases.values()) == pytest.approx(found["wall"])
    row = hooks_in(tmp_path)["train_step", "spending"]
    assert (row["calls"], row["longest"]) == (8, pytest.approx(55e-9))
    assert row["own"] == pytest.approx(8 * 60e-9)
    assert found["facts"]["data wait"].endswith("32 % of it")


def test_every_hook_that_fired_is_there_as_often(tmp_path: Path) -> None:
    """Eight batches of two epochs, counted by a recorder; before_run and shutdown too, with its own."""
    recorder = Recorder()
    train(fake_run(tmp_path, recorder, EMA(), Profile(), Checkpoint(), max_epochs=2))
    calls = {hook: row["calls"] for (hook, plugin), row in hooks_in(tmp_path).items() if plugin == "recorder"}
    timed = [name for name in recorder.names if name != "make_optimization"]  # it came before
    assert calls == {name: timed.count(name) for name in timed}
    others = hooks_in(tmp_path)
    assert others["after_batch", "ema"]["calls"] == 16
    assert others["validate", "ema"]["calls"] == 2
    assert others["shutdown", "checkpoint"]["calls"] == 1


def test_logged_every_so_many_batches(tmp_path: Path) -> None:
    """The steps since the last log; memory always, times once there is a step that counts."""
    recorder = Recorder()
    train(fake_run(tmp_path, recorder, Profile(every_n_batches=3, skip=4), max_epochs=2))
    assert list(recorder.metrics("profile/host_gib")) == [3, 6, 9, 12, 15]
    shares = recorder.metrics("profile/data_wait_share")
    assert list(shares) == list(recorder.metrics("profile/step_seconds")) == [6, 9, 12, 15]
    assert all(isinstance(share, float) and 0 < share < 1 for share in shares.values())


def test_nothing_is_logged_where_it_is_not_wanted(tmp_path: Path) -> None:
    """The table comes all the same."""
    recorder = Recorder()
    train(fake_run(tmp_path, recorder, Profile(every_n_batches=0)))
    assert not [key for _, metrics in recorder.logged for key in metrics if key.startswith("profile/")]
    assert found_in(tmp_path)["seen"] == 8


@define(eq=False)
class Net:
    """A small net with dropout and batch statistics."""

    model: nn.Module = field(init=False)
    data: Mapping[str, TinyData] = field(
        factory=lambda: {"train": TinyData(14, 3), "validation": TinyData(4, 2)}
    )

    @hookimpl
    def make_task(self, run: Run) -> Net:
        """Weights by the run's seed."""
        torch.manual_seed(run.seed("model"))
        self.model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
        return self

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """Learn the square, with noise."""
        x = batch[:, None] / 14
        return {"loss": (self.model(x) - x.square() + 0.1 * torch.randn_like(x)).square().mean()}


@define(eq=False)
class StopAt:
    """Asks the run to stop after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Stop there."""
        if run.progress.step == self.step:
            run.stop("enough")


def test_what_is_learnt_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """Without a profile, with one, and with one that traces and counts, stopped in the middle and resumed."""

    def run_in(name: str, *extra: object) -> Run:
        run = fake_run(tmp_path / name, Net(), EMA(decay=0.8), *extra, Checkpoint(), max_epochs=3)
        train(run)
        return run

    run_in("plain")
    run_in("profiled", Profile(skip=0))
    thorough = {"skip": 0, "every_n_batches": 1}
    run_in("resumed", Profile(**thorough, trace=TraceOptions(3, 2)), StopAt(7))  # type: ignore[arg-type]
    run_in("resumed", Profile(**thorough, trace=TraceOptions(1, 2)))  # type: ignore[arg-type]
    assert found_in(tmp_path / "resumed")["seen"] == 8
    assert found_in(tmp_path / "resumed")["arithmetic"]["flops_per_step"] > 0
    plain, *others = (
        files.load(tmp_path / name / "checkpoints" / "latest.ckpt")
        for name in ("plain", "profiled", "resumed")
    )
    for other in others:
        assert other["progress"] == plain["progress"]
        for part in ("model", "optimization"):
            torch.testing.assert_close(other[part], plain[part], rtol=0, atol=0)
        averages = [state["plugins"]["ema"]["averages"] for state in (other, plain)]  # type: ignore[index]
        torch.testing.assert_close(*averages, rtol=0, atol=0)


def test_utilisation_of_a_peak_that_is_given(tmp_path: Path) -> None:
    """Operations by the mean of a step by the peak: of batches of three, 6 of the first layer and 6·8 in all of it.

    Forward 2·3·(8 + 8), backward as many for the weights and 2·3·8 for what lies before the second layer.
    """
    train(fake_run(tmp_path, Net(), Profile(skip=0, peak_tflops=0.5)))
    found = found_in(tmp_path)
    flops = 2 * 3 * (2 * (8 + 8) + 8)
    assert found["arithmetic"] == {"flops_per_step": flops, "peak": 0.5e12, "note": "profile.peak_tflops"}
    assert found["speed"]["mfu"] == pytest.approx(flops / found["speed"]["steps"]["mean"] / 0.5e12)


def test_a_peak_that_is_measured(tmp_path: Path) -> None:
    """A share of what a product reached, which is more than what a tiny net does."""
    train(fake_run(tmp_path, Net(), Profile(skip=0)))
    found = found_in(tmp_path)
    assert found["arithmetic"]["note"] == "what a large matrix product reached here"
    assert 0 < found["speed"]["mfu"] < 1


@define(eq=False)
class StopLate:
    """Asks the run to stop as if a signal had come."""

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """In the last batch."""
        if run.progress.step == 5:
            run.stop("SIGTERM", 143)


def test_a_run_that_has_to_go_is_not_held_up(tmp_path: Path) -> None:
    """It tells what it has, and measures nothing more."""
    run = fake_run(tmp_path, Net(), StopLate(), Profile(skip=0))
    train(run)
    found = found_in(tmp_path)
    assert found["seen"] == 5
    assert found["arithmetic"]["peak"] is None
    assert found["facts"]["MFU"] == "not measured: the run was stopped, or too short"


def test_a_step_without_products_has_no_utilisation(tmp_path: Path) -> None:
    """As that of the tiny task, whose model is one number."""
    train(fake_run(tmp_path, Profile(skip=0)))
    assert "no product and no convolution" in found_in(tmp_path)["facts"]["MFU"]


@define(eq=False)
class OnceOnly(TinyData):
    """Data that can be read for one epoch, and not again."""

    read: bool = False

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[Tensor]:
        """Read."""
        if self.read:
            raise OSError("the disk is gone")
        self.read = True
        yield from super().batches(epoch, start, stop, order)


def test_a_run_that_ended_well_does_not_fail_for_its_profile(tmp_path: Path) -> None:
    """Where a batch cannot be read again, the profile says so."""
    data = {"train": OnceOnly(8), "validation": TinyData(2)}
    train(fake_run(tmp_path, Profile(skip=0), task=TinyTask(data=data)))
    assert found_in(tmp_path)["facts"]["MFU"] == "not measured: OSError('the disk is gone')"


@define(eq=False)
class FailAt:
    """Breaks down after a batch."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """Fail there."""
        if run.progress.step == self.step:
            raise RuntimeError("broken")


def test_after_an_error_there_is_no_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is the message; the hooks are as they were, also where it happened in a trace."""
    run = fake_run(tmp_path, Profile(trace=TraceOptions(2, 20)), FailAt(5))
    functions = [impl.function for impl in run.hook.after_batch.get_hookimpls()]
    with pytest.raises(RuntimeError, match="broken"):
        train(run)
    assert [impl.function for impl in run.hook.after_batch.get_hookimpls()] == functions
    assert not (tmp_path / "profile.json").exists()
    assert capsys.readouterr().err == ""
    train(fake_run(tmp_path / "other", Profile(trace=TraceOptions(2, 2))))  # the trace was ended
    assert len(traces_in(tmp_path / "other")) == 1


def test_a_run_without_a_batch(tmp_path: Path) -> None:
    """What its hooks have taken is told."""
    run = fake_run(tmp_path, Profile())
    run.stop("nothing to do")
    train(run)
    found = found_in(tmp_path)
    assert (found["speed"], found["to_first_batch"], found["seen"]) == (None, None, 0)
    assert ("shutdown", "profile") not in hooks_in(tmp_path)  # it is still going on
    assert found["facts"]["MFU"] == "not measured: the run was stopped, or too short"


def test_it_is_shown_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As text where there is no terminal, and where it is written."""
    run = fake_run(tmp_path, Profile())
    train(run)
    text = capsys.readouterr().err
    assert text.startswith("profile of steps up to 8\n")
    assert "\ntrain_step  " in text
    (event,) = named(run, "profile.written")
    assert event["path"] == str(tmp_path / "profile.json")


def test_where_it_cannot_be_written_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the run ends well."""
    (tmp_path / "profile.json").mkdir()
    run = fake_run(tmp_path, Profile())
    train(run)
    assert "train_step" in capsys.readouterr().err
    assert named(run, "profile.unwritten")


def traces_in(directory: Path) -> dict[str, list[str]]:
    """The names of everything in each trace."""
    return {
        path.name: [event["name"] for event in json.loads(gzip.open(path).read())["traceEvents"]]
        for path in sorted((directory / "profile").iterdir())
    }


def test_a_trace_of_some_steps(tmp_path: Path) -> None:
    """Of the third and the fourth batch, with hooks by name and operations; their times do not count."""
    run = fake_run(tmp_path, Profile(skip=1, trace=TraceOptions(start=2, steps=2)))
    train(run)
    ((name, names),) = traces_in(tmp_path).items()
    assert name == "trace_step_00000002.json.gz"
    assert names.count("train_step optimizationplugin") == 2
    assert "aten::square" in names or "aten::pow" in names
    (event,) = named(run, "trace.written")
    assert (event["first_step"], event["steps"]) == (2, 2)
    found = found_in(tmp_path)
    assert (found["seen"], found["speed"]["steps"]["steps"]) == (8, 8 - 1 - 2)


def test_a_trace_is_taken_where_somebody_asks_for_it(tmp_path: Path) -> None:
    """By a file that is looked for at each log; it is taken away, so it asks once."""
    (tmp_path / "trace.request").touch()
    train(fake_run(tmp_path, Profile(every_n_batches=3, trace=TraceOptions(steps=1)), max_epochs=2))
    assert list(traces_in(tmp_path)) == ["trace_step_00000003.json.gz"]
    assert not (tmp_path / "trace.request").exists()


def test_a_trace_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    """Where a file is in its directory's place."""
    (tmp_path / "profile").touch()
    run = fake_run(tmp_path, Profile(trace=TraceOptions(start=2)))
    train(run)
    assert run.progress.step == 8
    assert named(run, "trace.unwritten")


def test_a_trace_that_cannot_begin_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch's profiler refuses, as another tool that profiles may make it do."""

    def refuse(_: object) -> None:
        raise RuntimeError("in use")

    monkeypatch.setattr(torch.profiler.profile, "start", refuse)
    run = fake_run(tmp_path, Profile(trace=TraceOptions(start=2)))
    train(run)
    assert run.progress.step == 8
    assert named(run, "trace.unwritten")
    assert found_in(tmp_path)["speed"] is None  # eight steps: none beyond those that are skipped


def test_a_trace_that_the_end_of_the_run_cuts_short_is_written(tmp_path: Path) -> None:
    """It holds less than was asked for, and says so."""
    task = TinyTask(data={"train": TinyData(8)})
    run = fake_run(tmp_path, Profile(trace=TraceOptions(start=6, steps=5)), StopAt(7), task=task)
    train(run)
    ((_, names),) = traces_in(tmp_path).items()
    assert names.count("train_step optimizationplugin") == 1
    (event,) = named(run, "trace.written")
    assert (event["first_step"], event["steps"]) == (6, 1)


@pytest.mark.parametrize("validated", [True, False])
def test_a_trace_ends_before_whatever_lies_between_epochs(tmp_path: Path, *, validated: bool) -> None:
    """Begun one batch before the end, it holds that batch alone: no validation, and no hook of the next epoch."""

    class Other:
        @hookimpl
        def before_epoch(self) -> None:
            """Something that takes long."""

    splits = {"train": TinyData(8)} | ({"validation": TinyData(2)} if validated else {})
    profile = Profile(skip=0, trace=TraceOptions(start=7, steps=5))
    run = fake_run(tmp_path, Other(), EMA(), profile, task=TinyTask(data=splits), max_epochs=2)
    train(run)
    ((_, names),) = traces_in(tmp_path).items()
    assert names.count("train_step optimizationplugin") == 1
    if validated:
        assert not [
            name
            for name in names
            if name in {"validate ema", "validate validationplugin", "validate validation"}
        ]
    assert "before_epoch other" not in names
    assert [event["steps"] for event in named(run, "trace.written")] == [1]
    assert found_in(tmp_path)["speed"]["steps"]["steps"] == 15


def test_a_request_takes_no_configured_trace_away(tmp_path: Path) -> None:
    """Asked for after the second batch, and configured after the third, while the first one is still being taken."""
    (tmp_path / "trace.request").touch()
    train(fake_run(tmp_path, Profile(every_n_batches=2, trace=TraceOptions(start=3, steps=2))))
    assert list(traces_in(tmp_path)) == ["trace_step_00000002.json.gz", "trace_step_00000004.json.gz"]


@define(eq=False)
class Told(HostOnly):
    """What is told to whoever measures a device."""

    told: list[str] = field(factory=list)

    def begin(self) -> None:
        """A step begins."""
        self.told.append("step")

    def interrupt(self) -> None:
        """Something else comes."""
        self.told.append("other")


def test_what_is_no_step_is_told_to_whoever_measures_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch of four batches begins with something else, and a validation lies in its middle and at its end."""
    told = Told()
    monkeypatch.setattr(device_times, "times_of", lambda _: told)
    task = TinyTask(data={"train": TinyData(4), "validation": TinyData(2)})
    train(fake_run(tmp_path, Profile(skip=0), task=task, max_epochs=2, validate_every="2 batches"))
    assert told.told == ["other", "step", "step", "other", "step", "step", "other"] * 2


@define(eq=False)
class Counting(TinyTask):
    """Counts how often its loss is wanted."""

    losses: int = 0

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """Count."""
        self.losses += 1
        return TinyTask.loss(self, batch)


def profiled(ranks: Ranks, directory: Path) -> tuple[int, int, bool, bool]:
    """Train on this rank; tell how many steps and losses there were, and whether profile and trace were told of."""
    task = Counting(data={"train": TinyData(8, 4), "validation": TinyData(4, 2)})
    profile = Profile(skip=0, trace=TraceOptions(start=1, steps=1))
    run = fake_run(directory, profile, Distributed(), task=task, max_epochs=2)
    run.ranks = ranks
    train(run)
    told = (bool(named(run, event)) for event in ("profile.written", "trace.written"))
    return run.progress.step, task.losses, *told


def test_two_ranks(tmp_path: Path) -> None:
    """Each measures itself; the first one writes, and knows how fast the other was.

    Only the first looks at one more batch, to count its operations: 4 to train on and 4 to validate before.
    """
    assert on_ranks(2, profiled, tmp_path) == [(4, 9, True, True), (4, 8, False, False)]
    found = found_in(tmp_path)
    assert [rank["rank"] for rank in found["ranks"]] == [0, 1]
    medians = [rank["median"] for rank in found["ranks"]]
    assert medians[0] == found["speed"]["steps"]["median"]
    assert medians[1] > 0
    assert found["facts"]["slowest rank"].startswith(f"{medians.index(max(medians))} of 2")
    assert len(traces_in(tmp_path)) == 1
