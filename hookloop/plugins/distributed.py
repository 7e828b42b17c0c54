"""``distributed``: how several processes train one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import define, field, frozen

from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Generator

    from hookloop.core import Run
    from hookloop.optimization import Optimization
    from hookloop.strategies import Together
    from hookloop.task import Task


@define(eq=False)
class Distributed:
    """Share the work between the processes of a run; with one of them there is nothing to do.

    Neither option changes what is learnt, but for rounding; a run may go on with others, or with one process.
    """

    strategy: Literal["replicate", "fully_shard"] = field(
        default="replicate",
        metadata=doc(
            "replicate: each holds the model; fully_shard: each holds a part, where it is too large"
        ),
    )
    reduce: Literal["fp32", "bf16"] = field(
        default="fp32", metadata=doc("how gradients are sent; bf16 halves the bytes and rounds to 3 digits")
    )

    @hookimpl(wrapper=True)  # around whoever answers, and those who freeze or load weights before that
    def make_optimization(
        self, run: Run, task: Task
    ) -> Generator[None, Optimization | None, Optimization | None]:
        """Have the optimization that somebody makes do its work together with the other ranks."""
        optimization = yield
        if run.ranks.world > 1 and optimization is not None:
            optimization.strategy = strategy = self._begin(run, task, optimization)
            run.manager.register(_Witness(strategy), name="distributed/witness")
        return optimization

    def _begin(self, run: Run, task: Task, optimization: Optimization) -> Together:
        from hookloop.strategies import Replicate, expect_equal, expect_no_batch_norm

        expect_no_batch_norm(run.ranks, task.model)
        expect_equal(run.ranks, task.model)
        run.events.info("ranks.joined", ranks=run.ranks.world, strategy=self.strategy, reduce=self.reduce)
        size = task.data["train"].batch_size
        if size < run.ranks.world:
            run.events.warning(
                "ranks.idle",
                batch_size=size,
                ranks=run.ranks.world,
                hint="some learn from nothing: use fewer",
            )
        bf16 = self.reduce == "bf16"
        if self.strategy == "replicate":
            return Replicate.of(run.ranks, task, bf16=bf16)
        from hookloop.fully_shard import FullyShard

        return FullyShard.of(run.ranks, task.model, optimization.optimizer, run.device, bf16=bf16)

    @hookimpl(wrapper=True, trylast=True)  # innermost: averages are lent already
    def validate(self, run: Run) -> Generator[None, list[object], list[object]]:
        """Validate with all weights at hand."""
        with run.optimization.strategy.lent():
            return (yield)

    @hookimpl(wrapper=True, trylast=True)  # innermost: averages are lent already
    def infer(self, run: Run) -> Generator[None, list[object], list[object]]:
        """Infer with all weights at hand: a rank may then have nothing to generate."""
        with run.optimization.strategy.lent():
            return (yield)


@frozen(eq=False)
class _Witness:
    """Sees to it that what a rank learns, all learn; there is none with one process."""

    strategy: Together

    @hookimpl(tryfirst=True)
    def after_batch(self) -> None:
        """Refuse a ``train_step`` that knows nothing of the others."""
        self.strategy.expect_learnt()
