"""One budget over two gateway processes and a restart."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx2

from tests.e2e.conftest import free_port
from tests.e2e.production import installation
from tests.e2e.provider import run_provider
from tests.e2e.test_postgres_away import CHAT, KEYS, pool_of


def use(url: str, token: str) -> httpx2.Response:
    return httpx2.post(
        f"{url}/v1/chat/completions",
        json={**CHAT, "max_tokens": 50},
        headers={"authorization": f"Bearer {token}"},
        timeout=60,
    )


def until_refused(url: str, token: str) -> tuple[int, httpx2.Response]:
    """Use the token until it is refused; return how often it served."""
    served = 0
    while (answer := use(url, token)).status_code == 200:
        served += 1
    return served, answer


async def test_what_one_process_spends_is_spent_in_the_other_and_after_a_restart(tmp_path: Path) -> None:
    port, config = free_port(), {"keys": [{"secret": f"sk-sim-{name}-000000000000", "name": name} for name in KEYS]}
    with run_provider(tmp_path, config) as provider:
        async with installation(tmp_path, port) as setup:
            control = one = await setup.start("serve", port)
            owner = await asyncio.to_thread(setup.new_tenant, control, "acme", pool_of(provider, *KEYS))
            # In a thread: the way to Postgres leads through this test's own loop.
            made = await asyncio.to_thread(
                httpx2.post,
                f"{control}/api/v1/tokens",
                headers={"authorization": f"Bearer {owner}"},
                json={
                    "name": "customer",
                    "scopes": ["inference"],
                    "authorization_details": [{"type": "llm_proxy", "budget_usd": 0.0005, "budget_period": "month"}],
                },
            )
            token = made.json()["access_token"]
            two = await setup.start("gateway")
            served, refusal = await asyncio.to_thread(until_refused, one, token)
            assert served > 2
            assert refusal.status_code == 429
            assert "budget_usd" in refusal.text

            def elsewhere() -> None:
                give_up = time.monotonic() + 10
                while use(two, token).status_code == 200:
                    assert time.monotonic() < give_up, "the other process still spends"

            await asyncio.to_thread(elsewhere)
            setup.processes[1].send_signal(signal.SIGTERM)
            await asyncio.to_thread(setup.processes[1].wait, 20)
            again = await setup.start("gateway")
            assert (await asyncio.to_thread(use, again, token)).status_code == 429
