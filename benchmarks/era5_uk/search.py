"""Choose the settings of examples/era5_uk.yaml on 1–17 against 19–22 March; the test days are not touched.

    ERA5_UK=DATA python benchmarks/era5_uk/search.py OUT --seconds 500

Trains the variants of variants.py side by side, as many as fit into the time; then the best of them again with
other seeds, and scores those networks together as ensembles; then the best ensemble with other samplers. Writes
OUT/search.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from jobs import Job, evaluation, inferences, run_all, training
from variants import SAMPLERS, VARIANTS, Options

_BATCHES_OF_16 = 25
"""An epoch of 17 days."""
_SCORES = ("crps", "spread_skill", "rmse")


def common(every: str) -> Options:
    """What all runs share: the days, and as little but training as possible."""
    return {
        "run.evaluate_before_training": False,
        "downscaling.train.time": ["2019-03-01", "2019-03-17"],
        "downscaling.validation.time": ["2019-03-19", "2019-03-22"],
        "downscaling.validation.every": every,
        "generation.epochs": "::1",
        "generation.members": 8,
        "generation.max_batch": 256,
        "generation.figures": 0,
        "generation.metrics": ["ensemble"],
        "generation.weights": "equal",
        "validation.noise_levels": 0,
        "train_evaluation.batches": 1,
        "progress.every_n_batches": 200,
        "checkpoint.every_n_batches": 100000,
    }


def lengths(batches: int, options: Options, scale: float) -> Options:
    """Epochs for so many batches, evaluated five times on the way."""
    size = options.get("downscaling.train.batch_size", 16)
    assert isinstance(size, int)
    epochs = max(1, round(batches * scale / (_BATCHES_OF_16 * 16 / size)))
    return {"run.max_epochs": epochs, "run.validate_every": f"{max(1, epochs // 5)} epochs"}


def row(name: str, found: dict[str, float]) -> str:
    """One line of the table."""
    scores = [format(found[f"inference/{score}/t2m"], ".4f") for score in _SCORES]
    cells = " | ".join([name, format(found["epoch"], "g"), *scores])
    return f"| {cells} |"


def table(title: str, rows: list[str]) -> str:
    """A table in Markdown."""
    head = ["| variant | epoch | CRPS (K) | spread–skill | RMSE (K) |", "|---|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *head, *rows, ""])


def last_score(directory: Path) -> float:
    """CRPS at the end of a run; infinity where it was not reached."""
    found = inferences(directory)
    return found[-1]["inference/crps/t2m"] if found else float("inf")


class Search:
    """Three stages, within a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.began = time.monotonic()
        self.seconds: float = options.seconds
        self.slots: int = options.slots
        self.scale: float = options.scale
        self.seeds: int = options.seeds
        self.shared = common(options.every)
        self.given: list[str] = options.options
        self.sections: list[str] = []

    def until(self, share: float) -> float:
        """The moment at which that share of the time is up."""
        return self.began + share * self.seconds

    def trained(self, name: str, seed: int) -> Path:
        """Where a variant's run with a seed lies."""
        return self.out / "runs" / f"{name}_{seed}"

    def job(self, name: str, seed: int) -> Job:
        """Train a variant with a seed."""
        batches, own = VARIANTS[name]
        options = {**self.shared, **lengths(batches, own, self.scale), **own, "run.seed": seed}
        return training(f"{name}_{seed}", self.trained(name, seed), options, self.out / "output", self.given)

    def singles(self, names: list[str]) -> list[str]:
        """Train every variant once; those that came to their end, best first."""
        jobs = [self.job(name, 0) for name in names]
        run_all(jobs, self.slots, self.until(0.62))
        ended = [name for name, job in zip(names, jobs, strict=True) if job.succeeded]
        rows = [row(name, found) for name in ended for found in inferences(self.trained(name, 0))]
        self.add("One network each", rows)
        ended.sort(key=lambda name: last_score(self.trained(name, 0)))
        self.add(
            "At the end of training, best first",
            [row(name, inferences(self.trained(name, 0))[-1]) for name in ended],
        )
        return ended

    def more_seeds(self, names: list[str]) -> None:
        """Train *names* again with other seeds, in turn."""
        seeds = range(1, self.seeds)
        run_all([self.job(name, seed) for seed in seeds for name in names], self.slots, self.until(0.88))

    def runs_of(self, name: str) -> list[Path]:
        """Runs of a variant that came to their end."""
        last = inferences(self.trained(name, 0))[-1]["epoch"]
        every = [self.trained(name, seed) for seed in range(self.seeds)]
        return [path for path in every if (found := inferences(path)) and found[-1]["epoch"] == last]

    def together(self, parts: dict[str, tuple[list[Path], Options]], title: str) -> dict[str, float]:
        """Score runs together; the CRPS by name."""
        where = self.out / "evaluations"
        jobs = {
            name: evaluation(
                name.replace(" ", "_"),
                runs,
                where / name.replace(" ", "_"),
                {**self.shared, **own},
                self.out / "output",
                self.given,
            )
            for name, (runs, own) in parts.items()
        }
        run_all(list(jobs.values()), self.slots, self.until(1.0))
        done = [name for name, job in jobs.items() if job.succeeded]
        self.add(title, [row(name, inferences(where / name.replace(" ", "_"))[-1]) for name in done])
        return {name: last_score(where / name.replace(" ", "_")) for name in done}

    def add(self, title: str, rows: list[str]) -> None:
        """Tell a table, and write all of them so far."""
        self.sections.append(table(title, rows))
        print(f"[{time.monotonic() - self.began:.0f} s]\n{self.sections[-1]}", flush=True)
        (self.out / "search.md").write_text("\n".join(self.sections))


def main() -> None:
    """Search."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--slots", type=int, default=12, help="runs at once")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="variants; all if not given")
    parser.add_argument("--keep", type=int, default=2, help="variants that are trained with more seeds")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of batches, for a rehearsal")
    parser.add_argument("--every", default="3h", help="hours of 19–22 March that are generated")
    parser.add_argument("--set", dest="options", metavar="SECTION.KEY=VALUE", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    search = Search(options)
    best = search.singles(options.only)[: options.keep]
    search.more_seeds(best)
    runs = {name: search.runs_of(name) for name in best}
    sizes = {
        f"{name} x{n}": (own[:n], Options())
        for name, own in runs.items()
        for n in (1, 2, 4, 8)
        if n <= len(own)
    }
    if len(best) > 1:  # different settings err in different ways
        sizes[f"{best[0]} and {best[1]}"] = ([*runs[best[0]][:4], *runs[best[1]][:4]], Options())
    found = search.together(sizes, "Ensembles of networks")
    if found:
        chosen = min(found, key=lambda name: found[name])
        members = sizes[chosen][0]
        search.together({f"{chosen}, {name}": (members, own) for name, own in SAMPLERS.items()}, "Samplers")


if __name__ == "__main__":
    main()
