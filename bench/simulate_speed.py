"""How fast the simulator is: CPU seconds for a replay, scaled to a million requests.

Run: python bench/simulate_speed.py [requests]
"""

from __future__ import annotations

import sys
import time
from random import Random

from gateway.balancing.strategies.registry import STRATEGY_NAMES
from gateway.simulation.contenders import BLIND, ORACLE
from gateway.simulation.demand import make_demands
from gateway.simulation.replay import replay
from gateway.simulation.scenario import evaluation_pool, scale_to_load
from gateway.simulation.synthetic import synthesize


def main(requests: int) -> None:
    """Print one line a strategy."""
    demands = make_demands(synthesize(requests=requests, duration_s=requests / 5), Random(1))
    scenario = scale_to_load(evaluation_pool("mixed", Random(2)), demands, 0.8)
    print(f"{requests:,} requests, eight keys, load 0.8; CPU time")
    for name in (ORACLE, BLIND, *STRATEGY_NAMES):
        began = time.process_time()
        replay(demands, scenario, name)
        spent = time.process_time() - began
        print(f"{name:<20} {spent / requests * 1e6:6.0f} µs a request, {spent / requests * 1e6:6.0f} s a million")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
