"""What scoring adds to generating: windows of ensembles with a full-size network, and every default score of them.

    python benchmarks/generation_cost.py [--device cuda]

A network of 128 channels [1, 2, 2, 2] with 4 blocks (60 million weights, untrained) generates 4 windows × 8 members of
128×128 with DPM-Solver++(2M) under bf16 autocast; then ``hookloop.scoring`` counts them with the scores that are on by
default. Each is timed by itself, device synchronised, medians over rounds.

What is done once at the end is timed for splits of 31 and of 365 days, each counted beforehand with new fields:
results, intervals by bootstrap over these days (whose cost goes with the days, not the cases), and pictures, drawn as
they are written. Sums, results and intervals together are judged against generating a split of so many days, 24 hourly
cases each: generating and adding sums are scaled from the timed windows by the number of cases, results and intervals
are taken as they are. A batch of an hourly split holds one day, with which sums are timed; a day for each window, as
where few windows are spread over a split, is told beside it. Exits 1 where scoring takes 5 % of generating or more.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date, timedelta
from io import BytesIO
from statistics import median
from typing import TYPE_CHECKING

import torch

from hookloop.charts import chart_figure, maps_figure
from hookloop.diffusion.edm import Precondition
from hookloop.diffusion.unet import UNet
from hookloop.diffusion_options import SolverConfig
from hookloop.plugins.generation import Generation
from hookloop.scores.score import Maps
from hookloop.scoring import Scoring
from hookloop.task import Paired

if TYPE_CHECKING:
    from collections.abc import Callable

    from hookloop.scores.score import Score

_ALLOWED = 0.05
_FACTOR = 4
_HOURS = 24
"""Cases of a day."""


class Clock:
    """Seconds that a call takes until the device has done it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, call: Callable[[], object]) -> float:
        """Time *call*."""
        self._wait()
        began = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def network(options: argparse.Namespace, device: torch.device) -> Precondition:
    """The denoiser."""
    backbone = UNet(1, 4, channels=options.channels, multipliers=options.multipliers, blocks=options.blocks)
    return Precondition(backbone).to(device).eval()


