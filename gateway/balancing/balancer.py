"""The balancer: one pool's keys, what is known of them, and the choice among them. Pure: no IO, clock or global random.

`acquire` looks the slate up (who may serve this kind of request), lets the strategy choose among those that pass the
filters (tried, breaker, in flight, limits), and reserves. What it hands out comes back through `observe`, exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

from gateway.balancing.book import Holder, QuotaBook
from gateway.balancing.breaker import OpenBreakers
from gateway.balancing.charging import Reservation
from gateway.balancing.decision import Ask, Decision, Lease, Picked, Refusal, Refused, Wait
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.explain import Explanation, explain
from gateway.balancing.fates import bind_fates
from gateway.balancing.hints import Hint
from gateway.balancing.illegal import UnknownLease
from gateway.balancing.last_resort import least_bad
from gateway.balancing.learns import Learns
from gateway.balancing.ledger import Ledger
from gateway.balancing.outage import CommonBreaker, Fate
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.predictor import Learning
from gateway.balancing.promise import within_s
from gateway.balancing.quota import Quota
from gateway.balancing.ready import Candidate, EndpointState, Exclusion, QuotaState, Ready, Trials
from gateway.balancing.semantics import SemanticsOf, semantics_of
from gateway.balancing.slate import PREMIUM_RESERVE, Priced, Slate, SlateKey, build_slate, is_as_large, slate_key
from gateway.balancing.strategy import Strategy
from gateway.balancing.view import BalancerView, view_endpoint, view_quota

MAX_SLATES = 256
RECHECK_S = 1.0
"""When capacity frees at no known moment (a request in flight ends), `Wait` ends after this; `on_freed` is sooner."""


@dataclass(slots=True)
class _OpenLease:
    """What is to be given back; `quota` is the one it was counted on, whatever the key draws on by then."""

    candidate: Candidate
    quota: QuotaState
    reservation: Reservation
    trials: Trials


class Balancer:
    """The state of one pool; single-threaded.

    `on_freed` is called when capacity may have become free (an outcome, a hint, a revival, a reconfiguration), so that
    a queue wakes before `Wait.until`. `unix_offset_s` turns `now` into Unix time (unix = now + offset), for windows
    that end at midnight. Balancers with the same `book` draw on common quotas; whoever drops one calls `close`.
    `priced` gives a key with its prices for a model; `semantics` how a provider counts. `premium_reserve`: the share of
    the premium tier's headroom that is kept for critical requests.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        quotas: Sequence[Quota],
        strategy: Strategy,
        *,
        rng: Random,
        now: float = 0.0,
        unix_offset_s: float = 0.0,
        on_freed: Callable[[], None] | None = None,
        on_trip: Callable[[], None] | None = None,
        book: QuotaBook | None = None,
        priced: Priced | None = None,
        semantics: SemanticsOf = semantics_of,
        premium_reserve: float = PREMIUM_RESERVE,
    ) -> None:
        self._rng = rng
        self._now = now
        self._unix_offset_s = unix_offset_s
        self._on_freed = on_freed
        self._states: dict[str, EndpointState] = {}
        self._open_ones = OpenBreakers(on_trip)
        self._commons: dict[str, CommonBreaker] = {}
        self._quotas: dict[str, QuotaState] = {}
        self._slates: dict[SlateKey, Slate] = {}
        self._open: dict[int, _OpenLease] = {}
        self._next_lease = 1
        self._version = 0
        self._strategy = strategy
        self._learning: Learning | None = None
        self._neighbours: Sequence[Holder] = ()
        self._book = book if book is not None else QuotaBook()
        self._priced = priced
        self._semantics_of = semantics
        self.reconfigure(endpoints, quotas, strategy, premium_reserve=premium_reserve)

    def reconfigure(
        self, endpoints: Sequence[Endpoint], quotas: Sequence[Quota], strategy: Strategy, *,
        premium_reserve: float = PREMIUM_RESERVE,
    ) -> None:  # fmt: skip
        """Take over a changed pool; what is known of keys and quotas that stay is kept by id.

        Leases of removed keys stay open and are observed as usual. A strategy that is passed again keeps its turns.
        """
        configured = {quota.id: quota for quota in quotas}
        for endpoint in endpoints:
            configured.setdefault(endpoint.quota_id, Quota(endpoint.quota_id, provider=endpoint.provider))
        drawn_on = {endpoint.quota_id: configured[endpoint.quota_id] for endpoint in endpoints}
        self._quotas = self._book.hold(self, drawn_on.values(), self._now)
        kept: dict[str, EndpointState] = {}
        for endpoint in endpoints:
            known = self._states.get(endpoint.id)
            quota_state = self._book.counted(endpoint.quota_id)
            if known is None:
                known = EndpointState(endpoint, quota_state, Fate(CommonBreaker(), None), self._open_ones)
                known.slots = self._book.unshared(endpoint.max_in_flight)
            else:
                if known.endpoint.max_in_flight != endpoint.max_in_flight:
                    known.slots = self._book.unshared(endpoint.max_in_flight)
                known.endpoint = endpoint
                known.quota = quota_state
            kept[endpoint.id] = known
        self._states, self._strategy, self._premium_reserve = kept, strategy, premium_reserve
        self._commons = bind_fates(self._states.values(), self._commons)
        had, self._learning = self._learning, strategy.learning if isinstance(strategy, Learns) else None
        if had is not None and self._learning is None:
            for quota in self._quotas.values():
                for ledger in quota.ledgers.values():
                    ledger.learn_limiter(None, self._now)
            # Pools that go on learning on these quotas turn it on again as they build their slates.
            self._book.ledger_dropped()
        self._slates.clear()
        self._freed()

    def acquire(self, ask: Ask, *, now: float) -> Decision:
        """Choose a key and reserve on it; or say until when to wait, or why waiting is useless."""
        self._now = now if now > self._now else self._now
        if not self._states:
            return Refused(Refusal.NO_ENDPOINTS)
        slate = self._slate(ask)
        if isinstance(slate, Refusal):
            return Refused(slate)
        critical = ask.priority <= 0
        if not ask.excluded and (full := slate.full.get(critical)) is not None:
            version, refused, wait = full
            if version == self._version and now < wait.until and is_as_large(ask, refused):
                return wait
        looked: list[Ready] = []
        for level, floor in slate.levels(critical=critical):
            ready = Ready(level, ask, now, floor)
            chosen = self._strategy.choose(ready, self._rng)
            if chosen is not None:
                return Picked(self._lease(chosen, ask, now), self._strategy.name)
            looked.append(ready)
        return self._none_ready(slate, looked, ask, now)

    def within_s(self, ask: Ask, ahead: int, now: float) -> float:
        """Give the seconds within which `ahead` requests like `ask`, and it, can be sent; inf where nothing tells."""
        slate = self._slate(ask) if self._states else Refusal.NO_ENDPOINTS
        if isinstance(slate, Refusal):
            return inf
        levels = slate.levels(critical=ask.priority <= 0)
        candidates = (candidate for level, _ in levels for candidate in level.candidates)
        return within_s(candidates, ask, ahead, now, self._semantics_of)

    def spare(self, ask: Ask, *, now: float, headroom: float) -> Lease | None:
        """Lease a healthy key that keeps more than `headroom` (0..1) of its limits free; None when there is none."""
        self._now = max(self._now, now)
        slate = self._slate(ask) if self._states else Refusal.NO_ENDPOINTS
        if isinstance(slate, Refusal):
            return None
        for level, floor in slate.levels(critical=ask.priority <= 0):
            chosen = self._strategy.choose(Ready(level, ask, now, max(floor, headroom)), self._rng)
            if chosen is not None:
                healthy = not (chosen.state.breaker.tripped or chosen.state.common.tripped)
                return self._lease(chosen, ask, now) if healthy else None
        return None

    def _slate(self, ask: Ask) -> Slate | Refusal:
        key = slate_key(ask)
        slate = self._slates.get(key)
        if slate is None:
            states, reserve = self._states.values(), self._premium_reserve
            built = build_slate(states, ask, self._ledger, self._rng, self._priced, reserve=reserve)
            if isinstance(built, Refusal):
                return built
            while len(self._slates) >= MAX_SLATES:
                del self._slates[next(iter(self._slates))]
            slate = self._slates[key] = built
        return slate

    def _ledger(self, state: EndpointState, model: str) -> Ledger:
        quota = state.quota
        semantics = self._semantics_of(quota.quota.provider or state.endpoint.provider)
        return self._book.account(quota, model, semantics, self._learning, self._now, unix_offset_s=self._unix_offset_s)

    def _lease(self, candidate: Candidate, ask: Ask, now: float, *, probe: bool = False) -> Lease:
        state, ledger = candidate.state, candidate.ledger
        trials = state.begin_trials(now) if state.breaker.tripped or state.common.tripped else None
        reservation = ledger.reserve(ask.est_input_tokens, ledger.output_of(ask), now, probe=probe)
        state.in_flight += 1
        state.picks += 1
        state.quota.in_flight += 1
        ledger.concurrency.in_flight += 1
        lease = Lease(self._next_lease, state.endpoint, ask.est_input_tokens, ask.est_output_tokens, now, probe)
        self._next_lease += 1
        self._open[lease.id] = _OpenLease(candidate, state.quota, reservation, trials)
        return lease

    def _none_ready(self, slate: Slate, looked: Iterable[Ready], ask: Ask, now: float) -> Decision:
        until, why = inf, Exclusion.TRIED
        seen: set[Exclusion] = set()
        broken: list[Candidate] = []
        limited: list[Candidate] = []
        for ready in looked:
            ready.explore()
            for index, (exclusion, at) in ready.blocked.items():
                seen.add(exclusion)
                if exclusion in (Exclusion.BREAKER, Exclusion.OUTAGE):
                    broken.append(ready.candidates[index])
                elif exclusion is Exclusion.LIMITED and self._learning is not None:
                    limited.append(ready.candidates[index])
                if exclusion in (Exclusion.TRIED, Exclusion.EJECTED, Exclusion.TOO_LARGE):
                    continue
                free_at = at if at < inf else now + RECHECK_S
                if free_at < until:
                    until, why = free_at, exclusion
        if broken and seen <= {Exclusion.BREAKER, Exclusion.OUTAGE, Exclusion.EJECTED}:
            if ask.falls_back:
                # The trials that are due were let through above: no other request need find out again.
                return Refused(Refusal.EXHAUSTED)
            chosen, room_at, lack = least_bad(broken, ask, now)
            if chosen is not None:
                return Picked(self._lease(chosen, ask, now), "all_breakers_open")
            if lack is not None and (free_at := room_at if room_at < inf else now + RECHECK_S) < until:
                until, why = free_at, lack
        for candidate in limited:
            if candidate.ledger.may_probe(ask.est_input_tokens, candidate.ledger.output_of(ask), now):
                return Picked(self._lease(candidate, ask, now, probe=True), "probe")
        if until < inf:
            wait = Wait(until, str(why))
            if not ask.excluded:
                slate.full[ask.priority <= 0] = (self._version, ask, wait)
            return wait
        return Refused(Refusal.TOO_LARGE if seen == {Exclusion.TOO_LARGE} else Refusal.EXHAUSTED)

    def learn(self, lease: Lease, hint: Hint, *, now: float) -> None:
        """Take in a response head's limits at once, before the body has ended."""
        self._now = now if now > self._now else self._now
        opened = self._open.get(lease.id)
        if opened is None:
            raise UnknownLease(f"lease {lease.id} is not open")
        if opened.reservation.proof:
            opened.candidate.ledger.admitted(opened.reservation, now)
        self._take_hint(opened, hint, now)
        self._freed()

    def _take_hint(self, opened: _OpenLease, hint: Hint, now: float) -> None:
        opened.candidate.ledger.learn(opened.reservation, hint, now)
        if hint.quota_name is not None:
            endpoint = opened.candidate.endpoint
            self._book.note(endpoint.quota_id, endpoint.provider, hint.quota_name, now + self._unix_offset_s)

    def endpoint_states(self) -> Iterable[EndpointState]:
        """Give what is known of each key; the book asks."""
        return self._states.values()

    def commons(self) -> Mapping[str, CommonBreaker]:
        """Give the breakers that several keys have in common; the book asks."""
        return self._commons

    def forget_slates(self) -> None:
        """Look candidates up anew; the book calls it when ledgers were dropped."""
        self._slates.clear()

    def redraw(self, quota_id: str) -> None:
        """Have the keys of `quota_id` draw on what stands for it now; the book calls it."""
        quota = self._book.counted(quota_id)
        for state in self._states.values():
            if state.endpoint.quota_id == quota_id:
                state.quota = quota
        for opened in self._open.values():
            if opened.candidate.endpoint.quota_id == quota_id:
                opened.quota.in_flight -= 1
                quota.in_flight += 1
                opened.quota = quota
        self._commons = bind_fates(self._states.values(), self._commons)
        # Slates hold the ledgers of the quotas as they were.
        self._slates.clear()

    def observe(self, lease: Lease, outcome: Outcome, *, now: float) -> None:
        """Give a lease back with what became of it; raises `UnknownLease` the second time."""
        self._now = now if now > self._now else self._now
        opened = self._open.pop(lease.id, None)
        if opened is None:
            raise UnknownLease(f"lease {lease.id} is not open")
        candidate, kind = opened.candidate, outcome.kind
        state, ledger = candidate.state, candidate.ledger
        state.in_flight -= 1
        opened.quota.in_flight -= 1
        state.outcomes[kind] = state.outcomes.get(kind, 0) + 1
        if outcome.hint is not None:
            self._take_hint(opened, outcome.hint, now)
        ledger.settle(opened.reservation, outcome, now)
        running = ledger.concurrency
        running.in_flight -= 1
        if running.slots is not None:
            running.ended(now)
        if kind is OutcomeKind.OK and opened.trials is None:
            state.breaker.worked(now)
            state.common.worked(lease.started_at, now)
        else:
            state.end_trials(kind, opened.trials, lease.started_at, now, self._rng)
        if kind is OutcomeKind.OK and outcome.first_byte_s is not None:
            state.latency.add(outcome.first_byte_s, now)
        elif kind is OutcomeKind.TIMEOUT:
            state.latency.add(outcome.total_s, now)
        elif kind is OutcomeKind.ABANDONED and outcome.first_byte_s is None:
            known_s = state.latency.read(now)
            # Nobody knows how long it would have taken, but it took this long.
            if known_s is not None and outcome.total_s > known_s:
                state.latency.add(outcome.total_s, now)
        self._freed()

    def _freed(self) -> None:
        self.woken()
        for other in self._neighbours:
            other.woken()

    def meet(self, neighbours: Sequence[Holder]) -> None:
        """Take in who else draws on these quotas; the book calls it."""
        self._neighbours = neighbours

    def woken(self) -> None:
        """Take in that capacity may have become free, here or in another pool on the same quotas."""
        self._version += 1
        if self._on_freed is not None:
            self._on_freed()

    def close(self) -> None:
        """Let go of the quotas: the pool is gone. Open leases are still given back with `observe`."""
        self._book.release(self)

    def revive(self, endpoint_id: str) -> None:
        """An active health check succeeded: the key is used again at once. Unknown ids are ignored."""
        if (state := self._states.get(endpoint_id)) is not None:
            state.breaker.revive()
            state.common.revive()
            self._freed()

    def checked(self, endpoint_id: str, kind: OutcomeKind, *, now: float) -> None:
        """Take in what an active health check of a key that is in service found. Unknown ids are ignored."""
        if (state := self._states.get(endpoint_id)) is not None:
            state.end_trials(kind, None, now, now, self._rng)

    def out_of_service(self) -> list[str]:
        """Give the ids of keys whose breaker is not closed, for an active health check to probe."""
        return self._open_ones.among((endpoint_id, state.breaker) for endpoint_id, state in self._states.items())

    def explain(self, ask: Ask, now: float) -> Explanation:
        """Say what `acquire` would find for `ask`, without taking anything."""
        if not self._states:
            return Explanation(self._strategy.name, Refusal.NO_ENDPOINTS, ())
        return explain(self._slate(ask), self._strategy, ask, now)

    @property
    def strategy(self) -> Strategy:
        """The strategy in use."""
        return self._strategy

    @property
    def in_flight(self) -> int:
        """Leases given out and not yet observed."""
        return len(self._open)

    def in_flight_on(self, endpoint_ids: Collection[str]) -> Counter[str]:
        """Count the open leases of some keys, those that are gone from the pool included."""
        on = (opened.candidate.endpoint.id for opened in self._open.values())
        return Counter(endpoint_id for endpoint_id in on if endpoint_id in endpoint_ids)

    def view(self, now: float) -> BalancerView:
        """Give what is known, without changing it."""
        return BalancerView(
            self._strategy.name,
            len(self._open),
            tuple(view_endpoint(state, now) for state in self._states.values()),
            tuple(view_quota(quota_id, quota, self._book.shared, now) for quota_id, quota in self._quotas.items()),
            {name: str(common.state(now)) for name, common in self._commons.items() if common.tripped},
        )
