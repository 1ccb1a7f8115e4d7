"""What has to happen so that what exists is what was declared: a pure function of both.

Ownership is an inventory of ids on the tenant, which only operators can write (`settings.apply`). What apply made or
adopted is in it; only what is in it, under the id that it had, is ever removed. A thing that exists already when it is
first declared is adopted: changed to what is declared, and owned from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from auth.errors import Invalid
from gateway.apply.resource import ORDER, Address, Found, Wanted, differences
from tenants.checks import fallback_problems
from tenants.pool_schemas import PoolSettings

Operation = Literal["create", "change", "rotate", "adopt", "remove"]
INVENTORY: Final = "apply"
"""The member of a tenant's settings that holds the owner and the inventory."""

_FIXED: Final[Mapping[str, frozenset[str]]] = {"quota": frozenset({"provider"}), "key": frozenset({"provider"})}


class PlanRefused(Invalid):
    """The declaration asks for what cannot be done; `errors` lists every place."""

    code = "plan_refused"


@dataclass(frozen=True, slots=True)
class Step:
    """One call or two: `changes` are (before, after) by attribute, without any secret."""

    operation: Operation
    address: Address
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """What exists. `inventory` has the ids of what apply owns, `owners` under which name it owns which tenant."""

    found: Mapping[Address, Found] = field(default_factory=dict)
    inventory: Mapping[Address, str] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps in their order; `owned` is the inventory afterwards, `left` what is owned and declared no more."""

    steps: tuple[Step, ...]
    owned: frozenset[Address]
    left: tuple[Address, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def count(self, operation: Operation) -> int:
        """Count the steps of one kind."""
        return sum(step.operation == operation for step in self.steps)


def make_plan(
    wanted: Mapping[Address, Wanted],
    state: State,
    *,
    owner: str = "default",
    prune: bool = False,
    prune_tenants: bool = False,
) -> Plan:
    """Compare; raises `PlanRefused` with every problem at once. `prune_tenants` lets whole tenants be removed."""
    problems = [
        (str(address), f"belongs to the owner {state.owners[address.tenant]}: apply it as that, or remove it there")
        for address in wanted
        if address.kind == "tenant" and state.owners.get(address.tenant, owner) != owner
    ]
    steps: list[Step] = []
    for address in sorted(wanted, key=_making_order):
        steps += _steps_for(address, wanted[address], state, problems)
    removed, left = _leftovers(wanted, state, owner, prune, prune_tenants)
    for address in removed:
        strangers = [
            each.name
            for each in state.found
            if each.kind == "key" and (each.tenant, each.pool) == (address.tenant, address.name) and each not in removed
        ]
        if address.kind == "pool" and strangers:
            problems.append((str(address), f"holds keys that apply did not make: {', '.join(sorted(strangers))}"))
    problems += _fallback_problems(wanted, state, removed)
    if problems:
        raise PlanRefused("The declaration cannot be applied.", hint="Nothing was changed.", errors=tuple(problems))
    steps += [Step("remove", address) for address in sorted(removed, key=_making_order, reverse=True)]
    gone = {address.tenant for address in removed if address.kind == "tenant"}
    owned = frozenset(
        address for address in {*wanted, *left} if address.tenant not in gone and address.kind != "tenant"
    )
    return Plan(tuple(steps), owned, tuple(left))


def _fallback_problems(
    wanted: Mapping[Address, Wanted], state: State, removed: Collection[Address]
) -> list[tuple[str, str]]:
    """Check where pools fall back to, among the pools that will be there; the API would only refuse half-way."""
    there: dict[str, set[str]] = {}
    for each in {*wanted, *state.found}.difference(removed):
        if each.kind == "pool":
            there.setdefault(each.tenant, set()).add(each.name)
    return [
        (f"{address} {pointer}", sentence)
        for address in sorted(wanted, key=_making_order)
        if address.kind == "pool"
        for pointer, sentence in fallback_problems(
            msgspec.convert(wanted[address].attributes.get("settings", {}), PoolSettings),
            address.name,
            there[address.tenant],
        )
    ]


def _making_order(address: Address) -> tuple[int, str, str]:
    return ORDER.index(address.kind), address.tenant, address.name


def _steps_for(address: Address, wanted: Wanted, state: State, problems: list[tuple[str, str]]) -> list[Step]:
    found = state.found.get(address)
    if found is None:
        made = {name: (None, value) for name, value in wanted.attributes.items() if value not in (None, {}, [])}
        return [Step("create", address, made)]
    changed = differences(wanted.attributes, found.attributes)
    if fixed := _FIXED.get(address.kind, frozenset()) & changed.keys():
        problems.append((str(address), f"cannot change its {', '.join(sorted(fixed))}: declare it under another name"))
    if address.kind == "key" and "quota" in changed and changed["quota"][1] is None:
        problems.append((str(address), "cannot go back to a quota of its own: declare it under another name"))
    steps = []
    moved = {name: changed.pop(name) for name in ("base_url",) if name in changed}
    # A secret that the key had before was replaced by a rotation since: the declaration is older, not newer.
    if wanted.fingerprint is not None and wanted.fingerprint not in found.fingerprints:
        moved["secret"] = (found.fingerprints[0] if found.fingerprints else None, wanted.fingerprint)
    if changed:
        steps.append(Step("change", address, changed))
    if moved:
        steps.append(Step("rotate", address, moved))
    owned = state.owners if address.kind == "tenant" else state.inventory
    held = address.tenant in owned if address.kind == "tenant" else state.inventory.get(address) == found.id
    return steps if held else [Step("adopt", address), *steps]


def _leftovers(
    wanted: Mapping[Address, Wanted], state: State, owner: str, prune: bool, prune_tenants: bool
) -> tuple[set[Address], list[Address]]:
    """Tell what is owned, still there and declared no more: what goes, and what stays for want of a flag."""
    removed: set[Address] = set()
    left: list[Address] = []
    declared = {address.tenant for address in wanted}
    for slug, by in sorted(state.owners.items()):
        if by == owner and slug not in declared and Address(slug, "tenant") in state.found:
            if prune and prune_tenants:
                removed.add(Address(slug, "tenant"))
            else:
                left.append(Address(slug, "tenant"))
    for address, known in sorted(state.inventory.items(), key=lambda item: _making_order(item[0])):
        there = state.found.get(address)
        if address in wanted or there is None or there.id != known or state.owners.get(address.tenant) != owner:
            continue
        if address.tenant not in declared:
            continue  # it goes or stays with its tenant
        if prune:
            removed.add(address)
        else:
            left.append(address)
    return removed, left
