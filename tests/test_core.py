"""The loop: what is called when, what is counted, and how it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, evolve, field

from hookloop import hookimpl
from hookloop.core import Progress, Run, merge, prepare, train
from hookloop.errors import HookloopError
from hookloop.manager import register
from hookloop.testing import Recorder, TinyData, TinyPlugin, TinyTask, events_of, fake_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def task(batches: int = 3, noise: float = 0.0) -> TinyTask:
    """Make a task with so many training batches of one sample each."""
    return TinyTask(data={"train": TinyData(batches), "validation": TinyData(2)}, noise=noise)


def at(hook: str, action: Callable[[Run], object], step: int | None = None) -> object:
    """Make a plugin that does *action* in *hook*, at one step or at every one."""

    class Acting:
        @hookimpl(specname=hook)
        def act(self, run: Run) -> None:
            if step is None or run.progress.step == step:
                action(run)

    return Acting()


@define(eq=False)
class Ending:
    """Keeps what ``shutdown`` was told."""

    errors: list[BaseException | None] = field(factory=list)

    @hookimpl
    def shutdown(self, error: BaseException | None) -> None:
        """Keep it."""
        self.errors.append(error)


@define(eq=False)
class Seen:
    """Keeps the batches that were learnt."""

    batches: list[float] = field(factory=list)

    @hookimpl
    def after_batch(self, batch: torch.Tensor) -> None:
        """Keep it; batches hold one sample."""
        self.batches.append(batch.item())


def fail(_: Run) -> None:
    """Raise what nobody expects."""
    raise ZeroDivisionError("on purpose")


def weight(run: Run) -> float:
    """Look up the tiny model's one weight."""
    return run.task.model.get_parameter("weight").item()


def test_golden_firing_order(tmp_path: Path) -> None:
    """Two epochs of three batches call exactly these hooks at exactly this progress (epoch, batch, step)."""
    recorder = Recorder()
    train(fake_run(tmp_path, recorder, task=task(3), max_epochs=2))
    assert recorder.calls == [
        ("make_optimization", (0, 0, 0)),
        ("before_run", (0, 0, 0)),
        ("before_epoch", (0, 0, 0)),
        ("before_batch", (0, 0, 0)),
        ("train_step", (0, 0, 0)),
        ("after_batch", (0, 1, 1)),
        ("before_batch", (0, 1, 1)),
        ("train_step", (0, 1, 1)),
        ("after_batch", (0, 2, 2)),
        ("before_batch", (0, 2, 2)),
        ("train_step", (0, 2, 2)),
        ("after_batch", (0, 3, 3)),
        ("validate", (0, 3, 3)),
        ("infer", (0, 3, 3)),
        ("log", (1, 0, 3)),
        ("after_evaluation", (1, 0, 3)),
        ("after_epoch", (1, 0, 3)),
        ("log", (1, 0, 3)),  # the rate
        ("before_epoch", (1, 0, 3)),
        ("before_batch", (1, 0, 3)),
        ("train_step", (1, 0, 3)),
        ("after_batch", (1, 1, 4)),
        ("before_batch", (1, 1, 4)),
        ("train_step", (1, 1, 4)),
        ("after_batch", (1, 2, 5)),
        ("before_batch", (1, 2, 5)),
        ("train_step", (1, 2, 5)),
        ("after_batch", (1, 3, 6)),
        ("validate", (1, 3, 6)),
        ("infer", (1, 3, 6)),
        ("log", (2, 0, 6)),
        ("after_evaluation", (2, 0, 6)),
        ("after_epoch", (2, 0, 6)),
        ("log", (2, 0, 6)),  # the rate
        ("shutdown", (2, 0, 6)),
    ]


def test_resumes_inside_an_epoch_at_the_right_batch(tmp_path: Path) -> None:
    """A run restored after two of three batches learns the third one only, then ends the epoch."""
    restore = at("before_run", lambda run: setattr(run, "progress", Progress(epoch=1, batch=2, step=5)))
    recorder, seen = Recorder(), Seen()
    train(fake_run(tmp_path, restore, recorder, seen, task=task(3), max_epochs=2))
    assert seen.batches == [2.0]
    assert recorder.calls[2:] == [
        ("before_epoch", (1, 2, 5)),
        ("before_batch", (1, 2, 5)),
        ("train_step", (1, 2, 5)),
        ("after_batch", (1, 3, 6)),
        ("validate", (1, 3, 6)),
        ("infer", (1, 3, 6)),
        ("log", (2, 0, 6)),
        ("after_evaluation", (2, 0, 6)),
        ("after_epoch", (2, 0, 6)),
        ("log", (2, 0, 6)),  # the rate
        ("shutdown", (2, 0, 6)),
    ]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    """With noise in the loss, stopping after any batch and going on gives the same weight bit for bit."""
    whole = fake_run(tmp_path, task=task(3, noise=1.0), max_epochs=2)
    train(whole)
    shared = task(3, noise=1.0)
    first = fake_run(
        tmp_path, at("after_batch", lambda run: run.stop("pause"), stop), task=shared, max_epochs=2
    )
    train(first)
    assert first.progress.step == stop
    second = fake_run(tmp_path, task=shared, max_epochs=2)
    second.progress = first.progress
    train(second)
    assert weight(second) == weight(whole)


