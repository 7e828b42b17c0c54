"""A run's directory, written by hand, for tests of what reads one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class WrittenRun:
    """The directory of a run, whose files are written one by one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)

    def metrics(self, *lines: Mapping[str, Any], torn: str = "") -> None:
        """Lines of ``metrics.jsonl``, and what is being written."""
        text = "".join(json.dumps({"time": 0.0, **line}) + "\n" for line in lines)
        self.write("metrics.jsonl", text + torn)

    def log(self, *events: Mapping[str, Any]) -> None:
        """Events of ``log.jsonl``."""
        known = {"level": "info", "timestamp": "2026-11-23T12:00:00Z"}
        self.write("log.jsonl", "".join(json.dumps({**known, **event}) + "\n" for event in events))

    def figure(self, name: str) -> None:
        """A picture in ``figures/``."""
        path = self.directory / "figures" / name
        path.parent.mkdir(exist_ok=True)
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        figure.savefig(path)

    def write(self, name: str, text: str) -> None:
        """Any file."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def whole_run(run: WrittenRun, variables: Sequence[str] = ("t2m", "pr")) -> WrittenRun:
    """A run of three epochs of ten steps with everything that can be told of it."""
    lines: list[dict[str, Any]] = []
    for epoch in range(4):
        at = {"step": 10 * epoch, "epoch": epoch}
        lines += [
            {"step": 10 * epoch + 5, "epoch": epoch, "batch/loss": 1.0 / (epoch + 1), "batch/lr": 1e-3}
        ] * (epoch < 3)
        scores = {"val/loss": 1.0 / (epoch + 1), "inference/error": 0.9 - 0.1 * epoch}
        for variable in variables:
            scores |= {
                f"inference/crps/{variable}": 0.5 - 0.1 * epoch,
                f"inference/crps_low/{variable}": 0.45 - 0.1 * epoch,
                f"inference/crps_high/{variable}": 0.55 - 0.1 * epoch,
                f"inference/mae_baseline/{variable}": 0.4,
                f"inference/spread_skill/{variable}": 0.9,
            }
        times = {"epoch/train_seconds": 30.0, "epoch/validation_seconds": 10.0, "epoch/total_seconds": 40.0}
        lines.append(at | scores | (times if epoch else {}))
        lines += [at | {"best/best_inference": 0.9 - 0.1 * epoch}] * bool(epoch)
    run.metrics(*sorted(lines, key=lambda line: line["step"]))
    run.log(
        {"event": "checkpoint.saved"},
        {"event": "figure.unwritten", "level": "warning", "path": "a.png"},
        {"event": "figure.unwritten", "level": "warning", "path": "b.png"},
        {"event": "run.finished", "epoch": 3, "step": 30},
    )
    run.write("config.yaml", "run: {max_epochs: 3}\ncheckpoint: {best: {best_inference: inference/error}}\n")
    start = {"started": "2026-11-23T11:00:00+00:00", "command": ["hookloop", "run"], "torch": "2.13.0"}
    run.write("environment.json", json.dumps({"starts": [start, start]}))
    for variable in variables:
        name = "".join(c if c.isalnum() else "_" for c in variable)
        run.figure(f"{name}_rank_histogram.png")
        run.figure(f"{name}_2020-01-01T00.png")
    return run
