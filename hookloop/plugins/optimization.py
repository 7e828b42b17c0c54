"""The built-in answers to ``make_optimization`` and ``train_step``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from attrs import asdict, define, field
from attrs.validators import and_, deep_iterable, ge, gt, instance_of, lt, optional

from hookloop.errors import HookloopError
from hookloop.hookspecs import hookimpl
from hookloop.metrics import measured
from hookloop.schedules import GROUP, ConstantLR, Plateau, ReduceLROnPlateau, Schedule
from hookloop.settings import doc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from hookloop.core import Progress, Run
    from hookloop.optimization import Optimization
    from hookloop.task import Batch, Task

_AT_ONCE = 64


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
    scheduler: Schedule = field(
        factory=ConstantLR,
        metadata={
            **doc("the learning rate's course, by name, and its options", learned=True),
            "group": GROUP,
            "unnamed": ConstantLR.chosen_as,
        },
    )
    compile: Literal["auto", "off", "graph", "inductor"] = field(
        default="auto",
        metadata=doc(
            "auto is off; graph: replay forward and backward as a CUDA graph; inductor: torch.compile, minutes at first"
        ),
    )
    plateau: Plateau = field(factory=Plateau, init=False)
    _seeds: dict[int, int] = field(factory=dict, init=False)
    """Of the steps at hand, by step."""
    _seed_torch: Callable[[int], object] = field(init=False, repr=False)

    @hookimpl(trylast=True)  # the default: any plugin may answer instead
    def make_optimization(self, run: Run, task: Task) -> Optimization:
        """Build the optimizer that the options describe."""
        import torch

        from hookloop.optimization import Optimization
        from hookloop.optimizers import eager

        parameters = [(name, p) for name, p in task.model.named_parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if self.optimizer == "SGD":
            optimizer = eager(torch.optim.SGD)(parameters, lr=self.lr, weight_decay=self.weight_decay)
        else:
            kind: type[torch.optim.Adam] = (
                torch.optim.AdamW if self.optimizer == "AdamW" else torch.optim.Adam
            )
            optimizer = eager(kind)(
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
    def before_run(self, run: Run) -> None:
        """Begin without a memory.

        :raises HookloopError: where several ranks would learn without one another.
        """
        from hookloop.seeding import seeder
        from hookloop.strategies import Together

        if run.ranks.world > 1 and not isinstance(run.optimization.strategy, Together):
            raise HookloopError(
                f"{run.ranks.world} ranks, and nothing that has them learn together; leave out no:distributed"
            )
        self.plateau, self._seeds, self._seed_torch = Plateau(), {}, seeder(run.device)
        self._compile(run)

    def _compile(self, run: Run) -> None:
        """Have steps compiled as asked for, and tell of it, or why it cannot be."""
        if self.compile not in ("graph", "inductor"):
            return
        from hookloop.compiling import compile_networks
        from hookloop.graphs import CudaGraphs, Gradients, Replays

        why = self._keeps_eager(run)
        if why:
            run.events.info("step.not_compiled", compile=self.compile, why=why)
        elif self.compile == "inductor":
            run.events.info("step.compiled", networks=compile_networks(run.task.model))
        else:
            run.optimization.repeated = Gradients(Replays(CudaGraphs()))

    def _keeps_eager(self, run: Run) -> str:
        """Why steps cannot be compiled; nothing if they can."""
        if run.ranks.world > 1:
            return f"{run.ranks.world} ranks learn together"
        if self.compile == "inductor":
            return ""
        if run.device.type != "cuda":
            return f"{run.device.type} has no CUDA graphs"
        return f"{self.accumulate} batches an update" if self.accumulate > 1 else ""

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """Training mode, also after somebody evaluated."""
        run.task.model.train()

    @hookimpl(trylast=True)  # the default: any plugin may answer instead
    def train_step(self, run: Run, batch: Batch) -> Mapping[str, Tensor]:
        """Seed by the step, then forward, backward, update."""
        optimization = run.optimization
        self._seed_torch(self._seed(run, run.progress.step))
        optimization.learning_rate = self.rate(run)
        return optimization.learn(run, batch)

    def _seed(self, run: Run, step: int) -> int:
        """``run.seed("train", step)``, of many steps at once: one in the middle of a step takes 5 µs, here 1 µs."""
        if step not in self._seeds:
            self._seeds = {number: run.seed("train", number) for number in range(step, step + _AT_ONCE)}
        return self._seeds[step]

    @hookimpl
    def after_evaluation(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Lower the rate where the metric no longer falls.

        :raises HookloopError: where that metric was not measured.
        """
        options, optimization = self.scheduler, run.optimization
        if not isinstance(options, ReduceLROnPlateau) or self._position(run.progress) < options.warmup:
            return
        value = measured(run, metrics, options.metric, "optimization.scheduler.metric")
        if value is None or not self.plateau.sees(value, options):
            return
        scale = max(optimization.scale * options.factor, options.min_lr / self.lr)
        if scale >= optimization.scale:  # it is at its lowest
            return
        optimization.scale = scale
        run.events.info(
            "rate.reduced",
            metric=options.metric,
            best=self.plateau.best,
            step=run.progress.step,
            lr=self.lr * scale,
        )

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """Log the rate of the epoch's last update."""
        run.log({"epoch/lr": run.optimization.learning_rate})

    def learned_values(self, run: Run) -> Mapping[str, object]:
        """What the rate depends on beside the options: lengths that follow ``run.max_epochs``, evaluations."""
        values: dict[str, object] = {
            f"scheduler.{name}": value for name, value in self.scheduler.lengths(self._length(run)).items()
        }
        if isinstance(self.scheduler, ReduceLROnPlateau):
            values["scheduler.evaluations"] = f"every {run.config.validate_every}"
        return values

    def rate(self, run: Run) -> float:
        """The learning rate of the batch at hand."""
        factor = self.scheduler.factor_at(self._position(run.progress), self._length(run), self.lr)
        return self.lr * factor * run.optimization.scale

    def _length(self, run: Run) -> int:
        per_epoch = 1 if self.scheduler.step == "epoch" else run.task.data["train"].n_batches
        return run.config.max_epochs * per_epoch

    def _position(self, at: Progress) -> int:
        return at.epoch if self.scheduler.step == "epoch" else at.step

    def state_dict(self) -> dict[str, object]:
        """What is remembered of a plateau."""
        return {"plateau": asdict(self.plateau)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Remember it."""
        self.plateau = Plateau(**cast("dict[str, Any]", state["plateau"]))