def test_all_epochs_done_tells_no_error(tmp_path: Path) -> None:
    """A run that finishes has no reason to stop and no error."""
    ending = Ending()
    run = fake_run(tmp_path, ending, task=task(3), max_epochs=2)
    train(run)
    assert (ending.errors, run.stopping, run.progress) == ([None], None, Progress(2, 0, 6))


def test_stop_in_a_batch(tmp_path: Path) -> None:
    """The batch at hand is finished and told of; nothing is validated, the epoch is not counted."""
    recorder, ending = Recorder(), Ending()
    stop = at("train_step", lambda run: run.stop("enough"), step=1)
    run = fake_run(tmp_path, stop, recorder, ending, task=task(3))
    train(run)
    assert recorder.names.count("after_batch") == 2
    assert not {"validate", "infer", "log", "after_epoch"} & set(recorder.names)
    assert (ending.errors, run.progress) == ([None], Progress(0, 2, 2))


def test_stop_while_validating_leaves_the_epoch_uncounted(tmp_path: Path) -> None:
    """What was validated is dropped, nothing is inferred, logged or counted."""
    recorder, ending = Recorder(), Ending()
    run = fake_run(tmp_path, at("validate", lambda run: run.stop("now")), recorder, ending, task=task(3))
    train(run)
    assert not {"infer", "log", "after_epoch"} & set(recorder.names)
    assert (ending.errors, run.progress) == ([None], Progress(0, 3, 3))


def test_stop_while_inferring_leaves_the_epoch_uncounted(tmp_path: Path) -> None:
    """As while validating."""
    recorder = Recorder()
    run = fake_run(tmp_path, at("infer", lambda run: run.stop("now")), recorder, task=task(3))
    train(run)
    assert not {"log", "after_epoch"} & set(recorder.names)
    assert run.progress == Progress(0, 3, 3)


def test_resumed_after_a_stopped_validation_only_validates(tmp_path: Path) -> None:
    """No batch is learnt again, the validation is done once, the epoch is counted."""
    recorder = Recorder()
    run = fake_run(tmp_path, recorder, task=task(3))
    run.progress = Progress(0, 3, 3)
    train(run)
    expected = ["before_epoch", "validate", "infer", "log", "after_evaluation", "after_epoch"]
    assert recorder.names[2:-2] == expected


def test_an_exception_is_told_and_raised(tmp_path: Path) -> None:
    """The batch that fails is not counted, nothing else is called, and shutdown gets the very error."""
    recorder, ending = Recorder(), Ending()
    run = fake_run(tmp_path, at("train_step", fail, step=1), recorder, ending, task=task(3))
    with pytest.raises(ZeroDivisionError) as raised:
        train(run)
    assert ending.errors == [raised.value]
    assert recorder.names.count("after_batch") == 1
    assert not {"validate", "infer", "log", "after_epoch"} & set(recorder.names)
    assert run.progress == Progress(0, 1, 1)


def test_an_exception_while_getting_ready_is_told_too(tmp_path: Path) -> None:
    """Whatever was acquired before the failure is told to shut down."""
    ending = Ending()
    with pytest.raises(ZeroDivisionError) as raised:
        train(fake_run(tmp_path, ending, at("before_run", fail)))
    assert ending.errors == [raised.value]


def test_a_keyboard_interrupt_is_told_too(tmp_path: Path) -> None:
    """Errors that are no exceptions end a run just as well."""

    def interrupt(_: Run) -> None:
        raise KeyboardInterrupt

    ending = Ending()
    with pytest.raises(KeyboardInterrupt) as raised:
        train(fake_run(tmp_path, ending, at("before_batch", interrupt)))
    assert ending.errors == [raised.value]


