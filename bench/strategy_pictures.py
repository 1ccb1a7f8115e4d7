"""The pictures of docs/strategies, from the simulator: the same run makes the same file.

Run: python bench/strategy_pictures.py [DIRECTORY]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random

from gateway.balancing.quota import Limits
from gateway.balancing.strategies.registry import StrategyOptions, make_strategy
from gateway.simulation import plots
from gateway.simulation.contenders import Contender
from gateway.simulation.demand import Demand, make_demands
from gateway.simulation.replay import replay
from gateway.simulation.scenario import PoolKind, Scenario, SimulatedKey, evaluation_pool, scale_to_load
from gateway.simulation.synthetic import synthesize
from gateway.simulation.tally import Result

HERE = Path(__file__).parent
AMPLE = Limits(rpm=6_000, tpm=20_000_000)


def demand(requests: int = 1_200, duration_s: float = 400.0) -> list[Demand]:
    """Make the same traffic for every picture."""
    return make_demands(synthesize(requests=requests, duration_s=duration_s), Random(1))


def evaluation(kind: PoolKind, load: float, *, messy: bool = False) -> Scenario:
    """Make a pool of eight unequal keys that the traffic loads so far."""
    pool = evaluation_pool(kind, Random(2), messy=messy, duration_s=400.0)
    return scale_to_load(pool, demand(), load)


def key(name: str, limits: Limits = AMPLE, **more: object) -> SimulatedKey:
    """Make a key that is told the truth about its limits."""
    return SimulatedKey(name=name, limits=limits, **more)  # type: ignore[arg-type]


def run(scenario: Scenario, strategy: str | Contender) -> Result:
    """Replay it."""
    return replay(demand(), scenario, strategy)


def shares(title: str, strategy: str | Contender, *keys: SimulatedKey) -> str:
    """Draw who served how much."""
    result = run(Scenario(keys=keys), strategy)
    served = {each.name: float(result.by_key.get(each.name, (0, 0))[0]) for each in keys}
    return plots.bars(title, "requests served by each key", served)


def compared(
    title: str, unit: str, scenario: Scenario, strategies: Sequence[str], figure: Callable[[Result], float]
) -> str:
    """Draw one figure of several strategies."""
    return plots.bars(title, unit, {name: figure(run(scenario, name)) for name in strategies})


def refusals_over_time(title: str, scenario: Scenario, strategies: Sequence[str]) -> str:
    """Draw how many 429s there were so far."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name in strategies:
        timeline = run(scenario, name).timeline
        step_s = timeline[1][0] - timeline[0][0]
        total = accumulate(refused * step_s / 60.0 for _, _, refused in timeline)
        series[name] = [(moment, value) for (moment, _, _), value in zip(timeline, total, strict=True)]
    return plots.lines(title, "429s so far", series)


def tiers() -> str:
    """Draw who serves with a premium tier that is kept for critical requests, and without."""
    premium, ordinary = Limits(rpm=80, tpm=10_000_000), Limits(rpm=140, tpm=10_000_000)
    found: dict[str, float] = {}
    for name, tier in (("two tiers", 1), ("one tier", 0)):
        pool = Scenario(keys=(key("premium", premium), key("ordinary", ordinary, tier=tier)))
        served = run(pool, "rate_limit_aware").by_key
        found |= {f"{name}: {each.name}": float(served[each.name][0]) for each in pool.keys}
    return plots.bars("tiers: a quarter of 1,200 requests is critical", "requests served", found)


def pictures() -> Mapping[str, Callable[[], str]]:
    """Give what makes each picture, by the name of the page."""
    near = StrategyOptions(home_region="eu-west-1")
    geographic = Contender("geographic", lambda: make_strategy("geographic", near))
    regional = Limits(rpm=90, tpm=400_000)
    return {
        "round_robin": lambda: shares("round_robin", "round_robin", *(key(name, weight=3) for name in "abcd")),
        "weighted": lambda: shares(
            "weighted: weights 5, 3, 1, 1",
            "weighted",
            *(key(f"{name} ({weight})", weight=weight) for name, weight in zip("abcd", (5, 3, 1, 1), strict=True)),
        ),
        "least_connections": lambda: shares(
            "least_connections: keys of unlike speed",
            "least_connections",
            *(key(f"{ms} ms a token", token_s=ms / 1000) for ms in (5, 10, 20, 40)),
        ),
        "rate_limit_aware": lambda: compared(
            "429s at 90 % load, limits configured as they are",
            "per 10,000 requests",
            evaluation("mixed", 0.9),
            ("plain", "round_robin", "least_connections", "rate_limit_aware"),
            lambda result: result.per_10k(result.rejected),
        ),
        "geographic": lambda: shares(
            "geographic: a gateway in eu-west-1",
            geographic,
            key("eu-west-1", regional, region="eu-west-1", first_byte_s=0.3),
            key("eu-central-1", regional, region="eu-central-1", first_byte_s=0.32),
            key("us-east-1", regional, region="us-east-1", first_byte_s=0.42),
            key("ap-northeast-1", regional, region="ap-northeast-1", first_byte_s=0.6),
        ),
        "predictive": lambda: refusals_over_time(
            "wrong, drifting and shared limits at full load",
            evaluation("headers", 1.0, messy=True),
            ("plain", "rate_limit_aware", "predictive"),
        ),
        "adaptive": lambda: shares(
            "adaptive: keys that differ in speed and price",
            "adaptive",
            key("fast, dear", first_byte_s=0.2, input_price=10.0, output_price=40.0),
            key("fast, cheap", first_byte_s=0.2, input_price=2.5, output_price=10.0),
            key("slow, dear", first_byte_s=0.8, input_price=10.0, output_price=40.0),
            key("slow, cheap", first_byte_s=0.8, input_price=2.5, output_price=10.0),
        ),
        "lowest_latency": lambda: shares(
            "lowest_latency: keys by time to first byte",
            "lowest_latency",
            *(key(f"{seconds:g} s", first_byte_s=seconds) for seconds in (0.2, 0.3, 0.6, 1.2)),
        ),
        "lowest_cost": lambda: shares(
            "lowest_cost: the cheapest has room for half",
            "lowest_cost",
            key("1 $", Limits(rpm=90, tpm=400_000), input_price=1.0, output_price=4.0),
            key("2 $", Limits(rpm=60, tpm=300_000), input_price=2.0, output_price=8.0),
            key("4 $", input_price=4.0, output_price=16.0),
        ),
        "cache_affinity": lambda: compared(
            "prompt cache hits at half load",
            "% of the tokens that could be cached",
            evaluation("mixed", 0.5),
            ("rate_limit_aware", "rate_limit_aware+cache_affinity", "adaptive", "adaptive+cache_affinity"),
            lambda result: 100.0 * (result.cache_hits or 0.0),
        ),
        "tiers": tiers,
    }


def main(to: Path) -> None:
    """Write them all."""
    to.mkdir(parents=True, exist_ok=True)
    for name, make in pictures().items():
        (to / f"{name}.svg").write_text(make() + "\n", encoding="utf-8")
        print(to / f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "docs" / "strategies" / "images")
