"""What the `predictive` strategy learns of one limiter: its true limit, its window, its other users, a safety margin.

Online identification, not forecasting: on public traces neither load forecasts nor output predictions improved
admission, while identifying limiters removed most refusals. Per quota and model family:

| learned      | from                                                       | used as                                 |
|--------------|------------------------------------------------------------|-----------------------------------------|
| limit        | the provider's word, above or below the configuration      | the limit                               |
| ... seen     | remainders without a limit: their peak over three windows  | the limit                               |
| ... untold   | set membership: a probe that was admitted above the belief | raises it to what was proven            |
|              | proves a higher limit; two unexplained 429s a lower one    | lowers it, by a quarter at most         |
| outside      | header remainders that fell more than we spent             | slower refill (`Meter.lean`)            |
| phase        | a refusal's retry-after, where windows are fixed           | a fixed window in place of a sliding    |
| margin       | AIMD: + `MARGIN_STEP` a 429, * `MARGIN_DECAY` a success    | a request must fit (1 + margin) times   |

Safety. Beliefs only tighten admission, except counted probes: only when demand waits, one at a time for a quota (one
more for every `PROBES_APART` that were admitted in a row), and `PROBE_S` (doubling) apart once one was refused. Where
the margin buys nothing, or requests above the configured limit are refused more often than the others, beliefs are set
aside for a while (see `guard`); learning goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from gateway.balancing.charging import Dimension, Reservation
from gateway.balancing.ewma import DecayingCounts
from gateway.balancing.guard import Guard
from gateway.balancing.remainders import OUTSIDE_TAU_S, PHASE_WITHIN, Outside, Remainders

MARGIN_STEP = 0.04
MARGIN_DECAY = 0.998
MARGIN_CAP = 0.2
OUTSIDE_CAP = 0.8
"""Others are never believed to take more than this share of a limit."""
PROBE_S = 60.0
PROBE_CAP_S = 240.0
PROBES_APART, PROBES_MOST = 4, 8
LOWER_BY = 0.75
LOWER_APART_S = 5.0
LOWER_WITHIN_S = 120.0
FACTOR_MIN, FACTOR_MAX = 0.1, 4.0
"""How far a learned limit may be from the configured one."""
SHARE_TAU_S = 300.0
SHARE_PRIOR = 4.0
MAX_AGE_S = 86_400.0
PEAK = "peak|"
"""Lessons so named are joined by their maximum: what a process has seen is at most the limit."""


@dataclass(frozen=True, slots=True)
class Learning:
    """How a pool wants its limiters learned. `limits_are_caps`: configured limits are deliberate, never exceeded."""

    limits_are_caps: bool = False

    def identify(self, now: float) -> Identification:
        """Begin to learn a limiter."""
        return Identification(self, now)


@dataclass(frozen=True, slots=True)
class BeliefView:
    """What is believed of one limiter: the margin, by dimension the learned limit over the configured one, limits
    seen in remainders, and outside use a second; `error` is the mean absolute error of predicted remainders, as a
    share of the limit.
    `fallback_s`: how long beliefs are still set aside, 0 when in use.
    """

    margin: float
    factors: Mapping[str, float]
    seen: Mapping[str, float]
    outside_per_s: Mapping[str, float]
    phases_known: tuple[str, ...]
    error: float | None
    probes: int
    probes_refused: int
    trials_refused_share: float | None
    fallback_s: float


class Identification:
    """The beliefs about one limiter; owned and driven by its ledger. `active` False: kept, but not in use."""

    __slots__ = (
        "_all", "_factors", "_heard_at", "_outside", "_probe_gap_s", "_probe_refused_at", "_probing", "_proofs",
        "_remainders", "_suspected_at", "active", "guard", "learning", "margin", "phases", "probe_due", "probes",
        "probes_refused",
    )  # fmt: skip

    def __init__(self, learning: Learning, now: float) -> None:
        self.learning = learning
        self.active = True
        self.margin = 0.0
        self.phases: dict[Dimension, float] = {}
        """The end of one of the provider's fixed windows, once known."""
        # Until a whole window was seen, what is in use is not known either.
        self.probe_due = now + PROBE_S
        self.probes = self.probes_refused = 0
        self._factors: dict[Dimension, float] = {}
        self._outside: dict[Dimension, Outside] = {}
        self._remainders: dict[Dimension, Remainders] = {}
        self._heard_at: dict[Dimension, float] = {}
        self._probe_gap_s = PROBE_S
        self._probe_refused_at = -inf
        self._probing = 0
        self._proofs = 0
        self._suspected_at: dict[Dimension, float] = {}
        self._all = DecayingCounts(SHARE_TAU_S)
        self.guard = Guard()

    def refused_share(self, now: float) -> float:
        """Give the share of recent requests that were refused; a few are needed before it counts, silence fades it."""
        return self._all.share_at(now, SHARE_PRIOR)

    def in_use(self, now: float) -> bool:
        """Tell whether beliefs count, rather than plain accounting."""
        return self.active and now >= self.guard.fallback_until

    def limit(self, dimension: Dimension, configured: int | None, told: int | None, share: float) -> float | None:
        """Give the limit to enforce, as configured; the provider's word, where it gives one, is the truth.

        `share` turns amounts of the meter's window into the configured one's.
        """
        if told is not None:
            return told if configured is None or not self.learning.limits_are_caps else min(told, configured)
        seen = self._remainders.get(dimension)
        if seen is not None and (peak := seen.known) is not None:
            limit = peak * share
            return limit if configured is None or not self.learning.limits_are_caps else min(limit, configured)
        return None if configured is None else max(1.0, configured * self._factors.get(dimension, 1.0))

    def remained(
        self, dimension: Dimension, remaining: float, held: float, as_of: float, window_s: float, *, refused: bool
    ) -> bool:
        """Take in what remains of a limit that is not named, and `held` before the request; True: beliefs changed."""
        known = self._remainders.get(dimension)
        if known is None:
            known = self._remainders[dimension] = Remainders(as_of)
        changed, edge = known.add(remaining, held, as_of, window_s, refused=refused)
        if edge is not None:
            phase = self.phases.get(dimension)
            # The window began before the request and after the one before it: the later edge errs on waiting. A phase
            # that says the same, or was named by a refusal, is more exact.
            if phase is None or (edge - phase) % window_s > PHASE_WITHIN * window_s:
                self.phases[dimension] = edge
                changed = True
        return changed

    @property
    def heard_of(self) -> set[Dimension]:
        """The dimensions whose remainders the provider tells, so that nothing need be guessed."""
        return {*self._heard_at, *self._remainders}

    def margin_at(self, now: float) -> float:
        """Give the margin in force now; 0 in a trial, or when beliefs are not in use."""
        return 0.0 if self.guard.in_trial(now) or not self.in_use(now) else self.margin

    def heard(
        self, dimension: Dimension, drop: float, limit: float, per_s: float, *, since: float, now: float
    ) -> float:
        """Take in that a remainder was `drop` below (above: negative) the account; give the outside use a second.

        `since`: when the provider last began to count anew.
        """
        last = self._heard_at.get(dimension)
        self._heard_at[dimension] = now
        known = self._outside.setdefault(dimension, Outside())
        if last is not None and now > last and now > since:
            elapsed_s = now - max(last, since)
            # What the account had assumed of others already is part of what they took.
            used = max(-limit, min(limit, drop)) + min(known.rate(), OUTSIDE_CAP * per_s) * elapsed_s
            known.add(used, elapsed_s, abs(drop) / limit)
        return min(known.rate(), OUTSIDE_CAP * per_s) if self.in_use(now) else 0.0

    def may_probe(self, dimensions: Iterable[Dimension], now: float) -> bool:
        """Tell whether one request may go above these (untold) limits to find out."""
        at_once = min(PROBES_MOST, 1 + self._proofs // PROBES_APART)
        if self._probing >= at_once or now < self.probe_due or not self.in_use(now):
            return False
        top = 1.0 if self.learning.limits_are_caps else FACTOR_MAX
        return all(self._factors.get(dimension, 1.0) < top for dimension in dimensions)

    def sent(self, reservation: Reservation, *, held_back: bool, emptied: bool, now: float) -> None:
        """Note an admission; `held_back` and `emptied`: see `Guard.tried`."""
        if reservation.proof:
            self._probing += 1
            self.probes += 1
        if reservation.trial:
            reservation.trial = self.guard.tried(held_back=held_back, emptied=emptied)
        if self.margin:
            self.guard.plan(now)

    def admitted(self, reservation: Reservation, configured: Mapping[Dimension, int], now: float) -> bool:
        """Take in a success; True when a limit has changed."""
        self._count(reservation, refused=False, now=now)
        self.margin *= MARGIN_DECAY
        if self.margin < 1e-3:
            self.margin = 0.0
        return bool(reservation.proof) and self.proven(reservation, configured)

    def proven(self, reservation: Reservation, configured: Mapping[Dimension, int]) -> bool:
        """Take in that a probe was admitted, which its answer's head shows; True when a limit has changed."""
        proof, reservation.proof = reservation.proof, ()
        self._probing -= 1
        if reservation.started_at <= self._probe_refused_at:
            # What was in use then counted a probe in that was refused.
            return False
        self._proofs += 1
        self._probe_gap_s = PROBE_S
        top = 1.0 if self.learning.limits_are_caps else FACTOR_MAX
        for dimension, used in proof:
            limit = configured.get(dimension)
            if limit:
                known = self._factors.get(dimension, 1.0)
                self._factors[dimension] = max(known, min(top, used / limit))
        return True

    def refused(
        self,
        reservation: Reservation,
        suspects: Mapping[Dimension, float],
        configured: Mapping[Dimension, int],
        now: float,
    ) -> bool:
        """Take in a 429; True when a limit has changed.

        `suspects`: what was in use, by dimension, of the untold limits when nothing the provider told explains it.
        """
        self._count(reservation, refused=True, now=now)
        if reservation.proof:
            self._probing -= 1
            self._proofs = 0
            self._probe_refused_at = now
            self.probes_refused += 1
            self.probe_due = now + self._probe_gap_s
            self._probe_gap_s = min(PROBE_CAP_S, 2.0 * self._probe_gap_s)
            return False
        self.margin = min(MARGIN_CAP, self.margin + MARGIN_STEP)
        changed = False
        for dimension, used in suspects.items():
            changed |= self._suspect(dimension, used, configured.get(dimension), now)
        return changed

    def _suspect(self, dimension: Dimension, used: float, configured: int | None, now: float) -> bool:
        since = now - self._suspected_at.get(dimension, -inf)
        if since < LOWER_APART_S:
            return False
        if since > LOWER_WITHIN_S or not configured:
            self._suspected_at[dimension] = now
            return False
        del self._suspected_at[dimension]
        known = self._factors.get(dimension, 1.0)
        self._factors[dimension] = max(FACTOR_MIN, known * LOWER_BY, min(known, used / configured))
        return True

    def abandoned(self, reservation: Reservation) -> None:
        """Take in that nothing was learned."""
        if reservation.proof:
            self._probing -= 1

    def _count(self, reservation: Reservation, *, refused: bool, now: float) -> None:
        self._all.add(now, failed=refused)
        bold = bool(reservation.proof) or any(factor > 1.0 for factor in self._factors.values())
        margin = self.margin > 0.0 and not reservation.proof and self.in_use(now)
        if self.guard.count(refused=refused, trial=reservation.trial, margin=margin, bold=bold, now=now):
            self._factors = {dimension: min(1.0, factor) for dimension, factor in self._factors.items()}

    def export(self, unix_offset_s: float) -> dict[str, object]:
        """Give what is worth keeping over a restart, as plain JSON values."""
        return {
            "margin": self.margin,
            "seen": {dimension.name.lower(): known.known or 0.0 for dimension, known in self._remainders.items()},
            "phases": {dimension.name.lower(): end + unix_offset_s for dimension, end in self.phases.items()},
            "factors": {dimension.name.lower(): factor for dimension, factor in self._factors.items()},
            "outside": {dimension.name.lower(): known.rate() for dimension, known in self._outside.items()},
        }

    def restore(self, saved: Mapping[str, object], now: float, unix_offset_s: float) -> None:
        """Take over what was saved: limits and phase as they are, the rest at half its weight.

        Whatever is not understood is left out: a saved state never keeps a pool from starting.
        """
        self.margin = min(MARGIN_CAP, max(0.0, number(saved.get("margin")) or 0.0)) / 2.0
        for dimension, limit in by_dimension(saved.get("seen")):
            if limit > 0.0:
                self._remainders.setdefault(dimension, Remainders(now)).limit = limit
        for dimension, end in by_dimension(saved.get("phases")):
            self.phases[dimension] = end - unix_offset_s
        top = 1.0 if self.learning.limits_are_caps else FACTOR_MAX
        for dimension, factor in by_dimension(saved.get("factors")):
            self._factors[dimension] = min(top, max(FACTOR_MIN, factor))
        for dimension, per_s in by_dimension(saved.get("outside")):
            known = self._outside.setdefault(dimension, Outside())
            known.add(max(0.0, per_s) * OUTSIDE_TAU_S / 4.0, OUTSIDE_TAU_S / 2.0, 0.0)

    def lessons(self, unix_offset_s: float) -> dict[str, float]:
        """Give what other processes are to be taught, by `kind|dimension`; times are Unix seconds.

        Limits and phases are the provider's and so everybody's. Margin and outside use stay here: they correct this
        process's own account, in which the others' spending is seen from another side.
        """
        found = {f"factor|{dimension.name.lower()}": factor for dimension, factor in self._factors.items()}
        found |= {f"phase|{dimension.name.lower()}": end + unix_offset_s for dimension, end in self.phases.items()}
        found |= {f"{PEAK}{dim.name.lower()}": seen.limit for dim, seen in self._remainders.items() if seen.limit}
        if self.probes_refused:
            found["probe|next"] = self.probe_due + unix_offset_s
        return found

    def hear(self, lesson: str, value: float | None, now: float, unix_offset_s: float) -> bool:
        """Take over what another process was taught (None: it is no longer said); True: a limit or phase may differ.

        What is not understood is left out. Nothing sticks: a factor that is wrong is found out as if it were our own,
        the others' peak lasts as long as they say it, a probe is put off by `PROBE_CAP_S` at most.
        """
        kind, _, name = lesson.partition("|")
        if lesson == "probe|next" and value is not None:
            self.probe_due = max(self.probe_due, min(value - unix_offset_s, now + PROBE_CAP_S))
            return False
        dimension = next((each for each in Dimension if each.name.lower() == name), None)
        if dimension is None:
            return False
        if kind == "peak":
            known = self._remainders.get(dimension)
            if known is None and value is None:
                return False
            known = known or self._remainders.setdefault(dimension, Remainders(now))
            before, known.elsewhere = known.known, max(0.0, value or 0.0)
            return known.known != before
        if value is None:
            return False
        if kind == "factor":
            top = 1.0 if self.learning.limits_are_caps else FACTOR_MAX
            self._factors[dimension] = min(top, max(FACTOR_MIN, value))
            # Refusals under the old belief are explained by the new one.
            self._suspected_at.pop(dimension, None)
        elif kind == "phase":
            self.phases[dimension] = value - unix_offset_s
        return kind in ("factor", "phase")

    def view(self, now: float) -> BeliefView:
        """Give it for dashboards."""
        errors = [known.error for known in self._outside.values() if known.error is not None]
        return BeliefView(
            margin=self.margin,
            factors={dimension.name.lower(): factor for dimension, factor in self._factors.items()},
            seen={
                dimension.name.lower(): peak for dimension, known in self._remainders.items() if (peak := known.known)
            },
            outside_per_s={dimension.name.lower(): known.rate() for dimension, known in self._outside.items()},
            phases_known=tuple(dimension.name.lower() for dimension in self.phases),
            error=max(errors, default=None),
            probes=self.probes,
            probes_refused=self.probes_refused,
            trials_refused_share=self.guard.trials_refused_share,
            fallback_s=max(0.0, self.guard.fallback_until - now),
        )


def number(value: object) -> float | None:
    """Give a saved figure; None where there is none."""
    # An integer may be too large to be a float at all.
    return float(value) if isinstance(value, int | float) and -1e300 < value < 1e300 else None


def by_dimension(value: object) -> Iterable[tuple[Dimension, float]]:
    """Give the saved figures by dimension; what is not understood is left out."""
    if isinstance(value, Mapping):
        for dimension in Dimension:
            figure = number(value.get(dimension.name.lower()))
            if figure is not None:
                yield dimension, figure
