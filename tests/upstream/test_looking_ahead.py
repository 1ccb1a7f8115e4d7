"""Looking at the beginning of an answer takes nothing away from it, and a look that ends does not end the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.upstream.answer import Answer
from gateway.upstream.errors import UpstreamBroken
from tests.upstream.servers import Wire
from tests.upstream.test_dispatch import text
from tests.upstream.world import world

FIRST, REST = b'{"id": "abc', b'", "n": 1}'
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n"
WRONG = b"HTTP/1.1 422 Wrong\r\ncontent-length: 21\r\n\r\n"


def undecided(body: bytes, ended: bool) -> bool | None:
    return True if ended else None


async def _peek(answer: Answer) -> None:
    assert await answer.peek(0.01) in {b"", FIRST}


async def _peek_until(answer: Answer) -> None:
    assert await answer.peek_until(undecided, 0.01) is False


Look = Callable[[Answer], Awaitable[None]]
LOOKS = pytest.mark.parametrize("look", [_peek, _peek_until])


@contextlib.asynccontextmanager
async def halves(head: bytes) -> AsyncIterator[tuple[Answer, asyncio.Event, asyncio.Event]]:
    """Give an answer of which half has come; the rest does once the first event is set."""
    go, gone = asyncio.Event(), asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(head + FIRST)
        await go.wait()
        await wire.say(REST)
        await wire.gone()
        gone.set()

    async with world(a=script) as w:
        yield await w.answer(), go, gone


@LOOKS
@pytest.mark.parametrize("head", [OK, WRONG])
async def test_what_comes_after_the_look_is_relayed(look: Look, head: bytes) -> None:
    async with halves(head) as (answer, go, _):
        await look(answer)
        go.set()
        assert await text(answer) == FIRST + REST
        await answer.finish()


async def test_a_look_that_is_decided_leaves_all_in_place() -> None:
    async with halves(OK) as (answer, go, _):
        go.set()
        assert await answer.peek_until(undecided, 5.0) is True
        assert await text(answer) == FIRST + REST
        await answer.finish()


async def test_who_is_cancelled_while_looking_ends_the_answer() -> None:
    async with halves(OK) as (answer, go, gone):
        looking = asyncio.create_task(answer.peek(60.0))
        await asyncio.sleep(0)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        go.set()
        await asyncio.wait_for(gone.wait(), 5)
        with pytest.raises(UpstreamBroken):
            await text(answer)
