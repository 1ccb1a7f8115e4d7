"""Decides for the supervisor of workers whom to start, whom to end and by when, and who answers callers. No IO.

Events come in (`said`, `ended`, `signalled`); `step` gives what is to be done now, `wakes_at` when to ask again at the
latest. A worker is *starting*, then *up* (it could answer), then *ready* (its `/readyz` says so). It accepts callers
from then on, whatever becomes of its readiness. One that is up and not ready accepts only on behalf of all: while no
worker is ready, one of them is told to, for probes want an answer rather than silence, and it is told to leave off as
soon as another is ready.

After the first ending signal every worker is killed that has not ended `drain_s + END_S` later (after SIGTERM: and
`lead_s`), after a second one `FORCED_S` later. Nothing a worker does or leaves undone moves that moment.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals
from typing import Final

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
GOOD_S: Final = 60.0
START_S: Final = 120.0
"""How long a worker may take until it is up, and one that is to replace another until it is ready."""
HOPELESS: Final = 3
"""So many workers in a row that never came up, while none ever did: the fault is in the configuration."""
END_S: Final = 15.0
"""What a worker gets beyond lead time and drain before it is killed."""
FORCED_S: Final = 15.0
"""What a worker gets after a second signal."""
REAP_S: Final = 2.0
"""How long the supervisor waits for one that it has killed."""


class Phase(IntEnum):
    """How far a worker has come."""

    STARTING = 0
    UP = 1
    READY = 2


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process under this number, for this place."""

    worker: int
    place: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a worker a signal."""

    worker: int
    signal: Signals


@dataclass(frozen=True, slots=True)
class Accept:
    """Tell a worker that is not ready to accept callers all the same, or to leave off."""

    worker: int
    on: bool


@dataclass(frozen=True, slots=True)
class Note:
    """Log this."""

    level: int
    text: str
    worker: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


Action = Start | Send | Accept | Note


@dataclass(slots=True)
class _Member:
    number: int
    place: int
    since: float
    phase: Phase = Phase.STARTING
    speaks: bool = False
    """Accepts callers though it is not ready."""
    told: bool = False
    """It has been told to end."""
    kill_at: float = inf
    killed: bool = False

    def accepts(self) -> bool:
        return not self.told and not self.killed and (self.speaks or self.phase is Phase.READY)


@dataclass(slots=True)
class _Place:
    current: _Member | None = None
    start_at: float = 0.0
    pause_s: float = 0.0


class Crew:
    """The workers of one supervisor, in `count` places. Times are of one monotonic clock, in seconds."""

    def __init__(self, count: int, *, lead_s: float, drain_s: float) -> None:
        self._lead_s = lead_s
        self._drain_s = drain_s
        self._places = [_Place() for _ in range(count)]
        self._members: dict[int, _Member] = {}
        self._started = 0
        self._due: list[Action] = []
        self._to_renew: list[int] = []
        self._coming: _Member | None = None
        """The one that a roll has started, until it is ready."""
        self._leaving: _Member | None = None
        """The one that a roll has replaced, until it has ended."""
        self._rolls = False
        self._signals = 0
        self._end_by = inf
        self._was_up = False
        self._failures = 0

    @property
    def is_ending(self) -> bool:
        """Tell whether no worker is started any more."""
        return self._end_by < inf

    @property
    def has_failed(self) -> bool:
        """Tell whether it ended because no worker ever came up."""
        return self.is_ending and not self._signals

    def is_over(self, now: float) -> bool:
        """Tell whether there is nobody left to wait for, or nobody worth it."""
        return self.is_ending and (not self._members or now >= self._end_by + REAP_S)

    def wakes_at(self) -> float:
        """Return when `step` has something to do though nothing happened."""
        moments = [self._kill_at(member) for member in self._members.values() if not member.killed]
        if self.is_ending:
            moments.append(self._end_by + REAP_S)
        else:
            moments += [place.start_at for place in self._places if place.current is None]
        return min(moments, default=inf)

    def said(self, worker: int, phase: Phase) -> None:
        """Take a worker's word of how far it has come."""
        member = self._members.get(worker)
        if member is None or phase <= member.phase:
            return
        member.phase = phase
        self._was_up, self._failures = True, 0
        if phase is Phase.READY:
            self._due.append(Note(logging.INFO, "worker serves", worker))

    def ended(self, worker: int, code: int, now: float) -> None:
        """Take note that a worker's process has ended."""
        member = self._members.pop(worker, None)
        if member is None or self.is_ending:
            return
        if member is self._leaving:
            self._leaving = None
        elif member is self._coming:
            self._coming = None
            self._give_up_roll(member)
        elif (place := self._places[member.place]).current is member:
            place.current = None
            if self._coming is not None and self._coming.place == member.place:
                place.current, self._coming = self._coming, None
            else:
                self._start_again(place, member, code, now)
        if member.phase is Phase.STARTING:
            self._failures += 1
            if not self._was_up and self._failures >= HOPELESS:
                self._end(now)

    def signalled(self, number: Signals, now: float) -> None:
        """Take a signal that the supervisor was sent."""
        if number is SIGHUP:
            if not self.is_ending and not self._rolls:
                self._rolls, self._to_renew = True, list(range(len(self._places)))
                self._due.append(Note(logging.INFO, "workers are replaced one by one"))
            return
        again = self._signals > 0
        self._signals += 1
        lead_s = self._lead_s if number is SIGTERM else 0.0
        self._end(now + (FORCED_S if again else lead_s + self._drain_s + END_S))
        for member in self._members.values():
            # One that was replaced drains already: to it the first of these signals would be its second.
            if again or not member.told:
                self._tell(member, number)

    def step(self, now: float) -> list[Action]:
        """Return what is to be done now, in this order."""
        for member in self._members.values():
            if not member.killed and now >= self._kill_at(member):
                member.killed = True
                self._due.append(Note(logging.ERROR, "worker killed: it took too long", member.number))
                self._due.append(Send(member.number, SIGKILL))
        if not self.is_ending:
            self._renew(now)
            for index, place in enumerate(self._places):
                if place.current is None and now >= place.start_at:
                    place.current = self._start(index, now)
            self._choose_speaker()
        due, self._due = self._due, []
        return due

    def _kill_at(self, member: _Member) -> float:
        late = member.phase is Phase.STARTING or (member is self._coming and member.phase is not Phase.READY)
        return min(member.kill_at, self._end_by, member.since + START_S if late else inf)

    def _end(self, by: float) -> None:
        self._end_by = min(self._end_by, by)
        self._to_renew.clear()

    def _start(self, place: int, now: float) -> _Member:
        self._started += 1
        member = self._members[self._started] = _Member(self._started, place, now)
        self._due.append(Start(member.number, place))
        return member

    def _start_again(self, place: _Place, member: _Member, code: int, now: float) -> None:
        if now - member.since >= GOOD_S:
            place.pause_s = 0.0
        place.start_at = now + place.pause_s
        extra = {"code": code, "in_s": place.pause_s}
        self._due.append(Note(logging.ERROR, "worker ended, starting another", member.number, extra))
        place.pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2.0 * place.pause_s))

    def _tell(self, member: _Member, number: Signals) -> None:
        # Before it is up only the interpreter takes SIGINT, with a traceback.
        sent = SIGTERM if number is SIGINT and member.phase is Phase.STARTING else number
        member.told = True
        self._due.append(Send(member.number, sent))

    def _renew(self, now: float) -> None:
        """Go on with a roll: one place after the other, the new one ready before the old one is told to end."""
        new = self._coming
        if new is not None and new.phase is Phase.READY:
            self._coming = None
            place = self._places[new.place]
            old, place.current = place.current, new
            if old is not None:
                # No lead time: others accept, nobody has to be told.
                self._tell(old, SIGINT)
                old.kill_at = now + self._drain_s + END_S
                self._leaving = old
        while self._to_renew and self._coming is None and self._leaving is None:
            index = self._to_renew.pop(0)
            if self._places[index].current is not None:
                self._coming = self._start(index, now)
        if self._rolls and not self._to_renew and self._coming is None and self._leaving is None:
            self._rolls = False
            self._due.append(Note(logging.INFO, "all workers are replaced"))

    def _give_up_roll(self, member: _Member) -> None:
        self._rolls = False
        self._to_renew.clear()
        self._due.append(Note(logging.ERROR, "the new worker does not start, the old ones stay", member.number))

    def _choose_speaker(self) -> None:
        members = self._members.values()
        if any(member.phase is Phase.READY and member.accepts() for member in members):
            for member in members:
                if member.speaks and member.phase is not Phase.READY:
                    member.speaks = False
                    self._due.append(Accept(member.number, on=False))
            return
        if any(member.accepts() for member in members):
            return
        can = [member for member in members if member.phase is Phase.UP and not member.told and not member.killed]
        if can:
            speaker = min(can, key=lambda member: member.place)
            speaker.speaks = True
            self._due.append(Note(logging.WARNING, "worker answers for all, none being ready", speaker.number))
            self._due.append(Accept(speaker.number, on=True))
