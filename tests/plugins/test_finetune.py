from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from attrs import define, field
from torch import Tensor, nn

from hookloop import files
from hookloop.core import Run, prepare, train
from hookloop.errors import HookloopError
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.ema import EMA
from hookloop.plugins.finetune import Finetune, FrozenOptions, WeightOptions
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import LifeCycle, TinyData, TinyPlugin, TinyTask, events_of, fake_run


class Net(nn.Module):
    """A body and a head, whose names are like those of a real model, and a buffer."""

    def __init__(self, heads: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(1, 3)
        self.head = nn.Linear(3, heads)
        self.register_buffer("unit", torch.tensor(4.0 + seed))


@define(eq=False)
class NetTask(TinyTask):
    """Learn the samples' numbers from themselves; nothing is random, and every epoch is alike."""

    data: Mapping[str, TinyData] = field(factory=lambda: {"train": TinyData(4), "validation": TinyData(2)})
    model: nn.Module = field(factory=Net)

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        """The squared error."""
        given = batch[:, None] / self.model.get_buffer("unit")
        found = self.model.get_submodule("head")(self.model.get_submodule("body")(given))
        return {"loss": (found - given).square().mean()}


NAMES = ["body.weight", "body.bias", "head.weight", "head.bias", "unit"]
"""Everything in the model, in its own order."""


def start(directory: Path, *plugins: object, model: nn.Module | None = None, **options: object) -> Run:
    """A run of Adam that is made of *plugins*, not yet prepared."""
    adam = [] if any(isinstance(plugin, OptimizationPlugin) for plugin in plugins) else [adam_of()]
    task = NetTask(model=model or Net())
    return fake_run(directory, TinyPlugin(task), *plugins, *adam, **options)


def adam_of(**options: object) -> OptimizationPlugin:
    """A fresh plugin."""
    return OptimizationPlugin(**{"optimizer": "Adam", "lr": 0.01, **options})  # type: ignore[arg-type]


def ready(run: Run) -> Run:
    """The same run, prepared."""
    prepare(run)
    return run


def weights_of(run: Run) -> dict[str, Tensor]:
    """A copy of all there is in the model."""
    return {name: tensor.clone() for name, tensor in run.task.model.state_dict().items()}


def moments_of(run: Run) -> dict[str, dict[str, Tensor]]:
    """The optimizer's moments by the parameter's name."""
    names = {id(p): name for name, p in run.task.model.named_parameters()}
    return {names[id(p)]: state for p, state in run.optimization.optimizer.state.items()}


def told(run: Run, event: str) -> list[dict[str, object]]:
    """The events of that name."""
    return [entry for entry in events_of(run) if entry["event"] == event]


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether they are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run of two epochs with averages."""
    directory = tmp_path_factory.mktemp("origin")
    train(start(directory, EMA(decay=0.9), Checkpoint(epochs="::1", ema_epochs="::1"), max_epochs=2))
    return directory / "checkpoints"


def changed(path: Path, to: Path, **parts: object) -> Path:
    """A copy of a checkpoint with other *parts*; ``None`` leaves one out."""
    state = {**files.load(path), **parts}
    files.save({key: part for key, part in state.items() if part is not None}, to)
    return to


class TestLifeCycle(LifeCycle):
    plugin = Finetune

    @pytest.fixture(autouse=True)
    def another_run(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """The life cycle's own task, trained."""
        directory = tmp_path_factory.mktemp("another")
        train(fake_run(directory, Checkpoint()))
        self.options = {"checkpoint": str(directory / "checkpoints" / "latest.ckpt")}


def test_all_weights_are_loaded_and_nothing_else(origin: Path, tmp_path: Path) -> None:
    """Parameters and buffers are the other run's; counters, moments, rate and averages begin."""
    ema = EMA()
    run = ready(start(tmp_path, ema, Finetune(origin / "latest.ckpt"), model=Net(seed=1)))
    there = files.load(origin / "latest.ckpt")
    assert equal(weights_of(run), there["model"])  # type: ignore[arg-type]
    assert (run.progress.epoch, run.progress.batch, run.progress.step) == (0, 0, 0)
    assert moments_of(run) == {}
    assert ema.updates == 0
    assert equal(ema.state_dict()["averages"], {n: there["model"][n] for n in NAMES[:4]})  # type: ignore[arg-type, index]
    (event,) = told(run, "finetune.loaded")
    assert (event["loaded"], event["left"], event["frozen"], event["unused"]) == (5, 0, 0, 0)
    assert event["buffers"] == "unit"


def test_any_checkpoint_has_weights(origin: Path, tmp_path: Path) -> None:
    """Those of a file with averages are the averages."""
    run = ready(start(tmp_path, Finetune(origin / "ema_epoch_0001.ckpt")))
    epoch = files.load(origin / "epoch_0001.ckpt")
    averages = epoch["plugins"]["ema"]["averages"]  # type: ignore[index]
    assert equal(weights_of(run), {**averages, "unit": torch.tensor(4.0)})


@pytest.mark.parametrize(
    ("include", "exclude", "loaded"),
    [
        (["*"], ["head.*"], ["body.weight", "body.bias", "unit"]),
        (["body.*"], [], ["body.weight", "body.bias"]),
        (["*.weight", "unit"], ["head.weight"], ["body.weight", "unit"]),
        (["body.?ias"], [], ["body.bias"]),
        ([], [], []),
    ],
)
def test_wildcards_choose_what_is_loaded(
    origin: Path, tmp_path: Path, include: list[str], exclude: list[str], loaded: list[str]
) -> None:
    """The rest stays as it is made here."""
    own, there = Net(seed=1).state_dict(), files.load(origin / "latest.ckpt")["model"]
    options = WeightOptions(include, exclude)
    run = ready(start(tmp_path, Finetune(origin / "latest.ckpt", weights=options), model=Net(seed=1)))
    expected = {name: there[name] if name in loaded else own[name] for name in NAMES}  # type: ignore[index]
    assert equal(weights_of(run), expected)
    (event,) = told(run, "finetune.loaded")
    assert (event["loaded"], event["left"]) == (len(loaded), len(NAMES) - len(loaded))


def test_another_head_is_left_out(origin: Path, tmp_path: Path) -> None:
    """What does not fit is made here, and learnt."""
    model = Net(heads=2, seed=1)
    finetune = Finetune(origin / "latest.ckpt", weights=WeightOptions(exclude=["head.*"]))
    run = start(tmp_path, finetune, model=model)
    before = model.head.weight.detach().clone()
    train(run)
    assert (model.head.weight != before).all()


@pytest.mark.parametrize("last", [True, False])
def test_frozen_parameters_are_neither_trained_nor_averaged(
    origin: Path,
    tmp_path: Path,
    last: bool,  # noqa: FBT001
) -> None:
    """Wherever it is listed."""
    ema = EMA()
    finetune = Finetune(origin / "latest.ckpt", frozen=FrozenOptions(["body.*"], ["body.bias"]))
    run = start(tmp_path, *((ema, finetune) if last else (finetune, ema)))
    train(run)
    there = files.load(origin / "latest.ckpt")["model"]
    moved = [name for name, tensor in weights_of(run).items() if not torch.equal(tensor, there[name])]  # type: ignore[index]
    assert moved == ["body.bias", "head.weight", "head.bias"]
    assert ema.names == moved == list(moments_of(run))
    assert told(run, "finetune.loaded")[0]["frozen"] == 1


def test_a_shared_weight_is_frozen_under_any_of_its_names(origin: Path, tmp_path: Path) -> None:
    """Also under one that the optimizer does not use."""
    model = Net()
    model.register_parameter("again", model.body.weight)
    assert "body.weight" not in dict(model.named_parameters())
    finetune = Finetune(
        origin / "latest.ckpt",
        weights=WeightOptions(exclude=["again"]),
        frozen=FrozenOptions(["body.weight"]),
    )
    run = ready(start(tmp_path, finetune, model=model))
    assert len(run.optimization.parameters) == 3
    assert not model.get_parameter("again").requires_grad


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_with_moments_and_averages_it_is_as_if_the_other_run_went_on(
    origin: Path, tmp_path: Path, order: Sequence[int]
) -> None:
    """In every listing order: from after the first epoch, weights, moments and averages become those of the second."""
    ema = EMA(decay=0.9)
    finetune = Finetune(origin / "epoch_0001.ckpt", optimizer=True, averages=True)
    plugins = [finetune, ema, Checkpoint()]
    run = start(tmp_path, *(plugins[i] for i in order), model=Net(seed=1))
    train(run)
    there = files.load(origin / "epoch_0002.ckpt")
    assert equal(weights_of(run), there["model"])  # type: ignore[arg-type]
    assert equal(ema.state_dict()["averages"], there["plugins"]["ema"]["averages"])  # type: ignore[arg-type, index]
    assert ema.updates == 8
    theirs = there["optimization"]["optimizer"]["state"]  # type: ignore[index]
    for mine, other in zip(moments_of(run).values(), theirs.values(), strict=True):
        assert equal(mine, other)
    assert run.progress.step == 4


def test_without_moments_the_optimizer_begins(origin: Path, tmp_path: Path) -> None:
    """The same start goes elsewhere, or the test above would show nothing."""
    run = start(tmp_path, Finetune(origin / "epoch_0001.ckpt"), model=Net(seed=1))
    train(run)
    assert {float(state["step"]) for state in moments_of(run).values()} == {4.0}
    assert not equal(weights_of(run), files.load(origin / "epoch_0002.ckpt")["model"])  # type: ignore[arg-type]


def test_everything_but_the_moments_is_fresh(origin: Path, tmp_path: Path) -> None:
    """Rate, betas, decay, trials' scale, waiting gradients: as configured; a group's keys there do not leak."""
    state = files.load(origin / "latest.ckpt")
    optimization = state["optimization"]
    optimization["optimizer"]["param_groups"][0].update(initial_lr=7.0, weight_decay=0.5)  # type: ignore[index]
    optimization |= {"scale": 0.125, "pending": 1, "gradients": [torch.ones(3, 1)] * 4}  # type: ignore[operator]
    path = changed(origin / "latest.ckpt", tmp_path / "other.ckpt", optimization=optimization)
    run = ready(
        start(tmp_path, adam_of(lr=0.5, betas=(0.5, 0.75), accumulate=2), Finetune(path, optimizer=True))
    )
    (group,) = run.optimization.optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.5, 0.75), 0.0)
    assert "initial_lr" not in group
    assert (run.optimization.scale, run.optimization.pending) == (1.0, 0)
    assert [p.grad for p in run.optimization.parameters] == [None] * 4
    assert {float(moments["step"]) for moments in moments_of(run).values()} == {8.0}


