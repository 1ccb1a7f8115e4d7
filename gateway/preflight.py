"""What `serve` refuses to start without: each finding names the variable, the reason and the mend."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg

from auth.errors import Fault
from gateway.custody import make_keks, make_spare, parse_peppers
from gateway.database import AWAY, DatabaseAway
from gateway.metering.pricing import load_prices
from gateway.schema import check_role, current_revision, head_revision, identity, is_pooled, known_revisions
from gateway.settings import Settings, invalid, is_loopback
from gateway.tls import TlsUnusable, make_tls
from tenants.errors import KeyringUnsafe
from tenants.sources.protocol import HttpAnswer, SourceAway

if TYPE_CHECKING:
    from gateway.schema import RoleCheck

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_REFUSED = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
"""It answers, and does not want us; `InvalidPasswordError` is one of the first."""
Finding = tuple[str, str]


def static_findings(settings: Settings, *, control: bool = True) -> list[Finding]:
    """Check what can be seen without a database; `control`: the process issues tokens and needs the peppers."""
    found: list[Finding] = []
    if settings.database_url is None:
        found.append(("DATABASE_URL", "DATABASE_URL is not set: name a PostgreSQL, or use `llm-proxy dev`."))
    if settings.issuer is None:
        found.append(("LLM_PROXY_ISSUER", "LLM_PROXY_ISSUER is not set: give the https URL that callers use."))
    elif urlsplit(settings.issuer).scheme != "https" and not is_loopback(settings.issuer):
        found.append(
            (
                "LLM_PROXY_ISSUER",
                "LLM_PROXY_ISSUER is plain http on a public host: tokens would travel readable; use https.",
            )
        )
    found += _tls_findings(settings)
    found += _sign_in_findings(settings) if control else []
    if settings.kek is not None and settings.kek_spare == settings.kek.split(",")[0].strip():
        name = "LLM_PROXY_KEK_SPARE"
        found.append((name, f"{name} is where LLM_PROXY_KEK is: losing one loses both. Name another place."))
    try:
        make_keks(settings, NoCalls())
        make_spare(settings, NoCalls())
    except Fault as fault:
        told = re.sub("[Tt]he environment", "LLM_PROXY_KEK_KEYS", fault.public)
        mode = " A keyring file has mode 0600." if isinstance(fault, KeyringUnsafe) else ""
        found.append(("LLM_PROXY_KEK", f"{told} {fault.hint}{mode}".strip()))
    try:
        load_prices(settings.prices_path)
    except ValueError as error:
        found.append(("LLM_PROXY_PRICES", str(error)))
    if control:
        try:
            parse_peppers(settings.peppers)
        except ValueError as error:
            found.append(("LLM_PROXY_PEPPERS", f"LLM_PROXY_PEPPERS {error}"))
    return found


def _tls_findings(settings: Settings) -> list[Finding]:
    """Check the files that the server would end TLS with."""
    asks = settings.client_certificates == "server"
    if settings.tls_certificate is None:
        name = "LLM_PROXY_TLS_CERTIFICATE"
        others = asks or settings.tls_key is not None or settings.tls_client_ca is not None
        return [(name, f"{name} is not set: the server ends TLS only with a certificate.")] if others else []
    if settings.tls_client_ca is not None and not asks:
        return [("LLM_PROXY_TLS_CLIENT_CA", "LLM_PROXY_TLS_CLIENT_CA needs LLM_PROXY_CLIENT_CERTIFICATES=server.")]
    try:
        make_tls(settings)
    except TlsUnusable as fault:
        return list(fault.errors)
    return []


def _sign_in_findings(settings: Settings) -> list[Finding]:
    """Check the OpenID provider's settings; without an issuer none of them means anything."""
    issuer, name = settings.oidc_issuer, "LLM_PROXY_OIDC_ISSUER"
    if issuer is None:
        others = (settings.oidc_client_id, settings.oidc_client_secret, settings.oidc_operators)
        return [(name, f"{name} is not set: the other LLM_PROXY_OIDC variables need it.")] if any(others) else []
    found = []
    if urlsplit(issuer).scheme != "https" and not is_loopback(issuer):
        found.append((name, f"{name} is plain http on another host: who answers there could sign in as anybody."))
    if settings.oidc_client_id is None:
        found.append(
            ("LLM_PROXY_OIDC_CLIENT_ID", f"LLM_PROXY_OIDC_CLIENT_ID is not set: register this gateway at {issuer}.")
        )
    return found


