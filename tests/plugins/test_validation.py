from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hookloop.core import train
from hookloop.distributed import Ranks
from hookloop.errors import HookloopError
from hookloop.plugins.validation import Validation, weighted_mean
from hookloop.testing import LifeCycle, Recorder, TinyData, TinyTask, events_of, fake_run, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class TestLifeCycle(LifeCycle):
    plugin = Validation


class TestLifeCycleOfEverything(LifeCycle):
    plugin = Validation
    options = {"weights": {"validation": 3}, "noise_levels": 4, "noise_batches": 2}


def test_reports_the_mean_loss(tmp_path: Path) -> None:
    """With w = 0 the loss over samples 0…3 is (0 + 1 + 4 + 9) / 4."""
    task = TinyTask(data={"train": TinyData(), "validation": TinyData(4, 3)})
    run = prepared(tmp_path, Validation(), task=task)
    assert run.hook.validate(run=run) == [{"val/loss": 3.5}]


def test_says_nothing_without_a_validation_split(tmp_path: Path) -> None:
    """A task that has only training data is not validated, and the run ends well."""
    run = fake_run(tmp_path, recorder := Recorder(), task=TinyTask(data={"train": TinyData(2)}))
    train(run)
    assert run.progress.epoch == 1
    assert recorder.metrics("val/loss") == {}


def test_says_nothing_when_stopped(tmp_path: Path) -> None:
    """Half a validation is none."""
    run = prepared(tmp_path, Validation())
    run.stop("enough")
    assert run.hook.validate(run=run) == []


@define(eq=False)
class Named(TinyTask):
    """Has losses of variables too, ten times and a hundred times the loss."""

    variables: Mapping[int, list[str]] = field(factory=dict)
    """By the number of samples in a batch."""

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """The loss, and those of the variables."""
        (loss,) = TinyTask.loss(self, batch).values()
        factors = {"t": 10.0, "u": 100.0}
        return {"loss": loss, **{f"loss/{name}": factors[name] * loss for name in self.variables[len(batch)]}}


def several(**splits: int) -> Named:
    """Splits of so many samples, each in one batch, whose losses at w = 0 are the means of squares."""
    data = {"train": TinyData(1), **{name: TinyData(n, n) for name, n in splits.items()}}
    return Named(data=data, variables={n: ["t", "u"] if n != 3 else ["t"] for n in range(1, 10)})


def answered(directory: Path, task: TinyTask, **weights: float) -> dict[str, float]:
    """What the plugin answers at w = 0."""
    run = prepared(directory, Validation(weights=weights), task=task)
    (answer,) = run.hook.validate(run=run)
    return dict(answer)


def test_several_splits_and_their_mean(tmp_path: Path) -> None:
    """Over 2, 3 and 4 samples the losses are 1/2, 5/3 and 7/2; a loss that one split lacks has no mean."""
    found = answered(tmp_path, several(validation=2, alps=3, coast=4), alps=3.0, coast=0.5)
    mean = (1 * 0.5 + 3 * 5 / 3 + 0.5 * 3.5) / 4.5
    assert found == pytest.approx(
        {
            "val/loss": mean,
            "val/loss/t": 10 * mean,
            "val/validation/loss": 0.5,
            "val/validation/loss/t": 5.0,
            "val/validation/loss/u": 50.0,
            "val/alps/loss": 5 / 3,
            "val/alps/loss/t": 50 / 3,
            "val/coast/loss": 3.5,
            "val/coast/loss/t": 35.0,
            "val/coast/loss/u": 350.0,
        }
    )


def test_a_weight_of_nothing_is_for_the_log_alone(tmp_path: Path) -> None:
    """Its loss is there and counts for nothing, neither its value, nor what it lacks, nor that it is NaN."""
    found = answered(tmp_path, several(validation=2, alps=3, coast=4), alps=0.0)
    assert found["val/alps/loss"] == pytest.approx(5 / 3)
    assert found["val/loss"] == (0.5 + 3.5) / 2
    assert found["val/loss/u"] == 100 * found["val/loss"]
    assert weighted_mean({"a": {"loss": math.nan}, "b": {"loss": 2.0}}, {"a": 0.0, "b": 1.0}) == {"loss": 2.0}


def test_a_single_split_by_another_name_keeps_it(tmp_path: Path) -> None:
    """Its loss is the mean too."""
    found = answered(tmp_path, several(alps=2))
    assert found["val/loss"] == found["val/alps/loss"] == 0.5


def test_the_usual_split_has_the_usual_keys_whatever_its_weight(tmp_path: Path) -> None:
    """As before there were others."""
    assert answered(tmp_path, several(validation=2), validation=3.0) == {
        "val/loss": 0.5,
        "val/loss/t": 5.0,
        "val/loss/u": 50.0,
    }


def test_the_noise_is_the_same_for_each_split(tmp_path: Path) -> None:
    """Two splits with the same data have the same loss."""
    data = {"train": TinyData(1), "validation": TinyData(4, 2), "again": TinyData(4, 2)}
    run = prepared(tmp_path, Validation(), task=TinyTask(data=data, noise=1.0))
    run.task.model.get_parameter("weight").data.fill_(1.0)
    (found,) = run.hook.validate(run=run)
    assert found["val/validation/loss"] == found["val/again/loss"] != 1.5


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"alp": 2.0}, r"alp: no split .* there are validation, alps; did you mean 'alps'\?"),
        ({"train": 1.0}, "train: no split .* there are validation, alps"),
        ({"validation": 0.0, "alps": 0.0}, "every weight is 0, .* there are validation, alps"),
    ],
)
def test_weights_that_do_not_fit_the_splits(tmp_path: Path, weights: dict[str, float], message: str) -> None:
    """Told before anything is learnt, with what there is."""
    with pytest.raises(HookloopError, match=rf"validation\.weights: {message}"):
        prepared(tmp_path, Validation(weights=weights), task=several(validation=2, alps=3))


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_impossible_weights_are_refused(weight: float) -> None:
    """When the plugin is constructed."""
    with pytest.raises(ValueError, match="weights"):
        Validation(weights={"alps": weight})


