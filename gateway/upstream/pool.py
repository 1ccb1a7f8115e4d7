"""Keep-alive connections to many origins: bounded, first come first served, last used first reused."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from gateway.upstream.connect import Connector
from gateway.upstream.errors import ConnectFailed, PoolExhausted, UpstreamBroken, mark_unsent
from gateway.upstream.http1 import Http1Connection
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest, request_head
from gateway.upstream.response import UpstreamResponse


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Connections at most; seconds an unused one is kept, shorter than the minute or more that providers keep it."""

    per_origin: int = 4096
    total: int = 8192
    keep_alive_s: float = 30.0


@dataclass(frozen=True, slots=True)
class PoolView:
    """What the pool holds now, for metrics: open connections, those idle, and requests that wait for one."""

    open: int
    idle: int
    waiting: int
    opened_total: int
    reused_total: int


class _Site:
    """The connections of one origin. `open` counts those being set up as well."""

    __slots__ = ("host_line", "idle", "open", "origin", "waiters")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.host_line = f"host: {origin.authority}\r\n".encode("ascii")
        self.idle: list[Http1Connection] = []
        self.open = 0
        self.waiters: deque[tuple[int, asyncio.Future[Http1Connection | None]]] = deque()


class ConnectionPool:
    """Sends requests over kept-alive HTTP/1.1 connections; belongs to the event loop it is first used on.

    The idle list is a stack: the connection used last is the least likely to have been closed, and the rest age out.
    A waiter is handed either a freed connection or, as None, the right to open one.
    """

    def __init__(self, connector: Connector, limits: PoolLimits | None = None) -> None:
        self._connector = connector
        self._limits = limits or PoolLimits()
        self._sites: dict[Origin, _Site] = {}
        self._site_of: dict[Http1Connection, _Site] = {}
        self._open = 0
        self._ticket = 0
        self._opened_total = self._reused_total = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._closing = False
        self._emptied: asyncio.Event | None = None

    async def send(self, origin: Origin, request: UpstreamRequest, deadlines: Deadlines) -> UpstreamResponse:
        """Send `request` to `origin` and return when the answer's head is there.

        A reused connection that turns out to be closed is replaced once by a new one, when the body can be sent again.
        Raises ConnectFailed, UpstreamTimeout, UpstreamBroken; ValueError for a request that must not be written.
        """
        site = self._sites.get(origin) or self._site(origin)
        head = request_head(request, site.host_line)
        headless = request.method == b"HEAD"
        fresh = False
        connection = self._take_idle(site)
        while True:
            if connection is None:
                try:
                    connection = await self._obtain(origin, deadlines, fresh=fresh)
                except asyncio.CancelledError as exc:
                    mark_unsent(exc)
                    raise
            response = connection.begin(head, request.body, deadlines, headless=headless)
            try:
                while not response.status:
                    if response.failed:
                        raise response.take_error()
                    await response.changed()
                return response
            except UpstreamBroken as exc:
                if not exc.stale or fresh or not request.replayable:
                    raise
                fresh, connection = True, None
            except BaseException:
                connection.abort()
                raise

    def view(self) -> PoolView:
        """Count what is there."""
        return PoolView(
            open=self._open,
            idle=sum(len(site.idle) for site in self._sites.values()),
            waiting=sum(len(site.waiters) for site in self._sites.values()),
            opened_total=self._opened_total,
            reused_total=self._reused_total,
        )

    async def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, close idle connections, give those in use `drain_s`, then abort them."""
        self._closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for site in list(self._sites.values()):
            while site.waiters:
                waiter = site.waiters.popleft()[1]
                if not waiter.done():
                    waiter.set_exception(ConnectFailed("the gateway is shutting down"))
            for connection in site.idle:
                connection.close()
        self._emptied = asyncio.Event()
        if self._site_of and drain_s > 0:
            await self._wait_empty(drain_s)
        for connection in list(self._site_of):
            connection.abort()
        if self._site_of:
            await self._wait_empty(1.0)

    async def _wait_empty(self, timeout_s: float) -> None:
        assert self._emptied is not None
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        except TimeoutError:
            return

    # --- obtaining

    def _site(self, origin: Origin) -> _Site:
        # Looked up anew after every await: a site without connections and waiters is forgotten.
        site = self._sites.get(origin)
        if site is None:
            site = self._sites[origin] = _Site(origin)
        return site

    def _take_idle(self, site: _Site) -> Http1Connection | None:
        while site.idle:
            connection = site.idle.pop()
            if connection.usable:
                self._reused_total += 1
                return connection
        return None

    async def _obtain(self, origin: Origin, deadlines: Deadlines, *, fresh: bool) -> Http1Connection:
        waiting = False
        try:
            async with asyncio.timeout(deadlines.connect_s):
                while not self._claim(self._site(origin), fresh=fresh):
                    waiting = True
                    connection = await self._wait(self._site(origin))
                    if connection is None:
                        break
                    if connection.usable:
                        self._reused_total += 1
                        return connection
                waiting = False
                return await self._open_claimed(self._site(origin))
        except TimeoutError as exc:
            if waiting:
                raise PoolExhausted(f"no connection to {origin} became free in {deadlines.connect_s} s") from exc
            raise ConnectFailed(f"{origin} was not reached in {deadlines.connect_s} s") from exc

    def _claim(self, site: _Site, *, fresh: bool) -> bool:
        """Reserve the right to open a connection, closing an idle one when only that makes room."""
        if self._closing:
            raise ConnectFailed("the gateway is shutting down")
        if site.waiters and not fresh:
            return False
        if site.open >= self._limits.per_origin:
            if not (fresh and site.idle):
                return False
            victim: _Site | None = site
        elif self._open >= self._limits.total:
            oldest = min((s for s in self._sites.values() if s.idle), key=lambda s: s.idle[0].idle_since, default=None)
            if oldest is None:
                return False
            victim = oldest
        else:
            victim = None
        site.open += 1
        self._open += 1
        if victim is not None:
            self._discard(victim, victim.idle.pop(0))
        return True

    async def _wait(self, site: _Site) -> Http1Connection | None:
        waiter: asyncio.Future[Http1Connection | None] = asyncio.get_running_loop().create_future()
        self._ticket += 1
        entry = (self._ticket, waiter)
        site.waiters.append(entry)
        try:
            connection = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(site, waiter.result())
            elif entry in site.waiters:
                site.waiters.remove(entry)
            raise
        return connection

    def _give_back(self, site: _Site, granted: Http1Connection | None) -> None:
        if granted is None:
            self._free_slot(site)
        elif granted.usable:
            self._on_free(granted)

    async def _open_claimed(self, site: _Site) -> Http1Connection:
        loop = asyncio.get_running_loop()
        made: list[Http1Connection] = []

        def factory() -> Http1Connection:
            connection = Http1Connection(loop, self._on_free, self._on_lost)
            self._site_of[connection] = site
            made.append(connection)
            return connection

        try:
            connection = await self._connector.connect(site.origin, factory)
        except BaseException:
            for half in made:
                self._site_of.pop(half, None)
                half.abort()
            self._free_slot(site)
            raise
        self._opened_total += 1
        return connection

    # --- what becomes of connections

    def _on_free(self, connection: Http1Connection) -> None:
        site = self._site_of.get(connection)
        if site is None or self._closing:
            connection.close()
            return
        while site.waiters:
            waiter = site.waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(connection)
                return
        if self._open >= self._limits.total and self._next_waiting() is not None:
            self._discard(site, connection)
            self._grant()
            return
        site.idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._limits.keep_alive_s, self._sweep)

    def _on_lost(self, connection: Http1Connection) -> None:
        site = self._site_of.pop(connection, None)
        if site is None:
            return
        if connection in site.idle:
            site.idle.remove(connection)
        self._free_slot(site)

    def _discard(self, site: _Site, connection: Http1Connection) -> None:
        """Close an idle connection and free its slot now, not when the loop gets to it."""
        if self._site_of.pop(connection, None) is not None:
            connection.close()
            site.open -= 1
            self._open -= 1
            self._forget(site)

    def _forget(self, site: _Site) -> None:
        if not site.open and not site.waiters and self._sites.get(site.origin) is site:
            del self._sites[site.origin]

    def _free_slot(self, site: _Site) -> None:
        site.open -= 1
        self._open -= 1
        self._grant()
        self._forget(site)
        if not self._site_of and self._emptied is not None:
            self._emptied.set()

    def _next_waiting(self) -> _Site | None:
        eligible = (s for s in self._sites.values() if s.waiters and s.open < self._limits.per_origin)
        return min(eligible, key=lambda s: s.waiters[0][0], default=None)

    def _grant(self) -> None:
        """Let the one who has waited longest open a connection, among the origins that are below their own limit."""
        while self._open < self._limits.total and not self._closing:
            site = self._next_waiting()
            if site is None:
                return
            waiter = site.waiters.popleft()[1]
            if not waiter.done():
                site.open += 1
                self._open += 1
                waiter.set_result(None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        expired_before = loop.time() - self._limits.keep_alive_s
        oldest = None
        for site in list(self._sites.values()):
            while site.idle and site.idle[0].idle_since <= expired_before:
                self._discard(site, site.idle.pop(0))
            if site.idle:
                oldest = min(oldest or site.idle[0].idle_since, site.idle[0].idle_since)
            else:
                self._forget(site)
        self._sweeper = None
        if oldest is not None:
            self._sweeper = loop.call_at(oldest + self._limits.keep_alive_s + 0.01, self._sweep)
