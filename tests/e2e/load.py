"""A pool whose limits are wrong, shared in secret and drift, and callers who offer a share of what it truly can."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx2

from tests.e2e.conftest import RunningGateway
from tests.e2e.provider import SeparateProvider

MODEL = "gpt-4o-mini"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
DRIFT_EVERY_S = 45.0
STEP, LEAST, MOST = 0.25, 0.6, 1.5
"""Every so often each limit is multiplied by 1 ± STEP at most, between LEAST and MOST of where it began."""


@dataclass(frozen=True)
class Organisation:
    """A quota at the provider: its true limit at first, in requests a minute, and what the gateway is told of it."""

    name: str
    style: str
    provider: str
    rpm: int
    configured_rpm: int
    keys: tuple[str, ...]


# Two keys of one organisation that the gateway takes for two; limits twice, half and 1.7 times the truth; one without
# any header.
ORGANISATIONS = (
    Organisation("one", "openai", "openai", 240, 240, ("openai-1", "openai-2")),
    Organisation("two", "azure", "azure", 180, 360, ("azure-1",)),
    Organisation("three", "groq", "groq", 120, 60, ("groq-1",)),
    Organisation("four", "opaque", "openai", 60, 100, ("silent-1",)),
)


def provider_config() -> dict[str, Any]:
    """Return what the simulated provider is started with."""
    return {
        "latency": {"first_byte_s": 0.08, "per_token_s": 0.005, "jitter": 0.5},
        "answer_tokens": 12,
        "keys": [
            {"secret": _secret(key), "name": key, "organisation": each.name, "style": each.style,
             "limits": {"rpm": each.rpm}}
            for each in ORGANISATIONS for key in each.keys
        ],
    }  # fmt: skip


def pool_file(name: str, provider: SeparateProvider, strategy: str) -> dict[str, Any]:
    """Return the pool as its owner imports it, with the wrong limits."""
    return {
        "name": name,
        "strategy": strategy,
        "providers": [
            {"name": key, "provider": each.provider, "api_key": _secret(key), "rate_limit": each.configured_rpm,
             "base_url": provider.base_url}
            for each in ORGANISATIONS for key in each.keys
        ],
    }  # fmt: skip


def _secret(key: str) -> str:
    return f"sk-sim-load-{key}-0123456789abcdef"


@dataclass(frozen=True)
class Kind:
    """A kind of request: its share of the offered load, its priority, and the deadline that it names, if any."""

    name: str
    share: float
    priority: int | None = None
    deadline_s: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        told = {"x-llm-proxy-priority": self.priority, "x-llm-proxy-deadline": self.deadline_s}
        return {name: str(value) for name, value in told.items() if value is not None}


@dataclass(frozen=True)
class Seen:
    """One answer as its caller saw it."""

    kind: str
    client: int
    status: int
    took_s: float
    retry_after: str | None
    queued_s: float
    attempts: int


@dataclass
class Run:
    """What came of a run; `capacity` is what the provider could truly have served meanwhile, in requests."""

    seen: list[Seen] = field(default_factory=list)
    capacity: float = 0.0
    errors: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Seen]:
        return [each for each in self.seen if each.kind == kind]

    def served_share(self, kind: str) -> float:
        mine = self.of(kind)
        return sum(each.status == 200 for each in mine) / max(1, len(mine))

    def shares_by_client(self, kind: str) -> list[float]:
        by_client = defaultdict(list)
        for each in self.of(kind):
            by_client[each.client].append(each.status == 200)
        return [sum(mine) / len(mine) for mine in by_client.values()]

    def report(self, kinds: Iterable[Kind]) -> dict[str, Any]:
        """Return the figures, for people and programs."""
        served = sum(each.status == 200 for each in self.seen)
        return {
            "offered": len(self.seen),
            "offered_over_capacity": round(len(self.seen) / max(1.0, self.capacity), 3),
            "served_over_capacity": round(served / max(1.0, self.capacity), 3),
            "errors": self.errors[:5],
            "kinds": {
                each.name: {
                    "requests": len(mine := self.of(each.name)),
                    "statuses": dict(sorted(Counter(one.status for one in mine).items())),
                    "served": round(self.served_share(each.name), 3),
                    "fairness": round(jain(self.shares_by_client(each.name)), 3),
                    "took_s": quantiles([one.took_s for one in mine if one.status == 200]),
                    "queued_s": quantiles([one.queued_s for one in mine if one.status == 200]),
                    "refused_after_s": quantiles([one.took_s for one in mine if one.status == 429]),
                    "attempts": round(sum(one.attempts for one in mine) / max(1, len(mine)), 3),
                }
                for each in kinds
            },
        }


def jain(shares: Sequence[float]) -> float:
    """Give Jain's fairness index: 1 = all equal, 1/n = one has all."""
    total = sum(shares)
    return total**2 / (len(shares) * sum(share**2 for share in shares)) if total else 1.0


