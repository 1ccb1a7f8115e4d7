"""Who goes next when a pool is full: priority, fairness between clients, deadlines, bounded. Pure; the driver parks.

Order. Levels by priority, 0 first. Inside a level the client that was served least goes first, by virtual counters of
served cost (start-time fair queuing, Goyal et al. 1996; for tokens: VTC, Sheng et al. 2024): a client that was idle
begins at the counter of the one served last, so that it can neither save up turns nor be made to pay for its silence.
One client's own tickets are first in, first out. Tickets name a line (such as a model): what has no capacity just now
is skipped without losing its place.

No starvation: of every `PATIENCE` turns one goes to the ticket that waits longest, whatever its level.

Bounds: at most `max_waiting`. When full, a newcomer displaces the newest ticket of a lower level, or of the client that
fills its own level most; else it is turned away. Whoever would wait past the deadline is turned away at once, with the
estimate as an honest Retry-After. With a late lane (opt-in), tickets past their `due` step behind the punctual ones of
their level: one missed deadline does not become many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from itertools import takewhile
from math import inf

from gateway.balancing.ewma import Ewma

PATIENCE = 8
_RATE_TAU_S = 10.0
_RATE_KNOWN_S = 60.0
"""How fast turns come is forgotten after this: what a stall had shown holds nobody up once it is over."""

LevelKey = tuple[int, bool]


@dataclass(frozen=True, slots=True)
class Ticket:
    """One waiting request; times in seconds on the balancer's clock.

    `due` is when its answer begins to be late, `deadline` when the caller gives up. `cost` is what fairness counts:
    1 a request, or the estimated tokens.
    """

    id: int
    client_id: str
    line: str = ""
    priority: int = 1
    joined_at: float = 0.0
    deadline: float = inf
    due: float = inf
    cost: float = 1.0


class Away(StrEnum):
    """Why a ticket may not wait."""

    FULL = "full"
    TOO_LATE = "too_late"


@dataclass(frozen=True, slots=True)
class Joined:
    """It waits: `ahead` tickets before it, for about `wait_s`. `displaced` had to leave for it and is to be told so."""

    ahead: int
    wait_s: float
    displaced: Ticket | None = None


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """It does not wait; trying again makes sense after `retry_after_s`."""

    reason: Away
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class AdmissionView:
    """The queue for dashboards: waiting by priority and by client, the oldest's wait, how many are served a second."""

    waiting: int
    by_priority: Mapping[int, int]
    by_client: Mapping[str, int]
    oldest_s: float
    rate_per_s: float | None


class _Level:
    """The tickets of one priority (punctual or late), by client; counters of what each was served."""

    __slots__ = ("clients", "served", "virtual_now")

    def __init__(self) -> None:
        self.clients: dict[str, OrderedDict[int, Ticket]] = {}
        self.served: dict[str, float] = {}
        self.virtual_now = 0.0

    def add(self, ticket: Ticket, *, first: bool = False) -> None:
        tickets = self.clients.get(ticket.client_id)
        if tickets is None:
            tickets = self.clients[ticket.client_id] = OrderedDict()
            self.served[ticket.client_id] = max(self.served.get(ticket.client_id, 0.0), self.virtual_now)
        tickets[ticket.id] = ticket
        if first:
            # Before all that came later; those that came earlier and were passed over keep standing before it.
            before = list(takewhile(lambda each: each < ticket.id, tickets))
            for ticket_id in (ticket.id, *reversed(before)):
                tickets.move_to_end(ticket_id, last=False)

    def remove(self, ticket: Ticket) -> None:
        tickets = self.clients[ticket.client_id]
        del tickets[ticket.id]
        if not tickets:
            del self.clients[ticket.client_id]
            self._forget()

    def _forget(self) -> None:
        """Counters at or below the virtual time say nothing any more; at most as many are kept as clients wait."""
        gone = [client for client, at in self.served.items() if client not in self.clients and at <= self.virtual_now]
        for client in gone:
            del self.served[client]

    def head(self, skip: Container[str]) -> Ticket | None:
        """Give the first open ticket of the client that was served least."""
        best: tuple[float, float, int] | None = None
        chosen: Ticket | None = None
        for client, tickets in self.clients.items():
            for ticket in tickets.values():
                if ticket.line not in skip:
                    rank = (self.served[client], ticket.joined_at, ticket.id)
                    if best is None or rank < best:
                        best, chosen = rank, ticket
                    break
        return chosen

    def charge(self, ticket: Ticket) -> None:
        start = self.served[ticket.client_id]
        self.virtual_now = max(self.virtual_now, start)
        self.served[ticket.client_id] = start + ticket.cost

    def refund(self, ticket: Ticket) -> None:
        if ticket.client_id in self.served:
            self.served[ticket.client_id] = max(self.virtual_now, self.served[ticket.client_id] - ticket.cost)


