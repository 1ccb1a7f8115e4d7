"""Ratios with intervals as SVG text, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 760, 190, 20, 56, 26
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c")
_TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)


def forest(title: str, series: Mapping[str, Sequence[tuple[str, float, float, float]]]) -> str:
    """Draw (label, ratio, low, high) by series; rows with the same label share a line."""
    labels = list(dict.fromkeys(label for rows in series.values() for label, *_ in rows))
    values = [value for rows in series.values() for _, *three in rows for value in three if value > 0]
    low, high = math.log(max(0.02, min([0.1, *values]))), math.log(min(20.0, max([2.0, *values])))
    wide = _WIDTH - _LEFT - _RIGHT

    def x(value: float) -> float:
        return _LEFT + (min(max(math.log(max(value, 1e-9)), low), high) - low) / (high - low) * wide

    height = _TOP + _ROW * len(labels) + 28
    parts = []
    parts.append(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title, quote=True)}">'
        "<style>text{font:12px system-ui,sans-serif;fill:#444}</style>"
        f'<text x="{_WIDTH / 2:.0f}" y="16" text-anchor="middle" style="font-weight:600">{escape(title)}</text>'
    )
    bottom = _TOP + _ROW * len(labels)
    for tick in _TICKS:
        if low <= math.log(tick) <= high:
            stroke = "#888" if tick == 1.0 else "#ddd"
            parts.append(f'<path d="M{x(tick):.1f} {_TOP - 8}V{bottom}" stroke="{stroke}"/>')
            parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for place, (name, rows) in enumerate(series.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(f'<circle cx="{_LEFT + place * 170}" cy="32" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + place * 170 + 10}" y="36">{escape(name)}</text>')
        for label, value, least, most in rows:
            y = _TOP + _ROW * labels.index(label) + 8 + 8 * place - 4 * (len(series) - 1)
            parts.append(f'<path d="M{x(least):.1f} {y}H{x(most):.1f}" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="4" fill="{colour}"/>')
    for place, label in enumerate(labels):
        parts.append(f'<text x="{_LEFT - 10}" y="{_TOP + _ROW * place + 12}" text-anchor="end">{escape(label)}</text>')
    return "".join((*parts, "</svg>"))
