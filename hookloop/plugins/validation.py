"""The loss on data that is not learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

from hookloop.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hookloop.core import Run


@define(eq=False)
class Validation:
    """Report the losses on the ``validation`` split, with the same noise in every epoch."""

    @hookimpl
    def validate(self, run: Run) -> Mapping[str, float] | None:
        """``val/loss`` and ``val/loss/<variable>``; nothing where the task has no such split."""
        from hookloop.evaluation import mean_losses

        if "validation" not in run.task.data:
            return None
        losses = mean_losses(run, "validation")
        return losses and {f"val/{name}": value for name, value in losses.items()}
