"""One request on the keys of its pool: prepared, sent, failed over, until one answers or none can."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from math import inf
from random import Random

from gateway.balancing.decision import Ask, Lease, Refusal
from gateway.balancing.exchange import Exchange
from gateway.balancing.explain import Explanation
from gateway.balancing.fallback import Cause, cause_of_failure
from gateway.balancing.hedging import Hedging
from gateway.balancing.outcome import OutcomeKind, TokenUsage, late_kind
from gateway.balancing.steps import BACKOFF, Failure, Pause
from gateway.proxy.choice import Choice
from gateway.proxy.explanation import explanation_header, explanation_of
from gateway.proxy.faults import (
    NoCapacity,
    NoUsableKey,
    RequestFault,
    UnknownModel,
    UpstreamFailed,
    UpstreamSlow,
)
from gateway.proxy.inquiry import Inquiry
from gateway.proxy.intake import Intake
from gateway.proxy.key_target import Face
from gateway.proxy.output_limit import with_output_limit
from gateway.proxy.queue import Place
from gateway.proxy.record import GivenUp
from gateway.proxy.runtime import PoolRuntime
from gateway.proxy.sizing import Sized
from gateway.proxy.upload import Upload
from gateway.upstream.affinity import affinity_of
from gateway.upstream.dispatch import Answer, BeginBy, Prepared, Sender, dispatch
from gateway.upstream.errors import is_unsent
from gateway.upstream.message import UpstreamRequest
from gateway.upstream.providers import DIALECT_ROOTS

logger = logging.getLogger(__name__)

_TICK_S = 0.002
"""Timers of an event loop that counts milliseconds ring up to one early: a deadline is over when they do."""
_REST_S = 5.0
"""How long a caller may take the rest of an answer whose provider has had its time."""

_VERBS = {"GET": b"GET", "POST": b"POST"}
_QUERIES = {"gemini": (b"alt=sse",), "anthropic": (b"beta=true",), "openai": ()}
"""The only query parameters that reach a provider; everything else means nothing to it, or is Azure's api-version."""


