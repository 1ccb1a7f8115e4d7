"""A second key for an answer that is late: when it is late, how often that may happen, what came of it. Pure.

Most of a pool's worst latencies are not the model's but one attempt's bad luck. A second attempt, sent when the first
has taken longer than nearly all do, cuts that tail for little more load (Dean & Barroso, "The Tail at Scale", 2013).
Late is the 95th percentile of the time to first byte, measured for each model as answers come in; how often is a share
of the requests; and only a key that keeps room in its limits is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log

from gateway.balancing.retry import RetryBudget
from gateway.balancing.steps import Attempt

LATE = 0.95
LEAST_SAMPLES = 50
"""Nothing is late before so many answers of a model were seen."""
MEMORY = 1_000.0
"""Samples of a model weigh half as much when so many more have come."""
MAX_MODELS = 256
"""Model names come from callers: what is remembered by name is bounded."""

_LEAST_S = 0.001
_GROWTH = 1.15
_BUCKETS = 96
"""1 ms * 1.15^96 is 11 minutes: more than any deadline."""
_LOG_GROWTH = log(_GROWTH)


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """How a pool hedges: at most `share` of its requests, onto keys that keep `headroom` (0..1) of their limits free,

    never sooner than `least_s`.
    """

    share: float = 0.05
    headroom: float = 0.2
    least_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Hedge:
    """What one request may do: once, after `delay_s` without a first byte, if `budget` affords it."""

    delay_s: float
    headroom: float
    budget: RetryBudget


class Quantile:
    """A quantile of positive samples in seconds, kept in buckets of 15 % width; old samples fade."""

    __slots__ = ("_buckets", "_known", "_total", "_weight", "samples")

    def __init__(self) -> None:
        self._buckets = [0.0] * _BUCKETS
        self._total = 0.0
        self._weight = 1.0
        self._known: float | None = None
        self.samples = 0

    def add(self, seconds: float) -> None:
        """Take in one sample."""
        place = ceil(log(seconds / _LEAST_S) / _LOG_GROWTH) if seconds > _LEAST_S else 0
        # Newer samples weigh more, in place of all older ones weighing less.
        self._weight *= 2.0 ** (1.0 / MEMORY)
        self._buckets[min(place, _BUCKETS - 1)] += self._weight
        self._total += self._weight
        self.samples += 1
        self._known = None
        if self._weight > 1e12:
            self._buckets = [each / self._weight for each in self._buckets]
            self._total /= self._weight
            self._weight = 1.0

    def read(self, quantile: float = LATE) -> float:
        """Give the upper bound of the bucket that holds it; 0 without samples."""
        if self._known is None:
            left, place = self._total * (1.0 - quantile), _BUCKETS - 1
            while place > 0 and (left := left - self._buckets[place]) >= 0.0:
                place -= 1
            self._known = _LEAST_S * _GROWTH**place
        return self._known if self.samples else 0.0


class Hedging:
    """One pool's hedging. `sent` second attempts in all, `won` that answered first, `lost` that did not, `failed`.

    `est_input_tokens`, `est_output_tokens` and `est_cost_nanos` (of a US dollar) are what attempts that were given up
    are estimated to have cost: nobody says it, since their answers were never read.
    """

    def __init__(self, policy: HedgePolicy) -> None:
        self.policy = policy
        self._budget = RetryBudget(policy.share, floor_per_s=0.0, burst=max(1.0, policy.share * 100.0))
        self._first_bytes: OrderedDict[str, Quantile] = OrderedDict()
        self.sent = self.won = self.lost = self.failed = 0
        self.est_input_tokens = self.est_output_tokens = self.est_cost_nanos = 0

    def late_s(self, model: str) -> float | None:
        """Give the time to first byte above which an answer of `model` is late; None: too little was seen."""
        known = self._first_bytes.get(model)
        return max(self.policy.least_s, known.read()) if known and known.samples >= LEAST_SAMPLES else None

    def begin(self, model: str, now: float) -> Hedge | None:
        """Count a request; give what it may do, None while too little is known."""
        self._budget.deposit(now)
        late_s = self.late_s(model)
        return None if late_s is None else Hedge(late_s, self.policy.headroom, self._budget)

    def ended(self, model: str, attempts: Sequence[Attempt], answered_by: str | None) -> None:
        """Take in how a request went; `answered_by` is the endpoint whose answer the caller got, if any.

        An attempt that was given up counts with the time that it had taken: leaving it out would make late ever sooner.
        """
        for attempt in attempts:
            seconds = attempt.total_s if attempt.first_byte_s is None else attempt.first_byte_s
            answers = attempt.status is None or attempt.status < 400
            if seconds is not None and seconds > 0.0 and answers:
                self._take(model, seconds)
            if attempt.hedge:
                self.sent += 1
                if attempt.endpoint_id == answered_by:
                    self.won += 1
                elif attempt.lost:
                    self.lost += 1
                else:
                    self.failed += 1

    def gave_up(self, input_tokens: int, output_tokens: int, cost_nanos: int | None) -> None:
        """Take in what an attempt that was given up is estimated to have cost; None: the model has no price."""
        self.est_input_tokens += input_tokens
        self.est_output_tokens += output_tokens
        self.est_cost_nanos += cost_nanos or 0

    def _take(self, model: str, seconds: float) -> None:
        known = self._first_bytes.get(model)
        if known is None:
            known = self._first_bytes[model] = Quantile()
            while len(self._first_bytes) > MAX_MODELS:
                self._first_bytes.popitem(last=False)
        else:
            self._first_bytes.move_to_end(model)
        known.add(seconds)


def hedging_by(policy: HedgePolicy | None, before: Hedging | None) -> Hedging | None:
    """Give what hedges by `policy` (None: nothing does); under an unchanged one what was measured stays."""
    if policy is None or (before is not None and before.policy == policy):
        return None if policy is None else before
    return Hedging(policy)
