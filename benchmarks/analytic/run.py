"""A model trained on fields whose exact answer is known must come close to it, and must need the static fields.

    python benchmarks/analytic/run.py OUT --seconds 240

Makes Gaussian sample data (``hookloop init downscaling``), trains two models of model.yaml's settings side by side,
one of them without terrain and land, for as many epochs as fit into the time, generates the held-out hours with both
(``hookloop generate``, the same noise) and prints whether the first reaches

- a CRPS within 3 % of the exact posterior's on the same hours,
- a spread-skill ratio of 0.97 to 1.03,
- power within 5 % of the truth's in every band of about four wave numbers below 0.8 of the Nyquist one,

and whether the second has a larger CRPS on the same hours: the 95 % interval of the difference, whole days drawn with
replacement, the same for both, must lie above 0. Exits 1 if any of them fails. Writes OUT/analytic.json.

Power is judged by bands, the mean of P/P_truth - 1 over their rings. A mean over all wave numbers would hide that a
band is wrong; a single ring errs by chance: with the exact posterior's own members, 240 hours of 64 x 64 cells, the
worst ring was off by 1.6 to 3.5 % in 12 trials, the worst band by 0.4 to 1.9 %. The worst ring and the mean of
|P/P_truth - 1| over rings are printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
import yaml
from attrs import asdict, frozen

from hookloop.scores.ensemble import EnsembleScore
from hookloop.scores.score import Cases
from hookloop.scores.spectra import RESOLVED, Spectra

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = {"with statics": {}, "without": {"downscaling.statics": []}}
SETTINGS = Path(__file__).with_name("model.yaml")
_CRPS, _SPREAD, _POWER = 1.03, (0.97, 1.03), 0.05
_BAND = 4
"""Wave numbers of a band; the first ones have one more where they are no multiple of it."""
_DAYS = 5
"""Resampling fewer tells nothing."""
_DRAWS = 1000


def start(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    """Begin a command of hookloop, its output in a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "hookloop", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )


