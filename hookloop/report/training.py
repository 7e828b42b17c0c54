"""Which curves tell how a run went."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from hookloop.data.options import DURATION, minutes
from hookloop.report.curves import Curve, Line, Panel
from hookloop.report.meanings import DIRECTIONS, meaning_of, units_of
from hookloop.report.scores import Key, headline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hookloop.report.contents import Contents, Points
    from hookloop.report.scores import Result

_MOST_PANELS = 12
_IDEALS = {"one": 1.0, "zero": 0.0}
_NOISY = "batches"
_LOSSES = {"batch/loss": _NOISY, "train/loss": "training", "val/loss": "validation"}
_OTHERS = {
    "grad_norm": ("Norm of the gradient", "Before it is clipped."),
    "samples_per_second": ("Speed", "Samples a second."),
}


def training_curves(contents: Contents) -> list[Curve]:
    """Losses, the learning rate, the norm of the gradient and the speed, those that were logged."""
    losses = {words: contents.series[key] for key, words in _LOSSES.items() if key in contents.series}
    sets = {
        f"validation set {key.split('/')[1]}": points
        for key, points in contents.series.items()
        if key.startswith("val/") and key.endswith("/loss") and key.count("/") == 2  # noqa: PLR2004 - val/<set>/loss
    }
    if sets:
        losses = {"all validation sets" if w == "validation" else w: own for w, own in losses.items()}
    curves = [_curve(contents, "Loss", "Of the batches learnt, and after epochs.", {**losses, **sets})]
    rates = {
        words: contents.series[key]
        for key, words in (("batch/lr", ""), ("epoch/lr", "after epochs"))
        if key in contents.series
    }
    curves.append(_curve(contents, "Learning rate", "", dict(list(rates.items())[:1])))
    for name, (title, caption) in _OTHERS.items():
        curves.append(_curve(contents, title, caption, {"": contents.series.get(f"batch/{name}", [])}))
    return [curve for curve in curves if curve.panels]


def _curve(contents: Contents, title: str, caption: str, series: Mapping[str, Points]) -> Curve:
    lines = [
        Line(label, *_columns(contents, points), noisy=label == _NOISY)
        for label, points in series.items()
        if points
    ]
    broken = sum(not math.isfinite(value) for points in series.values() for _, value in points)
    if broken:
        caption = f"{caption} {broken} {'values are' if broken > 1 else 'value is'} not finite.".strip()
    return Curve(title, caption, [Panel("", lines, _axis(contents))] if lines else [])


def _columns(contents: Contents, points: Points) -> tuple[list[float], list[float]]:
    return [_at(contents, step) for step, _ in points], [value for _, value in points]


def _at(contents: Contents, step: int) -> float:
    """Where *step* lies on the axis: in epochs if all have as many batches."""
    return step / contents.steps_an_epoch if contents.steps_an_epoch else float(step)


def _axis(contents: Contents) -> str:
    return "epoch" if contents.steps_an_epoch else "step"


def score_curves(contents: Contents) -> list[Curve]:
    """Each headline score of every inference, with its interval, a panel for each variable and set."""
    if len(contents.inferences) <= 1:
        return []
    every = [result for results in contents.inferences.values() for result in results]
    shown = headline(every, contents.chosen_by)
    return [_score_curve(contents, name) for name in shown]


def _score_curve(contents: Contents, name: str) -> Curve:
    found: dict[Key, list[tuple[float, Result]]] = {}
    for step, results in contents.inferences.items():
        for result in results:
            if result.key.result == name and not result.key.lead:
                found.setdefault(result.key, []).append((_at(contents, step), result))
    by_variable = {key: points for key, points in found.items() if key.variable} or found
    return _panelled(name, "", by_variable, _axis(contents), contents.units)


def _panelled(
    name: str,
    suffix: str,
    found: Mapping[Key, Sequence[tuple[float, Result]]],
    xlabel: str,
    units: Mapping[str, str],
) -> Curve:
    """Panels of the score *name*, one for each key that was found."""
    meaning = meaning_of(name)
    shown = list(found.items())[:_MOST_PANELS]
    panels = [
        Panel(
            label_of(key),
            _score_lines(points),
            xlabel,
            ideal=_IDEALS.get(meaning.good),
            ylabel=units_of(name, units.get(key.variable, "")),
        )
        for key, points in shown
    ]
    left_out = f"{len(found) - len(shown)} more are in the tables." if len(found) > len(shown) else ""
    caption = " ".join(part for part in (meaning.sentence, DIRECTIONS[meaning.good], left_out) if part)
    return Curve(f"{meaning.title}{suffix}", caption, panels)


def _score_lines(points: Sequence[tuple[float, Result]]) -> list[Line]:
    x = [at for at, _ in points]
    intervals = [result.interval or (math.nan, math.nan) for _, result in points]
    sure = any(result.interval for _, result in points)
    lines = [
        Line(
            "this run",
            x,
            [result.value for _, result in points],
            low=[low for low, _ in intervals] if sure else (),
            high=[high for _, high in intervals] if sure else (),
        )
    ]
    baselines = [(at, result.baseline) for at, result in points if result.baseline is not None]
    if baselines:
        at, values = zip(*baselines, strict=True)
        lines.append(Line("baseline", at, values, reference=True))
    return lines


def lead_curves(contents: Contents) -> list[Curve]:
    """Each headline score of the last inference against the lead time, a panel for each variable and set."""
    hours = {
        lead: length
        for lead in dict.fromkeys(result.key.lead for result in contents.results)
        if (length := hours_of(lead)) is not None
    }
    if len(hours) <= 1:
        return []
    ahead = [result for result in contents.results if result.key.lead in hours and result.key.variable]
    curves = []
    for name in headline(contents.results, contents.chosen_by):
        points: dict[Key, list[tuple[float, Result]]] = {}
        for result in sorted(ahead, key=lambda result: hours[result.key.lead]):
            if result.key.result == name:
                whole = Key(result.key.set, "", name, result.key.variable)
                points.setdefault(whole, []).append((hours[result.key.lead], result))
        curves.append(_panelled(name, " by lead time", points, "lead time in hours", contents.units))
    return [curve for curve in curves if curve.panels]


def hours_of(lead: str) -> float | None:
    """A lead time such as ``6h``, ``1h30m`` or ``10m`` in hours; ``None`` where it is none."""
    return minutes(lead) / 60 if re.fullmatch(DURATION, lead) else None


def label_of(key: Key) -> str:
    """Variable and set, as they are told of."""
    return ", ".join(part for part in (key.variable or "all variables", key.set) if part)
