"""`make test-crowd`: 20,000 callers stay, each answered by its own bytes; one beyond the bound is told to come back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.crowd import Connection, ask, loaders, resident_kib
from tests.e2e.production import installation
from tests.e2e.supervised import children, until
from tests.hostile.provider import Provider

CROWD = int(os.environ.get("CROWD", "20000"))
BOUND = CROWD // 2 + 10
"""Of each of the two workers: a limit of open files holds for one process."""
KIB_EACH = 16.0
"""What docs/faults.md says that an idle connection costs, at most."""
LIVEZ = b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n"


async def knock(port: int) -> tuple[Connection, bytes, bytes]:
    connection = await asyncio.open_connection("127.0.0.1", port)
    return connection, *await ask(connection, LIVEZ)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_crowd_is_served_at_its_bound_and_stays(tmp_path: Path) -> None:
    port = free_port()
    provider = Provider()
    provider.start()
    key = {"name": "only", "provider": "simulated", "base_url": provider.base_url, "api_key": "sk-crowd-000000000000"}
    settings = {
        "LLM_PROXY_WORKERS": "2",
        "LLM_PROXY_LOG_FORMAT": "json",
        "LLM_PROXY_MAX_CONNECTIONS": str(BOUND),
        "LLM_PROXY_MAX_UPSTREAM_CONNECTIONS": "200",
        "LLM_PROXY_KEEP_ALIVE": "3600",
    }
    try:
        async with installation(tmp_path, port, **settings) as running:
            process, log = running.spawn("serve", port)
            url = f"http://127.0.0.1:{port}"
            await asyncio.to_thread(wait_for, f"{url}/readyz", process, log)
            await until("worker serves", log, times=2)
            token = await asyncio.to_thread(running.new_tenant, url, "acme", {"name": "main", "providers": [key]})
            with loaders(port, token, [200]) as warm:
                assert (await asyncio.to_thread(warm[0].heard)).answered == 200
            workers = children(process.pid)
            before = resident_kib(*workers)
            with loaders(port, token, [CROWD // 2, CROWD // 2]) as crowds:
                gathered = [await asyncio.to_thread(each.heard) for each in crowds]
                assert [each.wrong for each in gathered] == [[], []]
                assert sum(each.answered for each in gathered) == CROWD
                each_kib = (resident_kib(*workers) - before) / CROWD
                refused = sum(each.refused for each in gathered)
                print(f"{CROWD} connections: {before / 1024:.0f} MiB and {each_kib:.1f} KiB each; {refused} came twice")

                # Who connects gets whichever worker is there first: both are full when all their places are taken.
                more: list[Connection] = []
                async with asyncio.timeout(300):
                    while CROWD + len(more) < 2 * BOUND:
                        connection, head, _ = await knock(port)
                        if head.startswith(b"http/1.1 200 "):
                            more.append(connection)
                        else:
                            connection[1].transport.abort()
                for _ in range(20):
                    connection, head, body = await knock(port)
                    assert head.startswith(b"http/1.1 503 ")
                    assert b"\r\nretry-after: 1\r\n" in head
                    assert b"too_many_connections" in body
                    connection[1].transport.abort()

                again = [await asyncio.to_thread(each.ask_again) for each in crowds]
                assert [each.wrong for each in again] == [[], []]
                assert sum(each.answered for each in again) == CROWD // 100
                for connection in more:
                    connection[1].transport.abort()
            async with asyncio.timeout(60):
                while not (knocked := await knock(port))[1].startswith(b"http/1.1 200 "):
                    knocked[0][1].transport.abort()
            knocked[0][1].transport.abort()
            assert children(process.pid) == workers
            assert provider.take_violations() == []
            assert each_kib < KIB_EACH
    finally:
        provider.stop()
