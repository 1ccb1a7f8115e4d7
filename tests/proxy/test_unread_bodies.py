"""Requests that are answered before their body was read to its end, over real sockets."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.proxy.harness import key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

BODY = b'{"model":"gpt-4o","messages":[]}'
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-type: application/json\r\n"
    b"content-length: 32\r\nexpect: 100-continue\r\n\r\n"
)
UPLOAD = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer good\r\n"
    b"content-type: multipart/form-data; boundary=x\r\ntransfer-encoding: chunked\r\n\r\n"
)
FORM = (
    b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x\r\ncontent-disposition: form-data; '
)
PART = FORM + b'name="file"; filename="f"\r\n\r\n' + bytes(400_000)


async def test_who_was_not_told_to_send_a_body_need_not() -> None:
    async with running_gateway(tenant(pool("main", key("a", "http://127.0.0.1:9")))) as gateway:
        reader, writer = await asyncio.open_connection(gateway.origin.host, gateway.origin.port)
        writer.write(HEAD % b"refused")
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"\r\nconnection: close\r\n" in answer, "or its next request would be read as this one's body"
        writer.close()


async def test_who_did_not_wait_with_its_body_keeps_the_connection() -> None:
    async with running_gateway(tenant(pool("main", key("a", "http://127.0.0.1:9")))) as gateway:
        reader, writer = await asyncio.open_connection(gateway.origin.host, gateway.origin.port)
        for _ in range(2):
            writer.write(HEAD % b"refused" + BODY)
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            assert head.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" not in head
        writer.close()


async def test_an_upload_that_turns_out_malformed_is_over(caplog: pytest.LogCaptureFixture) -> None:
    refused = asyncio.Event()

    async def answers_early(exchange: Exchange) -> None:
        await refused.wait()
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        await exchange.chunk(b'{"text": "')
        await exchange.closed_by_gateway()

    async with (
        scripted_upstream(answers_early, read_body=False) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url)))) as gateway,
    ):
        reader, writer = await asyncio.open_connection(gateway.origin.host, gateway.origin.port)
        writer.write(UPLOAD + b"%x\r\n%b\r\n" % (len(PART), PART))
        async with asyncio.timeout(10):
            while not upstream.exchanges:
                await asyncio.sleep(0.002)
        writer.write(b"no size\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        refused.set()
        row = await gateway.row()
        assert (row.status, row.outcome) == (499, "abandoned")
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        writer.close()
