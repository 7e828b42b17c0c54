from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from attrs import define
from ranks import on_ranks
from shared_learning import (
    Block,
    Learnt,
    Model,
    Noting,
    PointTask,
    content,
    learn,
    point_task,
    refused,
    resaved,
    shared_run,
)
from torch import nn

from hookloop.core import Run, prepare, train
from hookloop.diffusion.edm import Precondition
from hookloop.diffusion.unet import UNet
from hookloop.distributed import Ranks
from hookloop.errors import HookloopError
from hookloop.fully_shard import FullyShard, blocks, roots
from hookloop.hookspecs import hookimpl
from hookloop.optimization import Optimization
from hookloop.plugins.distributed import Distributed
from hookloop.plugins.ema import EMA
from hookloop.plugins.finetune import Finetune, FrozenOptions
from hookloop.sharding import is_shard, own_part
from hookloop.strategies import Alone, Replicate, expect_no_batch_norm, mean_gradients, parts_in
from hookloop.testing import TinyPlugin, _assert_same, fake_run
from hookloop.trial import undone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from shared_learning import Rows
    from torch import Tensor

    from hookloop.task import Task

WAYS: dict[str, dict[str, object]] = {
    "AdamW": {},
    "SGD": {"optimizer": "SGD", "lr": 0.1},
    "accumulated": {"accumulate": 3},
    "clipped": {"clip_norm": 0.3, "accumulate": 2},
}


def all_ways(ranks: Ranks, directory: Path, strategy: str) -> dict[str, Learnt]:
    """Learn in each way, two epochs of three batches, of which the last has two rows."""
    return {
        name: learn(ranks, directory / name, strategy=strategy, optimization=way, max_epochs=2)
        for name, way in WAYS.items()
    }


def assert_close(found: object, expected: object) -> None:
    """Compare containers of tensors and numbers to 1e-10."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Learnt]:
    """What one process learns."""
    return all_ways(Ranks(), tmp_path_factory.mktemp("alone"), "replicate")


@pytest.mark.parametrize("strategy", ["replicate", "fully_shard"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_learn_what_one_process_learns(
    alone: dict[str, Learnt], tmp_path: Path, world: int, strategy: str
) -> None:
    """Losses, weights, moments, averages and validation: with four ranks some have no row of the last batch."""
    ranks = on_ranks(world, all_ways, tmp_path, strategy)
    for name, expected in alone.items():
        for found in ranks:
            assert_close(found[name].losses, expected.losses)
            assert_close(found[name].validated, expected.validated)
        assert_close(ranks[0][name].best, expected.best)
        for part in ("model", "plugins"):
            assert_close(ranks[0][name].state[part], expected.state[part])
        optimizer = ranks[0][name].state["optimization"]["optimizer"]  # type: ignore[index]
        assert_close(optimizer["state"], expected.state["optimization"]["optimizer"]["state"])  # type: ignore[index]


CHAIN = [(1, "replicate"), (2, "fully_shard"), (4, "replicate"), (4, "fully_shard"), (1, "replicate")]


def on(world: int, function: object, *arguments: object) -> list[object]:
    """Call *function* on so many ranks, or here for one."""
    return [function(Ranks(), *arguments)] if world == 1 else on_ranks(world, function, *arguments)  # type: ignore[operator, arg-type]


def learn_until(
    ranks: Ranks, directory: Path, strategy: str, stop: int | None, accumulate: int = 2
) -> Learnt:
    """Go on as far as a step; gradients wait where that is odd."""
    way = {"accumulate": accumulate}
    return learn(ranks, directory, stop, strategy=strategy, optimization=way, max_epochs=4)


def resaved_content(ranks: Ranks, directory: Path, strategy: str) -> tuple[object, object]:
    """What would be saved of what was restored."""
    return resaved(ranks, directory, strategy=strategy, optimization={"accumulate": 2}, max_epochs=4)


def test_a_run_goes_on_with_any_number_of_ranks_and_any_strategy(tmp_path: Path) -> None:
    """Stopped every second or third step, in the middle of accumulating too, it ends as one process does."""
    through = learn_until(Ranks(), tmp_path / "through", "replicate", None)
    losses, found = [], None
    for (world, strategy), stop in zip(CHAIN, [2, 5, 7, 10, None], strict=True):
        found = on(world, learn_until, tmp_path / "chain", strategy, stop)[0]
        assert isinstance(found, Learnt)
        losses += found.losses
    assert isinstance(found, Learnt)
    assert_close(losses, through.losses)
    assert_close(found.best, through.best)
    assert_close(found.state["model"], through.state["model"])


def test_what_is_restored_is_saved_as_it_was(tmp_path: Path) -> None:
    """The file of one process, restored by two or four with either strategy, would be saved bit for bit the same."""
    learn_until(Ranks(), tmp_path, "replicate", 4)
    expected = resaved_content(Ranks(), tmp_path, "replicate")
    for world in (2, 4):
        for strategy in ("replicate", "fully_shard"):
            found = on(world, resaved_content, tmp_path, strategy)[0]
            for one, other in zip(found, expected, strict=True):  # type: ignore[call-overload]
                _assert_same(one, other)
            assert type(found[0]["model"]) is type(expected[0]["model"])  # type: ignore[index]


@pytest.mark.parametrize("strategy", ["replicate", "fully_shard"])
def test_a_resumed_run_of_four_ranks_is_exact(tmp_path: Path, strategy: str) -> None:
    """Stopped while gradients wait, it ends bit for bit as without the stop."""
    through = on(4, learn_until, tmp_path / "a", strategy, None, 3)[0]
    first = on(4, learn_until, tmp_path / "b", strategy, 5, 3)[0]
    second = on(4, learn_until, tmp_path / "b", strategy, None, 3)[0]
    assert isinstance(through, Learnt)
    assert isinstance(first, Learnt)
    assert isinstance(second, Learnt)
    assert first.losses + second.losses == through.losses
    _assert_same(second.state, through.state)


def messages(ranks: Ranks, directory: Path) -> list[int]:
    """Count the gradients sent with each of six batches, of which three make an update."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    sent = [0]
    run = shared_run(ranks, directory, optimization={"accumulate": 3})
    prepare(run)

    def counted(_, bucket):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - torch compares annotations
        sent[-1] += 1
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    assert isinstance(run.optimization.strategy, Replicate)
    run.optimization.strategy._averaging.register_comm_hook(None, counted)
    for epoch in range(2):
        for number, batch in enumerate(run.data["train"].batches(epoch)):
            run.progress.batch = number
            run.hook.train_step(run=run, batch=batch)
            sent.append(0)
    return sent[:-1]


