"""Where the use of tokens' limits is kept: a protocol, and the keeper of one process.

Budgets are shared between processes through the book (`budgets`, `budget_sharing`), rates through the log (`rates`,
`rate_sharing`). Both calls, before and after a request, never wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from auth.details import Limit
from gateway.policy.budgets import BudgetBook
from gateway.policy.limits import WINDOW_S, Account, Entry, Exceeded, Need
from gateway.policy.rates import RateLog, Use


@dataclass(frozen=True, slots=True)
class Taken:
    """What one request reserved, one entry for each limit; goes back through `settle`, once."""

    entries: tuple[Entry, ...]


class Allowances(Protocol):
    """Admits requests under limits; `now` is Unix seconds."""

    def take(
        self, limits: Sequence[Limit], need: Need, *, now: float, tenant_id: UUID | None = None
    ) -> Taken | Exceeded:
        """Reserve on every limit of a token of the tenant, or on none and say which one refuses."""

    def settle(self, taken: Taken, *, tokens: int, nanos: int | None, sent: bool, now: float) -> None:
        """Replace the reservation by what was used; see `Account.settle`."""


class InMemoryAllowances:
    """The keeper of one process: at most `max_accounts` buckets, of which the longest unused is forgotten first."""

    def __init__(
        self, *, max_accounts: int = 100_000, book: BudgetBook | None = None, rates: RateLog | None = None
    ) -> None:
        self._max_accounts = max_accounts
        self._rates = rates
        self._book = BudgetBook() if book is None else book
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def take(
        self, limits: Sequence[Limit], need: Need, *, now: float, tenant_id: UUID | None = None
    ) -> Taken | Exceeded:
        """See `Allowances.take`."""
        accounts = [self._account(limit.bucket) for limit in limits]
        refusals = [
            refusal
            for account, limit in zip(accounts, limits, strict=True)
            if (refusal := account.refuses(limit, need, now)) is not None
        ]
        if refusals:
            # The one that holds longest: who comes back at its time finds the others open.
            return max(refusals, key=lambda each: float("inf") if each.retry_after_s is None else each.retry_after_s)
        return Taken(
            tuple(account.take(limit, need, now, tenant_id) for account, limit in zip(accounts, limits, strict=True))
        )

    def settle(self, taken: Taken, *, tokens: int, nanos: int | None, sent: bool, now: float) -> None:
        """See `Allowances.settle`."""
        for entry in taken.entries:
            self._account(entry.limit.bucket).settle(entry, tokens, nanos, now, sent=sent)

    def learn(self, uses: Iterable[Use], *, now: float) -> None:
        """Count what other processes admitted."""
        for use in uses:
            if use.second > now - WINDOW_S - 1:
                self._account(use.bucket).learn(use, now)

    def _account(self, bucket: str) -> Account:
        account = self._accounts.get(bucket)
        if account is None:
            account = self._accounts[bucket] = Account(bucket, self._book, self._rates)
            if len(self._accounts) > self._max_accounts:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(bucket)
        return account
