"""Scores as parts of the page: what they are, how sure that is, and what they mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hookloop.report.html import Html, details, joined, paragraph, scrolled, text
from hookloop.report.images import gallery
from hookloop.report.meanings import DIRECTIONS, meaning_of, units_of
from hookloop.report.scores import headline, is_repeated, numeral
from hookloop.report.training import hours_of, lead_curves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hookloop.report.contents import Contents
    from hookloop.report.scores import Result

_BASELINES = {"downscaling": "bicubic interpolation", "forecast": "persistence"}
"""What is to be beaten, by the plugin that gives the task."""


def scores_of(contents: Contents) -> Html:
    """The scores of the last inference: the main ones, those by lead time, and all others."""
    results = [result for result in contents.results if not result.key.lead]
    if not contents.results:
        return paragraph("There was no inference: the run did not get that far, or the task cannot generate.")
    names = headline(results, contents.chosen_by)
    told = [result for result in results if result.key.result in names and not is_repeated(result, results)]
    others = [
        result
        for result in contents.results
        if (result.key.lead or result.key.result not in names) and not is_repeated(result, contents.results)
    ]
    sure = any(result.interval for result in told)
    note = (
        " Intervals are of 95 %, by block bootstrap over days."
        if sure
        else " There are no intervals: they take cases of five days or more. So no difference is called sure."
    )
    parts = [
        paragraph(f"Of the last inference, {_when(contents)}.{note}{_on_baseline(contents)}", "soft"),
        _score_table("The main scores, by variable.", names, told, contents.units),
    ]
    if curves := lead_curves(contents):
        parts += [Html("<h3>By lead time</h3>"), gallery(curves)]
    if odd := _not_durations(contents):
        parts.append(
            paragraph(f"Not drawn, as no durations such as 6h or 1h30m: lead times {', '.join(odd)}.", "soft")
        )
    if others:
        rest = list(dict.fromkeys(result.key.result for result in others))
        parts.append(
            details(
                f"All other scores ({len(others)})",
                _score_table("By score and variable.", rest, others, contents.units),
            )
        )
    return joined(parts)


def _on_baseline(contents: Contents) -> str:
    """What the baseline is, where the plugin that gave the task tells."""
    plugins = contents.option("plugins")
    named = [name for plugin, name in _BASELINES.items() if isinstance(plugins, list) and plugin in plugins]
    shown = any(result.baseline is not None for result in contents.results)
    return f" The baseline is {named[0]}." if shown and len(named) == 1 else ""


def _not_durations(contents: Contents) -> list[str]:
    leads = dict.fromkeys(result.key.lead for result in contents.results)
    return [lead for lead in leads if lead and hours_of(lead) is None]


def _when(contents: Contents) -> str:
    """When the last inference was, of each set if that differs."""
    at = contents.inferred_at
    if len(set(at.values())) == 1:
        return contents.when(max(at.values()))
    return "; ".join(f"{name or 'all sets'} {contents.when(step)}" for name, step in at.items())


def _score_table(
    caption: str, names: Sequence[str], results: Sequence[Result], units: Mapping[str, str]
) -> Html:
    """Scores one below another, each with its sentence; columns that would be empty are left out."""
    optional = {
        "Set": any(result.key.set for result in results),
        "Lead time": any(result.key.lead for result in results),
        "95 % interval": any(result.interval for result in results),
        "Baseline": any(result.baseline is not None for result in results),
        "Against the baseline": any(result.baseline is not None for result in results),
    }
    columns = ["Set", "Lead time", "Score", "95 % interval", "Baseline", "Against the baseline"]
    columns = [name for name in columns if optional.get(name, True)]
    numeric = {"Score", "95 % interval", "Baseline"}
    head = "".join(
        f'<th scope="col"{_css(name in numeric)}>{text(name)}</th>' for name in ["Variable", *columns]
    )
    bodies = []
    for name in names:
        meaning = meaning_of(name)
        words = f"{meaning.sentence} {DIRECTIONS[meaning.good]}".strip()
        bodies.append(
            f'<tbody>\n<tr><th scope="rowgroup" class="score" colspan="{len(columns) + 1}">'
            f'<div><b>{text(meaning.title)}</b> <span class="soft">{text(words)}</span></div></th></tr>'
        )
        for result in results:
            if result.key.result == name:
                cells = _cells(result)
                row = "".join(f"<td{_css(column in numeric)}>{cells[column]}</td>" for column in columns)
                bodies.append(f'<tr class="value"><th scope="row">{_of(result, units)}</th>{row}</tr>')
        bodies.append("</tbody>")
    body = "\n".join(bodies)
    return scrolled(
        Html(f"<table><caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n{body}</table>")
    )


def _of(result: Result, units: Mapping[str, str]) -> Html:
    """The variable, and the units of the score if it has any."""
    variable = text(result.key.variable or "all variables")
    own = units_of(result.key.result, units.get(result.key.variable, ""))
    return Html(f'{variable} <span class="soft">({text(own)})</span>' if own else variable)


def _css(numeric: bool) -> str:  # noqa: FBT001 - of a cell
    return ' class="number"' if numeric else ""


def _cells(result: Result) -> dict[str, Html]:
    interval = result.interval
    return {
        "Set": text(result.key.set or "all"),
        "Lead time": text(result.key.lead or "all"),
        "Score": Html(f"<b>{text(numeral(result.value))}</b>"),
        "95 % interval": text(f"{numeral(interval[0])} to {numeral(interval[1])}" if interval else ""),
        "Baseline": text("" if result.baseline is None else numeral(result.baseline)),
        "Against the baseline": _gain(result),
    }


def _gain(result: Result) -> Html:
    """How much better or worse than the baseline, where smaller is better; coloured only where that is sure.

    An interval of the score alone does not tell: the baseline varies with the same days.
    """
    if not result.baseline or meaning_of(result.key.result).good != "smaller":
        return text("")
    gain = 100 * (1 - result.value / result.baseline)
    if not math.isfinite(gain):
        return text("")
    words = f"{abs(gain):.0f} % {'better' if gain >= 0 else 'worse'}"
    if result.relative is None:
        return text(words)
    if result.relative[0] <= 1 <= result.relative[1]:
        return text(f"{words}, within the interval")
    return Html(f'<span class="{"good" if gain >= 0 else "bad"}">{text(words)}</span>')
