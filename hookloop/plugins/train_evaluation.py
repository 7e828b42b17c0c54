"""The loss on training data, measured as validation is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field
from attrs.validators import ge

from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hookloop.core import Run


@define(eq=False)
class TrainEvaluation:
    """Report the losses on an independent shuffle of the training data, with the weights validation uses.

    Unlike the mean over the epoch, it can be compared with ``val/loss``.
    """

    batches: int = field(default=50, validator=ge(0), metadata=doc("how many batches; 0 for none"))

    @hookimpl
    def validate(self, run: Run) -> Mapping[str, float] | None:
        """``train/loss`` and ``train/loss/<variable>``."""
        from hookloop.evaluation import mean_losses

        if not self.batches:
            return None
        count = min(self.batches, run.task.data["train"].n_batches)
        losses = mean_losses(run, "train", epoch=run.progress.epoch, batches=count, order="alternate")
        return losses and {f"train/{name}": value for name, value in losses.items()}
