"""The keys that the simulated provider makes through its admin APIs: one store behind every provider's face.

A key that was deleted or disabled stays in the ledger, refused, so that requests on an old secret go on being counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from gateway.simulation.config import KeyConfig
from gateway.simulation.faults import Fault, FaultPlan
from gateway.simulation.ledger import Ledger
from gateway.simulation.wire import Reply, json_reply

SLOTS = ("Key1", "Key2")


class Step(StrEnum):
    """What an admin call does."""

    TOKEN = "token"  # noqa: S105 - the name of a step
    EXCHANGE = "exchange"
    CREATE = "create"
    FIND = "find"
    DISABLE = "disable"
    ENABLE = "enable"
    REVOKE = "revoke"


class AdminFault(Fault, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fault of one step; `late` lets the call take effect first, so that only its answer is lost."""

    step: Step
    late: bool = False


@dataclass(slots=True)
class Minted:
    """A key that an admin call made: `ref` names it to the admin API, `name` in the ledger's counts."""

    ref: str
    tag: str
    scope: str
    name: str
    secret: str
    enabled: bool = True
    made_at: float = 0.0


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One request to an admin API: the path in steps, and the body as JSON ({} without one)."""

    method: str
    steps: Sequence[str]
    query: dict[str, str]
    document: dict[str, Any]
    form: dict[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw_path: str = ""
    raw_query: str = ""


@dataclass(frozen=True, slots=True)
class Errand:
    """What an admin call wants: `run` carries it out once the credential was checked.

    `credential` is what the call itself carries; None: the bearer token or x-api-key is looked at. `entra`: it must be
    the token that Entra gave. `assertion` is what it carries in place of a credential: a JWT of a trusted issuer.
    `check` looks at the credential where that is not enough, and `refuse` writes the refusal in the provider's shape.
    """

    step: Step
    run: Callable[[Keysmith], Reply]
    credential: str | None = None
    entra: bool = False
    assertion: str | None = None
    check: Callable[[str], bool] | None = None
    refuse: Callable[[], Reply] | None = None


class Keysmith:
    """Makes, lists and switches keys in `ledger`; a new one is refused for its first `works_after_s` seconds."""

    def __init__(self, ledger: Ledger, rng: random.Random, clock: Callable[[], float], *, works_after_s: float) -> None:
        self._ledger = ledger
        self._rng = rng
        self._clock = clock
        self.works_after_s = works_after_s
        self.keys: dict[str, Minted] = {}
        self.calls: Counter[str] = Counter()
        self.operations: dict[str, tuple[str, str]] = {}
        self.service_account_key = ""
        self._lent = 0
        self._slots: dict[tuple[str, str], tuple[str, str]] = {}
        self._faults: dict[tuple[Step, bool], FaultPlan] = {}

    def now(self) -> float:
        """Return Unix seconds."""
        return self._clock()

    def make(self, tag: str, scope: str, *, ref: str | None = None) -> Minted:
        """Make a key for `scope` (a project, team or account), whose quota it draws on; None: with a ref of its own."""
        ref = ref or f"ref-{self._rng.getrandbits(64):016x}"
        name = tag if tag and tag not in self._ledger.keys else f"{tag}-{ref}"
        key = Minted(ref, tag, scope, name, f"sk-sim-{self._rng.getrandbits(128):032x}", made_at=self._clock())
        self._add(name, key.secret, scope)
        self.keys[ref] = key
        return key

    def lend(self, subject: str, scope: str, lifetime_s: float) -> str:
        """Make a short-lived token for `subject`, which draws on the quota of `scope`."""
        self._lent += 1
        name, token = f"{subject}#{self._lent}", f"sim-token-{self._rng.getrandbits(128):032x}"
        self._add(name, token, scope)
        self._ledger.keys[name].works_until = self._clock() + lifetime_s
        return token

    def page(self, scope: str, after: str | None, size: int) -> tuple[list[Minted], bool]:
        """Return up to `size` keys of a scope, those after the ref `after`, and whether there are more."""
        rows = [key for key in self.keys.values() if key.scope == scope]
        start = next((place + 1 for place, key in enumerate(rows) if key.ref == after), 0)
        return rows[start : start + size], len(rows) > start + size

    def switch(self, ref: str, *, enabled: bool) -> Minted | None:
        """Let a key be taken or refused; None when there is no such key."""
        key = self.keys.get(ref)
        if key is not None:
            key.enabled = enabled
            self._ledger.keys[key.name].revoked = not enabled
        return key

    def delete(self, ref: str) -> Minted | None:
        """Refuse a key for ever and forget its ref."""
        key = self.switch(ref, enabled=False)
        self.keys.pop(ref, None)
        return key

    def switch_configured(self, name: str, *, enabled: bool) -> bool:
        """Switch a key that was configured, by its name; False when there is none."""
        held = self._ledger.keys.get(name)
        if held is not None:
            held.revoked = not enabled
        return held is not None

    def slots(self, account: str) -> dict[str, str]:
        """Return the secrets of an account that has two keys; they are made when it is first looked at.

        A configured key called `<account>-Key1` or `-Key2` is what the slot holds at first.
        """
        for slot in SLOTS:
            if (account, slot) not in self._slots:
                name = f"{account}-{slot}"
                held = self._ledger.keys.get(name)
                self._slots[account, slot] = (name, held.config.secret) if held else self._fill(account, name)
        return {slot: self._slots[account, slot][1] for slot in SLOTS}

    def regenerate(self, account: str, slot: str) -> dict[str, str]:
        """Replace the key of a slot: its old secret is refused at once."""
        self.slots(account)
        old, _ = self._slots[account, slot]
        self._ledger.keys[old].revoked = True
        self._slots[account, slot] = self._fill(account, f"{account}-{slot}-{self._rng.getrandbits(32):08x}")
        return self.slots(account)

    def draw(self, step: Step, *, late: bool) -> Fault | None:
        """Return the fault that this call meets, if one is due."""
        plan = self._faults.get((step, late))
        return None if plan is None else plan.draw(self._rng)

    def replace_faults(self, faults: Sequence[AdminFault]) -> None:
        """Forget all faults and take these."""
        self._faults = {
            (step, late): FaultPlan(tuple(fault for fault in faults if (fault.step, fault.late) == (step, late)))
            for step, late in {(fault.step, fault.late) for fault in faults}
        }

    def view(self) -> dict[str, Any]:
        """Return what there is, without a secret."""
        return {
            "calls": dict(self.calls),
            "keys": [
                {"ref": key.ref, "tag": key.tag, "scope": key.scope, "name": key.name, "enabled": key.enabled}
                for key in self.keys.values()
            ],
        }

    def _fill(self, account: str, name: str) -> tuple[str, str]:
        secret = f"sim{self._rng.getrandbits(128):032x}"
        self._add(name, secret, account)
        return name, secret

    def _add(self, name: str, secret: str, scope: str) -> None:
        self._ledger.put(KeyConfig(secret=secret, name=name, organisation=scope))
        self._ledger.keys[name].works_from = self._clock() + self.works_after_s


def refused(status: int, message: str) -> Reply:
    """Write an admin API's error."""
    return Reply(msgspec.json.encode({"error": {"message": message}}), status=status)


def missing(what: str) -> Reply:
    """Write a 404."""
    return refused(404, f"{what} not found")


def done(value: Any, status: int = 200) -> Reply:
    """Write an admin API's answer."""
    reply = json_reply(value)
    return Reply(reply.body, status=status)
