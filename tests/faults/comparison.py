"""Whether a run that was disturbed has ended like one that was not."""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, cast

import torch
from attrs import define

from hookloop import files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from faults.shim import Record

_CLOCK = re.compile(r"time|.*_seconds|.*samples_per_second")
_LOG = re.compile(r"log(\.rank\d+)?\.jsonl")
_OWN = {"step", "epoch", "time"}
_MAY_APPEAR = re.compile(r"metrics\.\d+\.jsonl")
"""Metrics of a start that left nothing to resume."""

Metrics = dict[tuple[int, str], float]


@define(eq=False)
class Whole:
    """The end of the undisturbed run."""

    directory: Path
    records: Sequence[Record]
    seconds: float
    names: set[str]
    checkpoints: Mapping[str, Mapping[str, object]]
    metrics: Metrics

    @classmethod
    def of(cls, directory: Path, records: Sequence[Record], seconds: float) -> Whole:
        """Read it once."""
        checkpoints = {
            str(path.relative_to(directory)): files.load(path)
            for path in sorted((directory / "checkpoints").iterdir())
        }
        metrics, problems = read_metrics(directory / "metrics.jsonl")
        if problems:
            raise RuntimeError(f"the undisturbed run: {'; '.join(problems)}")
        return cls(directory, records, seconds, set(names(directory)), checkpoints, metrics)

    @property
    def steps(self) -> int:
        """How many steps it has made."""
        return max(step for step, _ in self.metrics)

    def compare(
        self, directory: Path, excused: Collection[str] = (), ignored: Collection[str] = ()
    ) -> list[str]:
        """Say every difference of the run in *directory* from this one; none if they are equal.

        :param excused: files that the run has said to be missing.
        :param ignored: parts of checkpoints that may differ.
        """
        there = set(names(directory))
        problems = [f"{name} is missing" for name in sorted(self.names - there) if name not in excused]
        problems += [
            f"{name} is left over"
            for name in sorted(there - self.names)
            if name not in excused and not _MAY_APPEAR.fullmatch(name)
        ]
        for name in sorted((self.names & there) - set(excused)):
            problems += self._compare_file(directory, name, excused, ignored)
        return problems

    def _compare_file(
        self, directory: Path, name: str, excused: Collection[str], ignored: Collection[str]
    ) -> Iterator[str]:
        path = directory / name
        if path.is_dir() or _LOG.fullmatch(name):
            return
        if name == "metrics.jsonl":
            yield from self._compare_metrics(path, excused)
        elif name == "environment.json":
            try:
                if not json.loads(path.read_bytes())["starts"]:
                    yield f"{name} has no start"
            except (ValueError, KeyError) as error:
                yield f"{name} cannot be read: {error}"
        elif path.read_bytes() == (self.directory / name).read_bytes():
            return
        elif name in self.checkpoints:
            try:
                found = files.load(path)
            except files.DamagedError as error:
                yield f"{name} is damaged: {error}"
                return
            ignored = {"config", *ignored, *(("best", "plugins.checkpoint") if excused else ())}
            if path.stem == "previous":  # which state it holds depends on what was disturbed
                return
            differing = list(differences(self.checkpoints[name], found, "", ignored))
            yield from (f"{name}: {text}" for text in differing[:3])
        else:
            yield f"{name} differs"

    def _compare_metrics(self, path: Path, excused: Collection[str]) -> Iterator[str]:
        metrics, problems = read_metrics(path)
        yield from problems
        missing = [key for key in self.metrics if key not in metrics]
        if missing:
            yield f"metrics.jsonl: {len(missing)} numbers are missing, such as {missing[0]}"
        surplus = [key for key in metrics if key not in self.metrics]
        if surplus:
            yield f"metrics.jsonl: {len(surplus)} numbers too many, such as {surplus[0]}"
        if excused:  # a best file that could not be written is not the best
            metrics = {key: value for key, value in metrics.items() if not key[1].startswith("best/")}
        wrong = [
            key
            for key, value in metrics.items()
            if key in self.metrics and not _CLOCK.fullmatch(key[1]) and not same(value, self.metrics[key])
        ]
        if wrong:
            key = wrong[0]
            yield (
                f"metrics.jsonl: {len(wrong)} numbers differ, such as {key}: "
                f"{metrics[key]!r} for {self.metrics[key]!r}"
            )


def names(directory: Path) -> Iterator[str]:
    """Everything below *directory*, by name."""
    for path in directory.rglob("*"):
        yield str(path.relative_to(directory))


def read_metrics(path: Path) -> tuple[Metrics, list[str]]:
    """Every number by step and key, and what is wrong with the file."""
    found: Metrics = {}
    problems = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            content = cast("dict[str, float]", json.loads(line))
            step = int(content["step"])
        except (ValueError, KeyError, TypeError):
            problems.append(f"metrics.jsonl:{number}: corrupt: {line[:60]!r}")
            continue
        for key in content.keys() - _OWN:
            if (step, key) in found:
                problems.append(f"metrics.jsonl:{number}: {key} of step {step} twice")
            found[step, key] = content[key]
    return found, problems


def last_step(path: Path) -> int:
    """The last step that has left a metric; 0 if none has."""
    if not path.exists():
        return 0
    return max((step for step, _ in read_metrics(path)[0]), default=0)


def same(a: object, b: object) -> bool:
    """Whether two numbers have the same bits."""
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return type(a) is type(b) and a == b


def differences(a: object, b: object, place: str, ignored: Collection[str]) -> Iterator[str]:
    """Where two states differ, bit for bit."""
    if place in ignored:
        return
    dot = f"{place}." if place else ""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys(), key=str):
            if key not in a or key not in b:
                yield f"{dot}{key} is {'new' if key not in a else 'missing'}"
            else:
                yield from differences(a[key], b[key], f"{dot}{key}", ignored)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from differences(one, other, f"{dot}{i}", ignored)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        if not alike or a.contiguous().numpy().tobytes() != b.contiguous().numpy().tobytes():
            yield f"{place} differs"
    elif not same(a, b):
        yield f"{place}: {b!r} for {a!r}"
