"""What operators run against a real database: migrate, bootstrap, config check, kek."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner, Result

from auth.errors import Fault
from auth.principal import PLATFORM_TENANT_ID
from auth.secret import Secret
from gateway.cli.program import program
from gateway.database import Postgres
from gateway.embedded.postgres import Address
from gateway.schema import check_role, scram_verifier
from tenants.datakeys import DataKeys
from tenants.keyring import LocalKeyring
from tests.conftest import TestDatabase

OLD, NEW = (base64.b64encode(bytes(range(start, start + 32))).decode() for start in (0, 100))
ISSUER = "http://127.0.0.1:8080"


def environment(database: TestDatabase, keks: str = OLD) -> dict[str, str]:
    return {
        "DATABASE_URL": database.url,
        "LLM_PROXY_ISSUER": ISSUER,
        "LLM_PROXY_KEK": "env",
        "LLM_PROXY_KEK_KEYS": keks,
        "LLM_PROXY_PEPPERS": f"1:{OLD}",
    }


def run(env: dict[str, str], *words: str, given: str | None = None) -> Result:
    return CliRunner().invoke(program, list(words), env=env, input=given)


def done(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


async def seal_something(database: TestDatabase) -> None:
    postgres = Postgres(database.url, max_size=1)
    await DataKeys(postgres, LocalKeyring([base64.b64decode(OLD)])).seal(PLATFORM_TENANT_ID, ("x",), b"y")
    await postgres.close()


def test_a_database_is_migrated_and_gets_its_role(postgres_server: Address) -> None:
    name, role = f"cli_{secrets.token_hex(4)}", f"role_{secrets.token_hex(4)}"
    password = secrets.token_urlsafe(16)

    async def admin(statement: str) -> None:
        connection = await asyncpg.connect(postgres_server.url())
        await connection.execute(statement)
        await connection.close()

    asyncio.run(admin(f"create database {name}"))
    env = {"LLM_PROXY_MIGRATION_URL": postgres_server.url(name)}
    try:
        assert "empty ->" in done(run(env, "migrate", "--login", role, given=password + "\n"))
        assert "up to date" in done(run(env, "migrate"))
        url = postgres_server.url(name, role, Secret(password))
        assert asyncio.run(check_role(url)).safe
        refused = run(env, "migrate", "--login", role, given="short\n")
        assert isinstance(refused.exception, Fault)
    finally:
        asyncio.run(admin(f"drop database {name} with (force)"))
        asyncio.run(admin(f"drop role {role}"))


def test_bootstrap_makes_an_operator_once_printed(test_database: TestDatabase, tmp_path: Any) -> None:
    made = json.loads(done(run(environment(test_database), "bootstrap", "--json")))
    assert made["base_url"] == ISSUER
    file = tmp_path / "operator.json"
    saved = done(run(environment(test_database), "bootstrap", "--save", str(file)))
    assert file.stat().st_mode & 0o077 == 0
    assert json.loads(file.read_text())["client_secret"] not in saved
    again = run(environment(test_database), "bootstrap", "--save", str(file))
    assert isinstance(again.exception, Fault)


def test_bootstrap_gives_an_operator_what_it_is_made_for(test_database: TestDatabase) -> None:
    async def scopes(client_id: str) -> set[str]:
        """Return what the client holds, which the platform's trail shows as well."""
        postgres = Postgres(test_database.url, max_size=1)
        async with postgres.platform() as connection:
            held = await connection.fetchval("select scopes from oauth_client where client_id = $1", client_id)
            said = await connection.fetchrow(
                "select actor, action, detail from audit_event where tenant_id = $1 and subject = $2",
                PLATFORM_TENANT_ID,
                f"client:{client_id}",
            )
        await postgres.close()
        assert said is not None
        held, detail = (json.loads(each) if isinstance(each, str) else each for each in (held, said["detail"]))
        assert (said["actor"], said["action"], detail["scopes"]) == ("bootstrap", "client.create", held)
        return set(held)

    manages = {"clients:read", "clients:write"}
    for flags, more in (
        ((), set()),
        (("--may-act",), {"tenants:act"}),
        (("--may-manage",), manages),
        (("--may-act", "--may-manage"), {"tenants:act", *manages}),
    ):
        made = json.loads(done(run(environment(test_database), "bootstrap", "--json", *flags)))
        assert asyncio.run(scopes(made["client_id"])) == {"platform", "audit:read", *more}


