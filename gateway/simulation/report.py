"""The figures of a study as a table, Markdown, JSON or one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from gateway.simulation import plots
from gateway.simulation.contenders import ORACLE
from gateway.simulation.tally import Result

COLUMNS = ("strategy", "429s", "lost", "on time", "goodput", "p50", "p95", "p99", "fair", "cost", "cached")
LEGEND = (
    "429s: refusals by providers per 10,000 requests. lost: requests without an answer per 10,000. on time: started by "
    "their deadline, in %. goodput: served tokens in % of the oracle's, which sees every limiter's true state. p50, "
    "p95, p99: seconds until a provider took the request. fair: Jain's index over tenants. cost: at the pool's prices. "
    "cached: % of what prompt caches could have answered."
)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}"
    "td,th{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}figure{margin:1.5rem 0}svg{max-width:100%;height:auto}"
)


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells of the table, one row a strategy."""
    return [
        (
            each.strategy,
            f"{each.per_10k(each.rejected):.0f}",
            f"{each.per_10k(each.lost):.0f}",
            f"{100 * each.on_time / max(1, each.requests):.1f}",
            "-" if each.goodput is None else f"{100 * each.goodput:.1f}",
            *(_seconds(wait) for wait in (each.waits.p50, each.waits.p95, each.waits.p99)),
            f"{each.fairness:.3f}",
            f"{each.cost:.3g}" if each.cost < 1_000 else f"{each.cost:.0f}",
            "-" if each.cache_hits is None else f"{100 * each.cache_hits:.0f}",
        )
        for each in results
    ]


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def to_markdown(results: Sequence[Result]) -> str:
    """Write the table as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows(results)]
    return "\n".join(lines) + "\n"


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return everything that was counted."""
    return [asdict(each) for each in results]


def to_html(results: Sequence[Result], *, title: str, notes: Sequence[str] = ()) -> str:
    """Write one self-contained page: table, throughput over time, comparison by strategy, by key."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(results))
    others = [each for each in results if each.strategy != ORACLE]
    figures = (
        plots.lines(
            "Throughput over time",
            "tokens a minute",
            {each.strategy: [(moment, tokens) for moment, tokens, _ in each.timeline] for each in results},
        ),
        plots.lines(
            "Refusals by providers over time",
            "429s a minute",
            {each.strategy: [(moment, refused) for moment, _, refused in each.timeline] for each in others},
        ),
        plots.bars("429s", "per 10,000 requests", {each.strategy: each.per_10k(each.rejected) for each in others}),
        plots.bars("Lost requests", "per 10,000", {each.strategy: each.per_10k(each.lost) for each in results}),
        plots.bars("Added wait", "mean, seconds", {each.strategy: each.waits.mean for each in results}),
    )
    said = "".join(f"<p>{escape(note)}</p>" for note in (*notes, LEGEND))
    drawn = "".join(f"<figure>{figure}</figure>" for figure in figures)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{said}{drawn}{_classes(results)}"
        "</body></html>"
    )


def _classes(results: Sequence[Result]) -> str:
    priorities = sorted({priority for each in results for priority in each.classes})
    head = "".join(f"<th>priority {priority}: served</th><th>on time</th>" for priority in priorities)
    body = ""
    for each in results:
        cells = ""
        for priority in priorities:
            found = each.classes.get(priority)
            if found is None or not found.requests:
                cells += "<td>-</td><td>-</td>"
                continue
            cells += f"<td>{100 * found.served / found.requests:.1f} %</td>"
            cells += f"<td>{100 * found.on_time / found.requests:.1f} %</td>"
        body += f"<tr><td>{escape(each.strategy)}</td>{cells}</tr>"
    return f"<h2>By priority</h2><table><thead><tr><th>strategy</th>{head}</tr></thead><tbody>{body}</tbody></table>"
