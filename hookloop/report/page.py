"""The page: what is told of a run, in which order and words."""

from __future__ import annotations

from datetime import datetime
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, BinaryIO

from hookloop.durable import write_whole
from hookloop.errors import HookloopError
from hookloop.report.contents import Contents, read
from hookloop.report.html import Html, data_uri, details, joined, paragraph, section, table, text
from hookloop.report.images import gallery
from hookloop.report.pictures import picture_of
from hookloop.report.profiled import profile_of
from hookloop.report.score_table import scores_of
from hookloop.report.scores import numeral
from hookloop.report.training import score_curves, training_curves

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Whatever names a run holds, the page loads nothing and runs nothing."""
_PHASES = {"train": "training", "validation": "validation", "inference": "inference (generation and scores)"}
_MINUTE, _HOUR = 60, 3600
_LONGEST = 1e10
"""Seconds of an epoch."""
_LONGEST_VALUE = 240
"""Characters of what a warning says."""


def write(directory: Path) -> Path:
    """Write ``report.html`` into the run's *directory*, whole or not at all.

    :returns: its path.
    :raises HookloopError: where *directory* is no run's, or cannot be written to.
    """
    page = page_of(read(directory))
    path = directory / "report.html"

    def put(file: BinaryIO) -> None:
        file.write(page.encode(errors="replace"))

    try:
        write_whole(path, put)
    except OSError as problem:
        raise HookloopError(f"{path}: cannot be written: {problem.strerror}") from problem
    return path


def page_of(contents: Contents) -> Html:
    """The whole page."""
    name = "/".join(contents.directory.resolve().parts[-2:])
    parts = [
        ("scores", "Scores", scores_of(contents)),
        ("training", "Training", _training(contents)),
        ("figures", "Figures", _figures(contents)),
        ("checkpoints", "Best checkpoints", _best(contents)),
        *_evaluations(contents),
        ("time", "Time spent", _time(contents)),
        *profile_of(contents.directory),
        ("warnings", "Warnings and errors", _troubles(contents)),
        ("configuration", "Configuration", _config(contents)),
        ("environment", "Environment", _environment(contents)),
    ]
    links = "\n".join(f'<li><a href="#{text(to)}">{text(title)}</a></li>' for to, title, _ in parts)
    sections = joined(section(to, title, content) for to, title, content in parts)
    style = files("hookloop.report").joinpath("style.css").read_text(encoding="utf-8")
    return Html(
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(name)}: report of a run</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{text(name)}</h1>
<p class="soft">A run of hookloop in <code>{text(contents.directory)}</code></p>
{_facts(contents)}
{_odd(contents)}
<nav aria-label="Sections"><ul>
{links}
</ul></nav>
</header>
<main>
{sections}
</main>
</body>
</html>
"""
    )


def _odd(contents: Contents) -> Html:
    return joined(paragraph(words, "warn") for words in contents.odd)


def _facts(contents: Contents) -> Html:
    state, css, why = _state(contents)
    most = contents.option("run", "max_epochs")
    facts = [("State", Html(f'<span class="{css}">{text(state)}</span>'), why)]
    facts.append(
        (
            "Epochs",
            text(f"{contents.epochs_done}" + (f" of {most}" if most else "")),
            f"{contents.steps:,} steps",
        )
    )
    for key, title in (("inference/error", "Inference error"), ("val/loss", "Validation loss")):
        if points := contents.series.get(key):
            facts.append((title, text(numeral(points[-1][1])), contents.when(points[-1][0])))
    rows = "\n".join(
        f"<div><dt>{text(name)}</dt><dd>{value}<small>{text(note)}</small></dd></div>"
        for name, value, note in facts
    )
    return Html(f'<dl class="facts">{rows}</dl>')


