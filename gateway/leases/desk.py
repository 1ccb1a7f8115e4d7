"""A process's side of the leases: what it reports, what it does with what it is granted, how it lives alone. Pure.

A report gives back all that is not about to be spent and asks anew, so that between two exchanges nothing lies idle
here that others could use. What is held is for `HORIZON_S` of demand and `BURST` of the limit at least (`ALONE` if no
other process draws; a newcomer finds the rest); near the limit the store grants less. Idle for `IDLE_S` it is returned.

Time. A lease lasts `LEASE_S` from *before* its report was sent, on this process's clock: wherever the process was
stopped in between, the store's idea of the end is later. Past it nothing is spent until an exchange has been tried
again.

The store away. Every row holds for each lessee a `share` of each limit, and in every version of a row they sum up to at
most 1 (`row._share`). While no row changes they are rates that all may use side by side: the sum stays within the
limit. Each failed exchange refills `share * limit / (window + SLACK_S)` for the seconds until the next one; `SLACK_S`
seconds of it may pile up, so any window sees at most share * limit. As the outage goes on, demand moves and processes
come that were never granted anything: over `DECAY_S` shares go over to 1 / (n + 1) for n lessees known, which leaves
one part for newcomers; these take `NEWCOMER`. Convex combinations of two divisions of at most 1 are one; those that
grow lag behind by `LEASE_S`, since processes differ by that much in when they noticed. Days are not refilled but
divided: each may use its share of what nobody held, once.

The bound where only one process cannot reach the store: the others take over its share `LEASE_S` after its last report,
and it goes on with at most 1 / (n + 1) in the end: so much too much is asked, until the provider's word reaches both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any
from uuid import UUID

from gateway.balancing.book import QuotaBook
from gateway.balancing.charging import DAILY, Dimension, unit_of
from gateway.balancing.leased import CREDIT, QuotaLease
from gateway.balancing.ledger import Ledger
from gateway.balancing.limiter import Bucket, FixedWindow
from gateway.balancing.ready import EndpointState, QuotaState
from gateway.leases.keys import KeyShares, release
from gateway.leases.lessons import LedgerLessons
from gateway.leases.news import News
from gateway.leases.part import DECAY_S, SLACK_S, Part, safe_share
from gateway.leases.row import LEASE_S, Answer, Grant, Report
from gateway.leases.store import Key
from gateway.leases.tenant_word import TENANT_ROW, TenantWords

IDLE_S = 10.0
TOLD_S = 1.5
"""The provider's word on what is left is passed on while it is younger than this."""
BATCH = 256
"""Quotas that are exchanged at once: a row is to be put back soon after it was read."""
AGAIN_S = 0.2
"""A process that found a short window spent asks again no sooner."""


@dataclass(slots=True)
class Held:
    """One ledger's lease as the desk keeps it; `name` is the family. `leaving`: its return is under way."""

    key: Key
    name: str
    ledger: Ledger
    book: QuotaBook | None
    lease: QuotaLease = field(init=False)
    parts: dict[Dimension, Part] = field(default_factory=dict)
    uses: int = -1
    used_at: float = -inf
    renewed_at: float = -inf
    leaving: bool = False
    lessons: LedgerLessons = field(init=False)


