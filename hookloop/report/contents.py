"""What a run's directory holds, read without a run: also while it is being written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrs import frozen

from hookloop import yamlfile
from hookloop.errors import ConfigError, HookloopError
from hookloop.report.scores import Result, inferred

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Points = Sequence[tuple[int, float]]
    """Step and value, by ascending step."""

_FILES = ("metrics.jsonl", "config.yaml", "environment.json", "log.jsonl")
_ENDS = ("run.finished", "run.stopped", "run.failed")
_LOUD = ("warning", "error", "critical")
_OWN = {"step", "epoch", "time"}
_MOST = 2**53
"""Steps: more are no count, and no float tells them apart."""


@frozen(eq=False)
class Trouble:
    """Warnings or errors of one kind."""

    level: str
    event: str
    times: int
    last: str
    """When the last of them came."""
    details: Mapping[str, object]
    """What the last of them said."""


@frozen(eq=False)
class Contents:
    """A run, or an evaluation of one."""

    directory: Path
    series: Mapping[str, Points]
    """Every number that was logged, by key."""
    epochs: Mapping[int, int]
    """The epoch that was logged last at each step."""
    inferences: Mapping[int, Sequence[Result]]
    """Scores by step, ascending."""
    odd: Sequence[str]
    """What is there but could not be read, a sentence each."""
    config_text: str | None
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    end: Mapping[str, Any] | None
    """The event that ended the run; ``None`` where none did yet."""
    heard: str | None
    """When the log was last written to."""
    troubles: Sequence[Trouble]
    figures: Sequence[Path]
    units: Mapping[str, str]
    """By variable, those that are known."""
    evaluations: Mapping[str, Contents]

    @property
    def results(self) -> list[Result]:
        """Of the last inference of each set."""
        last = self.inferred_at
        return [
            result
            for step, results in self.inferences.items()
            for result in results
            if step == last[result.key.set]
        ]

    @property
    def inferred_at(self) -> dict[str, int]:
        """The step of the last inference by set."""
        return {result.key.set: step for step, results in self.inferences.items() for result in results}

    def option(self, *names: str) -> object:
        """An option of the configuration, by the names that lead to it; ``None`` where there is none."""
        found: object = self.config
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    @property
    def best(self) -> dict[str, str]:
        """By which metric each best checkpoint is to be chosen."""
        best = self.option("checkpoint", "best")
        return {str(stem): str(key) for stem, key in best.items()} if isinstance(best, dict) else {}

    @property
    def chosen_by(self) -> list[str]:
        """Keys of metrics and names of results by which checkpoints are to be chosen."""
        error = self.option("generation", "error")
        return [*([error] if isinstance(error, str) else []), *self.best.values()]

    def when(self, step: int | None) -> str:
        """Say when *step* was."""
        if step is None:
            return ""
        return f"after epoch {self.epochs[step]}, step {step:,}" if step else "before training"

    @property
    def epochs_done(self) -> int:
        """Whole epochs."""
        return int(
            max((self.epochs[step] for step, _ in self.series.get("epoch/total_seconds", ())), default=0)
        )

    @property
    def steps(self) -> int:
        """Batches."""
        return max(self.epochs, default=0)

    @property
    def steps_an_epoch(self) -> float | None:
        """Batches of an epoch; ``None`` where it is not known, or not the same for all."""
        whole = [step for step, _ in self.series.get("epoch/total_seconds", ())]
        found = {step / self.epochs[step] for step in whole if self.epochs[step]}
        return found.pop() if len(found) == 1 else None


def read(directory: Path) -> Contents:
    """Read the run in *directory*.

    :raises HookloopError: where it is no run's directory.
    """
    if not any((directory / name).is_file() for name in _FILES):
        what = "no run's directory" if directory.is_dir() else "no such directory"
        raise HookloopError(
            f"{directory}: {what}; expected one with {_FILES[0]}, which `hookloop run` writes"
        )
    return _contents(directory)


def _contents(directory: Path) -> Contents:
    odd: list[str] = []
    by_step, epochs = _metrics(directory, odd)
    series: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(by_step):
        for key, value in by_step[step].items():
            series.setdefault(key, []).append((step, value))
    inferences = {step: inferred(by_step[step]) for step in sorted(by_step)}
    text = _text(directory / "config.yaml")
    events = _events(directory, odd)
    end = events[-1] if events and events[-1].get("event") in _ENDS else None
    return Contents(
        directory=directory,
        series=series,
        epochs=epochs,
        inferences={step: results for step, results in inferences.items() if results},
        odd=odd,
        config_text=text,
        config=_config(text, odd),
        starts=_starts(directory, odd),
        end=end,
        heard=str(events[-1].get("timestamp", "")) if events else None,
        troubles=_troubles(events),
        figures=sorted((directory / "figures").rglob("*.png")),
        units=_units(directory, odd),
        evaluations=_evaluations(directory),
    )


def _evaluations(directory: Path) -> dict[str, Contents]:
    below = directory / "evaluations"
    folders = sorted(path for path in below.iterdir() if path.is_dir()) if below.is_dir() else []
    found = {path.name: path for path in folders if any((path / name).is_file() for name in _FILES)}
    return {name: _contents(path) for name, path in found.items()}


def _metrics(directory: Path, odd: list[str]) -> tuple[dict[int, dict[str, float]], dict[int, int]]:
    """Numbers by step, and the epoch at each step."""
    by_step: dict[int, dict[str, float]] = {}
    epochs: dict[int, int] = {}

    def take(content: dict[str, Any]) -> None:
        step, epoch = _count(content["step"]), _count(content["epoch"])
        numbers = {key: float(value) for key, value in content.items() if _is_number(value)}
        by_step.setdefault(step, {}).update({k: v for k, v in numbers.items() if k not in _OWN})
        epochs[step] = epoch

    _take_lines(directory / "metrics.jsonl", take, odd)
    return by_step, epochs


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < _MOST:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _take_lines(path: Path, take: Callable[[dict[str, Any]], None], odd: list[str]) -> None:
    """Give each line's content to *take*, and say how many lines could not be read.

    The last line may be one that is being written: it is left out without a word.
    """
    unread = 0
    lines = [line for line in (_text(path) or "").split("\n") if line.strip()]
    for n, line in enumerate(lines):
        try:
            take(_mapping(line))
        except (ValueError, LookupError, OverflowError):
            unread += n < len(lines) - 1
    if unread:
        odd.append(f"{unread} {'line' if unread == 1 else 'lines'} of {path.name} could not be read.")


def _mapping(text: str) -> dict[str, Any]:
    """Read JSON.

    :raises ValueError: where it is none, or no mapping.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("expected a mapping")  # noqa: TRY004 - of what was read, not of an argument
    return found


