"""The report of `strategies.py`: paired ratios with intervals, target figures, ablations, as Markdown and SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from forest_plot import forest

if TYPE_CHECKING:
    from strategies import Row

TRACES = {
    "azure2023_conv": "Azure LLM inference trace 2023, conversations (Azure/AzurePublicDataset, CC-BY 4.0; Splitwise, "
    "ISCA 2024): real, one hour",
    "sg_mlarge": "ServeGen m-large (alibaba/ServeGen, Apache-2.0): sampled from per-client statistics, 8 tenants, "
    "4 days",
    "sg_mmid": "ServeGen m-mid (as above): 13 tenants, 2 days",
    "sg_r1": "ServeGen deepseek-r1 (as above): 22 tenants, 1 day",
    "mooncake_synthetic": "Mooncake synthetic (kvcache-ai/Mooncake, FAST25 release, Apache-2.0): Poisson, 17 minutes",
    "sample": "the sample of this project's own making (`gateway/simulation/synthetic.py`)",
}
LOOKED_AT = ("azure2023_conv", "sg_mmid", "sg_r1")
"""Traces whose first requests were looked at while the learner was worked on."""
PLAIN, DOCUMENTED, LEARNED, BOUND = "plain", "rate_limit_aware", "predictive", "oracle"
_SHOWN = {PLAIN: "plain", DOCUMENTED: "rate_limit_aware", LEARNED: "predictive"}
_RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Paired:
    """Rows by cell and participant, of the cells that pass a filter."""

    def __init__(self, rows: Iterable[Row], keep: Callable[[Row], bool]) -> None:
        cells: dict[object, dict[str, Row]] = {}
        for row in rows:
            if keep(row):
                cells.setdefault(row.cell, {})[row.name] = row
        # Where the oracle serves nothing every request is above every limit: that compares nothing.
        self.cells = [cell for cell in cells.values() if BOUND not in cell or cell[BOUND].tokens > 0]

    def of(self, *names: str) -> list[tuple[Row, ...]]:
        """Give the rows of some participants, cell by cell, where all of them ran."""
        return [tuple(cell[name] for name in names) for cell in self.cells if all(name in cell for name in names)]

    def ratio(self, name: str, base: str, figure: Callable[[Row], float], extra: float) -> Estimate:
        """Give the geometric mean of paired ratios; `extra` is added to both, so that zeros can be compared."""
        logs = [math.log((figure(a) + extra) / (figure(b) + extra)) for a, b in self.of(name, base)]
        mean = _mean(logs)
        return Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))

    def refused(self, name: str, base: str) -> Estimate:
        """Give the ratio of 429s."""
        return self.ratio(name, base, lambda row: row.rejected, 0.5)

    def waited(self, name: str, base: str) -> Estimate:
        """Give the ratio of mean waits."""
        return self.ratio(name, base, lambda row: row.wait_mean, 0.01)

    def lost(self, name: str, base: str) -> Estimate:
        """Give the ratio of all lost requests, by bootstrap over cells."""
        pairs = [(a.lost, b.lost) for a, b in self.of(name, base)]
        rng = Random(0)
        drawn = sorted(_ratio_of(rng.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES))
        return Estimate(_ratio_of(pairs), drawn[int(0.025 * _RESAMPLES)], drawn[int(0.975 * _RESAMPLES)])


def _ratio_of(pairs: Sequence[tuple[int, int]]) -> float:
    return (sum(a for a, _ in pairs) + 0.5) / (sum(b for _, b in pairs) + 0.5)


def _mean(values: Sequence[float]) -> Estimate:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((each - mean) ** 2 for each in values) / max(1, len(values) - 1) / len(values))
    return Estimate(mean, mean - 1.96 * spread, mean + 1.96 * spread)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def targets(paired: Paired, silent: Paired) -> str:
    """Write asked-for figures beside what was found."""
    plain, known = _SHOWN[PLAIN], _SHOWN[DOCUMENTED]
    tokens = _mean([row.goodput for (row,) in paired.of(LEARNED)])
    jain = _mean([a.fairness - b.fairness for a, b in paired.of(LEARNED, PLAIN)])
    pairs = paired.of(LEARNED, PLAIN)
    worse = sum(a.rejected > 1.02 * b.rejected + 1 for a, b in pairs) / len(pairs)
    found: list[tuple[str, str, str, bool]] = []

    def at_most(what: str, limit: float, estimate: Estimate) -> None:
        found.append((what, f"≤ {limit:.2f}", str(estimate), estimate.high <= limit))

    at_most(f"429s against {plain}", 0.30, paired.refused(LEARNED, PLAIN))
    at_most(f"429s against {known}", 0.50, paired.refused(LEARNED, DOCUMENTED))
    at_most(f"mean wait against {plain}", 0.80, paired.waited(LEARNED, PLAIN))
    at_most(f"mean wait against {known}", 0.95, paired.waited(LEARNED, DOCUMENTED))
    at_most("lost requests against the oracle", 1.10, paired.lost(LEARNED, BOUND))
    at_most(f"header-less: lost against {known}", 0.85, silent.lost(LEARNED, DOCUMENTED))
    found.append(("served tokens of the oracle's", "≥ 0.98", str(tokens), tokens.low >= 0.98))
    found.append((f"fairness (Jain) less {plain}'s", "≥ -0.01", str(jain), jain.low >= -0.01))
    found.append((f"runs with more 429s than {plain}", "≤ 5 %", f"{100 * worse:.1f} %", worse <= 0.05))
    rows = [(what, asked, value, "met" if met else "**missed**") for what, asked, value, met in found]
    return _table(("figure", "asked", "found", ""), rows)


def comparison(paired: Paired, names: Sequence[str]) -> str:
    """Write one line a participant: counts, and ratios to `plain` and `rate_limit_aware`."""
    rows: list[Sequence[str]] = []
    for name in names:
        mine = [row for (row,) in paired.of(name)]
        if not mine:
            continue
        requests = sum(row.requests for row in mine)
        against = [str(paired.refused(name, base)) if name not in (BOUND, base) else "" for base in (PLAIN, DOCUMENTED)]
        rows.append(
            (
                name,
                f"{1e4 * sum(row.rejected for row in mine) / requests:.0f}",
                *against,
                "" if name in (BOUND, PLAIN) else str(paired.waited(name, PLAIN)),
                f"{_mean([row.wait_mean for row in mine]).value:.1f} s",
                f"{1e4 * sum(row.lost for row in mine) / requests:.0f}",
                "" if name == BOUND else f"{paired.lost(name, BOUND).value:.2f}",
                f"{100 * sum(row.on_time for row in mine) / requests:.1f} %",
                f"{100 * _mean([row.goodput for row in mine]).value:.1f} %",
                f"{_mean([row.fairness for row in mine]).value:.3f}",
            )
        )
    head = (
        "", "429s /10k", "429s x plain", "429s x rate_limit_aware", "wait x plain", "mean wait", "lost /10k",
        "lost x oracle", "on time", "goodput", "fairness",
    )  # fmt: skip
    return _table(head, rows)


def ablation(paired: Paired, names: Sequence[str]) -> str:
    """Write what `predictive` becomes without each of its parts, and with each that is opt-in."""
    rows = [
        (
            name,
            str(paired.refused(name, LEARNED)),
            str(paired.waited(name, LEARNED)),
            str(paired.lost(name, LEARNED)),
            " → ".join(f"{100 * _share(paired, *pair, 'on_time'):.1f}" for pair in ((LEARNED, name), (name, LEARNED))),
            f"{1e4 * _share(paired, name, LEARNED, 'truncated'):.1f}",
        )
        for name in names
        if paired.of(name, LEARNED)
    ]
    head = ("change", "429s x predictive", "wait x predictive", "lost x predictive", "on time, %", "cut answers /10k")
    return _table(head, rows)


def _share(paired: Paired, name: str, other: str, figure: str) -> float:
    mine = [row for row, _ in paired.of(name, other)]
    return sum(getattr(row, figure) for row in mine) / sum(row.requests for row in mine)


def write_report(rows: Sequence[Row], to: Path) -> None:
    """Write `strategies.md` and its plots."""
    main = [row for row in rows if row.cell.study == "main"]
    traces = sorted({row.cell.trace for row in main})
    held_out = [trace for trace in traces if trace not in LOOKED_AT]
    everywhere = list(dict.fromkeys(row.name for row in main))
    names = sorted(everywhere, key=lambda name: (name != BOUND, everywhere.index(name)))
    cells = len({row.cell for row in rows})
    empty = len({row.cell for row in rows if row.name == BOUND and not row.tokens})
    seeds, loads = sorted({row.cell.seed for row in main}), sorted({row.cell.load for row in main})
    sizes = sorted({row.requests for row in main})
    parts = [_INTRODUCTION.format(
        cells=f"{cells:,}", empty=empty, seeds=len(seeds), loads=", ".join(f"{load:g}" for load in loads),
        sizes=" to ".join(f"{size:,}" for size in (sizes[0], sizes[-1])) if len(sizes) > 1 else f"{sizes[0]:,}",
        traces="\n".join(
            f"- **{trace}**: {TRACES.get(trace, 'a trace of your own')}"
            f"{'' if trace in held_out else '; looked at while tuning'}"
            for trace in traces
        ),
    )]  # fmt: skip
    for title, chosen in (("held-out traces", held_out), ("all traces", traces)):
        if chosen:
            paired = Paired(main, lambda row, chosen=chosen: row.cell.messy and row.cell.trace in chosen)  # type: ignore[misc]
            silent = Paired(
                main,
                lambda row, chosen=chosen: (
                    row.cell.messy  # type: ignore[misc]
                    and row.cell.kind == "headerless"
                    and row.cell.trace in chosen
                ),
            )
            parts.append(f"## Target figures: {title}\n\nMessy pools of all four kinds.\n\n{targets(paired, silent)}")
    groups: list[tuple[str, Paired]] = []
    for kind in dict.fromkeys(row.cell.kind for row in main):
        for messy in (True, False):
            chosen_rows = Paired(main, lambda row, k=kind, m=messy: row.cell.kind == k and row.cell.messy is m)  # type: ignore[misc]
            groups.append((f"{kind}, {'messy' if messy else 'clean'}", chosen_rows))
    groups += [(f"load {load:g}, messy", _at(main, load)) for load in loads]
    groups += [(f"{trace}, messy", _of(main, trace)) for trace in traces]
    plots = {
        "strategies-429s.svg": forest(
            "429s of predictive, as a ratio",
            {"to plain": _rows(groups, PLAIN), "to rate_limit_aware": _rows(groups, DOCUMENTED)},
        ),
    }
    parts.append("## By pool, and by trace\n\n![429s of predictive](strategies-429s.svg)")
    parts += [f"### {title}\n\n{comparison(paired, names)}" for title, paired in groups]
    studies = (
        ("unknown", "A limiter class that the learner does not know", _UNKNOWN),
        ("simple", "Round robin", "Messy pools of all four kinds, load 1.0."),
        ("others", "The other strategies", "Mixed and messy, load 1.0."),
    )
    for study, title, said in studies:
        of_study = [row for row in rows if row.cell.study == study]
        if of_study:
            order = list(dict.fromkeys(row.name for row in of_study))
            parts.append(f"## {title}\n\n{said}\n\n{comparison(Paired(of_study, lambda _: True), order)}")
    lesser = [row for row in rows if row.cell.study == "ablation"]
    if lesser:
        order = [name for name in dict.fromkeys(row.name for row in lesser) if name not in (BOUND, LEARNED)]
        parts.append(f"## Which part pays\n\n{_ABLATION}")
        for kind in dict.fromkeys(row.cell.kind for row in lesser):
            paired = Paired(lesser, lambda row, k=kind: row.cell.kind == k)  # type: ignore[misc]
            parts.append(f"### {kind}\n\n{ablation(paired, order)}")
    to.mkdir(parents=True, exist_ok=True)
    (to / "strategies.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for name, drawn in plots.items():
        (to / name).write_text(drawn + "\n", encoding="utf-8")


def _at(rows: Sequence[Row], load: float) -> Paired:
    return Paired(rows, lambda row: row.cell.messy and row.cell.load == load)


def _of(rows: Sequence[Row], trace: str) -> Paired:
    return Paired(rows, lambda row: row.cell.messy and row.cell.trace == trace)


def _rows(groups: Sequence[tuple[str, Paired]], base: str) -> list[tuple[str, float, float, float]]:
    found = [(title, paired.refused(LEARNED, base)) for title, paired in groups if paired.of(LEARNED, base)]
    return [(title, each.value, each.low, each.high) for title, each in found]


_UNKNOWN = (
    "Half of the keys are behind an even-pace limiter (`simulation/limits/paced.py`): no headers, a burst of ten "
    "seconds' worth, and nothing in the balancer knows of it. Messy, load 1.0."
)
_ABLATION = (
    "Load 1.0, messy. Above 1 a part that is missing was worth something; what begins with + is opt-in and added, and "
    "brings something below 1. Cut answers are those that a lowered `max_tokens` ended; they count as served."
)
_INTRODUCTION = """# Strategies compared on public traces

