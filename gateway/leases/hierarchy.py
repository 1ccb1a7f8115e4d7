"""A level in between: lends on to its own lessees what it holds of a level above. Pure.

Processes lease from their replica, replicas from their region, regions from the quota's home: each level is a row like
any other, whose accounts are a `stock` that the level above fills. What its lessees hold stays held above, what they
want is wanted above, so the sum stays within the limit at the top however many levels there are: a level never lends
what it does not hold. Today a process leases straight from Postgres; `bench/leases.py` shows from where on that is too
flat, and what levels change.
"""

from __future__ import annotations

from gateway.leases.account import Account
from gateway.leases.row import Draw, Grant, Row

HORIZON_S = 1.5
"""What a level holds beyond what its lessees hold: their demand until its own next exchange, and a little more."""


def open_stock(row: Row, name: str, limit: float, window_s: float) -> None:
    """Let a level lend on an account of which it holds nothing yet."""
    row.accounts[name] = Account("stock", limit, window_s)


def upward(row: Row, name: str, above: Draw, *, acked: float) -> Draw:
    """Report what a level's lessees have spent, hold and want; `above` says what kind of account it is above."""
    account = row.accounts[name]
    holdings = [held for lessee in row.lessees.values() if (held := lessee.holdings.get(name)) is not None]
    lent = sum(each.held for each in holdings)
    rate = sum(each.rate for each in holdings)
    want = lent + sum(max(0.0, each.want - each.held) for each in holdings) + rate * HORIZON_S
    need = max([0.0, *(each.need for each in holdings if each.since)])
    return Draw(
        kind=above.kind,
        limit=above.limit,
        window_s=above.window_s,
        phase=above.phase,
        spent=account.total,
        acked=acked,
        keep=max(0.0, lent),
        want=min(above.limit, want),
        need=need,
        rate=rate,
        leaving=not holdings,
    )


def downward(row: Row, name: str, sent: Draw, grant: Grant) -> None:
    """Fill a level's stock with what it was granted, less what was spent since it reported."""
    account = row.accounts[name]
    account.level = grant.held - (account.total - sent.spent)
