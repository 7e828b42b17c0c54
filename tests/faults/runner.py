"""The scenarios, and carrying them out with one or more servers."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from faults import damaged, failing, kills, ranks, sweep
from faults.bench import Bench, Server, Trial
from faults.plans import Plan, Scenario
from faults.report import Progress, Tally

SCENARIOS: dict[str, Scenario] = {
    "random kills": kills.at_random,
    "named points": kills.at_points,
    "every operation": sweep.everywhere,
    "failing writes": failing.everywhere,
    "read-only": failing.read_only,
    "full disk": failing.really_full,
    "damaged": damaged.checkpoints,
    "two at once": damaged.two_at_once,
    "random kills of ranks": ranks.at_random,
    "ranks at named points": ranks.at_points,
    "every operation of rank 0": sweep.by_rank_0,
}


def carry_out(bench: Bench, server: Server, plan: Plan) -> Trial:
    """Do one trial; what goes wrong in the harness itself is a problem too."""
    trial = Trial(bench, server, plan.name, plan.job)
    try:
        plan.carry_out(trial)
    except Exception:  # noqa: BLE001 - one trial must not end the others
        trial.problems.append(traceback.format_exc())
    trial.close()
    return trial


def _until(plans: Iterator[Plan], enough: Callable[[], bool], lock: Lock) -> Iterator[Plan]:
    """Hand plans to several threads, one after another, until it is enough."""
    while True:
        with lock:
            if enough():
                return
            try:
                plan = next(plans)
            except StopIteration:
                return
        yield plan


def examine(
    name: str, plans: Iterator[Plan], bench: Bench, servers: list[Server], enough: Callable[[Tally], bool]
) -> Tally:
    """Carry out the plans of a scenario with all servers, until it is enough."""
    tally, progress, lock = Tally(name), Progress(), Lock()

    def work(server: Server) -> None:
        for plan in _until(plans, lambda: enough(tally), lock):
            trial = carry_out(bench, server, plan)
            with lock:
                tally.add(trial)
                progress.tell(tally)

    with ThreadPoolExecutor(len(servers)) as pool:
        for done in [pool.submit(work, server) for server in servers]:
            done.result()
    progress.tell(tally, last=True)
    return tally