def _text(path: Path) -> str | None:
    """The text of a file; ``None`` where there is none that could be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _config(text: str | None, odd: list[str]) -> Mapping[str, Any]:
    try:
        return yamlfile.read(text or "", "config.yaml").data
    except ConfigError as error:
        odd.append(f"The options are not known: {str(error).splitlines()[0]}.")
        return {}


def _starts(directory: Path, odd: list[str]) -> list[Mapping[str, Any]]:
    starts = _kept(directory / "environment.json", odd).get("starts")
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def _units(directory: Path, odd: list[str]) -> dict[str, str]:
    found = _kept(directory / "figures" / "units.json", odd)
    return {name: units for name, units in found.items() if isinstance(units, str)}


def _kept(path: Path, odd: list[str]) -> Mapping[str, Any]:
    """A file that holds a mapping; nothing where there is none."""
    text = _text(path)
    try:
        return _mapping(text) if text else {}
    except ValueError:
        odd.append(f"{path.name} could not be read.")
        return {}


def _events(directory: Path, odd: list[str]) -> list[Mapping[str, Any]]:
    events: list[Mapping[str, Any]] = []
    _take_lines(directory / "log.jsonl", events.append, odd)
    return events


def _troubles(events: Sequence[Mapping[str, Any]]) -> list[Trouble]:
    """Warnings and errors by kind, in the order in which each kind first came."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for event in events:
        level, name = str(event.get("level")), str(event.get("event"))
        if level in _LOUD:
            kinds.setdefault((level, name), []).append(event)
    known = {"level", "event", "timestamp"}
    return [
        Trouble(
            level,
            name,
            times=len(own),
            last=str(own[-1].get("timestamp", "")),
            details={key: value for key, value in own[-1].items() if key not in known},
        )
        for (level, name), own in kinds.items()
    ]
