"""`llm-proxy sign-in`: the web pages without a password, for who holds a client's credentials."""

from __future__ import annotations

import getpass
from pathlib import Path

import rich_click as click

from gateway.cli.connection import client_for, connected
from gateway.cli.output import print_one


@click.command("sign-in")
@click.option("--as", "subject", help="The name that the audit log shows; yours on this machine when not given.")
@click.option("--scope", "scopes", multiple=True, help="What the session may do; repeat. Default: all of the client's.")
@connected
def sign_in(*, subject: str | None, scopes: tuple[str, ...], profile: Path | None, as_json: bool) -> None:
    """Print a link that signs a browser in to the web pages: once, within five minutes."""
    body = {"subject": subject or getpass.getuser(), "scopes": list(scopes) or None}
    with client_for(profile) as api:
        print_one(api.request("POST", "/api/v1/sign-in-links", body).data, as_json=as_json)
