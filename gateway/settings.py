"""Everything that is configured, read once from the environment; nothing else of the gateway looks at it.

A variable that is set and wrong is always an error, never passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from auth.errors import Invalid
from auth.identity import Rule
from auth.secret import Secret
from gateway.variable import Variable
from gateway.variables import VARIABLES


class ConfigurationInvalid(Invalid):
    """Variables that are missing, malformed or unsafe; `errors` lists every one (variable, sentence)."""

    code = "configuration_invalid"


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration of one process; times in seconds, sizes in bytes. Made by `read_settings`."""

    host: str
    port: int
    workers: int
    issuer: str | None
    audience: str | None
    region: str | None
    region_header: str | None
    geoip_database: Path | None
    trusted_proxies: str
    tls_certificate: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    client_certificates: str
    signing_algorithms: tuple[str, ...]
    oidc_issuer: str | None
    oidc_client_id: str | None
    oidc_client_secret: Secret | None
    oidc_scope: str
    oidc_operators: tuple[Rule, ...]
    oidc_allow_private: bool
    database_url: Secret | None
    database_direct_url: Secret | None
    migration_url: Secret | None
    database_pool_size: int
    statement_cache_size: int
    kek: str | None
    kek_keys: Secret | None
    kek_spare: str | None
    kek_shares: str | None
    kek_poll_s: float
    vault_token: Secret | None
    vault_token_path: Path | None
    aws_access_key_id: str | None
    aws_secret_access_key: Secret | None
    aws_session_token: Secret | None
    aws_web_identity_token_path: Path | None
    aws_role_arn: str | None
    aws_role_session_name: str
    aws_container_url: str | None
    aws_container_path: str | None
    aws_container_token_path: Path | None
    aws_kms_url: str | None
    aws_sts_url: str | None
    google_credentials_path: Path | None
    azure_directory_id: str | None
    azure_client_id: str | None
    azure_federated_token_path: Path | None
    azure_client_secret: Secret | None
    azure_authority: str
    peppers: Secret | None
    max_body_bytes: int
    max_upload_bytes: int
    usage_spool: Path | None
    usage_spool_bytes: int
    usage_rows: int
    prices_path: Path | None
    max_connections: int
    header_timeout_s: float
    keep_alive_s: float
    body_timeout_s: float
    send_timeout_s: float
    drain_s: float
    drain_lead_s: float
    snapshot_poll_s: float
    state_path: Path | None
    state_max_age_s: float
    prediction: bool
    allow_private_upstreams: bool
    egress_proxy: Secret | None
    no_proxy: str
    max_upstream_connections: int
    log_level: str
    log_format: str
    home: Path
    embedded_pg_bin: Path | None
    profile: Path | None
    url: str | None
    client_id: str | None
    client_secret: Secret | None

    @property
    def token_audience(self) -> str | None:
        """What access tokens are for: the configured audience, else the issuer."""
        return self.audience or self.issuer

    @property
    def owner_url(self) -> Secret | None:
        """The database URL of the role that owns the schema, for `migrate`."""
        return self.migration_url or self.database_url


_OURS = "LLM_PROXY_"
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT)(_[A-Z0-9_]+)?$")
"""What Kubernetes puts into pods beside a Service whose name begins with llm-proxy."""


def settings_from_environment() -> Settings:
    """Read this process's environment; the only place that does."""
    return read_settings(os.environ)


def unread_in_environment() -> list[str]:
    """Say of each variable of this process that looks like ours and is read by nothing what it may be meant for."""
    return unread(os.environ)


def environment_secret(name: str) -> Secret | None:
    """Read one variable that a declaration names as the place of a secret; None when it is not set or empty."""
    value = os.environ.get(name, "").strip()
    return Secret(value) if value else None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read settings out of `environ`; raises `ConfigurationInvalid` that lists every variable at fault.

    An empty variable counts as not set.
    """
    values: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for variable in VARIABLES:
        try:
            given = _given(variable, environ)
            values[variable.field] = None if given is None else variable.parse(given)
        except ValueError as error:
            problems.append((variable.name, f"{variable.name} {error}."))
    if problems:
        raise invalid(problems)
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})


def unread(environ: Mapping[str, str]) -> list[str]:
    """Say of each name in `environ` that begins like ours and is none what it may be meant for: a misspelt one."""
    from difflib import get_close_matches  # which nobody needs who spells well

    names = {variable.name: variable.secret for variable in VARIABLES if variable.name.startswith(_OURS)}
    known = [*names, *(f"{name}_FILE" for name, secret in names.items() if secret)]
    said = []
    for name in sorted(set(environ) - set(known)):
        if name.startswith(_OURS) and not _SERVICE_LINK.search(name):
            near = get_close_matches(name.removeprefix(_OURS), [each.removeprefix(_OURS) for each in known], 1, 0.7)
            said.append(f"{name} is read by nothing{f': did you mean {_OURS}{near[0]}?' if near else '.'}")
    return said


def invalid(problems: list[tuple[str, str]]) -> ConfigurationInvalid:
    """Make the error for a list of (variable, sentence that says how to mend it)."""
    return ConfigurationInvalid(
        "The configuration cannot be used.",
        hint="Every variable is described in docs/configuration.md.",
        errors=tuple(problems),
    )


def is_loopback(url: str) -> bool:
    """Tell whether a URL names this machine only."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _given(variable: Variable, environ: Mapping[str, str]) -> str | None:
    value = environ.get(variable.name, "").strip()
    if variable.secret:
        file = environ.get(f"{variable.name}_FILE", "").strip()
        if value and file:
            raise ValueError(f"is given twice: unset it or {variable.name}_FILE")
        if file:
            try:
                value = Path(file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"cannot be read from the file that {variable.name}_FILE names ({error})") from None
            if not value:
                raise ValueError(f"is empty in the file that {variable.name}_FILE names")
    return value or variable.default
