"""What headers and 429s teach one process of a limiter, told to the others and heard from them. Pure.

| fact                    | value                                    | from                                       |
|-------------------------|------------------------------------------|--------------------------------------------|
| `told family dimension` | the limit that the provider named        | headers, bodies of 429s                    |
| `cool family`           | Unix seconds until it is asked again     | 429s                                       |
| `peak family dimension` | the most that was seen to remain         | remainders without a limit (`predictive`)  |
| `lesson family kind of` | a factor, a window's end, the next probe | `predictive`, see `Identification.lessons` |

(the words of a name are parted by `|`). Each is told when it has changed, a peak also every `PEAK_AGAIN_S`, so that it
lasts while it is still seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any

from gateway.balancing.charging import Dimension
from gateway.balancing.ledger import Ledger
from gateway.balancing.predictor import PEAK as PEAK_LESSON
from gateway.leases.facts import PEAK, Fact

PEAK_AGAIN_S = 60.0


class LedgerLessons:
    """One ledger's lessons in one process; `family` names it, `unix_offset_s` turns its clock into Unix time."""

    __slots__ = ("_cooling", "_family", "_heard", "_known", "_peaks_at", "_told", "_unix_offset_s")

    def __init__(self, family: str, unix_offset_s: float) -> None:
        self._family = family
        self._unix_offset_s = unix_offset_s
        self._told: dict[Dimension, int] = {}
        self._cooling = -inf
        self._known: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._peaks_at = -inf

    def say(self, ledger: Ledger, now: float) -> dict[str, Any]:
        """Give what is new since the last time."""
        said: dict[str, Any] = {}
        for dimension, limit in ledger.told.items():
            if self._told.get(dimension) != limit:
                self._told[dimension] = limit
                said[f"told|{self._family}|{dimension.name.lower()}"] = limit
        if ledger.cooldown.until > max(now, self._cooling):
            self._cooling = ledger.cooldown.until
            said[f"cool|{self._family}"] = self._cooling + self._unix_offset_s
        if ledger.learner is not None:
            again = now - self._peaks_at >= PEAK_AGAIN_S
            if again:
                self._peaks_at = now
            for name, exact in ledger.learner.lessons(self._unix_offset_s).items():
                value = round(exact, 3)
                if self._known.get(name) != value or (again and name.startswith(PEAK_LESSON)):
                    self._known[name] = value
                    said[self._name(name)] = value
        return said

    def hear(self, ledger: Ledger, facts: Mapping[str, Fact], now: float) -> bool:
        """Take over what others say; True: a limit has changed."""
        changed = False
        for dimension in Dimension:
            fact = facts.get(f"told|{self._family}|{dimension.name.lower()}")
            if fact is not None and isinstance(fact.value, int) and fact.value > 0:
                if self._told.get(dimension) != fact.value != ledger.told.get(dimension):
                    ledger.hear_limit(dimension, fact.value, now)
                    changed = True
                self._told[dimension] = fact.value
        fact = facts.get(f"cool|{self._family}")
        if fact is not None and isinstance(fact.value, int | float):
            until = float(fact.value) - self._unix_offset_s
            if until > max(now, self._cooling):
                self._cooling = until
                ledger.cooldown.hear(until, now)
        if ledger.learner is not None:
            changed |= self._hear_lessons(ledger, facts, now)
        return changed

    def _hear_lessons(self, ledger: Ledger, facts: Mapping[str, Fact], now: float) -> bool:
        learner = ledger.learner
        assert learner is not None
        changed, peaks = False, f"{PEAK}{self._family}|"
        lessons, prefix = f"lesson|{self._family}|", len(f"lesson|{self._family}|")
        for name, fact in facts.items():
            if name.startswith(peaks):
                lesson = PEAK_LESSON + name[len(peaks) :]
            elif name.startswith(lessons):
                lesson = name[prefix:]
            else:
                continue
            if fact.at <= self._heard.get(lesson, -inf) or not _is_figure(fact.value):
                continue
            self._heard[lesson] = fact.at
            if learner.hear(lesson, float(fact.value), now, self._unix_offset_s):
                changed = True
            if not lesson.startswith(PEAK_LESSON):
                self._known.update(self._as_known(ledger, lesson))
        for lesson in [each for each in self._heard if each.startswith(PEAK_LESSON)]:
            if peaks + lesson[len(PEAK_LESSON) :] not in facts:
                # Nobody says it any more, or the word that stands is this process's own.
                del self._heard[lesson]
                changed |= learner.hear(lesson, None, now, self._unix_offset_s)
        if changed:
            ledger.refit(max(now, ledger.used_at))
        return changed

    def _as_known(self, ledger: Ledger, lesson: str) -> dict[str, float]:
        """What was heard is not told again."""
        assert ledger.learner is not None
        value = ledger.learner.lessons(self._unix_offset_s).get(lesson)
        return {} if value is None else {lesson: round(value, 3)}

    def _name(self, lesson: str) -> str:
        if lesson.startswith(PEAK_LESSON):
            return f"{PEAK}{self._family}|{lesson[len(PEAK_LESSON) :]}"
        return f"lesson|{self._family}|{lesson}"


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
