"""The scores of a run beside what it has to beat, and beside the best that can be done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ROWS = {
    "crps": "CRPS (of bicubic: its mean absolute error)",
    "crps_relative": "CRPS relative to bicubic",
    "rmse": "RMSE of the ensemble mean",
    "spread_skill": "spread-skill ratio (calibrated: 1)",
}


def table(run: Path, exact: Path | None) -> str:
    """A line per score and variable: the model's, bicubic interpolation's and the exact answer's, if known.

    :param run: directory of a run that has inferred at least once.
    :param exact: ``exact.json`` of the sample data.
    :raises HookloopError: where there is nothing to compare.
    """
    found = last_inference(run / "metrics.jsonl")
    known = _read(exact) if exact else {}
    variables = sorted(key.rpartition("/")[2] for key in found if key.startswith("inference/crps/"))
    lines = [f"after epoch {found['epoch']:g}, step {found['step']:g}"]
    for variable in variables:
        lines += ["", f"{variable:<44}{'model':>9}{'bicubic':>9}" + (f"{'exact':>9}" if known else "")]
        scores = {name: found.get(f"inference/{name}/{variable}") for name in _ROWS}
        bicubic = {
            "crps": found.get(f"inference/mae_baseline/{variable}"),
            "crps_relative": None if scores["crps_relative"] is None else 1.0,
            "rmse": found.get(f"inference/rmse_baseline/{variable}"),
        }
        for name, words in _ROWS.items():
            cells = [scores[name], bicubic.get(name), *([known.get(name)] if known else [])]
            lines.append(f"{words:<44}" + "".join(f"{_cell(value):>9}" for value in cells))
    return "\n".join([*lines, "", f"figures: {run / 'figures'}", f"metrics: {run / 'metrics.jsonl'}"])


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"  # noqa: PLR2004 - 9 wide


def last_inference(path: Path) -> Mapping[str, float]:
    """The last line of ``metrics.jsonl`` that holds scores."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise HookloopError(f"{path}: cannot be read: {error}; expected the metrics of a run") from error
    scored = [line for line in lines if "inference/error" in line]
    if not scored:
        raise HookloopError(
            f"{path}: no inference in it, expected a run with a validation split that got that far"
        )
    last: Mapping[str, float] = scored[-1]
    return last


def _read(path: Path) -> Mapping[str, float]:
    try:
        known: Mapping[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HookloopError(
            f"{path}: cannot be read: {error}; expected exact.json of the sample data"
        ) from error
    return known
