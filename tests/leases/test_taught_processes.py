"""Two real processes: what one of them is answered, the other knows, and caps are of both together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import free_port
from tests.e2e.production import installation
from tests.e2e.provider import run_provider
from tests.e2e.test_postgres_away import CHAT, pool_of

KEYS = ("first", "second", "third")


class Gateway:
    """One process, and the owner's token for it."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx2.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30.0)

    def close(self) -> None:
        self._client.close()

    def ask(self) -> int:
        return self._client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5}).status_code

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get("/pools/main/state").raise_for_status().json()
        return found

    def until(self, holds: Callable[[dict[str, Any]], bool], *, asking: bool = False) -> dict[str, Any]:
        give_up = time.monotonic() + 60.0
        while not holds(found := self.state()):
            assert time.monotonic() < give_up, found
            if asking:
                self.ask()
        return found


def counted_together(state: dict[str, Any]) -> bool:
    return sum(each["counted_as"] is not None for each in state["quotas"]) == len(KEYS) - 1


async def test_names_and_outages_that_one_process_meets_are_known_in_the_other(tmp_path: Path) -> None:
    port = free_port()
    config = {
        "keys": [
            {"secret": f"sk-sim-{name}-000000000000", "name": name, "organisation": "org-acme", "style": "openai"}
            for name in KEYS
        ]
    }
    with run_provider(tmp_path, config) as provider, ExitStack() as stack:
        async with installation(tmp_path, port) as setup:
            control = await setup.start("control", port)
            token = await asyncio.to_thread(setup.new_tenant, control, "acme", pool_of(provider, *KEYS))
            one, two = [stack.enter_context(closing(Gateway(await setup.start("gateway"), token))) for _ in range(2)]

            def names() -> None:
                assert one.ask() == 200
                one.until(counted_together, asking=True)
                # One answer names one quota: of the others this process has only heard.
                assert two.ask() == 200
                state = two.until(counted_together)
                assert sum(each["picks"] for each in state["keys"]) == 1

            await asyncio.to_thread(names)

            def outages() -> None:
                assert two.ask() == 200
                provider.process.terminate()
                provider.process.wait(10)
                one.until(lambda state: bool(state["outages"]), asking=True)
                # It is not believed before nothing has worked in the other process itself for a second.
                state = two.until(lambda state: bool(state["outages"]))
                assert [each["outcomes"] for each in state["keys"] if set(each["outcomes"]) - {"ok"}] == []

            await asyncio.to_thread(outages)


async def test_a_cap_holds_over_both_processes_and_a_breaker_opens_in_both(tmp_path: Path) -> None:
    port, cap = free_port(), 6
    config = {"keys": [{"secret": f"sk-sim-{name}-000000000000", "name": name} for name in KEYS]}

    def first(state: dict[str, Any]) -> dict[str, Any]:
        return next(each for each in state["keys"] if each["key"] == "first")

    with run_provider(tmp_path, config) as provider, ExitStack() as stack:
        pool: dict[str, Any] = pool_of(provider, *KEYS)
        pool["providers"][0]["max_in_flight"] = cap

        def fault(**fault: object) -> None:
            found = httpx2.put(f"{provider.base_url}/_sim/keys/first/faults", json=[fault])
            found.raise_for_status()

        async with installation(tmp_path, port) as setup:
            control = await setup.start("control", port)
            token = await asyncio.to_thread(setup.new_tenant, control, "acme", pool)
            one, two = [stack.enter_context(closing(Gateway(await setup.start("gateway"), token))) for _ in range(2)]
            for each in (one, two):
                # So small a cap is not divided on credit: an exchange comes first, and meanwhile the other keys serve.
                await asyncio.to_thread(each.until, lambda state: first(state)["picks"] > 0, asking=True)
            fault(kind="delay", delay_s=0.2)
            with ThreadPoolExecutor(40) as callers:
                assert set(callers.map(Gateway.ask, [one, two] * 60)) == {200}
            assert 1 < provider.counts()["first"]["max_in_flight"] <= cap

            def breaks() -> None:
                fault(kind="status", status=500)
                one.until(lambda state: first(state)["breaker"] != "closed", asking=True)
                # Not before the key has worked in the other process itself for the last time a second ago.
                state = two.until(lambda state: first(state)["breaker"] != "closed")
                assert set(first(state)["outcomes"]) == {"ok"}

            await asyncio.to_thread(breaks)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_four_processes_cool_down_after_a_429_that_one_met(tmp_path: Path) -> None:
    """With `-s` it prints how soon all know; docs/leases.md states it."""
    port, rng, took_s = free_port(), Random(1), list[float]()
    names = KEYS[:2]
    config = {"keys": [{"secret": f"sk-sim-{name}-000000000000", "name": name} for name in names]}

    def is_cooling(state: dict[str, Any]) -> bool:
        quota_id = next(each["quota_id"] for each in state["keys"] if each["key"] == "first")
        quota = next(each for each in state["quotas"] if each["id"] == quota_id)
        return any(each["cooldown_s"] > 0.0 for each in quota["ledgers"])

    with run_provider(tmp_path, config) as provider, ExitStack() as stack:
        async with installation(tmp_path, port) as setup:
            control = await setup.start("control", port)
            token = await asyncio.to_thread(setup.new_tenant, control, "acme", pool_of(provider, *names))
            processes = [stack.enter_context(closing(Gateway(await setup.start("gateway"), token))) for _ in range(4)]

            def refused() -> None:
                for _ in range(3):
                    assert {each.ask() for each in processes} == {200}
                    time.sleep(0.4 + 0.4 * rng.random())
                fault = {"kind": "status", "status": 429, "retry_after_s": 5, "times": 1}
                httpx2.put(f"{provider.base_url}/_sim/keys/first/faults", json=[fault]).raise_for_status()
                one, *others = processes
                one.until(is_cooling, asking=True)
                began = time.monotonic()
                for each in others:
                    each.until(is_cooling)
                took_s.append(time.monotonic() - began)
                for each in processes:
                    each.until(lambda state: not is_cooling(state))

            for _ in range(25):
                await asyncio.to_thread(refused)
    print(f"all of four knew after {median(took_s):.2f} s in the median, {max(took_s):.2f} s at most")
