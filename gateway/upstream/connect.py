"""From an origin to an open connection: resolve, check, race addresses, egress proxy, verified TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import unquote, urlsplit

import certifi

from auth.secret import Secret
from gateway.upstream.errors import ConnectFailed
from gateway.upstream.guard import EgressPolicy, check_addresses
from gateway.upstream.http1 import Http1Connection
from gateway.upstream.message import Origin
from gateway.upstream.names import Names

HAPPY_EYEBALLS_S = 0.25
"""RFC 8305 section 5: the delay before the next address is tried beside the first."""
RESOLVED_FOR_S = 10.0
"""Checked addresses are kept this long, so that a burst of connects is one look-up."""
PATIENCE_S = 0.5
"""How long a name may take whose addresses are known from before, until those are used once more."""
_RESOLVED_LIMIT = 1024
_PROXY_HEAD_LIMIT = 16 * 1024

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
Factory = Callable[[], Http1Connection]


class Connector(Protocol):
    """Opens connections; the pool bounds how many and how long."""

    async def connect(self, origin: Origin, factory: Factory) -> Http1Connection:
        """Open one connection, or raise ConnectFailed."""


@dataclass(frozen=True, slots=True)
class EgressProxy:
    """An HTTP proxy that all traffic leaves through, by CONNECT (RFC 9110 section 9.3.6), plain http as well.

    It resolves the names itself, so the guard's second gate (addresses) is the proxy's duty; `bypass` lists host names
    and their sub-domains that are reached directly.
    """

    host: str
    port: int
    authorization: Secret | None = None
    bypass: tuple[str, ...] = ()

    @classmethod
    def parse(cls, url: str, no_proxy: str = "") -> EgressProxy:
        """Read `http://[user:password@]host:port` and a comma-separated NO_PROXY list, or raise ValueError."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("the egress proxy must be given as http://host:port")
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = Secret("Basic " + base64.b64encode(pair.encode()).decode())
        names = (name.strip().lower().removeprefix("*").removeprefix(".") for name in no_proxy.split(","))
        return cls(parts.hostname, parts.port or 3128, authorization, tuple(name for name in names if name))

    def serves(self, host: str) -> bool:
        """Tell whether requests to `host` go through the proxy."""
        return not any(host == name or host.endswith("." + name) for name in self.bypass)


