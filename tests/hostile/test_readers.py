"""Callers that do not take what they asked for, or take it slowly: what they hold, for how long, and who else pays."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress

import httpx2
import pytest

from tests.hostile.conftest import KEY, Target
from tests.hostile.provider import STREAM_HEAD, Script, Seen, Wire, chunk, event_of
from tests.hostile.test_upstreams import ask, make_pool
from tests.hostile.upstreams import HEAD, MIB
from tests.hostile.wire import Caller, Until, ident, identities, post

GROWTH_MIB = 24
LATE_S = 15.0
"""The longest that anything is waited for here."""
NARROW = 4096
LASTING = {"connect_s": 0.5, "first_byte_s": 0.5, "idle_s": 2.0, "total_s": 60.0}
SHORT = {**LASTING, "total_s": 2.0}


def pool_of_one(target: Target, name: str, deadlines: dict[str, float]) -> bytes:
    """Create a pool with one key that serves one request at a time; return its path for chat."""
    key = {"base_url": target.provider.base_url, "api_key": KEY, "max_in_flight": 1}
    return make_pool(target, name, key, deadlines=deadlines)


def sized(size: int) -> Script:
    """Answer with so many bytes."""

    async def script(wire: Wire, seen: Seen) -> None:
        del seen
        await wire.say(HEAD + b"content-length: %d\r\n\r\n" % size)
        for at in range(0, size, MIB):
            await wire.say(bytes(min(MIB, size - at)))

    return script


def eventually(holds: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + LATE_S
    while not holds():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


class Reading(threading.Thread):
    """Takes so many bytes every so many seconds until it is let go of."""

    def __init__(self, caller: Caller, size: int, every_s: float) -> None:
        super().__init__(daemon=True)
        self.caller, self.size, self.every_s = caller, size, every_s

    def run(self) -> None:
        with suppress(OSError):
            while self.caller.socket.recv(self.size):
                time.sleep(self.every_s)


READERS = {
    "never": (LASTING, 0, 0.0),
    "a byte a second": (LASTING, 1, 1.0),
    "all the time, slowly": (SHORT, 2048, 0.02),
}
"""What the pool's deadlines are, how much is read, how often."""


@pytest.mark.parametrize("way", [b"", b"http://gateway"], ids=["short way", "over ASGI"])
@pytest.mark.parametrize("how", READERS)
def test_who_does_not_take_its_answer_is_let_go_of(how: str, way: bytes, target: Target) -> None:
    deadlines, size, every_s = READERS[how]
    identity = ident(f"reads {how} {way!r}")
    path = pool_of_one(target, f"r-{identity.decode()[3:13]}", deadlines)
    target.provider.scripts[identity] = sized(3000 * MIB)
    left, before, connections = target.provider.left, target.forget_peak(), target.connections()
    with closing(Caller(target.port, target.token, NARROW)) as caller:
        caller.send(post(identity, target=way + path))
        caller.run((Until(b"\r\n\r\n"),))
        reading = Reading(caller, size, every_s)
        if size:
            reading.start()
        eventually(lambda: target.metric("llm_proxy_in_flight") == 0, "the request is still under way")
        target.provider.wait_for_departure(left)
        after = ident(f"after {how} {way!r}")
        answer, _ = ask(target, path, after)
        assert (answer.status, identities(answer.body)) == (200, {after}), "the key is still taken"
        # Over ASGI the server closes: then the kernel goes on for whoever takes something.
        in_kernel = not (way and deadlines is SHORT)
        eventually(lambda: target.connections(in_kernel=in_kernel) <= connections, "the connection is still held")
    request_id = re.findall(rb"x-llm-proxy-request-id: (\S+)", caller.received)[0].decode()
    eventually(lambda: bool(target.outcomes_of(request_id)), "no usage row")
    assert target.outcomes_of(request_id) == ["abandoned"]
    assert target.peak_mib() - before < GROWTH_MIB


