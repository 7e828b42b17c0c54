"""A task whose members are known normal numbers, and runs that generate them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import pluggy
import structlog
import torch
from attrs import define, field
from matplotlib.figure import Figure
from torch import Tensor, nn

import hookloop.hookspecs
from hookloop.core import Progress, Run
from hookloop.hookspecs import hookimpl
from hookloop.optimization import Optimization
from hookloop.plugins.generation import Generation
from hookloop.scores.ensemble import EnsembleScore
from hookloop.settings import RunConfig
from hookloop.task import Paired, Window, independent_windows
from hookloop.testing import TinyData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SHAPE = (6, 4)
NAMES = ("t2m", "wind/u")


def normal(seed: int) -> Tensor:
    """Draw a field that is a function of its seed alone."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@define(eq=False)
class Learnable:
    """A task that can only be trained."""

    model: nn.Module = field(factory=lambda: nn.Sequential(nn.Linear(1, 1), nn.Dropout()))
    data: Mapping[str, Any] = field(factory=lambda: {"train": TinyData(), "validation": None})

    def loss(self, batch: object) -> Mapping[str, Tensor]:
        """Nothing is learnt here."""
        raise NotImplementedError(batch)


@define(eq=False)
class NormalTask(Learnable):
    """Members are standard normal fields of their seeds; the truth of a case is drawn from its number."""

    n_cases: int = 5
    chain: int | None = None
    """So many windows go on from one another, a case each."""
    calls: list[tuple[tuple[int, ...], int]] = field(factory=list)
    """Cases and members of each call."""
    firsts: list[int] = field(factory=list)
    """The number of the first member of each call."""
    states: list[object] = field(factory=list)
    poison: int | None = None
    """The case whose first member is spoilt."""
    exact_baseline: bool = False
    missing_truth: bool = False
    without_baseline: Sequence[str] = ()

    def windows(self, split: str, size: int, limit: int | None = None) -> Sequence[Window]:
        """Any cases may be left out."""
        if self.chain:
            return [
                Window(split, [case], continues=case % self.chain > 0)
                for case in range(limit or self.n_cases)
            ]
        return independent_windows(split, self.n_cases, size, limit)

    def initial_condition(self, split: str) -> int:
        """Count from 0."""
        assert split == "validation"
        return 0

    def predict_paired(
        self, state: int, window: Window, seeds: Sequence[Sequence[int]], first: int = 0
    ) -> tuple[Paired, int]:
        """Count one further."""
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.model.modules())
        self.calls.append((tuple(window.cases), len(seeds[0])))
        self.firsts.append(first)
        self.states.append(state)
        fields = torch.stack([torch.stack([normal(seed) for seed in case]) for case in seeds])
        truth = torch.stack([normal(case) for case in window.cases])
        if self.poison in window.cases:
            fields[window.cases.index(self.poison), 0, 2, 2] = math.nan
        if self.missing_truth:
            truth[0, 0, 0] = math.nan
        baseline = truth if self.exact_baseline else torch.zeros_like(truth)
        paired = Paired(
            prediction={name: fields * (1 + i) for i, name in enumerate(NAMES)},
            target={name: truth * (1 + i) for i, name in enumerate(NAMES)},
            baseline={name: baseline for name in NAMES if name not in self.without_baseline},
            coarse={} if "t2m" in self.without_baseline else {"t2m": truth[:, ::2, ::2]},
            latitude=[55.0 - i for i in range(SHAPE[0])],
            longitude=[359.0, 0.0, 1.0, 2.0],
            labels=[f"day {case}" for case in window.cases],
            units={"t2m": "K"},
        )
        return paired, state + 1


@define(eq=False)
class Listener:
    """Keep what is logged."""

    logged: list[Mapping[str, object]] = field(factory=list)

    @hookimpl
    def log(self, metrics: Mapping[str, object]) -> None:
        """Keep it, and whether a figure is still drawn."""
        for value in metrics.values():
            assert not isinstance(value, Figure) or value.axes
        self.logged.append(metrics)


def run_with(plugin: Generation, task: Learnable, path: Path, *, epoch: int = 0, **config: Any) -> Run:
    """Make a run in which an epoch has just been trained and validated."""
    manager = pluggy.PluginManager("hookloop")
    manager.add_hookspecs(hookloop.hookspecs)
    plugins = {"listener": Listener(), "generation": plugin}
    for name, each in reversed(plugins.items()):
        manager.register(each, name)
    manager.check_pending()
    cpu = torch.device("cpu")
    run = Run(
        RunConfig(dir=path, **{"max_epochs": 10, **config}),
        manager,
        plugins,
        cpu,
        structlog.get_logger(),
        progress=Progress(epoch=epoch, step=100 * (epoch + 1)),
    )
    run.task = task
    run.optimization = Optimization(torch.optim.SGD(task.model.parameters(), lr=0.1), cpu)
    return run


def generation(**options: Any) -> Generation:
    """Score ensembles alone, all cells alike, unless told otherwise."""
    return Generation(**{"metrics": [EnsembleScore()], "weights": "equal", **options})


def inferred(run: Run) -> dict[str, float] | None:
    """Call the hook as the loop does."""
    answers: list[dict[str, float]] = run.hook.infer(run=run)
    assert len(answers) <= 1
    return answers[0] if answers else None


@define(eq=False)
class Splits(NormalTask):
    """Has a second split, whose truth is 2 everywhere."""

    data: Mapping[str, Any] = field(factory=lambda: {"train": TinyData(), "validation": None, "summer": None})

    def initial_condition(self, split: str) -> int:
        """Count from 0."""
        return 0

    def predict_paired(
        self, state: int, window: Window, seeds: Sequence[Sequence[int]], first: int = 0
    ) -> tuple[Paired, int]:
        """Put another truth in its place."""
        paired, state = super().predict_paired(state, window, seeds, first)
        if window.split == "summer":
            paired = attrs.evolve(
                paired, target={name: torch.full_like(truth, 2.0) for name, truth in paired.target.items()}
            )
        return paired, state