def _state(contents: Contents) -> tuple[str, str, str]:
    """How the run stands: in a word, how that is coloured, and why."""
    if contents.end is None:
        heard = f"; its log was last written at {_clock(contents.heard)}" if contents.heard else ""
        return "Not ended", "warn", f"it is running, or was killed{heard}"
    end, at = contents.end, _clock(str(contents.end.get("timestamp", "")))
    if end["event"] == "run.finished":
        return "Finished", "good", at
    if end["event"] == "run.stopped":
        return "Stopped", "warn", f"{end.get('why', '')}, {at}"
    return "Failed", "bad", f"{end.get('error', '')}, {at}"


def _clock(timestamp: str) -> str:
    """A time as people write it, in UTC."""
    try:
        return f"{datetime.fromisoformat(timestamp):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return timestamp


def _training(contents: Contents) -> Html:
    curves, scores = training_curves(contents), score_curves(contents)
    if not curves and not scores:
        return paragraph("No metrics were logged yet.")
    parts = [gallery(curves)]
    if scores:
        parts += [Html("<h3>Scores of every inference</h3>"), gallery(scores)]
    return joined(parts)


def _figures(contents: Contents) -> Html:
    if not contents.figures:
        return paragraph("There are no figures: inference draws them into figures/.")
    variables = sorted({result.key.variable for result in contents.results if result.key.variable})
    sets = sorted({result.key.set for result in contents.results if result.key.set})
    pictures = [picture_of(path, variables, sets) for path in contents.figures]
    pictures.sort(key=lambda picture: (picture.of, picture.rank, picture.path.name))
    parts = []
    for of, own in groupby(pictures, key=lambda picture: picture.of):
        shown = []
        for picture in own:
            try:
                image = data_uri(picture.path.read_bytes(), "image/png")
            except OSError as problem:
                shown.append(paragraph(f"{picture.path.name} cannot be read: {problem.strerror}.", "warn"))
                continue
            words = f"{picture.title} of {of}" if of else picture.title
            wide = ' class="wide"' if picture.wide else ""
            shown.append(
                Html(
                    f'<figure{wide}><div class="paper">'
                    f'<img src="{image}" alt="{text(words)}. {text(picture.caption)}"></div>'
                    f"<figcaption><b>{text(words)}.</b> {text(picture.caption)} "
                    f"<code>{text(picture.path.relative_to(contents.directory))}</code></figcaption></figure>"
                )
            )
        heading = [Html(f"<h3>{text(of)}</h3>")] if of else []
        parts += [*heading, Html(f'<div class="pictures">{joined(shown)}</div>')]
    return joined(parts)


def _best(contents: Contents) -> Html:
    bests = {
        key.removeprefix("best/"): points
        for key, points in contents.series.items()
        if key.startswith("best/")
    }
    if not bests and not contents.best:
        return paragraph("None was chosen yet: see checkpoint.best in the configuration.")
    rows = []
    for stem, points in bests.items():
        metric = contents.best.get(stem)
        best = points[-1][1]
        # The later of equals is kept; while nothing is better, ``best/<stem>`` is logged all the same.
        reached = [step for step, value in contents.series.get(metric or "", ()) if value == best]
        since = [step for step, value in points if value == best]
        step = max(reached, default=min(since, default=None))
        path = contents.directory / "checkpoints" / f"{stem}.ckpt"
        there = f"{path.stat().st_size / 2**20:.1f} MiB" if path.is_file() else "not there"
        rows.append(
            [
                Html(f"<code>{text(stem)}.ckpt</code>"),
                Html(f"<code>{text(metric)}</code>") if metric else text("not in the configuration"),
                text(numeral(best)),
                text(contents.when(step)),
                text(there),
            ]
        )
    for stem, metric in contents.best.items():
        if stem not in bests:
            why = "not yet" if metric in contents.series else "never: that was not logged"
            names = [Html(f"<code>{text(name)}</code>") for name in (f"{stem}.ckpt", metric)]
            rows.append([*names, text(""), text(why), text("not there")])
    headers = ["Checkpoint", "Smallest", "Value", "Reached", "Size"]
    return table("The weights to use, by what they are best at.", headers, rows)


