"""Generation on several ranks: the fields, the numbers and the figures of one, and no rank that waits for ever."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import define
from normal_task import Listener, NormalTask, generation, inferred, run_with
from ranks import on_ranks
from torch import nn

from hookloop.distributed import Ranks
from hookloop.errors import Diverged
from hookloop.evaluation import evaluating
from hookloop.fully_shard import FullyShard
from hookloop.looper import ensembles
from hookloop.plugins.distributed import Distributed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hookloop.task import Paired, Window

WORLD = 3
TURNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "uneven windows": ({"n_cases": 11}, {"members": 4, "max_batch": 8}),
    "a limit": ({"n_cases": 11}, {"members": 4, "windows": 4}),
    "ensembles in pieces": ({"n_cases": 5}, {"members": 5, "max_batch": 2}),
    "more ranks than cases": ({"n_cases": 2}, {"members": 5, "max_batch": 2}),
    "one case": ({"n_cases": 1}, {"members": 7}),
    "more ranks than members": ({"n_cases": 1}, {"members": 2}),
    "states that are carried": ({"n_cases": 8, "chain": 3}, {"members": 4, "max_batch": 2}),
    "one chain": ({"n_cases": 4, "chain": 4}, {"members": 4}),
}
"""By what is uneven, options of the task and of generation."""


def fields_of(run: Any, members: int, max_batch: int) -> dict[tuple[str, int], Tensor]:
    """Every member of every row that this rank has."""
    with torch.no_grad(), evaluating(run.task.model):
        found = [
            one.paired
            for one in ensembles(run, run.task, "validation", members=members, max_batch=max_batch)
            if one is not None
        ]
    return {
        (label, member): field
        for paired in found
        for label, row in zip(paired.labels, paired.prediction["t2m"], strict=True)
        for member, field in enumerate(row)
    }


def run_on(ranks: Ranks, task: NormalTask, path: Path, **options: Any) -> Any:
    """A run of this rank."""
    run = run_with(generation(**options), task, path)
    run.ranks = ranks
    return run


def everything(ranks: Ranks, path: Path) -> dict[str, tuple[Any, Any, Any]]:
    """Metrics, fields, and the states that were met, of each of the turns."""
    found = {}
    for name, (made, options) in TURNS.items():
        task = NormalTask(**made)
        metrics = inferred(run_on(ranks, task, path / "metrics", figures=0, **options))
        states = list(task.states)
        fields = fields_of(
            run_on(ranks, task, path / "fields"), options["members"], options.get("max_batch", 64)
        )
        found[name] = metrics, fields, states
    return found


def test_several_ranks_give_the_fields_and_numbers_of_one(tmp_path: Path) -> None:
    """Every member bit for bit, each on one rank; the same metrics on all, to rounding those of one; in its order."""
    each = on_ranks(WORLD, everything, tmp_path / "several", seconds=120)
    for name, (made, options) in TURNS.items():
        task = NormalTask(**made)
        expected = inferred(run_with(generation(figures=0, **options), task, tmp_path / "one"))
        states = sorted(task.states)  # type: ignore[type-var]
        metrics = each[0][name][0]
        assert metrics == pytest.approx(expected, rel=1e-12), name
        assert list(metrics) == list(expected or {}), name
        assert all(own[name][0] == metrics for own in each), name
        alone = fields_of(
            run_with(generation(), NormalTask(**made), tmp_path),
            options["members"],
            options.get("max_batch", 64),
        )
        together: dict[tuple[str, int], Tensor] = {}
        for own in each:
            assert not together.keys() & own[name][1].keys(), name
            together |= own[name][1]
        assert together.keys() == alone.keys(), name
        assert all(torch.equal(together[key], alone[key]) for key in alone), name
        met = sorted(state for own in each for state in own[name][2])
        if len(states) == len(met):
            assert met == states, name


def shared_work(ranks: Ranks, path: Path) -> list[list[tuple[tuple[int, ...], int]]]:
    """What this rank has generated."""
    found = []
    for made, options in (TURNS[name] for name in ("uneven windows", "one case", "more ranks than members")):
        task = NormalTask(**made)
        inferred(run_on(ranks, task, path, figures=0, **options))
        found.append(task.calls)
    return found


def test_nothing_is_generated_twice(tmp_path: Path) -> None:
    """Windows are made so small that three ranks have one each; members of a single case are divided."""
    assert on_ranks(WORLD, shared_work, tmp_path) == [
        [[((0, 1), 4), ((6, 7), 4)], [((0,), 3)], [((0,), 1)]],
        [[((2, 3), 4), ((8, 9), 4)], [((0,), 2)], [((0,), 1)]],
        [[((4, 5), 4), ((10,), 4)], [((0,), 2)], []],
    ]


def drawing(ranks: Ranks, path: Path) -> tuple[list[str], list[str]]:
    """The files of this rank, in a directory of its own, and what it was told to log."""
    run = run_on(ranks, NormalTask(), path / str(ranks.rank), members=2, max_batch=2, figures=2)
    inferred(run)
    listener = run.plugins["listener"]
    assert isinstance(listener, Listener)
    logged = [key for metrics in listener.logged for key in metrics]
    return sorted(path.name for path in run.dir.rglob("*.*")), logged


def test_the_first_rank_draws_what_others_have_generated(tmp_path: Path) -> None:
    """The last two of five cases are on ranks 0 and 1 of three; files and figures are those of one process."""
    (files, logged), *others = on_ranks(WORLD, drawing, tmp_path / "several")
    assert (files, logged) == drawing(Ranks(), tmp_path / "one")
    assert {"t2m_day_3.png", "t2m_day_4.png", "units.json"} <= set(files)
    assert others == [([], []), ([], [])]
    for name in files:
        one, several = (
            (tmp_path / where / "0" / "figures" / name).read_bytes() for where in ("one", "several")
        )
        assert one == several


@define(eq=False)
class Stopping(NormalTask):
    """One rank is asked to stop in its second call."""

    run: Any = None

    def predict_paired(
        self, state: int, window: Window, seeds: Sequence[Sequence[int]], first: int = 0
    ) -> tuple[Paired, int]:
        """Ask once the first call is over."""
        if self.run.ranks.rank == 1 and len(self.calls) == 1:
            self.run.stop("enough", 143)
        return super().predict_paired(state, window, seeds, first)


def stopped(ranks: Ranks, path: Path, members: int, n_cases: int) -> tuple[object, int, object]:
    """Metrics, calls, and why this rank has stopped."""
    task = Stopping(n_cases=n_cases)
    run = run_on(ranks, task, path, members=members, max_batch=2, figures=0)
    task.run = run
    return inferred(run), len(task.calls), run.stopping


@pytest.mark.parametrize(("members", "n_cases"), [(4, 9), (2, 12), (12, 1)])
def test_a_stop_on_one_rank_stops_all_in_the_same_turn(tmp_path: Path, members: int, n_cases: int) -> None:
    """Between pieces, windows or members that are spread: two calls each, no metrics, one reason."""
    answers = on_ranks(WORLD, stopped, tmp_path, members, n_cases)
    assert [(metrics, calls) for metrics, calls, _ in answers] == [(None, 2)] * WORLD
    reasons = {stop for _, _, stop in answers}
    assert len(reasons) == 1
    assert "enough" in str(reasons)
    assert list(tmp_path.iterdir()) == []


@define(eq=False)
class Sharded(NormalTask):
    """Has a model whose forward pass needs every rank."""

    def predict_paired(
        self, state: int, window: Window, seeds: Sequence[Sequence[int]], first: int = 0
    ) -> tuple[Paired, int]:
        """Need it."""
        self.model(torch.ones(1, 1))
        return super().predict_paired(state, window, seeds, first)


def sharded(ranks: Ranks, path: Path) -> list[tuple[object, int]]:
    """Metrics and calls where the weights are spread."""
    found = []
    for name in ("uneven windows", "more ranks than cases", "more ranks than members"):
        made, options = TURNS[name]
        task = Sharded(model=nn.Sequential(nn.Linear(1, 3)), **made)
        run = run_on(ranks, task, path, figures=0, **options)
        optimization = run.optimization
        optimization.strategy = FullyShard.of(ranks, task.model, optimization.optimizer, run.device)
        run.manager.register(Distributed("fully_shard"))
        found.append((inferred(run), len(task.calls)))
    return found


def test_ranks_of_a_sharded_model_need_not_keep_step(tmp_path: Path) -> None:
    """All weights are lent meanwhile: nobody generates in vain, nobody waits for who has nothing to generate."""
    each = on_ranks(WORLD, sharded, tmp_path / "several", seconds=60)
    for i, name in enumerate(("uneven windows", "more ranks than cases", "more ranks than members")):
        made, options = TURNS[name]
        expected = inferred(run_with(generation(figures=0, **options), NormalTask(**made), tmp_path / "one"))
        assert all(own[i][0] == each[0][i][0] for own in each)
        assert each[0][i][0] == pytest.approx(expected, rel=1e-12)
    assert [own[2][1] for own in each] == [1, 1, 0]


def poisoned(ranks: Ranks, path: Path, case: int) -> Mapping[str, float] | None:
    """The first member of a case is spoilt."""
    return inferred(run_on(ranks, NormalTask(poison=case, n_cases=7), path, members=2, max_batch=4))


def test_an_error_on_one_rank_is_no_other_s_wait(tmp_path: Path) -> None:
    """The rank that finds it raises it; others notice that it has gone."""
    with pytest.raises(Diverged, match="t2m of day 3"):
        on_ranks(WORLD, poisoned, tmp_path, 3, seconds=30)
