"""What is charged for other than plain answers: counts of tokens, callers that leave, names of the tenant's own."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.policy.allowance import InMemoryAllowances
from gateway.policy.budgets import BudgetBook
from gateway.upstream.connect import Factory
from gateway.upstream.http1 import Http1Connection
from gateway.upstream.message import Origin
from tests.proxy.harness import key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

ALIASES = {"fast": "text-embedding-3-small"}


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/messages/count_tokens", {"model": "claude-sonnet-4-5"}, b'{"input_tokens": 2095}'),
        ("/v1beta/models/gemini-2.5-pro:countTokens", {}, b'{"totalTokens": 31}'),
    ],
)
async def test_a_count_of_tokens_costs_nothing(path: str, body: dict[str, str], told: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(told))

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        reply = await gateway.call(path, {**body, "messages": [{"role": "user", "content": "x " * 2000}]})
        row = await gateway.row()
    assert (reply.status, reply.body) == (200, told)
    assert (row.input_tokens, row.output_tokens, row.cost_usd_nanos) == (0, 0, None)


async def test_a_caller_that_leaves_before_the_answer_has_spent_its_prompt() -> None:
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.closed_by_gateway()
        left.set()

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        # A prompt for 2.5 cents, of a budget of three.
        gateway.verifier.add("narrow", details=({"type": "llm_proxy", "budget_usd": 0.03, "budget_period": "total"},))
        message = {"role": "user", "content": "x " * 20_000}
        body = json.dumps({"model": "gpt-4o", "max_tokens": 1, "messages": [message]}).encode()
        _, writer = await asyncio.open_connection(gateway.origin.host, gateway.origin.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-api-key: narrow\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        async with asyncio.timeout(10):
            while not upstream.exchanges:
                await asyncio.sleep(0.005)
            writer.close()
            await left.wait()
        row = await gateway.row()
        assert (row.outcome, row.status, row.attempts) == ("abandoned", 499, 1)
        assert (row.input_tokens, row.output_tokens, row.usage_reported) == (len(body) // 4 + 1, 0, False)
        assert row.cost_usd_nanos == (len(body) // 4 + 1) * 2_500
        refused = await gateway.call("/v1/chat/completions", body, token="narrow")
        assert refused.status == 429
        assert "budget of 0.03 US dollars in all" in refused.body.decode()


async def test_a_caller_whose_deadline_passes_has_spent_its_prompt() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.closed_by_gateway()

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "x " * 2_000}]}).encode()
        reply = await gateway.call("/v1/chat/completions", body, headers={"x-llm-proxy-deadline": "0.2"})
        row = await gateway.row()
        assert (reply.status, row.outcome, row.attempts) == (504, "deadline", 1)
        assert (row.input_tokens, row.output_tokens, row.usage_reported) == (len(body) // 4 + 1, 0, False)
        assert row.cost_usd_nanos == (len(body) // 4 + 1) * 2_500


class Unreachable:
    """Connects to nobody; `asked` once it was to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def connect(self, origin: Origin, factory: Factory) -> Http1Connection:
        self.asked.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("never")


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_prompt_that_was_sent_to_nobody_costs_nothing(leaves: bool) -> None:
    """A provider that is out of reach charges nothing, however often impatient callers try."""
    connector = Unreachable()
    snapshot = tenant(pool("main", key("a", "http://127.0.0.1:9")))
    async with running_gateway(snapshot, connector=connector) as gateway, asyncio.timeout(10):
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x " * 2_000}]}
        headers = {} if leaves else {"x-llm-proxy-deadline": "0.2"}
        asking = asyncio.create_task(gateway.call("/v1/chat/completions", body, headers=headers))
        await connector.asked.wait()
        if leaves:
            asking.cancel()
        await asyncio.wait([asking])
        row = await gateway.row()
    assert (row.outcome, row.attempts) == ("abandoned" if leaves else "deadline", 1)
    assert (row.input_tokens, row.cost_usd_nanos) == (0, None)


async def test_what_no_rung_serves_stays_charged_where_the_budget_is_overdrawn() -> None:
    book, overdrawn = BudgetBook(), 10**12

    async def script(exchange: Exchange) -> None:
        book.spend("jti-narrow:-", "total", 0, overdrawn)  # others, that were estimated too low
        await exchange.closed_by_gateway()

    async with scripted_upstream(script) as upstream:
        main = pool("main", key("a", upstream.base_url), settings={"fallbacks": [{"pool": "other"}]}, is_default=True)
        snapshot = tenant(main, pool("other", key("b", upstream.base_url)))
        async with running_gateway(snapshot, allowances=InMemoryAllowances(book=book)) as gateway:
            detail = {"type": "llm_proxy", "budget_usd": 1.0, "budget_period": "total"}
            gateway.verifier.add("narrow", details=(detail,))
            body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x " * 2_000}]}
            headers = {"x-llm-proxy-deadline": "0.2"}
            reply = await gateway.call("/v1/chat/completions", body, token="narrow", headers=headers)
            row = await gateway.row()
    assert reply.status == 504
    assert row.cost_usd_nanos
    assert book.spent("jti-narrow:-", "total", 0.0) == overdrawn + row.cost_usd_nanos


async def test_an_alias_is_priced_as_its_model_where_the_answer_names_none() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(b'{"usage": {"prompt_tokens": 100, "total_tokens": 100}}'))

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(
            tenant(pool("main", key("a", upstream.base_url), settings={"model_aliases": ALIASES}))
        ) as gateway,
    ):
        await gateway.call("/v1/embeddings", {"model": "fast", "input": "x"})
        row = await gateway.row()
    assert (row.model, row.served_model, row.cost_usd_nanos) == ("fast", None, 2_000)
