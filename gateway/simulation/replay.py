"""A trace in virtual time: the gateway's own balancer and exchange against the providers' limit models.

Events sit in one heap; nothing sleeps. Requests that find every key full wait in the gateway's own queue: of each model
only whose turn it is tries, when its pause ends or when something came free.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from random import Random

from gateway.balancing.admission import Admission, Ticket, TurnedAway
from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Ask
from gateway.balancing.endpoint import Endpoint
from gateway.balancing.exchange import Exchange
from gateway.balancing.leasing import Leasing
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.quota import Limits, Quota
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.rightsizing import RightSizer, reserved_by
from gateway.balancing.steps import Answered, Done, Event, Fail, Finished, NotParked, Pause, Relay, Send, Step, Woke
from gateway.simulation.contenders import ORACLE, Contender, contender
from gateway.simulation.demand import Demand
from gateway.simulation.oracle import Oracle
from gateway.simulation.scenario import Scenario
from gateway.simulation.tally import Result, Tally
from gateway.simulation.world import START_UNIX, Refused, Taken, World

MAX_WAITING = 1_000
_ANSWERED, _ENDED, _WAKE = range(3)
_PROGRESS_EVERY = 2_000


@dataclass(slots=True)
class _Request:
    """One request under way."""

    demand: Demand
    exchange: Exchange
    key: str = ""
    answer: Taken | Refused | None = None
    started: bool = False
    ticket: Ticket | None = None
    sized: bool = False
    truncated: bool = False


@dataclass(slots=True)
class _Line:
    """Those who wait for one model: how many, and when the next is to be woken."""

    waiting: int = 0
    wake_at: float = math.inf


class _AllBut(Container[str]):
    """Every line but one."""

    def __init__(self, line: str) -> None:
        self._line = line

    def __contains__(self, line: object) -> bool:
        return line != self._line


def replay(
    demands: Sequence[Demand],
    scenario: Scenario,
    strategy: str | Contender,
    *,
    seed: int = 0,
    max_waiting: int = MAX_WAITING,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Run one strategy, baseline or `ORACLE` over the whole demand and return what became of it.

    The same arguments give the same result: the world's phases and every draw come from `seed`, the world's alike for
    every strategy. `progress` gets the number of arrivals so far. Raises ValueError for an unknown strategy.
    """
    chosen = strategy if isinstance(strategy, Contender) else None if strategy == ORACLE else contender(strategy)
    return _Replay(demands, scenario, chosen, seed, max_waiting).run(progress)