def flat(options: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Sections as dotted keys; lists and what has a name are values."""
    found: dict[str, object] = {}
    for key, value in options.items():
        if isinstance(value, dict) and "name" not in value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def side_by_side(out: Path, stage: str, arguments: dict[str, list[str]]) -> None:
    """Run a command of hookloop for each model at once, and wait."""
    processes = {
        name: start(own, out / "output" / f"{stage}_{name.replace(' ', '_')}.txt")
        for name, own in arguments.items()
    }
    failed = [name for name, process in processes.items() if process.wait()]
    if failed:
        raise SystemExit(f"{stage}, {failed[0]}: failed, see {out / 'output'}")


def trained(out: Path, stage: str, options: dict[str, object], given: list[str]) -> dict[str, Path]:
    """Train both models with *options* and what was *given* as text; the directories of their runs."""
    runs = {name: out / stage / name.replace(" ", "_") for name in MODELS}
    arguments = {}
    for name, directory in runs.items():
        every = {**options, **MODELS[name]}
        texts = [*(f"{key}={json.dumps(value)}" for key, value in every.items()), *given]
        sets = [part for text in texts for part in ("--set", text)]
        arguments[name] = ["run", "--dir", str(directory), *sets, str(out / "data" / "cfg.yaml")]
    side_by_side(out, stage, arguments)
    return runs


def generated(out: Path, runs: dict[str, Path], members: int, batch: int) -> dict[str, Path]:
    """Ensembles of the held-out hours by both models; their stores."""
    stores = {name: run.with_suffix(".zarr") for name, run in runs.items()}
    arguments = {
        name: [
            *("generate", str(run / "checkpoints" / "latest.ckpt"), "--out", str(stores[name])),
            *("--data", str(out / "data" / "validation_coarse.nc")),
            *(f"--members={members}", f"--batch={batch}"),
        ]
        for name, run in runs.items()
    }
    side_by_side(out, "generate", arguments)
    return stores


def days_of(store: Path, fine: Path) -> list[Cases]:
    """The members of *store* beside the truth, a day each."""
    with xr.open_zarr(store, consolidated=False) as made, xr.open_dataset(fine, engine="h5netcdf") as known:
        truth = known.t2m.transpose("time", "latitude", "longitude").load()
        members = made.t2m.transpose("time", "member", "latitude", "longitude").load()
    members = members.reindex_like(truth, method="nearest", tolerance=1e-3)  # NaN, were cells others
    days = [truth.time.values.astype("datetime64[D]") == day for day in np.unique(truth.time.dt.floor("D"))]
    return [
        Cases(
            name="t2m",
            members=torch.from_numpy(members.values[hours]),
            truth=torch.from_numpy(truth.values[hours]),
            weights=torch.ones(truth.shape[1:], dtype=torch.float64),
            seeds=np.flatnonzero(hours).tolist(),
        )
        for hours in days
    ]


@frozen(eq=False)
class Scored:
    """What one model's ensembles of the held-out hours are worth."""

    crps: float
    spread_skill: float
    daily_crps: Sequence[float]
    hours: Sequence[int]
    """Of each day."""
    rings: Sequence[float]
    """P/P_truth - 1 of the wave numbers 1, 2 … below 0.8 of the Nyquist one."""

    @classmethod
    def of(cls, days: Sequence[Cases]) -> Scored:
        """Add up the *days*."""
        ensemble, spectra = EnsembleScore(), Spectra()
        sums = [ensemble.sums(day) for day in days]
        whole = ensemble.results({name: reduce(add, [own[name] for own in sums]) for name in sums[0]})
        daily = [spectra.sums(day) for day in days]
        members, truth = (sum(own[f"radial_{of}"].numpy() for own in daily) for of in ("members", "truth"))
        resolved = int(RESOLVED * (len(truth) - 1)) + 1
        return cls(
            crps=whole["crps"],
            spread_skill=whole["spread_skill"],
            daily_crps=[ensemble.results(own)["crps"] for own in sums],
            hours=[len(day.truth) for day in days],
            rings=(members / truth - 1)[1:resolved].tolist(),
        )


def bands(rings: Sequence[float]) -> list[float]:
    """Means over neighbouring rings, :data:`_BAND` or a few more each."""
    return [float(band.mean()) for band in np.array_split(rings, max(1, len(rings) // _BAND))]


def difference(own: Scored, other: Scored) -> tuple[float, float]:
    """The 95 % interval of the CRPS that *other* has more on the same hours: paired bootstrap over days."""
    hours = np.array(own.hours)
    more = (np.array(other.daily_crps) - np.array(own.daily_crps)) * hours
    drawn = np.random.default_rng(0).integers(len(hours), size=(_DRAWS, len(hours)))
    low, high = np.quantile(more[drawn].sum(1) / hours[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def lines(directory: Path) -> list[dict[str, float]]:
    """Read ``metrics.jsonl``."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def epoch_seconds(directory: Path) -> float:
    """How long the last epoch of a run trained."""
    return [line["epoch/train_seconds"] for line in lines(directory) if "epoch/train_seconds" in line][-1]


def verdict(own: Scored, other: Scored, exact: dict[str, float]) -> dict[str, tuple[bool, str]]:
    """Say what holds for *own*, and for *other*, which lacks the static fields, with the figures."""
    ratio = own.crps / exact["crps"]
    rings, banded = np.abs(own.rings), np.abs(bands(own.rings))
    return {
        "CRPS": (
            ratio <= _CRPS,
            f"{own.crps:.4f} K, {ratio:.4f} of the exact posterior's {exact['crps']:.4f}",
        ),
        "spread-skill": (
            _SPREAD[0] <= own.spread_skill <= _SPREAD[1],
            f"{own.spread_skill:.3f} (exact {exact['spread_skill']:.3f})",
        ),
        "spectrum": (
            bool(banded.max() <= _POWER),
            (
                f"off by {100 * banded.max():.1f} % in the worst of {len(banded)} bands, "
                f"{100 * rings.max():.1f} % in the worst ring (wave number {rings.argmax() + 1}), "
                f"{100 * rings.mean():.1f} % on average over rings"
            ),
        ),
        "without statics": _hurts(own, other),
    }


def _hurts(own: Scored, other: Scored) -> tuple[bool, str]:
    loss = f"{other.crps / own.crps:.3f} times the CRPS"
    if len(own.hours) < _DAYS:
        return False, f"{loss}; not shown by {len(own.hours)} days, expected {_DAYS} or more to resample"
    low, high = difference(own, other)
    return low > 0, f"{loss}; larger by {low:.4f} to {high:.4f} K (95 %, paired by day)"


def main() -> None:
    """Make data, find out how fast an epoch is, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=240, help="of training, both models side by side")
    parser.add_argument("--epochs", type=int, help="instead of --seconds")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--times", type=int, default=8192)
    parser.add_argument("--validation-times", type=int, default=240)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--batch", type=int, default=512, help="fields generated at once")
    parser.add_argument("--set", dest="options", metavar="SECTION.KEY=VALUE", action="append", default=[])
    options = parser.parse_args()
    began = time.monotonic()
    out: Path = options.out
    sizes = [
        f"--{name}={getattr(options, name.replace('-', '_'))}"
        for name in ("size", "times", "validation-times")
    ]
    made = start(["init", "downscaling", str(out / "data"), *sizes], out / "output" / "init.txt")
    if made.wait():
        raise SystemExit(f"init: failed, see {out / 'output'}")
    print(f"data: {time.monotonic() - began:.0f} s", flush=True)
    settings = flat(yaml.safe_load(SETTINGS.read_text()))
    epochs = options.epochs
    if not epochs:
        quick = {"run.max_epochs": 2, "run.validate_every": "9 epochs"}
        trial = trained(out, "trial", {**settings, **quick}, options.options)
        epochs = max(2, int(options.seconds / max(epoch_seconds(run) for run in trial.values())))
        print(f"{epochs} epochs fit: {time.monotonic() - began:.0f} s", flush=True)
    quiet = {"run.max_epochs": epochs, "run.validate_every": f"{-(-epochs // 4)} epochs"}
    runs = trained(out, "run", {**settings, **quiet}, options.options)
    print(f"trained: {time.monotonic() - began:.0f} s", flush=True)
    stores = generated(out, runs, options.members, options.batch)
    fine = out / "data" / "validation_fine.nc"
    found = {name: Scored.of(days_of(store, fine)) for name, store in stores.items()}
    exact = json.loads((out / "data" / "exact.json").read_text())
    results = verdict(found["with statics"], found["without"], exact)
    steps = lines(runs["with statics"])[-1]["step"]
    print(f"{steps:g} steps of training, {time.monotonic() - began:.0f} s in all")
    for what, (holds, figures) in results.items():
        print(f"{'pass' if holds else 'FAIL'}  {what}: {figures}")
    (out / "analytic.json").write_text(
        json.dumps(
            {
                "exact": exact,
                "found": {name: asdict(own) for name, own in found.items()},
                "passed": {what: holds for what, (holds, _) in results.items()},
            },
            indent=1,
        )
    )
    sys.exit(not all(holds for holds, _ in results.values()))


if __name__ == "__main__":
    main()
