"""What is left of one quota for one model family: reserved before sending, settled after, corrected by every header.

A ledger holds one meter for each dimension whose limit is configured or was told by the provider. The effective limit
is the smaller of the two, so that a deliberate cap stays a cap and a wrong configuration is found out (`told`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nan

from gateway.balancing.charging import DAILY, NO_OUTPUT, OUTPUT, REQUESTS, SIZES, Dimension, Reservation, correction
from gateway.balancing.concurrency import Concurrency
from gateway.balancing.cooldown import Cooldown
from gateway.balancing.decision import Ask
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.known import KnownLimits, named_by
from gateway.balancing.leased import QuotaLease, still_taken
from gateway.balancing.limiter import Meter
from gateway.balancing.meters import Meters
from gateway.balancing.outcome import Outcome, OutcomeKind
from gateway.balancing.predictor import MAX_AGE_S, Identification, Learning, number
from gateway.balancing.quota import Limits
from gateway.balancing.refusal import NEAR, day_end, suspect, window_end
from gateway.balancing.semantics import Semantics
from gateway.balancing.windows import MINUTE_S, fit_meter, window_of


class Ledger:
    """One quota's account for one family; owned and driven by the balancer.

    `unix_offset_s` turns the balancer's clock into Unix time (unix = now + offset), for windows aligned to the day.
    Invariant: after `reserve` was preceded by `ready_at(...) <= now`, no meter is below zero.
    """

    __slots__ = (
        "_as_reserved", "_known", "_meters", "_semantics", "_share", "_share_at", "_sizes", "_unix_offset_s",
        "_unposted", "concurrency", "cooldown", "learner", "lease", "told", "told_as_of", "used_at",
    )  # fmt: skip

    def __init__(self, limits: Limits, semantics: Semantics, now: float, *, unix_offset_s: float = 0.0) -> None:
        self._known = KnownLimits()
        self._meters = Meters()
        self._share = 1.0
        self._share_at = nan
        self._semantics = semantics
        self._sizes = SIZES[semantics.total]
        self._as_reserved = not (semantics.settles or semantics.posts_output)
        self._unix_offset_s = unix_offset_s
        self.told_as_of = -inf  # when the latest request was sent whose answer told what is left
        self._unposted = 0.0
        self.used_at = now
        self.cooldown = Cooldown()
        self.concurrency = Concurrency()
        self.told = self._known.told
        """Limits as the provider last named them."""
        self.learner: Identification | None = None
        """Beliefs beyond the account, where the strategy wants them."""
        self.lease: QuotaLease | None = None
        """What this process may take by itself, where others draw on the quota too."""
        self.configure(limits, now)

    def configure(self, limits: Limits, now: float) -> None:
        """Take over changed limits; what is in use stays in use."""
        self._known.configure(limits)
        self.concurrency.configure(limits.concurrency)
        self.refit(now)

    def learn_limiter(self, learning: Learning | None, now: float) -> None:
        """Begin or cease to use beliefs; what was learned is kept while they are not in use."""
        if learning is not None:
            if self.learner is None:
                self.learner = learning.identify(now)
            self.learner.learning, self.learner.active = learning, True
        elif self.learner is not None:
            self.learner.active = False
            for _, _, meter in self._meters.rows:
                meter.lean(0.0, now)
        self.refit(now)

    def export(self, now: float) -> dict[str, object] | None:
        """Give what is worth keeping over a restart, as plain JSON values; None: nothing is."""
        in_flight = self.concurrency.told
        if self.learner is None and not self.told and in_flight is None:
            return None
        learned = {} if self.learner is None else self.learner.export(self._unix_offset_s)
        kept = {"told": self._known.export(), "concurrency": in_flight, **learned}
        return {"at": now + self._unix_offset_s, **kept}

    def restore(self, saved: Mapping[str, object], now: float) -> None:
        """Take over what `export` gave less than `MAX_AGE_S` ago; what is not understood is left out."""
        at = number(saved.get("at"))
        if at is None or not -60.0 <= now + self._unix_offset_s - at <= MAX_AGE_S:
            return
        self._known.restore(saved.get("told"))
        self.concurrency.tell(int(number(saved.get("concurrency")) or 0))
        if self.learner is not None:
            self.learner.restore(saved, now, self._unix_offset_s)
        self.refit(now)

    def share(self, lease: QuotaLease) -> None:
        """Take from now on only what `lease` grants."""
        self.lease = lease
        lease.fit_all({dimension: meter.limit for dimension, _, meter in self._meters.rows})

    def hear_limit(self, dimension: Dimension, limit: int, now: float) -> None:
        """Take in a limit that the provider named to another process."""
        self.told[dimension] = limit
        self._fit(dimension, max(now, self.used_at))

    def refit(self, now: float) -> None:
        """Make the meters enforce what is known and believed by now."""
        self._share_at = nan
        for dimension in Dimension:
            self._fit(dimension, now)

    def meters(self) -> list[tuple[Dimension, Meter]]:
        """Give what is limited."""
        return [(dimension, meter) for dimension, _, meter in self._meters.rows]

    def _effective(self, dimension: Dimension) -> float | None:
        learner = self.learner
        if learner is not None and learner.active:
            configured, told = self._known.configured.get(dimension), self.told.get(dimension)
            return learner.limit(dimension, configured, told, self._minutes_share(dimension))
        return self._known.effective(dimension)

    def _fit(self, dimension: Dimension, now: float) -> None:
        """Make, resize or drop the meter so that it enforces the effective limit."""
        limit, known, fitted = self._effective(dimension), self.meter(dimension), None
        if limit is not None:
            phase = None if self.learner is None else self.learner.phases.get(dimension)
            window = window_of(self._semantics, dimension, float(limit), self._unix_offset_s, phase)
            fitted = fit_meter(known, window, self._semantics, now)
        if fitted is not known:
            self._meters.put(dimension, fitted)
        if self.lease is not None:
            self.lease.fit(dimension, None if fitted is None else fitted.limit)

    def meter(self, dimension: Dimension) -> Meter | None:
        """Give the meter of a dimension, if it is limited."""
        return self._meters.by_dimension[dimension]

    def output_of(self, ask: Ask) -> float:
        """Give the output tokens that the provider reserves for `ask`."""
        unset = self._semantics.unset_output
        return unset if ask.output_unset and unset is not None else ask.est_output_tokens

    def _capped(self, amount: float, limit: float, unit: int, input_tokens: float) -> float:
        """An estimate of output above the whole limit is only an estimate, unless the provider refuses on it."""
        too_long = unit != OUTPUT and input_tokens > limit
        return amount if too_long or self._semantics.strict_estimate else limit

    def ready_at(self, input_tokens: float, output_tokens: float, now: float, *, leased: bool = True) -> float:
        """Give the moment from which one request of this size fits every limit; <= now: at once; inf: never.

        Not `leased`: whatever of them is this process's to take.
        """
        at, least, learner = self.cooldown.until, 1.0, self.learner
        margin = learner.margin_at(now) if learner is not None and learner.margin else 0.0
        counted = self._sizes(input_tokens, output_tokens)
        for _, unit, meter in self._meters.rows:
            amount, limit, available = counted[unit], meter.limit, meter.available(now)
            if amount > limit:
                amount = self._capped(amount, limit, unit, input_tokens)
            elif margin:
                amount = min(amount * (1.0 + margin * meter.spare), limit)
            if available < amount and (free_at := meter.earliest(amount, now)) > at:
                at = free_at
            if available < least * limit:
                least = available / limit
        self._share, self._share_at = least if least > 0.0 else 0.0, now
        if leased and self.lease is not None and self.cooldown.until <= now and at < inf:
            at = max(at, self.lease.ready_at(counted, now))
        return at

    def headroom(self, now: float) -> float:
        """Give the smallest free share of any limit, 0..1; 1 when nothing is limited, 0 while cooling down."""
        if self.cooldown.until > now:
            return 0.0
        if self._share_at != now:
            self.ready_at(0.0, 0.0, now, leased=False)
        return self._share

    def may_probe(self, input_tokens: float, output_tokens: float, now: float) -> bool:
        """Tell whether one request may go above limits that no provider has named, to find out whether they hold."""
        learner = self.learner
        if learner is None or not learner.active or self.cooldown.until > now or now < learner.probe_due:
            return False
        short = self._short(input_tokens, output_tokens, now)
        return (
            bool(short)
            and not any(each in self.told or each in learner.heard_of for each, _ in short)
            and learner.may_probe(dict(short), now)
        )

    def _short(self, input_tokens: float, output_tokens: float, now: float) -> tuple[tuple[Dimension, float], ...]:
        """Give the dimensions in which a request does not fit, with what would be in use if it went all the same."""
        short = self._meters.short_of(self._sizes(input_tokens, output_tokens), now)
        return tuple((dimension, self._counted(dimension, used, output_tokens)) for dimension, used in short)

    def _counted(self, dimension: Dimension, used: float, more: float = 0.0) -> float:
        """Give what the provider counts, in the configured limit's terms, where our account says `used`.

        What we hold for answers that have not ended (`more`: one that is not yet reserved) it has not counted yet.
        """
        if self._semantics.posts_output and dimension not in NO_OUTPUT:
            used -= self._unposted + more
        return max(0.0, used) * self._minutes_share(dimension)

    def _minutes_share(self, dimension: Dimension) -> float:
        """Give what turns a meter's amounts into those of the configured limit, which are a minute's or a day's."""
        return MINUTE_S / self._semantics.request_window_s if dimension is Dimension.RPM else 1.0

    def reserve(self, input_tokens: float, output_tokens: float, now: float, *, probe: bool = False) -> Reservation:
        """Take one request of this size from every meter; `probe` when `may_probe` let it pass."""
        self.used_at = now
        if self.cooldown.strikes:
            self.cooldown.sent(now)
        learner = self.learner if self.learner is not None and self.learner.active else None
        reservation = Reservation(now, input_tokens, output_tokens, entries := [])
        counted, held_back = self._sizes(input_tokens, output_tokens), False
        if learner is not None:
            margin = learner.margin
            reservation.proof = self._short(input_tokens, output_tokens, now) if probe else ()
            reservation.trial = not probe and margin > 0.0 and learner.in_use(now) and not learner.margin_at(now)
            held_back = reservation.trial and self._meters.holds_back(counted, margin, now)
        if self.lease is not None:
            self.lease.take(counted, now)
        for dimension, unit, meter in self._meters.rows:
            amount = counted[unit]
            if amount > meter.limit:
                amount = self._capped(amount, meter.limit, unit, input_tokens)
            meter.take(amount, now)
            entries.append((dimension, meter, amount, meter.taken))
        self._share_at, self._unposted = nan, self._unposted + output_tokens
        if learner is not None:
            emptied = reservation.trial and any(meter.available(now) < amount for _, meter, amount, _ in entries)
            learner.sent(reservation, held_back=held_back, emptied=emptied, now=now)
        return reservation

    def admitted(self, reservation: Reservation, now: float) -> None:
        """Take in that an answer has begun to what went beyond a believed limit."""
        if self.learner is not None and self.learner.proven(reservation, self._known.configured):
            self.refit(now)

    def settle(self, reservation: Reservation, outcome: Outcome, now: float) -> None:
        """Give the lease's outcome to the meters and the cool-down; the hint, if any, was given to `learn` before."""
        kind, fresh = outcome.kind, False
        learner = self.learner if self.learner is not None and self.learner.active else None
        suspects: Mapping[Dimension, float] = {}
        if kind is OutcomeKind.OK:
            self.cooldown.succeeded()
        elif kind is OutcomeKind.RATE_LIMITED:
            spent_until = day_end(outcome.hint, self._semantics, now, self._unix_offset_s)
            fresh = self.cooldown.refused(outcome.hint, reservation.started_at, now, spent_until)
            if learner is not None or outcome.hint is None:
                suspects = self._suspects(reservation, outcome.hint, now)
        if learner is not None:
            self._identify(learner, reservation, outcome, suspects, now)
        self._share_at = nan
        self._unposted -= reservation.output_tokens
        if kind is OutcomeKind.OK and (self._as_reserved or outcome.usage is None):
            return
        for dimension, meter, reserved, _ in reservation.entries:
            delta = correction(self._semantics, dimension, reserved, reservation, outcome, learned=learner is not None)
            posted = 0.0
            if self._semantics.posts_output and outcome.usage is not None and dimension not in NO_OUTPUT:
                # Held from admission, since it is owed, until a whole window after it was posted.
                posted = float(outcome.usage.output)
                delta -= posted
                meter.adjust(posted, now, now)
            if delta:
                meter.adjust(delta, reservation.started_at, now)
            if self.lease is not None:
                self.lease.adjust(dimension, delta, still_taken(meter, reservation.started_at, now), posted)
            # Less is left than it needed, whatever the account says; far from a limit the cause is another one.
            if dimension in suspects and 0.99 * reserved < (rest := meter.available(now)) < NEAR * meter.limit:
                meter.take(rest - 0.99 * reserved, now)
        if fresh and self._semantics.minute == "continuous":
            free_at = max((meter.earliest(amount, now) for _, meter, amount, _ in reservation.entries), default=now)
            self.cooldown.pressed(free_at, now)

    def _suspects(self, reservation: Reservation, hint: Hint | None, now: float) -> Mapping[Dimension, float]:
        """Give which limit a refusal must have been for, with what was in use of it; nothing where that is not sure."""
        named = self.told if self.learner is None else {*self.told, *self.learner.heard_of}
        found = suspect(reservation, hint, named, now)
        return {} if found is None else {found[0]: self._counted(*found, -reservation.output_tokens)}

    def _identify(
        self, learner: Identification, reservation: Reservation, outcome: Outcome,
        suspects: Mapping[Dimension, float], now: float,
    ) -> None:  # fmt: skip
        """Let the beliefs learn from an outcome, before the meters are corrected by it."""
        changed = False
        if outcome.kind is OutcomeKind.OK:
            changed = learner.admitted(reservation, self._known.configured, now)
        elif outcome.kind is OutcomeKind.RATE_LIMITED:
            changed = learner.refused(reservation, suspects, self._known.configured, now)
            ends = window_end(outcome.hint, self._semantics, now) if self._semantics.fixed_unknown else None
            if ends is not None:
                learner.phases[ends[0]] = ends[1]
                changed = True
        elif reservation.proof:
            learner.abandoned(reservation)
        if changed:
            self.refit(now)

    def learn(self, reservation: Reservation, hint: Hint, now: float) -> None:
        """Correct the meters by what the answer to this reservation told, in its head or in an error's body."""
        self._share_at = nan
        newest = reservation.started_at >= self.told_as_of
        refused = hint.retry_after_s is not None
        for dimension, window in named_by(hint):
            self._correct(dimension, window, reservation, now, newest=newest, refused=refused)
        if hint.in_flight is not None:
            self.concurrency.refused(hint.in_flight.limit, now)
        if newest:
            self.told_as_of = reservation.started_at

    def _take_limit(self, dimension: Dimension, limit: int, now: float) -> None:
        # In a sub-window the named limit may be the minute's or the sub-window's: only the remainder is sure.
        if dimension is not Dimension.RPM or self._semantics.request_window_s == MINUTE_S:
            self.told[dimension] = limit
            self._fit(dimension, now)

    def _correct(
        self, dimension: Dimension, window: WindowHint, reservation: Reservation, now: float, *, newest: bool,
        refused: bool,
    ) -> None:  # fmt: skip
        limit = window.limit
        if limit is not None and self.told.get(dimension) != limit and limit > 0:
            self._take_limit(dimension, limit, now)
        meter = self._meters.by_dimension[dimension]
        if meter is None or window.remaining is None or not newest:
            return
        as_of, charged, mark = reservation.started_at, 0.0, meter.taken
        for _, known, amount, taken in reservation.entries:
            if known is meter:
                charged, mark = amount, taken
        learner = self.learner if self.learner is not None and self.learner.active else None
        told_limit = limit if limit is not None else self.told.get(dimension)
        # That a day is spent is no remainder of many, of which the highest would be the limit.
        if told_limit is None and learner is not None and dimension not in DAILY:
            # A refusal was charged nothing.
            held = window.remaining + (0.0 if refused else charged)
            if learner.remained(dimension, window.remaining, held, as_of, meter.window_s, refused=refused):
                self._fit(dimension, now)
                if (fitted := self._meters.by_dimension[dimension]) is not None and fitted is not meter:
                    meter, mark = fitted, fitted.taken
        remaining: float = window.remaining
        if self._semantics.rounds_tokens and dimension not in REQUESTS:
            remaining = max(0.0, remaining - 0.5 * self._semantics.rounds_tokens)
        if meter.limit < told_limit if told_limit is not None else learner is None:
            # Our own cap is the smaller: the provider's remainder may tighten it, never widen it.
            if remaining >= meter.available(now):
                return
            meter.resync(remaining, as_of=now, mark=meter.taken, reset_s=window.reset_s, now=now)
        elif learner is None:
            meter.resync(remaining, as_of=as_of, mark=mark, reset_s=window.reset_s, now=now)
        else:
            before = meter.available(now)
            meter.resync(remaining, as_of=as_of, mark=mark, reset_s=window.reset_s, now=now)
            if (since := meter.begun(now)) <= as_of:
                drop, gross_per_s = before - meter.available(now), meter.limit / meter.window_s
                meter.lean(learner.heard(dimension, drop, meter.limit, gross_per_s, since=since, now=now), now)
        reservation.told = (*reservation.told, dimension)

    @property
    def is_daily(self) -> bool:
        """Tell whether any limit is a day's."""
        return any(dimension in DAILY for dimension, _, _ in self._meters.rows)

    def requests_per_minute(self) -> float | None:
        """Give the effective request rate, or failing that the token rate, as a figure of capacity; None: not known."""
        for dimension, per_request in ((Dimension.RPM, 1.0), (Dimension.TPM, 1000.0), (Dimension.ITPM, 1000.0)):
            limit = self._effective(dimension)
            if limit is not None:
                return limit / per_request
        return None

    def limits(self, now: float) -> dict[str, tuple[float, float]]:
        """Give (limit, available) by dimension name, for views."""
        found = {dimension.name.lower(): (meter.limit, meter.available(now)) for dimension, meter in self.meters()}
        return found | self.concurrency.limits()

    def sources(self) -> dict[str, str]:
        """Give by dimension name who says the limit in force: configured, provider (it named it), or learned."""
        found = {each.name.lower(): self._known.source(each, self._effective(each)) for each, _, _ in self._meters.rows}
        return found | ({} if self.concurrency.slots is None else {"concurrency": self.concurrency.source})

    def expiring(self, now: float) -> float:
        """Give how much of the fixed minute or sub-window that is furthest has gone by, 0..1; 0: none is fixed."""
        expiring = self._meters.expiring
        return max([meter.spent(now) for meter in expiring]) if expiring else 0.0

    def misconfigured(self) -> dict[str, tuple[int, int]]:
        """Give (configured, told) where the configured limit is above what the provider grants."""
        wrong = self._known.misconfigured(input_alone=self._semantics.total == "input")
        return wrong | self.concurrency.misconfigured()