def test_gradients_are_sent_once_an_update(tmp_path: Path) -> None:
    """Of batches whose gradients wait, nothing is sent."""
    assert on_ranks(2, messages, tmp_path) == [[0, 0, 1, 0, 0, 1]] * 2


def tried(ranks: Ranks, directory: Path, strategy: str) -> list[bool]:
    """Learn three batches, three more on trial, and compare weights, moments and averages with those before."""
    run = shared_run(ranks, directory, strategy=strategy, optimization={"accumulate": 2}, max_epochs=4)
    prepare(run)
    (ema,) = (plugin for plugin in run.plugins.values() if isinstance(plugin, EMA))

    def three() -> None:
        for number, batch in enumerate(run.data["train"].batches(0)):
            run.progress.batch = number
            run.hook.train_step(run=run, batch=batch)
            ema.after_batch()

    def parts() -> list[Tensor]:
        moments = run.optimization.optimizer.state.values()
        held = [*run.optimization.parameters, *ema.averages, *(t for m in moments for t in m.values())]
        gradients = [p.grad for p in run.optimization.parameters if p.grad is not None]
        return [own_part(t).detach().clone() for t in [*held, *gradients]]

    three()
    before = parts()
    with undone(run, [ema]):
        three()
        three()
        moved = not all(map(torch.equal, parts(), before))
    after = parts()
    return [
        moved,
        len(after) == len(before),
        all(map(torch.equal, after, before)),
        run.optimization.pending == 1,
    ]


@pytest.mark.parametrize("strategy", ["replicate", "fully_shard"])
def test_a_trial_leaves_no_trace(tmp_path: Path, strategy: str) -> None:
    """It moves weights, and afterwards these, moments, averages and waiting gradients are what they were."""
    assert on_ranks(2, tried, tmp_path, strategy) == [[True, True, True, True]] * 2


def evaluated_unevenly(ranks: Ranks, directory: Path, strategy: str) -> tuple[list[float], list[bool]]:
    """Rank 1 alone calls the model while it is lent, then all learn on; see what the model holds then and after."""
    run = shared_run(ranks, directory, strategy=strategy)
    prepare(run)
    network = run.task.model.get_submodule("network")
    (ema,) = (plugin for plugin in run.plugins.values() if isinstance(plugin, EMA))
    sample, found = torch.ones(1, 3, dtype=torch.float64), []
    averages = {**run.optimization.strategy.gathered(dict(ema.averaged_weights(run.task.model)))}
    for epoch in range(2):
        for number, batch in enumerate(run.data["train"].batches(epoch)):
            run.progress.batch = number
            run.hook.train_step(run=run, batch=batch)
            ema.after_batch()
        with ema.lent(), run.optimization.strategy.lent(), torch.no_grad():
            if ranks.rank == 1:
                found = [network(sample).sum().item() for _ in range(3)]
    return found, [
        bool(averages),
        all(is_shard(p) == (strategy == "fully_shard") for p in network.parameters()),
    ]