class Admission:
    """The queue of one pool; see the module. Invariant: `waiting` <= `max_waiting`, but for tickets put back."""

    def __init__(self, *, max_waiting: int = 1000, late_lane: bool = False) -> None:
        self.max_waiting = max(0, max_waiting)
        self.late_lane = late_lane
        self._levels: dict[LevelKey, _Level] = {}
        self._where: dict[int, tuple[Ticket, LevelKey]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._dues: list[tuple[float, int]] = []
        self._arrivals: list[tuple[float, int]] = []
        self._turns = 0
        self._interval = Ewma(_RATE_TAU_S)
        self._measured_at = -inf
        self._last_turn: float | None = None

    def __len__(self) -> int:
        return len(self._where)

    def join(
        self, ticket: Ticket, now: float, *, earliest: float = 0.0, within_s: Callable[[int], float] | None = None
    ) -> Joined | TurnedAway:
        """Let a ticket wait, if there is room and sense in it; `earliest` is when capacity is known to come.

        `within_s` bounds the estimate for a ticket with so many ahead, by what is known of limits.
        """
        if not self._where:
            # Nobody has waited since the last turn: the time until the next one says nothing about capacity.
            self._last_turn = None
        ahead = sum(
            len(tickets)
            for (priority, _), level in self._levels.items()
            if priority <= ticket.priority
            for tickets in level.clients.values()
        )
        estimate_s = self._estimate(ahead, now)
        if within_s is not None and now + estimate_s > ticket.deadline:
            estimate_s = min(estimate_s, within_s(ahead))
        wait_s = max(0.0, earliest - now, estimate_s)
        if now + wait_s > ticket.deadline:
            return TurnedAway(Away.TOO_LATE, wait_s)
        displaced: Ticket | None = None
        if len(self._where) >= self.max_waiting:
            displaced = self._displaceable(ticket)
            if displaced is None:
                return TurnedAway(Away.FULL, wait_s)
            self.leave(displaced.id)
        self._insert(ticket)
        return Joined(ahead, wait_s, displaced)

    def _insert(self, ticket: Ticket, *, late: bool = False, first: bool = False) -> None:
        key = (ticket.priority, late)
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = _Level()
        level.add(ticket, first=first)
        self._where[ticket.id] = (ticket, key)
        heappush(self._arrivals, (ticket.joined_at, ticket.id))
        if ticket.deadline < inf:
            heappush(self._deadlines, (ticket.deadline, ticket.id))
        if self.late_lane and ticket.due < inf and not late:
            heappush(self._dues, (ticket.due, ticket.id))

    def _displaceable(self, newcomer: Ticket) -> Ticket | None:
        if not self._levels:
            return None
        worst = max(self._levels)
        level = self._levels[worst]
        greedy = max(level.clients, key=lambda client: len(level.clients[client]))
        if worst[0] == newcomer.priority:
            mine = len(level.clients.get(newcomer.client_id, ()))
            if greedy == newcomer.client_id or len(level.clients[greedy]) <= mine + 1:
                return None
        elif worst[0] < newcomer.priority:
            return None
        return next(reversed(level.clients[greedy].values()))

    def _estimate(self, ahead: int, now: float) -> float:
        known = self._interval.value
        return 0.0 if known is None or now - self._measured_at > _RATE_KNOWN_S else ahead * known

    def next(self, now: float, *, skip: Container[str] = frozenset()) -> Ticket | None:
        """Take the ticket whose turn it is, of the lines not in `skip`; None when none waits for any of them."""
        self._step_aside(now)
        chosen = self._longest_waiting(skip) if (self._turns + 1) % PATIENCE == 0 else None
        if chosen is None:
            for key in sorted(self._levels):
                chosen = self._levels[key].head(skip)
                if chosen is not None:
                    break
        if chosen is None:
            return None
        self._turns += 1
        _, key = self._where[chosen.id]
        self._levels[key].charge(chosen)
        self._drop(chosen.id)
        return chosen

    def served(self, now: float) -> None:
        """Take in that a ticket's turn found capacity: the rate of this is what waits are estimated by."""
        if self._last_turn is not None:
            self._interval.add(max(0.0, now - self._last_turn), now)
            self._measured_at = now
        self._last_turn = now

    def _longest_waiting(self, skip: Container[str]) -> Ticket | None:
        self._compact()
        waiting = self._arrivals
        while waiting and waiting[0][1] not in self._where:
            heappop(waiting)
        if not waiting:
            return None
        ticket, _ = self._where[waiting[0][1]]
        if ticket.line not in skip:
            return ticket
        return min(
            (each for each, _ in self._where.values() if each.line not in skip),
            key=lambda each: (each.joined_at, each.id),
            default=None,
        )

    def _compact(self) -> None:
        """Heaps keep what has left until it surfaces; rebuilt before that can outgrow the queue."""
        bound = 2 * len(self._where) + 64
        for heap in (self._arrivals, self._deadlines, self._dues):
            if len(heap) > bound:
                # Who was put back stands in it more than once.
                heap[:] = sorted({row for row in heap if row[1] in self._where})

    def _step_aside(self, now: float) -> None:
        while self._dues and self._dues[0][0] <= now:
            _, ticket_id = heappop(self._dues)
            found = self._where.get(ticket_id)
            if found is not None and not found[1][1]:
                self._drop(ticket_id)
                self._insert(found[0], late=True)

    def put_back(self, ticket: Ticket, now: float) -> None:
        """Give a ticket its place back: its turn came and there was no capacity for it after all, so it was none."""
        self._turns -= 1
        late = self.late_lane and ticket.due <= now
        self._insert(ticket, late=late, first=True)
        self._levels[ticket.priority, late].refund(ticket)
        self._compact()

    def leave(self, ticket_id: int) -> bool:
        """Take a ticket out (the caller is gone); False when it does not wait."""
        found = ticket_id in self._where
        if found:
            self._drop(ticket_id)
            self._compact()
        return found

    def _drop(self, ticket_id: int) -> None:
        ticket, key = self._where.pop(ticket_id)
        level = self._levels[key]
        level.remove(ticket)
        if not level.clients:
            # Nobody waits, so nobody is owed a turn: counters of clients that come and go must not pile up.
            del self._levels[key]

    def expire(self, now: float) -> list[Ticket]:
        """Take out and give all whose deadline has come."""
        expired: list[Ticket] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, ticket_id = heappop(self._deadlines)
            found = self._where.get(ticket_id)
            if found is not None:
                self._drop(ticket_id)
                expired.append(found[0])
        return expired

    def next_deadline(self) -> float:
        """Give the earliest deadline of a waiting ticket, inf when none has one."""
        while self._deadlines and self._deadlines[0][1] not in self._where:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else inf

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for ticket, _ in self._where.values())

    def view(self, now: float) -> AdmissionView:
        """Give what waits, without changing it."""
        by_priority: dict[int, int] = {}
        by_client: dict[str, int] = {}
        for ticket in self:
            by_priority[ticket.priority] = by_priority.get(ticket.priority, 0) + 1
            by_client[ticket.client_id] = by_client.get(ticket.client_id, 0) + 1
        oldest = min((ticket.joined_at for ticket in self), default=now)
        interval = self._interval.value
        return AdmissionView(
            len(self), by_priority, by_client, max(0.0, now - oldest), 1.0 / interval if interval else None
        )
