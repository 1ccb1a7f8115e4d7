"""One quota as all processes share it: its accounts, who holds what of them, and what is known of it. Pure.

A process (a *lessee*) exchanges about once a second: it reports what it has spent and what it still wants to hold, and
is granted anew. `exchange` is that transition; whoever stores rows makes it atomic.

What is granted. An account has `free = available - all that others hold`. The lessee gets its max-min fair part of
that, beside what the others are expected to want before their own next exchange. So shares follow demand, what is idle
goes back with the next report, and grants shrink as the limit comes near: with n lessees in want each gets free / n.

Small limits. A part below what one request needs is of no use to anybody: four lessees would hold 0.75 of 3 requests a
minute, for ever. Who needs more than its part gets all it needs or nothing, in the order since when they wait.

Sum. `held` of a lessee is replaced only by its own exchange or at the end of its lease, and a grant never exceeds
`free`: in every version of the row the sum of all held and all charged is at most the limit (but for what a lessee had
spent on credit, or while the store was away: that is a debt, which time pays back before anything is granted again).

End of a lease. A lessee that is not heard of for `LEASE_S` is charged all it held, and its share is free for others. It
knows: it counts the same time from before it sent its last report, on its own clock, so it stopped before.
Only where nobody at all exchanged for so long (the store was away) the others are given `GRACE_S` to come back first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.leases.account import Account, Kind
from gateway.leases.facts import Fact, heard_by, join_all, say
from gateway.leases.fairness import part_of_first

LEASE_S = 5.0
GRACE_S = 2.0
SET_BACK_S = 1.0
"""A store's clock that is behind by more was set back."""
MAX_ACCOUNTS = 256
"""Accounts go by model names, which come from callers: what a row remembers is bounded."""
ON_THE_WAY_S = 0.1
"""How long an answer that tells what is left may take from the provider to its reader."""


class Holding(msgspec.Struct, array_like=True):
    """What one lessee has of one account.

    `spent` is its cumulative count as last charged; `want` what it wished to hold, `need` what one request of it takes
    at least, `rate` its demand a second; `share` of the limit (0..1) is its own while the store is away; it has waited
    with less than it needs `since` (Unix seconds, 0: it does not).
    """

    spent: float = 0.0
    held: float = 0.0
    want: float = 0.0
    need: float = 0.0
    rate: float = 0.0
    share: float = 0.0
    since: float = 0.0


class Lessee(msgspec.Struct, array_like=True):
    """One process; times are Unix seconds by the store's clock."""

    seen: float = 0.0
    ends: float = 0.0
    holdings: dict[str, Holding] = {}
    in_flight: dict[str, int] = {}


class Row(msgspec.Struct):
    """The shared state of one quota; `version` counts exchanges, `touched` is when the last one was.

    Its times are the store's clock's and `ahead` seconds: they go on where that clock is set back, or another server's
    is behind that takes over.
    """

    version: int = 0
    touched: float = 0.0
    accounts: dict[str, Account] = {}
    lessees: dict[str, Lessee] = {}
    facts: dict[str, Fact] = {}
    ahead: float = 0.0

    def time(self, clock: float) -> float:
        """Give the row's time when the store's clock shows `clock`."""
        return clock + self.ahead


class Draw(msgspec.Struct):
    """What a lessee reports on one account: how it is to be kept, and what was spent and is wanted of it.

    `spent` counts from the lessee's start, `acked` is what of it the store has confirmed, `span_s` seconds ago. `keep`
    is what it may spend before the answer comes and will not give up. `told` is what the provider says is left, if that
    was heard just now. `told_age_s`: how long ago. `recent`: where windows are short, what of `spent - acked` lies in
    the last one, (seconds ago, amount); what does not is back by now. `leaving`: it wants nothing any more.
    """

    kind: Kind
    limit: float
    window_s: float
    phase: float = 0.0
    spent: float = 0.0
    acked: float = 0.0
    span_s: float = 0.0
    keep: float = 0.0
    want: float = 0.0
    need: float = 0.0
    rate: float = 0.0
    told: float | None = None
    told_age_s: float = 0.0
    recent: list[tuple[float, float]] | None = None
    leaving: bool = False


