"""Look-ups of names: one a name at a time, and a name whose servers are silent holds up nobody else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from gateway.upstream.connect import PATIENCE_S, DirectConnector
from gateway.upstream.errors import ConnectFailed
from gateway.upstream.message import Deadlines, Origin
from gateway.upstream.names import Names, system_look_up
from tests.collector import collector_off, of_the_gateway
from tests.upstream.servers import DEV, FAST, drain, ok, pooling, post, replying, serving


class Servers:
    """The servers of all names, whose answer is 127.0.0.1; those of `*.silent` answer once they `speak`."""

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.speak = threading.Event()

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked[host] += 1
        if host.endswith(".silent"):
            assert self.speak.wait(30)
        if host.startswith("none."):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return ["127.0.0.1"]


@contextmanager
def silent() -> Iterator[Servers]:
    servers = Servers()
    try:
        yield servers
    finally:
        servers.speak.set()


async def test_a_silent_name_holds_up_no_other() -> None:
    with silent() as servers:
        names = Names(servers)
        waiting = [asyncio.create_task(names(f"{number % 20}.silent", 443)) for number in range(400)]
        async with asyncio.timeout(10):
            assert await names("a.test", 443) == ["127.0.0.1"]
        assert not any(task.done() for task in waiting)
        servers.speak.set()
        assert await asyncio.gather(*waiting) == [["127.0.0.1"]] * 400
        assert set(servers.asked.values()) == {1}, "who asks for the same name at the same time shares a look-up"
        await names("0.silent", 443)
        assert servers.asked["0.silent"] == 2, "and who asks later gets a new one"


async def test_so_many_names_are_looked_up_at_a_time() -> None:
    with silent() as servers:
        names = Names(servers, at_once=2)
        waiting = [asyncio.create_task(names(f"{number}.silent", 443)) for number in range(3)]
        while sum(servers.asked.values()) < 2:
            await asyncio.sleep(0.001)
        servers.speak.set()
        await asyncio.gather(*waiting)
        assert sum(servers.asked.values()) == 3


async def test_who_gives_up_takes_the_look_up_from_nobody() -> None:
    with silent() as servers:
        names = Names(servers)
        first, second = (asyncio.create_task(names("a.silent", 443)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        servers.speak.set()
        assert await second == ["127.0.0.1"]
        assert first.cancelled()
        assert servers.asked["a.silent"] == 1


async def test_each_gets_an_error_of_its_own_that_nothing_holds() -> None:
    names = Names(Servers())

    async def ask() -> None:
        with pytest.raises(socket.gaierror, match="no such name"):
            await names("none.test", 443)

    with collector_off() as left:
        await asyncio.gather(*(ask() for _ in range(3)))
    assert not of_the_gateway(left)


async def test_a_name_that_no_system_looks_up() -> None:
    with pytest.raises(UnicodeError):
        await Names()("a" * 70 + ".test", 443)


def test_the_system_s_own_resolver() -> None:
    assert "127.0.0.1" in system_look_up("127.0.0.1", 443)


async def test_addresses_from_before_serve_while_the_name_is_silent() -> None:
    with silent() as servers:
        connector = DirectConnector(DEV, resolver=Names(servers))
        async with serving(replying(ok())) as server, pooling(connector=connector) as pool:
            origin = Origin("http", "home.silent", server.origin.port)
            connector._resolved[origin.host, origin.port] = (0.0, ("127.0.0.1",))
            deadlines = Deadlines(connect_s=20 * PATIENCE_S)
            assert await drain(await pool.send(origin, post(), deadlines)) == b"hello"
            assert await drain(await pool.send(origin, post(), deadlines)) == b"hello"
            assert servers.asked["home.silent"] == 1, "for a while nobody waits again"


async def test_a_silent_name_that_was_never_known_is_not_reached() -> None:
    with silent() as servers:
        async with pooling(connector=DirectConnector(DEV, resolver=Names(servers))) as pool:
            with pytest.raises(ConnectFailed, match="not reached in"):
                await pool.send(Origin("http", "new.silent", 9), post(), Deadlines(connect_s=0.05))


@pytest.mark.parametrize("port", [0, 9])
async def test_nobody_listens(port: int) -> None:
    async with pooling() as pool:
        with pytest.raises(ConnectFailed, match="cannot be reached"):
            await pool.send(Origin("http", "127.0.0.1", port), post(), FAST)
