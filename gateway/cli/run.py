"""`llm-proxy dev`, `serve`, `gateway`, `control` and `simulated-provider`: what keeps running."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from gateway.settings import settings_from_environment, unread_in_environment
from gateway.telemetry import configure_logging

if TYPE_CHECKING:
    from types import FrameType

    from gateway.settings import Settings


log = logging.getLogger(__name__)

_DATABASE_PATIENCE_S = 60.0


@click.command()
def dev() -> None:
    """Run everything on this machine: an embedded Postgres, a demo tenant on a simulated provider, the gateway.

    Data and secrets live in LLM_PROXY_HOME (./.llm-proxy); PORT moves the port. Ctrl-C stops it all.
    """
    from gateway.dev.command import run_dev

    settings = settings_from_environment()
    configure_logging("warning" if settings.log_level == "info" else settings.log_level, settings.log_format)
    run_dev(settings)


_WORKERS = click.option(
    "--workers",
    metavar="N|auto",
    help="Processes behind the port, `auto` for one a core; LLM_PROXY_WORKERS when not given.",
)


@click.command()
@_WORKERS
def serve(workers: str | None) -> None:
    """Run gateway and control plane behind one port: the usual production form.

    Everything comes from the environment (docs/configuration.md); it refuses to start on what is missing or unsafe.
    """
    _run(data_path=True, control=True, workers=workers)


@click.command()
@_WORKERS
def gateway(workers: str | None) -> None:
    """Run the data path alone: inference requests only, no management API."""
    _run(data_path=True, control=False, workers=workers)


@click.command()
def control() -> None:
    """Run the control plane alone: tokens, the management API, jobs."""
    _run(data_path=False, control=True)


def _run(*, data_path: bool, control: bool, workers: str | None = "1") -> None:
    from gateway.preflight import preflight
    from gateway.setting_values import workers as parse_workers

    # A core file would hold every provider key in service; workers inherit the limit.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Number 1 of a container is ended by no signal that it does not handle, and what follows may wait a minute.
    signal.signal(signal.SIGTERM, _leave)
    settings = settings_from_environment()
    configure_logging(settings.log_level, settings.log_format)
    for sentence in unread_in_environment():
        log.warning(sentence)
    asyncio.run(preflight(settings, control=control, patience_s=_DATABASE_PATIENCE_S))
    try:
        count = settings.workers if workers is None else parse_workers(workers)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--workers") from None
    if count > 1:
        from gateway.server import open_socket, say_address
        from gateway.workers import supervise

        listening = open_socket(settings.host, settings.port)
        say_address(listening)
        supervise(
            listening,
            count,
            data_path=data_path,
            control=control,
            lead_s=settings.drain_lead_s,
            drain_s=settings.drain_s,
        )
        return
    serve_forever(settings, data_path=data_path, control=control)


def _leave(number: int, frame: FrameType | None) -> None:
    """End before anything was begun."""
    del number, frame
    raise SystemExit(0)


def serve_forever(settings: Settings, *, data_path: bool, control: bool) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    from gateway import garbage
    from gateway.asgi import Gateway
    from gateway.descriptors import allow_files, within_files
    from gateway.last_resort import end_within
    from gateway.server import make_server, open_socket, say_address
    from gateway.tls import make_tls

    garbage.begin()
    settings = within_files(settings, allow_files())
    listening = open_socket(settings.host, settings.port)
    tls = make_tls(settings)
    app = Gateway(settings, data_path=data_path, control=control, tls=tls)

    def started() -> None:
        garbage.settle()
        say_address(listening)

    server = make_server(
        app,
        settings,
        on_drain=app.health.drain,
        find_relay=app.find_relay,
        on_started=started,
        on_end=end_within,
        interrupt_start=app.interrupt_start,
        tls=tls,
    )
    server.run(sockets=[listening])


@click.command("simulated-provider")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=9000, show_default=True, help="Port to listen on.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Its keys, limits, faults and speed as JSON; without it three keys of 3000, 2000 and 1000 requests a minute.",
)
def simulated_provider(host: str, port: int, file: Path | None) -> None:
    """Run a provider that speaks OpenAI, Anthropic and Gemini with real limits, and makes its answers up."""
    from auth.errors import Invalid
    from gateway.cli.output import errors
    from gateway.simulation.config import development_config, load_config
    from gateway.simulation.server import run_simulated_provider

    configure_logging("info", settings_from_environment().log_format)
    try:
        config = load_config(file.read_bytes()) if file else development_config()
    except ValueError as error:
        raise Invalid(str(error), hint="docs/simulated-provider.md describes the file.") from None
    errors.print(f"simulated provider on http://{host}:{port} (OpenAI under /v1, Anthropic under /v1/messages)")
    run_simulated_provider(host, port, config)
