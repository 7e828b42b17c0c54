"""What the plugin ``profile`` has found out, where it was listed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hookloop.report.html import Html, details, joined, paragraph, table, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def profile_of(directory: Path) -> Iterator[tuple[str, str, Html]]:
    """Give the section about ``profile.json`` in *directory*; none where there is no such file."""
    path = directory / "profile.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        content = joined([_facts(found["facts"]), _hooks(found["hooks"])])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        content = paragraph(f"profile.json could not be read: {problem}.", "warn")
    yield "profile", "Profile", content


def _facts(facts: Mapping[str, str]) -> Html:
    rows = [[text(name), text(value)] for name, value in facts.items()]
    return table("Of the last start, by the plugin profile.", ["What", "Found"], rows)


def _hooks(hooks: list[Mapping[str, Any]]) -> Html:
    rows = [
        [
            text(f"{hook['hook']} of {hook['plugin']}"),
            text(f"{int(hook['calls']):,}"),
            *(text(f"{float(hook[name]):.4g}") for name in ("total", "own", "longest")),
            text(f"{100 * float(hook['share']):.2g} %"),
        ]
        for hook in hooks
    ]
    headers = ["Hook", "Calls", "Total, s", "Own, s", "Longest, s", "Own of wall time"]
    return details("Every hook of every plugin", table("The most expensive first.", headers, rows))
