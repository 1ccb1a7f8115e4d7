"""What a replay counts, and the figures that come of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.simulation.demand import Demand

_SLICES = 60


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds from arrival until a provider admitted the request, over those that were served."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One priority: requests, those served, and those that started by their deadline."""

    requests: int
    served: int
    on_time: int


@dataclass(frozen=True, slots=True)
class Result:
    """One strategy's figures over one replay.

    `lost` got no answer (their callers' patience, the queue's size or the attempts ran out). `fairness` is Jain's index
    over the tenants' served share of their own demand (1 = all alike). `timeline` has (seconds, served tokens a minute,
    429s a minute) for each of 60 slices of the trace.
    """

    strategy: str
    requests: int
    served: int
    lost: int
    on_time: int
    rejected: int
    waits: Waits
    tokens: int
    cost: float
    fairness: float
    longest_queue: int
    classes: dict[int, ClassResult]
    by_key: dict[str, tuple[int, int]]
    failures: dict[str, int]
    timeline: tuple[tuple[float, float, float], ...]
    duration_s: float
    goodput: float | None = field(default=None)
    """Served tokens over the oracle's, when one ran."""
    cache_hits: float | None = field(default=None)
    """Of the tokens that could be read from a prompt cache, the share that was; None: there were none."""
    truncated: int = 0
    """Answers that right-sizing cut short."""

    def per_10k(self, count: int) -> float:
        """Return a count per 10,000 requests."""
        return 10_000 * count / self.requests if self.requests else 0.0


class Tally:
    """Counts one replay."""

    def __init__(self, strategy: str, demands: Sequence[Demand]) -> None:
        self._strategy = strategy
        self._demands = demands
        self._end = max(1.0, demands[-1].at if demands else 1.0)
        self._waits: list[float] = []
        self._served: Counter[int] = Counter()
        self._on_time: Counter[int] = Counter()
        self._by_key: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._failures: Counter[str] = Counter()
        self._tokens = 0
        self._cost = 0.0
        self._cacheable = self._cached = 0
        self._tenant_tokens: Counter[str] = Counter()
        self._slice_tokens = [0] * _SLICES
        self._slice_rejected = [0] * _SLICES
        self._longest_queue = 0
        self.truncated = 0
        """Answers that a lowered `max_tokens` has cut."""

    def admitted(self, demand: Demand, key: str, now: float) -> None:
        """A provider took the request."""
        self._by_key[key][0] += 1
        self._waits.append(now - demand.at)
        self._on_time[demand.priority] += now <= demand.deadline_at

    def rejected(self, key: str, now: float) -> None:
        """A provider answered 429."""
        self._by_key[key][1] += 1
        self._slice_rejected[self._slice(now)] += 1

    def ended(self, demand: Demand, cost: float, cached_tokens: int, now: float) -> None:
        """An answer is complete."""
        self._cacheable += demand.cached_tokens
        self._cached += cached_tokens
        tokens = demand.input_tokens + demand.output_tokens
        self._served[demand.priority] += 1
        self._tokens += tokens
        self._tenant_tokens[demand.tenant] += tokens
        self._cost += cost
        self._slice_tokens[self._slice(now)] += tokens

    def failed(self, demand: Demand, why: str) -> None:
        """The caller got an error."""
        del demand
        self._failures[why] += 1

    def turned_away(self, demand: Demand) -> None:
        """There was no room in the queue."""
        self.failed(demand, "queue_full")

    def waiting(self, count: int) -> None:
        """So many requests wait."""
        self._longest_queue = max(self._longest_queue, count)

    def _slice(self, now: float) -> int:
        return min(_SLICES - 1, int(now * _SLICES / self._end))

    def result(self, now: float) -> Result:
        """Sum up."""
        totals: Counter[int] = Counter(demand.priority for demand in self._demands)
        served = sum(self._served.values())
        slice_s = self._end / _SLICES
        return Result(
            strategy=self._strategy,
            requests=len(self._demands),
            served=served,
            lost=sum(self._failures.values()),
            on_time=sum(self._on_time.values()),
            rejected=sum(rejected for _, rejected in self._by_key.values()),
            waits=_waits(self._waits),
            tokens=self._tokens,
            cost=self._cost,
            fairness=self._jain(),
            longest_queue=self._longest_queue,
            classes={
                priority: ClassResult(totals[priority], self._served[priority], self._on_time[priority])
                for priority in sorted(totals)
            },
            by_key={key: (counts[0], counts[1]) for key, counts in sorted(self._by_key.items())},
            failures=dict(self._failures),
            timeline=tuple(
                (index * slice_s, tokens * 60 / slice_s, rejected * 60 / slice_s)
                for index, (tokens, rejected) in enumerate(zip(self._slice_tokens, self._slice_rejected, strict=True))
            ),
            duration_s=now,
            cache_hits=self._cached / self._cacheable if self._cacheable else None,
            truncated=self.truncated,
        )

    def _jain(self) -> float:
        wanted: Counter[str] = Counter()
        for demand in self._demands:
            wanted[demand.tenant] += demand.input_tokens + demand.output_tokens
        shares = [self._tenant_tokens[tenant] / tokens for tenant, tokens in wanted.items() if tokens]
        squares = sum(share * share for share in shares)
        return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def _waits(waits: list[float]) -> Waits:
    if not waits:
        return Waits()
    ordered = sorted(waits)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Waits(sum(ordered) / len(ordered), at(0.50), at(0.95), at(0.99))
