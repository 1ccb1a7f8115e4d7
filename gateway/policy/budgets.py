"""What tokens have spent of their budgets in the present period, over all processes. Pure.

Each process adds what it spends to a shared total now and then, and learns the total. Between two exchanges

    spent = shared total + what this process has spent since

so that what this process does counts at once and exactly, what others do as of the last exchange. Reservations are part
of it: a request under way counts with its estimate in every process, and is corrected when it ends. A process that dies
leaves its estimates behind, which errs on the side of the budget.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor
from uuid import UUID

from auth.details import Period

MAX_BUDGETS = 200_000


@dataclass(frozen=True, slots=True)
class Spend:
    """What one process has spent of a budget since it last said so; negative when reservations were corrected.

    `index` numbers the period (`period_of`), `ends_at` is Unix seconds, None for `total`. Money: 1e-9 US dollars.
    """

    tenant_id: UUID
    bucket: str
    period: Period
    index: int
    nanos: int
    ends_at: float | None


@dataclass(frozen=True, slots=True)
class Total:
    """What all processes have spent of a budget in period `index`, as far as they have said so."""

    bucket: str
    period: Period
    index: int
    nanos: int


class _Budget:
    __slots__ = ("index", "pending", "shared", "tenant_id", "underway")

    def __init__(self, index: int) -> None:
        self.index = index
        self.shared = 0
        self.pending = 0
        self.underway = 0
        self.tenant_id: UUID | None = None


class BudgetBook:
    """The budgets that this process knows of; bounded: the one that changed longest ago is forgotten first."""

    def __init__(self, *, max_budgets: int = MAX_BUDGETS) -> None:
        self._max_budgets = max_budgets
        self._budgets: OrderedDict[tuple[str, Period], _Budget] = OrderedDict()
        self._changed: set[tuple[str, Period]] = set()

    def __len__(self) -> int:
        return len(self._budgets)

    def spent(self, bucket: str, period: Period, now: float) -> int:
        """Give what was spent in the period that `now` lies in."""
        found = self._budgets.get((bucket, period))
        if found is None or found.index != period_of(period, now):
            return 0
        return max(0, found.shared + found.pending + found.underway)

    def spend(self, bucket: str, period: Period, index: int, nanos: int, tenant_id: UUID | None = None) -> None:
        """Count `nanos` in period `index`; what comes late for a period that is over is not charged to the next.

        Without `tenant_id` a budget nobody named it for stays within this process.
        """
        budget = self._at(bucket, period, index)
        if budget is None:
            return
        if tenant_id is not None:
            budget.tenant_id = tenant_id
        budget.pending += nanos
        if budget.tenant_id is not None:
            self._changed.add((bucket, period))

    def hand_out(self) -> list[Spend]:
        """Return what is to be said to the others; `settled` or `kept` must follow before the next call."""
        spends = []
        for key in sorted(self._changed):
            budget = self._budgets.get(key)
            if budget is None or budget.tenant_id is None or budget.pending == 0:
                continue
            bucket, period = key
            budget.underway, budget.pending = budget.pending, 0
            spends.append(
                Spend(budget.tenant_id, bucket, period, budget.index, budget.underway, period_end(period, budget.index))
            )
        self._changed.clear()
        return spends

    def settled(self, spends: Iterable[Spend]) -> None:
        """Take in that `spends` are part of the shared totals, which `learn` brings."""
        for spend in spends:
            budget = self._budgets.get((spend.bucket, spend.period))
            if budget is not None and budget.index == spend.index:
                budget.underway = 0

    def kept(self, spends: Iterable[Spend]) -> None:
        """Take in that `spends` did not reach the others: they are said again."""
        for spend in spends:
            budget = self._budgets.get((spend.bucket, spend.period))
            if budget is not None and budget.index == spend.index:
                budget.pending += budget.underway
                budget.underway = 0
                self._changed.add((spend.bucket, spend.period))

    def learn(self, totals: Iterable[Total]) -> None:
        """Take in shared totals; those of periods that are over here change nothing."""
        for total in totals:
            budget = self._at(total.bucket, total.period, total.index)
            if budget is not None:
                budget.shared = total.nanos

    def forget_ended(self, now: float) -> None:
        """Drop the budgets whose periods are over."""
        ended = [key for key, budget in self._budgets.items() if budget.index < period_of(key[1], now)]
        for key in ended:
            del self._budgets[key]
            self._changed.discard(key)

    def _at(self, bucket: str, period: Period, index: int) -> _Budget | None:
        """Return the budget in period `index`, begun if it is new; None if a later one has begun."""
        key = (bucket, period)
        budget = self._budgets.get(key)
        if budget is not None and index < budget.index:
            return None
        if budget is None or index > budget.index:
            before, budget = budget, _Budget(index)
            budget.tenant_id = None if before is None else before.tenant_id
            self._budgets[key] = budget
            if len(self._budgets) > self._max_budgets:
                dropped, _ = self._budgets.popitem(last=False)
                self._changed.discard(dropped)
        self._budgets.move_to_end(key)
        return budget


def period_of(period: Period, now: float) -> int:
    """Give the number of the period that `now` lies in."""
    if period == "total":
        return 0
    if period == "month":
        date = datetime.fromtimestamp(now, UTC)
        return date.year * 12 + date.month - 1
    return floor(now / (3600 if period == "hour" else 86400))


def period_end(period: Period, index: int) -> float | None:
    """Give when period `index` ends (Unix seconds), None if it never does."""
    if period == "total":
        return None
    if period == "month":
        year, month = divmod(index + 1, 12)
        return datetime(year, month + 1, 1, tzinfo=UTC).timestamp()
    return float((index + 1) * (3600 if period == "hour" else 86400))


def period_ends_in(period: Period, now: float) -> float | None:
    """Give the seconds until the next period begins, None if there is none."""
    end = period_end(period, period_of(period, now))
    return None if end is None else end - now