def test_a_misspelt_variable_is_told_beside_the_one_that_is_missing(test_database: TestDatabase) -> None:
    given = environment(test_database)
    given["LLM_PROXY_ISUER"] = given.pop("LLM_PROXY_ISSUER")
    refused = run(given, "config", "check")
    assert "LLM_PROXY_ISSUER is not set" in str(refused.exception.errors)  # type: ignore[union-attr]
    assert "did you mean LLM_PROXY_ISSUER?" in " ".join(refused.output.split())


def test_the_configuration_is_checked_and_shown(test_database: TestDatabase) -> None:
    assert "ready to serve" in done(run(environment(test_database), "config", "check"))
    shown = done(run(environment(test_database), "config", "show"))
    assert test_database.url not in shown
    assert OLD not in shown
    owner = {**environment(test_database), "DATABASE_URL": test_database.owner_url}
    refused = run(owner, "config", "check")
    assert isinstance(refused.exception, Fault)
    assert "superuser" in str(refused.exception.errors)  # type: ignore[attr-defined]


def test_a_kek_is_rotated_while_everything_stays_readable(test_database: TestDatabase) -> None:
    asyncio.run(seal_something(test_database))
    both = environment(test_database, f"{NEW},{OLD}")
    [before] = json.loads(done(run(both, "kek", "status", "--json")))
    assert (before["data_keys"], before["status"]) == (1, "enabled")
    assert "1 of 1" in done(run(both, "kek", "rewrap"))
    [after] = json.loads(done(run(environment(test_database, NEW), "kek", "status", "--json")))
    assert after["kek"] != before["kek"]
    assert "1 of 1" in done(run(environment(test_database, NEW), "kek", "verify"))

    async def noted() -> list[tuple[str, str]]:
        connection = await asyncpg.connect(test_database.owner_url)
        rows = await connection.fetch("select action, actor from audit_event order by seq")
        await connection.close()
        return [(row["action"], row["actor"]) for row in rows]

    events = asyncio.run(noted())
    assert [action for action, _ in events] == ["kek.rewrap", "kek.verify"]
    assert all(actor.endswith("(llm-proxy kek)") for _, actor in events)


def test_a_lost_kek_is_told(test_database: TestDatabase) -> None:
    asyncio.run(seal_something(test_database))
    [row] = json.loads(done(run(environment(test_database, NEW), "kek", "status", "--json")))
    assert row["status"] == "missing"
    assert isinstance(run(environment(test_database, NEW), "kek", "rewrap").exception, Fault)


@pytest.mark.parametrize("command", [["migrate"], ["bootstrap"], ["kek", "status"]])
def test_what_is_missing_is_said(command: list[str]) -> None:
    result = run({"DATABASE_URL": "", "LLM_PROXY_MIGRATION_URL": ""}, *command)
    assert isinstance(result.exception, Fault)
    assert result.exception.hint


def test_a_database_that_is_away_is_a_sentence() -> None:
    result = run({"LLM_PROXY_MIGRATION_URL": "postgresql://u:p@127.0.0.1:1/d"}, "migrate")
    assert isinstance(result.exception, Fault)
    assert "u:p@" not in str(result.exception) + result.exception.debug


def test_passwords_beyond_ascii_are_refused() -> None:
    with pytest.raises(Fault):
        scram_verifier(Secret("pässwörd-long-enough"), b"s" * 16)
