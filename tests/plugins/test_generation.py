"""Generation while training, with a task whose members are known normal numbers."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import scoringrules  # type: ignore[import-untyped]
import structlog
import torch
from normal_task import NAMES, Learnable, Listener, NormalTask, Splits, generation, inferred, normal, run_with

from hookloop.core import Progress
from hookloop.errors import Diverged, HookloopError
from hookloop.plugins.generation import Generation, InferenceSet
from hookloop.scores.ensemble import EnsembleScore
from hookloop.scores.maps import ErrorMaps
from hookloop.scores.thresholds import ThresholdScore
from hookloop.task import Paired, Window, independent_windows
from hookloop.testing import TinyData

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def test_scores_are_those_of_an_independent_implementation(tmp_path: Path) -> None:
    """CRPS, RMSE and ratios of 5 cases of 4 members, from seeds and arithmetic."""
    task = NormalTask()
    run = run_with(generation(members=4, max_batch=8, figures=0), task, tmp_path)
    metrics = inferred(run)
    members = torch.stack(
        [torch.stack([normal(run.seed("sample", case, k)) for k in range(4)]) for case in range(5)]
    ).double()
    truth = torch.stack([normal(case) for case in range(5)]).double()
    crps = scoringrules.crps_ensemble(truth.numpy(), members.numpy(), m_axis=1, estimator="fair").mean()
    mse = (members.mean(1) - truth).square().mean().item()
    ratio = math.sqrt(5 / 4 * members.var(1).mean().item() / mse)
    mae = truth.abs().mean().item()
    assert metrics is not None
    known = {
        "inference/crps/t2m": crps,
        "inference/crps/wind/u": 2 * crps,
        "inference/crps_relative/t2m": crps / mae,
        "inference/rmse/t2m": math.sqrt(mse),
        "inference/rmse/wind/u": 2 * math.sqrt(mse),
        "inference/spread_skill/t2m": ratio,
        "inference/spread_skill/wind/u": ratio,
        # The second baseline is zero, its truth is doubled.
        "inference/crps_relative/wind/u": crps / mae,
        "inference/crps_relative": crps / mae,
        "inference/error": crps / mae,
        "inference/mae_baseline/t2m": mae,
        "inference/mae_baseline/wind/u": 2 * mae,
        "inference/rmse_baseline/t2m": truth.square().mean().sqrt().item(),
        "inference/rmse_baseline/wind/u": 2 * truth.square().mean().sqrt().item(),
        "inference/bias/t2m": (members.mean(1) - truth).mean().item(),
    }
    assert {key: metrics[key] for key in known} == pytest.approx(known)
    assert metrics["inference/crps_low/t2m"] < crps < metrics["inference/crps_high/t2m"]
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("error", ["crps", "rmse"])
def test_the_error_is_the_chosen_score_averaged_over_variables(error: str, tmp_path: Path) -> None:
    """The second variable is twice the first, so the mean is 1.5 times the first."""
    metrics = inferred(run_with(generation(error=error, figures=0), NormalTask(), tmp_path))  # type: ignore[arg-type]
    assert metrics is not None
    assert metrics["inference/error"] == pytest.approx(1.5 * metrics[f"inference/{error}/t2m"])


@pytest.mark.parametrize(
    ("max_batch", "calls"),
    [
        (1, [((case,), 1) for case in range(5) for _ in range(4)]),
        (3, [((case,), size) for case in range(5) for size in (3, 1)]),
        (9, [((0, 1), 4), ((2, 3), 4), ((4,), 4)]),
        ("auto", [((0, 1, 2, 3, 4), 4)]),
    ],
)
def test_a_member_is_the_same_for_any_batch_size(max_batch: Any, calls: object, tmp_path: Path) -> None:
    """However cases and members are divided into calls, the scores agree to the last digits."""
    task = NormalTask()
    metrics = inferred(run_with(generation(members=4, max_batch=max_batch, figures=0), task, tmp_path))
    whole = inferred(run_with(generation(members=4, max_batch=1000, figures=0), NormalTask(), tmp_path))
    assert task.calls == calls
    assert metrics == pytest.approx(whole, rel=1e-12)


def test_without_a_baseline_there_are_no_relative_scores(tmp_path: Path) -> None:
    """Of that variable alone: all others are what they would be, and its figure shows what there is."""
    with_both = inferred(run_with(generation(error="crps"), NormalTask(), tmp_path / "a"))
    task = NormalTask(without_baseline=["t2m"])
    metrics = inferred(run_with(generation(error="crps"), task, tmp_path / "b"))
    assert metrics is not None
    assert with_both is not None
    relative = ("crps_relative", "crps_relative_low", "crps_relative_high", "mae_baseline", "rmse_baseline")
    lost = {f"inference/{score}/t2m" for score in relative} | {"inference/crps_relative"}
    assert with_both.keys() - metrics.keys() == lost
    assert metrics == {key: value for key, value in with_both.items() if key not in lost}
    assert (tmp_path / "b" / "figures" / "t2m_day_4.png").exists()


def test_an_error_relative_to_nothing_is_refused(tmp_path: Path) -> None:
    """Before the run where the task tells, otherwise as soon as it is seen; the way out is named."""
    expected = r"generation\.error: crps_relative, .* no baseline of t2m .*; expected crps or rmse"
    run = run_with(generation(), NormalTask(without_baseline=["t2m"]), tmp_path)
    with pytest.raises(HookloopError, match=expected):
        run.hook.before_run(run=run)
    undefined = r"generation\.error: crps_relative of t2m is undefined .* such as crps or rmse"
    with pytest.raises(HookloopError, match=undefined):
        inferred(run)
    fine = run_with(generation(error="rmse"), NormalTask(without_baseline=["t2m"]), tmp_path)
    fine.hook.before_run(run=fine)


def test_each_part_of_an_ensemble_carries_its_own_state(tmp_path: Path) -> None:
    """Members generated apart each go on from their own state, and begin anew where a window does not continue."""
    task = NormalTask(n_cases=5, chain=3)
    inferred(run_with(generation(members=4, max_batch=2, figures=0), task, tmp_path))
    assert task.states == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]
    assert task.firsts == [0, 2] * 5
    independent = NormalTask(n_cases=2)
    inferred(run_with(generation(members=4, max_batch=2, figures=0), independent, tmp_path))
    assert independent.states == [0, 0, 0, 0]


def test_a_limit_covers_the_split(tmp_path: Path) -> None:
    """Three of eleven cases are spread evenly."""
    task = NormalTask(n_cases=11)
    inferred(run_with(generation(members=2, windows=3, figures=0), task, tmp_path))
    assert task.calls == [((0, 3, 7), 2)]


def test_independent_windows_hold_every_case_once() -> None:
    """Without a limit all cases come in order; with one there are as many, each once."""
    assert [list(w.cases) for w in independent_windows("x", 5, 2)] == [[0, 1], [2, 3], [4]]
    assert [list(w.cases) for w in independent_windows("x", 3, 2, 99)] == [[0, 1], [2]]
    for limit in range(1, 8):
        cases = [case for w in independent_windows("x", 7, 2, limit) for case in w.cases]
        assert len(cases) == limit
        assert cases == sorted(set(cases))
        assert set(cases) <= set(range(7))
    assert independent_windows("x", 0, 2) == []


@pytest.mark.parametrize(
    ("epochs", "numbers"),
    [("::1", range(1, 11)), ("-1:", [10]), ("::5", [5, 10]), ("1:4:2", [1, 3]), (":0", [])],
)
def test_epochs_are_a_slice(epochs: str, numbers: Sequence[int], tmp_path: Path) -> None:
    """It generates after the epochs whose 1-based number is in the slice, of ten."""
    due = []
    for epoch in range(10):
        run = run_with(
            generation(epochs=epochs, members=2, figures=0), NormalTask(n_cases=1), tmp_path, epoch=epoch
        )
        if inferred(run) is not None:
            due.append(epoch + 1)
    assert due == list(numbers)


def test_before_training_it_always_generates(tmp_path: Path) -> None:
    """At step 0 the slice does not matter."""
    run = run_with(generation(epochs="-1:", members=2, figures=0), NormalTask(), tmp_path)
    run.progress = Progress()
    assert inferred(run) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 1}, "expected at least 2, found 1: fair CRPS and spread need two"),
        ({"epochs": "5"}, "expected a slice of epochs such as '::5' or '-2:', found '5'"),
        ({"epochs": "::0"}, "expected a slice"),
        ({"epochs": "-:"}, "expected a slice"),
        ({"epochs": "a:b"}, "expected a slice"),
        ({"windows": 0}, "windows"),
        ({"max_batch": 0}, "expected auto or at least 1, found 0"),
        ({"error": "spread_skill"}, "error: expected one of crps, crps_relative, rmse; found spread_skill"),
        ({"error": "crp"}, "did you mean 'crps'"),
        ({"metrics": [EnsembleScore(), EnsembleScore()]}, "metrics: .*crps, .* given by two of them"),
        ({"metrics": []}, "error: expected one of a score in metrics"),
        ({"sets": {"a": InferenceSet(weight=0)}}, "sets: every weight is 0"),
        (
            {"sets": {"a": InferenceSet(epochs="::2"), "b": InferenceSet()}},
            "sets: those with a weight are inferred after ::1 and ::2, expected the same epochs",
        ),
        ({"sets": {"figure": InferenceSet()}}, "sets"),
        ({"sets": {"a/b": InferenceSet()}}, "sets"),
        ({"figures": -1}, "figures"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    """Each says what was expected."""
    with pytest.raises(ValueError, match=message):
        generation(**options)


def test_scores_of_variables_that_there_are_not_are_refused(tmp_path: Path) -> None:
    """Before the run, where the task tells what it generates."""

    class Telling(NormalTask):
        variables = NAMES

    metrics = [EnsembleScore(), ThresholdScore({"t2mm": [1.0]})]
    run = run_with(generation(metrics=metrics), Telling(), tmp_path)
    with pytest.raises(HookloopError, match=r"thresholds: no variable called t2mm is generated; .*'t2m'"):
        run.hook.before_run(run=run)


@pytest.mark.parametrize("max_batch", [2, 4])
def test_it_stops_between_calls(max_batch: int, tmp_path: Path) -> None:
    """Asked to stop in the second call, it makes no third and answers nothing, drawing nothing."""

    class Stopping(NormalTask):
        def predict_paired(
            self, state: int, window: Window, seeds: Sequence[Sequence[int]], first: int = 0
        ) -> tuple[Paired, int]:
            if len(self.calls) == 1:
                run.stop("enough")
            return super().predict_paired(state, window, seeds, first)

    task = Stopping()
    run = run_with(generation(members=4, max_batch=max_batch), task, tmp_path)
    assert inferred(run) is None
    assert len(task.calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_stop_in_the_last_call_counts_too(tmp_path: Path) -> None:
    """What was generated while being asked to stop is not answered, since it is done again on resume."""

    class Stopping(NormalTask):
        def predict_paired(
            self, state: int, window: Window, seeds: Sequence[Sequence[int]], first: int = 0
        ) -> tuple[Paired, int]:
            run.stop("enough")
            return super().predict_paired(state, window, seeds, first)

    run = run_with(generation(members=2), Stopping(), tmp_path)
    assert inferred(run) is None


def test_the_model_gets_its_mode_back_even_after_an_error(tmp_path: Path) -> None:
    """It evaluates while generating, trains again afterwards, and gradients are on."""
    for task in (NormalTask(), NormalTask(poison=0)):
        task.model.train()
        run = run_with(generation(members=2, figures=0), task, tmp_path)
        try:
            inferred(run)
        except Diverged:
            assert task.poison == 0
        assert all(module.training for module in task.model.modules())
        assert torch.is_grad_enabled()
    task.model.eval()
    inferred(run_with(generation(members=2, figures=0), attrs.evolve(task, poison=None), tmp_path))
    assert not any(module.training for module in task.model.modules())


def test_generated_values_that_are_not_finite_are_loud(tmp_path: Path) -> None:
    """The variable and the case are named, and the exit code is that of a crash."""
    run = run_with(generation(members=2), NormalTask(poison=3), tmp_path)
    with pytest.raises(Diverged, match=r"t2m of day 3: .*% of the generated field is not finite"):
        inferred(run)


def test_missing_truth_is_the_data_s_fault(tmp_path: Path) -> None:
    """NaN in the validation data is the user's error, not a divergence."""
    run = run_with(generation(members=2), NormalTask(missing_truth=True), tmp_path)
    with pytest.raises(HookloopError, match=r"t2m of day 0: .* of the truth is not finite") as caught:
        inferred(run)
    assert not isinstance(caught.value, Diverged)


