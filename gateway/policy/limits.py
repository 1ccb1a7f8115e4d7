"""What a token may still do in this minute and this period: exact windows, reserved before, settled after. Pure.

Rates (`rpm`, `tpm`) hold in every 60 s, wherever they begin: what was used in a second counts until that second is a
full minute ago. Budgets hold in each hour, day or month of UTC, or for ever. Amounts are kept here, the limits
themselves come with each request, so that a changed limit holds at once. Times are Unix seconds, money billionths of a
US dollar.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal
from uuid import UUID

from auth.details import Detail, Limit
from gateway.policy.budgets import BudgetBook, period_ends_in, period_of
from gateway.policy.rates import RateLog, Share, Use

WINDOW_S = 60
NANOS = 1_000_000_000
Member = Literal["rpm", "tpm", "budget_usd"]


@dataclass(frozen=True, slots=True)
class Need:
    """What a request is expected to take: `input_tokens` for sure, `output_tokens` as a guess.

    `cost_nanos` None: no price is known, so nothing that counts money can admit it.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanos: int | None = 0


@dataclass(frozen=True, slots=True)
class Exceeded:
    """`limit` refuses by its `member`; trying again makes sense after `retry_after_s`, None: never.

    `no_news`: it may fit, and what the other processes admit is not known yet.
    """

    limit: Limit
    member: Member
    retry_after_s: float | None
    reason: Literal["spent", "too_large", "no_price", "no_news"] = "spent"


class SlidingMinute:
    """Amounts of the last minute, by second; an amount leaves when its whole second is a minute ago."""

    __slots__ = ("_slots", "total")

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()
        self.total = 0

    def _forget(self, now: float) -> None:
        while self._slots and self._slots[0][0] + WINDOW_S < floor(now):
            self.total -= self._slots.popleft()[1]

    def ready_at(self, amount: int, limit: int, now: float) -> float:
        """Give when `amount` fits under `limit`: `now` or later; `amount` <= `limit`."""
        self._forget(now)
        excess = self.total + amount - limit
        if excess <= 0:
            return now
        for second, used in self._slots:
            excess -= used
            if excess <= 0:
                return float(second + WINDOW_S + 1)
        return now + WINDOW_S

    def take(self, amount: int, now: float) -> int:
        """Count `amount`; give the second it was counted in."""
        second = floor(now)
        if self._slots and self._slots[-1][0] >= second:
            self._slots[-1][1] += amount
            second = self._slots[-1][0]
        else:
            self._slots.append([second, amount])
        self.total += amount
        return second

    def adjust(self, second: int, delta: int, now: float) -> None:
        """Correct what was counted in `second`: less is given back there, more is counted now."""
        self._forget(now)
        if delta > 0:
            self.take(delta, now)
            return
        for slot in self._slots:
            if slot[0] == second:
                given = min(slot[1], -delta)
                slot[1] -= given
                self.total -= given
                return


@dataclass(frozen=True, slots=True)
class Entry:
    """What one request took of one account; `period` as it was then."""

    limit: Limit
    second: int
    tokens: int
    nanos: int
    period: int


NEXT_EXCHANGE_S = 0.25
"""When a process that has used its share of the room may know more."""