def test_ranks_may_call_a_lent_model_unequally_often(tmp_path: Path) -> None:
    """Shards are put together once, of the averages, so that a rank may have more to generate than another."""
    one, other = (
        on_ranks(2, evaluated_unevenly, tmp_path / strategy, strategy)[1]
        for strategy in ("replicate", "fully_shard")
    )
    assert len(set(one[0])) == 1
    assert_close(other[0], one[0])
    assert one[1] == other[1] == [True, True]


def half_the_bytes(ranks: Ranks, directory: Path, strategy: str) -> list[dict[str, float]]:
    """The losses where gradients are sent in bf16."""
    noting = Noting()
    run = shared_run(ranks, directory, noting, strategy=strategy, optimization=WAYS["SGD"], max_epochs=2)
    (distributed,) = (plugin for plugin in run.plugins.values() if isinstance(plugin, Distributed))
    distributed.reduce = "bf16"
    train(run)
    return noting.losses


@pytest.mark.parametrize("strategy", ["replicate", "fully_shard"])
def test_gradients_may_be_sent_in_half_the_bytes(
    alone: dict[str, Learnt], tmp_path: Path, strategy: str
) -> None:
    """Losses agree to the three digits of bf16, and no better."""
    expected = [losses["loss"] for losses in alone["SGD"].losses]
    one, other = (
        [losses["loss"] for losses in found] for found in on_ranks(2, half_the_bytes, tmp_path, strategy)
    )
    assert one == other
    assert one == pytest.approx(expected, rel=1e-2)
    assert one != pytest.approx(expected, rel=1e-8)


@define(eq=False)
class OnItsOwn:
    """Learns from the task's own loss, as a plugin may that knows of one process only."""

    updates: bool = True

    @hookimpl
    def train_step(self, run: Run, batch: object) -> Mapping[str, Tensor]:
        """Learn."""
        losses = run.task.loss(batch)
        if self.updates:
            run.optimization.update(losses["loss"])
        return {name: loss.detach() for name, loss in losses.items()}


def on_its_own(ranks: Ranks, directory: Path, updates: bool) -> None:  # noqa: FBT001
    """Learn so."""
    train(shared_run(ranks, directory, OnItsOwn(updates)))


@pytest.mark.parametrize("updates", [True, False])
def test_learning_without_the_others_is_refused(tmp_path: Path, updates: bool) -> None:  # noqa: FBT001
    """With one process it works; with two the first batch says what to call."""
    on_its_own(Ranks(), tmp_path / "one", updates)
    for said in on_ranks(2, refused, on_its_own, tmp_path / "two", updates):
        assert "run.optimization.losses" in said


@define(eq=False)
class ThirdParty:
    """Makes an optimization of its own."""

    @hookimpl
    def make_optimization(self, run: Run, task: Task) -> Optimization:
        """Plain gradient descent."""
        return Optimization(torch.optim.SGD(task.model.parameters(), lr=0.1), run.device)


def of_a_third_party(ranks: Ranks, directory: Path, strategy: str) -> Learnt:
    """Learn with that."""
    noting = Noting()
    run = shared_run(ranks, directory, noting, ThirdParty(), strategy=strategy, max_epochs=2)
    train(run)
    return Learnt(noting.losses, noting.validated, *content(run))


def test_an_optimization_of_a_third_party_learns_together(tmp_path: Path) -> None:
    """It knows nothing of ranks, and is given a strategy."""
    expected = of_a_third_party(Ranks(), tmp_path / "one", "replicate")
    for strategy in ("replicate", "fully_shard"):
        found = on_ranks(2, of_a_third_party, tmp_path / strategy, strategy)[0]
        assert_close(found.losses, expected.losses)
        assert_close(found.state["model"], expected.state["model"])


def unequal(ranks: Ranks, directory: Path) -> None:
    """Begin with other weights on rank 1."""
    prepare(shared_run(ranks, directory, task=point_task(seed=ranks.rank)))


