"""The simulated provider behind uvicorn."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.guarded_calls import GuardedCalls
from gateway.simulation.app import SimulatedProvider
from gateway.simulation.channel import CLOSE_EXTENSION
from gateway.simulation.config import ProviderConfig
from gateway.simulation.trust import Untrusted
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.sources.protocol import SourceAway, SourceRefused

_BACKLOG = 2_048


class CuttableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol that lets the application close the connection in mid-answer."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope["extensions"] = {CLOSE_EXTENSION: self.transport.close}


class ProviderServer(uvicorn.Server):
    """uvicorn that ends hanging simulated requests when it is told to stop, instead of waiting for them."""

    def __init__(self, provider: SimulatedProvider, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._provider = provider

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._provider.close()
        await super().shutdown(sockets)


def make_server(
    provider: SimulatedProvider, *, host: str = "127.0.0.1", port: int = 0, log_level: str = "warning"
) -> ProviderServer:
    """Return a server that is not running yet: `await server.serve()`, stop with `server.should_exit = True`."""
    config = uvicorn.Config(
        provider,
        host=host,
        port=port,
        http=CuttableProtocol,
        ws="none",
        lifespan="off",
        log_level=log_level,
        log_config=None,
        access_log=False,
        backlog=_BACKLOG,
        server_header=False,
        date_header=True,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    return ProviderServer(provider, config)


async def fetch_document(url: str) -> bytes:
    """Get a trusted issuer's keys, from wherever it runs."""
    policy = EgressPolicy(allow_private=True)
    pool = ConnectionPool(DirectConnector(policy))
    try:
        answer = await GuardedCalls(pool, policy).call("GET", url)
    except (SourceAway, SourceRefused) as error:
        raise Untrusted(f"the issuer's keys are not there: {error}") from error
    finally:
        await pool.close()
    if answer.status != 200:
        raise Untrusted(f"the issuer's keys are not there: {answer.status}")
    return answer.body


def run_simulated_provider(host: str, port: int, config: ProviderConfig) -> None:
    """Serve until SIGINT or SIGTERM; the caller prints what it wants printed first."""
    make_server(SimulatedProvider(config, fetch=fetch_document), host=host, port=port, log_level="info").run()