def test_averages_keep_the_configured_decay(origin: Path, tmp_path: Path) -> None:
    """They and their count are taken; the decay is this run's."""
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    ready(start(tmp_path, ema, Finetune(origin / "latest.ckpt", averages=True)))
    there = files.load(origin / "latest.ckpt")["plugins"]["ema"]  # type: ignore[index]
    assert equal(ema.state_dict()["averages"], there["averages"])  # type: ignore[arg-type]
    assert (ema.updates, ema.decay_now()) == (8, 0.5)


def test_what_was_frozen_there_starts_fresh(origin: Path, tmp_path: Path) -> None:
    """A parameter without moments begins without, its average is its weight, and that is told."""
    frozen = FrozenOptions(["head.*"])
    train(start(tmp_path / "a", EMA(), Checkpoint(), Finetune(origin / "latest.ckpt", frozen=frozen)))
    ema = EMA()
    path = tmp_path / "a" / "checkpoints" / "latest.ckpt"
    run = ready(start(tmp_path / "b", ema, Finetune(path, optimizer=True, averages=True)))
    assert list(moments_of(run)) == ["body.weight", "body.bias"]
    (event,) = told(run, "moments.fresh")
    assert (event["count"], event["parameters"]) == (2, "head.weight, head.bias")
    there = files.load(path)
    theirs = there["plugins"]["ema"]["averages"]  # type: ignore[index]
    heads = {name: there["model"][name] for name in ("head.weight", "head.bias")}  # type: ignore[index]
    assert equal(ema.state_dict()["averages"], {**theirs, **heads})  # type: ignore[arg-type]
    assert told(run, "averages.fresh")[0]["count"] == 2