def generating(
    denoiser: Precondition, options: argparse.Namespace, device: torch.device, steps: int
) -> Callable[[], torch.Tensor]:
    """What draws all members of all windows, ``[window, member, lat, lon]``."""
    n, size = options.windows * options.members, options.size
    condition = torch.randn(n, 4, size, size, device=device)
    noise = torch.randn(n, 1, size, size, device=device)
    solver = SolverConfig(steps=steps)

    def at(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return denoiser(x, torch.full((len(x),), sigma, device=device), condition)

    def generate() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            drawn = solver.sample(at, noise, lambda: torch.randn_like(noise))
        return drawn.view(options.windows, options.members, size, size)

    return generate


def beside_truth(members: torch.Tensor, days: list[str]) -> Paired:
    """Fields like those that are scored: smooth truth and members, new at each call.

    :param days: of each window.
    """
    windows, _, size, _ = members.shape
    device = members.device
    smooth = torch.nn.functional.interpolate(
        torch.randn(windows, 1, size // 8, size // 8, device=device), size=(size, size), mode="bicubic"
    )
    truth = 285 + 5 * torch.randn((), device=device) + 5 * smooth[:, 0]
    coarse = torch.nn.functional.avg_pool2d(truth[:, None], _FACTOR)[:, 0]
    baseline = torch.nn.functional.interpolate(coarse[:, None], size=(size, size), mode="bicubic")[:, 0]
    return Paired(
        prediction={"t2m": truth[:, None] + 0.5 * torch.randn_like(members)},
        target={"t2m": truth},
        baseline={"t2m": baseline},
        coarse={"t2m": coarse},
        latitude=torch.linspace(50, 58, size).tolist(),
        longitude=torch.linspace(-10, 2, size).tolist(),
        labels=[f"{day} {i % 24:02d}:00" for i, day in enumerate(days)],
        days=days,
        units={"t2m": "K"},
    )


def main() -> None:
    """Time and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 2, 2])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[18, 35])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--days", type=int, nargs="+", default=[31, 365])
    options = parser.parse_args()
    device, clock = torch.device(options.device), Clock(torch.device(options.device))
    torch.manual_seed(0)
    denoiser = network(options, device)
    millions = sum(p.numel() for p in denoiser.parameters()) / 1e6
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(
        f"{name}, torch {torch.__version__}: {options.windows} windows of {options.members} members, "
        f"{options.size}², {millions:.1f} million weights, bf16"
    )
    generate = {steps: generating(denoiser, options, device, steps) for steps in options.steps}
    members = next(iter(generate.values()))()
    paired = beside_truth(members, ["2019-03-01"] * options.windows)
    apart = beside_truth(members, [f"2019-03-{1 + i:02d}" for i in range(options.windows)])
    scores = Generation().metrics
    each = {score.chosen_as: ([score], paired) for score in scores}
    each |= {"all scores": (scores, paired), "a day a window": (scores, apart)}
    for call in (*generate.values(), lambda: _count(scores, paired)):
        call()  # warm
    generated: dict[int, list[float]] = {steps: [] for steps in generate}
    counted: dict[str, list[float]] = {what: [] for what in each}
    for _ in range(options.rounds):
        for steps, call in generate.items():
            generated[steps].append(clock(call))
        for what, (own, fields) in each.items():
            counted[what].append(clock(lambda own=own, fields=fields: _count(own, fields)))
    print(f"sums of {options.windows} windows")
    for what, seconds in counted.items():
        print(f"  {what:<14}{1000 * median(seconds):8.2f} ms")
    batch = {steps: median(seconds) for steps, seconds in generated.items()}
    for steps, seconds in batch.items():
        print(f"generating {options.windows} windows, {steps} evaluations: {1000 * seconds:.0f} ms")
    worst = max(
        _judge(n, _at_the_end(members, scores, n, clock), batch, median(counted["all scores"]), options)
        for n in options.days
    )
    print("pass" if worst < _ALLOWED else "FAIL", f"scoring adds less than {100 * _ALLOWED:.0f} %")
    sys.exit(worst >= _ALLOWED)


def _judge(
    days: int,
    ends: dict[str, float],
    batch: dict[int, float],
    sums: float,
    options: argparse.Namespace,
) -> float:
    """Print what a split of so many days takes; give the largest share of generating that scoring takes.

    :param ends: seconds of what is done once.
    :param batch: seconds of generating a batch of windows, by evaluations.
    :param sums: seconds of adding up the sums of one.
    """
    batches = days * _HOURS / options.windows
    print(f"{days} days, {days * _HOURS} cases: sums {batches * sums:.2f} s", end="")
    print("".join(f", {what} {seconds:.2f} s" for what, seconds in ends.items()))
    scoring = batches * sums + ends["results"] + ends["intervals"]
    shares = {steps: scoring / (batches * seconds) for steps, seconds in batch.items()}
    for steps, share in shares.items():
        print(
            f"  {steps} evaluations: {batches * batch[steps]:.1f} s to generate; sums, results and intervals add "
            f"{100 * share:.2f} %"
        )
    return max(shares.values())


def _at_the_end(members: torch.Tensor, scores: list[Score], days: int, clock: Clock) -> dict[str, float]:
    """Seconds of what is done once after so many days."""
    scoring, first = Scoring(scores, lambda _: 0, "area"), date(2019, 1, 1)
    for i in range(days):
        paired = beside_truth(members, [str(first + timedelta(i))] * len(members))
        scoring.count(paired)
    tallies = [tally for own in scoring.results().tallies.values() for tally in own]
    if not any(tally.intervals(0) for tally in tallies):
        raise AssertionError("no interval to time")
    return {
        "results": median(clock(lambda: scoring.results().numbers) for _ in range(3)),
        "intervals": median(clock(lambda: [tally.intervals(0) for tally in tallies]) for _ in range(3)),
        "pictures": clock(lambda: _draw(scoring, paired)),
    }


def _draw(scoring: Scoring, paired: Paired) -> None:
    for name, picture in scoring.results().pictures():
        if isinstance(picture, Maps):
            figure = maps_figure(picture, paired.latitude, paired.longitude, title=name, units="K")
        else:
            figure = chart_figure(picture, title=name, units="K")
        figure.savefig(BytesIO(), format="png")


def _count(scores: list[Score], paired: Paired) -> None:
    Scoring(scores, lambda _: 0, "area").count(paired)


if __name__ == "__main__":
    main()
