"""`llm-proxy simulate`: strategies compared on a trace, in virtual time."""

from __future__ import annotations

from pathlib import Path

import rich_click as click
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from auth.errors import Invalid
from gateway.cli.output import console, errors, print_json

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("simulate")
@click.option("--trace", "trace_file", type=_FILE, help="Traffic as CSV (plain or gzip); without it a made-up sample.")
@click.option("--pool", "pool_file", type=_FILE, help="Keys with their true limits as JSON; without it eight keys.")
@click.option("--strategies", default="all", show_default=True, help="Names with commas between, or all.")
@click.option(
    "--kind",
    type=click.Choice(["mixed", "headers", "anthropic", "headerless"]),
    default="mixed",
    show_default=True,
    help="The providers of the eight keys, when no --pool is given.",
)
@click.option("--messy", is_flag=True, help="Wrong, drifting and shared limits among the eight keys.")
@click.option(
    "--load",
    type=click.FloatRange(0.01, 10.0),
    help="Scale the limits so that the trace is this share of the capacity (default: 0.9; with --pool: as they are).",
)
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Runs to take the mean of.")
@click.option("--limit", type=click.IntRange(1), help="Use only the first so many requests of the trace.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write an HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was counted as JSON.")
def simulate(
    *,
    trace_file: Path | None,
    pool_file: Path | None,
    strategies: str,
    kind: str,
    messy: bool,
    load: float | None,
    seeds: int,
    limit: int | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Replay traffic against the providers' limit models and compare the balancing strategies.

    Nothing is sent anywhere and nobody waits: hours of traffic take seconds. `blind` is round robin that knows no limit
    and reads no header; `oracle` sees every provider's true state and bounds what is possible.
    """
    from gateway.simulation import report as reports
    from gateway.simulation import study, synthetic, trace
    from gateway.simulation.scenario import POOL_KINDS, load_scenario

    try:
        names = study.strategies_named(strategies)
        arrivals = trace.read_trace(trace_file, limit=limit) if trace_file else synthetic.synthesize()[:limit]
        scenario = load_scenario(pool_file.read_bytes()) if pool_file else None
    except ValueError as error:
        raise Invalid(str(error), hint="docs/simulate.md describes traces, pools and strategies.") from None
    if load is None and scenario is None:
        load = 0.9
    plan = study.Plan(
        arrivals=arrivals,
        strategies=names,
        scenario=scenario,
        kind=next(each for each in POOL_KINDS if each == kind),
        messy=messy,
        load=load,
        seeds=tuple(range(seeds)),
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True) as bar:
        task = bar.add_task("replaying", total=(len(names) + 1) * len(arrivals) * seeds)
        results = study.run(plan, lambda name, count: bar.update(task, advance=count, description=f"{name:<20}"))
    where = trace_file.name if trace_file else "the sample trace"
    what = f"{pool_file.name}" if pool_file else f"eight keys, {kind}{', messy' if messy else ''}"
    at = "limits as given" if load is None else f"load {load:g}"
    title = f"{len(arrivals):,} requests of {where}; {what}; {at}; {seeds} seed{'s' if seeds > 1 else ''}"
    if report is not None:
        page = reports.to_html(results, title="Strategies compared", notes=(title + ".",))
        report.write_text(page, encoding="utf-8")
        errors.print(f"report written to {report}")
    if as_json:
        print_json(reports.to_json(results))
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(reports.COLUMNS):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in reports.rows(results):
        table.add_row(*row)
    console.print(table)
    errors.print(reports.LEGEND, style="dim")