def quantiles(values: list[float]) -> dict[str, float]:
    """Give the median, the 95th and 99th percentile, and the largest."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {f"p{q}": ordered[min(len(ordered) - 1, math.ceil(len(ordered) * q / 100) - 1)] for q in (50, 95, 99)}
    return {name: round(value, 3) for name, value in {**at, "max": ordered[-1]}.items()}


class Drift:
    """Moves the provider's limits while it runs; `rate_per_s` is what they allow in all just now."""

    def __init__(self, provider: SeparateProvider, rng: random.Random) -> None:
        self._provider = provider
        self._rng = rng
        self._factors = {each.name: 1.0 for each in ORGANISATIONS}
        self.rate_per_s = sum(each.rpm for each in ORGANISATIONS) / 60.0

    async def run(self) -> None:
        async with httpx2.AsyncClient() as client:
            while True:
                await asyncio.sleep(DRIFT_EVERY_S)
                total = 0
                for each in ORGANISATIONS:
                    factor = self._factors[each.name] * (1.0 + self._rng.uniform(-STEP, STEP))
                    self._factors[each.name] = factor = min(MOST, max(LEAST, factor))
                    rpm = int(each.rpm * factor) // 6 * 6
                    total += rpm
                    url = f"{self._provider.base_url}/_sim/quotas/{each.name}"
                    (await client.put(url, json={"rpm": rpm})).raise_for_status()
                self.rate_per_s = total / 60.0


async def offer(
    gateway: RunningGateway,
    provider: SeparateProvider,
    tokens: Callable[[], Sequence[str]],
    *,
    pool: str,
    kinds: Sequence[Kind],
    load: float,
    seconds: float,
    seed: int,
) -> Run:
    """Offer `load` times the true capacity for `seconds`, in Poisson arrivals, from one client for each token."""
    rng, run = random.Random(seed), Run()
    drift = Drift(provider, random.Random(seed + 1))
    url = f"{gateway.base_url}/pools/{pool}/v1/chat/completions"
    limits = httpx2.Limits(max_connections=2_000, max_keepalive_connections=200)
    pending: set[asyncio.Task[None]] = set()

    async def ask(client: httpx2.AsyncClient, kind: Kind, number: int, token: str) -> None:
        headers = {"authorization": f"Bearer {token}", **kind.headers}
        began = time.monotonic()
        try:
            answer = await client.post(url, json=BODY, headers=headers)
        except httpx2.HTTPError as error:
            run.errors.append(repr(error))
            return
        told: Mapping[str, str] = answer.headers
        run.seen.append(
            Seen(
                kind.name,
                number,
                answer.status_code,
                time.monotonic() - began,
                told.get("retry-after"),
                float(told.get("x-llm-proxy-queued-ms", 0)) / 1e3,
                int(told.get("x-llm-proxy-attempts", 0)),
            )
        )
        if answer.status_code not in (200, 429, 504):
            run.errors.append(f"{kind.name}: {answer.status_code} {answer.text[:300]}")

    drifting = asyncio.create_task(drift.run())
    try:
        async with httpx2.AsyncClient(limits=limits, timeout=httpx2.Timeout(180.0)) as client:
            began = at = time.monotonic()
            while at - began < seconds:
                gap_s = rng.expovariate(load * drift.rate_per_s)
                run.capacity += gap_s * drift.rate_per_s
                at += gap_s
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                (kind,) = rng.choices(kinds, [each.share for each in kinds])
                held = tokens()
                number = rng.randrange(len(held))
                task = asyncio.create_task(ask(client, kind, number, held[number]))
                pending.add(task)
                task.add_done_callback(pending.discard)
            await asyncio.gather(*pending)
    finally:
        drifting.cancel()
    return run


def dumped(run: Run) -> str:
    """Return every answer as JSON lines, to look into."""
    return "\n".join(json.dumps(asdict(each)) for each in run.seen)
