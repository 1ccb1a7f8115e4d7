"""Signing keys: the rotation plan as a playbook, and the store with its seals over Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.key_rotation import Create, KeyState, Promote, Remove, RotationPolicy, Step, plan
from auth.keyset import KeySet
from auth.principal import PLATFORM_TENANT_ID
from auth.revocations import MAX_TOKEN_LIFETIME_S
from auth.sealing import InMemorySealer
from auth.signing_keys import SigningKeys, load_public
from auth.storage import Connections

POLICY = RotationPolicy(period_s=100, publish_ahead_s=10, keep_s=50)


def apply(keys: list[KeyState], steps: list[Step], now: float) -> list[KeyState]:
    """What the store does with a plan, in a list."""
    for number, step in enumerate(steps):
        if isinstance(step, Create):
            active = now if step.state == "active" else None
            keys = [*keys, KeyState(f"k{now}-{number}", step.alg, step.state, now, active)]
        elif isinstance(step, Remove):
            keys = [key for key in keys if key.kid != step.kid]
        elif isinstance(step, Promote):
            turned = []
            for key in keys:
                if key.alg == step.alg and key.state == "active":
                    turned.append(
                        KeyState(key.kid, key.alg, "retired", key.created_at, key.activated_at, step.retire_at)
                    )
                elif key.kid == step.kid:
                    turned.append(KeyState(key.kid, key.alg, "active", key.created_at, now))
                else:
                    turned.append(key)
            keys = turned
    return keys


def test_a_year_in_the_life_of_the_issuer() -> None:
    keys, story = list[KeyState](), list[str]()
    for now in range(0, 320, 10):
        while steps := plan(keys, ["ES256"], POLICY, now=float(now)):
            story += [f"{now}: {type(step).__name__} {getattr(step, 'state', '')}".strip() for step in steps]
            keys = apply(keys, steps, float(now))
    assert story == [
        "0: Create active",
        "90: Create next",
        "100: Promote",
        "150: Remove",
        "190: Create next",
        "200: Promote",
        "250: Remove",
        "290: Create next",
        "300: Promote",
    ]


@given(st.lists(st.floats(0, 120, allow_nan=False), max_size=30))
def test_whenever_it_is_asked_a_key_signs_and_what_it_signed_stays_verifiable(waits: list[float]) -> None:
    keys, now, signed = list[KeyState](), 0.0, list[tuple[str, float]]()
    for wait in waits:
        now += wait
        for _ in range(5):
            if not (steps := plan(keys, ["ES256", "RS256"], POLICY, now=now)):
                break
            keys = apply(keys, steps, now)
        assert not plan(keys, ["ES256", "RS256"], POLICY, now=now)
        for alg in ("ES256", "RS256"):
            (active,) = [key for key in keys if key.alg == alg and key.state == "active"]
            signed.append((active.kid, now))
        published = {key.kid for key in keys}
        assert all(kid in published for kid, at in signed if now - at < POLICY.keep_s)


def test_keys_are_kept_longer_than_the_longest_token() -> None:
    assert RotationPolicy().keep_s > MAX_TOKEN_LIFETIME_S


async def data_key(database: Connections) -> UUID:
    async with database.platform() as connection:
        return UUID(
            str(
                await connection.fetchval(
                    "insert into data_key (id, tenant_id, version, kek_uri, wrapped)"
                    " values (gen_random_uuid(), $1, 1, 'test:', ''::bytea) returning id",
                    PLATFORM_TENANT_ID,
                )
            )
        )


async def test_replicas_agree_on_one_key_and_rotate_it_together(database: Connections) -> None:
    sealer = InMemorySealer(await data_key(database))
    replicas = [SigningKeys(database, sealer, KeySet(), announce_s=0) for _ in range(3)]
    await asyncio.gather(*(each.maintain(now=1000.0) for each in replicas))
    assert len({each.signer().kid for each in replicas}) == 1
    first = replicas[0].signer()
    token = first.sign({"a": 1}, typ="x")

    await replicas[0].rotate(now=2000.0)
    await replicas[1].refresh()
    assert replicas[0].signer().kid == replicas[1].signer().kid != first.kid
    public = KeySet()
    await load_public(database, public)
    assert len(public) == 2
    old = public.get(first.kid)
    assert old is not None
    assert old.verify(token)

    before = replicas[0].signer().kid
    await replicas[0].rotate(now=3000.0, compromised=True)
    await load_public(database, public)
    assert public.get(before) is None  # what a stolen key signed is refused at once
    assert public.get(first.kid) is not None


async def test_what_the_schedule_did_is_told_by_whoever_did_it(database: Connections) -> None:
    sealer = InMemorySealer(await data_key(database))
    policy = RotationPolicy(period_s=1000, publish_ahead_s=100, keep_s=50)
    replicas = [SigningKeys(database, sealer, KeySet(), policy=policy) for _ in range(2)]
    told: list[Step] = []

    async def note(steps: Sequence[Step]) -> None:
        told.extend(steps)

    for each in replicas:
        each.on_changed = note
    for now in (0.0, 899.0, 900.0, 1000.0, 1049.0, 1050.0):
        await asyncio.gather(*(each.maintain(now=now) for each in replicas))
    assert [type(step) for step in told] == [Create, Create, Promote, Remove]


async def test_private_keys_are_sealed_for_their_row_alone(database: Connections) -> None:
    sealer = InMemorySealer(await data_key(database))
    keys = SigningKeys(database, sealer, KeySet(), algs=("ES256", "Ed25519"))
    await keys.maintain(now=1000.0)
    async with database.platform() as connection:
        rows = await connection.fetch("select kid, sealed, public_jwk::text as jwk from signing_key")
        assert all(keys.signer("ES256").private_bytes() not in row["sealed"] for row in rows)
        assert not any('"d"' in row["jwk"] for row in rows)
        # An attacker with the database swaps two sealed keys: neither opens.
        await connection.execute("update signing_key set sealed = $1 where kid = $2", rows[0]["sealed"], rows[1]["kid"])
        await connection.execute("update signing_key set sealed = $1 where kid = $2", rows[1]["sealed"], rows[0]["kid"])
    with pytest.raises(ValueError, match="not sealed for this"):
        await SigningKeys(database, sealer, KeySet(), algs=("ES256", "Ed25519")).refresh()


async def test_resealing_moves_every_key_to_the_present_data_key(database: Connections) -> None:
    sealer = InMemorySealer(await data_key(database))
    keys = SigningKeys(database, sealer, KeySet(), algs=("ES256", "Ed25519"))
    await keys.maintain(now=1000.0)
    async with database.platform() as connection:
        before = {row["kid"]: row["sealed"] for row in await connection.fetch("select kid, sealed from signing_key")}
    assert await keys.reseal() == 2
    async with database.platform() as connection:
        after = {row["kid"]: row["sealed"] for row in await connection.fetch("select kid, sealed from signing_key")}
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())
    again = SigningKeys(database, sealer, KeySet(), algs=("ES256", "Ed25519"))
    await again.refresh()
    assert again.signer().sign({"a": 1}, typ="x").count(".") == 2
