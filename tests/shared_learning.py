"""A run that several ranks share, in float64, small enough to be done many times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import define, evolve, field
from torch import Tensor, nn

from hookloop.core import Run, prepare, train
from hookloop.distributed import Ranks, Share
from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.manager import is_leader_only
from hookloop.plugins.checkpoint import Checkpoint
from hookloop.plugins.distributed import Distributed
from hookloop.plugins.ema import EMA
from hookloop.plugins.optimization import OptimizationPlugin
from hookloop.testing import TinyPlugin, TinyTask, fake_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from hookloop.task import Order

WIDTH = 6


class Block(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return x + self.gain * torch.tanh(self.linear(x))


class Network(nn.Module):
    """Some blocks, of which one is never called, a weight that is frozen, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.spare = nn.Linear(2, 2)
        self.head = nn.Linear(WIDTH, 2)
        self.head.bias.requires_grad = False
        self.register_buffer("scale", torch.linspace(1.0, 2.0, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[row, 3]`` to ``[row, 2]``."""
        x = self.stem(x * self.scale)
        for block in list(self.blocks)[:-1]:
            x = block(x)
        out: Tensor = self.head(x)
        return out


class Model(nn.Module):
    """A container without a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()


@define
class Rows:
    """Some rows of a batch."""

    values: Tensor
    numbers: list[int]
    total: int


@define(eq=False)
class Points:
    """Points of a known cloud in their own order."""

    n_samples: int = 10
    batch_size: int = 4
    share: Share = field(default=Share(), kw_only=True)

    def shared(self, share: Share) -> Points:
        """Give the rows of *share* only."""
        return evolve(self, share=share)

    @property
    def n_batches(self) -> int:
        """Batches an epoch."""
        return -(-self.n_samples // self.batch_size)

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: Order = "main"
    ) -> Iterator[Rows]:
        """Yield own rows; *order* is ignored."""
        del order
        generator = torch.Generator().manual_seed(epoch)
        cloud = torch.randn(self.n_samples, 3, generator=generator, dtype=torch.float64)
        for batch in cloud.split(self.batch_size)[start:stop]:
            numbers = list(self.share.rows(len(batch)))
            yield Rows(batch[numbers], numbers, len(batch))


@define(eq=False)
class PointTask(TinyTask):
    """Learn a product of coordinates through noise that is drawn for the whole batch."""

    def loss(self, batch: Rows) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Give the mean squared error, and those of both outputs."""
        x = batch.values
        noise = torch.randn(batch.total, 3, dtype=x.dtype)[batch.numbers]
        wanted = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], 1)
        errors = (self.model.get_submodule("network")(x + 0.1 * noise) - wanted).square().mean(0)
        return {"loss": errors.sum(), "loss/product": errors[0], "loss/third": errors[1]}


def point_task(seed: int = 0, n_samples: int = 10, batch_size: int = 4) -> PointTask:
    """Make the task, equal on every rank."""
    torch.manual_seed(seed)
    data = {"train": Points(n_samples, batch_size), "validation": Points(6, 4)}
    return PointTask(data=data, model=Model().double())


@define(eq=False)
class Noting:
    """Notes the losses of every step, and whether the average is what validation sees."""

    losses: list[dict[str, float]] = field(factory=list)
    validated: list[float] = field(factory=list)

    @hookimpl
    def after_batch(self, losses: Mapping[str, Tensor]) -> None:
        """Note them."""
        assert not any(loss.requires_grad for loss in losses.values())
        self.losses.append({name: loss.item() for name, loss in losses.items()})

    @hookimpl
    def after_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Note it."""
        self.validated.append(metrics["val/loss"])


@define(eq=False)
class StopAfter:
    """Asks to stop."""

    step: int

    @hookimpl
    def after_batch(self, run: Run) -> None:
        """At a step."""
        if run.progress.step == self.step:
            run.stop("enough")


def shared_run(
    ranks: Ranks,
    directory: Path,
    *plugins: object,
    strategy: str = "replicate",
    optimization: Mapping[str, object] | None = None,
    task: PointTask | None = None,
    **options: object,
) -> Run:
    """Make a run of *ranks* with an average, checkpoints and what is noted."""
    given: dict[str, object] = {"optimizer": "AdamW", "lr": 0.02, "weight_decay": 0.1, **(optimization or {})}
    run = fake_run(
        directory,
        EMA(decay=0.7, faster_decay_at_start=False),
        *plugins,
        TinyPlugin(task or point_task()),
        OptimizationPlugin(**given),  # type: ignore[arg-type]
        Distributed(strategy=strategy),  # type: ignore[arg-type]
        Checkpoint(every_n_batches=0, best={"best": "val/loss"}, asynchronous=False),
        **options,
    )
    run.ranks = ranks
    for plugin in run.plugins.values():
        if is_leader_only(plugin) and not ranks.leads:
            run.manager.unregister(plugin)
    return run


@define
class Learnt:
    """What has come of a run."""

    losses: list[dict[str, float]]
    validated: list[float]
    state: dict[str, object]
    """What its last checkpoint would hold, on rank 0."""
    best: dict[str, Tensor]
    """The weights that validation sees."""


def learn(ranks: Ranks, directory: Path, stop: int | None = None, **options: object) -> Learnt:
    """Train, as far as the step *stop* if that is given."""
    noting = Noting()
    stopping = [] if stop is None else [StopAfter(stop)]
    run = shared_run(ranks, directory, noting, *stopping, **options)  # type: ignore[arg-type]
    train(run)
    return Learnt(noting.losses, noting.validated, *content(run))


def content(run: Run) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Give what a checkpoint would hold of *run*, and a file of its averages."""
    (checkpoint,) = (plugin for plugin in run.plugins.values() if isinstance(plugin, Checkpoint))
    (ema,) = (plugin for plugin in run.plugins.values() if isinstance(plugin, EMA))
    strategy = run.optimization.strategy
    state = strategy.gathered(checkpoint._rest(run))
    averages = strategy.gathered(dict(ema.averaged_weights(run.task.model)))
    return state, averages  # type: ignore[return-value]


def refused(ranks: Ranks, function: Callable[..., object], *arguments: object) -> str:
    """Give what a call that the user is to mend says; nothing where it is well."""
    try:
        function(ranks, *arguments)
    except HookloopError as error:
        return str(error)
    return ""


def resaved(ranks: Ranks, directory: Path, **options: object) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Restore what lies in *directory*, and give what would be saved of that."""
    run = shared_run(ranks, directory, **options)  # type: ignore[arg-type]
    prepare(run)
    found = content(run)
    run.cleanup.close()
    return found