class Report(msgspec.Struct):
    """One lessee's half of an exchange; `facts` are what it has learned since the last one; `leaving`: all of it.

    `listening`: it wants to know what the others say, and nothing else of the row. `is_news`: others are to hear it at
    once.
    """

    lessee: str
    draws: dict[str, Draw]
    in_flight: dict[str, int] = {}
    facts: dict[str, Any] = {}
    leaving: bool = False
    listening: bool = False
    is_news: bool = False

    @property
    def only_listens(self) -> bool:
        """Tell whether it changes nothing."""
        return self.listening and not self.facts


class Grant(msgspec.Struct):
    """What a lessee may hold of one account until its lease ends.

    `available`: what is not spent of the limit, by all. `short`: it wanted more than there was; more may be free after
    `retry_s`. `free`: what nobody holds. `pace_per_s`: what of the refill it can have, the others wanting what they do.
    `passed`: how much of a fixed window has gone by, 0..1, by the store's clock.
    """

    held: float
    share: float
    available: float
    free: float
    short: bool
    retry_s: float
    lessees: int
    pace_per_s: float = 0.0
    passed: float = 0.0


class Answer(msgspec.Struct):
    """The store's half of an exchange; `in_flight` are the others' requests in flight by key, `others` their number."""

    grants: dict[str, Grant]
    in_flight: dict[str, int]
    facts: dict[str, Fact]
    others: int = 0


def exchange(row: Row, report: Report, now: float, *, lease_s: float = LEASE_S) -> Answer:
    """Change `row` by one report and give the answer; `now` by the store's clock, which may have jumped back."""
    now = row.time(now)
    if row.touched - now > SET_BACK_S:
        # Else nothing would refill until the clock is again where it was.
        row.ahead += row.touched - now
    now = max(now, row.touched)
    _end_leases(row, report.lessee, now, lease_s)
    row.version += 1
    row.touched = now
    me = row.lessees.setdefault(report.lessee, Lessee())
    others = [lessee for name, lessee in row.lessees.items() if name != report.lessee]
    me.seen, me.ends, me.in_flight = now, now + lease_s, report.in_flight
    grants = {}
    for name, draw in report.draws.items():
        account = _charge(row, me, name, draw, now)
        holdings = [(other.seen, held) for other in others if (held := other.holdings.get(name)) is not None]
        if draw.told is not None:
            unreported = sum(held.held for _, held in holdings) + draw.keep
            # What the others have sent since the provider spoke is not in its figure; they may come in bursts.
            since = sum(held.held + held.rate * (draw.told_age_s + ON_THE_WAY_S) for _, held in holdings)
            account.told(draw.told, unreported, since, now)
        if draw.leaving:
            me.holdings.pop(name, None)
        else:
            grants[name] = _grant(account, me.holdings[name], draw, holdings, now)
    if report.leaving:
        del row.lessees[report.lessee]
    if len(row.accounts) > MAX_ACCOUNTS:
        _forget(row, now)
    row.facts = say(row.facts, report.facts, report.lessee, now)
    return Answer(grants, _busy(others), heard_by(row.facts, report.lessee), len(others))


def _busy(lessees: Iterable[Lessee]) -> dict[str, int]:
    busy: dict[str, int] = {}
    for lessee in lessees:
        for key, count in lessee.in_flight.items():
            busy[key] = busy.get(key, 0) + count
    return busy


def _forget(row: Row, now: float) -> None:
    """Keep no more than `MAX_ACCOUNTS`, as far as nobody holds them: those that are as good as new go first."""
    held = {name for lessee in row.lessees.values() for name in lessee.holdings}
    idle = [name for name, account in row.accounts.items() if name not in held and account.kind != "stock"]
    left = {name: row.accounts[name].available(now) / row.accounts[name].limit for name in idle}
    for name in sorted(idle, key=lambda name: -left[name])[: len(row.accounts) - MAX_ACCOUNTS]:
        del row.accounts[name]


def listen(row: Row, report: Report, now: float) -> Answer:
    """Give what the others say to one that has nothing to say."""
    now = row.time(now)
    others = [lessee for name, lessee in row.lessees.items() if name != report.lessee and lessee.ends > now]
    return Answer({}, _busy(others), heard_by(row.facts, report.lessee), len(others))


