"""Plugins of a throw-away distribution: ``chaos`` strikes inside a hook, ``workers`` has a data loader with one.

Both are listed by every start of their runs, and idle in those that nothing was planned for.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import attrs
from attrs import define, field, frozen

from hookloop import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from hookloop.core import Run


@frozen
class Point:
    """The *occurrence*-th time that *name* is reached, *signal* is sent."""

    name: str
    occurrence: int
    signal: int
    group: bool = False
    """To all processes of the run, as a scheduler does, or only to the one that got there."""
    rank: int = 0
    """Which of several ranks is to get there."""

    def plain(self) -> dict[str, object]:
        """Give what JSON knows."""
        return attrs.asdict(self)


@define
class _Plan:
    point: Point | None = None
    reached: int = 0


PLAN = _Plan()
"""Set in a child before its run begins; forked workers inherit it."""


def reach(name: str) -> None:
    """Strike if this is the point that was planned."""
    point = PLAN.point
    if point is None or point.name != name:
        return
    PLAN.reached += 1
    if PLAN.reached == point.occurrence:
        if point.group:
            os.killpg(os.getpgrp(), point.signal)
        else:
            os.kill(os.getpid(), point.signal)


@define(eq=False)
class Chaos:
    """Reaches a point in every hook, inside the optimizer's step, in a snapshot and in its restoration."""

    @hookimpl
    def before_run(self, run: Run) -> None:
        from torch.optim import optimizer

        reach("before_run")
        for register, name in (
            (optimizer.register_optimizer_step_pre_hook, "update"),
            (optimizer.register_optimizer_step_post_hook, "updated"),
        ):
            run.cleanup.callback(register(_Reaching(name)).remove)

    @hookimpl
    def before_epoch(self) -> None:
        reach("before_epoch")

    @hookimpl
    def before_batch(self) -> None:
        reach("before_batch")

    @hookimpl
    def after_batch(self) -> None:
        reach("after_batch")

    @hookimpl
    def validate(self) -> None:
        """Reached within the wrappers: the averages are lent."""
        reach("validate")

    @hookimpl
    def infer(self) -> None:
        reach("infer")

    @hookimpl
    def after_epoch(self) -> None:
        reach("after_epoch")

    @hookimpl
    def shutdown(self) -> None:
        reach("shutdown")

    def state_dict(self) -> dict[str, object]:
        reach("snapshot")
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        reach("restore")


@frozen
class _Reaching:
    name: str

    def __call__(self, *_: object) -> None:
        reach(self.name)


@frozen
class Samples:
    """What a worker process reads: 12 samples and their squares."""

    seed: int

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        reach("worker")
        x = torch.randn(4, generator=torch.Generator().manual_seed(self.seed + i))
        return x, x.square()


@define(eq=False)
class Loaded:
    """A split that a torch ``DataLoader`` with one worker process reads."""

    run: Run
    name: str
    shielded: bool
    batch_size: int = 2
    n_samples: int = 12
    n_batches: int = 6

    def batches(
        self, epoch: int, start: int = 0, stop: int | None = None, order: str = "main"
    ) -> Iterator[list[Tensor]]:
        import torch
        from torch.utils.data import DataLoader

        generator = torch.Generator().manual_seed(self.run.seed(f"order/{order}", epoch))
        shuffled = torch.randperm(self.n_samples, generator=generator).view(-1, self.batch_size).tolist()
        loader = DataLoader(
            Samples(self.run.seed(self.name)),  # type: ignore[arg-type]
            batch_sampler=shuffled[start:stop],
            num_workers=1,
        )
        with _signals_left_to_the_run() if self.shielded else nullcontext():
            batches = iter(loader)
        yield from batches


@contextmanager
def _signals_left_to_the_run() -> Iterator[None]:
    """Processes made meanwhile never hear of what asks the whole group to end; a worker's own start is too late."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@define(eq=False)
class Workers:
    """A task that is cheap but for its worker process."""

    shielded: bool = False
    """Whether workers ignore what asks the whole group to end, so that they can serve until the run has saved."""
    data: dict[str, Loaded] = field(factory=dict, init=False)
    model: nn.Module = field(init=False)

    @hookimpl
    def make_task(self, run: Run) -> Workers:
        import torch
        from torch import nn

        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 4))
        self.data = {name: Loaded(run, name, self.shielded) for name in ("train", "validation")}
        return self

    def loss(self, batch: list[Tensor]) -> dict[str, Tensor]:
        from torch import nn

        return {"loss": nn.functional.mse_loss(self.model(batch[0]), batch[1])}


def install(site: Path) -> None:
    """Make the distribution in *site*, a folder on the path of the processes that are to find it."""
    information = site / "hookloop_faults-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: hookloop-faults\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[hookloop]\nchaos = faults.points:Chaos\nworkers = faults.points:Workers\n"
    )
