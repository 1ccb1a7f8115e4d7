"""A process's pool of four keys that shares what it is taught: real parts over the twin store."""

from __future__ import annotations

from random import Random
from uuid import UUID

from gateway.balancing.balancer import Balancer
from gateway.balancing.book import QuotaBook
from gateway.balancing.decision import Ask, Lease, Picked
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.hints import Hint
from gateway.balancing.ledger import Ledger
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.predictor import Identification
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.strategies.registry import make_strategy
from tests.leases.world import TENANT, Timed, lease_driver

ADDRESS = "https://one.test"
KEYS = "abcd"
UNIX = 1e9
DOWN = OutcomeKind.CONNECT_FAILED


class Process:
    """One process's pool over four keys with quotas of their own, at one address; `now` is its world's."""

    def __init__(self, world: Timed, name: str, tenant_id: UUID = TENANT, *, max_in_flight: int | None = None) -> None:
        self.world = world
        self.driver = lease_driver(world, name, unix_offset_s=UNIX)
        self.book = QuotaBook(self.driver.desk.of(tenant_id))
        self.pool = Balancer(
            [Endpoint(key, f"q-{key}", "openai", address=ADDRESS, max_in_flight=max_in_flight) for key in KEYS],
            [Quota(f"q-{key}", Limits(rpm=6000), "openai") for key in KEYS],
            make_strategy("predictive"),
            rng=Random(name),
            now=world.now,
            unix_offset_s=UNIX,
            book=self.book,
        )

    def send(self, key: str) -> Lease:
        found = self.try_to_send(key)
        assert found is not None
        return found

    def try_to_send(self, key: str) -> Lease | None:
        ask = Ask("m", dialect="openai", excluded=frozenset(KEYS) - {key})
        decision = self.pool.acquire(ask, now=self.world.now)
        return decision.lease if isinstance(decision, Picked) else None

    def send_all(self, key: str) -> list[Lease]:
        """Send as many as may be in flight here."""
        return list(iter(lambda: self.try_to_send(key), None))

    def ask(self, key: str, kind: OutcomeKind = OutcomeKind.OK, hint: Hint | None = None) -> None:
        self.pool.observe(self.send(key), Outcome(kind=kind, status=200, hint=hint), now=self.world.now)

    def answered(self, key: str, organisation: str) -> None:
        self.ask(key, hint=Hint(quota_name=organisation))

    def fail(self, kind: OutcomeKind = DOWN, keys: str = "abc") -> None:
        """Have requests on several keys fail that were all under way at once."""
        for lease in [self.send(key) for key in keys * 2]:
            self.pool.observe(lease, Outcome(kind=kind), now=self.world.now)

    def ledger(self, key: str) -> Ledger:
        found = self.book.state(f"q-{key}")
        assert found is not None
        return next(iter(found.ledgers.values()))

    def learner(self, key: str) -> Identification:
        learner = self.ledger(key).learner
        assert learner is not None
        return learner

    def limit(self, key: str) -> float:
        return self.ledger(key).limits(self.world.now)["rpm"][0]

    def elsewhere(self, key: str) -> int:
        """How many requests on a key other processes have in flight, as last heard."""
        return next(each.elsewhere for each in self.pool.endpoint_states() if each.endpoint.id == key)

    @property
    def outages(self) -> set[str]:
        return {name for name, state in self.pool.view(self.world.now).outages.items() if state != "half_open"}

    @property
    def counted_as(self) -> dict[str, str | None]:
        return {each.id: each.counted_as for each in self.pool.view(self.world.now).quotas}
