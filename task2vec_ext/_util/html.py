"""Cards that notebooks show: HTML in the notebook's own colours, light or dark, without scripts and style sheets."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from .terminal import printable

_BAR = "#3a8fd9"  # three times as light or dark as white and black pages
_LINE = "1px solid rgba(128,128,128,.35)"
_FAINT = "opacity:.7;font-size:.85em"


def escaped(text: object) -> str:
    """Return a text that no name, of a task or a file, can leave."""
    return html.escape(printable(str(text)))


def card(title: str, about: str, figures: Sequence[tuple[str, str]], body: str, notes: str) -> str:
    """Return a card; all texts but `body`, which is HTML, are escaped.

    Args:
        title: What it is.
        about: What it is made of, beside the title.
        figures: The numbers to see first, each with what it is.
        body: HTML.
        notes: How it was made, in small letters.
    """
    tiles = "".join(
        f'<div style="padding-right:2em"><div style="font-size:1.5em">{escaped(number)}</div>'
        f'<div style="{_FAINT}">{escaped(what)}</div></div>'
        for number, what in figures
    )
    return (
        f'<div style="border:{_LINE};border-radius:8px;padding:12px 16px;max-width:680px;line-height:1.35">'
        f'<b style="font-size:1.15em">{escaped(title)}</b> <span style="{_FAINT}">{escaped(about)}</span>'
        f'<div style="display:flex;flex-wrap:wrap;margin:10px 0">{tiles}</div>{body}'
        f'<div style="{_FAINT};margin-top:8px">{escaped(notes)}</div></div>'
    )


def columns(values: Sequence[float], names: Sequence[str], label: str) -> str:
    """Return a bar for each value ≥ 0 on a log scale, its name and value where the pointer rests; none for 0."""
    logs = [math.log10(value) if value > 0 else -math.inf for value in values]
    top, bottom = max(logs), min((one for one in logs if one > -math.inf), default=0.0)
    bars = []
    for i, (log, name, value) in enumerate(zip(logs, names, values, strict=True)):
        height = 0.0 if log == -math.inf else 8 + 92 * (1.0 if top == bottom else (log - bottom) / (top - bottom))
        bars.append(
            f'<rect x="{10 * i}" y="0" width="10" height="100" fill="transparent"><title>{escaped(name)}: {value:.3g}'
            f'</title></rect><rect x="{10 * i + 1}" y="{100 - height:.1f}" width="8" height="{height:.1f}" '
            f'fill="{_BAR}" pointer-events="none"/>'
        )
    return (
        f'<svg viewBox="0 0 {10 * len(values)} 100" preserveAspectRatio="none" role="img" '
        f'style="width:100%;height:72px;border-bottom:{_LINE}">{"".join(bars)}</svg>'
        f'<div style="{_FAINT}">{escaped(label)}</div>'
    )


def table(header: Sequence[str], cells: Sequence[Sequence[str]], shares: Sequence[Sequence[float | None]]) -> str:
    """Return a table; a share in [0, 1] of a cell is a bar behind its text, None no bar."""
    line = f"border-bottom:{_LINE};padding:3px 10px;text-align:"
    side = ["left", *("right" for _ in header[1:])]
    head = "".join(f'<th style="{line}{s};{_FAINT}">{escaped(h)}</th>' for h, s in zip(header, side, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{line}{s}{_behind(share)}">{escaped(cell)}</td>'
            for cell, share, s in zip(row, of_row, side, strict=True)
        )
        + "</tr>"
        for row, of_row in zip(cells, shares, strict=True)
    )
    return f'<table style="border-collapse:collapse;width:100%"><tr>{head}</tr>{body}</table>'


def _behind(share: float | None) -> str:
    if share is None:
        return ""
    gap = "border-left:10px solid transparent;background-clip:padding-box"
    return f";{gap};background-image:linear-gradient(to right,{_BAR}55 {100 * share:.0f}%,transparent 0)"
