"""Which strategy is better, and how sure that is: paired replays over pools, loads and seeds, with intervals.

Run: python bench/strategies.py [--trace FILE.csv[.gz] ...] [--limit N] [--seeds N] [--jobs N]

Every run of one cell (trace, pool, clean or messy, load, seed) has the same pool, demand and queue for all strategies.
Ratios are geometric means of paired runs against `rate_limit_aware`, with 95 % intervals; below 1 is better. Counts get
a half added, so that runs without a 429 can be compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gateway.balancing.strategies.registry import STRATEGY_NAMES
from gateway.simulation import study
from gateway.simulation.replay import BLIND
from gateway.simulation.scenario import POOL_KINDS, PoolKind
from gateway.simulation.tally import Result
from gateway.simulation.trace import Arrival, read_trace

BASE = "rate_limit_aware"
LOADS = (0.6, 0.8, 1.0, 1.2)
SAMPLE = Path(__file__).parent / "traces" / "sample.csv"


@dataclass(frozen=True)
class Cell:
    """One paired run."""

    trace: Path
    limit: int
    kind: PoolKind
    messy: bool
    load: float
    seed: int


@cache
def arrivals_of(trace: Path, limit: int) -> list[Arrival]:
    """Read a trace once a process."""
    return read_trace(trace, limit=limit)


def run(cell: Cell, strategies: tuple[str, ...]) -> list[Result]:
    """Replay one cell."""
    arrivals = arrivals_of(cell.trace, cell.limit)
    plan = study.Plan(arrivals, strategies, kind=cell.kind, messy=cell.messy, load=cell.load, seeds=(cell.seed,))
    return study.run(plan)


def interval(logs: Sequence[float]) -> str:
    """Write a geometric mean with its 95 % interval (normal approximation)."""
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((each - mean) ** 2 for each in logs) / max(1, len(logs) - 1) / len(logs))
    low, high = math.exp(mean - 1.96 * spread), math.exp(mean + 1.96 * spread)
    return f"{math.exp(mean):.2f} [{low:.2f}, {high:.2f}]"


def table(done: dict[Cell, list[Result]], strategies: Sequence[str]) -> str:
    """Write the comparison of some cells as Markdown."""
    lines = [
        "| strategy | 429s /10k | 429s, ratio | mean wait, ratio | lost /10k | on time | goodput | fairness |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    by_name = {
        name: [result for results in done.values() for result in results if result.strategy == name]
        for name in strategies
    }
    for name, results in by_name.items():
        refused = [
            math.log((a.rejected + 0.5) / (b.rejected + 0.5)) for a, b in zip(results, by_name[BASE], strict=True)
        ]
        waits = [
            math.log((a.waits.mean + 0.01) / (b.waits.mean + 0.01)) for a, b in zip(results, by_name[BASE], strict=True)
        ]
        total = sum(each.requests for each in results)
        goodput = sum(each.goodput or 0.0 for each in results) / len(results)
        lines.append(
            f"| {name} | {1e4 * sum(each.rejected for each in results) / total:.0f} | {interval(refused)} "
            f"| {interval(waits)} | {1e4 * sum(each.lost for each in results) / total:.0f} "
            f"| {100 * sum(each.on_time for each in results) / total:.1f} % | {100 * goodput:.1f} % "
            f"| {sum(each.fairness for each in results) / len(results):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all cells and print one table a pool, clean and messy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, action="append", help="a CSV trace; may be given several times")
    parser.add_argument("--limit", type=int, default=3_000, help="requests of each trace (default 3000)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    chosen = parser.parse_args()
    strategies = (BLIND, *STRATEGY_NAMES)
    cells = [
        Cell(trace, chosen.limit, kind, messy, load, seed)
        for trace in chosen.trace or [SAMPLE]
        for kind in POOL_KINDS
        for messy in (False, True)
        for load in LOADS
        for seed in range(chosen.seeds)
    ]
    done: dict[Cell, list[Result]] = {}
    with ProcessPoolExecutor(chosen.jobs) as workers:
        running = {workers.submit(run, cell, strategies): cell for cell in cells}
        for count, finished in enumerate(as_completed(running), start=1):
            done[running[finished]] = finished.result()
            print(f"\r{count} of {len(cells)} cells", end="", file=sys.stderr)
    print(file=sys.stderr)
    names = ", ".join(trace.name for trace in chosen.trace or [SAMPLE])
    print(f"{names}, first {chosen.limit:,} requests of each; loads {LOADS}; {chosen.seeds} seeds; base {BASE}\n")
    for kind in POOL_KINDS:
        for messy in (False, True):
            some = {cell: done[cell] for cell in cells if cell.kind == kind and cell.messy is messy}
            print(f"### {kind}, {'messy' if messy else 'clean'}\n\n{table(some, ('oracle', *strategies))}\n")


if __name__ == "__main__":
    main()
