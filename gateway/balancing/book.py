"""The quotas of one tenant, one bucket each, however many pools draw on them.

A provider counts an organisation's requests whatever pool they came through, so what is left of a quota belongs to no
pool. Each pool's balancer holds the quotas of its keys in a common book; whoever frees capacity lets those know that
hold the same quota, and quotas that headers show to be one are one for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from gateway.balancing.families import crowded_out, family_of
from gateway.balancing.ledger import Ledger
from gateway.balancing.outage import CommonBreaker
from gateway.balancing.predictor import Learning
from gateway.balancing.quota import Quota
from gateway.balancing.ready import EndpointState, QuotaState
from gateway.balancing.semantics import Semantics
from gateway.balancing.sharing import Named, SharedQuotas, name_in, take_over
from gateway.balancing.view import LedgerView, view_ledger

Beliefs = Mapping[str, Mapping[str, Mapping[str, object]]]
"""What was learned of limiters: quota id → model family → plain JSON values."""

UNSHARED = 16
"""A process that shares quotas uses one part in so many of a cap on requests in flight until it was granted one."""


class Holder(Protocol):
    """A balancer, as the book sees it."""

    def meet(self, neighbours: Sequence[Holder]) -> None:
        """Take in who else draws on its quotas: they are woken when it frees capacity."""

    def woken(self) -> None:
        """Take in that another pool has changed a quota that this one draws on."""

    def forget_slates(self) -> None:
        """Drop whatever holds on to ledgers: one of a common quota was dropped."""

    def endpoint_states(self) -> Iterable[EndpointState]:
        """Give what is known of each key."""

    def commons(self) -> Mapping[str, CommonBreaker]:
        """Give the breakers that several keys have in common, by the name of what they share."""

    def redraw(self, quota_id: str) -> None:
        """Have the keys of `quota_id` draw on what stands for it now."""


class QuotaLeasing(Protocol):
    """Divides quotas between processes, as the book sees it."""

    def open(self, book: QuotaBook, quota_id: str, family: str, ledger: Ledger) -> None:
        """Let `ledger` take from now on only what this process is granted of it."""


class QuotaBook:
    """Quota states by id, kept as long as some balancer holds them; single-threaded.

    Invariant: a quota has one state, whichever holder asks for it, until its provider changes. With `leasing` this
    process shares its quotas with others.
    """

    __slots__ = ("_held", "_leasing", "_saved", "_shared", "_states")

    def __init__(self, leasing: QuotaLeasing | None = None) -> None:
        self._leasing = leasing
        self._states: dict[str, QuotaState] = {}
        self._saved: Beliefs = {}
        self._shared = SharedQuotas()
        self._held: dict[Holder, frozenset[str]] = {}

    @property
    def shared(self) -> SharedQuotas:
        """What headers have told of quotas that are one."""
        return self._shared

    def hold(self, holder: Holder, quotas: Iterable[Quota], now: float) -> dict[str, QuotaState]:
        """Give the states of `quotas` by id, from now on all that `holder` holds; changed limits are taken over."""
        mine: dict[str, QuotaState] = {}
        renamed = frozenset[str]()
        for quota in quotas:
            state = self._states.get(quota.id)
            if state is None or state.quota.provider != quota.provider:
                state = QuotaState(quota)
                state.slots = self.unshared(quota.limits.concurrency)
            elif state.quota != quota:
                if state.quota.limits.concurrency != quota.limits.concurrency:
                    state.slots = self.unshared(quota.limits.concurrency)
                self.drop(state, [family for family in state.quota.families if family not in quota.families])
                state.quota = quota
                for family, ledger in state.ledgers.items():
                    ledger.configure(quota.limits_of(family), max(now, ledger.used_at))
                    ledger.concurrency.within = None if family else quota.limits.concurrency
            if quota.id not in self._states and (said := name_in(self._saved.get(quota.id, {}))) is not None:
                renamed |= self._shared.hear(quota.id, said)
            self._states[quota.id] = mine[quota.id] = state
        if self._held.get(holder) != mine.keys():
            self._held[holder] = frozenset(mine)
            self._tidy()
        self._redraw(renamed)
        return mine

    def release(self, holder: Holder) -> None:
        """Forget a balancer whose pool is gone; its open leases are settled as usual."""
        self._held.pop(holder, None)
        holder.meet(())
        self._tidy()

    def _tidy(self) -> None:
        held = frozenset[str]().union(*self._held.values())
        self._states = {quota_id: state for quota_id, state in self._states.items() if quota_id in held}
        stood = self._stood()
        self._shared.keep(held)
        self._meet()
        self._redraw(frozenset(each for each, before in stood.items() if self._shared.stands_for(each) != before))

    def _meet(self) -> None:
        """Work out who draws on what another one draws on, too."""
        drawn = {
            holder: frozenset(self._shared.stands_for(quota_id) for quota_id in held)
            for holder, held in self._held.items()
        }
        for holder, mine in drawn.items():
            holder.meet([other for other, theirs in drawn.items() if other is not holder and theirs & mine])

    def counted(self, quota_id: str) -> QuotaState:
        """Give the state that requests on a held quota are counted on."""
        return self._states[self._shared.stands_for(quota_id)]

    def note(self, quota_id: str, provider: str, name: str, at: float) -> None:
        """Take in the provider's own name for a quota (`at`, Unix seconds); who then draws on another one is told."""
        known = self._shared.words.get(quota_id)
        if quota_id in self._states and (known is None or known[1:] != (provider, name)):
            stood = self._stood()
            self._renamed(self._shared.note(quota_id, provider, name, at), stood)

    def hear_name(self, quota_id: str, said: Named) -> bool:
        """Take in under what name another process was answered; True when some keys draw on another quota now."""
        if quota_id not in self._states:
            return False
        stood = self._stood()
        changed = self._shared.hear(quota_id, said)
        self._renamed(changed, stood)
        return bool(changed)

    def _stood(self) -> dict[str, str]:
        return {quota_id: self._shared.stands_for(quota_id) for quota_id in self._states}

    def _renamed(self, changed: frozenset[str], stood: Mapping[str, str]) -> None:
        """Go on with what was counted elsewhere so far, and have keys draw on what stands for their quotas now."""
        for before in sorted({stood[quota_id] for quota_id in changed}):
            if (now := self._shared.stands_for(before)) != before:
                self._merge(self._states[before], self._states[now])
        self._redraw(changed)

    def _merge(self, other: QuotaState, into: QuotaState) -> None:
        for family, ledger in list(other.ledgers.items()):
            known = into.ledgers.get(family)
            if known is not None:
                take_over(known, ledger)
            elif family not in other.quota.families:
                into.ledgers[family] = other.ledgers.pop(family)
                ledger.configure(into.quota.limits_of(family), ledger.used_at)
                self.opened(into.quota.id, family, ledger, ledger.used_at)
        self.ledger_dropped()

    def _redraw(self, changed: frozenset[str]) -> None:
        if changed:
            self._meet()
        for holder, held in self._held.items():
            for quota_id in changed & held:
                holder.redraw(quota_id)

    def commons(self) -> Iterator[tuple[str, CommonBreaker]]:
        """Give the breakers that several keys have in common; pools have their own for the same address."""
        for holder in self._held:
            yield from holder.commons().items()

    def drop(self, quota: QuotaState, families: Iterable[str]) -> None:
        """Forget some of a quota's accounts, save those with requests in flight."""
        known = [(family, quota.ledgers.get(family)) for family in families]
        idle = [family for family, ledger in known if ledger is not None and not ledger.concurrency.in_flight]
        for family in idle:
            del quota.ledgers[family]
        if idle:
            # Slates hold ledgers: one that is dropped must not live on in any of them.
            self.ledger_dropped()

    def ledger_dropped(self) -> None:
        """Tell all that some ledger is no longer its quota's."""
        for holder in self._held:
            holder.forget_slates()

    def recall(self, saved: Mapping[str, Mapping[str, object]]) -> None:
        """Take over what `beliefs` gave before a restart; it is applied as each family is first used.

        What a later version saved in another shape is left out: it must not fail the first request.
        """
        self._saved = {
            quota_id: {family: state for family, state in families.items() if isinstance(state, Mapping)}
            for quota_id, families in saved.items()
        }

    def beliefs(self, now: float) -> dict[str, dict[str, dict[str, object]]]:
        """Give what was learned of limiters, by quota and model family, as plain JSON values to be kept."""
        found: dict[str, dict[str, dict[str, object]]] = {}
        for quota_id, quota in self._states.items():
            exported = ((family, ledger.export(now)) for family, ledger in quota.ledgers.items())
            families = {family: state for family, state in exported if state is not None}
            if (said := self._shared.words.get(quota_id)) is not None:
                families.setdefault("", {})["name"] = list(said)
            if families:
                found[quota_id] = families
        return found

    def views(self, now: float) -> Iterator[tuple[str, LedgerView]]:
        """Give each quota's accounts as they are now."""
        for quota_id, quota in self._states.items():
            for family, ledger in quota.ledgers.items():
                yield quota_id, view_ledger(family, ledger, now)

    @property
    def misconfigured(self) -> int:
        """How many limits are configured above what the provider grants."""
        return sum(len(each.misconfigured()) for quota in self._states.values() for each in quota.ledgers.values())

    def account(
        self,
        quota: QuotaState,
        model: str,
        semantics: Semantics,
        learning: Learning | None,
        now: float,
        *,
        unix_offset_s: float,
    ) -> Ledger:
        """Give the account that `model` counts in, made if it has none yet; see `Ledger`."""
        family = family_of(quota.quota, model, semantics)
        ledger = quota.ledgers.get(family)
        if ledger is not None:
            if learning is not None:
                ledger.learn_limiter(learning, now)
            return ledger
        self.drop(quota, crowded_out(quota.ledgers, quota.quota.families))
        ledger = Ledger(quota.quota.limits_of(family), semantics, now, unix_offset_s=unix_offset_s)
        quota.ledgers[family] = ledger
        if learning is not None:
            ledger.learn_limiter(learning, now)
        self.opened(quota.quota.id, family, ledger, now)
        return ledger

    def opened(self, quota_id: str, family: str, ledger: Ledger, now: float) -> None:
        """Take in that a quota has got a ledger for a model family: what was known of it is known again."""
        if not family:
            ledger.concurrency.within = self._states[quota_id].quota.limits.concurrency
        saved = self._saved.get(quota_id, {}).get(family)
        if saved is not None:
            ledger.restore(saved, now)
        if self._leasing is not None:
            ledger.concurrency.share(UNSHARED)
            self._leasing.open(self, quota_id, family, ledger)

    def unshared(self, cap: int | None) -> int | None:
        """Give how much of a cap on requests in flight this process may use before it knows of the others."""
        return cap if cap is None or self._leasing is None else cap // UNSHARED

    def survey(self) -> Mapping[str, list[EndpointState]]:
        """Give the keys by the quota that they are counted on."""
        found: dict[str, list[EndpointState]] = {}
        for holder in self._held:
            for state in holder.endpoint_states():
                found.setdefault(state.quota.quota.id, []).append(state)
        return found

    @property
    def size(self) -> int:
        """How many quotas are held."""
        return len(self._states)

    def state(self, quota_id: str) -> QuotaState | None:
        """Give the state of a quota, if it is still held."""
        return self._states.get(quota_id)

    def wake(self) -> None:
        """Let all holders know that there may be capacity: this process was granted some."""
        for holder in self._held:
            holder.woken()
