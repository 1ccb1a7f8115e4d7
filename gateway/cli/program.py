"""The command `llm-proxy`: its groups, and the one place where faults become exit codes."""

from __future__ import annotations

import sys

import rich_click as click

from auth.errors import Fault
from gateway.cli import apply, audit, clients, kek, keys, operate, people, pools, run, simulate, tenants, usage
from gateway.cli.output import errors, print_fault
from gateway.control.version import program_version

EXIT_FAULT = 1
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(program_version(), prog_name="llm-proxy")
@click.command_panel("Run", commands=["dev", "serve", "gateway", "control", "simulated-provider", "simulate"])
@click.command_panel(
    "Manage (against a running gateway)",
    commands=["apply", "tenant", "client", "pool", "key", "token", "sign-in", "audit"],
)
@click.command_panel("Operate", commands=["migrate", "bootstrap", "kek", "config"])
def program() -> None:
    """An OAuth2-secured, multi-tenant gateway for LLM APIs: encrypted key pools, balanced, rotated and metered.

    Start with `llm-proxy dev`. The managing commands find the gateway through --profile, LLM_PROXY_URL with
    LLM_PROXY_CLIENT_ID and LLM_PROXY_CLIENT_SECRET, or what `dev` left in ./.llm-proxy.
    """


for _command in (
    run.dev,
    run.serve,
    run.gateway,
    run.control,
    run.simulated_provider,
    simulate.simulate,
    apply.apply,
    tenants.tenant,
    clients.client,
    pools.pool,
    keys.key,
    clients.token,
    people.sign_in,
    audit.audit,
    usage.usage,
    operate.migrate,
    operate.bootstrap,
    kek.kek,
    operate.config,
):
    program.add_command(_command)


def main() -> None:
    """Run the command line; a fault is told in its own words and ends with exit code 1."""
    try:
        program(standalone_mode=False)
    except Fault as fault:
        print_fault(fault)
        sys.exit(EXIT_FAULT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        errors.print("stopped", style="dim")
        sys.exit(EXIT_INTERRUPTED)
