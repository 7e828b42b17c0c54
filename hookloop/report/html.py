"""HTML made of text that is always escaped."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Html = NewType("Html", str)
"""What may stand in the page as it is."""


def text(value: object) -> Html:
    """Anything as text."""
    return Html(escape(str(value)))


def joined(parts: Iterable[Html]) -> Html:
    """Put parts one after another."""
    return Html("\n".join(parts))


def data_uri(content: bytes, kind: str) -> str:
    """An image as part of the page."""
    return f"data:{kind};base64,{b64encode(content).decode()}"


def paragraph(words: str, css: str = "") -> Html:
    """A paragraph of plain words."""
    return Html(f'<p class="{css}">{text(words)}</p>' if css else f"<p>{text(words)}</p>")


def section(identifier: str, title: str, content: Html) -> Html:
    """A part of the page that can be linked to."""
    return Html(
        f'<section aria-labelledby="{text(identifier)}">\n<h2 id="{text(identifier)}">{text(title)}</h2>\n'
        f"{content}\n</section>"
    )


def details(summary: str, content: Html, *, opened: bool = False) -> Html:
    """What is seen once it is asked for."""
    return Html(
        f"<details{' open' if opened else ''}><summary>{text(summary)}</summary>\n{content}\n</details>"
    )


def table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[Html]]) -> Html:
    """A table whose first column heads its rows, and whose other columns hold text."""
    head = "".join(f'<th scope="col">{text(header)}</th>' for header in headers)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return scrolled(
        Html(
            f"<table><caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
        )
    )


def scrolled(content: Html) -> Html:
    """What may be wider than a phone, and is reached with the keyboard too."""
    return Html(f'<div class="scroll" tabindex="0">{content}</div>')