def test_a_stop_between_two_splits_is_heard(tmp_path: Path) -> None:
    """What is known of the first is dropped, and the second is not looked at."""

    class Stopping(Named):
        def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
            run.stop("enough")
            seen.append(len(batch))
            return Named.loss(self, batch)

    seen: list[int] = []
    task = several(validation=2, alps=3)
    run = prepared(tmp_path, Validation(), task=Stopping(data=task.data, variables=task.variables))
    assert run.hook.validate(run=run) == []
    assert seen == [2]


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.tuples(st.floats(-1e3, 1e3), st.integers(0, 5)),
        min_size=1,
    ).filter(lambda splits: any(weight for _, weight in splits.values()))
)
def test_a_weight_is_a_number_of_copies(splits: dict[str, tuple[float, int]]) -> None:
    """A split of weight three counts as three of weight one."""
    copies = [loss for loss, weight in splits.values() for _ in range(weight)]
    losses = {name: {"loss": loss} for name, (loss, _) in splits.items()}
    weights = {name: float(weight) for name, (_, weight) in splits.items()}
    found = weighted_mean(losses, weights)
    assert found == {"loss": pytest.approx(sum(copies) / len(copies), abs=1e-9)}


@define(eq=False)
class Denoising(TinyTask):
    """Removes noise: the level is the quantile, the loss at it as well, whatever the weight."""

    def noise_levels(self, quantiles: Tensor) -> Tensor:
        """The quantile itself."""
        return quantiles

    def loss_at(self, batch: Tensor, quantiles: Tensor) -> Mapping[str, Tensor]:
        """The quantile again."""
        assert len(batch) == len(quantiles)
        return {"loss": quantiles}


def denoising(noise: float = 1.0, **splits: int) -> Denoising:
    data = {"train": TinyData(1), **{name: TinyData(n, 8) for name, n in splits.items()}}
    return Denoising(data=data, noise=noise)


def test_the_loss_by_noise_level(tmp_path: Path) -> None:
    """By number and median of bins that are filled alike, beside the same ``val/loss`` as without."""
    bare, by_noise = (
        prepared(tmp_path / str(n), Validation(noise_levels=n), task=denoising(validation=40)) for n in (0, 4)
    )
    for run in (bare, by_noise):
        run.task.model.get_parameter("weight").data.fill_(1.0)
    (without,), (found,) = (run.hook.validate(run=run) for run in (bare, by_noise))
    assert without == {"val/loss": found["val/loss"]}
    levels = {key: value for key, value in found.items() if key != "val/loss"}
    assert list(levels) == [
        "val/loss_by_noise/1_sigma_0.125",
        "val/loss_by_noise/2_sigma_0.375",
        "val/loss_by_noise/3_sigma_0.625",
        "val/loss_by_noise/4_sigma_0.875",
    ]
    assert [int(4 * value) for value in levels.values()] == [0, 1, 2, 3]
    assert by_noise.hook.validate(run=by_noise) == [found]


def test_only_the_split_called_validation_has_noise_levels(tmp_path: Path) -> None:
    """Others are for the loss alone."""
    run = prepared(tmp_path, Validation(), task=denoising(alps=8))
    (found,) = run.hook.validate(run=run)
    assert not any("noise" in key for key in found)


def test_the_loss_by_noise_level_is_drawn_when_it_is_logged(tmp_path: Path) -> None:
    """Once for each evaluation, as a file and for whoever logs figures; not for what nobody logs, as of a trial."""
    recorder = Recorder()
    run = fake_run(tmp_path, recorder, Validation(), task=denoising(validation=8), max_epochs=2)
    path = tmp_path / "figures" / "loss_by_noise.png"
    train(run)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(recorder.metrics("val/figure/loss_by_noise")) == [1, 2]
    path.unlink()
    run.hook.validate(run=run)
    assert not path.exists()


def test_the_figure_is_drawn_by_the_leader(tmp_path: Path) -> None:
    """Another rank has the same numbers, and no figure."""
    run = prepared(tmp_path, recorder := Recorder(), Validation(), task=denoising(validation=8))
    (found,) = run.hook.validate(run=run)
    run.ranks = Ranks(rank=1, world=2)
    run.log(found)
    assert recorder.metrics("val/loss_by_noise/01_sigma_0.05").keys() == {0}
    assert recorder.metrics("val/figure/loss_by_noise") == {}
    assert not (tmp_path / "figures").exists()
    run.ranks = Ranks()
    run.hook.validate(run=run)
    run.log(found)
    assert recorder.metrics("val/figure/loss_by_noise").keys() == {0}


def test_a_full_disk_costs_the_figure_alone(tmp_path: Path) -> None:
    """The run goes on and says so."""
    (tmp_path / "figures").write_text("in the way")
    run = fake_run(tmp_path, recorder := Recorder(), Validation(), task=denoising(validation=8))
    train(run)
    assert run.progress.epoch == 1
    assert recorder.metrics("val/loss_by_noise/01_sigma_0.05")
    assert [event["event"] for event in events_of(run) if event["level"] == "warning"] == ["figure.unwritten"]


@pytest.mark.parametrize("options", [{"noise_levels": -1}, {"noise_batches": 0}])
def test_impossible_numbers_of_noise_levels_are_refused(options: dict[str, int]) -> None:
    """When the plugin is constructed."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Validation(**options)  # type: ignore[arg-type]