def test_the_first_reason_to_stop_wins(tmp_path: Path) -> None:
    """Later requests change neither the reason nor the code."""
    run = fake_run(tmp_path)
    run.stop("first", 75)
    run.stop("second", 143)
    assert run.stopping is not None
    assert (run.stopping.why, run.stopping.code) == ("first", 75)


def test_shutdown_reaches_every_plugin_although_one_raises(tmp_path: Path) -> None:
    """The plugins around the one that fails are told, and then its failure is raised."""
    before, after = Ending(), Ending()
    with pytest.raises(ZeroDivisionError):
        train(fake_run(tmp_path, before, at("shutdown", fail), after))
    assert (before.errors, after.errors) == ([None], [None])


def test_what_ended_the_run_is_raised_not_what_failed_afterwards(tmp_path: Path) -> None:
    """A failing shutdown hides no error; it is an event that names the plugin."""

    def other(_: Run) -> None:
        raise LookupError("the first one")

    run = fake_run(tmp_path, at("shutdown", fail), at("before_epoch", other))
    with pytest.raises(LookupError):
        train(run)
    (event,) = (event for event in events_of(run) if event["event"] == "shutdown.failed")
    assert event["plugin"] == "acting"
    assert "on purpose" in str(event["error"])


def test_shutdown_follows_the_firing_order(tmp_path: Path) -> None:
    """The listing order, except for those that ask to be first or last."""
    calls: list[str] = []

    class Last:
        @hookimpl(trylast=True)
        def shutdown(self) -> None:
            calls.append("last")

    class First:
        @hookimpl(tryfirst=True)
        def shutdown(self) -> None:
            calls.append("first")

    listed = [at("shutdown", lambda _, name=name: calls.append(name)) for name in "ab"]  # type: ignore[misc]
    train(fake_run(tmp_path, Last(), *listed, First()))
    assert calls == ["first", "a", "b", "last"]


def test_cleanup_unwinds_after_shutdown(tmp_path: Path) -> None:
    """What is released last-in-first-out is still there for every plugin's shutdown, even a failing one."""
    calls: list[str] = []

    def acquire(run: Run) -> None:
        run.cleanup.callback(calls.append, "one released")
        run.cleanup.callback(calls.append, "two released")

    plugins = (
        at("before_run", acquire),
        at("shutdown", lambda _: calls.append("shutdown")),
        at("shutdown", fail),
    )
    with pytest.raises(ZeroDivisionError):
        train(fake_run(tmp_path, *plugins))
    assert calls == ["shutdown", "two released", "one released"]


def test_two_task_providers_are_an_error_naming_both(tmp_path: Path) -> None:
    """Nothing is trained by whoever happened to come first."""

    class Rival(TinyPlugin):
        pass

    with pytest.raises(HookloopError, match=r"found tinyplugin, rival, expected exactly one"):
        prepare(fake_run(tmp_path, TinyPlugin(), Rival()))


def test_no_task_provider_is_an_error(tmp_path: Path) -> None:
    """It says which option to use."""
    run = fake_run(tmp_path)
    others = {name: plugin for name, plugin in run.plugins.items() if name != "tinyplugin"}
    with pytest.raises(HookloopError, match=r"make a task: found none, expected exactly one; .*--plugins"):
        train(evolve(run, plugins=others, manager=register(others)))


def test_no_optimization_is_an_error(tmp_path: Path) -> None:
    """It says what was left out."""
    run = fake_run(tmp_path)
    others = {name: plugin for name, plugin in run.plugins.items() if name != "optimizationplugin"}
    with pytest.raises(HookloopError, match=r"found none; leave out no:optimization"):
        train(evolve(run, plugins=others, manager=register(others)))


def test_two_answers_under_one_key_are_an_error(tmp_path: Path) -> None:
    """Neither of two plugins that answer val/loss is believed."""

    class Rival:
        @hookimpl
        def validate(self) -> dict[str, float]:
            return {"val/loss": 0.0}

    with pytest.raises(HookloopError, match=r"answered by two plugins: val/loss; expected one each"):
        train(fake_run(tmp_path, Rival()))


def test_an_answer_of_infer_under_a_key_of_validate_is_an_error(tmp_path: Path) -> None:
    """Keys are unique among both hooks."""

    class Rival:
        @hookimpl
        def infer(self) -> dict[str, float]:
            return {"val/loss": 0.0}

    with pytest.raises(HookloopError, match="val/loss"):
        train(fake_run(tmp_path, Rival()))


def test_merge_keeps_every_answer() -> None:
    """Different keys go side by side."""
    assert merge([{"a": 1.0}, {}, {"b": 2.0}]) == {"a": 1.0, "b": 2.0}