def test_moments_and_averages_belong_to_the_weights(origin: Path, tmp_path: Path) -> None:
    """Where a weight is left as it is made here, the other weight's history is not taken."""
    ema, excluded = EMA(), WeightOptions(exclude=["head.*"])
    finetune = Finetune(origin / "latest.ckpt", weights=excluded, optimizer=True, averages=True)
    run = ready(start(tmp_path, ema, finetune, model=Net(heads=2, seed=1)))
    assert list(moments_of(run)) == ["body.weight", "body.bias"]
    assert torch.equal(ema.averages[2], run.task.model.get_parameter("head.weight"))


def test_a_resumed_run_needs_no_other_file(origin: Path, tmp_path: Path) -> None:
    """It may have moved, or be named otherwise; the run ends with the same bits, frozen as before."""
    moved = tmp_path / "moved.ckpt"
    shutil.copy(origin / "latest.ckpt", moved)
    frozen = FrozenOptions(["body.*"])

    def run_of(directory: Path, path: Path, **options: object) -> Run:
        finetune = Finetune(path, frozen=frozen, optimizer=True, averages=True)
        run = start(tmp_path / directory, finetune, EMA(), Checkpoint(), max_epochs=2, **options)
        train(run)
        return run

    whole = run_of(Path("whole"), moved)
    run_of(Path("parts"), moved, segment_epochs=1)
    moved.unlink()
    resumed = run_of(Path("parts"), tmp_path / "elsewhere.ckpt")

    assert resumed.progress == whole.progress
    assert equal(weights_of(resumed), weights_of(whole))
    for mine, other in zip(moments_of(resumed).values(), moments_of(whole).values(), strict=True):
        assert equal(mine, other)
    assert told(resumed, "finetune.skipped")[0]["frozen"] == 2
    assert told(resumed, "finetune.loaded") == told(resumed, "moments.fresh") == []


