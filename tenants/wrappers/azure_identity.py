"""Where Microsoft Entra access tokens come from: the first of these that the environment names.

1. workload identity: the pod's projected token as the client's assertion (RFC 7523 section 2.2)
2. a client secret
3. the managed identity of the machine (IMDS); `client_id` chooses one of several
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from auth.secret import Secret
from tenants.sources.protocol import HttpCalls
from tenants.wrappers.gcp_identity import TokenSource
from tenants.wrappers.renewal import Lasting, Renewed, lasting, read_identity, token

AUTHORITY: Final = "https://login.microsoftonline.com"
IMDS: Final = "http://169.254.169.254"
_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

AzureTokens = Callable[[str], TokenSource]
"""Gives the source of tokens for a resource, such as `https://vault.azure.net`."""


def application(
    http: HttpCalls,
    *,
    directory_id: str,
    client_id: str,
    proof: Secret | Path,
    now: Callable[[], datetime],
    authority: str = AUTHORITY,
) -> AzureTokens:
    """Ask Entra as an application; `proof` is its client secret, or the file of the workload's own token."""
    url = f"{authority.rstrip('/')}/{directory_id}/oauth2/v2.0/token"

    def of(resource: str) -> TokenSource:
        async def fetch() -> Lasting[Secret]:
            form = {"grant_type": "client_credentials", "client_id": client_id, "scope": f"{resource}/.default"}
            form |= _proof(proof)
            return lasting(await token(http, url, "Microsoft Entra", form), now())

        return Renewed(fetch, now=now)

    return of


def managed(
    http: HttpCalls, *, now: Callable[[], datetime], client_id: str | None = None, endpoint: str = IMDS
) -> AzureTokens:
    """Ask the machine's metadata service."""

    def of(resource: str) -> TokenSource:
        query = {"api-version": "2018-02-01", "resource": resource} | ({"client_id": client_id} if client_id else {})
        url = f"{endpoint}/metadata/identity/oauth2/token?{urlencode(query)}"

        async def fetch() -> Lasting[Secret]:
            return lasting(await token(http, url, "the Azure metadata service", None, {"metadata": "true"}), now())

        return Renewed(fetch, now=now)

    return of


def _proof(proof: Secret | Path) -> dict[str, str]:
    if isinstance(proof, Secret):
        return {"client_secret": proof.reveal()}
    return {"client_assertion_type": _ASSERTION, "client_assertion": read_identity(proof)}
