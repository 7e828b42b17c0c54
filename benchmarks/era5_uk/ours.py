"""Train examples/era5_uk.yaml with several seeds side by side, then score all networks together on the test days.

    ERA5_UK=DATA python benchmarks/era5_uk/ours.py OUT --networks 8 [--set SECTION.KEY=VALUE …]

Nothing is validated or generated while training. The time that counts is that from the first start of a process to
the last end of one, imports included. Writes OUT/ours.json.

All processes share the GPU, and the driver gives it to one after the other: side by side they learn no faster in all
(about 83 steps/s on an H100, however many), so a network of N has an N-th of the steps that it would have alone. The
first network alone has the size of fme's, not its training time; all together, a deep ensemble, have the time but N
times the size.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from jobs import evaluation, inferences, run_all, training

_TEST = {"generation.weights": "equal", "generation.max_batch": 512, "validation.noise_levels": 0}
"""Equal weights, as the figures of simple methods have them."""


_SHOWN = (
    "crps",
    "crps_low",
    "crps_high",
    "crps_relative",
    "rmse",
    "spread_skill",
    "bias",
    "energy_score",
    "lsd_radial",
    "small_scale_energy",
    "rank_reliability",
    "tail_error",
    "mae_baseline",
)


def called(networks: int) -> str:
    """What the networks are together."""
    return "1 network (of fme's size)" if networks == 1 else f"{networks} networks (deep ensemble)"


def shown(scores: dict[str, float | None]) -> str:
    """Scores on a line; those that are undefined are left out, 0 is not."""
    return ", ".join(f"{key} {value:.4f}" for key, value in scores.items() if value is not None)


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--set", dest="options", metavar="SECTION.KEY=VALUE", action="append", default=[])
    parser.add_argument("--slots", type=int, default=16, help="processes at once")
    parser.add_argument("--seconds", type=float, default=900, help="after which all is stopped")
    parser.add_argument("--metrics", default="null", help="of generation, JSON; its defaults if not given")
    parser.add_argument("--every", default=None, help="score one hour in so long only, for a rehearsal")
    options = parser.parse_args()
    began = time.monotonic()
    deadline = began + options.seconds
    runs = [options.out / "runs" / str(seed) for seed in range(options.networks)]
    quiet = {
        "run.validate_every": "1000 epochs",
        "generation.epochs": "0:0",
        "validation.noise_levels": 0,
        "train_evaluation.batches": 1,
        "progress.every_n_batches": 200,
    }
    jobs = [
        training(f"train_{seed}", run, {**quiet, "run.seed": seed}, options.out / "output", options.options)
        for seed, run in enumerate(runs)
    ]
    run_all(jobs, options.slots, deadline)
    trained = time.monotonic() - began
    if not all(job.succeeded for job in jobs):
        raise SystemExit("not all networks were trained: see what is above")
    print(f"{options.networks} networks trained in {trained:.1f} s", flush=True)
    test: dict[str, object] = {**_TEST, "generation.members": options.members}
    if json.loads(options.metrics) is not None:
        test["generation.metrics"] = json.loads(options.metrics)
    if options.every:
        test["downscaling.validation.every"] = options.every
    sizes = sorted({1, min(4, options.networks), options.networks})
    scorings = [
        evaluation(
            f"test_{n}", runs[:n], options.out / f"test_{n}", test, options.out / "output", options.options
        )
        for n in sizes
    ]
    run_all(scorings, options.slots, deadline)
    found = {
        n: inferences(options.out / f"test_{n}")[-1]
        for n, job in zip(sizes, scorings, strict=True)
        if job.succeeded
    }
    for n, metrics in found.items():
        scores = {key: metrics.get(f"inference/{key}/t2m") for key in _SHOWN}
        print(f"{called(n)}: " + shown(scores))
    written = {"training_seconds": trained, "networks": options.networks}
    written |= {"options": options.options, "members": options.members}
    named = {called(n): metrics for n, metrics in found.items()}
    (options.out / "ours.json").write_text(json.dumps({**written, "scores": named}, indent=1))


if __name__ == "__main__":
    main()
