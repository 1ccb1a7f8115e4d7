"""Sends a request that its pool cannot serve down the pool's fallback ladder: to other pools, providers and models.

The ladder is of the pool that was asked; those of the pools on it are not followed. On each rung holds what held
before: the token must admit pool and model, tenant's, token's and request's residency narrow the keys, limits and
budgets of the token are drawn on anew, and the deadline stays the one that the request came with. What does not admit
the request, or does not speak its dialect, is passed over. Only on the last rung it waits for capacity as long as the
pool lets it; before that for the next rung's `after_s` at most.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf
from random import Random

from gateway.balancing.fallback import Cause, Ladder, Rung, cause_of_answer, told
from gateway.balancing.outcome import OutcomeKind
from gateway.proxy.call import Call
from gateway.proxy.choice import Choice, judged, serves
from gateway.proxy.faults import RequestFault
from gateway.proxy.inquiry import Inquiry
from gateway.proxy.intake import Intake
from gateway.proxy.runtime import TenantRuntime
from gateway.proxy.spending import Spending
from gateway.upstream.dispatch import Answer, Sender
from gateway.upstream.filtered import was_filtered
from gateway.upstream.preview import PREVIEW_S


class Climb:
    """One request on its way down the ladder of `choice.pool`; `unix` is the time of its arrival in Unix seconds."""

    __slots__ = (
        "_alternatives", "_choice", "_clock", "_deadline", "_inquiry", "_intake", "_ladder", "_rng", "_spending",
        "_tried",
    )  # fmt: skip

    def __init__(
        self,
        tenant: TenantRuntime,
        inquiry: Inquiry,
        intake: Intake,
        choice: Choice,
        *,
        spending: Spending,
        clock: Callable[[], float],
        unix: float,
        rng: Random,
    ) -> None:
        self._inquiry = inquiry
        self._intake = intake
        self._choice = choice
        self._spending = spending
        self._clock = clock
        self._rng = rng
        self._tried: list[Choice] = []
        arrived, wished_s = clock(), inquiry.wishes.deadline_s
        self._deadline = arrived + min(choice.pool.deadlines.total_s, wished_s or inf)
        self._alternatives = alternatives(tenant, inquiry, choice, unix)
        rungs = [
            Rung(each.pool.name, each.model, rung.causes, after_s=rung.after_s) for rung, each in self._alternatives
        ]
        self._ladder = Ladder(rungs, pool=choice.pool.name, model=choice.model)

    async def send(self, upstream: Sender) -> Answer:
        """Return the answer to relay, an error when the ladder has ended there. Raises the last pool's RequestFault."""
        while True:
            call = Call(
                self._inquiry,
                self._intake,
                self._choice,
                clock=self._clock,
                rng=self._rng,
                deadline=self._deadline,
                patience_s=self._ladder.patience_s(Cause.CAPACITY),
                falls_back=self._ladder.patience_s(Cause.OUTAGE) is not None,
            )
            self._note_residency()
            answer: Answer | None = None
            try:
                answer = await call.send(upstream)
            except RequestFault:
                if not self._climb(call.cause, replayable=self._intake.replayable or not call.was_sent):
                    raise
                continue
            looks = self._ladder.patience_s(Cause.CONTENT_POLICY) is not None
            if answer.kind is OutcomeKind.OK and not looks:
                return answer
            try:
                if answer.kind is not OutcomeKind.OK:
                    cause = cause_of_answer(answer.status, await answer.peek())
                else:
                    left_s = max(0.0, self._deadline - self._clock())
                    cause = Cause.CONTENT_POLICY if await was_filtered(answer, min(PREVIEW_S, left_s)) else None
            except BaseException:
                answer.close(aborted=True)
                raise
            if not self._climb(cause, replayable=self._intake.replayable):
                return answer
            answer.close()

    def _note_residency(self) -> None:
        """Note the regions that were allowed in all pools so far; where nothing narrowed one, those that it has."""
        self._tried.append(self._choice)
        if any(each.residency for each in self._tried):
            allowed = (each.residency or each.pool.regions for each in self._tried)
            self._inquiry.record.residency = frozenset[str]().union(*allowed)

    def _climb(self, cause: Cause | None, *, replayable: bool) -> bool:
        """Go to the next rung that serves `cause` and admits the request; False when there is none."""
        record, before = self._inquiry.record, self._choice
        was_released = False
        while place := self._ladder.climb(cause, replayable=replayable, now=self._clock(), deadline=self._deadline):
            choice = next(each for _, each in self._alternatives if (each.pool.name, each.model) == place)
            if not was_released:
                self._spending.release(record)
                was_released = True
            try:
                self._choice = self._spending.admit(choice, self._intake, record)
            except RequestFault:
                continue
            record.pool, record.priced_as = choice.pool, choice.model
            assert cause is not None
            record.told = [(b"x-llm-proxy-fallback", told(*place, cause).encode("ascii"))]
            return True
        if was_released:
            with suppress(RequestFault):
                # What the request has cost is settled on what it had reserved.
                self._spending.admit(before, self._intake, record)
        return False


def alternatives(tenant: TenantRuntime, inquiry: Inquiry, choice: Choice, unix: float) -> list[tuple[Rung, Choice]]:
    """Return the rungs of the chosen pool's ladder that this request may use, each with what is allowed there."""
    found: list[tuple[Rung, Choice]] = []
    asked, real = inquiry.record.model, choice.model
    for rung in choice.pool.rungs:
        pool = tenant.pools.get(rung.pool) if rung.pool is not None else choice.pool
        if pool is None or (not asked and (rung.model or rung.models)):
            continue
        model = rung.model_for(asked, real)
        if model is None:
            continue
        if model == real and asked in pool.settings.model_aliases:
            model = asked
        if not serves(pool, model, inquiry.route.operation.dialect):
            continue
        try:
            allowed = judged(tenant, pool, inquiry.details, wishes=inquiry.wishes, model=model, now=unix)
        except RequestFault:
            continue
        found.append((rung, allowed))
    return found