def test_a_resumed_run_refuses_other_options(origin: Path, tmp_path: Path) -> None:
    """Those by which something else is learnt, unlike the path."""
    train(start(tmp_path, Checkpoint(), Finetune(origin / "latest.ckpt")))
    other = Finetune(origin / "latest.ckpt", optimizer=True, weights=WeightOptions(exclude=["unit"]))
    with pytest.raises(HookloopError, match=r"finetune\.optimizer .*finetune\.weights\.exclude"):
        ready(start(tmp_path, Checkpoint(), other, max_epochs=2))


def test_a_checkpoint_that_nobody_resumes_is_not_passed_over(origin: Path, tmp_path: Path) -> None:
    """Neither run would be the one that was asked for."""
    train(start(tmp_path, Checkpoint(), Finetune(origin / "latest.ckpt")))
    with pytest.raises(HookloopError, match="holds checkpoints, and none of them was resumed"):
        ready(start(tmp_path, Finetune(origin / "latest.ckpt")))


def test_a_damaged_file_is_refused(origin: Path, tmp_path: Path) -> None:
    """With what is wrong with it."""
    path = tmp_path / "damaged.ckpt"
    content = bytearray((origin / "latest.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(HookloopError, match=f"{path}: its bytes do not match their checksum; expected"):
        ready(start(tmp_path, Finetune(path)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """And a folder."""
    with pytest.raises(HookloopError, match=r"none\.ckpt: cannot be read: No such file"):
        ready(start(tmp_path, Finetune(tmp_path / "none.ckpt")))
    with pytest.raises(HookloopError, match="cannot be read: Is a directory"):
        ready(start(tmp_path, Finetune(tmp_path)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": None, "progress": None}, "no checkpoint of a run: it lacks progress, model"),
        ({"format": 2}, "format 2, expected 1; use the hookloop that wrote it"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    origin: Path, tmp_path: Path, parts: dict[str, object], message: str
) -> None:
    """Whatever else it is."""
    path = changed(origin / "latest.ckpt", tmp_path / "odd.ckpt", **parts)
    with pytest.raises(HookloopError, match=f"{path}: {message}"):
        ready(start(tmp_path, Finetune(path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weights": WeightOptions(exclude=["heat.*"])},
            r"finetune\.weights\.exclude: heat\.\*: matches nothing in this model; did you mean head",
        ),
        (
            {"weights": WeightOptions(include=["zzz"])},
            r"finetune\.weights\.include: zzz: matches nothing .* there are unit, body\.weight, body\.bias and 2 more",
        ),
        ({"frozen": FrozenOptions(["unit"])}, r"finetune\.frozen\.include: unit: matches nothing"),
        ({"frozen": FrozenOptions(["*"])}, r"finetune\.frozen: all 4 parameters are frozen"),
        ({"averages": True}, r"finetune\.averages: no plugin here averages weights; list ema"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    origin: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    """Wildcards that match nothing, nothing left to train, averages without a plugin for them."""
    with pytest.raises(HookloopError, match=message):
        ready(start(tmp_path, Finetune(origin / "latest.ckpt", **options)))  # type: ignore[arg-type]


def test_weights_that_do_not_fit_are_refused(origin: Path, tmp_path: Path) -> None:
    """The first ones are named, with what to exclude, and nothing is loaded."""
    model = Net(heads=2, seed=1)
    model.register_buffer("extra", torch.zeros(()))
    message = (
        r"weights that do not fit: extra is missing there; head\.weight is \(1, 3\) there, \(2, 3\) here; "
        r"head\.bias is \(1,\) there, \(2,\) here; .* such as extra to finetune\.weights\.exclude"
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(HookloopError, match=message):
        ready(start(tmp_path, Finetune(origin / "latest.ckpt"), model=model))
    assert equal(model.state_dict(), before)


@pytest.mark.parametrize("option", ["optimizer", "averages"])
@pytest.mark.parametrize("name", ["best.ckpt", "ema_epoch_0002.ckpt"])
def test_a_file_of_weights_has_neither_moments_nor_averages(
    origin: Path, tmp_path: Path, name: str, option: str
) -> None:
    """It is said which file has them."""
    message = (
        rf"{name}: holds weights only, and finetune\.{option} needs .* latest\.ckpt or an epoch_\*\.ckpt"
    )
    with pytest.raises(HookloopError, match=message):
        ready(start(tmp_path, EMA(), Finetune(origin / name, **{option: True})))  # type: ignore[arg-type]


def test_a_run_without_averages_has_none_to_take(tmp_path: Path) -> None:
    """The plugin that is missing there is named."""
    train(start(tmp_path / "a", Checkpoint()))
    path = tmp_path / "a" / "checkpoints" / "latest.ckpt"
    with pytest.raises(HookloopError, match="holds no averages of ema, but the state of"):
        ready(start(tmp_path / "b", EMA(), Finetune(path, averages=True)))


def test_averages_of_another_kind_are_refused(origin: Path, tmp_path: Path) -> None:
    """A state of the same name that is kept in another way."""
    path = changed(origin / "latest.ckpt", tmp_path / "odd.ckpt", plugins={"ema": {"shadow": {}}})
    with pytest.raises(
        HookloopError, match="averages of another kind: its state holds shadow, expected updates"
    ):
        ready(start(tmp_path, EMA(), Finetune(path, averages=True)))


def test_moments_of_another_optimizer_are_refused(origin: Path, tmp_path: Path) -> None:
    """The options that differ are named; Adam's and AdamW's moments are the same."""
    sgd = OptimizationPlugin(optimizer="SGD", lr=0.1)
    message = (
        r"moments of another optimizer, one with amsgrad, betas.* expected dampening, momentum, nesterov"
    )
    with pytest.raises(HookloopError, match=message):
        ready(start(tmp_path, sgd, Finetune(origin / "latest.ckpt", optimizer=True)))
    adamw = adam_of(optimizer="AdamW")
    run = ready(start(tmp_path, adamw, Finetune(origin / "latest.ckpt", optimizer=True)))
    assert len(moments_of(run)) == 4


def test_an_optimizer_without_moments_has_none_to_take(tmp_path: Path) -> None:
    """Plain gradient descent remembers nothing, so asking for it is a mistake."""

    def sgd() -> OptimizationPlugin:
        return OptimizationPlugin(optimizer="SGD", lr=0.1)

    train(start(tmp_path / "a", Checkpoint(), sgd()))
    path = tmp_path / "a" / "checkpoints" / "latest.ckpt"
    with pytest.raises(HookloopError, match=r"holds no moments .* leave out finetune\.optimizer"):
        ready(start(tmp_path / "b", sgd(), Finetune(path, optimizer=True)))


def test_moments_without_names_are_refused(origin: Path, tmp_path: Path) -> None:
    """Numbers alone would give one parameter the moments of another."""
    path = changed(origin / "latest.ckpt", tmp_path / "odd.ckpt", trained=[])
    with pytest.raises(HookloopError, match="the optimizer there does not name its parameters"):
        ready(start(tmp_path, Finetune(path, optimizer=True)))