async def database_findings(settings: Settings) -> list[Finding]:
    """Check the database's role and schema; call it when `static_findings` is empty.

    Raises `DatabaseAway` when it does not answer: that is no fault of the configuration for sure.
    """
    if settings.database_url is None:
        return []
    url = settings.database_url.reveal()
    try:
        role = await check_role(url)
        revision = await current_revision(url)
    except asyncpg.InsufficientPrivilegeError:
        return [("DATABASE_URL", "The role of DATABASE_URL may not read the schema: run `llm-proxy migrate` first.")]
    except AWAY as error:
        raise DatabaseAway("The database does not answer.", debug=type(error).__name__) from error
    except _REFUSED as error:
        return [_refused("DATABASE_URL", error)]
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        return [_unanswered(type(error).__name__)]
    found = [*role_findings(role), *revision_findings(revision)]
    if not found and settings.database_direct_url is not None:
        found = await _direct_findings(url, settings.database_direct_url.reveal())
    return found or await _pooler_findings(settings)


async def _pooler_findings(settings: Settings) -> list[Finding]:
    """Check that what lives with a session is not given to a pooler in transaction mode: it would fail in silence."""
    given = settings.database_direct_url or settings.database_url
    assert given is not None
    try:
        if not await is_pooled(given.reveal()):
            return []
    except AWAY as error:
        raise DatabaseAway("The database does not answer.", debug=type(error).__name__) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return [_unanswered(type(error).__name__)]
    name = "DATABASE_DIRECT_URL" if settings.database_direct_url is not None else "DATABASE_URL"
    sentence = f"{name} leads to a pooler in transaction mode, which keeps no notifications and no lock"
    return [("DATABASE_DIRECT_URL", f"{sentence}: set DATABASE_DIRECT_URL to the server itself.")]


async def _direct_findings(url: str, direct_url: str) -> list[Finding]:
    """Check that both URLs lead to one database, the second as a role that is bound like the first."""
    name = "DATABASE_DIRECT_URL"
    try:
        role = await check_role(direct_url)
        same = await identity(direct_url) == await identity(url)
    except AWAY as error:
        raise DatabaseAway("The database does not answer.", debug=f"{name}: {type(error).__name__}") from error
    except _REFUSED as error:
        return [_refused(name, error)]
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        return [(name, f"The database does not answer ({type(error).__name__}): check {name} and the network.")]
    if not same:
        return [
            (name, f"{name} leads to another database than DATABASE_URL: what one is told the other would not know.")
        ]
    return [(name, sentence) for _, sentence in role_findings(role)]


def _refused(name: str, error: Exception) -> Finding:
    mend = f"check user, password and database name in {name}."
    return name, f"The database refuses the connection ({type(error).__name__}): {mend}"


def _unanswered(reason: str) -> Finding:
    return "DATABASE_URL", f"The database does not answer ({reason}): check DATABASE_URL and the network."


def role_findings(role: RoleCheck) -> list[Finding]:
    """Say why row-level security would not bind a role."""
    mend = "connect as a plain LOGIN role in llm_proxy_app; `llm-proxy migrate --login NAME` makes one."
    reasons = {
        "is a superuser": role.superuser,
        "bypasses row-level security": role.bypasses_rls,
        "owns the tables and could lift their fences": role.owns_tables,
    }
    return [
        ("DATABASE_URL", f"The database role {role.name} {reason}: {mend}")
        for reason, holds in reasons.items()
        if holds
    ][:1]


def revision_findings(revision: str | None) -> list[Finding]:
    """Say why the schema does not suit this release; a newer one does, since migrations expand before they contract."""
    if revision is None:
        return [("DATABASE_URL", "The database has no schema yet: run `llm-proxy migrate`.")]
    if revision != head_revision() and revision in known_revisions():
        return [
            (
                "DATABASE_URL",
                f"The schema is at {revision}, this release needs {head_revision()}: run `llm-proxy migrate`.",
            )
        ]
    return []


async def preflight(settings: Settings, *, control: bool = True, patience_s: float = 0.0) -> None:
    """Raise `ConfigurationInvalid` with every reason not to start; with a sealed state, Postgres away is none.

    Without one the database may take `patience_s` to answer: machines start in any order.
    """
    found = static_findings(settings, control=control)
    try:
        has_state = settings.state_path is not None and settings.state_path.exists()
        found += await _patient_findings(settings, 0.0 if found or has_state else patience_s)
    except DatabaseAway as error:
        if settings.state_path is None or not settings.state_path.exists():
            found.append(_unanswered(error.debug))
        else:
            log.warning("the database does not answer: starting from the sealed state", extra={"reason": error.debug})
    if found:
        raise invalid(found)


async def _patient_findings(settings: Settings, patience_s: float) -> list[Finding]:
    loop = asyncio.get_running_loop()
    give_up = loop.time() + patience_s
    while True:
        try:
            return await database_findings(settings)
        except DatabaseAway as error:
            if loop.time() + _RETRY_S > give_up:
                raise
            log.warning("waiting for the database: Postgres does not answer", extra={"reason": error.debug})
            await asyncio.sleep(_RETRY_S)


class NoCalls:
    """Stands in for the network where only the settings are looked at."""

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        """Answer nothing."""
        del method, headers, body
        raise SourceAway(f"{url} is not asked while the settings are checked")