def tls_context(extra_ca_file: str | None = None) -> ssl.SSLContext:
    """Make the context of every connection: certifi's roots, host names verified, TLS 1.2 or later, HTTP/1.1 only."""
    context = ssl.create_default_context(cafile=certifi.where())
    if extra_ca_file is not None:
        context.load_verify_locations(cafile=extra_ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class DirectConnector:
    """Connects to checked addresses only; one instance a process."""

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
        proxy: EgressProxy | None = None,
    ) -> None:
        self._policy = policy
        self._resolver = resolver or Names()
        self._tls = tls or tls_context()
        self._proxy = proxy
        self._resolved: dict[tuple[str, int], tuple[float, tuple[str, ...]]] = {}

    async def connect(self, origin: Origin, factory: Factory) -> Http1Connection:
        """Open one connection to `origin`; ConnectFailed with the reason otherwise."""
        if origin.scheme == "http" and not self._policy.allow_private:
            raise ConnectFailed(f"{origin} is not https")
        try:
            if self._proxy is not None and self._proxy.serves(origin.host):
                sock = await self._through(self._proxy, origin)
            else:
                sock = await self._reach(origin)
        except (OSError, UnicodeError) as exc:
            raise ConnectFailed(f"{origin} cannot be reached: {type(exc).__name__}") from exc
        return await self._speak(origin, sock, factory)

    async def _speak(self, origin: Origin, sock: socket.socket, factory: Factory) -> Http1Connection:
        loop = asyncio.get_running_loop()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if origin.scheme == "http":
                _, connection = await loop.create_connection(factory, sock=sock)
                return connection
            transport, connection = await loop.create_connection(
                factory, sock=sock, ssl=self._tls, server_hostname=origin.host
            )
        except ssl.SSLError as exc:
            sock.close()
            raise ConnectFailed(f"{origin}: TLS failed: {exc.reason or type(exc).__name__}") from exc
        except OSError as exc:
            sock.close()
            raise ConnectFailed(f"{origin} closed the connection while it was set up") from exc
        except BaseException:
            sock.close()
            raise
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() not in {None, "http/1.1"}:
            transport.abort()
            raise ConnectFailed(f"{origin} insists on a protocol other than HTTP/1.1")
        return connection

    async def _reach(self, origin: Origin) -> socket.socket:
        """Connect to one of the origin's addresses; where remembered ones fail, the name is asked once more."""
        key = (origin.host, origin.port)
        until, tried = self._resolved.get(key, (0.0, ()))
        try:
            if asyncio.get_running_loop().time() >= until:
                return await race(await self._addresses_soon(origin, tried), origin.port)
            try:
                return await race(tried, origin.port)
            except OSError:
                addresses = await self._addresses(origin)
                if set(addresses) == set(tried):
                    raise
                return await race(addresses, origin.port)
        except BaseException:
            # Also when the time is up: an address that swallows everything must not be kept for the next attempt.
            self._resolved.pop(key, None)
            raise

    async def _addresses_soon(self, origin: Origin, before: tuple[str, ...]) -> tuple[str, ...]:
        """Give the addresses as they are now; those of before, if there are any, where that takes its time."""
        try:
            async with asyncio.timeout(PATIENCE_S if before else None):
                return await self._addresses(origin)
        except TimeoutError:
            if not before:
                raise
            self._resolved[origin.host, origin.port] = (asyncio.get_running_loop().time() + RESOLVED_FOR_S, before)
            return before

    async def _addresses(self, origin: Origin) -> tuple[str, ...]:
        if _is_address(origin.host):
            addresses: Sequence[str] = (origin.host,)
        else:
            addresses = await self._resolver(origin.host, origin.port)
        checked = check_addresses(origin.host, addresses, self._policy)
        if len(self._resolved) >= _RESOLVED_LIMIT:
            self._resolved.clear()
        self._resolved[origin.host, origin.port] = (asyncio.get_running_loop().time() + RESOLVED_FOR_S, checked)
        return checked

    async def _through(self, proxy: EgressProxy, origin: Origin) -> socket.socket:
        # The proxy is the operator's own setting: its address is not a tenant's to choose and is not checked.
        sock = await race(tuple(await self._resolver(proxy.host, proxy.port)), proxy.port)
        try:
            host = f"[{origin.host}]" if ":" in origin.host else origin.host
            target = f"{host}:{origin.port}"
            lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
            if proxy.authorization is not None:
                lines.append(f"Proxy-Authorization: {proxy.authorization.reveal()}")
            if _is_address(origin.host):
                check_addresses(origin.host, (origin.host,), self._policy)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = await loop.sock_recv(sock, 4096)
                head += chunk
                if not chunk or len(head) > _PROXY_HEAD_LIMIT:
                    raise ConnectFailed("the egress proxy did not answer CONNECT")
            if not head.endswith(b"\r\n\r\n") or head.count(b"\r\n\r\n") != 1:
                raise ConnectFailed("the egress proxy sent more than its answer to CONNECT")
            version, _, rest = head.partition(b" ")
            if not version.startswith(b"HTTP/1.") or not rest[:1] == b"2":
                raise ConnectFailed(f"the egress proxy refused the tunnel to {origin} with status {rest[:3]!r}")
        except BaseException:
            sock.close()
            raise
        return sock


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def interleave(addresses: Sequence[str]) -> list[str]:
    """Alternate the address families, keeping the first one first (RFC 8305 section 4)."""
    first_is_v6 = ":" in addresses[0]
    one = [address for address in addresses if (":" in address) is first_is_v6]
    other = [address for address in addresses if (":" in address) is not first_is_v6]
    ordered: list[str] = []
    for index in range(max(len(one), len(other))):
        ordered += one[index : index + 1] + other[index : index + 1]
    return ordered


async def race(addresses: Sequence[str], port: int) -> socket.socket:
    """Connect to the first address that answers; the next one starts after 250 ms or when one has failed.

    Raises the last OSError when none answers. The address is passed as it is: no second name resolution takes place.
    """
    if len(addresses) == 1:
        return await _connect(addresses[0], port)
    waiting = interleave(addresses)
    running: set[asyncio.Task[socket.socket]] = set()
    error: OSError = OSError("no address")
    winner: socket.socket | None = None
    try:
        while winner is None and (waiting or running):
            if waiting:
                running.add(asyncio.create_task(_connect(waiting.pop(0), port)))
            timeout = HAPPY_EYEBALLS_S if waiting else None
            done, running = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                failure = task.exception()
                if failure is None and winner is None:
                    winner = task.result()
                elif failure is None:
                    task.result().close()
                elif isinstance(failure, OSError):
                    error = failure
                else:
                    raise failure
    finally:
        for task in running:
            task.add_done_callback(_close_late)
            task.cancel()
    if winner is None:
        raise type(error)(*error.args)  # itself it would lead to this frame, which holds it: a cycle
    return winner


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _connect(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await _begun(sock, (address, port))
    except BaseException:
        with contextlib.suppress(OSError):
            sock.close()
        raise
    return sock


async def _begun(sock: socket.socket, address: tuple[str, int]) -> None:
    """Connect as the loop's `sock_connect` does, without its look-up: uvloop takes a thread for that, always.

    So this works while all of those are taken (see `names`).
    """
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(sock, _tell, ready)
        try:
            await ready
        finally:
            loop.remove_writer(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
