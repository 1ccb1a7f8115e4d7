"""The sealed state: it brings everything back that serving needs, and opens unchanged or not at all."""

from __future__ import annotations

from typing import NoReturn
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auth.keyset import Signer
from auth.revocations import Revocation
from auth.storage import Connections
from tenants.datakeys import DataKeys
from tenants.errors import KekDisabled, SealBroken
from tenants.keyring import LocalKeyring
from tenants.sealed_state import State, make_file_key, open_state, read_state, seal_state
from tenants.snapshot import SnapshotLoader, SnapshotRows
from tests.tenants.conftest import Plant

ISSUER = "https://llm.example.com"
NOW = 1_800_000_000.25


async def test_tenants_are_served_from_it_without_the_database(
    database: Connections, data_keys: DataKeys, keyring: LocalKeyring, plant: Plant
) -> None:
    a, b = await plant("a"), await plant("b")
    loader = SnapshotLoader(database, data_keys)
    expected = {tenant.tenant_id: tenant for tenant in await loader.load_all()}

    blob = seal_state(await read_state(database, now=NOW), await make_file_key(keyring), ISSUER)
    state = await open_state(blob, keyring, ISSUER)

    away = DataKeys(_Away(), keyring)
    for each in state.data_keys:
        await away.adopt(each.tenant_id, each.id, each.wrapped)
    found = {tenant.tenant_id: tenant for tenant in await SnapshotLoader(_Away(), away).assemble_all(state.rows)}
    assert found == expected
    assert found[a.tenant_id].pools[0].keys[0].secret == a.secret
    for secret in (a.secret, b.secret):
        assert secret.reveal().encode() not in blob


class _Away:
    def platform(self) -> NoReturn:
        raise OSError("away")

    def tenant(self, tenant_id: UUID) -> NoReturn:
        raise OSError("away")


def small_state(taken_at: float = NOW) -> State:
    return State(
        taken_at,
        SnapshotRows([], {}, {}, {}),
        (),
        ({**Signer.generate().public().jwk()},),
        (Revocation("a-jti", NOW - 5, NOW + 5),),
    )


async def test_keys_and_revocations_come_back() -> None:
    keyring, state = LocalKeyring([bytes(32)]), small_state()
    opened = await open_state(seal_state(state, await make_file_key(keyring), ISSUER), keyring, ISSUER)
    assert opened == state


async def test_another_installation_or_key_does_not_open_it() -> None:
    keyring = LocalKeyring([bytes(32)])
    blob = seal_state(small_state(), await make_file_key(keyring), ISSUER)
    with pytest.raises(SealBroken):
        await open_state(blob, keyring, "https://other.example.com")
    with pytest.raises((SealBroken, KekDisabled)):
        await open_state(blob, LocalKeyring([bytes([1] * 32)]), ISSUER)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_a_changed_or_cut_byte_is_refused(data: st.DataObject) -> None:
    keyring = LocalKeyring([bytes(32)])
    blob = seal_state(small_state(), await make_file_key(keyring), ISSUER)
    position = data.draw(st.integers(0, len(blob) - 1))
    changed = bytearray(blob)
    changed[position] ^= data.draw(st.integers(1, 255))
    cut = blob[: data.draw(st.integers(0, len(blob) - 1))]
    for bad in (bytes(changed), cut):
        with pytest.raises((SealBroken, KekDisabled)):
            await open_state(bad, keyring, ISSUER)


async def test_a_younger_time_cannot_be_written_into_the_header() -> None:
    keyring = LocalKeyring([bytes(32)])
    blob = seal_state(small_state(NOW), await make_file_key(keyring), ISSUER)
    forged = blob.replace(repr(NOW).encode(), repr(NOW + 900.0).encode())
    assert len(forged) == len(blob)
    assert forged != blob
    with pytest.raises(SealBroken):
        await open_state(forged, keyring, ISSUER)
