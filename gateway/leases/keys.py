"""What processes share about single keys: requests in flight, caps on them, and breakers. Pure.

A cap on requests in flight (of a key, of a quota or one model family in it) is an account of its own that is only ever
held, never charged (`account`, kind `slots`): each process holds as many as it has in flight and a few more, so that
the sum of all stays within the cap. A breaker that opens or closes in one process does so in all; each still tries by
itself whether a key is well again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.balancing.book import QuotaBook
from gateway.balancing.ready import EndpointState, QuotaState
from gateway.leases.facts import STALE_S, opened
from gateway.leases.row import Answer, Draw, Report

ROOM = 1.0 / 16.0
"""Of a cap so much is held beyond what is in flight."""
MOVED, MOVED_SHARE = 8, 0.5
"""A key whose requests in flight have changed by more than both since they were told is told of early."""

BreakerSaid = tuple[bool, int]


class KeyShares:
    """One quota's keys in one process; `unix_offset_s` turns its clock into Unix time."""

    def __init__(self, unix_offset_s: float) -> None:
        self._unix_offset_s = unix_offset_s
        self._said: dict[str, BreakerSaid] = {}
        self._heard: dict[str, float] = {}
        self._families: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._keys: Sequence[EndpointState] = ()
        self._has_company = False
        self.short = False
        """Whether of some cap there was less than wanted, at the last exchange."""

    def report(self, quota: QuotaState, keys: Sequence[EndpointState], report: Report, *, leaving: bool) -> None:
        """Add what is to be told to `report`."""
        self._keys = keys
        report.is_news = self.has_moved()
        cap = quota.quota.limits.concurrency
        if cap is not None:
            report.draws["concurrency"] = _draw(cap, quota.slots, quota.in_flight, leaving=leaving)
        for family, cap in self._families.items():
            if family not in quota.ledgers:
                # Forgotten, with nothing in flight: what is held for it goes back.
                report.draws[f"{family}|concurrency"] = _draw(cap, None, 0, leaving=True)
        for family, ledger in quota.ledgers.items():
            running = ledger.concurrency
            if (cap := running.cap) is not None:
                self._families[family] = cap
                report.draws[f"{family}|concurrency"] = _draw(cap, running.slots, running.in_flight, leaving=leaving)
        for state in keys:
            key, cap = state.endpoint.id, state.endpoint.max_in_flight
            if cap is not None:
                report.draws[f"key|{key}"] = _draw(cap, state.slots, state.in_flight, leaving=leaving)
            if state.in_flight:
                report.in_flight[key] = state.in_flight
        self._in_flight = report.in_flight
        report.facts |= self.say()

    def say(self) -> dict[str, Any]:
        """Give what is new of the breakers of the keys that were last reported on."""
        said: dict[str, Any] = {}
        for state in self._keys:
            key, breaker = state.endpoint.id, state.breaker
            stands = (breaker.tripped, breaker.streak)
            if self._said.get(key, (False, 0)) != stands:
                self._said[key] = stands
                value = [breaker.until + self._unix_offset_s, breaker.streak, breaker.ejected]
                said[f"breaker|{key}"] = value if breaker.tripped else None
        return said

    def has_moved(self) -> bool:
        """Tell whether others should hear that much more or less is in flight than was told last."""
        for state in self._keys if self._has_company else ():
            told = self._in_flight.get(state.endpoint.id, 0)
            if abs(state.in_flight - told) > max(MOVED, MOVED_SHARE * told):
                return True
        return False

    def hear(self, quota: QuotaState, keys: Sequence[EndpointState], answer: Answer, now: float) -> bool:
        """Take over what others told; True: there may be capacity that was not there before."""
        more = self.short = False
        self._has_company = answer.others > 0
        grant, cap = answer.grants.get("concurrency"), quota.quota.limits.concurrency
        # A cap may have changed since the report: of the old one no more is held than the new one allows.
        if grant is not None and cap is not None:
            self.short |= grant.short
            slots = min(int(grant.held), cap)
            more |= quota.slots is None or slots > quota.slots
            quota.slots = slots
        self._families = {family: cap for family, cap in self._families.items() if family in quota.ledgers}
        for family, ledger in quota.ledgers.items():
            grant = answer.grants.get(f"{family}|concurrency")
            if grant is not None:
                self.short |= grant.short
                before = ledger.concurrency.slots
                ledger.concurrency.grant(int(grant.held))
                more |= before is None or before < (ledger.concurrency.slots or 0)
        for state in keys:
            grant, cap = answer.grants.get(f"key|{state.endpoint.id}"), state.endpoint.max_in_flight
            if grant is not None and cap is not None:
                self.short |= grant.short
                slots = min(int(grant.held), cap)
                more |= state.slots is None or slots > state.slots
                state.slots = slots
        return self.hear_words(keys, answer, now) or more

    def hear_words(self, keys: Sequence[EndpointState], answer: Answer, now: float) -> bool:
        """Take over what others told of keys, without grants; True: there may be capacity that was not there before."""
        more = False
        for state in keys:
            key = state.endpoint.id
            state.elsewhere = answer.in_flight.get(key, 0)
            fact = answer.facts.get(f"breaker|{key}")
            if fact is not None:
                more |= self._hear_breaker(state, fact.at, fact.value, now)
        return more

    def _hear_breaker(self, state: EndpointState, at: float, value: Any, now: float) -> bool:
        key, breaker, revived = state.endpoint.id, state.breaker, False
        if at <= self._heard.get(key, 0.0):
            return False
        if value is None:
            if breaker.tripped:
                breaker.revive()
                revived = True
        elif (word := opened(value)) is not None:
            until, streak, ejected = word[0] - self._unix_offset_s, word[1], word[2]
            if until > now - STALE_S and not breaker.hear(until, streak, now, ejected=ejected):
                return False  # looked at again, should it stop working here too
        self._heard[key] = at
        self._said[key] = (breaker.tripped, breaker.streak)
        return revived


def release(quota: QuotaState, keys: Iterable[EndpointState], book: QuotaBook) -> None:
    """Go back to the state before the first exchange: what was held is returned."""
    quota.slots = book.unshared(quota.quota.limits.concurrency)
    for ledger in quota.ledgers.values():
        ledger.concurrency.grant(None)
    for state in keys:
        state.slots, state.elsewhere = book.unshared(state.endpoint.max_in_flight), 0


def _draw(cap: int, slots: int | None, in_flight: int, *, leaving: bool) -> Draw:
    """Ask for what is in flight and some room; where all room is used, for four times as much."""
    is_full = slots is not None and in_flight >= slots
    want = 4 * in_flight + 4 if is_full else in_flight + max(1, round(cap * ROOM))
    keep = 0 if leaving else min(in_flight, cap)
    need = in_flight + 1 if is_full else 0
    return Draw(
        "slots", float(cap), 0.0, keep=float(keep), want=float(min(cap, want)), need=float(need), leaving=leaving
    )
