"""Which faults could be felt when, and by whom: what a call may end with in whose life only these were on."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

WELL = "200"
NOTHING: frozenset[str] = frozenset()
"""A good gateway hides it: whoever calls politely gets a whole 200."""
BROKEN = frozenset({"none", "cut"})
"""The call's connection, or its process, went away: no answer, or one that breaks off."""

RECONNECT_S = 5.0
"""How long management may need to get its connections to Postgres back."""


@dataclass(slots=True)
class Strike:
    """One fault while it can be felt: by the callers of `process` (its command), None = by all. Times in seconds."""

    fault: str
    process: str | None
    excuses: frozenset[str]
    began: float
    takes_postgres: bool = False
    ended: float = math.inf
    felt_until: float = math.inf
    """Some are over for callers before they are mended."""
    took: bool = False
    """Whether it did anything at all."""

    def mended(self, now: float) -> None:
        """Note its end."""
        self.ended = now
        self.felt_until = min(self.felt_until, now)


@dataclass
class Strikes:
    """All faults of a run, in order of their beginning."""

    all: list[Strike] = field(default_factory=list)
    excused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(ending, fault) → calls."""
    saved: int = 0
    """Calls that ended well though a fault was on."""

    def felt(self, process: str, began: float, ended: float) -> list[Strike]:
        """Return those that a call of `process` could have felt in its life."""
        return [
            each
            for each in self.all
            if each.began <= ended and each.felt_until >= began and each.process in {None, process}
        ]

    def judge(self, process: str, began: float, ended: float, ending: str) -> str | None:
        """Count a polite call; return what is wrong with its ending, None when it is well or excused."""
        felt = self.felt(process, began, ended)
        if ending == WELL:
            self.saved += bool(felt)
            return None
        for each in felt:
            if ending in each.excuses:
                self.excused[ending, each.fault] += 1
                return None
        return f"{process}: calls that could be saved ended {ending!r} under {self._names(began, ended)}"

    def judge_management(self, process: str, began: float, ended: float, ending: str) -> str | None:
        """Return what is wrong with a management call's ending: it needs Postgres, and may miss it a bit longer."""
        on = self._on(began - RECONNECT_S, ended)
        if ending == WELL or any(each.takes_postgres or (each.excuses and each.process == process) for each in on):
            return None
        return f"{process}: management calls ended {ending!r} under {self._names(began - RECONNECT_S, ended)}"

    def _on(self, began: float, ended: float) -> list[Strike]:
        return [each for each in self.all if each.began <= ended and each.ended >= began]

    def _names(self, began: float, ended: float) -> str:
        return ", ".join(sorted({each.fault for each in self._on(began, ended)})) or "no fault"

    def idle(self) -> list[str]:
        """Return the faults that did nothing: they have shown nothing."""
        return sorted({each.fault for each in self.all if not each.took})
