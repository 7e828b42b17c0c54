"""What scoring costs: the fair CRPS against loops over pairs of members, and every score on batches of ensembles.

``--device cuda`` for a GPU. The best of several rounds is given, the device awaited before and after.
"""

from __future__ import annotations

import argparse
import platform
import time
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import torch

from hookloop.scores.ensemble import fair_crps
from hookloop.scores.score import Cases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

REPEATS = 5
GRID = 128
OPTIONS: dict[str, dict[str, object]] = {
    "thresholds": {"thresholds": {"pr": [1.0, 3.0]}},
    "fss": {"thresholds": {"pr": [1.0, 3.0]}, "scales": [1, 5, 9]},
    "quantiles": {"positive": ["pr"]},
}
"""Of the scores that need some, or mean something else without."""


def by_pairs(members: Tensor, truth: Tensor) -> Tensor:
    """Fair CRPS by a loop over all ordered pairs of members."""
    m = members.shape[1]
    distance = torch.zeros_like(truth)
    for i in range(m):
        for j in range(m):
            distance += (members[:, i] - members[:, j]).abs()
    return (members - truth[:, None]).abs().mean(1) - distance / (2 * m * (m - 1))


def by_half_the_pairs(members: Tensor, truth: Tensor) -> Tensor:
    """Fair CRPS by a loop over the pairs of distinct members, each once."""
    m = members.shape[1]
    distance = torch.zeros_like(truth)
    for i in range(m):
        for j in range(i):
            distance += (members[:, i] - members[:, j]).abs()
    return (members - truth[:, None]).abs().mean(1) - distance / (m * (m - 1))


def by_rolling(members: Tensor, truth: Tensor) -> Tensor:
    """Fair CRPS by comparing the whole ensemble with itself, shifted by each number of members."""
    m = members.shape[1]
    distance = torch.zeros_like(truth)
    for shift in range(1, m):
        distance += (members - members.roll(shift, dims=1)).abs().mean(1)
    return (members - truth[:, None]).abs().mean(1) - distance / (2 * (m - 1))


def milliseconds(works: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Best time of each in several rounds, in turns so that a busy machine slows all alike, after one for nothing."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS + 1):
        for name, work in works.items():
            _await(device)
            start = time.perf_counter()
            work()
            _await(device)
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * min(own[1:]) for name, own in times.items()}


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rain(n: int, members: int, device: torch.device) -> Cases:
    """*n* cases of float32 fields, mostly dry, as batches of generated precipitation are."""
    draw = torch.Generator().manual_seed(0)

    def field(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=draw) * 2 - 1).clamp(min=0).to(device)

    return Cases(
        name="pr",
        members=field(n, members, GRID, GRID),
        truth=field(n, GRID, GRID),
        weights=torch.ones(GRID, GRID, dtype=torch.float64, device=device),
        seeds=range(n),
        baseline=field(n, GRID, GRID),
        coarse=field(n, GRID // 4, GRID // 4),
    )


def crps_table(device: torch.device) -> None:
    """Print how long the fair CRPS takes, and the loops in the same precision and in float32."""
    cases = rain(1, 64, device)
    exact = fair_crps(cases.members, cases.truth)
    loops = {"all pairs": by_pairs, "rolled ensembles": by_rolling, "half the pairs": by_half_the_pairs}
    works: dict[str, Callable[[], Tensor]] = {"fair_crps": partial(fair_crps, cases.members, cases.truth)}
    for name, loop in loops.items():
        for dtype in (torch.float64, torch.float32):
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            works[label] = partial(loop, cases.members.to(dtype), cases.truth.to(dtype))
    took = milliseconds(works, device)
    print(f"\nFair CRPS of 64 members at {GRID} x {GRID}, float32 fields; fair_crps sums in float64\n")
    print("| method | ms | times fair_crps | largest difference |")
    print("|---|---|---|---|")
    for name, ms in took.items():
        off = float((works[name]() - exact).abs().max())
        print(f"| {name} | {ms:.2f} | {ms / took['fair_crps']:.1f} | {off:.0e} |")


def score_table(device: torch.device) -> None:
    """Print how long each score that is installed takes, on many cases of few members and on one of many."""
    entries = sorted(entry_points(group="hookloop.scores"), key=lambda entry: entry.name)
    scores = {entry.name: entry.load()(**OPTIONS.get(entry.name, {})) for entry in entries}
    batches = {"4 cases x 8 members": rain(4, 8, device), "1 case x 64 members": rain(1, 64, device)}
    took = {
        batch: milliseconds({name: partial(score.sums, cases) for name, score in scores.items()}, device)
        for batch, cases in batches.items()
    }
    print(f"\nSums of every score at {GRID} x {GRID}, ms\n")
    print("|".join(["", " score ", *(f" {batch} " for batch in took), ""]))
    print("|".join(["", "---", *("---" for _ in took), ""]))
    for name in scores:
        print("|".join(["", f" {name} ", *(f" {own[name]:.2f} " for own in took.values()), ""]))


def main() -> None:
    """Print both tables."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", default="cpu", type=torch.device, help="cpu, cuda, cuda:1, ...")
    device: torch.device = arguments.parse_args().device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(f"{where or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    crps_table(device)
    score_table(device)


if __name__ == "__main__":
    main()