def test_undefined_scores_are_loud(tmp_path: Path) -> None:
    """An exact baseline names the variable; a split without cases says so."""
    with pytest.raises(HookloopError, match=r"generation\.error: crps_relative of t2m is undefined"):
        inferred(run_with(generation(members=2), NormalTask(exact_baseline=True), tmp_path))
    with pytest.raises(HookloopError, match="found no case in the split validation"):
        inferred(run_with(generation(members=2), NormalTask(n_cases=0), tmp_path))


@pytest.mark.parametrize(
    "task", [Learnable(), NormalTask(data={"train": TinyData()})], ids=["no-task", "no-split"]
)
def test_it_is_idle_with_one_note_where_it_cannot_generate(task: Learnable, tmp_path: Path) -> None:
    """A task that only learns, or has no validation split, is noted once and then left alone."""
    run = run_with(generation(), task, tmp_path)
    with structlog.testing.capture_logs() as events:
        run.events = structlog.get_logger()
        run.hook.before_run(run=run)
        assert inferred(run) is None
        assert inferred(run) is None
    assert [event["event"] for event in events] == ["generation.idle"]


def test_a_task_that_can_generate_is_not_noted(tmp_path: Path) -> None:
    """No news before the run."""
    run = run_with(generation(), NormalTask(), tmp_path)
    with structlog.testing.capture_logs() as events:
        run.events = structlog.get_logger()
        run.hook.before_run(run=run)
    assert events == []


