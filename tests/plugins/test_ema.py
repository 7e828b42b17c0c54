from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define, field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hookloop.core import Run, train
from hookloop.hookspecs import hookimpl
from hookloop.plugins.ema import EMA
from hookloop.testing import LifeCycle, TinyData, TinyTask, fake_run, prepared

if TYPE_CHECKING:
    from pathlib import Path


class TestLifeCycle(LifeCycle):
    plugin = EMA


class TestLifeCycleOfEverything(LifeCycle):
    plugin = EMA
    options = {"decay": 0.5, "faster_decay_at_start": False, "validate": False}


@define(eq=False)
class Peek:
    """Notes the weight seen, and where it lies, by every hook of a run."""

    seen: dict[str, list[float]] = field(factory=lambda: {"batch": [], "validate": [], "infer": []})
    places: dict[str, set[int]] = field(factory=lambda: {"batch": set(), "validate": set(), "infer": set()})

    def note(self, run: Run, where: str) -> None:
        """Note it."""
        weight = run.task.model.get_parameter("weight")
        self.seen[where].append(weight.item())
        self.places[where].add(weight.data_ptr())

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """The model's own."""
        self.note(run, "batch")

    @hookimpl
    def validate(self, run: Run) -> None:
        """What validation sees."""
        self.note(run, "validate")

    @hookimpl
    def infer(self, run: Run) -> None:
        """What inference sees."""
        self.note(run, "infer")


def net() -> nn.Sequential:
    """A small net with a buffer and a frozen weight."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made.get_parameter("2.bias").requires_grad = False
    return made


def weight_of(run: Run) -> nn.Parameter:
    """The tiny model's."""
    return run.task.model.get_parameter("weight")


def test_first_update_with_a_fast_start(tmp_path: Path) -> None:
    """The first decay is 2/11, so from 0 towards 11 the average becomes 9."""
    ema = EMA()
    run = prepared(tmp_path, ema)
    weight_of(run).data.fill_(11.0)
    ema.after_batch()
    assert ema.decay_now() == 2 / 11
    assert ema.averages[0].item() == pytest.approx(9.0)


def test_fast_start_ends_at_the_decay(tmp_path: Path) -> None:
    """The n-th decay is the smaller of (1+n)/(10+n) and what was asked for: at n = 8 both are one half."""
    ema = EMA(decay=0.5)
    prepared(tmp_path, ema)
    found = []
    for _ in range(10):
        ema.after_batch()
        found.append(ema.decay_now())
    assert found == [(1 + n) / (10 + n) for n in range(1, 8)] + [0.5] * 3


@pytest.mark.parametrize("fast", [True, False])
def test_the_average_of_a_run_by_long_hand(tmp_path: Path, fast: bool) -> None:  # noqa: FBT001
    """Over eight steps w ← (w + x) / 2 the average is a ← d·a + (1 - d)·w."""
    ema = EMA(decay=0.7, faster_decay_at_start=fast)
    run = fake_run(tmp_path, ema)
    train(run)
    w = a = 0.0
    for n, x in enumerate(range(8), start=1):
        w = (w + x) / 2
        d = min(0.7, (1 + n) / (10 + n)) if fast else 0.7
        a = d * a + (1 - d) * w
    assert weight_of(run).item() == w
    assert ema.averages[0].item() == pytest.approx(a, rel=1e-6)
    assert ema.updates == 8


def test_agrees_with_torch(tmp_path: Path) -> None:
    """On a net whose weights wander, the averages are those of torch's AveragedModel; buffers are not averaged."""
    model = net()
    ema = EMA(decay=0.9, faster_decay_at_start=False)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    oracle = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    oracle.update_parameters(model)  # its first update copies, which is where we start
    for _ in range(20):
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p))
        ema.after_batch()
        oracle.update_parameters(model)
    expected = dict(oracle.module.named_parameters())
    assert ema.names == [name for name, p in model.named_parameters() if p.requires_grad]
    for name, average in zip(ema.names, ema.averages, strict=True):
        torch.testing.assert_close(average, expected[name].detach(), rtol=1e-5, atol=1e-6)


def test_buffers_and_frozen_weights_are_left_alone(tmp_path: Path) -> None:
    """What is not trained is neither averaged nor lent."""
    model = net()
    ema = EMA(decay=0.5)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    model(torch.randn(8, 3))  # moves the running statistics
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.after_batch()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "2.bias" not in ema.names
    with ema.lent():
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, own[name]) == (name not in ema.names), name


def test_validation_and_inference_see_the_average(tmp_path: Path) -> None:
    """Both see the average, training never does, and nothing is copied: two places change owners."""
    ema, peek = EMA(decay=0.5, faster_decay_at_start=False), Peek()
    run = fake_run(tmp_path, ema, peek, task=TinyTask(data={"train": TinyData(2)}), max_epochs=2)
    train(run)
    assert peek.seen["batch"] == [0.0, 0.5, 0.25, 0.625]
    assert peek.seen["validate"] == peek.seen["infer"] == [0.25, 0.4375]
    assert len(peek.places["batch"]) == len(peek.places["validate"]) == 1
    assert peek.places["validate"] == peek.places["infer"]
    assert peek.places["validate"].isdisjoint(peek.places["batch"])