def test_unequal_weights_are_refused(tmp_path: Path) -> None:
    """All ranks say which differ."""
    with pytest.raises(
        HookloopError, match=r"ranks 0 and 1 begin with different weights: network\.stem\.weight"
    ):
        on_ranks(2, unequal, tmp_path)


def normalized(kind: type[nn.Module], **options: object) -> PointTask:
    """A network that begins with a layer of that kind."""
    task = point_task()
    network = task.model.get_submodule("network")
    network.stem = nn.Sequential(
        nn.Unflatten(1, (3, 1)), kind(3, **options), nn.Flatten(), network.stem
    ).double()
    return task


def normalizing(ranks: Ranks, directory: Path, kind: type[nn.Module], options: dict[str, object]) -> None:
    """Learn with it."""
    train(shared_run(ranks, directory, task=normalized(kind, **options)))


@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}])
def test_statistics_of_a_batch_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    """Each rank would take those of its own rows; one process learns with them."""
    normalizing(Ranks(), tmp_path / "one", nn.BatchNorm1d, options)
    for said in on_ranks(2, refused, normalizing, tmp_path / "two", nn.BatchNorm1d, options):
        assert "network.stem.1: a BatchNorm1d" in said
        assert "GroupNorm" in said


class Frozen(nn.BatchNorm1d):
    """Statistics that stay what they are."""

    def train(self, mode: bool = True) -> Frozen:  # noqa: FBT001, FBT002 - torch's
        """Never."""
        return super().train(mode=False)


def test_frozen_statistics_are_accepted() -> None:
    """They do not depend on a batch; what asks leaves every module in the mode in which it was."""
    model = nn.Sequential(Frozen(3), nn.Dropout(), nn.Dropout().eval())
    modes = [module.training for module in model.modules()]
    expect_no_batch_norm(Ranks(), model)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(HookloopError, match="BatchNorm1d"):  # an epoch begins in training mode
        expect_no_batch_norm(Ranks(), nn.BatchNorm1d(3).eval())


class Counting(nn.Module):
    """Keeps the mean of what it has seen last."""

    def __init__(self, channels: int, *, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        """Give *x*."""
        self.mean.copy_(x.mean((0, 2)))
        return x


def test_buffers_that_ranks_change_differently_are_refused(tmp_path: Path) -> None:
    """After the first batch, since rank 0's would be saved for all; what is not saved is nobody's business."""
    normalizing(Ranks(), tmp_path / "one", Counting, {"persistent": True})
    for said in on_ranks(2, refused, normalizing, tmp_path / "two", Counting, {"persistent": True}):
        assert said.startswith("ranks 0 and 1 have come to different buffers: network.stem.1.mean;")
    assert not (tmp_path / "two/checkpoints/latest.ckpt").exists()
    assert on_ranks(2, refused, normalizing, tmp_path / "two", Counting, {"persistent": False}) == ["", ""]


def without_a_strategy(ranks: Ranks, directory: Path) -> None:
    """Leave out the plugin."""
    run = fake_run(directory, TinyPlugin(point_task()))
    run.ranks = ranks
    prepare(run)


def test_several_ranks_without_a_strategy_are_refused(tmp_path: Path) -> None:
    """They would learn different weights."""
    for said in on_ranks(2, refused, without_a_strategy, tmp_path):
        assert "leave out no:distributed" in said


def shared_weights() -> nn.Module:
    """One weight under two names."""
    model = Model()
    network = model.get_submodule("network")
    network.get_submodule("blocks.0.linear").weight = network.get_submodule("blocks.1.linear").weight
    return model


def scalar() -> nn.Module:
    """A weight without dimensions."""
    model = Model()
    model.get_submodule("network").register_parameter("gain", nn.Parameter(torch.ones(())))
    return model


def outside() -> nn.Module:
    """A weight of a module that is never called."""
    model = Model()
    model.register_parameter("offset", nn.Parameter(torch.ones(2)))
    return model


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (shared_weights, r"blocks\.1\.linear\.weight is network\.blocks\.0\.linear\.weight too"),
        (scalar, r"network\.gain is a single number"),
        (outside, r"offset is in no module with a forward"),
    ],
)
def test_what_cannot_be_divided_is_refused(make: Callable[[], nn.Module], problem: str) -> None:
    """Before anything is divided, with the name and the way out."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(HookloopError, match=f"{problem}.*set distributed.strategy to replicate"):
        FullyShard.of(Ranks(), model, optimizer, torch.device("cpu"))


def test_blocks_are_the_elements_of_lists() -> None:
    """The container is no root, a list in a list is no block, and nothing is divided twice."""
    model = Model()
    network = model.get_submodule("network")
    assert list(roots(model)) == [network]
    assert list(blocks(network)) == list(network.get_submodule("blocks").children())
    nested = nn.Sequential(nn.ModuleList([nn.ModuleList([Block(), Block()]), nn.Identity()]))
    assert list(blocks(nested)) == [nested.get_submodule("0.0.0"), nested.get_submodule("0.0.1")]


def test_gradients_of_ranks_average() -> None:
    """One that a rank lacks counts 0, one that all lack stays out, and those of one rank are its own."""
    one, two = torch.tensor([2.0]), torch.tensor([4.0])
    state = {"rank_gradients": [[one, None, two], [two, None, None]]}
    assert mean_gradients(parts_in(state)) == [torch.tensor([3.0]), None, torch.tensor([2.0])]
    assert Alone().taken({"gradients": [one, None]}) == [one, None]
    assert Alone().taken({}) == []


class Denoising(nn.Module):
    """The network that hookloop trains, in a container as its tasks have it."""

    def __init__(self) -> None:
        super().__init__()
        network = UNet(1, 1, channels=8, multipliers=(1, 2), blocks=1)
        for parameter in network.parameters():  # none is zero, so that all of them matter
            nn.init.normal_(parameter, std=0.1)
        self.denoiser = Precondition(network)


@define(eq=False)
class DenoisingTask(PointTask):
    """Remove noise from little fields made of points."""

    def loss(self, batch: Rows) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Give the loss of EDM."""
        fields = batch.values.float().prod(1)[:, None, None, None] * torch.linspace(-1, 1, 36).view(
            1, 1, 6, 6
        )
        noise = torch.randn(batch.total, 1, 6, 6)[batch.numbers]
        denoised = self.model.get_submodule("denoiser")(
            fields + noise, torch.ones(len(fields)), torch.zeros_like(fields)
        )
        return {"loss": (denoised - fields).square().mean()}


