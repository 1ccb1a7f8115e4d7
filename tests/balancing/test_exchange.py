"""Playbooks of the attempt state machine: events in, steps out, for every way in which a request can go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Ask, Decision, Lease, Picked, Refusal
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.exchange import Exchange
from gateway.balancing.hedging import Hedge
from gateway.balancing.hints import NO_HINT, Hint, WindowHint
from gateway.balancing.illegal import IllegalEvent
from gateway.balancing.outcome import Outcome, OutcomeKind, TokenUsage
from gateway.balancing.quota import Limits
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.steps import (
    Answered,
    Broke,
    CallerGone,
    Committed,
    Done,
    ErrorInStream,
    Event,
    Fail,
    Finished,
    NotParked,
    Pause,
    Relay,
    Send,
    Step,
    Woke,
)
from gateway.balancing.strategies.registry import STRATEGY_NAMES
from tests.balancing.pools import ASK, endpoint, pool, serve

K = OutcomeKind
OK = Answered(200, K.OK)
LIMITED = Answered(429, K.RATE_LIMITED, Hint(retry_after_s=5.0))
ERROR = Answered(500, K.SERVER_ERROR)
REJECTED = Answered(401, K.AUTH_REJECTED)
WRONG = Answered(400, K.CLIENT_ERROR)
UNREACHABLE = Broke(K.CONNECT_FAILED)
SLOW = Broke(K.TIMEOUT)
END = Finished(Outcome(K.OK, usage=TokenUsage(100, 20)))


class Ledgered:
    """A balancer that keeps the books of what the exchange does with its leases."""

    def __init__(self, balancer: Balancer) -> None:
        self.inner = balancer
        self.given: Counter[int] = Counter()
        self.returned: Counter[int] = Counter()
        self.outcomes: list[Outcome] = []
        self.learned: list[Hint] = []

    def acquire(self, ask: Ask, *, now: float) -> Decision:
        decision = self.inner.acquire(ask, now=now)
        if hasattr(decision, "lease"):
            self.given[decision.lease.id] += 1
        return decision

    def spare(self, ask: Ask, *, now: float, headroom: float) -> Lease | None:
        lease = self.inner.spare(ask, now=now, headroom=headroom)
        if lease is not None:
            self.given[lease.id] += 1
        return lease

    def observe(self, lease: Lease, outcome: Outcome, *, now: float) -> None:
        self.returned[lease.id] += 1
        self.outcomes.append(outcome)
        self.inner.observe(lease, outcome, now=now)

    def learn(self, lease: Lease, hint: Hint, *, now: float) -> None:
        assert self.returned[lease.id] == 0
        self.learned.append(hint)
        self.inner.learn(lease, hint, now=now)


class Probing(Ledgered):
    """Every lease is a probe."""

    def acquire(self, ask: Ask, *, now: float) -> Decision:
        decision = super().acquire(ask, now=now)
        return Picked(decision.lease._replace(probe=True)) if isinstance(decision, Picked) else decision


def test_a_probes_head_is_told_whatever_it_says() -> None:
    for make, told in ((Ledgered, []), (Probing, [NO_HINT])):
        books = make(pool(endpoint("a"), strategy="round_robin"))
        exchange = Exchange(books, ASK, RetryPolicy(), RetryBudget(), rng=Random(2))
        exchange.start(0.0)
        exchange.step(Answered(200, OutcomeKind.OK), 0.1)
        assert books.learned == told


class Play:
    """One exchange with its books, driven by events at a given moment."""

    def __init__(
        self,
        *endpoints: Endpoint,
        ask: Ask = ASK,
        policy: RetryPolicy | None = None,
        budget: RetryBudget | None = None,
        replayable: bool = True,
        limits: dict[str, Limits] | None = None,
        hedge: Hedge | None = None,
    ) -> None:
        self.leases: list[Lease] = []
        self.books = Ledgered(pool(*endpoints, strategy="round_robin", limits=limits))
        self.budget = budget or RetryBudget()
        self.exchange = Exchange(
            self.books, ask, policy or RetryPolicy(), self.budget, rng=Random(2), replayable=replayable, hedge=hedge
        )
        self.steps: list[Step] = []

    def run(self, *events: Event, now: float = 0.0) -> Step:
        if not self.steps:
            self._note(self.exchange.start(now))
        for event in events:
            self._note(self.exchange.step(event, now))
        return self.steps[-1]

    def _note(self, step: Step) -> None:
        self.steps.append(step)
        if isinstance(step, Send):
            self.leases.append(step.lease)

    @property
    def kinds(self) -> list[str]:
        return [type(step).__name__ for step in self.steps]

    @property
    def served(self) -> list[str]:
        return [attempt.endpoint_id for attempt in self.exchange.attempts]

    def assert_settled(self) -> None:
        assert self.books.given == self.books.returned
        assert self.books.inner.in_flight == 0


TWO = (endpoint("a"), endpoint("b"))
THREE = (*TWO, endpoint("c"))


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([UNREACHABLE, SLOW, REJECTED], K.TIMEOUT),
        ([REJECTED, UNREACHABLE, REJECTED], K.CONNECT_FAILED),
        ([REJECTED, REJECTED, REJECTED], K.AUTH_REJECTED),
        ([REJECTED, REJECTED, UNREACHABLE], K.CONNECT_FAILED),
    ],
)
def test_a_rejected_key_is_the_cause_where_nothing_else_is(events: list[Event], kind: OutcomeKind) -> None:
    last = Play(*THREE, policy=RetryPolicy(max_attempts=3)).run(*events)

    assert isinstance(last, Fail)
    assert last.failure.kind is kind


# name, endpoints, events, the steps that follow (start included), outcomes observed in order
PLAYBOOKS: list[tuple[str, Sequence[Endpoint], list[Event], list[str], list[OutcomeKind]]] = [
    ("an answer", TWO, [OK, END], ["Send", "Relay", "Done"], [K.OK]),
    ("a stream", TWO, [OK, Committed(), END], ["Send", "Relay", "Relay", "Done"], [K.OK]),
    ("429 fails over", TWO, [LIMITED, OK, END], ["Send", "Send", "Relay", "Done"], [K.RATE_LIMITED, K.OK]),
    ("500 fails over", TWO, [ERROR, OK, END], ["Send", "Send", "Relay", "Done"], [K.SERVER_ERROR, K.OK]),
    ("401 fails over", TWO, [REJECTED, OK, END], ["Send", "Send", "Relay", "Done"], [K.AUTH_REJECTED, K.OK]),
    (
        "unreachable fails over",
        TWO,
        [UNREACHABLE, OK, END],
        ["Send", "Send", "Relay", "Done"],
        [K.CONNECT_FAILED, K.OK],
    ),
    ("timeout fails over", TWO, [SLOW, OK, END], ["Send", "Send", "Relay", "Done"], [K.TIMEOUT, K.OK]),
    ("a client error is relayed", TWO, [WRONG, END], ["Send", "Relay", "Done"], [K.CLIENT_ERROR]),
    (
        "an error event before content fails over",
        TWO,
        [OK, ErrorInStream(K.SERVER_ERROR), OK, Committed(), END],
        ["Send", "Relay", "Send", "Relay", "Relay", "Done"],
        [K.SERVER_ERROR, K.OK],
    ),
    (
        "a 429 event before content fails over",
        TWO,
        [OK, ErrorInStream(K.RATE_LIMITED), OK, END],
        ["Send", "Relay", "Send", "Relay", "Done"],
        [K.RATE_LIMITED, K.OK],
    ),
    (
        "a client error event is relayed",
        TWO,
        [OK, ErrorInStream(K.CLIENT_ERROR), END],
        ["Send", "Relay", "Relay", "Done"],
        [K.CLIENT_ERROR],
    ),
    (
        "an answer cut before the commit fails over",
        TWO,
        [OK, Broke(K.SERVER_ERROR), OK, END],
        ["Send", "Relay", "Send", "Relay", "Done"],
        [K.SERVER_ERROR, K.OK],
    ),
    (
        "a stream cut after the commit fails",
        TWO,
        [OK, Committed(), Broke(K.SERVER_ERROR)],
        ["Send", "Relay", "Relay", "Fail"],
        [K.SERVER_ERROR],
    ),
    (
        "429 everywhere: the earliest refill is waited for",
        TWO,
        [LIMITED, Answered(429, K.RATE_LIMITED, Hint(retry_after_s=90.0))],
        ["Send", "Send", "Pause"],
        [K.RATE_LIMITED] * 2,
    ),
    ("a lone key's 429 is waited for", TWO[:1], [LIMITED], ["Send", "Pause"], [K.RATE_LIMITED]),
    (
        "a lone key's long 429 is relayed",
        TWO[:1],
        [Answered(429, K.RATE_LIMITED, Hint(retry_after_s=90.0)), END],
        ["Send", "Relay", "Done"],
        [K.RATE_LIMITED],
    ),
    ("a lone key's 500 backs off", TWO[:1], [ERROR], ["Send", "Pause"], [K.SERVER_ERROR]),
    ("a lone rejected key fails and its answer is kept back", TWO[:1], [REJECTED], ["Send", "Fail"], [K.AUTH_REJECTED]),
    ("all rejected", TWO, [REJECTED, REJECTED], ["Send", "Send", "Fail"], [K.AUTH_REJECTED] * 2),
    ("the caller leaves before the answer", TWO, [CallerGone()], ["Send", "Done"], [K.ABANDONED]),
    (
        "the caller leaves in the stream",
        TWO,
        [OK, Committed(), CallerGone(TokenUsage(1, 2)), CallerGone()],
        ["Send", "Relay", "Relay", "Done", "Done"],
        [K.ABANDONED],
    ),
    ("the caller leaves in a pause", TWO[:1], [LIMITED, CallerGone()], ["Send", "Pause", "Done"], [K.RATE_LIMITED]),
    ("the caller leaves a relayed error", TWO, [WRONG, CallerGone()], ["Send", "Relay", "Done"], [K.CLIENT_ERROR]),
    (
        "a relayed error is cut",
        TWO,
        [WRONG, Committed(), Broke(K.SERVER_ERROR)],
        ["Send", "Relay", "Relay", "Done"],
        [K.CLIENT_ERROR],
    ),
    ("no room to wait", TWO[:1], [LIMITED, NotParked()], ["Send", "Pause", "Fail"], [K.RATE_LIMITED]),
    ("no keys", (), [], ["Fail"], []),
]


@pytest.mark.parametrize(
    ("endpoints", "events", "steps", "outcomes"), [row[1:] for row in PLAYBOOKS], ids=[row[0] for row in PLAYBOOKS]
)
def test_playbook(
    endpoints: Sequence[Endpoint], events: list[Event], steps: list[str], outcomes: list[OutcomeKind]
) -> None:
    play = Play(*endpoints)
    play.run(*events)
    assert play.kinds == steps
    assert [outcome.kind for outcome in play.books.outcomes] == outcomes
    play.assert_settled()


def test_no_keys_says_so() -> None:
    step = Play().run()
    assert isinstance(step, Fail)
    assert step.failure.kind is Refusal.NO_ENDPOINTS


def test_a_pause_ends_where_the_provider_said_and_the_same_key_serves() -> None:
    play = Play(TWO[0])
    pause = play.run(LIMITED, now=1.0)
    assert pause == Pause(6.0, "cooling")
    assert isinstance(play.run(Woke(), now=6.0), Send)
    assert play.exchange.paused_s == 5.0
    play.run(OK, END, now=6.5)
    play.assert_settled()


def test_waking_early_pauses_again() -> None:
    play = Play(TWO[0])
    play.run(LIMITED)
    assert play.run(Woke(), now=2.0) == Pause(5.0, "cooling")


def test_no_room_to_wait_gives_an_honest_retry_after() -> None:
    play = Play(TWO[0])
    play.run(LIMITED, now=1.0)
    step = play.run(NotParked(), now=2.0)
    assert isinstance(step, Fail)
    assert (step.failure.kind, step.failure.status, step.failure.retry_after_s) == (K.RATE_LIMITED, None, 4.0)


def test_a_full_pool_pauses_before_the_first_attempt_and_gives_up_at_once_when_it_is_too_long() -> None:
    limits = {"q-a": Limits(rpm=1)}
    play = Play(TWO[0], limits=limits)
    serve(play.books.inner)
    step = play.run()
    assert isinstance(step, Fail)
    assert step.failure.kind is K.RATE_LIMITED
    assert step.failure.retry_after_s == pytest.approx(60.0, abs=0.1)
    patient = Play(TWO[0], limits=limits, policy=RetryPolicy(max_pause_s=120.0))
    serve(patient.books.inner)
    assert isinstance(patient.run(), Pause)
    assert isinstance(patient.run(Woke(), now=61.0), Send)


def test_a_wait_for_capacity_that_ends_with_the_deadline_is_a_429() -> None:
    play = Play(TWO[0], ask=replace(ASK, deadline=6.0))
    assert isinstance(play.run(LIMITED, now=1.0), Pause)
    step = play.run(Woke(), now=6.0)
    assert isinstance(step, Fail)
    assert (step.failure.kind, step.failure.retry_after_s) == (K.RATE_LIMITED, None)
    failing = Play(TWO[0], ask=replace(ASK, deadline=6.0))
    assert isinstance(failing.run(ERROR), Pause)
    step = failing.run(Woke(), now=6.0)
    assert isinstance(step, Fail)
    assert step.failure.kind == "deadline"


def test_nothing_is_tried_past_the_deadline() -> None:
    hurried = replace(ASK, deadline=2.0)
    play = Play(*TWO, ask=hurried)
    play.run()
    step = play.run(SLOW, now=2.0)
    assert isinstance(step, Fail)
    assert step.failure.kind == "deadline"
    assert step.failure.last_attempt is play.exchange.attempts[0]
    late = Play(*TWO, ask=hurried)
    assert isinstance(late.run(now=2.0), Fail)
    relayed = Play(*TWO, ask=hurried)
    relayed.run()
    assert isinstance(relayed.run(ERROR, now=2.5), Relay)


def test_attempts_are_bounded_and_the_last_answer_is_the_callers() -> None:
    play = Play(*(endpoint(f"k{n}") for n in range(9)), policy=RetryPolicy(max_attempts=3))
    step = play.run(LIMITED, ERROR, LIMITED)
    assert play.kinds == ["Send", "Send", "Send", "Relay"]
    assert isinstance(step, Relay)
    assert step.lease.endpoint.id == play.served[-1]
    assert len(set(play.served)) == 3
    play.run(END)
    play.assert_settled()


def test_failover_off_means_one_attempt() -> None:
    play = Play(*TWO, policy=RetryPolicy(failover=False))
    play.run(LIMITED)
    assert play.kinds == ["Send", "Relay"]


@pytest.mark.parametrize(
    ("event", "step"),
    [
        (UNREACHABLE, "Send"),
        (Broke(K.CONNECT_FAILED, body_sent=True), "Fail"),
        (Broke(K.TIMEOUT, body_sent=False), "Send"),
        (SLOW, "Fail"),
        (LIMITED, "Relay"),
        (ERROR, "Relay"),
        (REJECTED, "Fail"),
    ],
)
def test_a_body_that_cannot_be_replayed_is_sent_once(event: Event, step: str) -> None:
    play = Play(*TWO, replayable=False)
    play.run(event)
    assert play.kinds == ["Send", step]


def spent() -> RetryBudget:
    budget = RetryBudget(0.0, floor_per_s=0.0, burst=1.0)
    assert budget.withdraw(0.0)
    return budget


@pytest.mark.parametrize(
    ("event", "step"),
    [(LIMITED, "Send"), (UNREACHABLE, "Send"), (REJECTED, "Send"), (ERROR, "Relay"), (SLOW, "Fail")],
)
def test_only_cheap_failures_move_on_when_the_budget_is_spent(event: Event, step: str) -> None:
    play = Play(*TWO, budget=spent())
    play.run(event)
    assert play.kinds == ["Send", step]


@pytest.mark.parametrize("event", [ERROR, UNREACHABLE, SLOW])
def test_going_back_to_the_same_key_needs_budget(event: Event) -> None:
    play = Play(TWO[0], budget=spent())
    play.run(event)
    assert play.kinds[-1] in ("Relay", "Fail")
    play.assert_settled()


def test_waiting_for_a_429s_refill_needs_none() -> None:
    play = Play(TWO[0], budget=spent())
    assert isinstance(play.run(LIMITED), Pause)


def test_who_was_rejected_waits_in_line_for_the_other_keys_and_needs_no_budget() -> None:
    play = Play(*TWO, budget=spent(), limits={"q-b": Limits(rpm=2)}, policy=RetryPolicy(max_pause_s=40.0))
    while [serve(play.books.inner) for _ in range(2)] != ["a", "a"]:
        pass
    pause = play.run(REJECTED)
    assert isinstance(pause, Pause)
    assert pause.until == pytest.approx(30.0, abs=0.1)
    assert pause.reason == "limited"
    step = play.run(Woke(), now=31.0)
    assert isinstance(step, Send)
    assert step.lease.endpoint.id == "b"
    play.run(OK, END, now=32.0)
    play.assert_settled()


def test_who_was_rejected_and_would_wait_too_long_for_the_other_keys_is_told_how_long() -> None:
    play = Play(*TWO, limits={"q-b": Limits(rpm=2)}, policy=RetryPolicy(max_pause_s=10.0))
    while [serve(play.books.inner) for _ in range(2)] != ["a", "a"]:
        pass
    step = play.run(REJECTED)
    assert isinstance(step, Fail)
    assert (step.failure.kind, step.failure.status) == (K.RATE_LIMITED, None)
    assert step.failure.retry_after_s == pytest.approx(30.0, abs=0.1)
    play.assert_settled()


def test_hints_are_learned_when_the_head_arrives_and_once() -> None:
    hint = Hint(requests=WindowHint(100, 42))
    play = Play(*TWO)
    play.run(Answered(200, K.OK, hint, 0.3))
    assert play.books.learned == [hint]
    play.run(Finished(Outcome(K.OK, hint=hint)))
    (outcome,) = play.books.outcomes
    assert outcome.hint is None
    assert (outcome.status, outcome.first_byte_s) == (200, 0.3)


def test_attempts_tell_what_happened() -> None:
    play = Play(*TWO)
    play.run(LIMITED)
    play.run(Answered(200, K.OK, None, 0.2), Committed(), END, now=3.0)
    first, second = play.exchange.attempts
    assert (first.kind, first.status) == (K.RATE_LIMITED, 429)
    assert (second.kind, second.status, second.first_byte_s) == (K.OK, 200, 0.2)
    assert first.endpoint_id != second.endpoint_id
    assert second.total_s == 3.0


@pytest.mark.parametrize("event", [OK, Committed(), END, Woke(), NotParked(), ErrorInStream(K.TIMEOUT)])
def test_a_driver_that_reports_nonsense_is_told(event: Event) -> None:
    play = Play(*TWO)
    with pytest.raises(IllegalEvent):
        play.exchange.step(event, 0.0)
    play.run()
    with pytest.raises(IllegalEvent):
        play.exchange.start(0.0)


@pytest.mark.parametrize("strategy", STRATEGY_NAMES)
def test_a_thousand_requests_over_a_limited_a_dead_and_a_good_key_all_succeed(strategy: str) -> None:
    balancer = pool(endpoint("limited", 50), endpoint("dead", 30), endpoint("good", 20), strategy=strategy)
    budget, rng = RetryBudget(), Random(4)
    answers: dict[str, Event] = {
        "limited": Answered(429, K.RATE_LIMITED, Hint(retry_after_s=0.0)),
        "dead": UNREACHABLE,
        "good": OK,
    }
    # Fifty at a time, interleaved: the worst case, as none learns from the others in time.
    open_exchanges: list[tuple[Exchange, Step]] = []
    begun = succeeded = 0
    now = 0.0
    while begun < 1000 or open_exchanges:
        now += 0.01
        while begun < 1000 and len(open_exchanges) < 50:
            exchange = Exchange(balancer, ASK, RetryPolicy(), budget, rng=rng)
            open_exchanges.append((exchange, exchange.start(now)))
            begun += 1
        following: list[tuple[Exchange, Step]] = []
        for exchange, step in open_exchanges:
            match step:
                case Send(lease):
                    following.append((exchange, exchange.step(answers[lease.endpoint.id], now)))
                case Relay():
                    assert exchange.current is not None
                    assert exchange.current.endpoint.id == "good"
                    assert exchange.step(END, now) == Done()
                    succeeded += 1
                case Pause(until):
                    following.append((exchange, exchange.step(Woke(), now) if now >= until else step))
                case _:
                    pytest.fail(f"{step}")
        open_exchanges = following
    assert succeeded == 1000
    assert balancer.in_flight == 0


ANSWERS: list[Event] = [OK, LIMITED, ERROR, REJECTED, WRONG, Answered(429, K.RATE_LIMITED)]
BREAKS: list[Event] = [UNREACHABLE, SLOW, Broke(K.SERVER_ERROR), ErrorInStream(K.SERVER_ERROR), CallerGone()]
EVENTS = st.sampled_from([*ANSWERS, *BREAKS, Committed(), END, Woke(), NotParked()])


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 4),
    events=st.lists(st.tuples(EVENTS, st.floats(0.0, 10.0)), max_size=25),
    policy=st.builds(RetryPolicy, max_attempts=st.integers(0, 6), failover=st.booleans()),
    deadline=st.sampled_from([5.0, 60.0, float("inf")]),
    replayable=st.booleans(),
    rpm=st.sampled_from([None, 1, 3]),
)
def test_whatever_happens_each_lease_is_observed_once(
    *,
    size: int,
    events: list[tuple[Event, float]],
    policy: RetryPolicy,
    deadline: float,
    replayable: bool,
    rpm: int | None,
) -> None:
    keys = [endpoint(f"k{n}") for n in range(size)]
    limits = {f"q-k{n}": Limits(rpm=rpm) for n in range(size)}
    play = Play(*keys, ask=replace(ASK, deadline=deadline), policy=policy, replayable=replayable, limits=limits)
    play.run()
    now, sent_at = 0.0, 0.0
    for event, dt in events:
        if play.exchange.is_over:
            break
        now += dt
        try:
            step = play.exchange.step(event, now)
        except IllegalEvent:
            continue
        if isinstance(step, Send):
            sent_at = now
            assert sent_at < deadline
        if isinstance(step, Pause):
            assert step.until <= deadline
    attempts = len(play.exchange.attempts)
    assert attempts <= policy.attempts_allowed
    play.exchange.step(CallerGone(), now)
    assert play.exchange.is_over
    play.assert_settled()
    assert all(attempt.kind is not None for attempt in play.exchange.attempts)
