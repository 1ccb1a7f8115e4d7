"""The spare wrap: losing the first KEK is survived with the break-glass key, and only with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from auth.storage import Connections
from tenants.datakeys import DataKeys
from tenants.errors import KekDisabled, KeyringUnsafe, SealBroken
from tenants.kek_uses import KekUse, kek_uses, status_of
from tenants.keyring import LocalKeyring, Wrapped
from tenants.rewrap import new_data_key, recover_data_keys, rewrap_data_keys
from tenants.shares.layer import wrap_context
from tenants.snapshot import SnapshotLoader
from tenants.spare import SpareKek
from tenants.verification import verify_everything
from tenants.wrappers.rsa import RsaKek, load_rsa_kek
from tests.tenants.conftest import KEK, Clock, Plant
from tests.tenants.test_datakeys import RemoteKeyring
from tests.tenants.test_rewrap import last

NEW_KEK = bytes(range(32, 64))
PAIR = rsa.generate_private_key(65537, 3072)
OFFLINE, IN_THE_SAFE = RsaKek(PAIR.public_key()), RsaKek(PAIR.public_key(), PAIR)


@pytest.fixture
def data_keys(database: Connections, keyring: LocalKeyring, clock: Clock) -> DataKeys:
    return DataKeys(database, keyring, spare=SpareKek(OFFLINE), clock=clock)


async def test_the_drill(database: Connections, keyring: LocalKeyring, data_keys: DataKeys, plant: Plant) -> None:
    """The KEK is gone: a new one is configured, the spare wraps are opened, the gateway serves again."""
    planted = [await plant(slug) for slug in ("a", "b")]
    assert await kek_uses(database) == [KekUse(keyring.uri, "wraps", 2), KekUse(OFFLINE.uri, "spare", 2)]
    drill = await last(verify_everything(database, data_keys, spare=IN_THE_SAFE))
    assert (drill.done, drill.failed, drill.unchecked) == (4, {}, 0)

    another = rsa.generate_private_key(65537, 3072)
    for wrong in (OFFLINE, RsaKek(another.public_key(), another)):
        drill = await last(verify_everything(database, data_keys, spare=wrong))
        assert (drill.done, len(drill.failed), drill.unchecked) == (4, 2, 0), "a drill with the wrong key has failed"

    new = LocalKeyring([NEW_KEK])
    lost = await last(verify_everything(database, DataKeys(database, new)))
    assert (lost.done, len(lost.failed)) == (0, 4)
    for opener in (OFFLINE, new):
        refused = await last(recover_data_keys(database, new, opener))
        assert (refused.done, len(refused.failed)) == (0, 2)
    recovered = await last(recover_data_keys(database, new, IN_THE_SAFE, spare=SpareKek(OFFLINE)))
    assert (recovered.done, recovered.failed) == (2, {})
    assert await kek_uses(database) == [KekUse(new.uri, "wraps", 2), KekUse(OFFLINE.uri, "spare", 2)]
    for each in planted:
        loaded = await SnapshotLoader(database, DataKeys(database, new)).load(each.tenant_id)
        assert loaded is not None
        assert loaded.pools[0].keys[0].secret == each.secret
    assert (await last(recover_data_keys(database, new, IN_THE_SAFE))).total == 0


async def test_a_rewrap_keeps_both_wraps_up_to_date(database: Connections, data_keys: DataKeys, plant: Plant) -> None:
    await plant("a")
    both = LocalKeyring([NEW_KEK, KEK])
    assert (await last(rewrap_data_keys(database, both))).done == 1, "without the variable the spare stays"
    assert await kek_uses(database) == [KekUse(both.uri, "wraps", 1), KekUse(OFFLINE.uri, "spare", 1)]
    other = LocalKeyring([bytes(range(64, 96))])
    assert (await last(rewrap_data_keys(database, both, spare=SpareKek(other)))).done == 1
    assert await kek_uses(database) == [KekUse(both.uri, "wraps", 1), KekUse(other.uri, "spare", 1)]
    assert (await last(rewrap_data_keys(database, both, spare=SpareKek(other)))).total == 0
    checked = await last(verify_everything(database, DataKeys(database, both, spare=SpareKek(other))))
    assert (checked.done, checked.failed, checked.unchecked) == (2, {}, 0)
    assert (await last(rewrap_data_keys(database, both, spare=SpareKek(clear=True)))).done == 1
    assert await kek_uses(database) == [KekUse(both.uri, "wraps", 1)]
    assert (await last(rewrap_data_keys(database, both, spare=SpareKek(other)))).done == 1, "it is introduced by one"


async def test_a_new_data_key_has_a_spare_too(database: Connections, data_keys: DataKeys, plant: Plant) -> None:
    planted = await plant("a")
    await new_data_key(database, data_keys.wrapper, planted.tenant_id, spare=data_keys.spare)
    assert [use.data_keys for use in await kek_uses(database)] == [2, 2]
    assert (await last(verify_everything(database, data_keys))).unchecked == 2


async def test_a_spare_that_is_away_stops_no_tenant_and_is_made_up_for(
    database: Connections, keyring: LocalKeyring, plant: Plant
) -> None:
    planted = await plant("a")
    async with database.platform() as connection:
        await connection.execute("update data_key set spare_uri = null, spare_wrapped = null")
    remote = RemoteKeyring()
    remote.away = True
    spare = SpareKek(remote)
    await new_data_key(database, keyring, planted.tenant_id, spare=spare)
    assert [use.role for use in await kek_uses(database)] == ["wraps"]
    remote.away = False
    assert (await last(rewrap_data_keys(database, keyring, spare=spare))).done == 2


async def test_a_spare_wrap_that_was_changed_or_swapped_shows(
    database: Connections, data_keys: DataKeys, plant: Plant
) -> None:
    a, b = await plant("a"), await plant("b")
    async with database.platform() as connection:
        await connection.execute(
            "update data_key set spare_wrapped = (select spare_wrapped from data_key where tenant_id = $1) "
            "where tenant_id = $2",
            a.tenant_id,
            b.tenant_id,
        )
    checked = await last(verify_everything(database, data_keys, spare=IN_THE_SAFE))
    assert [name.partition(":")[0] for name in checked.failed] == ["spares"]
    refused = await last(recover_data_keys(database, LocalKeyring([NEW_KEK]), IN_THE_SAFE))
    assert (refused.done, len(refused.failed)) == (1, 1)


async def test_rsa_binds_the_context_by_itself() -> None:
    context = wrap_context(UUID(int=1), UUID(int=2))
    wrapped = await OFFLINE.wrap(context, b"d" * 32)
    assert await IN_THE_SAFE.unwrap(context, wrapped) == b"d" * 32
    with pytest.raises(SealBroken):
        await IN_THE_SAFE.unwrap(("data-key", "other", "id"), wrapped)
    for place in (0, len(wrapped.blob) - 1):
        changed = bytearray(wrapped.blob)
        changed[place] ^= 1
        with pytest.raises(SealBroken):
            await IN_THE_SAFE.unwrap(context, Wrapped(wrapped.kek_uri, bytes(changed)))
    with pytest.raises(KekDisabled, match="private half"):
        await OFFLINE.unwrap(context, wrapped)


def pem(path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> Path:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return path


def test_pem_files(tmp_path: Path) -> None:
    public = tmp_path / "public.pem"
    public.write_bytes(PAIR.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert load_rsa_kek(public).uri == load_rsa_kek(pem(tmp_path / "private.pem", PAIR)).uri == OFFLINE.uri
    assert not load_rsa_kek(public).opens(OFFLINE.uri)
    assert load_rsa_kek(tmp_path / "private.pem").opens(OFFLINE.uri)
    (tmp_path / "text.pem").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    for path, reason in (
        (tmp_path / "nowhere.pem", "cannot be read"),
        (tmp_path / "text.pem", "not an RSA key"),
        (pem(tmp_path / "ec.pem", ec.generate_private_key(ec.SECP256R1())), "not an RSA key"),
        (pem(tmp_path / "locked.pem", PAIR, b"passphrase"), "under a passphrase"),
        (pem(tmp_path / "short.pem", rsa.generate_private_key(65537, 2048)), "2048 bits"),
    ):
        with pytest.raises(KeyringUnsafe, match=reason) as refused:
            load_rsa_kek(path)
        assert refused.value.hint


async def test_status_names_what_nothing_opens(keyring: LocalKeyring) -> None:
    assert await status_of(KekUse(keyring.uri, "wraps", 1), keyring, None) == "enabled"
    assert await status_of(KekUse("local://000000000000", "wraps", 1), keyring, None) == "missing"
    assert await status_of(KekUse(OFFLINE.uri, "spare", 1), keyring, None) == "missing"
    assert await status_of(KekUse(OFFLINE.uri, "spare", 1), keyring, OFFLINE) == "enabled"
    remote = RemoteKeyring()
    remote.away = True
    assert await status_of(KekUse(remote.uri, "wraps", 1), remote, None) == "unavailable"


async def test_a_rewrap_leaves_a_spare_that_another_one_adds_meanwhile(
    database: Connections, keyring: LocalKeyring, plant: Plant
) -> None:
    """One run has the spare's variable and one has not: what the first adds must outlive the second."""
    both = LocalKeyring([NEW_KEK, KEK])

    class Overtaken:
        """Wraps under the new KEK, after the other run has added the spare."""

        uri, opens, unwrap, status = both.uri, both.opens, both.unwrap, both.status

        async def wrap(self, context: Sequence[str], plaintext: bytes) -> Wrapped:
            if context[-1] != str(UUID(int=0)):
                await last(rewrap_data_keys(database, keyring, spare=SpareKek(OFFLINE)))
            return await both.wrap(context, plaintext)

    await DataKeys(database, keyring).seal((await plant("a")).tenant_id, ("x",), b"x")
    async with database.platform() as connection:
        await connection.execute("update data_key set spare_uri = null, spare_wrapped = null")
    overtaken = await last(rewrap_data_keys(database, Overtaken()))
    assert (overtaken.done, overtaken.total) == (0, 1)
    assert await kek_uses(database) == [KekUse(keyring.uri, "wraps", 1), KekUse(OFFLINE.uri, "spare", 1)]
    again = await last(rewrap_data_keys(database, both))
    assert (again.done, again.failed) == (1, {})
    assert await kek_uses(database) == [KekUse(both.uri, "wraps", 1), KekUse(OFFLINE.uri, "spare", 1)]
