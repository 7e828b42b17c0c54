"""A checkpoint evaluated again gives the numbers that the run logged, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from attrs import define
from ranks import on_ranks
from torch import nn

from hookloop import files, hookimpl, yamlfile
from hookloop.cli import main
from hookloop.core import Run, train
from hookloop.distributed import Ranks
from hookloop.errors import HookloopError
from hookloop.evaluate import adapt, directory_for, evaluate
from hookloop.manager import assemble
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.distributed import Distributed
from hookloop.plugins.ema import EMA
from hookloop.plugins.finetune import Finetune, FrozenOptions
from hookloop.plugins.jsonl import Jsonl
from hookloop.plugins.train_evaluation import TrainEvaluation
from hookloop.settings import RunConfig
from hookloop.testing import Recorder, TinyData, TinyModel, TinyTask, events_of, fake_run
from hookloop.warm_start import read

KEYS = ("val/loss", "train/loss", "inference/error")

SMALL = {
    "run.max_epochs": 2,
    "run.validate_every": "1 epoch",
    "run.device": "cpu",
    "downscaling.train.batch_size": 4,
    "downscaling.model.backbone": "{name: unet, channels: 8, multipliers: [1, 2], blocks: 1, dropout: 0.1}",
    "downscaling.patch.coarse": "[3, 3]",
    "downscaling.sampler.steps": 3,
    "generation.members": 2,
    "generation.windows": 2,
    "generation.epochs": '"::1"',
    "generation.figures": 0,
    "checkpoint.ema_epochs": '"::1"',
}


def process(*arguments: object) -> str:
    """Run a real process on one thread, and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "hookloop", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_of(directory: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_real_checkpoints_give_the_numbers_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them, for latest, best and averages of the first epoch: in a process of its own, or in this one."""

    def here(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0
        return capsys.readouterr().out

    here("init", "downscaling", tmp_path / "data", "--size", 16, "--times", 60, "--validation-times", 4)
    overrides = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    directory = tmp_path / "run"
    process(
        "run", "--plugins", "downscaling,ema", "--dir", directory, *overrides, tmp_path / "data" / "cfg.yaml"
    )
    own = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    best = files.load(directory / "checkpoints" / "best.ckpt")["progress"]["epoch"]  # type: ignore[index]
    for command, stem, epoch in (
        (process, "latest", 2),
        (here, "best", best),
        (here, "ema_epoch_0001", 1),
    ):
        checkpoint = directory / "checkpoints" / f"{stem}.ckpt"
        out = command("evaluate", checkpoint, directory / "config.yaml")
        printed = dict(line.split(" ") for line in out.splitlines())
        logged = next(line for line in lines_of(directory) if line["epoch"] == epoch and "val/loss" in line)
        measured = {key for key in logged if key.split("/")[0] in ("val", "train", "inference")}
        assert {"val/loss/t2m", "train/loss", "inference/error", "inference/crps/t2m"} <= measured
        assert {key: printed[key] for key in measured} == {key: repr(logged[key]) for key in measured}
        assert printed["epoch"] == str(epoch)
        (line,) = lines_of(directory / "evaluations" / stem)
        keys = (*measured, "step", "epoch")
        assert {key: line[key] for key in keys} == {key: logged[key] for key in keys}
    assert {path: path.read_bytes() for path in own} == own


@define(eq=False)
class Inference:
    """A score that depends on the weight, on the epoch and on the run's seed."""

    @hookimpl
    def infer(self, run: Run) -> Mapping[str, float]:
        """Give it."""
        weight = run.task.model.get_parameter("weight").item()
        return {"inference/error": weight + run.seed("sample", run.progress.epoch, run.progress.step) % 7}


def noisy() -> TinyTask:
    """The tiny task with noise, which is seeded."""
    return TinyTask(data={"train": TinyData(4), "validation": TinyData(2)}, noise=1.0)


def trained(directory: Path, *plugins: object, **options: object) -> tuple[Run, Recorder]:
    """A run of three epochs that keeps every file."""
    averages = any(isinstance(plugin, EMA) for plugin in plugins)
    keeping = Checkpoint(epochs="::1", ema_epochs="::1" if averages else None)
    recorder = Recorder()
    measuring = (Inference(), TrainEvaluation(), recorder)
    run = fake_run(directory, *plugins, *measuring, keeping, task=noisy(), **{"max_epochs": 3, **options})
    train(run)
    return run, recorder


def evaluated(
    directory: Path, path: Path, *plugins: object, task: TinyTask | None = None
) -> tuple[Run, dict[str, float] | None]:
    """The evaluation of a checkpoint, which writes into *directory*."""
    run = fake_run(directory, *plugins, Inference(), TrainEvaluation(), task=task or noisy())
    return run, evaluate(run, path, read(path))


def logged_at(recorder: Recorder, step: int) -> dict[str, object]:
    """What the run measured after so many batches."""
    return {key: recorder.metrics(key)[step] for key in KEYS}


def chosen(metrics: Mapping[str, float] | None) -> dict[str, float]:
    """The metrics that do not depend on a clock."""
    assert metrics is not None
    return {key: metrics[key] for key in KEYS}


@pytest.mark.parametrize("validate", [True, False])
def test_every_file_of_a_run_gives_its_numbers(tmp_path: Path, validate: bool) -> None:  # noqa: FBT001
    """Raw weights with averages beside them, and averages in their place, whichever validation is lent."""
    _, recorder = trained(tmp_path, EMA(decay=0.5, validate=validate))
    directory = tmp_path / "checkpoints"
    found = {path.name for path in directory.iterdir()}
    assert {"latest.ckpt", "previous.ckpt", "best.ckpt", "best_inference.ckpt", "epoch_0002.ckpt"} <= found
    for name in found:
        if name.startswith("ema") and not validate:  # the run did not validate with those
            continue
        path = directory / name
        step = read(path)["progress"]["step"]  # type: ignore[index]
        run, metrics = evaluated(tmp_path / "again", path, EMA(decay=0.5, validate=validate))
        assert chosen(metrics) == logged_at(recorder, step), name
        assert run.progress.step == step
        assert (run.progress.epoch, metrics["epoch"]) == (step // 4, step // 4)  # type: ignore[index]


def test_a_best_in_the_middle_of_an_epoch_gives_its_numbers(tmp_path: Path) -> None:
    """Its counters are as they were then."""
    _, recorder = trained(tmp_path, EMA(decay=0.5), max_epochs=2, validate_every="3 batches")
    path = tmp_path / "checkpoints" / "best.ckpt"
    at = read(path)["progress"]
    assert at["batch"] != 0  # type: ignore[index]
    run, metrics = evaluated(tmp_path / "again", path, EMA(decay=0.5))
    assert chosen(metrics) == logged_at(recorder, at["step"])  # type: ignore[index]
    assert {"epoch": run.progress.epoch, "batch": run.progress.batch, "step": run.progress.step} == at
    assert metrics["epoch"] == at["epoch"]  # type: ignore[index]


def test_a_run_killed_while_validating_is_evaluated_where_it_was(tmp_path: Path) -> None:
    """The checkpoint from before validation is at the epoch's end, though that is not counted there."""

    class Killed:
        @hookimpl(trylast=True)
        def validate(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", EMA(decay=0.5), Killed())
    path = tmp_path / "killed" / "checkpoints" / "latest.ckpt"
    assert read(path)["progress"] == {"epoch": 0, "batch": 4, "step": 4}
    _, recorder = trained(tmp_path / "whole", EMA(decay=0.5))
    run, metrics = evaluated(tmp_path / "again", path, EMA(decay=0.5))
    assert chosen(metrics) == logged_at(recorder, 4)
    assert (run.progress.epoch, run.progress.batch) == (1, 0)


def test_averages_of_weights_that_were_partly_frozen(tmp_path: Path) -> None:
    """What was not trained has no averages in the checkpoint, and needs none."""

    def two() -> TinyTask:
        model = TinyModel()
        model.register_parameter("fixed", nn.Parameter(torch.ones(())))
        return TinyTask(data=noisy().data, noise=1.0, model=model)

    ema = EMA(decay=0.5)
    train(fake_run(tmp_path / "origin", Checkpoint(), task=two()))
    origin = tmp_path / "origin" / "checkpoints" / "latest.ckpt"
    finetune, recorder = Finetune(origin, frozen=FrozenOptions(["fixed"])), Recorder()
    plugins = (ema, finetune, Inference(), TrainEvaluation(), recorder, Checkpoint())
    train(fake_run(tmp_path / "tuned", *plugins, task=two()))
    assert ema.names == ["weight"]
    path = tmp_path / "tuned" / "checkpoints" / "latest.ckpt"
    _, metrics = evaluated(tmp_path / "again", path, EMA(decay=0.5), task=two())
    assert chosen(metrics) == logged_at(recorder, 4)


def test_a_reconstructed_average_is_evaluated(tmp_path: Path) -> None:
    """A file of weights may say more about itself."""
    _, recorder = trained(tmp_path, EMA(decay=0.5))
    path = tmp_path / "made.ckpt"
    files.save(
        {**read(tmp_path / "checkpoints" / "ema_epoch_0002.ckpt"), "average": {"sigma_rel": 0.1}}, path
    )
    _, metrics = evaluated(tmp_path / "again", path, EMA(decay=0.5))
    assert chosen(metrics) == logged_at(recorder, 8)


def test_averages_that_are_not_listed_are_told(tmp_path: Path) -> None:
    """The raw weights are evaluated then, which is not what the run validated; the other way round too."""
    with_averages, recorder = trained(tmp_path / "a", EMA(decay=0.5))
    run, metrics = evaluated(tmp_path / "again", tmp_path / "a" / "checkpoints" / "latest.ckpt")
    assert chosen(metrics)["val/loss"] != recorder.metrics("val/loss")[12]
    weight, score = (r.task.model.get_parameter("weight").item() for r in (run, with_averages))
    assert weight == score
    assert [e["plugin"] for e in events_of(run) if e["event"] == "plugin.dropped"] == ["ema"]

    _, recorder = trained(tmp_path / "b")
    run, metrics = evaluated(tmp_path / "again", tmp_path / "b" / "checkpoints" / "latest.ckpt", EMA())
    assert chosen(metrics) == logged_at(recorder, 12)
    assert [e["plugin"] for e in events_of(run) if e["event"] == "plugin.without_state"] == ["ema"]


def test_values_that_the_data_here_did_not_give_are_told(tmp_path: Path) -> None:
    """The checkpoint's statistics win over those of the data, and are named."""

    def measured(mean: float) -> TinyTask:
        task = noisy()
        task.model.register_buffer("mean", torch.tensor(mean))
        return task

    train(fake_run(tmp_path / "run", Checkpoint(), task=measured(1.0)))
    path = tmp_path / "run" / "checkpoints" / "latest.ckpt"
    for mean, told in ((1.0, None), (2.0, "mean")):
        run, _ = evaluated(tmp_path / "again", path, task=measured(mean))
        (event,) = [e for e in events_of(run) if e["event"] == "weights.loaded"]
        assert event.get("buffers") == told
        assert run.task.model.get_buffer("mean").item() == 1.0


def test_evaluated_again_the_metrics_begin_anew(tmp_path: Path) -> None:
    """An evaluation is one line, whatever was there before; one that is refused leaves that alone."""
    trained(tmp_path, EMA(decay=0.5))
    first, second = (tmp_path / "checkpoints" / f"epoch_000{n}.ckpt" for n in (1, 2))
    for path, step in ((first, 4), (second, 8), (second, 8)):
        evaluated(tmp_path / "again", path, Jsonl(), EMA(decay=0.5))
        (line,) = lines_of(tmp_path / "again")
        assert (line["step"], line["epoch"]) == (step, step // 4)
    other = noisy()
    other.model.register_parameter("more", nn.Parameter(torch.zeros(2)))
    with pytest.raises(
        HookloopError, match=r"epoch_0001\.ckpt: a checkpoint of another model: more is missing"
    ):
        evaluated(tmp_path / "again", first, Jsonl(), task=other)
    assert lines_of(tmp_path / "again") == [line]


def evaluated_on(ranks: Ranks, path: Path) -> tuple[dict[str, float], list[str]]:
    """The metrics on this rank, and the files of the evaluation, which has been done once before."""
    directory = path.parent / f"evaluation of rank {ranks.rank}"
    directory.mkdir()
    (directory / "metrics.jsonl").touch()
    plugins = (Distributed(), EMA(decay=0.5), Inference(), TrainEvaluation())
    run = fake_run(directory, *plugins, task=of_four())
    run.ranks = ranks
    metrics = evaluate(run, path, read(path))
    return chosen(metrics), sorted(file.name for file in directory.iterdir())


def of_four() -> TinyTask:
    """The tiny task with batches that can be divided, the last one short."""
    return TinyTask(data={"train": TinyData(6, 4), "validation": TinyData(5, 4)}, noise=1.0)


def test_two_ranks_evaluate_as_one_has(tmp_path: Path) -> None:
    """Both have the numbers of the run, which had one process; what was there before is the first one's business."""
    run = fake_run(
        tmp_path, EMA(decay=0.5), Inference(), TrainEvaluation(), recorder := Recorder(), Checkpoint(),
        task=of_four(),
    )  # fmt: skip
    train(run)
    path = tmp_path / "checkpoints" / "latest.ckpt"
    (first, files), (second, others) = on_ranks(2, evaluated_on, path)
    assert first == second == pytest.approx(logged_at(recorder, run.progress.step), rel=1e-6)
    assert files == ["metrics.1.jsonl"]
    assert others == ["metrics.jsonl"]


def test_asked_to_stop_it_has_no_result(tmp_path: Path) -> None:
    """Nothing is answered and nothing is logged, and everybody is told of the end."""

    class Impatient:
        @hookimpl
        def validate(self, run: Run) -> None:
            run.stop("enough", 143)

    trained(tmp_path)
    recorder = Recorder()
    path = tmp_path / "checkpoints" / "latest.ckpt"
    _, metrics = evaluated(tmp_path / "again", path, Impatient(), recorder)
    assert metrics is None
    assert recorder.logged == []
    assert recorder.names == ["make_optimization", "before_run", "validate", "shutdown"]


def test_an_assembly_is_adapted(tmp_path: Path) -> None:
    """No other weights are loaded, the epoch is the last and generated after, and the document says so."""
    there = {"checkpoint": "there.ckpt"}
    document = yamlfile.Document(
        {
            "run": {"dir": "runs/a", "max_epochs": 9},
            "generation": {"epochs": "::5", "members": 3},
            "finetune": there,
        }
    )
    assembly = assemble(document, ["ema", "finetune"])
    for progress, epoch in (({"epoch": 7, "batch": 0}, 7), ({"epoch": 7, "batch": 2}, 8)):
        adapted = adapt(assembly, {"progress": progress}, tmp_path)
        assert adapted.config == RunConfig(dir=tmp_path, max_epochs=epoch)
        assert [*adapted.plugins] == [n for n in assembly.plugins if n not in ("checkpoint", "finetune")]
        assert adapted.document.keys() == {"run", *adapted.plugins}
        assert adapted.document["run"] == {
            **assembly.document["run"],
            "dir": str(tmp_path),
            "max_epochs": epoch,
        }  # type: ignore[dict-item]
        assert adapted.document["generation"] == {**assembly.document["generation"], "epochs": "::1"}  # type: ignore[dict-item]
    without = adapt(assemble(document, ["no:generation", "no:checkpoint"]), {"progress": progress}, tmp_path)
    assert "generation" not in without.document


def test_where_it_writes(tmp_path: Path) -> None:
    """Below the run's directory, or where it is told to, but never over a run."""
    checkpoint, run = Path("elsewhere/best.ckpt"), tmp_path / "run"
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    assert directory_for(checkpoint, run, None) == run / "evaluations" / "best"
    assert directory_for(checkpoint, run, tmp_path / "new") == tmp_path / "new"
    for taken in (run, tmp_path / "other", run / ".." / "run"):
        with pytest.raises(HookloopError, match="a run's own directory"):
            directory_for(checkpoint, run, taken)
