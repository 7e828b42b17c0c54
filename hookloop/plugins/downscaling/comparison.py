"""The scores of a run beside what it has to beat, and beside the best that can be done."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from attrs import frozen

from hookloop import yamlfile
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_ROWS = {
    "crps": "CRPS (of {}: its mean absolute error)",
    "crps_relative": "CRPS relative to {}",
    "rmse": "RMSE of the ensemble mean",
    "spread_skill": "spread-skill ratio (calibrated: 1)",
}
_BASELINES = {"downscaling": "bicubic", "forecast": "persistence"}
"""What the baseline of a run is called, by the plugin that makes it."""
_KEY = re.compile(rf"inference/(?:(?P<set>[^/]+)/)?(?:{'|'.join(_ROWS)})/(?P<variable>[^/]+)")
"""Of a score without a lead time."""
_NARROWEST = 9


def table(run: Path, exact: Path | None) -> str:
    """A line per score, variable and inference set: the model's, the baseline's and the exact answer's, if known.

    :param run: directory of a run that has inferred at least once.
    :param exact: ``exact.json`` of the sample data.
    :raises HookloopError: where there is nothing to compare.
    """
    found = last_inference(run / "metrics.jsonl")
    known = _read(exact) if exact else {}
    baseline = _baseline(run / "config.yaml")
    lines = [f"after epoch {found['epoch']:g}, step {found['step']:g}"]
    for name, variable in _scored(found):
        own = known if name in ("", "validation") else {}  # further sets are of other data
        lines += ["", *_table(_Scores(found, name), variable, baseline, own)]
    hint = run.resolve().parent / "exact.json"
    if not exact and hint.is_file():
        lines += ["", f"the exact answer beside them: --exact {run.parent / hint.name}"]
    return "\n".join([*lines, "", f"figures: {run / 'figures'}", f"metrics: {run / 'metrics.jsonl'}"])


def _scored(found: Mapping[str, float]) -> list[tuple[str, str]]:
    """Give inference sets, nameless where there is but one, in the order of the log, and the variables of each."""
    matches = [match for key in found if (match := _KEY.fullmatch(key))]
    sets: dict[str, set[str]] = {}
    for match in matches:
        sets.setdefault(match["set"] or "", set()).add(match["variable"])
    return [(name, variable) for name, variables in sets.items() for variable in sorted(variables)]


@frozen
class _Scores:
    """Those of one inference set."""

    found: Mapping[str, float]
    name: str

    def get(self, result: str, variable: str) -> float | None:
        """Find a result."""
        within = f"inference/{self.name}/" if self.name else "inference/"
        return self.found.get(f"{within}{result}/{variable}")

    def interval(self, result: str, variable: str) -> str:
        """Write the interval of a result, if it has one."""
        low, high = (self.get(f"{result}_{end}", variable) for end in ("low", "high"))
        return "" if low is None or high is None else f"[{_end(low)}, {_end(high)}]"


def _table(scores: _Scores, variable: str, baseline: str, known: Mapping[str, float]) -> list[str]:
    """Write the scores of a variable, with a header."""
    relative = scores.get("crps_relative", variable)
    beaten = {
        "crps": scores.get("mae_baseline", variable),
        "crps_relative": None if relative is None else 1.0,
        "rmse": scores.get("rmse_baseline", variable),
    }
    columns = [
        [
            f"{scores.name}: {variable}" if scores.name else variable,
            *(words.format(baseline) for words in _ROWS.values()),
        ],
        ["model", *(_cell(scores.get(name, variable)) for name in _ROWS)],
    ]
    if any(intervals := [scores.interval(name, variable) for name in _ROWS]):
        columns.append(["95 % interval", *intervals])
    columns.append([baseline, *(_cell(beaten.get(name)) for name in _ROWS)])
    if known:
        columns.append(["exact", *(_cell(known.get(name)) for name in _ROWS)])
    return _aligned(columns)


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Write rows: names to the left, all else to the right."""
    first, *others = columns
    widths = [max(_NARROWEST, 2 + max(map(len, column))) for column in others]
    rows = zip(*others, strict=True)
    return [
        name.ljust(2 + max(map(len, first)))
        + "".join(cell.rjust(n) for cell, n in zip(row, widths, strict=True))
        for name, row in zip(first, rows, strict=True)
    ]


def _baseline(path: Path) -> str:
    """Call the baseline what it is, where the configuration of the run tells."""
    try:
        plugins = yamlfile.read(path.read_text(encoding="utf-8"), str(path)).data.get("plugins")
    except (OSError, ValueError, HookloopError):  # the scores are worth reading without it
        plugins = None
    known = [_BASELINES[name] for name in _BASELINES if isinstance(plugins, list) and name in plugins]
    return known[0] if known else "baseline"


def _end(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


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
