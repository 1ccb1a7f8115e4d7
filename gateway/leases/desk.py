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
from gateway.balancing.leased import CREDIT, LeasedMeter, QuotaLease
from gateway.balancing.ledger import Ledger
from gateway.balancing.limiter import Bucket, FixedWindow, Meter
from gateway.balancing.ready import EndpointState, QuotaState
from gateway.balancing.windows import DAY_S
from gateway.leases.account import Kind
from gateway.leases.keys import KeyShares, release
from gateway.leases.lessons import LedgerLessons
from gateway.leases.part import Part
from gateway.leases.row import LEASE_S, Answer, Draw, Grant, Report
from gateway.leases.tenant_word import TENANT_ROW, TenantWords

Key = tuple[UUID, str]
"""A quota: its tenant, its id."""

HORIZON_S, BURST, ALONE = 1.5, 1.0 / 16.0, 0.5
KEEP_S = 0.25
"""For so much demand a process keeps what it holds while an exchange is under way."""
SPARE = 1.0 / 64.0  # of the limit is kept, too, while nobody goes short: a burst or a slow exchange stops no request
IDLE_S = 10.0
TOLD_S = 1.5
"""The provider's word on what is left is passed on while it is younger than this."""
SLACK_S = 5.0
SHORT_S = 10.0
"""Windows this short are over before an exchange would tell of what was spent in them: it is told when."""
AGAIN_S = 0.2
"""A process that found a short window spent asks again no sooner."""
DECAY_S = 60.0


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
            self._words.know(tenant_id, book)

    def of(self, tenant_id: UUID) -> TenantLeases:
        """Give the desk as one tenant's quotas see it."""
        return TenantLeases(self, tenant_id)

    def _noted(self, held: Held) -> None:
        # A ledger that was replaced may still be told of outcomes: its successor counts.
        self._active.setdefault(held.key, {}).setdefault(held.name, held)
        self._waited_for.add(held.key)
        self._on_need()

    def collect(self, now: float, *, everything: bool = False) -> dict[Key, Report]:
        """Make the reports that are due: of quotas that somebody waits for, or of `everything` that is in use."""
        reports: dict[Key, Report] = {}
        self._surveys = {}
        for key in list(self._active) if everything else [key for key in self._waited_for if key in self._active]:
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
            reports[tenant_id, TENANT_ROW] = Report(self.lessee, {}, facts=said, leaving=True)
        for key, report in reports.items():
            # What an exchange that failed would have told is told with the next one.
            report.facts = {**self._unsaid.get(key, {}), **report.facts}
            if report.facts:
                self._unsaid[key] = report.facts
        self._waited_for.clear()
        return reports

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
            draw = self._draw(part, known[1], source, now, leaving=held.leaving)
            draw.span_s = now - held.renewed_at if held.renewed_at > -inf else 0.0
            report.draws[name] = draw
            if told is not None:
                draw.told, draw.told_age_s = told, max(0.0, told_age_s)
        report.facts |= held.lessons.say(ledger, now)

    def _draw(self, part: Part, meter: LeasedMeter, source: Meter, now: float, *, leaving: bool) -> Draw:
        part.measure(meter, now)
        limit = meter.limit
        demand, need = part.rate, 0.0
        if meter.blocked:
            # How much more is wanted is not known: twice as much each time, until it is enough or the fair part.
            demand, need = 2.0 * part.rate + meter.need, meter.need
        if part.counts_requests:
            need = 1.0
        part.need = max(0.5 * part.need, meter.need)
        want = demand * HORIZON_S
        if source.window_s < DAY_S:
            want = max(want, limit * (ALONE if part.lessees == 1 else BURST))
        want = min(limit, max(want, need, part.need))
        spare = limit * SPARE if part.plenty and source.window_s < DAY_S else 0.0
        keep = 0.0 if leaving else max(0.0, min(meter.balance, max(part.rate * KEEP_S, spare)))
        part.returned = meter.balance - keep
        part.sent = meter.spent
        meter.balance = keep
        meter.blocked, meter.need = False, 0.0
        kind: Kind = "bucket" if isinstance(source, Bucket) else "sliding"
        phase, recent = 0.0, None
        if kind == "sliding" and source.window_s <= SHORT_S:
            recent = part.dated(meter, source.window_s, now)
        if isinstance(source, FixedWindow):
            kind, phase = "fixed", (source.phase + self._unix_offset_s) % source.window_s
        return Draw(
            kind=kind,
            limit=limit,
            window_s=source.window_s,
            phase=round(phase, 3),
            spent=part.sent,
            acked=part.acked,
            keep=keep,
            want=want,
            need=need,
            rate=min(demand, limit / source.window_s),
            leaving=leaving,
            recent=recent,
        )

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
                more |= self._take_over(part, meter, grant)
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

    @staticmethod
    def _take_over(part: Part, meter: LeasedMeter, grant: Grant) -> bool:
        part.acked = part.sent
        part.logged.clear()
        part.returned, part.is_alone = 0.0, False
        part.share, part.lessees, part.free = grant.share, grant.lessees, max(0.0, grant.free)
        meter.free, meter.pace_per_s = part.free, grant.pace_per_s
        before = meter.balance
        meter.balance = grant.held - (meter.spent - part.sent)
        return meter.balance > before

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
        lease.noted, lease.asked = False, False
        lease.until, lease.retry_at = inf, -inf
        for dimension, (_, meter) in lease.meters.items():
            part = held.parts.get(dimension)
            if part is not None:
                part.acked, part.returned = part.sent, 0.0
                meter.balance = meter.limit * CREDIT - (meter.spent - part.sent)
                meter.free = meter.pace_per_s = inf
        held.leaving = False

    def _lower(self, held: Held, dimension: Dimension, grant: Grant, now: float) -> None:
        """Let the ledger see what others have spent, unless the provider itself has just told."""
        if now - held.ledger.told_as_of < TOLD_S and dimension in held.ledger.told:
            return
        source = held.ledger.meter(dimension)
        if source is None:
            return
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


def safe_share(share: float, lessees: int, alone_s: float) -> float:
    """Give the part of a limit that is a process's own, `alone_s` after its lease ended; see the module."""
    even = 1.0 / (lessees + 1)
    passed_s = alone_s if even < share else alone_s - LEASE_S
    weight = min(1.0, max(0.0, passed_s / DECAY_S))
    return share + (even - share) * weight
