"""SIGTERM: readiness turns first, streams in flight end whole, usage is written, then the process goes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import installation
from tests.e2e.provider import SeparateProvider, run_provider

SECRET = "sk-sim-slow-000000000000000"
SLOW = {"kind": "slow", "delay_s": 0.05}
CHAT = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SeparateProvider]:
    with run_provider(tmp_path, {"keys": [{"secret": SECRET, "name": "slow", "faults": [SLOW]}]}) as running:
        yield running


async def test_a_stream_in_flight_ends_whole(tmp_path: Path, provider: SeparateProvider) -> None:
    port = free_port()
    pool = {
        "name": "main",
        "providers": [{"name": "slow", "provider": "simulated", "base_url": provider.base_url, "api_key": SECRET}],
    }
    async with installation(tmp_path, port, LLM_PROXY_DRAIN_LEAD="0.3") as running:
        process, log = running.spawn("serve", port)
        base_url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(wait_for, f"{base_url}/readyz", process, log)
        token = await asyncio.to_thread(running.new_tenant, base_url, "acme", pool)
        async with (
            httpx2.AsyncClient(base_url=base_url, headers={"authorization": f"Bearer {token}"}) as client,
            client.stream("POST", "/v1/chat/completions", json=CHAT) as stream,
        ):
            lines = stream.aiter_lines()
            first = await anext(lines)
            process.send_signal(signal.SIGTERM)
            ready = await poll_ready(client)
            rest = [line async for line in lines]
        assert first.startswith("data: {")
        assert ready == 503
        assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
        assert await asyncio.to_thread(process.wait, 20) == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{base_url}/livez")
        assert "Traceback" not in log.read_text()


async def poll_ready(client: httpx2.AsyncClient) -> int:
    """Return what `/readyz` says as soon as it says no; the signal takes a moment to arrive."""
    status = 200
    async with asyncio.timeout(5):
        while status == 200:
            status = (await client.get("/readyz")).status_code
    return status
