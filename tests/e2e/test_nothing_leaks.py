"""After a day's work in small, no provider key and no client secret stands in the database or in what was printed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx2
import pytest

from tests.e2e.conftest import RunningGateway, run_dev

IMPORTED = "sk-proj-" + secrets.token_urlsafe(36)
ROTATED = "sk-proj-" + secrets.token_urlsafe(36)
MISTYPED = "sk-proj-" + secrets.token_urlsafe(36)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningGateway, list[str]]]:
    """A gateway of its own that has served, refused, imported and rotated; and every secret that passed through it."""
    with run_dev(tmp_path_factory.mktemp("leaks") / "home", LLM_PROXY_LOG_LEVEL="DEBUG") as gateway:
        token = gateway.token()
        held = [gateway.client_secret, IMPORTED, ROTATED, MISTYPED, "sim-key-primary", "sim-key-secondary", token]
        with httpx2.Client(base_url=gateway.base_url, headers={"authorization": f"Bearer {token}"}) as client:
            held += work(client)
        yield gateway, held


def work(client: httpx2.Client) -> list[str]:
    """Use every path on which a secret travels, the failing ones too; return the secrets that were made on the way."""
    chat = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}
    assert client.post("/v1/chat/completions", json=chat).status_code == 200
    assert client.post("/v1/chat/completions", json={**chat, "stream": True}).status_code == 200
    assert client.post("/v1/chat/completions", content=b"{").status_code == 400
    provider = {"name": "a", "provider": "openai", "api_key": IMPORTED}
    pool = client.post("/api/v1/pools/import", json={"name": "leaky", "providers": [provider]})
    assert pool.status_code == 201, pool.text
    key_id = pool.json()["keys"][0]["id"]
    assert client.post(f"/api/v1/keys/{key_id}/rotate", json={"api_key": ROTATED}).status_code in (200, 201)
    wrong = client.post("/api/v1/pools/import", json={"providers": [{"name": "a", "api_key": [MISTYPED]}]})
    assert wrong.status_code == 422
    misplaced = client.post("/api/v1/pools/import", json={"providers": [{"nmae": MISTYPED, "api_key": MISTYPED}]})
    assert misplaced.status_code == 422
    assert MISTYPED not in wrong.text + misplaced.text
    made = client.post("/api/v1/clients", json={"name": "second", "scopes": ["inference"]})
    assert made.status_code == 201, made.text
    secret: str = made.json()["client_secret"]
    for client_id, client_secret in ((made.json()["client_id"], secret), ("nobody", MISTYPED)):
        client.post("/oauth2/token", auth=(client_id, client_secret), data={"grant_type": "client_credentials"})
        client.post("/oauth2/token", data={"client_secret": client_secret, "grant_type": "nonsense"})
    client.get("/api/v1/keys/" + key_id)
    client.get("/v1/models", headers={"authorization": f"Bearer {MISTYPED}"})
    client.get(f"/v1/models?api_key={MISTYPED}")
    return [secret]


def test_no_secret_is_printed(worked: tuple[RunningGateway, list[str]]) -> None:
    gateway, held = worked
    output = gateway.output()
    assert "/v1/chat/completions" in output or "request" in output, "the log has to have something to leak into"
    assert [secret[:12] for secret in held if secret in output] == []


async def test_no_secret_is_in_the_database(worked: tuple[RunningGateway, list[str]]) -> None:
    gateway, held = worked
    dump = await dump_of(gateway)
    assert len(dump) > 1_000
    assert gateway.client_id.encode() in dump
    assert [secret[:12] for secret in held if secret.encode() in dump or secret.encode().hex().encode() in dump] == []


def test_no_secret_is_in_the_files_of_the_database(worked: tuple[RunningGateway, list[str]]) -> None:
    """The write-ahead log and every page, not only what a query shows."""
    gateway, held = worked
    for file in files_of_postgres(gateway.home):
        content = file.read_bytes()
        assert [secret[:12] for secret in held if secret.encode() in content] == [], file


async def dump_of(gateway: RunningGateway) -> bytes:
    """Every row of every table, as text, read by the owner of the database."""
    note = next(postgres_of(gateway.home).rglob("connection.json"))
    found = json.loads(note.read_text())
    dump = bytearray()

    async def keep(data: bytes) -> None:
        dump.extend(data)

    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=found["port"],
        user=found["user"],
        password=found["password"],
        database=found.get("database", "llm_proxy"),
    )
    try:
        await connection.execute("set row_security = off")
        for (table,) in await connection.fetch("select tablename from pg_tables where schemaname = 'public'"):
            await connection.copy_from_query(f'select * from "{table}"', output=keep)
    finally:
        await connection.close()
    return bytes(dump)


def postgres_of(home: Path) -> Path:
    """Where the server's files are: below the home, or where `location` says (root, in a closed directory)."""
    location = home / "postgres" / "location"
    return Path(location.read_text().strip()) if location.exists() else home


def files_of_postgres(home: Path) -> list[Path]:
    """Everything below the data directory, wherever it is under the home."""
    data = next(postgres_of(home).rglob("PG_VERSION")).parent
    return [path for path in data.rglob("*") if path.is_file()]
