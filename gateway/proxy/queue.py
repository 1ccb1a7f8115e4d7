"""Where requests wait while every key is full: parks them, and wakes whoever's turn it is.

Who goes next is `gateway.balancing.admission`'s to say: by priority, fair between a tenant's clients, bounded, nobody
longer than its deadline. Here are the waiting tasks. Requests that compete for the same keys form a line; of each line
one request at a time tries, when its line's pause ends or capacity may have come free earlier. One that fails gets its
place back; one that succeeds leaves and lets the next try at once. Whoever arrives while others wait in its line stands
in it, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from gateway.balancing.admission import Admission, AdmissionView, Away, Ticket, TurnedAway

_FAR_S = 3600.0


@dataclass(slots=True)
class _Line:
    """Requests for the same keys: how many stand in it, who tries now, until when trying is known to be useless."""

    size: int = 0
    trying: Place | None = None
    closed_until: float = -inf


@dataclass(slots=True)
class QueueTally:
    """What became of those who stood here: `served` after `waited_s` in all, and who was not, by reason."""

    served: int = 0
    waited_s: float = 0.0
    full: int = 0
    too_late: int = 0
    expired: int = 0
    displaced: int = 0
    left: int = 0


class Place:
    """One request's place; made by `PoolQueue.place`, good for many waits, given up by `leave`.

    `ahead` is how many stood before it when it came, None until then. `retry_after_s` tells, after `wait` returned
    False, when trying again makes sense, if that is known.
    """

    __slots__ = ("_queue", "_turn", "_within_s", "ahead", "retry_after_s", "ticket")

    def __init__(self, queue: PoolQueue, ticket: Ticket, within_s: Callable[[int], float] | None) -> None:
        self.ticket = ticket
        self.ahead: int | None = None
        self.retry_after_s: float | None = None
        self._queue = queue
        self._within_s = within_s
        self._turn: asyncio.Future[bool] | None = None

    async def wait(self, until: float | None) -> bool:
        """Wait for its turn; nothing comes free by itself before `until` (queue's clock, seconds), None: not known.

        False: there is no room, it would take (or took) longer than its deadline, or it was displaced by a request
        with more right to wait. Cancelling gives up the place.
        """
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._turn = turn
        if not self._queue._stand(self, until):
            return False
        try:
            return await turn
        except BaseException:
            self.leave()
            raise
        finally:
            self._turn = None

    def leave(self, *, served: bool = False) -> None:
        """Give up the place: a key was got (`served`), or waiting is over. The next in line tries."""
        self._queue._leave(self, served=served)

    def _tell(self, turn: bool) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(turn)


class PoolQueue:
    """The waiting requests of one pool; `clock` is monotonic seconds, the one of deadlines and pauses."""

    def __init__(self, clock: Callable[[], float], *, max_waiting: int = 1000, late_lane: bool = False) -> None:
        self._clock = clock
        self._admission = Admission(max_waiting=max_waiting, late_lane=late_lane)
        self.tally = QueueTally()
        self._lines: dict[str, _Line] = {}
        self._places: dict[int, Place] = {}
        self._tickets = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf

    @property
    def waiting(self) -> int:
        """How many requests stand here, those included that are trying just now."""
        return len(self._places)

    def configure(self, *, max_waiting: int, late_lane: bool = False) -> None:
        """Bound the queue anew; who waits already stays."""
        self._admission.max_waiting = max(0, max_waiting)
        self._admission.late_lane = late_lane

    def is_waited_for(self, line: str) -> bool:
        """Tell whether somebody waits in this line already."""
        return line in self._lines

    def place(
        self,
        line: str,
        *,
        client_id: str,
        priority: int,
        deadline: float,
        cost: float = 1.0,
        late_s: float | None = None,
        within_s: Callable[[int], float] | None = None,
    ) -> Place:
        """Take a number; standing in line begins with the first `wait`. See `Ticket` for the arguments.

        `late_s` is how long it may wait before its answer is late; `within_s` bounds what its wait is estimated at.
        """
        self._tickets += 1
        now = self._clock()
        due = inf if late_s is None else now + late_s
        return Place(self, Ticket(self._tickets, client_id, line, priority, now, deadline, due, cost), within_s)

    def released(self) -> None:
        """Tell that capacity may have come free: one request of each line tries."""
        if self._lines:
            for line in self._lines.values():
                line.closed_until = -inf
            self._go_on()

    def view(self) -> AdmissionView:
        """Give who waits, for how long, and how many are served a second."""
        return self._admission.view(self._clock())

    def _stand(self, place: Place, until: float | None) -> bool:
        ticket, now = place.ticket, self._clock()
        if ticket.id in self._places:
            line = self._lines[ticket.line]
            line.trying = None
            self._admission.put_back(ticket, now)
        else:
            earliest = now if until is None else until
            joined = self._admission.join(ticket, now, earliest=earliest, within_s=place._within_s)
            if isinstance(joined, TurnedAway):
                place.retry_after_s = joined.retry_after_s
                if joined.reason is Away.FULL:
                    self.tally.full += 1
                else:
                    self.tally.too_late += 1
                return False
            place.ahead = joined.ahead
            self._places[ticket.id] = place
            line = self._lines.setdefault(ticket.line, _Line())
            line.size += 1
            if joined.displaced is not None:
                self._places[joined.displaced.id].retry_after_s = joined.wait_s
                self.tally.displaced += 1
                self._dismiss(joined.displaced)
        if until is not None:
            line.closed_until = until
        self._go_on()
        return True

    def _leave(self, place: Place, *, served: bool) -> None:
        ticket = place.ticket
        if self._places.pop(ticket.id, None) is None:
            return
        line = self._lines[ticket.line]
        if line.trying is place:
            line.trying = None
        else:
            self._admission.leave(ticket.id)
        if served:
            now = self._clock()
            self._admission.served(now)
            self.tally.served += 1
            self.tally.waited_s += now - ticket.joined_at
        else:
            self.tally.left += 1
        self._shorten(ticket.line)
        self._go_on()

    def _dismiss(self, ticket: Ticket) -> None:
        """Send away a request that the admission has taken out."""
        self._places.pop(ticket.id)._tell(False)
        self._shorten(ticket.line)

    def _shorten(self, name: str) -> None:
        line = self._lines[name]
        line.size -= 1
        if line.size == 0:
            del self._lines[name]

    def _go_on(self) -> None:
        """Send home whose time is over, let one of each open line try, and set the alarm for what comes next."""
        now = self._clock()
        for ticket in self._admission.expire(now):
            self.tally.expired += 1
            self._dismiss(ticket)
        shut = {name for name, line in self._lines.items() if line.trying is not None or line.closed_until > now}
        while len(shut) < len(self._lines):
            chosen = self._admission.next(now, skip=shut)
            if chosen is None:
                break
            shut.add(chosen.line)
            place = self._lines[chosen.line].trying = self._places[chosen.id]
            place._tell(True)
        self._set_alarm(now)

    def _set_alarm(self, now: float) -> None:
        at = self._admission.next_deadline()
        for line in self._lines.values():
            if line.trying is None and now < line.closed_until < at:
                at = line.closed_until
        if at < self._timer_at or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._timer_at = at
            if at < inf:
                delay_s = min(max(0.0, at - now), _FAR_S)
                self._timer = asyncio.get_running_loop().call_later(delay_s, self._alarm)

    def _alarm(self) -> None:
        self._timer, self._timer_at = None, inf
        self._go_on()