class _Replay:
    def __init__(
        self, demands: Sequence[Demand], scenario: Scenario, chosen: Contender | None, seed: int, max_waiting: int
    ) -> None:
        self._demands = demands
        tells = chosen is None or chosen.hears
        self._world = World(scenario, Random(seed), tells=tells)  # noqa: S311 - a simulation
        self._rng = Random(seed + 1)  # noqa: S311 - a simulation
        self._rejected_s = scenario.rejected_s
        self._policy = RetryPolicy(max_attempts=scenario.max_attempts, max_pause_s=math.inf)
        self._budget = RetryBudget()
        self._events: list[tuple[float, int, int, _Request | str]] = []
        self._sequence = 0
        self._lines: dict[str, _Line] = {}
        self._queue = Admission(max_waiting=max_waiting, late_lane=chosen is not None and chosen.late_lane)
        self._tickets: dict[int, _Request] = {}
        self._sizer = RightSizer() if chosen is not None and chosen.sizes else None
        self._reserved = reserved_by({key.style for key in scenario.keys})
        self._freed = False
        self._tally = Tally(ORACLE if chosen is None else chosen.name, demands)
        endpoints = [
            Endpoint(
                id=key.name,
                quota_id=key.quota_id,
                provider=key.style,
                region=key.region,
                weight=key.weight,
                tier=key.tier,
                input_price=key.input_price,
                output_price=key.output_price,
            )
            for key in scenario.keys
        ]
        self._oracle: Oracle | None = None
        self._leasing: Leasing
        if chosen is None:
            self._leasing = self._oracle = Oracle(self._world, endpoints)
        else:
            self._leasing = Balancer(
                endpoints,
                _quotas(scenario) if chosen.knows_limits else [],
                chosen.make(),
                rng=self._rng,
                unix_offset_s=START_UNIX,
                on_freed=self._note_freed,
                semantics=chosen.semantics,
            )

    def _note_freed(self) -> None:
        self._freed = True

    def run(self, progress: Callable[[int], None] | None) -> Result:
        """Feed the arrivals in between the events, then let what is under way end."""
        events = self._events
        now = 0.0
        for count, demand in enumerate(self._demands):
            while events and events[0][0] <= demand.at:
                now = self._next_event()
            now = max(now, demand.at)
            self._arrive(demand, now)
            self._wake_heads(now)
            if progress is not None and count % _PROGRESS_EVERY == 0:
                progress(count)
        while events:
            now = self._next_event()
        if progress is not None:
            progress(len(self._demands))
        return self._tally.result(now)

    def _next_event(self) -> float:
        now, _, kind, subject = heapq.heappop(self._events)
        if isinstance(subject, str):
            line = self._lines.get(subject)
            if line is not None and line.wake_at == now:
                self._try_head(subject, now)
        elif kind == _ANSWERED:
            self._on_answer(subject, now)
        else:
            self._on_end(subject, now)
        self._wake_heads(now)
        return now

    def _push(self, at: float, kind: int, subject: _Request | str) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at, self._sequence, kind, subject))

    def _arrive(self, wished: Demand, now: float) -> None:
        demand, sized = wished, None
        if self._sizer is not None and self._reserved is not None:
            sized = self._sizer.suggest(
                wished.tenant, wished.model, wished.max_tokens, self._reserved, structured=False, now=now
            )
        if sized is not None:
            demand = replace(wished, max_tokens=sized, output_tokens=min(wished.output_tokens, sized))
        ask = Ask(
            model=demand.model,
            est_input_tokens=demand.est_input_tokens,
            est_output_tokens=demand.est_output_tokens,
            priority=demand.priority,
            deadline=demand.patience_until,
            output_unset=demand.max_tokens is None,
            affinity=demand.affinity or None,
        )
        exchange = Exchange(self._leasing, ask, self._policy, self._budget, rng=self._rng)
        request = _Request(
            demand, exchange, sized=sized is not None, truncated=demand.output_tokens < wished.output_tokens
        )
        # Where others wait for this model, whoever comes now waits too.
        if demand.model not in self._lines:
            self._try(request, now)
        elif not self._stand(request, now):
            self._tally.turned_away(demand)

    def _try(self, request: _Request, now: float) -> bool:
        """Let a request ask for a key; False: it has to wait (again)."""
        if self._oracle is not None:
            self._oracle.demand = request.demand
        if request.started:
            step = request.exchange.step(Woke(), now)
        else:
            request.started = True
            step = request.exchange.start(now)
        return self._follow(request, step, now)

    def _step(self, request: _Request, event: Event, now: float) -> None:
        if self._oracle is not None:
            self._oracle.demand = request.demand
        self._follow(request, request.exchange.step(event, now), now)

    def _follow(self, request: _Request, step: Step, now: float) -> bool:
        match step:
            case Send(lease):
                self._send(request, lease.endpoint.id, now)
            case Pause(until):
                return self._park(request, until, now)
            case Relay():
                # A final 429 goes to the caller as it is; a good answer goes on until it ends.
                if isinstance(request.answer, Refused):
                    self._tally.failed(request.demand, "rate_limited")
            case Fail(failure):
                self._tally.failed(request.demand, str(failure.kind))
            case Done():
                pass
        return True

    def _send(self, request: _Request, key: str, now: float) -> None:
        request.key = key
        request.answer = answer = self._world.send(key, request.demand, now)
        if isinstance(answer, Taken):
            self._tally.admitted(request.demand, key, now)
            self._push(now + answer.first_byte_s, _ANSWERED, request)
        else:
            self._tally.rejected(key, now)
            self._push(now + self._rejected_s, _ANSWERED, request)

    def _on_answer(self, request: _Request, now: float) -> None:
        answer = request.answer
        if isinstance(answer, Taken):
            self._push(now + answer.total_s - answer.first_byte_s, _ENDED, request)
            event = Answered(200, OutcomeKind.OK, answer.hint, answer.first_byte_s)
        else:
            hint = None if answer is None else answer.hint
            event = Answered(429, OutcomeKind.RATE_LIMITED, hint, self._rejected_s)
        self._step(request, event, now)

    def _on_end(self, request: _Request, now: float) -> None:
        demand, answer = request.demand, request.answer
        if not isinstance(answer, Taken):
            raise RuntimeError("only an admitted request ends")
        usage = self._world.end(request.key, demand, answer, now)
        self._tally.ended(demand, self._world.price(request.key, usage), usage.cached_input, now)
        if self._sizer is not None:
            sized, cut = request.sized, request.truncated
            self._sizer.observe(demand.tenant, demand.model, demand.output_tokens, now, sized=sized, truncated=cut)
            self._tally.truncated += cut
        if self._oracle is not None:
            # What a settlement gives back is room at once.
            self._freed = True
        self._step(request, Finished(Outcome(OutcomeKind.OK, 200, answer.first_byte_s, answer.total_s, usage)), now)

    def _park(self, request: _Request, until: float, now: float) -> bool:
        if request.ticket is None and not self._stand(request, now):
            self._follow(request, request.exchange.step(NotParked(), now), now)
            return True
        model = request.demand.model
        line, at = self._lines[model], max(now, min(until, request.demand.patience_until))
        if at < line.wake_at:
            line.wake_at = at
            self._push(at, _WAKE, model)
        return False

    def _stand(self, request: _Request, now: float) -> bool:
        demand = request.demand
        self._sequence += 1
        ticket = Ticket(
            self._sequence,
            demand.tenant,
            demand.model,
            demand.priority,
            joined_at=now,
            due=demand.deadline_at,
            cost=float(demand.est_input_tokens + demand.est_output_tokens),
        )
        joined = self._queue.join(ticket, now)
        if isinstance(joined, TurnedAway):
            return False
        request.ticket = ticket
        self._tickets[ticket.id] = request
        self._lines.setdefault(demand.model, _Line()).waiting += 1
        self._tally.waiting(len(self._queue))
        if joined.displaced is not None:
            displaced = self._left(joined.displaced)
            if displaced.started:
                displaced.exchange.step(NotParked(), now)
            self._tally.turned_away(displaced.demand)
        return True

    def _left(self, ticket: Ticket) -> _Request:
        """Give whose ticket has left the queue."""
        request = self._tickets.pop(ticket.id)
        request.ticket = None
        line = self._lines[ticket.line]
        line.waiting -= 1
        if not line.waiting:
            del self._lines[ticket.line]
        return request

    def _wake_heads(self, now: float) -> None:
        while self._freed:
            self._freed = False
            for model in list(self._lines):
                self._try_head(model, now)

    def _try_head(self, model: str, now: float) -> None:
        """Let those whose turn it is try, until one has to wait on."""
        if model in self._lines:
            self._lines[model].wake_at = math.inf
        others = _AllBut(model)
        while (ticket := self._queue.next(now, skip=others)) is not None:
            request = self._tickets[ticket.id]
            if not self._try(request, now):
                self._queue.put_back(ticket, now)
                return
            self._queue.served(now)
            self._left(ticket)


def _quotas(scenario: Scenario) -> list[Quota]:
    told: dict[str, Quota] = {}
    for key in scenario.keys:
        limits: Limits = key.limits if key.configured is None else key.configured
        told.setdefault(key.quota_id, Quota(key.quota_id, limits, key.style))
    return list(told.values())