def denoise(ranks: Ranks, directory: Path, strategy: str) -> Learnt:
    """Learn to, for three steps, with clipping."""
    task = point_task()
    torch.manual_seed(1)
    way = {"optimizer": "SGD", "lr": 0.05, "clip_norm": 1.0}
    task = DenoisingTask(data=task.data, model=Denoising())
    return learn(ranks, directory, strategy=strategy, optimization=way, task=task)


@pytest.mark.parametrize("strategy", ["replicate", "fully_shard"])
def test_the_unet_is_trained_on_two_ranks(tmp_path: Path, strategy: str) -> None:
    """With its blocks divided it learns the same in float32, to rounding."""
    expected = denoise(Ranks(), tmp_path / "one", "replicate")
    found = on_ranks(2, denoise, tmp_path / "two", strategy)[0]
    assert len(expected.losses) == 3
    for one, other in zip(found.losses, expected.losses, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    torch.testing.assert_close(found.state["model"], expected.state["model"], rtol=1e-3, atol=1e-5)
    assert len({losses["loss"] for losses in found.losses}) == 3


def finetuned(ranks: Ranks, directory: Path, strategy: str, checkpoint: Path) -> Learnt:
    """Start from another run's weights, moments and averages, with more of them frozen."""
    frozen = FrozenOptions(include=["network.stem.*"])
    plugin = Finetune(checkpoint=checkpoint, frozen=frozen, optimizer=True, averages=True)
    noting = Noting()
    run = shared_run(ranks, directory, noting, plugin, strategy=strategy, max_epochs=2)
    train(run)
    return Learnt(noting.losses, noting.validated, *content(run))


@pytest.mark.parametrize("strategy", ["replicate", "fully_shard"])
def test_what_another_run_has_learnt_is_taken_over(tmp_path: Path, strategy: str) -> None:
    """Weights before they are divided, moments and averages after that; what is frozen stays."""
    before = learn(Ranks(), tmp_path / "before", max_epochs=2)
    origin = tmp_path / "before/checkpoints/latest.ckpt"
    expected = finetuned(Ranks(), tmp_path / "one", "replicate", origin)
    found = on_ranks(2, finetuned, tmp_path / "two", strategy, origin)[0]
    assert_close(found.losses, expected.losses)
    assert_close(found.state["model"], expected.state["model"])
    assert_close(found.best, expected.best)
    for name, weight in found.state["model"].items():  # type: ignore[attr-defined]
        stays = name.startswith("network.stem") or name in ("network.scale", "network.head.bias")
        stays |= name.startswith(("network.spare", "network.blocks.2"))
        assert torch.equal(weight, before.state["model"][name]) == stays  # type: ignore[index]
