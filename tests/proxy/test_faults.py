"""What goes wrong on either side, over real sockets: the caller leaves, the provider breaks, uploads, bounds."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.proxy.intake import HOLD_BYTES
from tests.proxy.harness import Gateway, key, multipart, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

CHAT = {"model": "m", "messages": [], "stream": True}


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"model": "m-1", "choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status.encode(), len(body), body,
    )  # fmt: skip


async def test_a_stream_arrives_piece_by_piece() -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head_of_stream()
        await exchange.chunk(event("one"))
        await go_on.wait()
        await exchange.chunk(event("two"))
        await exchange.send(b"0\r\n\r\n")

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        response = await gateway.open("/v1/chat/completions", CHAT)
        assert await response.read() == event("one"), "the first piece is here while the second is not sent yet"
        go_on.set()
        assert await response.read() == event("two")
        assert await response.read() == b""
        row = await gateway.row()
        assert (row.outcome, row.streamed, row.usage_reported, row.served_model) == ("ok", True, False, "m-1")


@pytest.mark.parametrize("after", ["before the head", "in the stream"])
async def test_a_caller_that_leaves_ends_the_upstream_request(after: str) -> None:
    ended = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if after == "in the stream":
            await exchange.head_of_stream()
            await exchange.chunk(event("one"))
            await exchange.chunk(event("two"))
        await exchange.closed_by_gateway()
        ended.set()

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        body = json.dumps(CHAT).encode()
        reader, writer = await asyncio.open_connection(gateway.origin.host, gateway.origin.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-api-key: good\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        if after == "in the stream":
            assert b"two" in await reader.readuntil(b"two")
        else:
            while not upstream.exchanges:
                await asyncio.sleep(0.005)
        writer.close()
        async with asyncio.timeout(10):
            await ended.wait()
        row = await gateway.row()
        assert row.outcome == "abandoned"
        assert row.status == (200 if after == "in the stream" else 499)
        assert row.input_tokens == 0 or not row.usage_reported
        runtime = gateway.directory.get(row.tenant_id)
        assert runtime is not None
        (view,) = runtime.pools["main"].balancer.view(0.0).endpoints
        assert view.in_flight == 0, "the lease was given back"


async def test_a_stream_that_breaks_ends_in_an_error_event() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head_of_stream()
        await exchange.chunk(event("one"))

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        reply = await gateway.call("/v1/chat/completions", CHAT)
        assert reply.body.startswith(event("one"))
        error = json.loads(reply.body.removeprefix(event("one")).removeprefix(b"data: "))["error"]
        assert error["code"] == "upstream_failed"
        assert error["request_id"] == reply.headers["x-llm-proxy-request-id"]
        row = await gateway.row()
        assert (row.status, row.outcome) == (200, "server_error")


async def test_a_plain_answer_that_breaks_is_cut_and_never_looks_whole() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n" + begun)

    begun = b'{"id":"chatcmpl-1"'
    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        raw = await _post(gateway, b'{"model":"m"}')
        assert raw.startswith(b"HTTP/1.1 200")
        assert raw.endswith(b"\r\n\r\n" + begun), "what came of a hundred bytes, then the end of the connection"
        assert (await gateway.row()).outcome == "server_error"


async def _post(gateway: Gateway, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(gateway.origin.host, gateway.origin.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-api-key: good\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    try:
        async with asyncio.timeout(10):
            return await reader.read(-1)
    finally:
        writer.close()


async def test_a_large_upload_is_relayed_while_it_arrives() -> None:
    seen = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.reader.readexactly(HOLD_BYTES)
        seen.set()
        total = HOLD_BYTES
        while not exchange.body.endswith(b"--x--\r\n"):
            data = await exchange.reader.read(65536)
            total += len(data)
            exchange.body = (exchange.body + data)[-100:]
        await exchange.send(answer(json.dumps({"size": total}).encode()))

    start = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nfast\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    )
    end = b"\r\n--x--\r\n"
    padding = 3 * HOLD_BYTES
    async with (
        scripted_upstream(script, read_body=False) as upstream,
        running_gateway(
            tenant(pool("main", key("a", upstream.base_url), settings={"model_aliases": {"fast": "whisper-1"}}))
        ) as gateway,
    ):
        reader, writer = await asyncio.open_connection(gateway.origin.host, gateway.origin.port)
        length = len(start) + padding + len(end)
        writer.write(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: g\r\nx-api-key: good\r\n"
            b"content-type: multipart/form-data; boundary=x\r\ncontent-length: %d\r\n\r\n%b" % (length, start)
        )
        writer.write(b"a" * 2 * HOLD_BYTES)
        async with asyncio.timeout(10):
            await seen.wait()
        writer.write(b"a" * (padding - 2 * HOLD_BYTES) + end)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert json.loads(await reader.readuntil(b"}")) == {"size": length + len("whisper-1") - len("fast")}
        writer.close()
        (exchange,) = upstream.exchanges
        assert b"content-length: %d" % (length + 5) in exchange.head
        assert (await gateway.row()).model == "fast"


@pytest.mark.parametrize("size", [HOLD_BYTES - 150, HOLD_BYTES, 3 * HOLD_BYTES])
async def test_a_model_after_the_file_is_found(size: int) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(b'{"text":"hi"}'))

    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"a" * size
    form = file + b'\r\n--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--x--\r\n'
    aliases = {"model_aliases": {"fast": "whisper-1"}}
    async with (
        scripted_upstream(script) as upstream,
        running_gateway(
            tenant(pool("main", key("a", upstream.base_url, models=("whisper-1",)), settings=aliases))
        ) as gateway,
    ):
        headers = {"content-type": "multipart/form-data; boundary=x"}
        reply = await gateway.call("/v1/audio/transcriptions", form % b"fast", headers=headers)
        assert reply.json() == {"text": "hi"}
        (exchange,) = upstream.exchanges
        assert exchange.body == form % b"whisper-1"


async def test_a_moderation_that_names_no_model_goes_where_its_default_is_served() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(exchange.body))

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(
            tenant(
                pool("main", key("a", "http://127.0.0.1:1", models=("gpt-4o",))),
                pool("safety", key("b", upstream.base_url, models=("*moderation*",))),
            )
        ) as gateway,
    ):
        reply = await gateway.call("/v1/moderations", {"input": "x"})
        assert reply.json() == {"input": "x"}
        assert reply.headers["x-llm-proxy-pool"] == "safety"


async def test_a_small_upload_can_be_tried_on_another_key() -> None:
    calls = []

    async def script(exchange: Exchange) -> None:
        calls.append(exchange.body)
        await exchange.send(answer(b"{}", "500 Oops") if len(calls) == 1 else answer(b'{"text":"hi"}'))

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url), key("b", upstream.base_url)))) as gateway,
    ):
        headers = {"content-type": "multipart/form-data; boundary=x"}
        reply = await gateway.call("/v1/audio/transcriptions", multipart("whisper-1"), headers=headers)
        assert reply.json() == {"text": "hi"}
        assert reply.headers["x-llm-proxy-attempts"] == "2"
        assert calls == [multipart("whisper-1")] * 2
        assert (await gateway.row()).attempts == 2


async def test_callers_wait_when_every_key_is_full_and_are_served_in_turn() -> None:
    release = asyncio.Semaphore(0)

    async def script(exchange: Exchange) -> None:
        await release.acquire()
        await exchange.send(answer(b'{"model":"m"}'))

    async with scripted_upstream(script) as upstream:
        snapshot = tenant(pool("main", key("a", upstream.base_url, max_in_flight=1)))
        async with running_gateway(snapshot) as gateway:
            calls = [asyncio.create_task(gateway.call("/v1/embeddings", {"model": "m", "n": n})) for n in range(3)]
            runtime = next(iter(gateway.directory))
            while runtime.pools["main"].queue.waiting < 2:
                await asyncio.sleep(0.002)
            for _ in calls:
                release.release()
            assert [reply.status for reply in await asyncio.gather(*calls)] == [200, 200, 200]
            assert len(upstream.exchanges) == 3
            assert runtime.pools["main"].queue.waiting == 0


async def test_when_the_queue_is_full_callers_are_told_to_slow_down() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.closed_by_gateway()

    async with scripted_upstream(script) as upstream:
        keyed = key("a", upstream.base_url, max_in_flight=1)
        async with running_gateway(tenant(pool("main", keyed, settings={"max_waiting": 0}))) as gateway:
            first = asyncio.create_task(gateway.call("/v1/embeddings", {"model": "m"}))
            while not upstream.exchanges:
                await asyncio.sleep(0.002)
            reply = await gateway.call("/v1/embeddings", {"model": "m"})
            assert (reply.status, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(reply.headers["retry-after"]) >= 1
            first.cancel()