def _evaluations(contents: Contents) -> Iterator[tuple[str, str, Html]]:
    for name, own in contents.evaluations.items():
        losses = [(key, points) for key, points in own.series.items() if key in {"val/loss", "train/loss"}]
        words = ", ".join(f"{key} {numeral(points[-1][1])}" for key, points in losses)
        content = [_odd(own), scores_of(own), _figures(own)]
        if words:
            content.insert(0, paragraph(f"{words}."))
        yield f"evaluation-{name}", f"Evaluation: {name}", joined(content)


def _time(contents: Contents) -> Html:
    told = {
        words: [value for _, value in contents.series.get(f"epoch/{phase}_seconds", ())]
        for phase, words in _PHASES.items()
    }
    spent = {words: sum(filter(_is_time, values)) for words, values in told.items()}
    odd = sum(not _is_time(value) for values in told.values() for value in values)
    total = sum(spent.values())
    if not total:
        return paragraph("No epoch was timed yet.")
    rows = [
        [
            text(words),
            text(_duration(seconds)),
            text(f"{100 * seconds / total:.0f} %"),
            Html(
                f'<div class="bar" aria-hidden="true"><span style="width:{100 * seconds / total:.1f}%"></span></div>'
            ),
        ]
        for words, seconds in spent.items()
        if seconds
    ]
    return table(
        f"{_duration(total)} in epochs that were finished and evaluations."
        + (f" Left out: {odd} that are no times." if odd else ""),
        ["Phase", "Time", "Share", ""],
        rows,
    )


def _is_time(seconds: float) -> bool:
    """Whether a clock can have told it."""
    return 0 <= seconds < _LONGEST


def _duration(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // _HOUR, whole % _HOUR // _MINUTE
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % _MINUTE} s"


def _troubles(contents: Contents) -> Html:
    if contents.heard is None:
        return paragraph("There is no log.jsonl, so nothing is known.")
    if not contents.troubles:
        return paragraph("None.", "good")
    rows = [
        [
            Html(f"<code>{text(trouble.event)}</code>"),
            Html(
                f'<span class="{"warn" if trouble.level == "warning" else "bad"}">{text(trouble.level)}</span>'
            ),
            text(f"{trouble.times} ×"),
            text(_clock(trouble.last)),
            text(", ".join(f"{key}: {_short(_plain(value, 7))}" for key, value in trouble.details.items())),
        ]
        for trouble in contents.troubles
    ]
    return table(
        "From log.jsonl, by kind, with the last of each.", ["What", "Level", "Times", "Last", "Details"], rows
    )


def _short(words: str) -> str:
    """The beginning of what is long."""
    return words if len(words) <= _LONGEST_VALUE else f"{words[:_LONGEST_VALUE]}… (whole in log.jsonl)"


def _config(contents: Contents) -> Html:
    if contents.config_text is None:
        return paragraph("There is no config.yaml.")
    listing = Html(f'<pre tabindex="0">{text(contents.config_text)}</pre>')
    return details("config.yaml, as it was run", listing)


def _environment(contents: Contents) -> Html:
    if not contents.starts:
        return paragraph("There is no environment.json that could be read.")
    last, times = contents.starts[-1], len(contents.starts)
    caption = "Of the only start." if times == 1 else f"Of the last of {times} starts."
    rows = [[text(name), Html(f"<code>{text(_plain(value))}</code>")] for name, value in last.items()]
    parts = [table(caption, ["What", "Value"], rows)]
    if times > 1:
        earlier = [
            [
                text(_clock(str(start.get("started", "")))),
                Html(f"<code>{text(_plain(start.get('command')))}</code>"),
            ]
            for start in contents.starts[:-1]
        ]
        parts.append(details("Earlier starts", table("One a row.", ["Started", "Command"], earlier)))
    return joined(parts)


def _plain(value: object, deepest: int = 8) -> str:
    """Plain data on one line; what is nested more deeply is left out."""
    if isinstance(value, dict | list) and not deepest:
        return "…"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(own, deepest - 1)}" for key, own in value.items())
    if isinstance(value, list):
        return " ".join(_plain(own, deepest - 1) for own in value) if value else "none"
    return "none" if value is None else str(value)
