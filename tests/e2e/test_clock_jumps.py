"""The wall clock jumps by hours in either direction while requests are served: only tokens may notice.

libfaketime moves the clock of the whole process: the interpreter's, OpenSSL's, asyncpg's (Debian package `faketime`).
Where it is not installed only `time.time` is moved. The monotonic clock is the machine's, as it is when NTP steps.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import PROGRAM, installation
from tests.e2e.provider import run_provider
from tests.e2e.test_postgres_away import chat, eventually_rows, pool_of

HOURS = 3600.0
JUMPS = (0.0, -30.0, 2 * HOURS, -2 * HOURS, 30 * 24 * HOURS, 0.0)
LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
PATCHED = """
import sys, time
from pathlib import Path
real, offset = time.time, Path(sys.argv.pop(1))
time.time = lambda: real() + float(offset.read_text())
from gateway.cli.program import main
main()
"""


class Clock:
    """The wall clock of one process; `jump` moves it to so many seconds beside the machine's."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0.0)

    def jump(self, seconds: float) -> None:
        whole = self._file.with_suffix(".new")
        whole.write_text(f"{seconds:+.0f}")
        whole.replace(self._file)

    @property
    def command(self) -> Sequence[str]:
        return [PROGRAM] if LIBRARIES else [sys.executable, "-c", PATCHED, str(self._file)]

    @property
    def environment(self) -> dict[str, str]:
        if not LIBRARIES:
            return {}
        return {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


async def in_flight(client: httpx2.AsyncClient) -> bool:
    text = (await client.get("/metrics")).text
    return any(line.startswith("llm_proxy_in_flight ") and not line.endswith(" 0.0") for line in text.splitlines())


async def test_requests_are_served_across_jumps(tmp_path: Path) -> None:
    port, clock = free_port(), Clock(tmp_path / "offset")
    config = {
        "keys": [{"secret": "sk-sim-one-000000000000", "name": "one"}],
        "latency": {"first_byte_s": 1.0, "per_token_s": 0.02, "jitter": 0.0},
    }
    with run_provider(tmp_path, config) as provider:
        async with installation(tmp_path, port) as running:
            log = tmp_path / "jumping.log"
            with log.open("ab") as sink:
                process = subprocess.Popen(
                    [*clock.command, "serve"],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env={**running.environment, "PORT": str(port), **clock.environment},
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
                    fresh = await asyncio.to_thread(running.token, base_url, app)
                    for jump in JUMPS:
                        client.headers["authorization"] = f"Bearer {fresh}"
                        under_way = asyncio.gather(*(chat(client, stream=stream) for stream in (False, True)))
                        while not await in_flight(client):
                            assert not under_way.done()
                        clock.jump(jump)
                        assert set(await under_way) == {200}, f"under way at the jump to {jump}"
                        fresh = await asyncio.to_thread(running.token, base_url, app)
                        client.headers["authorization"] = f"Bearer {fresh}"
                        assert {await chat(client, stream=stream) for stream in (False, True)} == {200}, jump
                        answered += 4
                        assert (await client.get("/readyz")).status_code == 200
                        told = parsedate_to_datetime((await client.get("/livez")).headers["date"])
                        assert abs(told.timestamp() - time.time() - jump) < 5, "its clock has jumped"
                assert await eventually_rows(running, answered) == answered
                assert "Traceback" not in log.read_text()
            finally:
                process.terminate()
                await asyncio.to_thread(process.wait, 60)  # the database is reached through this loop
