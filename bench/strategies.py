"""Which strategy is better, and how sure that is: paired replays over traces, pools, loads and seeds, with intervals.

Run:    python bench/strategies.py run [--traces DIR] [--results FILE] [--requests N] [--seeds N] [--part 1/2]
        python bench/strategies.py report [--results FILE] [--to DIR]

`run` appends a line a replay to the results and skips what is there already, so it may be stopped at any time, and
parts may run side by side. Every replay of one cell (study, trace, pool, clean or messy, load, seed) has the same
demand, pool, slice of the trace and queue. A slice spans a quarter of an hour at least: load means nothing in one that
is over before the first minute's limits are. `report` writes the comparison as Markdown with plots, see
`strategy_report.py`. Without `--traces` the sample in `bench/traces` is all there is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random

import msgspec
from ablations import ABLATIONS, MAIN, OTHERS, SIMPLE, participant
from strategy_report import write_report

from gateway.simulation import study
from gateway.simulation.scenario import POOL_KINDS, PoolKind
from gateway.simulation.tally import Result
from gateway.simulation.trace import Arrival, read_trace

HERE = Path(__file__).parent
LOADS = (0.8, 1.0, 1.2)
SPAN_S = 900.0
KNOWN = tuple(kind for kind in POOL_KINDS if kind != "unknown")


class Cell(msgspec.Struct, frozen=True):
    """What one paired run is made of."""

    study: str
    trace: str
    kind: PoolKind
    messy: bool
    load: float
    seed: int


class Row(msgspec.Struct, frozen=True):
    """What became of one participant in one cell; waits in seconds."""

    cell: Cell
    name: str
    requests: int
    rejected: int
    lost: int
    on_time: int
    tokens: int
    goodput: float
    fairness: float
    cost: float
    wait_mean: float
    wait_p50: float
    wait_p95: float
    wait_p99: float
    truncated: int = 0


def plan(traces: list[str], seeds: int) -> Iterator[tuple[Cell, tuple[str, ...]]]:
    """Give the cells and who takes part; first the main study, seed after seed: after a while what is there is even."""
    for seed in range(seeds):
        for trace in traces:
            for kind in KNOWN:
                for load in LOADS:
                    yield Cell("main", trace, kind, True, load, seed), MAIN
    for trace in traces:
        for kind in ("headers", "mixed", "headerless"):
            yield Cell("ablation", trace, kind, True, 1.0, 0), ("rate_limit_aware", "predictive", *ABLATIONS)
    for seed in range(min(seeds, 2)):
        for trace in traces:
            yield Cell("unknown", trace, "unknown", True, 1.0, seed), MAIN
            for kind in KNOWN:
                yield Cell("main", trace, kind, False, 1.0, seed), MAIN
    for trace in traces:
        for kind in KNOWN:
            yield Cell("simple", trace, kind, True, 1.0, 0), (*SIMPLE, *MAIN)
        yield Cell("others", trace, "mixed", True, 1.0, 0), (*MAIN, *OTHERS)


@lru_cache(maxsize=1)
def whole(path: Path) -> list[Arrival]:
    """Read a trace; one at a time is kept."""
    return read_trace(path)


def slice_of(path: Path, requests: int, seed: int, seeds: int) -> list[Arrival]:
    """Give a part of the trace: each seed has its own, spread evenly over the whole.

    It spans `SPAN_S` at least, if the trace does; of more than `requests` in that time as many are drawn.
    """
    arrivals = whole(path)
    first = int(max(0, len(arrivals) - requests) * (seed + 0.5) / seeds)
    last = min(len(arrivals), first + requests) - 1
    while last + 1 < len(arrivals) and arrivals[last].t - arrivals[first].t < SPAN_S:
        last += 1
    while first > 0 and arrivals[last].t - arrivals[first].t < SPAN_S:
        first -= 1
    part = arrivals[first : last + 1]
    if len(part) > requests:
        drawn = sorted(Random(seed).sample(range(len(part)), requests))
        part = [part[place] for place in drawn]
    return [replace(each, t=each.t - part[0].t) for each in part]


def run_cell(cell: Cell, names: tuple[str, ...], arrivals: list[Arrival]) -> list[Row]:
    """Replay one cell."""
    chosen = tuple(participant(name) for name in names)
    plan = study.Plan(arrivals, chosen, kind=cell.kind, messy=cell.messy, load=cell.load, seeds=(cell.seed,))
    return [_row(cell, result) for result in study.run(plan)]


def _row(cell: Cell, result: Result) -> Row:
    waits = result.waits
    return Row(
        cell, result.strategy, result.requests, result.rejected, result.lost, result.on_time, result.tokens,
        result.goodput or 0.0, result.fairness, result.cost, waits.mean, waits.p50, waits.p95, waits.p99,
        result.truncated,
    )  # fmt: skip


def read_rows(path: Path) -> list[Row]:
    """Read results; a line that a killed run left unfinished is left out."""
    rows: list[Row] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append(msgspec.json.decode(line, type=Row))
        except msgspec.DecodeError:
            continue
    return rows


def run(chosen: argparse.Namespace) -> None:
    """Run what is not among the results."""
    found = {path.name.split(".")[0]: path for path in sorted(chosen.traces.glob("*.csv*"))}
    if not found:
        sys.exit(f"no *.csv or *.csv.gz in {chosen.traces}")
    part, parts = (int(number) for number in chosen.part.split("/"))
    todo = [each for place, each in enumerate(plan(list(found), chosen.seeds)) if place % parts == part - 1]
    done = {(row.cell, row.name) for row in read_rows(chosen.results)}
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    for count, (cell, names) in enumerate(todo, start=1):
        if any((cell, name) not in done for name in names):
            arrivals = slice_of(found[cell.trace], chosen.requests, cell.seed, chosen.seeds)
            rows = run_cell(cell, names, arrivals)
            with chosen.results.open("ab") as file:
                # One write a cell: parts that run side by side do not tear each other's lines.
                file.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        print(f"\r{count} of {len(todo)} cells", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--traces", type=Path, default=HERE / "traces", help="a directory of CSV traces")
    parser.add_argument("--results", type=Path, default=Path("strategies.jsonl"))
    parser.add_argument("--requests", type=int, default=2_700, help="of each trace and seed (default 2700)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", default="1/1", help="n/m: only every m-th cell, beginning with the n-th")
    parser.add_argument("--to", type=Path, default=HERE / "reports", help="where the report goes")
    chosen = parser.parse_args()
    if chosen.command == "run":
        run(chosen)
    else:
        write_report(read_rows(chosen.results), chosen.to)


if __name__ == "__main__":
    main()