class Call:
    """Sends one taken-in request on keys of the chosen pool until one answers, or none can.

    `deadline` (on `clock`) and `patience_s`, the longest wait for capacity, hold in place of the pool's own; where the
    caller named a deadline, the answer begins by then or never. `cause`
    says, once `send` has raised, why the pool could not serve; None: no other pool would help.
    """

    __slots__ = (
        "_answer_by",
        "_ask",
        "_channel",
        "_choice",
        "_clock",
        "_deadlines",
        "_exchange",
        "_explains",
        "_intake",
        "_place",
        "_policy",
        "_record",
        "_route",
        "_tells",
        "_was_reached",
        "cause",
    )

    def __init__(
        self,
        inquiry: Inquiry,
        intake: Intake,
        choice: Choice,
        *,
        clock: Callable[[], float],
        rng: Random,
        deadline: float | None = None,
        patience_s: float | None = None,
        falls_back: bool = False,
    ) -> None:
        self._route = route = inquiry.route
        self._channel = inquiry.channel
        self._intake = intake
        self._choice = choice
        self._record = inquiry.record
        self._clock = clock
        self._place: Place | None = None
        self._was_reached = False
        """Whether a provider had the request when the caller's deadline passed."""
        pool, arrived = choice.pool, clock()
        self.cause: Cause | None = None
        inquiry.record.residency = choice.residency
        self._policy = policy = pool.policy
        if patience_s is not None and patience_s < policy.max_pause_s:
            self._policy = policy = replace(policy, max_pause_s=patience_s)
        self._deadlines = pool.deadlines
        wished_s = inquiry.wishes.deadline_s
        if deadline is None:
            deadline = arrived + pool.deadlines.total_s
            if wished_s is not None:
                deadline = min(deadline, arrived + wished_s)
        elif wished_s is None:
            self._deadlines = replace(pool.deadlines, total_s=min(pool.deadlines.total_s, deadline - arrived))
        self._answer_by = None if wished_s is None else deadline
        share = pool.settings.explain_share
        self._tells = inquiry.explains
        self._explains = inquiry.explains or (share > 0.0 and rng.random() < share)
        sized = None
        if pool.sizing is not None and route.operation.generates and intake.is_sizeable:
            principal = inquiry.record.principal
            requested = None if intake.output_unset else intake.est_output_tokens
            client_id = principal.client_id if principal is not None else ""
            sized = pool.sizing.begin(client_id, choice.model, requested, intake.held)
        inquiry.record.sized = sized
        limit = None if sized is None else sized.limit
        self._ask = Ask(
            model=choice.model,
            dialect=route.operation.dialect,
            est_input_tokens=intake.est_input_tokens,
            est_output_tokens=intake.est_output_tokens if limit is None else limit,
            region=_caller_region(inquiry, choice),
            residency=choice.residency,
            priority=choice.priority,
            deadline=deadline,
            affinity=affinity_of(intake.held) if pool.has_affinity and not intake.is_form else None,
            output_unset=intake.output_unset and limit is None,
            falls_back=falls_back,
        )
        hedge = None
        if pool.hedging is not None and not pool.queue.waiting:
            hedge = pool.hedging.begin(choice.model, arrived)
        self._exchange = Exchange(
            pool.balancer, self._ask, policy, pool.budget, rng=rng, replayable=intake.replayable, hedge=hedge
        )

    @property
    def was_sent(self) -> bool:
        """Tell whether some of the body may have gone to a provider."""
        return bool(self._exchange.attempts)

    async def send(self, upstream: Sender) -> Answer:
        """Return the answer to relay. Raises the RequestFault to answer with, or what the body's source raised."""
        pool, record, attempts = self._choice.pool, self._record, self._exchange.attempts
        queue = pool.queue
        explained, asked_at = None, self._clock()
        answer: Answer | Failure | None = None
        if self._explains:
            explained = pool.balancer.explain(self._ask, asked_at)
        try:
            if queue.waiting and queue.is_waited_for(self._line()) and not await self._stand(None):
                # Others wait for these keys: whoever comes now stands behind those with as much right.
                self.cause = Cause.CAPACITY
                record.outcome = OutcomeKind.RATE_LIMITED.value
                raise self._full(None)
            begin_by = None if self._answer_by is None else BeginBy(self._answer_by + _TICK_S, self._kind_of_late)
            answer = await dispatch(
                self._exchange, self._prepare, upstream, clock=self._clock, park=self._park, begin_by=begin_by
            )
        finally:
            record.attempts += len(attempts)
            if not isinstance(answer, Answer) and attempts and attempts[-1].kind is OutcomeKind.ABANDONED:
                self._left(answer)
            if pool.rungs or len(attempts) > 1 or record.regions is not None:
                self._note_regions()
            if explained is not None:
                self._explain(explained, asked_at)
            if self._place is not None:
                self._place.leave()
        if isinstance(answer, Failure):
            self.cause = cause_of_failure(answer)
            raise self._fault(answer)
        record.first_byte_at = began_at = self._clock()
        self._channel.ends_by = began_at + self._deadlines.total_s + _REST_S
        if pool.hedging is not None:
            self._hedged(pool.hedging, answer)
        sized = record.sized
        if sized is not None and sized.limit is not None:
            was = b"unset" if self._intake.output_unset else b"%d" % self._intake.est_output_tokens
            told = (b"x-llm-proxy-max-tokens", b"%d; was=%b" % (sized.limit, was))
            record.told = [*(record.told or ()), told]
        return answer

    def _left(self, failure: Failure | None) -> None:
        """Note what a caller has spent that left, or waits no more, while a provider worked on it: the prompt."""
        was_sent = self._was_reached if failure is not None else not is_unsent(sys.exception())
        if was_sent and not self._route.operation.counts:
            self._record.usage = TokenUsage(self._ask.est_input_tokens, reported=False)

    def _kind_of_late(self, endpoint_id: str, had_s: float, was_sent: bool) -> OutcomeKind:
        self._was_reached |= was_sent
        states = self._choice.pool.balancer.endpoint_states()
        worked_at = next((each.breaker.worked_at for each in states if each.endpoint.id == endpoint_id), inf)
        return late_kind(had_s, has_answered=worked_at >= self._clock() - had_s)

    def _hedged(self, hedging: Hedging, answer: Answer) -> None:
        """Note how late the answer was, and whose it is."""
        record, attempts, served = self._record, self._exchange.attempts, answer.lease.endpoint.id
        hedging.ended(self._choice.model, attempts, served if answer.kind is OutcomeKind.OK else None)
        if (second := next((each for each in attempts if each.hedge), None)) is not None:
            # The target that was prepared last need not be the one that answered.
            record.target = self._choice.pool.targets.get(served, record.target)
            won = b"won" if second.endpoint_id == served else b"lost"
            record.told = [*(record.told or ()), (b"x-llm-proxy-hedge", won)]
        for attempt in attempts:
            if attempt.lost and (target := self._choice.pool.targets.get(attempt.endpoint_id)) is not None:
                record.given_up = GivenUp(hedging, target.provider, self._choice.model, self._ask.est_input_tokens)

    def _explain(self, explained: Explanation, asked_at: float) -> None:
        pool, record = self._choice.pool, self._record
        document = explanation_of(
            explained,
            self._exchange.attempts,
            pool=pool.name,
            model=self._choice.model,
            targets=pool.targets,
            now=asked_at,
        )
        record.explained = [*(record.explained or ()), document]
        if self._tells:
            record.explanation = explanation_header(document)

    def _note_regions(self) -> None:
        """Note where each attempt went, the abandoned and the failed ones too."""
        record, targets = self._record, self._choice.pool.targets
        gone = [targets.get(each.endpoint_id) for each in self._exchange.attempts]
        record.regions = [*(record.regions or ()), *("-" if each is None else each.region or "-" for each in gone)]

    def _prepare(self, lease: Lease) -> Prepared:
        if self._place is not None:
            self._place.leave(served=True)
            self._place = None
        pool, operation = self._choice.pool, self._route.operation
        target = self._record.target = pool.targets[lease.endpoint.id]
        face = target.faces[operation.dialect]
        model = target.model_map.get(self._choice.model, self._choice.model)
        body = self._intake.body(model)
        sized = self._record.sized
        if sized is not None and sized.limit is not None:
            body = self._limited(body, sized, target.provider)
        return Prepared(
            face.target.origin,
            UpstreamRequest(
                method=_VERBS[operation.method],
                target=self._target(face, model),
                body=body,
                fixed=face.fixed + self._channel.head.lines(face.target.face.defaults, face.beta),
            ),
            face.target.hint_style,
            self._deadlines,
        )

    def _limited(self, body: bytes | Upload, sized: Sized, provider: str) -> bytes | Upload:
        limited = None
        if sized.limit is not None and isinstance(body, bytes):
            limited = with_output_limit(body, self._route.operation.path, provider, sized.limit)
        if limited is None:
            sized.limit = None
            return body
        return limited

    def _target(self, face: Face, model: str) -> bytes:
        operation, query = self._route.operation, self._channel.query
        if not query and not operation.model_in_path:
            known = face.paths.get(operation.path)
            if known is None:
                known = face.paths[operation.path] = face.target.path(
                    f"{DIALECT_ROOTS[operation.dialect]}/{operation.path}"
                )
            return known
        path = f"models/{model}:{operation.path}" if operation.model_in_path else operation.path
        kept = [part for part in query.split(b"&") if part in _QUERIES[operation.dialect]]
        if kept:
            path += "?" + b"&".join(kept).decode()
        return face.target.path(f"{DIALECT_ROOTS[operation.dialect]}/{path}")

    async def _park(self, pause: Pause) -> bool:
        if pause.reason == BACKOFF:
            # Not for want of capacity: standing in line would hold up those whom this failure does not concern.
            await asyncio.sleep(pause.until - self._clock())
            return True
        return await self._stand(pause.until)

    async def _stand(self, until: float | None) -> bool:
        began = self._clock()
        if self._place is None:
            ask, pool = self._ask, self._choice.pool
            principal = self._record.principal
            deadline = min(ask.deadline, began + self._policy.max_pause_s)
            if self._answer_by is not None:
                # Who gets a key at the last moment has its request cut before the provider can answer.
                deadline = min(deadline, self._answer_by - _answers_in_s(pool, self._answer_by - began, began))
            self._place = pool.queue.place(
                self._line(),
                client_id=principal.client_id if principal is not None else "",
                priority=ask.priority,
                deadline=deadline,
                cost=float(max(1, ask.est_input_tokens + ask.est_output_tokens)),
                late_s=pool.settings.late_after_s(ask.priority),
                within_s=lambda ahead: pool.balancer.within_s(ask, ahead, self._clock()),
            )
        try:
            return await self._place.wait(until)
        finally:
            self._record.waited_s += self._clock() - began
            if self._record.queued_behind is None:
                self._record.queued_behind = self._place.ahead

    def _line(self) -> str:
        """Name whom this request competes with: same model and places, and critical or not (for tiers keep a share)."""
        ask = self._ask
        return f"{ask.dialect}\n{ask.model}\n{ask.priority <= 0}\n{','.join(sorted(ask.residency))}"

    def _full(self, retry_after_s: float | None) -> NoCapacity:
        told = self._place.retry_after_s if self._place is not None else None
        if told is not None:
            retry_after_s = max(told, retry_after_s or 0.0)
        return NoCapacity(
            f"Every key of pool {self._choice.pool.name!r} that serves {self._choice.model!r} is at its limit.",
            hint="Slow down and try again later, or add keys or quota to the pool.",
            retry_after_s=1.0 if retry_after_s is None else retry_after_s,
        )

    def _fault(self, failure: Failure) -> RequestFault:
        """Say what the caller is told when no provider's answer can be relayed."""
        pool, model, kind = self._choice.pool.name, self._choice.model, failure.kind
        if kind == "deadline" and not self._exchange.attempts:
            # It stood in line until then.
            kind = OutcomeKind.RATE_LIMITED
        self._record.outcome = str(kind)
        tried = f" after {self._record.attempts} attempts" if self._record.attempts > 1 else ""
        if kind in (Refusal.NO_MODEL, Refusal.RESIDENCY):
            where = " in a region that the token allows" if kind is Refusal.RESIDENCY else ""
            return UnknownModel(
                f"No key of pool {pool!r} serves {model!r}{where}.", hint="GET /v1/models lists the choices."
            )
        if kind is Refusal.TOO_LARGE:
            return RequestFault(
                f"The request needs more tokens than any key of pool {pool!r} may use in a whole minute.",
                hint="Shorten it, lower its maximum of output tokens, or raise the keys' limits.",
            )
        if kind is OutcomeKind.RATE_LIMITED:
            return self._full(failure.retry_after_s)
        if kind in (OutcomeKind.AUTH_REJECTED, Refusal.EXHAUSTED, Refusal.NO_ENDPOINTS):
            return NoUsableKey(
                f"No key of pool {pool!r} that was tried is accepted by its provider at the moment{tried}.",
                hint="The pool's owner should check the keys: the provider rejected them, or they were all tried.",
                retry_after_s=5.0,
            )
        if kind in (OutcomeKind.TIMEOUT, "deadline"):
            return UpstreamSlow(
                f"No provider of pool {pool!r} answered in time{tried}.",
                hint="Try again, or raise the pool's deadlines for slow models.",
            )
        reached = "could not be reached" if kind is OutcomeKind.CONNECT_FAILED else "failed"
        return UpstreamFailed(f"The provider {reached}{tried}.", hint="Try again in a moment.", retry_after_s=1.0)


def _answers_in_s(pool: PoolRuntime, left_s: float, now: float) -> float:
    """Give how long the pool's keys take to begin an answer, at most half of what is left."""
    known = (state.latency.read(now) or 0.0 for state in pool.balancer.endpoint_states())
    return min(max(known, default=0.0), left_s / 2.0)


def _caller_region(inquiry: Inquiry, choice: Choice) -> str | None:
    """Give where the caller is, for strategies that look at distance: as its token, itself, or its address says."""
    detail = choice.allowed.detail
    if detail is not None and detail.caller_region is not None:
        return detail.caller_region
    return inquiry.wishes.region or inquiry.place
