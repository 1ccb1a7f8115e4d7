"""Who takes nothing of what waits for it is dropped: in mid-answer, while it is closed, over TLS, in a drain."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.delivery import Delivery
from gateway.tls import ServerTls, TlsFiles
from tests.gateway.test_relay_protocol import SETTINGS, Running, running, server
from tests.gateway.test_tls import SERVER

__all__ = ["running"]


def test_time_counts_from_the_last_byte_that_was_taken() -> None:
    delivery = Delivery(0.0, left=100, acked=5000)
    assert delivery.stands_s(10.0, left=100, acked=5000) == 10.0
    assert delivery.stands_s(20.0, left=100, acked=5001) == 0.0, "out of the kernel"
    assert delivery.stands_s(25.0, left=300, acked=5001) == 5.0, "more was written"
    assert delivery.stands_s(30.0, left=299, acked=5001) == 0.0, "out of our buffer"
    assert delivery.stands_s(90.0, left=299, acked=5001) == 60.0


@pytest.fixture
def reader(running: Running) -> Iterator[socket.socket]:
    with closing(connect(running)) as made:
        yield made


def connect(running: Running) -> socket.socket:
    """Return a connection that takes little."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    made.connect_ex(("127.0.0.1", running.port))
    return made


async def ask(running: Running, reader: socket.socket, path: str, *headers: str) -> None:
    """Ask for more than is ever taken, and wait until some of it waits."""
    head = "\r\n".join([f"POST {path} HTTP/1.1", "host: x", "content-length: 0", *headers])
    await asyncio.get_running_loop().sock_sendall(reader, head.encode() + b"\r\n\r\n")
    await until_unread(running)


async def until_unread(running: Running) -> None:
    async with asyncio.timeout(10):
        while not any(each.transport.get_write_buffer_size() for each in running.server.server_state.connections):
            await asyncio.sleep(0.001)


async def sweep_until_gone(running: Running) -> None:
    """Sweep, each time with a clock a minute later, until nobody is connected."""
    later_s = 0.0
    async with asyncio.timeout(10):
        while running.server.server_state.connections:
            later_s += SETTINGS.send_timeout_s + 1
            running.sweep(later_s)
            await asyncio.sleep(0.01)


async def test_in_mid_answer(running: Running, reader: socket.socket) -> None:
    await ask(running, reader, "/v1/flood")
    running.sweep(SETTINGS.send_timeout_s - 5)
    assert running.server.server_state.connections
    await sweep_until_gone(running)
    assert running.gone == ["while served"]


async def test_while_the_connection_closes(running: Running, reader: socket.socket) -> None:
    await ask(running, reader, "/v1/large", "connection: close")
    (connection,) = running.server.server_state.connections
    assert connection.transport.is_closing()
    await sweep_until_gone(running)


async def test_over_tls(tmp_path: Path) -> None:
    SERVER.save(tmp_path / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with server(ServerTls(TlsFiles(tmp_path / "server.pem"))) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port, ssl=context, limit=1024)
        writer.write(b"POST /v1/flood HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        await until_unread(running)
        await sweep_until_gone(running)
        assert running.gone == ["while served"]
        writer.transport.abort()


async def test_in_a_drain() -> None:
    async with server(drain_s=60.0, send_timeout_s=0.5) as running:
        with closing(connect(running)) as reader:
            await ask(running, reader, "/v1/flood")
            running.server.should_exit = True
            async with asyncio.timeout(20):
                await running.task
        assert running.gone == ["while served"]
