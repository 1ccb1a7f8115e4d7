"""What ten thousand tenants with a hundred thousand keys cost: start to ready, memory, CPU per request.

    python bench/many_tenants.py [--tenants 10000] [--keys 10] [--seconds 3]

A real Postgres with sealed keys, one `llm-proxy gateway` over it. The load goes to one tenant among them; the same
gateway over that tenant alone stands beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg
from installation import Installation
from load import run_load
from mock_provider import start_provider
from uuid_utils.compat import uuid7

from tenants.custody import key_context
from tenants.datakeys import wrap_context
from tenants.envelope import Context, seal
from tenants.keyring import LocalKeyring

REGIONS = ("eu-west-1", "us-east-1", "ap-southeast-2")
TABLES = ("tenant", "data_key", "pool", "quota", "provider_key", "key_version")


def rows_of(keyring_rows: list[tuple[Any, ...]], provider_port: int, keys: int) -> dict[str, list[tuple[Any, ...]]]:
    """Make all rows of the tenants whose (tenant id, data key id, data key) are given."""
    made: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TABLES[2:]}
    base_url = f"http://127.0.0.1:{provider_port}"
    for tenant_id, data_key_id, data_key in keyring_rows:
        pool_id = uuid7()
        made["pool"].append((pool_id, tenant_id, "main", "weighted", True))
        for number in range(keys):
            quota_id, key_id = uuid7(), uuid7()
            made["quota"].append((quota_id, tenant_id, f"quota-{number}", "simulated", '{"rpm": 5000, "tpm": 2000000}'))
            made["provider_key"].append(
                (
                    key_id, tenant_id, pool_id, quota_id, f"key-{number}", "simulated", base_url,
                    REGIONS[number % 3], '["gpt-*", "claude-*", "text-embedding-*"]', number % 5 + 1,
                )
            )  # fmt: skip
            context = Context(data_key_id, tenant_id, key_context(pool_id, key_id, 1, "simulated"))
            secret = b"sk-proj-" + secrets.token_urlsafe(117).encode()
            blob = seal(data_key, context, secret, random_bytes=os.urandom)
            made["key_version"].append((uuid7(), tenant_id, key_id, 1, "current", data_key_id, blob, "", ""))
    return made


COLUMNS = {
    "pool": ["id", "tenant_id", "name", "strategy", "is_default"],
    "quota": ["id", "tenant_id", "name", "provider", "limits"],
    "provider_key": [
        "id", "tenant_id", "pool_id", "quota_id", "name", "provider", "base_url", "region", "models", "weight",
    ],
    "key_version": ["id", "tenant_id", "key_id", "number", "state", "data_key_id", "envelope", "prefix", "fingerprint"],
}  # fmt: skip


async def plant(owner_url: str, kek: bytes, provider_port: int, tenants: int, keys: int) -> None:
    """Fill the tables by COPY, with the triggers off: they are what a change costs, not what is measured here."""
    owner = await asyncpg.connect(owner_url)
    keyring = LocalKeyring([kek])
    known, tenant_rows, data_keys = [], [], []
    for number in range(tenants):
        tenant_id, data_key_id, data_key = uuid7(), uuid7(), os.urandom(32)
        wrapped = await keyring.wrap(wrap_context(tenant_id, data_key_id), data_key)
        known.append((tenant_id, data_key_id, data_key))
        tenant_rows.append((tenant_id, f"tenant-{number}", f"Tenant {number}"))
        data_keys.append((data_key_id, tenant_id, 1, wrapped.kek_uri, wrapped.blob))
    rows = rows_of(known, provider_port, keys)
    async with owner.transaction():
        await owner.execute("set local session_replication_role = replica")
        await owner.copy_records_to_table("tenant", records=tenant_rows, columns=["id", "slug", "name"])
        columns = ["id", "tenant_id", "version", "kek_uri", "wrapped"]
        await owner.copy_records_to_table("data_key", records=data_keys, columns=columns)
        for table, records in rows.items():
            await owner.copy_records_to_table(table, records=records, columns=COLUMNS[table])
    await owner.execute("analyze")
    await owner.close()


HEAD = """\
| tenants and keys | start to ready s | CPU s | MiB | MiB under load | CPU ms a request |
|---|---|---|---|---|---|"""


def plant_tenants(installation: Installation, provider_port: int, tenants: int, keys: int) -> None:
    """Fill the installation's database."""
    asyncio.run(plant(installation.owner_url, installation.kek, provider_port, tenants, keys))


def measure(installation: Installation, token: str, seconds: float, label: str) -> str:
    """Start a gateway, wait for it, load it, and give the table's row."""
    began = time.monotonic()
    gateway, port = installation.start_gateway()
    ready_s, cpu_s = time.monotonic() - began, gateway.cpu_s()
    memory = gateway.memory_mb()
    where = installation.directory
    run_load(where, port, "small", token, connections=64, seconds=1.0, measured=gateway)
    rounds = [
        run_load(where, port, "small", token, connections=64, seconds=seconds, measured=gateway) for _ in range(3)
    ]
    cpu_ms = statistics.median(each.cpu_ms for each in rounds)
    loaded = gateway.memory_mb()
    gateway.stop()
    return f"| {label} | {ready_s:.1f} | {cpu_s:.1f} | {memory:.0f} | {loaded:.0f} | {cpu_ms:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        provider, provider_port = start_provider(directory)
        installation = Installation(directory)
        try:
            installation.start_control()
            token = installation.new_tenant(provider_port)
            installation.stop_control()
            print(HEAD)
            print(measure(installation, token, arguments.seconds, "1 and 3"), flush=True)
            plant_tenants(installation, provider_port, arguments.tenants, arguments.keys)
            label = f"{arguments.tenants + 1:,} and {arguments.tenants * arguments.keys + 3:,}"
            print(measure(installation, token, arguments.seconds, label))
        finally:
            installation.close()
            provider.stop()


if __name__ == "__main__":
    main()
