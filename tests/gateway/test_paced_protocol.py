"""A connection parses no further ahead than requests may wait, and says nothing else for it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.paced_protocol import MAX_PIPELINED, part_end
from gateway.relay_protocol import RelayProtocol
from tests.gateway.test_relay_protocol import SETTINGS, Caller, Running, running

__all__ = ["running"]

HEAD = b"GET / HTTP/1.1\r\nhost: g\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "at", "heads", "end"),
    [
        (HEAD, 0, 1, len(HEAD)),
        (HEAD * 3, 0, 2, 2 * len(HEAD)),
        (HEAD * 3, len(HEAD), 1, 2 * len(HEAD)),
        (HEAD * 3, 0, 8, 3 * len(HEAD)),
        (HEAD + b"{}", 0, 1, len(HEAD)),
        (HEAD + b"{}", 0, 2, len(HEAD) + 2),
        (b"a body without any", 0, 1, 18),
        (b"lines\r\nand\r\nlines", 0, 1, 17),
        (HEAD[:-1], 0, 1, len(HEAD) - 1),
    ],
)
def test_a_part_ends_with_a_head(data: bytes, at: int, heads: int, end: int) -> None:
    assert part_end(data, at, heads) == end


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"x"]), max_size=40).map(b"".join), st.integers(1, 8)
)
def test_a_part_never_holds_more_heads(data: bytes, heads: int) -> None:
    end = part_end(data, 0, heads)
    assert data[:end].count(b"\r\n\r\n") <= heads
    assert end == len(data) or data[:end].count(b"\r\n\r\n") == heads


def line_of(running: Running) -> int:
    """Return how many requests wait behind the first."""
    connections = running.server.server_state.connections
    return max(len(each.pipeline) for each in connections if isinstance(each, RelayProtocol))


@pytest.mark.parametrize("way", ["short", "asgi", "by turns"])
async def test_thousands_in_one_read_are_answered_in_order(way: str, running: Running) -> None:
    caller, count = await Caller.of(running), 2000
    caller.post("/v1/held")
    await running.entered.wait()
    wanted = []
    sent = b""
    for number in range(count):
        if way == "short" or (way == "by turns" and number % 2):
            sent += b"POST /v1/echo?n=%d HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n#%c" % (
                number,
                48 + number % 10,
            )
            wanted.append(b"POST /v1/echo?n=%d #%c" % (number, 48 + number % 10))
        else:
            sent += b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number
            wanted.append(b"asgi GET /%d" % number)
    caller.writer.write(sent)
    longest = 0
    async with asyncio.timeout(10):
        while not line_of(running):
            await asyncio.sleep(0)
    running.release.set()
    await caller.answer()
    for number in range(count):
        assert (await caller.answer())[1] == wanted[number]
        longest = max(longest, line_of(running))
    assert 1 <= longest <= MAX_PIPELINED
    caller.close()


async def test_who_is_not_read_is_not_late_with_its_head(running: Running) -> None:
    caller = await Caller.of(running)
    caller.post("/v1/held")
    await running.entered.wait()
    for _ in range(MAX_PIPELINED):
        caller.post("/v1/echo")
    caller.writer.write(b"POST /v1/echo?last HTTP/1.1\r\nhost: x\r\n")
    async with asyncio.timeout(10):
        while line_of(running) < MAX_PIPELINED:
            await asyncio.sleep(0)
    running.sweep(SETTINGS.header_timeout_s + 5)
    running.release.set()
    for _ in range(1 + MAX_PIPELINED):
        assert (await caller.answer())[0].startswith(b"HTTP/1.1 200 OK")
    caller.writer.write(b"content-length: 2\r\n\r\nhi")
    assert (await caller.answer())[1] == b"POST /v1/echo?last hi"
    caller.close()