Made by `bench/strategies.py` ({cells} cells; each is one demand, pool and queue replayed by every participant). Ratios
are geometric means of paired runs with 95 % intervals, those of lost requests are of all cells' sums, by bootstrap;
below 1 is better. Loads {loads} (clean pools: 1); {seeds} seeds, each with a pool, a demand and a slice of every trace
of its own: {sizes} requests that span a quarter of an hour at least, if the trace does. A busy trace has many more in
that time, of which as many are drawn: a slice of some seconds is over before the first minute's limits are, at any
load, and its ratios are 1 whatever a strategy does. All participants have the gateway's queue, the same patience and
the same attempts, the oracle too. In {empty} cells every single request is above every limit: they are left out.

Pools are eight keys of log-normal sizes. *Messy*: 40 % are configured wrong by a factor of 0.5 to 2, 30 % drift by 0.5
to 1.8 in mid-run, 40 % have on/off load from others. What no trace has is assumed as in docs/simulate.md: `max_tokens`,
priorities with deadlines and patience, estimates that are off by up to 8 %; a 429 costs 150 ms, a request has six
attempts.

| participant | |
|---|---|
| oracle | sees every limiter's true state, takes the key with the most room: a greedy bound, not the best plan |
| blind | round robin that knows no limit and reads no header |
| plain | configured limits as one bucket a minute for every provider, corrected by headers |
| round_robin | the strategy, behind this balancer's accounts |
| rate_limit_aware | the same accounts: each provider's documented windows and charges |
| predictive | those, learned |

{traces}"""
