"""The key that will not refuse: `rate_limit_aware` over limiters that are learned as they are, not as configured."""

from __future__ import annotations

from random import Random

from gateway.balancing.predictor import Learning
from gateway.balancing.ready import Candidate, Ready
from gateway.balancing.strategies.rate_limit_aware import RateLimitAware
from gateway.balancing.strategy import least

SAMPLE = 3
EXPIRING_BONUS = 0.5
"""What is left of a fixed window at its very end weighs so much more than at its beginning: unused, it is lost."""


class Predictive:
    """Turns learning on in the pool's ledgers (see `predictor`), which are what admits; and prefers what expires.

    Until something was learned it does what `rate_limit_aware` does; so it does where its beliefs proved worse.
    `limits_are_caps`: configured limits are deliberate and never exceeded, whatever the provider would grant.
    Not `learns`: it is `rate_limit_aware`, whatever was learned before.
    """

    name = "predictive"

    def __init__(
        self,
        threshold: float = 0.05,
        *,
        overflow_daily: bool = False,
        limits_are_caps: bool = False,
        learns: bool = True,
    ) -> None:
        self._aware = RateLimitAware(threshold, overflow_daily=overflow_daily)
        self.learning: Learning | None = Learning(limits_are_caps) if learns else None

    def choose(self, ready: Ready, rng: Random) -> Candidate | None:
        return least([(self._score(each, ready.now), each) for each in ready.sample(SAMPLE, rng)], rng)

    def _score(self, candidate: Candidate, now: float) -> float:
        score, ledger = self._aware.score_at(candidate, now), candidate.ledger
        if expiring := ledger.expiring(now):
            score -= EXPIRING_BONUS * expiring * ledger.headroom(now)
        if ledger.learner is not None and ledger.learner.active:
            score += ledger.learner.refused_share(now)
        return score

    def score(self, candidate: Candidate, ready: Ready, /) -> float | None:
        return self._score(candidate, ready.now)
