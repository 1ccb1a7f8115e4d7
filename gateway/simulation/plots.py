"""Plots as SVG text: no plotting library, so that the report needs none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 30, 36
_COLOURS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#17becf",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
)
_BAR_LEFT, _BAR_HEIGHT, _BAR_GAP = 170, 20, 8


def colour(place: int) -> str:
    """Return the colour of the series at a place."""
    return _COLOURS[place % len(_COLOURS)]


def lines(title: str, unit: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw lines over time: `series` maps a name to (seconds, value)."""
    points = [point for values in series.values() for point in values]
    end = max((moment for moment, _ in points), default=0.0) or 1.0
    top = _round_up(max((value for _, value in points), default=0.0))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(moment: float, value: float) -> str:
        return f"{_LEFT + moment / end * wide:.1f},{_TOP + high - value / top * high:.1f}"

    parts = [_open(_WIDTH, _HEIGHT + 18 * math.ceil(len(series) / 4), title)]
    for step in range(5):
        value = top * step / 4
        y = _TOP + high - high * step / 4
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for step in range(5):
        x = _LEFT + wide * step / 4
        parts.append(f'<text x="{x:.1f}" y="{_TOP + high + 16}" text-anchor="middle">{end * step / 4:.0f} s</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 6}">{escape(unit)}</text>')
    for index, (name, values) in enumerate(series.items()):
        path = " ".join(place(moment, value) for moment, value in values)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour(index)}" stroke-width="1.5"/>')
        x, y = _LEFT + (index % 4) * wide / 4, _HEIGHT + 18 * (index // 4) + 6
        parts.append(f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" fill="{colour(index)}"/>')
        parts.append(f'<text x="{x + 15:.0f}" y="{y}">{escape(name)}</text>')
    return "".join((*parts, "</svg>"))


def bars(title: str, unit: str, values: Mapping[str, float]) -> str:
    """Draw one horizontal bar a name."""
    top = max(values.values(), default=0.0) or 1.0
    wide = _WIDTH - _BAR_LEFT - 90
    height = _TOP + len(values) * (_BAR_HEIGHT + _BAR_GAP) + 8
    parts = [_open(_WIDTH, height, title), f'<text x="{_BAR_LEFT}" y="{_TOP - 6}">{escape(unit)}</text>']
    for index, (name, value) in enumerate(values.items()):
        y = _TOP + index * (_BAR_HEIGHT + _BAR_GAP)
        width = value / top * wide
        middle = y + _BAR_HEIGHT - 5
        parts.append(f'<text x="{_BAR_LEFT - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{_BAR_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{colour(index)}"/>'
        )
        parts.append(f'<text x="{_BAR_LEFT + width + 6:.1f}" y="{middle}">{_short(value)}</text>')
    return "".join((*parts, "</svg>"))


def _open(width: int, height: int, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title, quote=True)}">'
        "<style>text{font:12px system-ui,sans-serif;fill:#444}.grid{stroke:#ddd}</style>"
        f'<text x="{width / 2:.0f}" y="14" text-anchor="middle" style="font-weight:600">{escape(title)}</text>'
    )


def _round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(scale * step for step in (1, 2, 2.5, 5, 10) if scale * step >= value * 0.9999)


def _short(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{value:.4g}"
