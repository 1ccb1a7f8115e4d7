"""Plans: what follows from what is declared and what exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.secret import Secret
from gateway.apply.document import read_document
from gateway.apply.plan import Plan, PlanRefused, State, make_plan
from gateway.apply.resource import Address, Found, Wanted, patch_between, wanted_of
from tenants.fingerprint import fingerprint_of
from tenants.merge_patch import merge_patch

TENANT, POOL = Address("acme", "tenant"), Address("acme", "pool", "main")
KEY, QUOTA = Address("acme", "key", "main/a"), Address("acme", "quota", "q")
CLIENT = Address("acme", "client", "web")
DEFAULTS: Mapping[str, Any] = {"strategy": "rate_limit_aware", "is_default": False, "name": "acme", "status": "active"}


def carried_out(wanted: Mapping[Address, Wanted], state: State, plan: Plan, owner: str = "default") -> State:
    """What exists once the API has done the plan: the twin of `Execution`."""
    found = dict(state.found)
    for step in plan.steps:
        address = step.address
        want = wanted.get(address)
        if step.operation == "remove":
            for each in [a for a in found if a == address or (address.kind == "tenant" and a.tenant == address.tenant)]:
                del found[each]
        elif step.operation != "adopt" and want is not None:
            held = found.get(address)
            prints = held.fingerprints if held else ()
            if want.fingerprint is not None and want.fingerprint not in prints:
                prints = (want.fingerprint, *prints)
            attributes = {**DEFAULTS, **(held.attributes if held else {}), **want.attributes}
            found[address] = Found(held.id if held else f"id of {address}", 1, attributes, prints)
    owners = {a.tenant: owner for a in wanted if a.kind == "tenant"}
    owners |= {slug: by for slug, by in state.owners.items() if Address(slug, "tenant") in found}
    return State(found, {address: found[address].id for address in plan.owned}, owners)


names = st.sampled_from(["a", "b", "c"])
attributes = st.dictionaries(st.sampled_from(["weight", "settings", "limits"]), st.integers(0, 2), max_size=3)
pool_attributes = st.fixed_dictionaries(
    {}, optional={"weight": st.integers(0, 2), "settings": st.fixed_dictionaries({"max_waiting": st.integers(0, 2)})}
)


@st.composite
def declared(draw: st.DrawFn) -> dict[Address, Wanted]:
    wanted: dict[Address, Wanted] = {}
    for slug in draw(st.sets(st.sampled_from(["acme", "rival"]))):
        wanted[Address(slug, "tenant")] = Wanted({})
        for quota in draw(st.sets(names)):
            wanted[Address(slug, "quota", quota)] = Wanted(draw(attributes))
        for client in draw(st.sets(names)):
            wanted[Address(slug, "client", client)] = Wanted(draw(attributes))
        for pool in draw(st.sets(names)):
            wanted[Address(slug, "pool", pool)] = Wanted(draw(pool_attributes))
            for key in draw(st.sets(names)):
                secret = draw(st.sampled_from([None, "f1", "f2"]))
                wanted[Address(slug, "key", f"{pool}/{key}")] = Wanted(draw(attributes), None, secret)
    return wanted


@given(declared(), declared(), st.booleans(), st.booleans())
def test_applied_twice_changes_nothing(
    first: dict[Address, Wanted], second: dict[Address, Wanted], prune: bool, tenants: bool
) -> None:
    state = carried_out(first, State(), make_plan(first, State()))
    plan = make_plan(second, state, prune=prune, prune_tenants=tenants)
    after = carried_out(second, state, plan)

    assert not make_plan(second, after, prune=prune, prune_tenants=tenants)
    assert set(second) <= set(after.found)
    if prune and tenants:
        assert set(after.found) == set(second)


@given(declared(), declared())
def test_strangers_things_are_never_removed(first: dict[Address, Wanted], second: dict[Address, Wanted]) -> None:
    found = {address: Found(f"theirs {address}", 1, {**DEFAULTS, **want.attributes}) for address, want in first.items()}

    plan = make_plan(second, State(found), prune=True, prune_tenants=True)

    assert plan.count("remove") == 0


json_values = st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8)
objects = st.dictionaries(names, json_values, max_size=3)


@given(objects, objects)
def test_patch_between_is_what_merge_patch_undoes(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert merge_patch(before, patch_between(before, after)) == after
    assert patch_between(after, after) == {}


def existing() -> dict[Address, Found]:
    return {
        TENANT: Found("t", 1, {}),
        POOL: Found("p", 1, {"strategy": "weighted"}),
        KEY: Found("k", 1, {"provider": "openai", "weight": 1, "quota": None}, ("now", "before")),
        QUOTA: Found("q", 1, {"provider": "openai"}),
    }


OWNED = State(existing(), {POOL: "p", KEY: "k", QUOTA: "q"}, {"acme": "default"})


@pytest.mark.parametrize(
    ("address", "want", "expected"),
    [
        (KEY, Wanted({"weight": 1}, None, "now"), []),
        (KEY, Wanted({"weight": 2}), [("change", {"weight": (1, 2)})]),
        (KEY, Wanted({}, None, "next"), [("rotate", {"secret": ("now", "next")})]),
        (KEY, Wanted({}, None, "before"), []),
        (KEY, Wanted({}, None, None), []),
        (KEY, Wanted({"base_url": "https://x"}, None, "now"), [("rotate", {"base_url": (None, "https://x")})]),
        (POOL, Wanted({}), []),
        (POOL, Wanted({"strategy": "adaptive"}), [("change", {"strategy": ("weighted", "adaptive")})]),
        (CLIENT, Wanted({"scopes": ["inference"]}), [("create", {"scopes": (None, ["inference"])})]),
    ],
)
def test_one_thing(address: Address, want: Wanted, expected: list[tuple[str, Any]]) -> None:
    plan = make_plan({TENANT: Wanted({}), address: want}, OWNED)

    assert [(step.operation, dict(step.changes)) for step in plan.steps] == expected


@pytest.mark.parametrize(
    ("wanted", "state", "sentence"),
    [
        ({TENANT: Wanted({}), KEY: Wanted({"provider": "groq"})}, OWNED, "cannot change its provider"),
        (
            {TENANT: Wanted({}), KEY: Wanted({"quota": None})},
            State({**existing(), KEY: Found("k", 1, {"quota": "q"})}),
            "cannot go back to a quota of its own",
        ),
        ({TENANT: Wanted({})}, State(existing(), {}, {"acme": "somebody"}), "belongs to the owner somebody"),
        ({TENANT: Wanted({})}, State(existing(), {POOL: "p"}, {"acme": "default"}), "holds keys that apply did not"),
    ],
)
def test_what_cannot_be_is_refused_whole(wanted: dict[Address, Wanted], state: State, sentence: str) -> None:
    with pytest.raises(PlanRefused) as caught:
        make_plan(wanted, state, prune=True)
    assert sentence in caught.value.errors[0][1]


def test_a_namesake_of_what_apply_made_is_not_removed() -> None:
    state = State({**existing(), QUOTA: Found("another", 1, {})}, {QUOTA: "q"}, {"acme": "default"})

    assert not make_plan({TENANT: Wanted({})}, state, prune=True).count("remove")


def test_things_are_made_before_what_names_them_and_removed_after() -> None:
    wanted = {address: Wanted({}) for address in (CLIENT, KEY, POOL, QUOTA, TENANT)}
    plan = make_plan(wanted, State())
    assert [step.address.kind for step in plan.steps] == ["tenant", "quota", "pool", "key", "client"]
    after = carried_out(wanted, State(), plan)
    gone = make_plan({TENANT: Wanted({})}, after, prune=True)
    assert [step.address.kind for step in gone.steps] == ["client", "key", "pool", "quota"]


def test_fingerprints_are_the_tenants_own_and_no_secret_is_in_a_plan() -> None:
    text = "version: 1\ntenants: {acme: {pools: {main: {keys: {a: {provider: openai, api_key: {env: K}}}}}}}"
    secrets = {KEY: Secret("sk-very-secret-0123456789")}
    tenant_id = UUID(int=7)
    document = read_document(text, "x.yaml")

    wanted = wanted_of(document, tenant_ids={"acme": tenant_id}, secrets=secrets)

    assert wanted[KEY].fingerprint == fingerprint_of(tenant_id, secrets[KEY])
    assert "very-secret" not in repr(make_plan(wanted, State()))
    assert wanted_of(document, tenant_ids={}, secrets=secrets)[KEY].fingerprint is None


def falling(pool: str | None, **more: Any) -> Wanted:
    return Wanted({"settings": {"fallbacks": [{} if pool is None else {"pool": pool}], **more}})


def test_where_pools_fall_back_to_is_checked_before_anything_changes() -> None:
    tenant, spare, old = {TENANT: Wanted({})}, Address("acme", "pool", "spare"), Address("acme", "pool", "old")
    there = State({TENANT: Found("t", 1, {}), old: Found("o", 1, {})}, {old: "o"}, {"acme": "default"})
    make_plan({**tenant, POOL: falling("spare"), spare: falling("main")}, State())
    make_plan({**tenant, POOL: falling("old")}, there)
    for wanted, state, prune, sentence in (
        ({POOL: falling("spar"), spare: Wanted({})}, State(), False, "'spar' is no pool of the tenant; there is spare"),
        ({POOL: falling("other"), Address("rival", "pool", "other"): Wanted({})}, State(), False, "no pool of the"),
        ({POOL: falling("old")}, there, True, "'old' is no pool of the tenant"),
        ({POOL: falling(None)}, State(), False, "leads back to the pool itself"),
    ):
        with pytest.raises(PlanRefused) as refused:
            make_plan({**tenant, **wanted}, state, prune=prune)
        ((place, said),) = refused.value.errors
        assert place.startswith(f"{POOL} /settings/fallbacks/0")
        assert sentence in said
