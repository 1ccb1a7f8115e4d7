"""Several strategies over the same demand, several times: what `llm-proxy simulate` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from gateway.simulation.contenders import ALL_NAMES, ORACLE, Contender, contender
from gateway.simulation.demand import Assumptions, make_demands
from gateway.simulation.replay import replay as replay_one
from gateway.simulation.scenario import PoolKind, Scenario, evaluation_pool, scale_to_load
from gateway.simulation.tally import ClassResult, Result, Waits
from gateway.simulation.trace import Arrival


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. `scenario` None: a fresh evaluation pool of `kind` a seed; `load` None: limits as given.

    The oracle always runs too: the goodput is measured against it.
    """

    arrivals: Sequence[Arrival]
    strategies: tuple[str | Contender, ...]
    scenario: Scenario | None = None
    kind: PoolKind = "mixed"
    messy: bool = False
    load: float | None = 0.9
    seeds: tuple[int, ...] = (0,)
    assumptions: Assumptions | None = None


def strategies_named(text: str) -> tuple[str, ...]:
    """Read a comma-separated list; "all" = every strategy. Raises ValueError that lists the names."""
    chosen: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name == "all":
            chosen += ALL_NAMES
        elif name != ORACLE:
            chosen.append(contender(name).name)
    if not chosen:
        raise ValueError(f"name at least one strategy: all, {', '.join(ALL_NAMES)}")
    return tuple(dict.fromkeys(chosen))


def run(plan: Plan, progress: Callable[[str, int], None] | None = None) -> list[Result]:
    """Replay every strategy and the oracle over every seed; the oracle comes first, each result the mean of its seeds.

    `progress` gets the strategy's name and how many requests were replayed since the last call.
    """
    chosen = [each if isinstance(each, Contender) else contender(each) for each in plan.strategies]
    runs: dict[str, list[Result]] = {ORACLE: [], **{each.name: [] for each in chosen}}
    for seed in plan.seeds:
        # One generator a seed: the same demand and the same pool for every strategy.
        rng = Random(seed)  # noqa: S311 - a simulation
        demands = make_demands(plan.arrivals, rng, plan.assumptions)
        duration_s = plan.arrivals[-1].t
        scenario = plan.scenario or evaluation_pool(plan.kind, rng, messy=plan.messy, duration_s=duration_s)
        if plan.load is not None:
            scenario = scale_to_load(scenario, demands, plan.load)
        for each in (None, *chosen):
            name, done = ORACLE if each is None else each.name, 0

            def step(count: int, name: str = name) -> None:
                nonlocal done
                if progress is not None:
                    progress(name, count - done)
                done = count

            result = replay_one(demands, scenario, each or ORACLE, seed=seed, progress=step)
            bound = runs[ORACLE][-1] if name != ORACLE else result
            runs[name].append(replace(result, goodput=result.tokens / bound.tokens if bound.tokens else None))
    return [mean_of(results) for results in runs.values()]


def mean_of(results: Sequence[Result]) -> Result:
    """Sum the counts of runs of one strategy and take the mean of their figures."""
    if len(results) == 1:
        return results[0]
    count = len(results)
    first = results[0]
    priorities = sorted({priority for each in results for priority in each.classes})
    keys = sorted({key for each in results for key in each.by_key})
    reasons = sorted({reason for each in results for reason in each.failures})
    nothing = ClassResult(0, 0, 0)
    return Result(
        strategy=first.strategy,
        requests=sum(each.requests for each in results),
        served=sum(each.served for each in results),
        lost=sum(each.lost for each in results),
        on_time=sum(each.on_time for each in results),
        rejected=sum(each.rejected for each in results),
        waits=Waits(
            mean=sum(each.waits.mean for each in results) / count,
            p50=sum(each.waits.p50 for each in results) / count,
            p95=sum(each.waits.p95 for each in results) / count,
            p99=sum(each.waits.p99 for each in results) / count,
        ),
        tokens=sum(each.tokens for each in results),
        cost=sum(each.cost for each in results),
        fairness=sum(each.fairness for each in results) / count,
        longest_queue=max(each.longest_queue for each in results),
        classes={
            priority: ClassResult(
                sum(each.classes.get(priority, nothing).requests for each in results),
                sum(each.classes.get(priority, nothing).served for each in results),
                sum(each.classes.get(priority, nothing).on_time for each in results),
            )
            for priority in priorities
        },
        by_key={
            key: (
                sum(each.by_key.get(key, (0, 0))[0] for each in results),
                sum(each.by_key.get(key, (0, 0))[1] for each in results),
            )
            for key in keys
        },
        failures={reason: sum(each.failures.get(reason, 0) for each in results) for reason in reasons},
        timeline=tuple(
            (
                moment,
                sum(each.timeline[place][1] for each in results) / count,
                sum(each.timeline[place][2] for each in results) / count,
            )
            for place, (moment, _, _) in enumerate(first.timeline)
        ),
        duration_s=sum(each.duration_s for each in results) / count,
        goodput=sum(each.goodput or 0.0 for each in results) / count,
        truncated=sum(each.truncated for each in results),
        cache_hits=None if first.cache_hits is None else sum(each.cache_hits or 0.0 for each in results) / count,
    )
