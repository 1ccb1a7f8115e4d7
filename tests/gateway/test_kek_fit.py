"""A process whose key-encryption key opens nothing of what the database holds does not become ready, and says why."""

from __future__ import annotations

import base64
from dataclasses import replace
from uuid import uuid4

import httpx
import pytest

from auth.secret import Secret
from gateway.asgi import Gateway
from gateway.database import Postgres
from gateway.kek_fit import KekFit
from gateway.settings import Settings, read_settings
from tenants.keyring import LocalKeyring
from tenants.shares.layer import wrap_context
from tenants.wrappers.vault import VaultTransit
from tests.conftest import TestDatabase
from tests.tenants.kms_servers import TOKEN, Transit

ISSUER = "http://127.0.0.1:8080"
FIRST, SECOND = (base64.b64encode(bytes(range(n, n + 32))).decode() for n in (1, 2))


def keyring(keys: str) -> LocalKeyring:
    return LocalKeyring([base64.b64decode(keys)])


def settings(database: TestDatabase, keys: str) -> Settings:
    environment = {"LLM_PROXY_ISSUER": ISSUER, "LLM_PROXY_KEK": "env", "LLM_PROXY_KEK_KEYS": keys}
    given = read_settings({**environment, "LLM_PROXY_PEPPERS": f"1:{FIRST}"})
    return replace(given, database_url=Secret(database.url), database_pool_size=3)


async def told(database: TestDatabase, keys: str, *, control: bool) -> tuple[int, str]:
    """Start a process with these key-encryption keys and return what `/readyz` says."""
    app = Gateway(settings(database, keys), control=control)
    await app.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ISSUER) as client:
            assert (await client.get("/livez")).status_code == 200
            answer = await client.get("/readyz")
            return answer.status_code, answer.text
    finally:
        await app.close()


@pytest.mark.parametrize("control", [False, True], ids=["gateway", "control"])
async def test_another_key_does_not_take_the_place_of_one_that_serves(
    test_database: TestDatabase, control: bool
) -> None:
    assert (await told(test_database, FIRST, control=True))[0] == 200  # makes the signing keys, sealed under the first
    status, body = await told(test_database, SECOND, control=control)
    assert status == 503
    first, second = (keyring(each).uri for each in (FIRST, SECOND))
    assert "LLM_PROXY_KEK opens none of the 1 data keys" in body
    assert first in body
    assert second in body
    assert SECOND not in body
    assert (await told(test_database, f"{SECOND},{FIRST}", control=control))[0] == 200, "the midst of a rotation"


async def test_it_becomes_ready_when_the_data_keys_are_wrapped_under_it(test_database: TestDatabase) -> None:
    assert (await told(test_database, FIRST, control=True))[0] == 200
    postgres = Postgres(test_database.url, max_size=2)
    try:
        fit = KekFit(postgres, keyring(SECOND))
        assert fit.check() is not None, "not before it was compared"
        await fit.look()
        assert "opens none" in (fit.check() or "")
        async with postgres.platform() as connection:
            await connection.execute("update data_key set kek_uri = $1", keyring(SECOND).uri)
        await fit.look()
        assert fit.check() is None
        await fit.run()  # ends at once
    finally:
        await postgres.close()


@pytest.mark.parametrize(("is_the_same", "fits"), [(True, True), (False, False)])
async def test_the_same_key_by_another_name_fits(test_database: TestDatabase, is_the_same: bool, fits: bool) -> None:
    """A Vault that has moved to another address, an alias of a KMS or its replica in another region: it opens all."""
    before, tenant_id, key_id = Transit(), uuid4(), uuid4()
    wrapped = await vault("old.example", before).wrap(wrap_context(tenant_id, key_id), bytes(32))
    postgres = Postgres(test_database.url, max_size=2)
    try:
        async with postgres.platform() as connection:
            await connection.execute("insert into tenant (id, slug, name) values ($1, 'acme', 'Acme')", tenant_id)
            await connection.execute(
                "insert into data_key (id, tenant_id, version, kek_uri, wrapped) values ($1, $2, 1, $3, $4)",
                key_id,
                tenant_id,
                wrapped.kek_uri,
                wrapped.blob,
            )
        fit = KekFit(postgres, vault("new.example", before if is_the_same else Transit()))
        await fit.look()
        assert (fit.check() is None) == fits
    finally:
        await postgres.close()


def vault(host: str, server: Transit) -> VaultTransit:
    return VaultTransit(f"vault://{host}:8200/transit/llm-proxy", server, lambda: Secret(TOKEN))


async def test_a_database_without_secrets_fits_every_key(test_database: TestDatabase) -> None:
    postgres = Postgres(test_database.url, max_size=2)
    try:
        fit = KekFit(postgres, keyring(SECOND))
        await fit.look()
        assert fit.check() is None
    finally:
        await postgres.close()


async def test_what_cannot_be_compared_is_not_ready() -> None:
    postgres = Postgres("postgresql://nobody@127.0.0.1:1/nothing", max_size=2)
    try:
        fit = KekFit(postgres, keyring(SECOND))
        await fit.look()
        assert "not been compared" in (fit.check() or "")
    finally:
        await postgres.close()