def test_metrics_are_logged_and_told(tmp_path: Path) -> None:
    """``after_epoch`` gets what was validated and inferred; the log adds the epoch and its times."""
    told: list[dict[str, float]] = []

    class Asked:
        @hookimpl
        def infer(self) -> dict[str, float]:
            return {"inference/error": 3.0}

        @hookimpl
        def after_epoch(self, metrics: dict[str, float]) -> None:
            told.append(metrics)

    recorder = Recorder()
    train(fake_run(tmp_path, Asked(), recorder, task=task(1)))
    (step, logged), _ = recorder.logged
    # The one batch is the sample 0, so the weight stays 0: the mean of (0 - 0)² and (0 - 1)².
    assert (told[0]["val/loss"], told[0]["inference/error"]) == (0.5, 3.0)
    assert step == 1
    assert logged.keys() - told[0].keys() == {"epoch", "epoch/train_seconds", "epoch/total_seconds"}
    assert told[0].keys() <= logged.keys()


def test_inference_is_not_timed_where_nobody_infers(tmp_path: Path) -> None:
    """A time of nothing would only be noise."""
    recorder = Recorder()
    train(fake_run(tmp_path, recorder))
    assert recorder.metrics("epoch/validation_seconds")
    assert not recorder.metrics("epoch/inference_seconds")


def test_validates_every_second_epoch_and_the_last(tmp_path: Path) -> None:
    """Of five epochs of one batch the second, fourth and fifth are validated."""
    recorder = Recorder()
    train(fake_run(tmp_path, recorder, task=task(1), max_epochs=5, validate_every="2 epochs"))
    assert list(recorder.metrics("val/loss")) == [2, 4, 5]
    assert list(recorder.metrics("epoch")) == [1, 2, 3, 4, 5]


def test_validates_every_so_many_batches(tmp_path: Path) -> None:
    """Every second batch of three an epoch, across its end, and once more after the last; the metrics are told."""
    run = fake_run(tmp_path, recorder := Recorder(), task=task(3), max_epochs=3, validate_every="2 batches")
    train(run)
    evaluated = [at for name, at in recorder.calls if name == "after_evaluation"]
    assert evaluated == [(0, 2, 2), (1, 1, 4), (2, 0, 6), (2, 2, 8), (3, 0, 9)]
    assert list(recorder.metrics("val/loss")) == [2, 4, 6, 8, 9]


def test_an_evaluation_within_an_epoch_is_finished_on_resume(tmp_path: Path) -> None:
    """Stopped while it was at it, the resumed run evaluates before it trains; evaluated, it does not again."""
    for evaluated, expected in ((0, [2, 4]), (2, [4])):
        run = fake_run(tmp_path, recorder := Recorder(), task=task(5), validate_every="2 batches")
        run.progress = Progress(epoch=0, batch=2, step=2, evaluated=evaluated)
        train(run)
        assert list(recorder.metrics("val/loss")) == [*expected, 5]


def test_a_stop_while_evaluating_within_an_epoch_leaves_it_undone(tmp_path: Path) -> None:
    """It is neither counted nor told."""

    class Stopping:
        @hookimpl
        def validate(self, run: Run) -> None:
            run.stop("enough")

    run = fake_run(tmp_path, recorder := Recorder(), Stopping(), task=task(5), validate_every="2 batches")
    train(run)
    assert (run.progress.step, run.progress.evaluated) == (2, 0)
    assert "after_evaluation" not in recorder.names


def test_stopped_as_an_epoch_begins_trains_nothing(tmp_path: Path) -> None:
    """A plugin that asks for it in ``before_epoch`` is heard at once."""

    class Stopping:
        @hookimpl
        def before_epoch(self, run: Run) -> None:
            run.stop("enough")

    train(run := fake_run(tmp_path, Stopping()))
    assert run.progress.step == 0


def test_a_segment_ends_as_a_success(tmp_path: Path) -> None:
    """Segments of two epochs end after 2, 4 and 5 of five, without a reason to stop."""
    ends = []
    progress = Progress()
    for _ in range(3):
        run = fake_run(tmp_path, task=task(1), max_epochs=5, segment_epochs=2)
        run.progress = progress
        train(run)
        ends.append((progress.epoch, run.stopping))
    assert ends == [(2, None), (4, None), (5, None)]


