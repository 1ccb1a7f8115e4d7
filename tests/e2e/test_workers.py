"""Several workers behind one port: as one gateway, through a crash, a rolling restart and a drain."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import httpx2

from tests.e2e.conftest import free_port, wait_for
from tests.e2e.production import installation
from tests.e2e.provider import run_provider
from tests.e2e.supervised import children, until
from tests.hostile.provider import Provider, Seen, Wire, good_body, whole

SECRET = "sk-sim-workers-000000000000000"
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}


async def test_workers_are_one_gateway_through_a_crash_a_roll_and_a_drain(tmp_path: Path) -> None:
    port = free_port()
    with run_provider(tmp_path, {"keys": [{"secret": SECRET, "name": "only"}]}) as provider:
        pool = {
            "name": "main",
            "providers": [{"name": "only", "provider": "simulated", "base_url": provider.base_url, "api_key": SECRET}],
        }
        async with installation(tmp_path, port, LLM_PROXY_WORKERS="2", LLM_PROXY_LOG_FORMAT="json") as running:
            process, log = running.spawn("serve", port)
            url = f"http://127.0.0.1:{port}"
            await asyncio.to_thread(wait_for, f"{url}/readyz", process, log)
            await until("worker serves", log, times=2)
            token = await asyncio.to_thread(running.new_tenant, url, "acme", pool)
            headers = {"authorization": f"Bearer {token}", "connection": "close"}
            answers: list[int] = []
            stop = asyncio.Event()

            async def ask() -> None:
                """Send requests one after the other, each over a connection of its own."""
                while not stop.is_set():
                    async with httpx2.AsyncClient(base_url=url, headers=headers) as client:
                        answers.append((await client.post("/v1/chat/completions", json=CHAT)).status_code)

            # Between two requests nothing is in flight: a worker may be killed without anybody noticing.
            for _ in range(4):
                async with httpx2.AsyncClient(base_url=url, headers=headers) as client:
                    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            before = children(process.pid)
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            asking = asyncio.create_task(ask())
            await until("worker serves", log, times=3)
            assert len(children(process.pid)) == 2

            process.send_signal(signal.SIGHUP)
            await until("all workers are replaced", log)
            assert set(children(process.pid)).isdisjoint(before)
            stop.set()
            await asking
            assert set(answers) == {200}
            assert len(answers) > 10

            metrics = httpx2.get(f"{url}/metrics").text
            assert set(re.findall(r'llm_proxy_tenants{worker="(\d)"}', metrics)) == {"0", "1"}
            assert metrics.count("# TYPE llm_proxy_requests_total counter") <= 1

            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_drain_in_the_middle_of_a_roll_cuts_nobody_short(tmp_path: Path) -> None:
    """The worker that is being replaced drains already: the end of all must not be a second signal to it."""
    port, released, provider = free_port(), threading.Event(), Provider()

    async def hold(wire: Wire, seen: Seen) -> None:
        while not released.is_set():
            await asyncio.sleep(0.01)
        await wire.say(whole(good_body(seen)))

    provider.mood = hold
    provider.start()
    pool = {
        "name": "main",
        "providers": [{"name": "only", "provider": "simulated", "base_url": provider.base_url, "api_key": SECRET}],
    }
    variables = {"LLM_PROXY_WORKERS": "2", "LLM_PROXY_LOG_FORMAT": "json", "LLM_PROXY_DRAIN": "100"}
    try:
        async with installation(tmp_path, port, **variables) as running:
            process, log = running.spawn("serve", port)
            url = f"http://127.0.0.1:{port}"
            await asyncio.to_thread(wait_for, f"{url}/readyz", process, log)
            await until("worker serves", log, times=2)
            token = await asyncio.to_thread(running.new_tenant, url, "acme", pool)

            async def ask() -> int:
                async with httpx2.AsyncClient(base_url=url, timeout=100) as client:
                    headers = {"authorization": f"Bearer {token}"}
                    return (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code

            asking = [asyncio.create_task(ask()) for _ in range(12)]
            async with asyncio.timeout(60):
                while len(provider.seen) < len(asking):
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGHUP)
            await until("Shutting down", log)
            process.send_signal(signal.SIGTERM)
            await until("Shutting down", log, times=3)
            assert not any(each.done() for each in asking)
            released.set()
            assert await asyncio.gather(*asking) == [200] * len(asking)
            assert await asyncio.to_thread(process.wait, 60) == 0
            assert "Traceback" not in log.read_text()
    finally:
        released.set()
        provider.stop()


async def test_an_end_while_a_roll_starts_a_worker_leaves_none_behind(tmp_path: Path) -> None:
    port = free_port()
    async with installation(tmp_path, port, LLM_PROXY_WORKERS="2", LLM_PROXY_LOG_FORMAT="json") as running:
        process, log = running.spawn("serve", port)
        await asyncio.to_thread(wait_for, f"http://127.0.0.1:{port}/readyz", process, log)
        await until("worker serves", log, times=2)
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while len(started := children(process.pid)) < 3:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
        assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
        assert "Traceback" not in log.read_text()


async def test_a_worker_whose_supervisor_dies_while_it_starts_ends(tmp_path: Path) -> None:
    port = free_port()
    async with installation(tmp_path, port, LLM_PROXY_WORKERS="2", LLM_PROXY_LOG_FORMAT="json") as running:
        process, log = running.spawn("serve", port)
        await until("Waiting for application startup", log, times=2)
        started = children(process.pid)
        orders = Path(f"/proc/{started[0]}/cmdline").read_bytes().split(b"\0")[-2]
        process.kill()
        process.wait()
        shutil.rmtree(json.loads(orders)["directory"])  # as a supervisor does that ends in order
        async with asyncio.timeout(60):
            while any(Path(f"/proc/{pid}").exists() for pid in started):
                await asyncio.sleep(0.05)
        assert "Traceback" not in log.read_text()