class Desk:
    """All leases of one process; `lessee` names it, `unix_offset_s` turns its clock into Unix time.

    `on_need`: called when there is something to exchange that cannot wait.
    """

    def __init__(self, lessee: str, *, unix_offset_s: float, on_need: Callable[[], None]) -> None:
        self.lessee = lessee
        self._unix_offset_s = unix_offset_s
        self._on_need = on_need
        self._active: dict[Key, dict[str, Held]] = {}
        self._waited_for: set[Key] = set()
        self._shares: dict[Key, KeyShares] = {}
        self._words = TenantWords(unix_offset_s)
        self._unsaid: dict[Key, dict[str, Any]] = {}
        self._surveys: dict[UUID, Mapping[str, list[EndpointState]]] = {}
        self.news = News()

    def __len__(self) -> int:
        return len(self._active)

    def open(
        self,
        tenant_id: UUID,
        quota_id: str,
        family: str,
        ledger: Ledger,
        book: QuotaBook | None = None,
    ) -> None:
        """Put a ledger under a lease: that of its predecessor, while that is in use."""
        key = (tenant_id, quota_id)
        held = self._active.get(key, {}).get(family)
        if held is None:
            held = Held(key, family, ledger, book)
            held.lease = QuotaLease(partial(self._noted, held))
            held.lessons = LedgerLessons(family, self._unix_offset_s)
        held.ledger = ledger
        ledger.share(held.lease)
        if book is not None:
            held.book = book
            self._words.know(tenant_id, book)

    def of(self, tenant_id: UUID) -> TenantLeases:
        """Give the desk as one tenant's quotas see it."""
        return TenantLeases(self, tenant_id)

    def _noted(self, held: Held) -> None:
        # A ledger that was replaced may still be told of outcomes: its successor counts.
        self._active.setdefault(held.key, {}).setdefault(held.name, held)
        self._waited_for.add(held.key)
        self._on_need()

    def batches(self, now: float) -> list[list[Key] | None]:
        """Part all that is in use into what is collected one after the other; None: all of it at once."""
        keys = list(self._active)
        if len(keys) <= BATCH:
            return [None]
        self.news.exchanged_all(now)
        return [keys[at : at + BATCH] for at in range(0, len(keys), BATCH)]

    def collect(self, now: float, *, everything: bool = False, batch: list[Key] | None = None) -> dict[Key, Report]:
        """Make the reports that are due: of a batch, of `everything` in use, or of quotas that somebody waits for.

        Beside the last: of what has news for others, and of what others announced.
        """
        reports: dict[Key, Report] = {}
        self._surveys = {}
        if batch is not None:
            keys = [key for key in batch if key in self._active]
        elif everything:
            self.news.exchanged_all(now)
            keys = list(self._active)
        else:
            told, heard = self._look(now), self.news.take_heard(now)
            # Who has something left to say does so: to listen is not to hold anything.
            wanted = {*self._waited_for, *told, *(key for key in heard if key in self._unsaid)}
            keys = [key for key in wanted if key in self._active]
            reports |= {key: self._listening() for key in {*told, *heard} - set(keys)}
        for key in keys:
            report = reports[key] = Report(self.lessee, {})
            families = self._active[key]
            found = self._keys_of(key)
            for held in families.values():
                # Callers name models: what the quota remembers no more is not held any longer either.
                forgotten = found is not None and found[0].ledgers.get(held.name) is not held.ledger
                self._report(held, report, now, forgotten=forgotten)
            report.leaving = all(held.leaving for held in families.values())
            if found is not None:
                shares = self._shares.setdefault(key, KeyShares(self._unix_offset_s))
                shares.report(*found, report, leaving=report.leaving)
        for tenant_id, said in self._words.say({key[0] for key in reports}, now, everything=everything).items():
            reports[tenant_id, TENANT_ROW] = self._listening(said)
        for key, report in reports.items():
            # What an exchange that failed would have told is told with the next one.
            report.facts = {**self._unsaid.get(key, {}), **report.facts}
            if report.facts:
                self._unsaid[key] = report.facts
            report.is_news |= bool(report.facts)
        self._waited_for = self._waited_for - reports.keys() if batch is not None else set()
        return reports

    def _listening(self, said: Mapping[str, Any] = {}) -> Report:
        return Report(self.lessee, {}, facts=dict(said), leaving=True, listening=True)

    def _look(self, now: float) -> list[Key]:
        """Find what others are to know before the period is over; give the rows to exchange for it."""
        if not self.news.is_time_to_look(now):
            return []
        for key, families in self._active.items():
            if not self.news.may_tell(key, now):
                continue
            shares = self._shares.get(key)
            said: dict[str, Any] = {}
            for held in families.values():
                said |= held.lessons.say(held.ledger, now)
            has_moved = False
            if shares is not None:
                said |= shares.say()
                has_moved = shares.has_moved()
            self._is_news(key, said, has_moved=has_moved)
        for tenant_id in {key[0] for key in self._active}:
            key = tenant_id, TENANT_ROW
            if self.news.may_tell(key, now):
                self._is_news(key, self._words.news(tenant_id))
        return self.news.take_told(now)

    def _is_news(self, key: Key, said: Mapping[str, Any], *, has_moved: bool = False) -> None:
        if said:
            self._unsaid[key] = {**self._unsaid.get(key, {}), **said}
        if said or has_moved:
            self.news.tell(key)

    def early_at(self) -> float:
        """Give when to exchange before the period is over although no request waits for it; inf: not at all."""
        return self.news.early_at(is_in_use=bool(self._active))

    def announced(self, tenant_id: UUID, rows: Iterable[str], now: float) -> None:
        """Take in that another process has told something in these rows."""
        self.news.noticed(now)
        for key in ((tenant_id, row) for row in rows):
            if key[1] == TENANT_ROW:
                if self._words.knows(tenant_id):
                    self.news.announced(key)
            elif key in self._active:
                shares = self._shares.get(key)
                if shares is not None and shares.short:
                    self._waited_for.add(key)  # it may have left slots, which only an exchange gives
                else:
                    self.news.announced(key)

    def _keys_of(self, key: Key) -> tuple[QuotaState, list[EndpointState]] | None:
        book = next(iter(self._active[key].values())).book
        quota = None if book is None else book.state(key[1])
        if book is None or quota is None:
            return None
        if key[0] not in self._surveys:
            self._surveys[key[0]] = book.survey()
        return quota, self._surveys[key[0]].get(key[1], [])

    def _report(self, held: Held, report: Report, now: float, *, forgotten: bool) -> None:
        lease, ledger = held.lease, held.ledger
        if (
            ledger.concurrency.in_flight
            or lease.uses != held.uses
            or any(meter.blocked for _, meter in lease.meters.values())
        ):
            held.uses, held.used_at = lease.uses, now
        held.leaving = forgotten or now - held.used_at >= IDLE_S
        lease.noted = True
        lease.asked = False
        for dimension, source in ledger.meters():
            known = lease.meters.get(dimension)
            if known is None:
                continue
            part = held.parts.get(dimension)
            if part is None:
                part = held.parts[dimension] = Part(unit_of(dimension) == 0, gross_at=now)
            name = f"{held.name}|{dimension.name.lower()}"
            told_age_s = now - ledger.told_as_of
            told = source.available(now) if dimension in ledger.told and told_age_s < TOLD_S else None
            draw = part.draw(known[1], source, now, unix_offset_s=self._unix_offset_s, leaving=held.leaving)
            draw.span_s = now - held.renewed_at if held.renewed_at > -inf else 0.0
            report.draws[name] = draw
            if told is not None:
                draw.told, draw.told_age_s = told, max(0.0, told_age_s)
        report.facts |= held.lessons.say(ledger, now)

    def granted(self, key: Key, answer: Answer, *, sent_at: float, now: float, retry_at: float) -> bool:
        """Take over what an exchange granted; `retry_at`: when the next one is due. True: there is more than before."""
        more = is_busy = False
        self._unsaid.pop(key, None)
        if key[1] == TENANT_ROW:
            return self._words.hear(key[0], answer.facts, now)
        shares = self._shares.get(key)
        if shares is not None and (found := self._keys_of(key)) is not None:
            more = shares.hear(*found, answer, now)
            is_busy = shares.short
        for held in list(self._active.get(key, {}).values()):
            lease = held.lease
            if held.leaving:
                self._left(held)
                continue
            short, again_at = False, retry_at
            for dimension, (_, meter) in lease.meters.items():
                part = held.parts.get(dimension)
                grant = answer.grants.get(f"{held.name}|{dimension.name.lower()}")
                if part is None or grant is None:
                    continue
                more |= part.take_over(meter, grant)
                short |= grant.short
                if grant.short and meter.recent is not None:
                    again_at = min(again_at, now + max(AGAIN_S, grant.retry_s))
                part.plenty = not grant.short
                self._lower(held, dimension, grant, now)
            held.renewed_at = sent_at
            lease.until = sent_at + LEASE_S
            # Where there was not enough for all, asking again at once would only take it from those who ask less often.
            lease.retry_at, lease.is_hurried = again_at if short else now, again_at < retry_at
            lease.asked = short or is_busy
            more |= held.lessons.hear(held.ledger, answer.facts, now)
        return more

    def _left(self, held: Held) -> None:
        """The lease is returned: back to the state before the first exchange."""
        lease, families = held.lease, self._active[held.key]
        found = self._keys_of(held.key)
        del families[held.name]
        if not families:
            if found is not None and held.book is not None:
                release(*found, held.book)
            del self._active[held.key]
            self._shares.pop(held.key, None)
            self.news.forget(held.key)
        lease.noted, lease.asked = False, False
        lease.until, lease.retry_at = inf, -inf
        for dimension, (_, meter) in lease.meters.items():
            part = held.parts.get(dimension)
            if part is not None:
                part.acked, part.returned = part.sent, 0.0
                meter.balance = meter.limit * CREDIT - (meter.spent - part.sent)
                meter.free = meter.pace_per_s = inf
        held.leaving = False

    def heard(self, key: Key, answer: Answer, now: float) -> bool:
        """Take over what others have told in a row that was only read. True: there may be more than before."""
        if key[1] == TENANT_ROW:
            return self._words.hear(key[0], answer.facts, now)
        more, shares = False, self._shares.get(key)
        if shares is not None and (found := self._keys_of(key)) is not None:
            more = shares.hear_words(found[1], answer, now)
        for held in self._active.get(key, {}).values():
            more |= held.lessons.hear(held.ledger, answer.facts, now)
        return more

    def _lower(self, held: Held, dimension: Dimension, grant: Grant, now: float) -> None:
        """Let the ledger see what others have spent, unless the provider itself has just told."""
        if now - held.ledger.told_as_of < TOLD_S and dimension in held.ledger.told:
            return
        source = held.ledger.meter(dimension)
        if source is None:
            return
        if isinstance(source, FixedWindow) and grant.passed - source.spent(now) > 0.5:
            return  # the store's clock is behind: it tells of the window that is over here
        surplus = source.available(now) - grant.available
        if surplus > 0.0:
            taken = source.taken
            source.take(surplus, now)
            # Not ours: a later word of the provider does not have to be corrected by it.
            source.taken = taken

    def leave(self) -> None:
        """Let the next reports return everything: the process ends."""
        for families in self._active.values():
            for held in families.values():
                held.uses = held.lease.uses
                held.used_at = -inf
                for _, meter in held.lease.meters.values():
                    meter.blocked = False

    def conflicted(self, keys: Iterable[Key]) -> None:
        """Take back what the reports on these would have returned: the store is known not to have taken them."""
        for key in keys:
            for held in self._active.get(key, {}).values():
                held.leaving = False
                for dimension, (_, meter) in held.lease.meters.items():
                    part = held.parts.get(dimension)
                    if part is not None:
                        meter.balance += part.returned
                        part.returned = 0.0

    def away(self, keys: Iterable[Key], now: float, *, span_s: float) -> None:
        """Live on the own share for the next `span_s` seconds: an exchange was tried just now and failed."""
        for held in [held for key in keys for held in self._active.get(key, {}).values()]:
            lease = held.lease
            held.leaving = False
            alone_s = max(0.0, now - held.renewed_at - LEASE_S) if held.renewed_at > -inf else DECAY_S
            for dimension, source in held.ledger.meters():
                part, known = held.parts.get(dimension), lease.meters.get(dimension)
                if part is None or known is None:
                    continue
                meter = known[1]
                share = safe_share(part.share, part.lessees, alone_s)
                meter.free, meter.pace_per_s = 0.0, share * meter.limit / source.window_s
                if dimension in DAILY:
                    if not part.is_alone:
                        meter.balance += share * part.free
                else:
                    slack_s = 0.0 if isinstance(source, Bucket) else SLACK_S
                    per_s = share * meter.limit / (source.window_s + slack_s)
                    least = 1.0 if part.counts_requests else part.need
                    room = max(per_s * SLACK_S, min(least, meter.limit))
                    meter.balance = min(max(room, meter.balance), meter.balance + per_s * span_s)
                part.is_alone = True
            lease.until = now + LEASE_S
            lease.retry_at, lease.is_hurried = now + min(span_s, 1.0), False
            lease.asked = True


@dataclass(frozen=True, slots=True)
class TenantLeases:
    """Puts the ledgers of one tenant under leases: `balancing.book.QuotaLeasing`."""

    desk: Desk
    tenant_id: UUID

    def open(self, book: QuotaBook, quota_id: str, family: str, ledger: Ledger) -> None:
        """See `QuotaLeasing.open`."""
        self.desk.open(self.tenant_id, quota_id, family, ledger, book)
