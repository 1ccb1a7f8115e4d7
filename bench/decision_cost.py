"""What a decision costs: median and 99th percentile of `acquire` and `observe`, by strategy and size of the pool.

Run: python bench/decision_cost.py [decisions]

Asked for: a median below 15 µs for 10 keys, and 1,000 keys at most three times that. Times are CPU times of the
thread, so that other processes hardly count; what reading that clock costs is taken off. Eight keys are the largest
pool of which every key is looked at, larger ones are sampled.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import deque
from random import Random
from statistics import median, quantiles

from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Ask, Lease, Picked
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.strategies.registry import STRATEGY_NAMES, make_strategy

REGIONS = ("us-east-1", "eu-west-1", "japaneast")
SIZES = (8, 10, 1000)
CONVERSATIONS = 500
IN_FLIGHT = 20


def make_pool(name: str, size: int) -> Balancer:
    """Make a pool of unequal keys, each with a quota of its own that is never the bottleneck."""
    rng = Random(1)
    endpoints = [
        Endpoint(
            f"k{n}",
            f"q{n}",
            "openai",
            region=REGIONS[n % 3],
            weight=rng.randint(1, 9),
            input_price=float(1 + n % 4),
            output_price=float(2 + n % 4),
        )
        for n in range(size)
    ]
    quotas = [Quota(f"q{n}", Limits(rpm=6000, tpm=10_000_000), "openai") for n in range(size)]
    return Balancer(endpoints, quotas, make_strategy(name), rng=rng)


def measure(name: str, size: int, decisions: int) -> tuple[list[float], list[float]]:
    """Give microseconds of each acquire and each observe."""
    balancer = make_pool(name, size)
    asks = [
        Ask("gpt-4o", est_input_tokens=100, est_output_tokens=100, region="eu-west-1", affinity=f"number {number}")
        for number in range(CONVERSATIONS)
    ]
    clock, reading_ns = time.thread_time_ns, clock_cost_ns()
    outcome = Outcome(OutcomeKind.OK, 200, first_byte_s=0.2, total_s=1.0, usage=TokenUsage(100, 80))
    acquired: list[float] = []
    observed: list[float] = []
    held: deque[Lease] = deque()
    for number in range(decisions + decisions // 10):
        now = number * 0.01
        ask = asks[number % CONVERSATIONS]
        began = clock()
        decision = balancer.acquire(ask, now=now)
        acquired.append((clock() - began - reading_ns) / 1e3)
        assert isinstance(decision, Picked)
        held.append(decision.lease)
        if len(held) > IN_FLIGHT:
            lease = held.popleft()
            began = clock()
            balancer.observe(lease, outcome, now=now)
            observed.append((clock() - began - reading_ns) / 1e3)
    return acquired[-decisions:], observed[-decisions:]


def clock_cost_ns() -> float:
    """Give what two readings of the clock in a row are apart."""
    clock = time.thread_time_ns
    return median(-clock() + clock() for _ in range(2000))


def main(decisions: int) -> None:
    """Print one line a strategy and size."""
    gc.disable()
    print(f"{'strategy':<36}{'keys':>6}{'acquire p50':>14}{'p99':>8}{'observe p50':>14}   µs")
    for name in (*STRATEGY_NAMES, "adaptive+cache_affinity"):
        for size in SIZES:
            acquired, observed = measure(name, size, decisions)
            p99 = quantiles(acquired, n=100)[98]
            print(f"{name:<36}{size:>6}{median(acquired):>14.1f}{p99:>8.1f}{median(observed):>14.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
