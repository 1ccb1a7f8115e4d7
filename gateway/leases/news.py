"""When a process exchanges before its period, since it has something to tell or others have. Pure.

What a process is taught by an answer (a cool-down, a limit, a breaker that opens) the others are to know within a
second, while exchanges come about once a second. So the desk looks every `LOOK_S` for news; a row with some is
exchanged at once and announced (`notices`), and those who use the row read it, without writing it back.

Storms. A row's news are told early once in `AGAIN_S`, at most `MAX_TOLD` rows go with one early exchange, and what
others announce is read every `HEAR_S`, at most `MAX_HEARD` rows: whatever there is to say, a process makes no more than
`1 / LOOK_S` exchanges and `1 / HEAR_S` reads a second beside its period. A process that hears more than `MAX_NOTICES`
in a second announces nothing itself: each notice goes to all processes, whose number that squares. What does not go
early goes with the period, as does everything where notices do not arrive.
"""

from __future__ import annotations

from math import inf

from gateway.leases.store import Key

LOOK_S = 0.5
AGAIN_S = 0.4
HEAR_S = 0.2
MAX_TOLD = 64
MAX_HEARD = 256
MAX_NOTICES = 200
_MAX_MARKED = 10_000


class News:
    """What one process is to tell early, and to hear."""

    def __init__(self) -> None:
        self._to_tell: dict[Key, None] = {}
        self._told_at: dict[Key, float] = {}
        self._to_hear: dict[Key, None] = {}
        self._heard_at = self._looked_at = -inf
        self._second, self._notices = 0, 0

    def early_at(self, *, is_in_use: bool) -> float:
        """Give when to look for news or to hear what was announced; inf: when something is."""
        at = self._looked_at + LOOK_S if is_in_use else inf
        return min(at, self._heard_at + HEAR_S) if self._to_hear else at

    def is_time_to_look(self, now: float) -> bool:
        """Tell whether to look for news now, and take it that this is done."""
        if now < self._looked_at + LOOK_S:
            return False
        self._looked_at = now
        return True

    def may_tell(self, key: Key, now: float) -> bool:
        """Tell whether a row's news may go early."""
        return now - self._told_at.get(key, -inf) >= AGAIN_S

    def tell(self, key: Key) -> None:
        """Have a row exchanged early."""
        self._to_tell[key] = None

    def announced(self, key: Key) -> None:
        """Have a row read: another process has told something there."""
        if len(self._to_hear) < _MAX_MARKED:
            self._to_hear[key] = None

    def noticed(self, now: float) -> None:
        """Count a notice of another process."""
        if (second := int(now)) != self._second:
            self._second, self._notices = second, 0
        self._notices += 1

    def may_announce(self, now: float) -> bool:
        """Tell whether there is room for another notice; see the module."""
        return int(now) != self._second or self._notices < MAX_NOTICES

    def take_told(self, now: float) -> list[Key]:
        """Give the rows to exchange early, the first ones first; what is too much stays."""
        keys = list(self._to_tell)[:MAX_TOLD]
        for key in keys:
            del self._to_tell[key]
            self._told_at[key] = now
        return keys

    def take_heard(self, now: float) -> list[Key]:
        """Give the rows to read, the first ones first; what is too much stays."""
        if not self._to_hear or now < self._heard_at + HEAR_S:
            return []
        self._heard_at = now
        keys = list(self._to_hear)[:MAX_HEARD]
        for key in keys:
            del self._to_hear[key]
        return keys

    def exchanged_all(self, now: float) -> None:
        """Take in that everything is told and heard now, with the period."""
        self._looked_at = now
        self._to_tell.clear()
        self._to_hear.clear()

    def forget(self, key: Key) -> None:
        """A row that is not used any more has no news."""
        self._to_tell.pop(key, None)
        self._told_at.pop(key, None)
        self._to_hear.pop(key, None)
