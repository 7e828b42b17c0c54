"""What a run may and may not find in its directory when it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attrs import define, field

from hookloop import hookimpl
from hookloop.core import Run, train
from hookloop.errors import HookloopError
from hookloop.files import load
from hookloop.manager import register
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.generation import Generation
from hookloop.plugins.jsonl import Jsonl
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.schedules import CosineAnnealingLR
from hookloop.settings import doc
from hookloop.testing import TinyTask, fake_run, prepared


@define(eq=False)
class Options:
    """Options that matter, and one that is a secret."""

    weights: dict[str, float] = field(factory=dict, metadata=doc("", learned=True))
    api_key: str = field(default="hunter2", metadata=doc("", learned=True))
    cosmetic: int = field(default=0, metadata=doc(""))


def finished(directory: Path, *plugins: object, max_epochs: int = 1) -> Run:
    run = fake_run(directory, *plugins, max_epochs=max_epochs)
    train(run)
    return run


def test_averages_that_join_later_start_from_the_restored_weights(tmp_path: Path) -> None:
    """A run without averages goes on with them: the average is the model, not its random beginning."""
    trained = finished(tmp_path, Checkpoint())
    ema = EMA(decay=0.5)
    run = prepared(tmp_path, Checkpoint(), ema, max_epochs=2)

    run.hook.before_epoch(run=run)

    assert ema.averages[0].item() == trained.task.model.get_parameter("weight").item() != 0.0


def test_the_averages_do_not_follow_the_weights_by_themselves(tmp_path: Path) -> None:
    """Starting from the model copies it."""
    ema = EMA(decay=0.5)
    run = prepared(tmp_path, ema)
    run.hook.before_epoch(run=run)
    with torch.no_grad():
        run.task.model.get_parameter("weight").fill_(7.0)
    assert ema.averages[0].item() == 0.0


@pytest.mark.parametrize(
    ("before", "after"), [({}, {"t2m": 5.0}), ({"t2m": 5.0}, {}), ({"a": 1.0}, {"b": 1.0})]
)
def test_an_option_that_comes_or_goes_is_a_change(
    tmp_path: Path, before: dict[str, float], after: dict[str, float]
) -> None:
    """Nothing on one side and something on the other is refused like any other change."""
    finished(tmp_path, Checkpoint(), Options(weights=before))
    with pytest.raises(HookloopError, match=r"made with other options: options\.weights"):
        prepared(tmp_path, Checkpoint(), Options(weights=after), max_epochs=2)


def test_an_option_by_which_nothing_is_learnt_may_change(tmp_path: Path) -> None:
    """Only what is marked as learnt is compared."""
    finished(tmp_path, Checkpoint(), Options())
    assert prepared(tmp_path, Checkpoint(), Options(cosmetic=3), max_epochs=2).progress.epoch == 1


def test_no_secret_is_in_a_checkpoint(tmp_path: Path) -> None:
    """Neither the configuration nor what is compared on resume holds it."""
    finished(tmp_path, Checkpoint(), Options())
    assert "hunter2" not in repr(load(tmp_path / "checkpoints" / "latest.ckpt"))


def test_a_longer_run_bends_the_cosine_and_is_refused(tmp_path: Path) -> None:
    """The learning rate would jump; a constant rate may go on for longer."""
    cosine = OptimizationPlugin(optimizer="SGD", lr=0.25, scheduler=CosineAnnealingLR())
    finished(tmp_path / "cosine", Checkpoint(), cosine)
    with pytest.raises(HookloopError, match=r"scheduler\.T_max \(8 there, 16 now\)"):
        prepared(tmp_path / "cosine", Checkpoint(), cosine, max_epochs=2)

    finished(tmp_path / "constant", Checkpoint())
    assert finished(tmp_path / "constant", Checkpoint(), max_epochs=2).progress.epoch == 2


def test_a_best_file_that_cannot_be_written_is_not_the_best(tmp_path: Path) -> None:
    """Where ``best.ckpt`` fails, what is recorded as best stays what is on disk: nothing."""
    (tmp_path / "checkpoints" / "best.ckpt").mkdir(parents=True)  # nothing can take its place
    checkpoint = Checkpoint()
    finished(tmp_path, checkpoint)
    assert checkpoint.bests == {}
    assert load(tmp_path / "checkpoints" / "latest.ckpt")["best"] == {}


def test_metrics_of_a_run_that_left_nothing_to_resume_are_set_aside(tmp_path: Path) -> None:
    """A second run from the beginning writes its own file whole, and the first one's is kept."""
    for _ in range(2):
        finished(tmp_path, Jsonl())
    files = sorted(path.name for path in tmp_path.glob("metrics*.jsonl"))
    assert files == ["metrics.1.jsonl", "metrics.jsonl"]
    first, second = (
        [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()] for name in files
    )
    assert first == second == [8, 8]


@pytest.mark.parametrize("hook", ["make_task", "shutdown"])
def test_what_is_asked_one_by_one_cannot_be_wrapped(hook: str) -> None:
    """A wrapper there would wrap nothing, so it is refused by name."""

    def wrapper(self: object) -> Iterator[None]:  # noqa: ARG001 - a method
        return (yield)

    plugin = type("Wrapping", (), {hook: hookimpl(wrapper=True)(wrapper)})()
    with pytest.raises(HookloopError, match=f"plugin 'mine': {hook} cannot be wrapped"):
        register({"mine": plugin})


def test_inference_that_will_never_be_is_told(tmp_path: Path) -> None:
    """Epoch 1 alone is asked for, but validation is in epochs 2 and 3."""
    from hookloop.testing import events_of

    @define(eq=False)
    class Generating(TinyTask):
        def nothing(self) -> None:
            """Never called."""

        windows = initial_condition = predict_paired = nothing

    run = prepared(
        tmp_path, Generation(epochs="1:2"), task=Generating(), max_epochs=3, validate_every="2 epochs"
    )
    assert [event["event"] for event in events_of(run)] == ["generation.never"]
