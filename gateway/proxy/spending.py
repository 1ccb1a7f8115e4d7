"""Holds requests to the rates and budgets of their token: asked before sending, settled when the request is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import ceil
from typing import Final

from auth.details import Limit
from gateway.balancing.outcome import TokenUsage
from gateway.metering.pricing import PriceTable
from gateway.policy.allowance import Allowances
from gateway.policy.limits import Exceeded, Need, limits_of
from gateway.proxy.choice import Choice
from gateway.proxy.faults import TokenLimitReached
from gateway.proxy.intake import Intake
from gateway.proxy.record import RequestRecord

PATIENCE_S: Final = 1.5
"""How long a request waits for news of the other processes' use before it is refused: some exchanges' time."""

_AGAIN_S: Final = 0.1


class Spending:
    """Draws requests' needs on `allowances`; `unix_clock` gives Unix seconds."""

    def __init__(self, allowances: Allowances, prices: PriceTable, *, unix_clock: Callable[[], float]) -> None:
        self._allowances = allowances
        self._prices = prices
        self._unix_clock = unix_clock

    def admit(self, choice: Choice, intake: Intake, record: RequestRecord) -> Choice:
        """Return the first of the token's alternatives whose limits have room. Raises TokenLimitReached."""
        self.settle(record)
        refusal: Exceeded | None = None
        principal = record.principal
        token_id, tenant_id = (principal.token_id, principal.tenant_id) if principal is not None else ("", None)
        for each in (choice, *choice.others):
            limits = limits_of(each.allowed.detail, token_id)
            if not limits:
                return each
            need = self._need(each, intake, limits)
            found = self._allowances.take(limits, need, now=self._unix_clock(), tenant_id=tenant_id)
            if not isinstance(found, Exceeded):
                record.taken = found
                return each
            refusal = refusal or found
        if refusal is None:
            raise AssertionError("there is one choice at least")
        raise _fault(refusal, choice.model, token_id)

    async def admit_soon(self, choice: Choice, intake: Intake, record: RequestRecord) -> Choice:
        """Do as `admit` does, but wait a moment where only news of the other processes is wanting."""
        gives_up_at = None
        while True:
            try:
                return self.admit(choice, intake, record)
            except TokenLimitReached as fault:
                # The loop is asked for here alone: each time it costs a system call, to find out about forks.
                now = asyncio.get_running_loop().time()
                gives_up_at = now + PATIENCE_S if gives_up_at is None else gives_up_at
                if not fault.is_passing or now >= gives_up_at:
                    raise
            await asyncio.sleep(_AGAIN_S)
            record.waited_s += _AGAIN_S

    def release(self, record: RequestRecord) -> None:
        """Give back all that `record` reserved: the request goes elsewhere, where it is admitted anew."""
        taken, record.taken = record.taken, None
        if taken is not None:
            self._allowances.settle(taken, tokens=0, nanos=0, sent=False, now=self._unix_clock())

    def settle(self, record: RequestRecord) -> None:
        """Give back what `record` reserved, but for what it used; does nothing the second time."""
        taken, record.taken = record.taken, None
        if taken is None:
            return
        usage = record.usage
        used = usage.input + usage.output
        nanos = record.cost_nanos if record.cost_nanos is not None or used else 0
        self._allowances.settle(taken, tokens=used, nanos=nanos, sent=record.attempts > 0, now=self._unix_clock())

    def _need(self, choice: Choice, intake: Intake, limits: Sequence[Limit]) -> Need:
        tokens = intake.est_input_tokens, intake.est_output_tokens
        if all(limit.budget_usd is None for limit in limits):
            return Need(*tokens)
        usage = TokenUsage(*tokens)
        costs = [
            cost
            for provider in {endpoint.provider for endpoint in choice.pool.endpoints}
            if (cost := self._prices.cost_nanos(provider, choice.model, usage)) is not None
        ]
        return Need(*tokens, max(costs, default=None))


_UNITS = {"rpm": "requests a minute", "tpm": "tokens a minute"}


def _fault(refusal: Exceeded, model: str, token_id: str) -> TokenLimitReached:
    limit, member = refusal.limit, refusal.member
    if member == "budget_usd":
        for_ever = limit.budget_period == "total"
        what = f"budget of {limit.budget_usd:g} US dollars {'in all' if for_ever else f'a {limit.budget_period}'}"
    else:
        what = f"limit of {getattr(limit, member)} {_UNITS[member]}"
    whose = "" if limit.bucket.startswith(token_id) else ", which it shares with the tokens it comes from,"
    named = f"(authorization_details.{member})"
    if refusal.reason == "no_price":
        return TokenLimitReached(
            f"The access token has a {what} {named}, and no price is known for {model!r} to count it by.",
            hint="Ask for a model with a price, or have the operators add it to the price list.",
        )
    if refusal.reason == "too_large":
        return TokenLimitReached(
            f"The request needs more tokens than the access token's {what} {named}{whose} allows at once.",
            hint="Shorten it, or ask whoever issued the token for more.",
        )
    if refusal.retry_after_s is None:
        return TokenLimitReached(
            f"The access token's {what} {named}{whose} is spent.", hint="Ask whoever issued the token for more."
        )
    reached = TokenLimitReached(
        f"The access token's {what} {named}{whose} is reached.",
        hint=f"Try again in {ceil(refusal.retry_after_s)} s, or ask whoever issued the token for more.",
        retry_after_s=refusal.retry_after_s,
    )
    reached.is_passing = refusal.reason == "no_news"
    return reached
