"""One contract for every store of tenants' shares, what is special about each, and the layer that uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from auth.secret import Secret
from tenants.errors import KekDisabled, KekUnavailable, KeyringUnsafe, SealBroken
from tenants.keyring import LocalKeyring, Wrapped
from tenants.shares.files import FileShares
from tenants.shares.layer import PREFIX, ShareLayer, wrap_context
from tenants.shares.protocol import SHARE_BYTES, InMemoryShares, ShareMissing, ShareStore, Shredded
from tenants.shares.vault import VaultShares
from tests.tenants.kms_servers import TOKEN
from tests.tenants.kv_server import Kv

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
LATER = datetime(2026, 2, 1, tzinfo=UTC)
KEK = bytes(range(32))


@dataclass
class Place:
    """A place where shares are kept: `open` gives another process's view of it."""

    open: Callable[[], ShareStore]
    everything: Callable[[], bytes]


def vault(server: Kv, token: str = TOKEN) -> VaultShares:
    return VaultShares("vault://vault.example:8200/secret/llm-proxy/shares", server, lambda: Secret(token))


@pytest.fixture(params=["memory", "files", "vault"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "memory":
        kept = InMemoryShares()
        return Place(lambda: kept, lambda: repr(kept.shares).encode())
    if request.param == "files":
        directory = tmp_path / "shares"
        FileShares(directory, create=True)
        return Place(
            lambda: FileShares(directory),
            lambda: b"".join(p.name.encode() + p.read_bytes() for p in directory.iterdir()),
        )
    server = Kv()
    return Place(lambda: vault(server), lambda: repr(server.entries).encode())


async def test_a_share_is_made_once_and_for_all_processes(place: Place) -> None:
    tenants = [uuid7() for _ in range(3)]
    made = [await asyncio.gather(*(place.open().get_or_create(tenant) for _ in range(4))) for tenant in tenants]
    assert all(len(set(racers)) == 1 for racers in made)
    assert len({racers[0] for racers in made}) == 3
    assert all(len(racers[0]) == SHARE_BYTES for racers in made)
    assert [await place.open().get(tenant) for tenant in tenants] == [racers[0] for racers in made]
    assert await place.open().shredded() == {}


async def test_what_was_never_there_is_missing_and_not_shredded(place: Place) -> None:
    with pytest.raises(ShareMissing):
        await place.open().get(uuid7())


async def test_a_destroyed_share_is_gone_for_good_and_its_note_stays(place: Place) -> None:
    store, gone, kept = place.open(), uuid7(), uuid7()
    before = place.everything()
    share = await store.get_or_create(gone)
    await store.get_or_create(kept)
    await store.destroy(gone, at=AT)
    await store.destroy(gone, at=LATER)
    assert await place.open().shredded() == {gone: AT}
    for again in (store.get, store.get_or_create):
        with pytest.raises(Shredded, match=str(gone)):
            await again(gone)
    assert len(await store.get(kept)) == SHARE_BYTES
    left = place.everything()
    assert len(left) > len(before)
    assert share not in left
    assert share.hex().encode() not in left


async def test_a_tenant_that_never_sealed_anything_can_be_shredded(place: Place) -> None:
    gone = uuid7()
    await place.open().destroy(gone, at=AT)
    assert await place.open().shredded() == {gone: AT}


async def test_a_destruction_that_was_killed_is_done_by_the_next(tmp_path: Path) -> None:
    """Killed after the note: the share is still there, nothing is claimed, and nothing new is made."""
    store, gone = FileShares(tmp_path / "s", create=True), uuid7()
    share = await store.get_or_create(gone)
    (tmp_path / "s" / f"{gone}.shredded").write_text(AT.isoformat() + "\n")
    assert await store.shredded() == {}
    assert await store.get(gone) == share
    with pytest.raises(Shredded):
        await store.get_or_create(gone)
    await store.destroy(gone, at=LATER)
    assert await store.shredded() == {gone: AT}


def test_the_directory_must_be_there_and_closed(tmp_path: Path) -> None:
    with pytest.raises(KeyringUnsafe, match="cannot be used"):
        FileShares(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    with pytest.raises(KeyringUnsafe, match="not a directory"):
        FileShares(tmp_path / "file")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(KeyringUnsafe, match="may be written by others"):
        FileShares(tmp_path / "open")


@pytest.mark.parametrize("mode", [0o700, 0o2770, 0o755, 0o2775])
async def test_the_root_of_a_volume_will_do(tmp_path: Path, mode: int) -> None:
    """Kubernetes gives a volume's root to the pod's group (`fsGroup`) and leaves the bits of others as they are."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume").chmod(mode)
    store = FileShares(tmp_path / "volume")
    share = await store.get_or_create(UUID(int=1))
    assert await store.get(UUID(int=1)) == share


async def test_share_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    await FileShares(tmp_path / "s", create=True).get_or_create(UUID(int=1))
    [file] = (tmp_path / "s").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_damaged_share_is_missing_and_never_replaced(tmp_path: Path) -> None:
    store = FileShares(tmp_path / "s", create=True)
    (tmp_path / "s" / f"{UUID(int=1)}.share").write_text("AAAA\n")
    for call in (store.get, store.get_or_create):
        with pytest.raises(ShareMissing):
            await call(UUID(int=1))


async def test_a_vault_that_is_away_or_refuses_is_said_and_shows_no_token() -> None:
    server = Kv()
    with pytest.raises(KekUnavailable) as refused:
        await vault(server, "hvs.wrong").get_or_create(uuid7())
    assert "hvs" not in refused.value.public + refused.value.hint + refused.value.debug
    server.away = True
    for call in (vault(server).get, vault(server).get_or_create):
        with pytest.raises(KekUnavailable):
            await call(uuid7())


TENANT, DATA_KEY = UUID(int=1), UUID(int=2)
CONTEXT = wrap_context(TENANT, DATA_KEY)


async def test_both_the_kek_and_the_share_are_needed() -> None:
    shares, keyring = InMemoryShares(), LocalKeyring([KEK])
    layer = ShareLayer(keyring, shares)
    wrapped = await layer.wrap(CONTEXT, b"d" * 32)
    assert wrapped.kek_uri == layer.uri == PREFIX + keyring.uri
    assert layer.opens(wrapped.kek_uri)
    assert await layer.unwrap(CONTEXT, wrapped) == b"d" * 32
    with pytest.raises(SealBroken):
        await keyring.unwrap(CONTEXT, Wrapped(keyring.uri, wrapped.blob))
    with pytest.raises(KekDisabled, match="not configured"):
        await ShareLayer(keyring, None).unwrap(CONTEXT, wrapped)
    with pytest.raises(ShareMissing):
        await ShareLayer(keyring, InMemoryShares()).unwrap(CONTEXT, wrapped)
    other = InMemoryShares()
    await other.get_or_create(TENANT)
    with pytest.raises(SealBroken):
        await ShareLayer(keyring, other).unwrap(CONTEXT, wrapped)
    with pytest.raises(KekDisabled):
        await ShareLayer(LocalKeyring([bytes(32)]), shares).unwrap(CONTEXT, wrapped)
    await shares.destroy(TENANT, at=AT)
    with pytest.raises(Shredded):
        await layer.unwrap(CONTEXT, wrapped)
    with pytest.raises(Shredded):
        await layer.wrap(CONTEXT, b"d" * 32)


async def test_the_share_is_bound_to_its_row() -> None:
    shares = InMemoryShares()
    layer = ShareLayer(LocalKeyring([KEK]), shares)
    wrapped = await layer.wrap(CONTEXT, b"d" * 32)
    await shares.get_or_create(UUID(int=9))
    for context in (wrap_context(UUID(int=9), DATA_KEY), wrap_context(TENANT, UUID(int=9))):
        with pytest.raises(SealBroken):
            await layer.unwrap(context, wrapped)
    for place in range(len(wrapped.blob)):
        changed = bytearray(wrapped.blob)
        changed[place] ^= 1
        with pytest.raises(SealBroken):
            await layer.unwrap(CONTEXT, Wrapped(wrapped.kek_uri, bytes(changed)))


async def test_what_belongs_to_no_tenant_and_what_was_wrapped_before_goes_to_the_kek_alone() -> None:
    keyring = LocalKeyring([KEK])
    layer = ShareLayer(keyring, InMemoryShares())
    assert (await layer.wrap(("snapshot", "x"), b"d" * 32)).kek_uri == keyring.uri
    assert await layer.unwrap(CONTEXT, await keyring.wrap(CONTEXT, b"e" * 32)) == b"e" * 32
    assert await layer.status(layer.uri) == await layer.status(keyring.uri) == "enabled"