def test_not_lent_if_not_wanted(tmp_path: Path) -> None:
    """With ``validate: false`` everybody sees the model's own weights, and the average is kept all the same."""
    ema, peek = EMA(decay=0.5, faster_decay_at_start=False, validate=False), Peek()
    run = fake_run(tmp_path, ema, peek, task=TinyTask(data={"train": TinyData(2)}))
    train(run)
    assert peek.seen["validate"] == peek.seen["infer"] == [0.5]
    assert ema.averages[0].item() == 0.25
    assert ema.validation_weights(run.task.model) is None
    assert ema.averaged_weights(run.task.model)["weight"].item() == 0.25


def test_weights_come_back_after_an_error(tmp_path: Path) -> None:
    """Validation may fail, the model has its own weights again."""

    class Failing:
        @hookimpl
        def validate(self, run: Run) -> None:
            assert weight_of(run).item() == 0.25
            raise RuntimeError("broken")

    ema = EMA(decay=0.5, faster_decay_at_start=False)
    run = fake_run(tmp_path, ema, Failing(), task=TinyTask(data={"train": TinyData(2)}))
    with pytest.raises(RuntimeError, match="broken"):
        train(run)
    assert weight_of(run).item() == 0.5
    assert ema.averages[0].item() == 0.25


def test_weights_come_back_after_a_stop(tmp_path: Path) -> None:
    """Asked to stop while validating, the model has its own weights at shutdown."""

    @define(eq=False)
    class Stopping:
        last: float = 0.0

        @hookimpl
        def validate(self, run: Run) -> None:
            run.stop("enough")

        @hookimpl
        def shutdown(self, run: Run) -> None:
            self.last = weight_of(run).item()

    stopping = Stopping()
    train(fake_run(tmp_path, EMA(), stopping, task=TinyTask(data={"train": TinyData(2)})))
    assert stopping.last == 0.5


def test_infers_after_validating(tmp_path: Path) -> None:
    """However often it is lent, the model holds its own weights in between."""
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    run = prepared(tmp_path, ema)
    weight_of(run).data.fill_(4.0)
    ema.after_batch()
    for _ in range(2):
        run.hook.validate(run=run)
        run.hook.infer(run=run)
        assert (weight_of(run).item(), ema.averages[0].item()) == (4.0, 2.0)
    with ema.lent():
        assert weight_of(run).item() == 2.0
    assert weight_of(run).item() == 4.0


def test_the_optimizer_keeps_moving_the_models_own_weights(tmp_path: Path) -> None:
    """After a lend a step moves the weight, not the average."""
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    run = prepared(tmp_path, ema)
    with ema.lent():
        pass
    run.hook.train_step(run=run, batch=torch.tensor([4.0]))
    assert (weight_of(run).item(), ema.averages[0].item()) == (2.0, 0.0)
    ema.after_batch()
    assert (weight_of(run).item(), ema.averages[0].item()) == (2.0, 1.0)


def test_state_round_trip_is_exact(tmp_path: Path) -> None:
    """Loaded into a fresh plugin, averages and count go on as if nothing had happened."""
    first, second = EMA(decay=0.9), EMA(decay=0.9)
    run = fake_run(tmp_path / "a", first, task=TinyTask(noise=1.0))
    train(run)
    other = prepared(tmp_path / "b", second)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    weight_of(other).data.copy_(weight_of(run).data)
    for ema in (first, second):
        ema.after_batch()
    assert second.updates == first.updates == 9
    assert second.averages[0].item() == first.averages[0].item()


def test_validation_weights_are_a_whole_state_dict(tmp_path: Path) -> None:
    """They load strictly: averages for what is trained, everything else as it is; the model is not changed."""
    model = net()
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(2.0)
    ema.after_batch()
    weights = ema.validation_weights(model)
    assert weights is not None
    net().load_state_dict(weights)
    for name, tensor in weights.items():
        moved = {"2.bias": 2.0}.get(name, 1.0 if name in ema.names else 0.0)
        torch.testing.assert_close(tensor, before[name] + moved if moved else before[name])
    torch.testing.assert_close(model.get_parameter("0.weight").detach(), before["0.weight"] + 2.0)


def test_shared_weights_are_averaged_under_each_name(tmp_path: Path) -> None:
    """A weight with two names has its average under both, or loading would bring the raw one back."""
    layers = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model = nn.Sequential(*layers)
    layers[1].weight = layers[0].weight
    with torch.no_grad():
        layers[0].weight.fill_(0.0)
    ema = EMA(decay=0.5, faster_decay_at_start=False)
    prepared(tmp_path, ema, task=TinyTask(model=model))
    with torch.no_grad():
        layers[0].weight.fill_(2.0)
    ema.after_batch()
    weights = ema.averaged_weights(model)
    assert weights["0.weight"].tolist() == weights["1.weight"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_impossible_decays_are_refused(decay: float) -> None:
    """A decay of one would never move."""
    with pytest.raises(ValueError, match="decay"):
        EMA(decay=decay)