def test_a_slow_but_steady_reader_gets_it_all(target: Target) -> None:
    """It lags behind by more than the kernels hold for longer than the bound of those who take nothing."""
    size = 12 * MIB
    identity = ident("slow but steady")
    path = pool_of_one(target, "steady", LASTING)
    target.provider.scripts[identity] = sized(size)
    with closing(Caller(target.port, target.token, 64 * 1024)) as caller:
        caller.send(post(identity, target=path))
        caller.run((Until(b"\r\n\r\n"),))
        got = len(caller.received.partition(b"\r\n\r\n")[2])
        while got < size:
            data = caller.socket.recv(32 * 1024)
            assert data, f"cut after {got} bytes"
            got += len(data)
            time.sleep(0.02)
    assert got == size


def test_a_stream_that_is_read_as_it_comes_may_last(target: Target) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.say(STREAM_HEAD)
        for _ in range(8):
            await wire.say(chunk(event_of(seen)))
            await asyncio.sleep(0.5)
        await wire.say(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    identity = ident("a long stream")
    path = pool_of_one(target, "long-stream", LASTING)
    target.provider.scripts[identity] = script
    with closing(Caller(target.port, target.token, NARROW)) as caller:
        caller.send(post(identity, target=path, extra=b',"stream":true'))
        (answer,) = caller.read_answers(1)
    assert (answer.status, answer.whole, answer.body.count(identity)) == (200, True, 8)


UNREAD = {
    "metrics": b"GET /metrics HTTP/1.1\r\nhost: g\r\n\r\n",
    "livez": b"GET /livez HTTP/1.1\r\nhost: g\r\n\r\n",
    "inference without a token": b"POST /v1/embeddings HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n",
    "an upgrade": b"GET /livez HTTP/1.1\r\nhost: g\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
}


def unread(target: Target, what: str, callers: int, stack: ExitStack) -> None:
    """Send as much as is taken, over so many connections, and read nothing."""
    opened = [stack.enter_context(closing(Caller(target.port, target.token, NARROW))) for _ in range(callers)]
    for _ in range(3):
        for caller in opened:
            caller.socket.setblocking(False)
            with suppress(BlockingIOError, ConnectionError):
                caller.socket.send(UNREAD[what] * 10_000)
        time.sleep(0.3)


@pytest.mark.parametrize("what", UNREAD)
def test_pipelines_that_nobody_reads_cost_little(what: str, target: Target) -> None:
    httpx2.get(f"http://127.0.0.1:{target.port}/metrics")
    before = target.forget_peak()
    with ExitStack() as stack:
        unread(target, what, 20, stack)
        time.sleep(1.0)
    assert target.peak_mib() - before < GROWTH_MIB


@pytest.mark.parametrize("what", ["metrics", "inference without a token"])
def test_pipelines_that_nobody_reads_are_let_go_of(what: str, target: Target) -> None:
    """Without a token, and with it the places of others."""
    eventually(lambda: target.connections() == 0, "a test before left connections")
    with ExitStack() as stack:
        unread(target, what, 3, stack)
        assert target.connections() == 3
        eventually(lambda: target.connections() == 0, "connections that nobody reads are still held")


@pytest.mark.parametrize("what", ["livez", "inference without a token"])
def test_a_long_pipeline_that_is_read_is_answered_in_bounded_memory(what: str, target: Target) -> None:
    """Each answer makes room for one more request, not for one more read."""
    count, found, tail = 12_000, 0, b""
    before = target.forget_peak()
    with closing(Caller(target.port, target.token)) as caller:
        sending = threading.Thread(target=caller.send, args=(UNREAD[what] * count,), daemon=True)
        sending.start()
        while found < count:
            data = caller.socket.recv(1 << 20)
            assert data, f"closed after {found} answers"
            data = tail + data
            found += data.count(b"HTTP/1.1 ")
            tail = data[-8:]
        sending.join(LATE_S)
    assert found == count
    assert target.peak_mib() - before < GROWTH_MIB