def _end_leases(row: Row, me: str, now: float, lease_s: float) -> None:
    away = now - row.touched >= lease_s
    for name in [name for name, lessee in row.lessees.items() if name != me]:
        lessee = row.lessees[name]
        if away:
            lessee.ends = max(lessee.ends, now + GRACE_S)
        # A clock that jumped back must not prolong a lease.
        if now < lessee.ends <= now + lease_s + GRACE_S:
            continue
        for key, holding in lessee.holdings.items():
            row.accounts[key].charge(holding.held, now)
        del row.lessees[name]


def _charge(row: Row, me: Lessee, name: str, draw: Draw, now: float) -> Account:
    account = row.accounts.get(name)
    if account is None:
        account = Account.open(draw.kind, draw.limit, draw.window_s, draw.phase, now)
        row.accounts[name] = account
    else:
        account.fit(draw.kind, draw.limit, draw.window_s, draw.phase, now)
    holding = me.holdings.get(name)
    if holding is None:
        holding = me.holdings[name] = Holding(spent=draw.acked)
    spent = draw.spent - holding.spent
    if draw.recent is not None and account.kind == "sliding":
        account.charge_dated(spent, draw.recent, now)
    # What is given back of a window that is over is nothing to the next one.
    elif spent > 0.0 or not account.has_begun_anew(draw.span_s, now):
        account.charge(spent, now, span_s=draw.span_s if draw.span_s > LEASE_S else 0.0)
    holding.spent, holding.want, holding.need, holding.rate = draw.spent, draw.want, draw.need, draw.rate
    return account


def _grant(account: Account, mine: Holding, draw: Draw, others: list[tuple[float, Holding]], now: float) -> Grant:
    available = account.available(now)
    held = sum(other.held for _, other in others)
    free = available - held - draw.keep
    pending = []
    ahead = 0.0
    for seen, other in others:
        # What it holds goes down as it works; at its next exchange it will want the difference.
        left = max(0.0, other.held - other.rate * (now - seen)) if account.kind != "slots" else other.held
        pending.append(max(0.0, other.want - left))
        if other.since and (not mine.since or other.since < mine.since):
            ahead += max(0.0, other.need - other.held)
    wish = max(0.0, draw.want - draw.keep)
    # Those who wait for more than their part come first.
    extra = min(part_of_first(wish, pending, free), max(0.0, free - ahead))
    whole = account.kind == "slots" or draw.need == 1.0
    if whole:
        extra = float(int(extra + 1e-9))
    if draw.keep + extra < min(draw.need, draw.want):
        missing = draw.need - draw.keep
        mine.since = mine.since or now
        extra = missing if free - ahead >= missing else 0.0
    if extra > 0.0 or draw.keep >= draw.need:
        mine.since = 0.0
    mine.held = draw.keep + extra
    mine.share = _share(account, mine, others)
    short = extra < wish
    retry_s = account.free_in(max(1.0, draw.need), held + mine.held, now) if short else 0.0
    pace_per_s = part_of_first(account.per_s, [other.rate for _, other in others], account.per_s)
    passed = account.passed(now)
    return Grant(mine.held, mine.share, available, free - extra, short, retry_s, len(others) + 1, pace_per_s, passed)


def _share(account: Account, mine: Holding, others: list[tuple[float, Holding]]) -> float:
    """Give the part of the limit that is this lessee's own while the store is away.

    Its fair part by demand, with an equal part of what nobody demands; never more than the others' shares leave.
    """
    if account.per_s <= 0.0:
        return 0.0
    capacity = account.per_s
    rates = [other.rate for _, other in others]
    fair = part_of_first(mine.rate, rates, capacity) + max(0.0, capacity - mine.rate - sum(rates)) / (len(others) + 1)
    return max(0.0, min(fair / capacity, 1.0 - sum(other.share for _, other in others)))


def later(stored: Row | None, known: Row | None) -> Row:
    """Give the row to go on from: the store may have lost its own (a crash empties unlogged tables) or be behind.

    The one with more exchanges behind it knows more; lessees that only the other one knows have come since and stay.
    """
    if stored is None or known is None:
        return stored or known or Row()
    best, other = (known, stored) if known.version > stored.version else (stored, known)
    best.facts = join_all(other.facts, best.facts)
    if best is known:
        for name, lessee in other.lessees.items():
            best.lessees.setdefault(name, lessee)
            for key in lessee.holdings:
                best.accounts.setdefault(key, other.accounts[key])
    return best
