"""An answer that is here at once goes to the caller in one piece, and reads as one that comes bit by bit."""

from __future__ import annotations

import json

import pytest

from tests.proxy import harness
from tests.proxy.harness import Reply, key, pool, running_gateway, tenant
from tests.proxy.scripted import Exchange, scripted_upstream

SECRET = "sk-0123456789abcdef"
ECHO = json.dumps({"model": "m-1", "echo": SECRET, "usage": {"prompt_tokens": 7, "completion_tokens": 5}}).encode()


@pytest.fixture(autouse=True, params=["own server", "asgi"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "OVER_ASGI", request.param == "asgi")


def _head(status: bytes, framing: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nx-request-id: its-%b\r\n%b\r\n\r\n" % (
        status, SECRET.encode(), framing,
    )  # fmt: skip


def _chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def _answered(*writes: bytes) -> tuple[Reply, tuple[int, int, str | None, str]]:
    """Let the provider make these writes, with the caller's reading between them."""

    async def script(exchange: Exchange) -> None:
        for write in writes:
            await exchange.send(write)

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url, SECRET)))) as gateway,
    ):
        reply = await gateway.call("/v1/chat/completions", {"model": "m"})
        row = await gateway.row()
        return reply, (row.input_tokens, row.output_tokens, row.served_model, row.outcome)


@pytest.mark.parametrize(
    "writes",
    [
        (_head(b"200 OK", b"content-length: %d" % len(ECHO)) + ECHO,),
        (_head(b"200 OK", b"transfer-encoding: chunked") + _chunked(ECHO),),
        (_head(b"200 OK", b"transfer-encoding: chunked") + _chunked(ECHO[:40], ECHO[40:]),),
        (_head(b"200 OK", b"content-length: %d" % len(ECHO)), ECHO[:20], ECHO[20:]),
        (_head(b"200 OK", b"content-length: 0%d \t" % len(ECHO)) + ECHO,),
        (_head(b"200 OK", b"content-length: 0%d \t" % len(ECHO)), ECHO[:20], ECHO[20:]),
        (_head(b"200 OK", b"transfer-encoding: chunked") + _chunked(ECHO)[:-5], b"0\r\n\r\n"),
    ],
    ids=[
        "length",
        "chunked",
        "two chunks",
        "bit by bit",
        "a padded length",
        "a padded length bit by bit",
        "a late end",
    ],
)
async def test_whole_or_in_parts_it_reads_the_same(writes: tuple[bytes, ...]) -> None:
    reply, row = await _answered(*writes)
    assert reply.status == 200
    assert reply.body == ECHO.replace(SECRET.encode(), b"*" * len(SECRET))
    assert reply.headers["x-request-id"] == "its-" + "*" * len(SECRET)
    assert row == (7, 5, "m-1", "ok")


async def test_a_provider_that_names_a_model_at_great_length_takes_no_memory() -> None:
    named = b'{"model":"%b","usage":{"prompt_tokens":7,"completion_tokens":5}}' % (b"m" * 5000)

    async def script(exchange: Exchange) -> None:
        await exchange.send(_head(b"200 OK", b"content-length: %d" % len(named)) + named)

    async with (
        scripted_upstream(script) as upstream,
        running_gateway(tenant(pool("main", key("a", upstream.base_url, SECRET)))) as gateway,
    ):
        await gateway.call("/v1/chat/completions", {"model": "m"})
        row = await gateway.row()
        assert (row.served_model, row.output_tokens) == ("m" * 256, 5)
        assert max(len(model) for _, model in gateway.data_path._prices._cache) == 256


async def test_an_error_that_is_here_at_once_is_relayed() -> None:
    reply, row = await _answered(_head(b"400 Bad Request", b"transfer-encoding: chunked") + _chunked(b'{"error":{}}'))
    assert (reply.status, reply.body, row) == (400, b'{"error":{}}', (0, 0, None, "client_error"))


async def test_the_length_of_a_chunked_answer_that_is_here_is_told() -> None:
    reply, _ = await _answered(_head(b"200 OK", b"transfer-encoding: chunked") + _chunked(ECHO))
    assert reply.headers["content-length"] == str(len(ECHO))
