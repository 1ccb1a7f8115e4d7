"""The wall clock jumps by hours in either direction while requests are served: only tokens may notice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import installation
from tests.e2e.provider import run_provider
from tests.e2e.test_postgres_away import chat, eventually_rows, pool_of

HOURS = 3600.0
JUMPING = """
import sys, time
from pathlib import Path
real, offset = time.time, Path(sys.argv.pop(1))
time.time = lambda: real() + float(offset.read_text())
from gateway.cli.program import main
main()
"""
"""`llm-proxy` with a wall clock that a file moves; the monotonic clock is the machine's, as it is when NTP steps."""


async def test_requests_are_served_across_jumps(tmp_path: Path) -> None:
    port, offset = free_port(), tmp_path / "offset"
    offset.write_text("0")
    config = {"keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}]}
    with run_provider(tmp_path, config) as provider:
        async with installation(tmp_path, port) as running:
            log = tmp_path / "jumping.log"
            with log.open("ab") as sink:
                process = subprocess.Popen(
                    [sys.executable, "-c", JUMPING, str(offset), "serve"],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env={**running.environment, "PORT": str(port)},
                )
            try:
                base_url = f"http://127.0.0.1:{port}"
                await asyncio.to_thread(wait_for, f"{base_url}/readyz", process, log)
                pool = pool_of(provider, "one")
                token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool)
                answered = 0
                async with httpx2.AsyncClient(base_url=base_url, timeout=20) as client:
                    headers = {"authorization": f"Bearer {token}"}
                    made = await client.post(
                        "/api/v1/clients", json={"name": "app", "scopes": ["inference"]}, headers=headers
                    )
                    assert made.status_code == 201, made.text
                    app = made.json()
                    for jump in (0.0, -30.0, 2 * HOURS, -2 * HOURS, 30 * 24 * HOURS, 0.0):
                        offset.write_text(str(jump))
                        fresh = await asyncio.to_thread(running.token, base_url, app)
                        client.headers["authorization"] = f"Bearer {fresh}"
                        assert {await chat(client, stream=stream) for stream in (False, True)} == {200}, jump
                        answered += 2
                        assert (await client.get("/readyz")).status_code == 200
                assert await eventually_rows(running, answered) == answered
                assert "Traceback" not in log.read_text()
            finally:
                process.terminate()
                await asyncio.to_thread(process.wait, 60)  # the database is reached through this loop
