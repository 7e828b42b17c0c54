"""Curves as parts of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hookloop.report.curves import DARK, LIGHT, svg
from hookloop.report.html import Html, data_uri, joined, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hookloop.report.curves import Curve, Panel


def gallery(curves: Sequence[Curve]) -> Html:
    """Curves beside one another."""
    return Html(f'<div class="curves">{joined(figure_of(curve) for curve in curves)}</div>')


def figure_of(curve: Curve) -> Html:
    """A curve with its caption."""
    wide = ' class="wide"' if len(curve.panels) > 1 else ""
    return Html(
        f'<figure{wide}><div class="panels">{joined(_image_of(panel) for panel in curve.panels)}</div>'
        f"<figcaption><b>{text(curve.title)}.</b> {text(curve.caption)}</figcaption></figure>"
    )


def _image_of(panel: Panel) -> Html:
    """An image for light pages, and the same for dark ones."""
    light, dark = (data_uri(svg(panel, palette), "image/svg+xml") for palette in (LIGHT, DARK))
    return Html(
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{text(panel.alt)}"></picture>'
    )