def test_figures_of_the_last_cases_are_saved_and_logged(tmp_path: Path) -> None:
    """Two cases, two variables: four PNG files with safe names, and four figures logged."""
    run = run_with(generation(members=2, max_batch=2, figures=2), NormalTask(), tmp_path)
    inferred(run)
    names = sorted(path.name for path in (tmp_path / "figures").glob("*.png"))
    assert json.loads((tmp_path / "figures" / "units.json").read_text()) == {"t2m": "K"}
    assert names == ["t2m_day_3.png", "t2m_day_4.png", "wind_u_day_3.png", "wind_u_day_4.png"]
    for path in (tmp_path / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    listener = run.plugins["listener"]
    assert isinstance(listener, Listener)
    assert sorted(key for metrics in listener.logged for key in metrics) == [
        "inference/figure/t2m/day_3",
        "inference/figure/t2m/day_4",
        "inference/figure/wind/u/day_3",
        "inference/figure/wind/u/day_4",
    ]


def test_without_figures_of_cases_scores_still_draw(tmp_path: Path) -> None:
    """``figures`` counts cases; what a score has to show is drawn all the same."""
    inferred(run_with(generation(metrics=[EnsembleScore(), ErrorMaps()], figures=0), NormalTask(), tmp_path))
    names = {path.name for path in (tmp_path / "figures").glob("t2m*.png")}
    assert names == {"t2m_error_map.png", "t2m_mean_map.png"}


def test_figures_that_cannot_be_written_do_not_end_the_run(tmp_path: Path) -> None:
    """Where figures/ is a file, each picture costs a warning and the scores come all the same."""
    (tmp_path / "figures").write_text("in the way")
    run = run_with(generation(members=2), NormalTask(), tmp_path)
    with structlog.testing.capture_logs() as events:
        run.events = structlog.get_logger()
        assert inferred(run) is not None
    assert [event["event"] for event in events] == ["figure.unwritten"] * 3  # with units.json


def test_named_sets_are_scored_by_themselves_and_weighted(tmp_path: Path) -> None:
    """Each has its own keys, what it would have alone; the error is 3/4 of one and 1/4 of the other."""
    sets = {"winter": InferenceSet(split="validation", weight=3), "summer": InferenceSet(windows=2)}
    run = run_with(generation(sets=sets, members=4, figures=0), Splits(), tmp_path)
    metrics = inferred(run)
    assert metrics is not None
    alone = inferred(run_with(generation(members=4, figures=0), Splits(), tmp_path))
    assert alone is not None
    assert {key: metrics[key.replace("inference/", "inference/winter/", 1)] for key in alone} == alone
    errors = [metrics["inference/winter/error"], metrics["inference/summer/error"]]
    assert metrics["inference/error"] == pytest.approx((3 * errors[0] + errors[1]) / 4)
    assert metrics["inference/summer/mae_baseline/t2m"] == 2
    for mean in ("crps_relative", "spread_skill"):
        each = [metrics[f"inference/{own}/{mean}"] for own in sets]
        assert metrics[f"inference/{mean}"] == pytest.approx((3 * each[0] + each[1]) / 4)
    assert not any(key.startswith("inference/crps/") for key in metrics)


def test_a_set_has_epochs_windows_and_members_of_its_own(tmp_path: Path) -> None:
    """One for the log only may be generated more seldom; the error goes on without it."""
    sets = {
        "validation": InferenceSet(),
        "summer": InferenceSet(weight=0, epochs="-1:", windows=1, members=3),
    }
    task = Splits()
    first = inferred(run_with(generation(sets=sets, members=2, figures=0), task, tmp_path))
    assert first is not None
    assert not any("summer" in key for key in first)
    assert first["inference/error"] == first["inference/validation/error"]
    task.calls.clear()
    last = inferred(run_with(generation(sets=sets, members=2, figures=0), task, tmp_path, epoch=9))
    assert last is not None
    assert last["inference/error"] == last["inference/validation/error"]
    assert task.calls == [((0, 1, 2, 3, 4), 2), ((0,), 3)]


def test_a_set_of_no_split_is_refused(tmp_path: Path) -> None:
    """With the splits there are, and the nearest of them."""
    run = run_with(generation(sets={"sumer": InferenceSet()}), Splits(), tmp_path)
    expected = r"generation\.sets\.sumer: no split called sumer; .*train, validation, summer; .*'summer'"
    with pytest.raises(HookloopError, match=expected):
        run.hook.before_run(run=run)


def test_sets_make_do_without_the_split_called_validation(tmp_path: Path) -> None:
    """A task with other splits is not idle then."""
    task = Splits(data={"train": TinyData(), "summer": None})
    assert inferred(run_with(generation(figures=0), task, tmp_path)) is None
    assert (
        inferred(run_with(generation(sets={"summer": InferenceSet()}, figures=0), task, tmp_path)) is not None
    )


def test_figures_of_sets_lie_beside_one_another(tmp_path: Path) -> None:
    """The set is part of the file's name."""
    sets = {"validation": InferenceSet(), "summer": InferenceSet()}
    inferred(run_with(generation(sets=sets, members=2), Splits(), tmp_path))
    names = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert names == {
        f"{own}_{name}_day_4.png" for own in ("validation", "summer") for name in ("t2m", "wind_u")
    }


def test_the_scores_of_the_default_draw_what_they_have(tmp_path: Path) -> None:
    """All default scores on five cases: every number finite, a picture for each chart and map."""
    metrics = inferred(run_with(Generation(members=4), NormalTask(), tmp_path))
    assert metrics is not None
    assert all(math.isfinite(value) for value in metrics.values())
    pictures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"t2m_day_4", "t2m_rank_histogram", "wind_u_quantiles"} <= pictures
