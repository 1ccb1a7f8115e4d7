"""The attempt state machine: everything about retry and failover of one caller's request, without any IO.

A driver calls `start`, does what the returned step says, reports what happened as an event, and so on until `Done` or
`Fail`; `steps` has the table of both.

Rules. Client errors are never retried. Nothing is retried past the deadline, above `RetryPolicy.max_attempts`, or when
the request's body cannot be sent again (a connect failure sent none of it). Cheap failures (429, 401, connect) move to
a *different* key without charge; those that cost the provider work (5xx, timeout) and every return to the same key draw
on the `RetryBudget`, except after a 429 whose refill was waited for. A response given to `Pause` or `Send` is not
needed any more: the driver closes it. A request is hedged (`balancing.hedging`) once at most. An answer that rejects
the pool's own key is never relayed: it is not the caller's mistake, and such answers quote parts of the key.

Invariant: each lease is observed exactly once, whatever the driver reports.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from math import inf
from random import Random
from typing import Literal

from gateway.balancing.decision import Ask, Lease, Picked, Refusal, Refused, Wait
from gateway.balancing.hedging import Hedge
from gateway.balancing.hints import NO_HINT
from gateway.balancing.illegal import IllegalEvent
from gateway.balancing.leasing import Leasing
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.retry import CHEAP, RETRYABLE, RetryBudget, RetryPolicy
from gateway.balancing.steps import (
    BACKOFF,
    Answered,
    Attempt,
    Await,
    Broke,
    CallerGone,
    Committed,
    Done,
    ErrorInStream,
    Event,
    Fail,
    Failure,
    Finished,
    NotParked,
    Overdue,
    Pause,
    Relay,
    Send,
    Step,
    Woke,
    cause_of,
)


class _State(Enum):
    NEW = "new"
    SENT = "sent"
    HEDGED = "hedged"
    ANSWERED = "answered"
    COMMITTED = "committed"
    RELAYING = "relaying"
    PAUSED = "paused"
    OVER = "over"


_DONE = Done()


class Exchange:
    """One caller's request; see the table of `steps`. `attempts` and `current` may be read at any time.

    What only some requests need stands here with what it is in all others.
    """

    current: Lease | None = None
    paused_s: float = 0.0
    _attempt: Attempt | None = None
    _open: Lease | None = None
    _hint_learned = False
    _rival: tuple[Lease, Attempt] | None = None
    _avoided: frozenset[str] = frozenset()
    """Keys that failed; those that are out for this request for good are excluded from what is asked."""
    _patience_until: float = inf
    _pause_began = _pause_until = 0.0
    _lacks_capacity = False
    _state = _State.NEW

    def __init__(
        self,
        balancer: Leasing,
        ask: Ask,
        policy: RetryPolicy,
        budget: RetryBudget,
        *,
        rng: Random,
        replayable: bool = True,
        hedge: Hedge | None = None,
    ) -> None:
        self.attempts: list[Attempt] = []
        self._balancer = balancer
        self._ask = ask
        self._policy = policy
        self._budget = budget
        self._rng = rng
        self._replayable = replayable
        self._hedge = hedge if replayable else None

    @property
    def is_over(self) -> bool:
        """Tell whether the machine has come to its end."""
        return self._state is _State.OVER

    @property
    def hedges(self) -> bool:
        """Tell whether an attempt may yet be overdue."""
        return self._hedge is not None

    @property
    def overdue_at(self) -> float | None:
        """Give when `Overdue` is to be reported, should the attempt have no answer by then; None: never."""
        hedge, attempt = self._hedge, self._attempt
        if hedge is None or attempt is None or self._state is not _State.SENT:
            return None
        return attempt.started_at + hedge.delay_s

    def start(self, now: float) -> Step:
        """Make the first decision."""
        if self._state is not _State.NEW:
            raise IllegalEvent("start was called twice")
        self._budget.deposit(now)
        patience_until, deadline = now + self._policy.max_pause_s, self._ask.deadline
        self._patience_until = patience_until if patience_until < deadline else deadline
        return self._begin(now)

    def step(self, event: Event, now: float) -> Step:
        """Take in what happened and say what to do next."""
        # What happens when all goes well is told by its type: matching would cost more than all there is to do.
        if isinstance(event, Answered) and self._state is _State.SENT:
            return self._on_answer(event, now)
        return self._seldom(event, now)

    def commit(self) -> None:
        """Do what `step` does with `Committed`, whenever it is, without a step that nobody needs."""
        if self._state is _State.ANSWERED:
            self._state = _State.COMMITTED
        else:
            self.step(Committed(), 0.0)

    def finish(self, outcome: Outcome, now: float) -> None:
        """Do what `step` does with `Finished`, as `commit`."""
        if self._state is _State.COMMITTED or self._state is _State.ANSWERED:
            self._observe(outcome, now)
            self._state = _State.OVER
        else:
            self.step(Finished(outcome), now)

    def _seldom(self, event: Event, now: float) -> Step:
        match self._state, event:
            case _State.ANSWERED, Committed():
                self._state = _State.COMMITTED
                return Relay(self._leased())
            case ((_State.COMMITTED | _State.ANSWERED), Finished(outcome)):
                self._observe(outcome, now)
                return self._end(_DONE)
            case _, CallerGone(usage):
                return self._abandon(usage, now)
            case ((_State.SENT | _State.ANSWERED), Broke(kind, body_sent)):
                sent = kind is not OutcomeKind.CONNECT_FAILED if body_sent is None else body_sent
                return self._on_failure(Outcome(kind), now, body_sent=sent, has_answer=False)
            case _State.ANSWERED, ErrorInStream(kind):
                outcome = Outcome(kind, self._current_attempt().status)
                return self._on_failure(outcome, now, body_sent=True, has_answer=True)
            case _State.SENT, Overdue():
                return self._on_overdue(now)
            case _State.HEDGED, (Answered() | Broke()):
                return self._on_race(event, now)
            case _State.RELAYING, Committed():
                return Relay(self._leased())
            case _State.COMMITTED, (Broke(kind) | ErrorInStream(kind)):
                self._observe(Outcome(kind, self._current_attempt().status), now)
                return self._fail(kind)
            case (_State.RELAYING, (Finished() | Broke())) | (_State.OVER, Finished()):
                return self._end(_DONE)
            case _State.PAUSED, Woke():
                self.paused_s += max(0.0, now - self._pause_began)
                if now >= self._ask.deadline and self._lacks_capacity:
                    return self._refuse_wait(None, now)
                return self._begin(now)
            case _State.PAUSED, NotParked():
                return self._refuse_wait(self._pause_until, now)
            case _:
                raise IllegalEvent(f"{type(event).__name__} while {self._state.value}")

    def _begin(self, now: float) -> Step:
        if now >= self._ask.deadline:
            return self._fail("deadline")
        decision = self._balancer.acquire(self._ask, now=now)
        if isinstance(decision, Picked):
            return self._send(decision.lease, now)
        if isinstance(decision, Wait):
            return self._pause(decision.until, decision.reason, now) or self._refuse_wait(decision.until, now)
        last = self.attempts[-1].kind if self.attempts else None
        return self._fail(cause_of(self.attempts, last) if last else decision.reason)

    def _on_answer(self, event: Answered, now: float) -> Step:
        attempt = self._current_attempt()
        attempt.status, attempt.first_byte_s = event.status, event.first_byte_s
        if event.kind is OutcomeKind.OK:
            lease = self._leased()
            if event.hint is not None or lease.probe:
                self._balancer.learn(lease, event.hint or NO_HINT, now=now)
                self._hint_learned = True
            self._state = _State.ANSWERED
            return Relay(lease)
        outcome = Outcome(event.kind, event.status, event.first_byte_s, hint=event.hint)
        return self._on_failure(outcome, now, body_sent=True, has_answer=True)

    def _on_overdue(self, now: float) -> Step:
        hedge, self._hedge = self._hedge, None
        allowed = len(self.attempts) < self._policy.attempts_allowed and now < self._ask.deadline
        if hedge is None or not allowed or not hedge.budget.affords(now):
            return Await()
        first, attempt = self._leased(), self._current_attempt()
        second = self._balancer.spare(self._elsewhere(first.endpoint.id), now=now, headroom=hedge.headroom)
        if second is None:
            return Await()
        hedge.budget.withdraw(now)
        step = self._send(second, now)
        self._rival = first, attempt
        self._current_attempt().hedge = True
        self._state = _State.HEDGED
        return step

    def _on_race(self, event: Answered | Broke, now: float) -> Step:
        if event.lease is not self._open:
            if self._rival is None or event.lease is not self._rival[0]:
                raise IllegalEvent("two attempts are under way: the event must say whose it is")
            self._turn_to_rival()
        self._state = _State.SENT
        if isinstance(event, Answered) and event.kind not in RETRYABLE:
            self._give_up_rival(now, lost=True)
            return self._on_answer(event, now)
        self._bar(event.kind)
        outcome = Outcome(event.kind)
        if isinstance(event, Answered):
            outcome = Outcome(event.kind, event.status, event.first_byte_s, hint=event.hint)
        self._observe(outcome, now)
        self._turn_to_rival()
        self._rival = None
        return Await()

    def _turn_to_rival(self) -> None:
        if self._rival is None:
            raise IllegalEvent("there is no second attempt")
        mine = self._leased(), self._current_attempt()
        (self._open, self._attempt), self._rival = self._rival, mine
        self.current = self._open

    def _give_up_rival(self, now: float, *, lost: bool) -> None:
        if self._rival is not None:
            self._turn_to_rival()
            self._current_attempt().lost = lost
            self._observe(Outcome(OutcomeKind.ABANDONED), now)
            self._turn_to_rival()
            self._rival, self._open = None, self.current

    def _bar(self, kind: OutcomeKind) -> None:
        """Remember that the current attempt's key failed."""
        failed = self._leased().endpoint.id
        if kind is OutcomeKind.AUTH_REJECTED:
            self._ask = replace(self._ask, excluded=self._ask.excluded | {failed})
        else:
            self._avoided |= {failed}

    def _on_failure(self, outcome: Outcome, now: float, *, body_sent: bool, has_answer: bool) -> Step:
        self._observe(outcome, now)
        retry = self._retry(outcome.kind, now) if self._may_retry(outcome.kind, now, body_sent=body_sent) else None
        if retry is not None:
            return retry
        if has_answer and outcome.kind is not OutcomeKind.AUTH_REJECTED:
            self._state = _State.RELAYING
            return Relay(self._leased())
        in_time = outcome.kind is not OutcomeKind.ABANDONED and now < self._ask.deadline
        return self._fail(cause_of(self.attempts, outcome.kind) if in_time else "deadline")

    def _may_retry(self, kind: OutcomeKind, now: float, *, body_sent: bool) -> bool:
        return (
            kind in RETRYABLE
            and len(self.attempts) < self._policy.attempts_allowed
            and now < self._ask.deadline
            and (self._replayable or not body_sent)
        )

    def _retry(self, kind: OutcomeKind, now: float) -> Step | None:
        self._bar(kind)
        cheap = kind in CHEAP
        if not cheap and not self._budget.affords(now):
            return None
        decision = self._balancer.acquire(self._elsewhere(), now=now)
        if isinstance(decision, Picked):
            if not cheap:
                self._budget.withdraw(now)
            return self._send(decision.lease, now)
        return self._retry_later(kind, decision, now)

    def _retry_later(self, kind: OutcomeKind, elsewhere: Wait | Refused, now: float) -> Step | None:
        """No other key is ready: wait for one, or for a key this request has failed on already."""
        if kind is OutcomeKind.RATE_LIMITED:
            match self._balancer.acquire(self._ask, now=now):
                case Picked(lease):
                    # The provider asked for no delay at all: going straight back is paid for like any other retry.
                    if self._budget.withdraw(now):
                        return self._send(lease, now)
                    self._balancer.observe(lease, Outcome(OutcomeKind.ABANDONED), now=now)
                    return None
                case Wait(until, reason):
                    return self._pause(until, reason, now)
                case Refused():
                    return None
        if not self._avoided:
            # Rejected, and every other key is full: it waits for those as any request does, free of charge.
            if isinstance(elsewhere, Wait):
                return self._pause(elsewhere.until, elsewhere.reason, now) or self._refuse_wait(elsewhere.until, now)
            return None
        retry_at = now + self._policy.backoff_s(len(self.attempts), self._rng)
        if isinstance(elsewhere, Wait):
            retry_at = min(retry_at, elsewhere.until)
        if retry_at > self._patience_until or not self._budget.withdraw(now):
            return None
        return self._pause(retry_at, BACKOFF, now)

    def _elsewhere(self, *others: str) -> Ask:
        """Give what to ask for a key other than those that failed, and `others`."""
        return replace(self._ask, excluded=self._ask.excluded.union(self._avoided, others))

    def _send(self, lease: Lease, now: float) -> Step:
        self._open = self.current = lease
        self._hint_learned = False
        self._state = _State.SENT
        self._attempt = attempt = Attempt(lease.endpoint.id, now)
        self.attempts.append(attempt)
        return Send(lease)

    def _pause(self, until: float, reason: str, now: float) -> Step | None:
        if until > self._patience_until:
            return None
        self._state = _State.PAUSED
        self._pause_until, self._pause_began, self._lacks_capacity = until, now, reason != BACKOFF
        return Pause(until, reason)

    def _refuse_wait(self, until: float | None, now: float) -> Step:
        last = self.attempts[-1] if self.attempts else None
        retry_after_s = None if until is None else max(0.0, until - now)
        return self._end(Fail(Failure(OutcomeKind.RATE_LIMITED, None, retry_after_s, last)))

    def _abandon(self, usage: TokenUsage | None, now: float) -> Step:
        self._give_up_rival(now, lost=False)
        if self._open is not None:
            attempt = self._current_attempt()
            self._observe(Outcome(OutcomeKind.ABANDONED, attempt.status, attempt.first_byte_s, usage=usage), now)
        return self._end(_DONE)

    def _observe(self, outcome: Outcome, now: float) -> None:
        lease, self._open = self._open, None
        if lease is None:
            raise IllegalEvent("the lease was observed already")
        attempt = self._current_attempt()
        attempt.kind = outcome.kind
        if outcome.total_s and outcome.status is not None and outcome.first_byte_s is not None and outcome.hint is None:
            attempt.total_s = outcome.total_s
        else:
            attempt.total_s = outcome.total_s or max(0.0, now - lease.started_at)
            outcome = Outcome(
                outcome.kind,
                attempt.status if outcome.status is None else outcome.status,
                attempt.first_byte_s if outcome.first_byte_s is None else outcome.first_byte_s,
                attempt.total_s,
                outcome.usage,
                None if self._hint_learned else outcome.hint,
            )
        self._balancer.observe(lease, outcome, now=now)

    def _current_attempt(self) -> Attempt:
        assert self._attempt is not None
        return self._attempt

    def _leased(self) -> Lease:
        if self.current is None:
            raise IllegalEvent("no attempt was sent")
        return self.current

    def _fail(self, kind: OutcomeKind | Refusal | Literal["deadline"]) -> Step:
        last = self.attempts[-1] if self.attempts else None
        return self._end(Fail(Failure(kind, last.status if last else None, None, last)))

    def _end(self, step: Step) -> Step:
        self._state = _State.OVER
        return step