def test_evaluates_before_training_for_the_log_only(tmp_path: Path) -> None:
    """At step 0 the metrics of the untrained model are logged, and no epoch is counted for it."""
    recorder = Recorder()
    train(fake_run(tmp_path, recorder, task=task(1), max_epochs=1, evaluate_before_training=True))
    step, metrics = recorder.logged[0]
    assert (step, metrics["epoch"], metrics["val/loss"]) == (0, 0, 0.5)  # the mean of 0² and 1²
    assert recorder.names[2:6] == ["validate", "infer", "log", "before_epoch"]
    assert recorder.names.count("after_epoch") == 1


def test_a_resumed_run_does_not_evaluate_before_training(tmp_path: Path) -> None:
    """Only at step 0 is anything untrained."""
    recorder = Recorder()
    run = fake_run(tmp_path, recorder, task=task(1), max_epochs=2, evaluate_before_training=True)
    run.progress = Progress(1, 0, 1)
    train(run)
    assert {step for step, _ in recorder.logged} == {2}


def test_a_stop_while_evaluating_before_training_logs_nothing(tmp_path: Path) -> None:
    """What was measured halfway is dropped, and nothing is trained."""
    recorder = Recorder()
    stop = at("validate", lambda run: run.stop("now"))
    run = fake_run(tmp_path, stop, recorder, evaluate_before_training=True)
    train(run)
    assert (recorder.logged, run.progress) == ([], Progress())


@pytest.mark.parametrize(("limit", "age"), [("1h", 3600.0), ("0s", 0.0)])
def test_the_time_limit_stops_with_code_75(tmp_path: Path, limit: str, age: float) -> None:
    """The batch during which the limit passes is finished; then the run asks to be queued again."""
    run = fake_run(tmp_path, task=task(3), time_limit=limit)
    run.started = time.monotonic() - age
    train(run)
    assert run.stopping is not None
    assert (run.stopping.code, run.progress) == (75, Progress(0, 1, 1))
    assert limit in run.stopping.why


def test_a_time_limit_that_is_far_stops_nothing(tmp_path: Path) -> None:
    """A run shorter than its limit finishes."""
    run = fake_run(tmp_path, time_limit="1d")
    train(run)
    assert run.stopping is None


def test_a_run_stopped_before_it_begins_trains_nothing(tmp_path: Path) -> None:
    """A request during ``before_run`` is honoured before the first epoch."""
    recorder = Recorder()
    train(fake_run(tmp_path, at("before_run", lambda run: run.stop("no")), recorder))
    assert recorder.names == ["make_optimization", "before_run", "shutdown"]


def test_seeds_are_pure_functions(tmp_path: Path) -> None:
    """Another run with the same seed draws the same, whatever its progress."""
    one, two = fake_run(tmp_path, seed=5), fake_run(tmp_path, seed=5)
    two.progress = Progress(3, 1, 7)
    assert one.seed("sample", 4, 2) == two.seed("sample", 4, 2)


@pytest.mark.parametrize("start", [0, 61])
def test_every_step_is_seeded_by_its_own_number(tmp_path: Path, start: int) -> None:
    """Torch's generator holds the seed of the step, over more steps than are worked out at once, and after a resume."""
    found: list[int] = []
    task = TinyTask(data={"train": TinyData(150)})
    run = fake_run(tmp_path, at("after_batch", lambda _: found.append(torch.initial_seed())), task=task)
    run.progress = Progress(0, start, start)
    train(run)
    assert found == [run.seed("train", step) for step in range(start, 150)]


def test_going_back_to_a_step_seeds_as_before(tmp_path: Path) -> None:
    """What tries steps and goes back, as ``lr_tuning`` does, draws the same noise again."""
    run = fake_run(tmp_path)
    prepare(run)
    found = []
    for step in (5, 100, 5):
        run.progress.step = step
        run.hook.train_step(run=run, batch=torch.zeros(1))
        found.append(torch.initial_seed())
    assert found == [run.seed("train", step) for step in (5, 100, 5)]


def test_seeds_differ_by_run_purpose_and_counters(tmp_path: Path) -> None:
    """No two of these draws share a seed, though their numbers are made of the same digits."""
    zero, one = fake_run(tmp_path, seed=0), fake_run(tmp_path, seed=1)
    counters = [(), (0,), (1,), (11,), (1, 1), (1, 11), (11, 1)]
    seeds = {run.seed(what, *n) for run in (zero, one) for what in ("train", "order") for n in counters}
    assert len(seeds) == 2 * 2 * len(counters)


def test_seeds_fit_every_generator(tmp_path: Path) -> None:
    """They are non-negative and have 63 bits, most of which vary."""
    run = fake_run(tmp_path)
    seeds = [run.seed("train", step) for step in range(100)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**60
