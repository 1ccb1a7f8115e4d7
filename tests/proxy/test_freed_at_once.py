"""What a request leaves behind is freed when it ends, however it ends: nothing of it waits for the collector of cycles.

The collector looks at what has lived for a while only once in many minutes. What waits for it is memory that grows
until then, in arenas that are seldom whole again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.upstream.errors import UpstreamError
from gateway.upstream.response import UpstreamResponse
from tests.collector import collector_off, of_the_gateway
from tests.proxy.harness import Gateway, key, multipart, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, Script, scripted_upstream

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
FORM = {"content-type": "multipart/form-data; boundary=x"}
EVENT = b'data: {"model":"m-1","choices":[{"delta":{"content":"a"}}]}\n\n'
TIMES = 4


async def whole(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")


async def stream(exchange: Exchange) -> None:
    await exchange.head_of_stream()
    await exchange.chunk(EVENT)
    await exchange.send(b"0\r\n\r\n")


async def fails(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n{}")


async def hangs_up(exchange: Exchange) -> None:
    del exchange


async def breaks_in_the_stream(exchange: Exchange) -> None:
    await exchange.head_of_stream()
    await exchange.chunk(EVENT)
    await exchange.chunk(EVENT)


async def babbles(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n")


async def waits(exchange: Exchange) -> None:
    await exchange.closed_by_gateway()


async def waits_in_the_stream(exchange: Exchange) -> None:
    await exchange.head_of_stream()
    await exchange.chunk(EVENT)
    await exchange.closed_by_gateway()


def asks(body: Any, path: str = "/v1/chat/completions", **more: Any) -> Callable[[Gateway], Awaitable[None]]:
    """Ask and read what comes, to its end or as far as it goes."""

    async def ask(gateway: Gateway) -> None:
        try:
            await gateway.call(path, body, **more)
        except UpstreamError:
            return

    return ask


def leaves(body: Any, after: bytes) -> Callable[[Gateway], Awaitable[None]]:
    """Ask, and hang up when `after` has come."""

    async def ask(gateway: Gateway) -> None:
        reader, writer = await asyncio.open_connection(gateway.origin.host, gateway.origin.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nauthorization: Bearer good\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        if after:
            await reader.readuntil(after)
        else:
            await asyncio.sleep(0.05)  # it has reached the provider, which stays silent
        writer.close()

    return ask


ENDINGS: dict[str, tuple[Script, Callable[[Gateway], Awaitable[None]]]] = {
    "whole": (whole, asks(CHAT)),
    "a stream": (stream, asks(STREAM)),
    "an upload": (whole, asks(multipart("m"), "/v1/audio/transcriptions", headers=FORM)),
    "bad JSON": (whole, asks(b'{"model":')),
    "no token": (whole, asks(CHAT, token=None)),
    "a wrong token": (whole, asks(CHAT, token="wrong")),
    "no such path": (whole, asks(CHAT, "/v1/nothing")),
    "no such pool": (whole, asks(CHAT, "/pools/none/v1/chat/completions")),
    "a pool without keys": (whole, asks(CHAT, "/pools/empty/v1/chat/completions")),
    "a residency without keys": (whole, asks(CHAT, headers={"x-llm-proxy-residency": "eu-*"})),
    "a residency that the second pool serves": (
        whole,
        asks({**CHAT, "model": "n"}, headers={"x-llm-proxy-residency": "us-*"}),
    ),
    "a limit that is reached": (whole, asks(CHAT, token="narrow")),
    "a provider that fails": (fails, asks(CHAT)),
    "a provider that hangs up": (hangs_up, asks(CHAT)),
    "a provider that hangs up on an upload": (hangs_up, asks(multipart("m"), "/v1/audio/transcriptions", headers=FORM)),
    "a provider that breaks off": (breaks_in_the_stream, asks(STREAM)),
    "a provider that speaks no HTTP": (babbles, asks(CHAT)),
    "a provider that is silent": (waits, asks(CHAT)),
    "a provider that falls silent": (waits_in_the_stream, asks(STREAM)),
    "a caller that leaves": (waits, leaves(b'{"model":"m","messages":[]}', b"")),
    "a caller that leaves the stream": (
        waits_in_the_stream,
        leaves(b'{"model":"m","messages":[],"stream":true}', b"content"),
    ),
}


class Feeder:
    """A connection that holds its answer, which holds it."""

    response: UpstreamResponse | None = None

    def resume(self) -> None:
        """Nothing to do."""

    abort = resume

    def hurry(self, timeout_s: float) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("ending", ENDINGS)
async def test_nothing_waits_for_the_collector(ending: str) -> None:
    script, ask = ENDINGS[ending]
    deadlines = {"deadlines": {"first_byte_s": 0.1, "idle_s": 0.1, "total_s": 5.0}, "retry": {"max_attempts": 2}}
    async with scripted_upstream(script) as upstream:
        keys = [key(name, upstream.base_url) for name in "abcdefgh"]
        others = [pool("us", key("us", upstream.base_url, region="us-east-1"), settings=deadlines), pool("empty")]
        async with running_gateway(tenant(pool("main", *keys, settings=deadlines), *others)) as gateway:
            gateway.verifier.add("narrow", details=({"type": "llm_proxy", "rpm": 1},))
            await ask(gateway)
            with collector_off() as left:
                for _ in range(TIMES):
                    await ask(gateway)
                async with asyncio.timeout(5):
                    while gateway.data_path.in_flight:
                        await asyncio.sleep(0.01)
                await gateway.client.close()
                await gateway.upstream.close()
                await asyncio.sleep(0.05)
    assert not of_the_gateway(left)


def test_what_waits_for_the_collector_is_found() -> None:
    with collector_off() as left:
        loop: Any = None
        response = UpstreamResponse(feeder := Feeder(), loop)
        feeder.response = response
        del response, feeder
    assert of_the_gateway(left) == {"UpstreamResponse": 1}
