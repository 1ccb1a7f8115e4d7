"""A trace of the project's own making, for those who have none: bursty tenants with heavy-tailed prompts."""

from __future__ import annotations

import math
from random import Random

from gateway.simulation.trace import DEFAULT_MODEL, Arrival

_TENANTS = (
    # name, share of requests, mean input, mean output, seconds on, seconds off (0 = steady)
    ("chat", 0.45, 600, 220, 0.0, 0.0),
    ("support", 0.25, 1_400, 160, 90.0, 60.0),
    ("batch", 0.20, 2_600, 400, 45.0, 195.0),
    ("reports", 0.10, 5_000, 900, 30.0, 270.0),
)
_SIGMA = 0.9
_TURNS = 6
_CACHED_FROM = 1_024


def synthesize(*, requests: int = 3_000, duration_s: float = 900.0, seed: int = 1) -> list[Arrival]:
    """Make about `requests` arrivals over `duration_s`: steady and on/off tenants, log-normal token counts."""
    rng = Random(seed)  # noqa: S311 - a trace, not a secret
    arrivals: list[Arrival] = []
    talks = Random(seed + 1)  # noqa: S311 - as above
    for name, share, mean_input, mean_output, on_s, off_s in _TENANTS:
        count = int(requests * share)
        cycle_s = on_s + off_s
        phase_s = rng.uniform(0.0, cycle_s) if cycle_s else 0.0
        for _ in range(count):
            t = rng.uniform(0.0, duration_s)
            if cycle_s:
                # Squeeze the time into the part of its cycle that is on.
                cycle, within = divmod(t + phase_s, cycle_s)
                t = max(0.0, cycle * cycle_s + within * on_s / cycle_s - phase_s)
            input_tokens, output_tokens = _heavy(rng, mean_input), _heavy(rng, mean_output)
            conversation = talks.randrange(max(1, count // _TURNS))
            arrivals.append(
                Arrival(
                    t=round(min(t, duration_s), 3),
                    input_tokens=input_tokens,
                    output_tokens=output_tokens,
                    # What was said before, in the blocks that providers cache.
                    cached_tokens=int(0.6 * input_tokens) // 128 * 128 if input_tokens >= _CACHED_FROM else 0,
                    tenant=name,
                    model=DEFAULT_MODEL,
                    conversation=f"{name}-{conversation}",
                )
            )
    arrivals.sort(key=lambda arrival: arrival.t)
    return arrivals


def _heavy(rng: Random, mean: float) -> int:
    return max(1, min(32_000, int(rng.lognormvariate(math.log(mean) - _SIGMA**2 / 2, _SIGMA))))
