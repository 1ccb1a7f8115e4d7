"""What processes tell each other of a tenant beyond its single quotas: in a row of its own. Pure.

| fact            | value                             | what it does elsewhere                                       |
|-----------------|-----------------------------------|--------------------------------------------------------------|
| `named quota`   | [provider, name]                  | quotas answered under one name count as one (`SharedQuotas`) |
| `outage name`   | [until, streak, ejected], or null | the breaker of an address or a quota's keys opens, or closes |

(the words of a fact's name are parted by `|`). The row holds no amounts and no leases. It is read along with those of
quotas, and written only when there is something to tell. Breakers that are open here but not for the process that
tells, or the reverse, end by themselves: each process tries for itself, and one where the keys work does not believe
that they do not (`Breaker.hear`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from math import inf
from typing import Any
from uuid import UUID

from gateway.balancing.book import QuotaBook
from gateway.balancing.breaker import Breaker
from gateway.balancing.sharing import Named
from gateway.leases.facts import STALE_S, Fact, opened

TENANT_ROW = "*"
"""Stands for a quota's id in the key of a tenant's own row."""
MAX_NAME = 100
EVERY_S = 0.5
"""An exchange that some request waits for asks after the tenant's row only if that was not done so lately."""
_CLOSED = (False, 0)


class TenantWord:
    """One tenant's word in one process; `unix_offset_s` turns its clock into Unix time."""

    __slots__ = ("_heard", "_named", "_outages", "_unix_offset_s")

    def __init__(self, unix_offset_s: float) -> None:
        self._unix_offset_s = unix_offset_s
        self._named: dict[str, tuple[str, str]] = {}
        self._outages: dict[str, tuple[bool, int]] = {}
        self._heard: dict[str, float] = {}

    def say(self, book: QuotaBook) -> dict[str, Any]:
        """Give what is new since the last time."""
        said: dict[str, Any] = {}
        for quota_id, word in (book.shared.words if book.size > 1 else {}).items():
            if self._named.get(quota_id) != word[1:]:
                self._named[quota_id] = word[1:]
                said[f"named|{quota_id}"] = list(word[1:])
        is_well = not (self._outages or any(common.tripped for _, common in book.commons()))
        for name, breaker in ({} if is_well else _worst(book)).items():
            state = (breaker.tripped, breaker.streak)
            if self._outages.get(name, _CLOSED) != state:
                self._outages[name] = state
                value = [breaker.until + self._unix_offset_s, breaker.streak, breaker.ejected]
                said[name] = value if breaker.tripped else None
        return said

    def hear(self, book: QuotaBook, facts: Mapping[str, Fact], now: float) -> bool:
        """Take over what others say; True: there may be capacity that was not there before."""
        more = False
        for name, fact in facts.items():
            if fact.at > self._heard.get(name, 0.0) and name.startswith("named|"):
                self._heard[name] = fact.at
                more |= self._hear_name(book, name.removeprefix("named|"), fact, now)
        if any(name.startswith("outage|") for name in facts):
            more |= self._hear_outages(book, facts, now)
        if len(self._heard) > 2 * len(facts) + 64:
            self._heard = {name: at for name, at in self._heard.items() if name in facts}
        return more

    def _hear_name(self, book: QuotaBook, quota_id: str, fact: Fact, now: float) -> bool:
        value = fact.value
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)):
            return False
        # A store whose clock is ahead is not to outlast what is answered here from now on.
        heard = Named(min(fact.at, now + self._unix_offset_s), *value)
        changed = book.hear_name(quota_id, heard)
        if (known := book.shared.words.get(quota_id)) is not None and known[1:] == heard[1:]:
            self._named[quota_id] = heard[1:]
        return changed

    def _hear_outages(self, book: QuotaBook, facts: Mapping[str, Fact], now: float) -> bool:
        more, heard = False, dict[str, float]()
        for shared, common in book.commons():
            name = fact_of(shared)
            fact = facts.get(name)
            if fact is None or fact.at <= self._heard.get(name, 0.0):
                continue
            if fact.value is None:
                if common.tripped:
                    common.revive()
                    more = True
            elif (word := opened(fact.value)) is not None:
                until, streak, ejected = word[0] - self._unix_offset_s, word[1], word[2]
                if until > now - STALE_S and not common.breaker.hear(until, streak, now, ejected=ejected):
                    continue  # looked at again, should it stop working here too
            heard[name] = fact.at
        self._heard |= heard
        worst = _worst(book)
        self._outages |= {name: (worst[name].tripped, worst[name].streak) for name in heard}
        return more


class TenantWords:
    """All tenants' words in one process: of those whose quotas it has used."""

    def __init__(self, unix_offset_s: float) -> None:
        self._unix_offset_s = unix_offset_s
        self._books: dict[UUID, tuple[QuotaBook, TenantWord]] = {}
        self._said_at: dict[UUID, float] = {}

    def know(self, tenant_id: UUID, book: QuotaBook) -> None:
        """Take in a tenant's book; a new one, where the tenant was away in between, begins anew."""
        known = self._books.get(tenant_id)
        if known is None or known[0] is not book:
            self._books[tenant_id] = book, TenantWord(self._unix_offset_s)

    def knows(self, tenant_id: UUID) -> bool:
        """Tell whether this process has used the tenant's quotas."""
        return tenant_id in self._books

    def say(self, tenant_ids: Iterable[UUID], now: float, *, everything: bool) -> dict[UUID, dict[str, Any]]:
        """Give what is new for tenants' rows: of all, or of those that were not asked after in the last `EVERY_S`."""
        found = {}
        for tenant_id in tenant_ids:
            known = self._books.get(tenant_id)
            if known is not None and (everything or now - self._said_at.get(tenant_id, -inf) >= EVERY_S):
                self._said_at[tenant_id] = now
                found[tenant_id] = known[1].say(known[0])
        return found

    def news(self, tenant_id: UUID) -> dict[str, Any]:
        """Give what is new for one tenant's row since the last time."""
        known = self._books.get(tenant_id)
        return {} if known is None else known[1].say(known[0])

    def hear(self, tenant_id: UUID, facts: Mapping[str, Fact], now: float) -> bool:
        """Take over what others say of a tenant; True: there may be capacity that was not there before."""
        known = self._books.get(tenant_id)
        return known is not None and known[1].hear(known[0], facts, now)


def _worst(book: QuotaBook) -> dict[str, Breaker]:
    """Give the breaker of each name that is open longest: each pool has its own of an address that it shares."""
    found: dict[str, Breaker] = {}
    for shared, common in book.commons():
        name, breaker = fact_of(shared), common.breaker
        known = found.get(name)
        if known is None or (breaker.tripped, breaker.until) > (known.tripped, known.until):
            found[name] = breaker
    return found


def fact_of(name: str) -> str:
    """Give the fact's name of what keys share: an address may be of any length."""
    if len(name) > MAX_NAME:
        name = blake2b(name.encode(), digest_size=16).hexdigest()
    return f"outage|{name}"
