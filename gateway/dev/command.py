"""`llm-proxy dev`: everything on one machine, from an empty directory to a served request, with one command."""

from __future__ import annotations

import asyncio
import logging
import shlex
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rich.console import Console

from auth.errors import Fault, Invalid
from auth.secret import Secret
from gateway.asgi import Gateway
from gateway.dev.home import DevHome
from gateway.dev.provider import BackgroundProvider
from gateway.dev.revival import Revival
from gateway.dev.seed import MODEL, POOL, TENANT, seed
from gateway.embedded.postgres import EmbeddedPostgres
from gateway.schema import ensure_login, migrate
from gateway.server import GatewayServer, make_server, open_socket

if TYPE_CHECKING:
    from gateway.settings import Settings

log = logging.getLogger(__name__)

DATABASE: Final = "llm_proxy"
LOGIN: Final = "llm_proxy_gateway"
_NOT_SEEDED: Final = "The demo tenant is not ready yet."


class AlreadyRunning(Fault):
    """Another `llm-proxy dev` uses the same directory."""

    code = "already_running"


def run_dev(settings: Settings) -> None:
    """Start it all, serve until Ctrl-C, stop it all. Blocking."""
    if settings.tls_certificate is not None or settings.client_certificates == "server":
        raise Invalid(
            "llm-proxy dev speaks plain http on this machine and ends no TLS.",
            hint="Leave LLM_PROXY_TLS_CERTIFICATE and LLM_PROXY_CLIENT_CERTIFICATES=server to `llm-proxy serve`.",
        )
    out, progress = Console(highlight=False), Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        listening = open_socket(settings.host, settings.port)
        stack.callback(listening.close)
        port = listening.getsockname()[1]
        base_url = settings.issuer or f"http://127.0.0.1:{port}"
        home = DevHome(settings.home)
        with progress.status("starting PostgreSQL") as status:
            postgres = EmbeddedPostgres(home.postgres, binaries=settings.embedded_pg_bin)
            stack.callback(postgres.stop)
            address = postgres.start()
            if not postgres.owner:
                raise AlreadyRunning(
                    f"llm-proxy dev is already running in {settings.home}.",
                    hint="Stop it first, or run a second one elsewhere: LLM_PROXY_HOME=.llm-proxy-2 PORT=8081.",
                )
            revival = Revival(postgres)
            revival.start()
            stack.callback(revival.close)
            status.update("migrating the database")
            password, peppers = home.secrets()
            asyncio.run(_prepare_database(address.url(), address.url(DATABASE), password))
        ready = replace(
            settings,
            port=port,
            issuer=base_url,
            database_url=Secret(address.url(DATABASE, LOGIN, password)),
            kek=f"file:{home.keyring()}",
            kek_shares=f"file:{home.shares()}",
            peppers=peppers,
            allow_private_upstreams=True,
            drain_lead_s=0.0,
        )
        provider = BackgroundProvider(home.provider_port()).start()
        stack.callback(provider.stop)
        home.keep_provider_port(provider.port)
        app = Gateway(ready)
        seeded = threading.Event()
        app.health.require("demo", lambda: None if seeded.is_set() else _NOT_SEEDED)
        server = make_server(
            app,
            ready,
            on_drain=app.health.drain,
            find_relay=app.find_relay,
            interrupt_start=app.interrupt_start,
        )
        seeding = _Seeding(
            server,
            settings=ready,
            home=home,
            base_url=base_url,
            provider_url=provider.base_url,
            seeded=seeded,
            out=out,
        )
        seeding.start()
        server.run(sockets=[listening])
        seeding.join(5)
    if seeding.failure is not None:
        raise seeding.failure
    progress.print("stopped", style="dim")


async def _prepare_database(server_url: str, url: str, password: Secret) -> None:
    import asyncpg

    connection = await asyncpg.connect(server_url)
    try:
        if not await connection.fetchval("select exists (select from pg_database where datname = $1)", DATABASE):
            await connection.execute(f"create database {DATABASE}")
    finally:
        await connection.close()
    await asyncio.to_thread(migrate, url)
    await ensure_login(url, LOGIN, password)


class _Seeding(threading.Thread):
    """Waits for the server, seeds through its API, then says how to use it; ends the server when it fails."""

    def __init__(
        self,
        server: GatewayServer,
        *,
        settings: Settings,
        home: DevHome,
        base_url: str,
        provider_url: str,
        seeded: threading.Event,
        out: Console,
    ) -> None:
        super().__init__(name="seeding", daemon=True)
        self._server = server
        self._settings = settings
        self._home = home
        self._base_url = base_url
        self._provider_url = provider_url
        self._seeded = seeded
        self._out = out
        self.failure: Fault | None = None

    def run(self) -> None:
        while not self._server.started:
            if self._server.should_exit:
                return
            threading.Event().wait(0.01)
        try:
            seed(self._settings, self._home, self._base_url, self._provider_url)
        except Exception as error:
            if not self._server.should_exit:
                log.error("the demo tenant could not be made", exc_info=error)
                self.failure = error if isinstance(error, Fault) else Fault(f"The demo tenant failed: {error!r}.")
                self._server.should_exit = True
            return
        self._seeded.set()
        welcome(self._out, self._base_url, self._home)


def welcome(out: Console, base_url: str, home: DevHome) -> None:
    """Say where it is and how to use it; the commands work as pasted, from any directory, with curl and sed alone."""
    profile = shlex.quote(str(home.profile))
    pair = f'"$(sed -nE \'s/.*"client_(id|secret)": "(.*)".*/\\2/p\' {profile} | paste -sd: -)"'
    token = (
        f"TOKEN=$(curl -s -u {pair} \\\n  -d grant_type=client_credentials {base_url}/oauth2/token \\\n"
        '  | sed -E \'s/.*"access_token": ?"([^"]+)".*/\\1/\')'
    )
    body = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"Hello!"}}]}}'
    chat = (
        f'curl -s {base_url}/v1/chat/completions \\\n  -H "Authorization: Bearer $TOKEN" '
        f"-H 'Content-Type: application/json' \\\n  -d '{body}'"
    )
    lines = [
        ("[bold green]LLM Proxy is running[/]  [dim](Ctrl-C stops it)[/]\n", None),
        ("  base URL     ", base_url),
        ("  API docs     ", f"{base_url}/docs"),
        ("  credentials  ", f"{home.profile}  (client_id, client_secret)"),
        ("  demo         ", f"tenant {TENANT}, pool {POOL}: three keys of a simulated provider, weights 50/30/20"),
    ]
    for label, value in lines:
        out.print(f"[bold]{label}[/]" if value is not None else label, end="")
        if value is not None:
            out.print(value, markup=False, soft_wrap=True)
    for title, command in (("Get a token", token), ("Send a chat completion", chat)):
        out.print(f"\n[bold]{title}[/]\n")
        out.print(command, markup=False, soft_wrap=True)
    out.print()