class Account:
    """What has been used of one bucket: rates here and, by `rates`, in other processes; budgets by `book`."""

    __slots__ = ("_book", "_bucket", "_rates", "_request_share", "_requests", "_token_share", "_tokens")

    def __init__(self, bucket: str, book: BudgetBook, rates: RateLog | None = None) -> None:
        self._bucket = bucket
        self._book = book
        self._rates = rates
        self._requests = SlidingMinute()
        self._tokens = SlidingMinute()
        self._request_share = Share()
        self._token_share = Share()

    def refuses(self, limit: Limit, need: Need, now: float) -> Exceeded | None:
        """Tell what of `limit` stands against the request; takes nothing."""
        if limit.rpm is not None and (at := self._requests.ready_at(1, limit.rpm, now)) > now:
            return Exceeded(limit, "rpm", at - now)
        if limit.rpm is not None and not self._shares(self._request_share, 1, limit.rpm - self._requests.total):
            return Exceeded(limit, "rpm", NEXT_EXCHANGE_S, "no_news")
        if limit.tpm is not None:
            if need.input_tokens > limit.tpm:
                return Exceeded(limit, "tpm", None, "too_large")
            wanted = _tokens(limit, need)
            at = self._tokens.ready_at(wanted, limit.tpm, now)
            if at > now:
                return Exceeded(limit, "tpm", at - now)
            if not self._shares(self._token_share, wanted, limit.tpm - self._tokens.total):
                return Exceeded(limit, "tpm", NEXT_EXCHANGE_S, "no_news")
        if limit.budget_usd is not None and limit.budget_period is not None:
            if need.cost_nanos is None:
                return Exceeded(limit, "budget_usd", None, "no_price")
            spent = self._book.spent(self._bucket, limit.budget_period, now)
            if spent + max(1, need.cost_nanos) > round(limit.budget_usd * NANOS):
                return Exceeded(limit, "budget_usd", period_ends_in(limit.budget_period, now))
        return None

    def take(self, limit: Limit, need: Need, now: float, tenant_id: UUID | None = None) -> Entry:
        """Reserve for one request of the tenant."""
        second = self._requests.take(1, now)
        tokens = _tokens(limit, need)
        self._tokens.take(tokens, now)
        if self._rates is not None:
            self._request_share.take(1, self._rates)
            self._token_share.take(tokens, self._rates)
            self._rates.use(self._bucket, second, 1, tokens)
        nanos, period = need.cost_nanos or 0, 0
        if limit.budget_period is not None:
            period = period_of(limit.budget_period, now)
            self._book.spend(self._bucket, limit.budget_period, period, nanos, tenant_id)
        return Entry(limit, second, tokens, nanos, period)

    def settle(self, entry: Entry, used_tokens: int, used_nanos: int | None, now: float, *, sent: bool) -> None:
        """Correct a reservation by what was used; `used_nanos` None: not known, the reservation stands.

        `sent` False: nothing went to a provider, so the request does not count either.
        """
        if not sent:
            self._requests.adjust(entry.second, -1, now)
        more = used_tokens - entry.tokens
        self._tokens.adjust(entry.second, more, now)
        if self._rates is not None and (more or not sent):
            self._rates.use(self._bucket, floor(now) if more > 0 else entry.second, 0, more)
            self._token_share.correct(more, self._rates)
            if not sent:
                self._request_share.correct(-1, self._rates)
                self._rates.use(self._bucket, entry.second, -1, 0)
        period = entry.limit.budget_period
        if period is not None and used_nanos is not None:
            self._book.spend(self._bucket, period, entry.period, used_nanos - entry.nanos)

    def learn(self, use: Use, now: float) -> None:
        """Count what another process admitted, as of then; what it gave back, where it is found."""
        for window, amount in ((self._requests, use.requests), (self._tokens, use.tokens)):
            if amount > 0:
                window.take(amount, min(use.second, now))
            elif amount < 0:
                window.adjust(use.second, amount, now)

    def _shares(self, share: Share, amount: int, left: int) -> bool:
        return self._rates is None or share.allows(amount, left, self._rates)


def _tokens(limit: Limit, need: Need) -> int:
    """The output is a guess: a guess above the whole limit asks for all of it, or it could never be served."""
    wanted = need.input_tokens + need.output_tokens
    return wanted if limit.tpm is None else min(wanted, limit.tpm)


def limits_of(detail: Detail | None, token_id: str) -> Sequence[Limit]:
    """Give every limit that a request under `detail` draws on; one that has no bucket yet is the token's own."""
    if detail is None:
        return ()
    if detail.limits or (detail.rpm, detail.tpm, detail.budget_usd) == (None, None, None):
        return detail.limits
    return (Limit(f"{token_id}:-", detail.rpm, detail.tpm, detail.budget_usd, detail.budget_period),)
