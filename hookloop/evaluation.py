"""Mean losses without learning: what validation and the evaluation on training data share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from hookloop.seeding import seed_torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from hookloop.core import Run
    from hookloop.task import Order


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put *model* into evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()  # not inference_mode: what a model caches meanwhile must remain usable for training
def mean_losses(
    run: Run, split: str, *, epoch: int = 0, batches: int | None = None, order: Order = "main"
) -> dict[str, float] | None:
    """Losses by name, averaged over the samples of *split*; ``None`` if all ranks are to stop meanwhile.

    The noise of batch *i* is the same at every call, so that epochs can be compared. Several ranks share each
    batch, and have the same answer, which is that of one but for rounding.

    :param batches: look at no more than this many batches.
    """
    data, share = run.data[split], run.ranks.share
    sums: dict[str, torch.Tensor] = {}
    samples = 0
    with evaluating(run.task.model):
        for i, batch in enumerate(data.batches(epoch, 0, batches, order)):
            if run.agree():
                return None
            seed_torch(run.seed("evaluate", i), run.device)
            size = min(data.batch_size, data.n_samples - i * data.batch_size)
            own = size * share.weight(size) / share.world
            with run.optimization.autocast():
                losses = run.task.loss(batch)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + _at_least_float32(loss.detach()) * own
            samples += size
    totals = run.ranks.gather({name: float(total) for name, total in sums.items()})
    return {name: sum(total[name] for total in totals) / samples for name in sums}


def _at_least_float32(loss: torch.Tensor) -> torch.Tensor:
    return loss if loss.dtype == torch.float64 else loss.float()
