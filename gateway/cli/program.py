"""The command `llm-proxy`: its groups, and the one place where faults become exit codes.

What runs for months is started by the same command: it loads the module of the one subcommand that was asked for, and
neither the others nor what prints (8 MiB of `rich`, `httpx` and `yaml` in a serving process).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from importlib import import_module
from typing import Any

import rich_click as click

from auth.errors import Fault
from gateway.control.version import program_version

EXIT_FAULT = 1
EXIT_INTERRUPTED = 130

_PLACES = {
    "dev": "run",
    "serve": "run",
    "gateway": "run",
    "control": "run",
    "simulated-provider": "run",
    "simulate": "simulate",
    "apply": "apply",
    "tenant": "tenants",
    "client": "clients",
    "pool": "pools",
    "key": "keys",
    "token": "clients",
    "sign-in": "people",
    "audit": "audit",
    "usage": "usage",
    "migrate": "operate",
    "bootstrap": "operate",
    "kek": "kek",
    "config": "operate",
}
"""The module of each subcommand; its function has the same name, with underscores."""


class Program(click.RichGroup):
    """A group whose subcommands are loaded as they are asked for; who looks at `commands` gets all of them."""

    _loaded: MutableMapping[str, click.Command]
    _places: Mapping[str, str] = {}

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)  # which looks at `commands`
        self._places = _PLACES

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """All subcommands by name."""
        for name in self._places:
            self._load(name)
        return self._loaded

    @commands.setter
    def commands(self, commands: MutableMapping[str, click.Command]) -> None:
        self._loaded = commands

    def _load(self, name: str) -> click.Command | None:
        place = self._places.get(name)
        if place is not None and name not in self._loaded:
            self._loaded[name] = getattr(import_module(f"gateway.cli.{place}"), name.replace("-", "_"))
        return self._loaded.get(name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one."""
        del ctx
        return self._load(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names, without loading any."""
        del ctx
        return sorted(self._places)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(program_version(), prog_name="llm-proxy")
@click.command_panel("Run", commands=["dev", "serve", "gateway", "control", "simulated-provider", "simulate"])
@click.command_panel(
    "Manage (against a running gateway)",
    commands=["apply", "tenant", "client", "pool", "key", "token", "sign-in", "audit"],
)
@click.command_panel("Operate", commands=["migrate", "bootstrap", "kek", "config", "usage"])
def program() -> None:
    """An OAuth2-secured, multi-tenant gateway for LLM APIs: encrypted key pools, balanced, rotated and metered.

    Start with `llm-proxy dev`. The managing commands find the gateway through --profile, LLM_PROXY_URL with
    LLM_PROXY_CLIENT_ID and LLM_PROXY_CLIENT_SECRET, or what `dev` left in ./.llm-proxy.
    """


def main() -> None:
    """Run the command line; a fault is told in its own words and ends with exit code 1."""
    try:
        program(standalone_mode=False)
    except Fault as fault:
        from gateway.cli.output import print_fault

        print_fault(fault)
        sys.exit(EXIT_FAULT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        from gateway.cli.output import errors

        errors.print("stopped", style="dim")
        sys.exit(EXIT_INTERRUPTED)
