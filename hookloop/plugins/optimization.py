"""The built-in answers to ``make_optimization`` and ``train_step``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import define, field, frozen
from attrs.validators import and_, deep_iterable, ge, gt, instance_of, lt, optional

from hookloop.hookspecs import hookimpl
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hookloop.core import Progress, Run
    from hookloop.optimization import Optimization
    from hookloop.task import Batch, Task


@frozen
class Schedule:
    """How the learning rate depends on progress: a pure function, so nothing of it needs saving."""

    name: Literal["ConstantLR", "CosineAnnealingLR", "MultiStepLR"] = field(
        default="ConstantLR", metadata=doc("the shape after the warm-up")
    )
    step: Literal["batch", "epoch"] = field(
        default="batch", metadata=doc("when it moves, and the unit of the rest")
    )
    warmup: int = field(default=0, validator=ge(0), metadata=doc("rise linearly over so many"))
    eta_min: float = field(default=0.0, validator=ge(0.0), metadata=doc("the cosine's last rate"))
    T_max: int | None = field(
        default=None, validator=optional(gt(0)), metadata=doc("the cosine's length; all epochs if not given")
    )
    milestones: list[int] = field(factory=list, metadata=doc("where MultiStepLR multiplies by gamma"))
    gamma: float = field(default=0.1, validator=gt(0.0), metadata=doc("what MultiStepLR multiplies by"))


@define(eq=False)
class OptimizationPlugin:
    """Learn with a torch optimizer, bfloat16 where it pays, clipping, accumulation and a schedule."""

    optimizer: Literal["AdamW", "Adam", "SGD"] = field(default="AdamW", metadata=doc("which", learned=True))
    lr: float = field(
        default=2e-4,
        validator=[gt(0.0), lt(float("inf"))],
        metadata=doc("the highest learning rate", learned=True),
    )
    weight_decay: float = field(
        default=0.0, validator=ge(0.0), metadata=doc("decay per unit of lr", learned=True)
    )
    betas: tuple[float, float] = field(
        default=(0.9, 0.999),
        validator=deep_iterable(and_(instance_of(float), ge(0.0), lt(1.0))),
        metadata=doc("Adam's two averages", learned=True),
    )
    precision: Literal["bf16", "fp32", "auto"] = field(
        default="auto", metadata=doc("auto is bf16 on GPUs that have it, else fp32", learned=True)
    )
    clip_norm: float | None = field(
        default=None, validator=optional(gt(0.0)), metadata=doc("the largest gradient norm", learned=True)
    )
    accumulate: int = field(
        default=1,
        validator=ge(1),
        metadata=doc("batches an update; fewer left over at the end of the run move nothing", learned=True),
    )
    scheduler: Schedule = field(factory=Schedule, metadata=doc("the learning rate's course", learned=True))

    @hookimpl(trylast=True)  # the default: any plugin may answer instead
    def make_optimization(self, run: Run, task: Task) -> Optimization:
        """Build the optimizer that the options describe."""
        import torch

        from hookloop.optimization import Optimization

        parameters = [(name, p) for name, p in task.model.named_parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if self.optimizer == "SGD":
            optimizer = torch.optim.SGD(parameters, lr=self.lr, weight_decay=self.weight_decay)
        else:
            kind = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}[self.optimizer]
            optimizer = kind(
                parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
            )
        bf16 = self.precision == "bf16" or (
            self.precision == "auto" and run.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        return Optimization(
            optimizer,
            run.device,
            precision=torch.bfloat16 if bf16 else torch.float32,
            clip_norm=self.clip_norm,
            accumulate=self.accumulate,
        )

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """Training mode, also after somebody evaluated."""
        run.task.model.train()

    @hookimpl(trylast=True)  # the default: any plugin may answer instead
    def train_step(self, run: Run, batch: Batch) -> Mapping[str, Tensor]:
        """Seed by the step, then forward, backward, update."""
        from hookloop.seeding import seed_torch

        optimization = run.optimization
        seed_torch(run.seed("train", run.progress.step), run.device)
        optimization.learning_rate = self.rate(run)
        with optimization.autocast():
            losses = run.task.loss(batch)
        measured = optimization.update(losses["loss"])
        return {**{name: loss.detach() for name, loss in losses.items()}, **measured}

    def learned_values(self, run: Run) -> Mapping[str, object]:
        """The cosine's length, which follows ``run.max_epochs`` where it is not given."""
        cosine = self.scheduler.name == "CosineAnnealingLR"
        return {"scheduler.T_max": self._length(run)} if cosine else {}

    def _length(self, run: Run) -> int:
        per_epoch = run.task.data["train"].n_batches if self.scheduler.step == "batch" else 1
        return self.scheduler.T_max or run.config.max_epochs * per_epoch

    def rate(self, run: Run) -> float:
        """The learning rate of the batch at hand."""
        from hookloop.optimization import cosine, steps, warm_up

        schedule = self.scheduler
        position = _position(run.progress, schedule)
        factor = warm_up(position, schedule.warmup)
        after = max(0, position - schedule.warmup)
        if schedule.name == "CosineAnnealingLR":
            total = self._length(run)
            factor *= cosine(after, total - schedule.warmup, schedule.eta_min / self.lr)
        elif schedule.name == "MultiStepLR":
            factor *= steps(position, schedule.milestones, schedule.gamma)
        return self.lr * factor * run.optimization.scale


def _position(progress: Progress, schedule: Schedule) -> int:
    return progress.step if schedule.step == "batch" else progress.epoch
