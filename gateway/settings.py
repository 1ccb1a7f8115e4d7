"""Everything that is configured, read once from the environment; nothing else of the gateway looks at it.

One table, `VARIABLES`, holds every variable with its default and meaning: docs/configuration.md is made from it, and
`llm-proxy config check` walks it. A variable that is set and wrong is always an error, never passed over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from auth.errors import Invalid
from auth.secret import Secret
from gateway.setting_values import (
    flag,
    http_url,
    kek,
    one_of,
    postgres_url,
    proxy_url,
    seconds,
    secret,
    size,
    text,
    whole,
)


class ConfigurationInvalid(Invalid):
    """Variables that are missing, malformed or unsafe; `errors` lists every one (variable, sentence)."""

    code = "configuration_invalid"


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: `field` is its name in `Settings`; a `secret` one may be given as `NAME_FILE` too."""

    name: str
    field: str
    group: str
    default: str | None
    meaning: str
    parse: Callable[[str], Any]
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration of one process; times in seconds, sizes in bytes. Made by `read_settings`."""

    host: str
    port: int
    issuer: str | None
    audience: str | None
    trusted_proxies: str
    database_url: Secret | None
    database_direct_url: Secret | None
    migration_url: Secret | None
    database_pool_size: int
    statement_cache_size: int
    kek: str | None
    kek_keys: Secret | None
    peppers: Secret | None
    max_body_bytes: int
    max_upload_bytes: int
    max_connections: int
    header_timeout_s: float
    keep_alive_s: float
    body_timeout_s: float
    drain_s: float
    drain_lead_s: float
    snapshot_poll_s: float
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


LISTEN, DATABASE, CUSTODY = "Listening and identity", "Database", "Custody"
TRAFFIC, OPERATIONS, DEVELOPMENT, CLIENT = "Traffic", "Operations", "Development", "Command line client"

VARIABLES: Final = (
    Variable("LLM_PROXY_HOST", "host", LISTEN, "127.0.0.1", "Address to listen on; `0.0.0.0` in a container.", text),
    Variable("PORT", "port", LISTEN, "8080", "Port to listen on; 0 takes a free one.", whole(0, 65535)),
    Variable(
        "LLM_PROXY_ISSUER",
        "issuer",
        LISTEN,
        None,
        "The public URL of this installation, which issues the tokens; https, or http on a loopback address. "
        "Needed by `serve`, `gateway` and `control`.",
        http_url,
    ),
    Variable("LLM_PROXY_AUDIENCE", "audience", LISTEN, None, "What tokens are for; the issuer when not set.", text),
    Variable(
        "LLM_PROXY_TRUSTED_PROXIES",
        "trusted_proxies",
        LISTEN,
        "127.0.0.1",
        "Addresses or networks, comma-separated, whose `X-Forwarded-For` and `-Proto` are believed.",
        text,
    ),
    Variable(
        "DATABASE_URL",
        "database_url",
        DATABASE,
        None,
        "PostgreSQL 15 or newer, as a role that is neither superuser nor BYPASSRLS nor owner of the tables. Needed by "
        "`serve`, `gateway` and `control`; `dev` runs an embedded server instead.",
        postgres_url,
        secret=True,
    ),
    Variable(
        "DATABASE_DIRECT_URL",
        "database_direct_url",
        DATABASE,
        None,
        "The same database past a PgBouncer in transaction mode, for notifications and the jobs' lock.",
        postgres_url,
        secret=True,
    ),
    Variable(
        "LLM_PROXY_MIGRATION_URL",
        "migration_url",
        DATABASE,
        None,
        "The database as the role that owns the schema, for `migrate` alone; `DATABASE_URL` when not set.",
        postgres_url,
        secret=True,
    ),
    Variable(
        "LLM_PROXY_DATABASE_POOL",
        "database_pool_size",
        DATABASE,
        "8",
        "Connections that one process holds at most, for each of its two pools.",
        whole(1, 1000),
    ),
    Variable(
        "LLM_PROXY_STATEMENT_CACHE",
        "statement_cache_size",
        DATABASE,
        "100",
        "Prepared statements a connection; 0 behind a PgBouncer in transaction mode.",
        whole(0, 10_000),
    ),
    Variable(
        "LLM_PROXY_KEK",
        "kek",
        CUSTODY,
        None,
        "Where the key-encryption keys are: `file:PATH` (mode 0600) or `env`. Needed by `serve`, `gateway`, `control`.",
        kek,
    ),
    Variable(
        "LLM_PROXY_KEK_KEYS",
        "kek_keys",
        CUSTODY,
        None,
        "With `LLM_PROXY_KEK=env`: 32 bytes in base64 a key, comma-separated, the current one first.",
        secret,
        secret=True,
    ),
    Variable(
        "LLM_PROXY_PEPPERS",
        "peppers",
        CUSTODY,
        None,
        "Keys of the client secrets' MACs, `version:base64` comma-separated, 32 bytes or more each; the highest "
        "version is used for new secrets. Needed by `serve` and `control`.",
        secret,
        secret=True,
    ),
    Variable("LLM_PROXY_MAX_BODY", "max_body_bytes", TRAFFIC, "32MiB", "Largest JSON request body.", size),
    Variable(
        "LLM_PROXY_MAX_CONNECTIONS",
        "max_connections",
        TRAFFIC,
        "10000",
        "Caller connections that one process holds; more are answered 503.",
        whole(1, 1_000_000),
    ),
    Variable(
        "LLM_PROXY_HEADER_TIMEOUT",
        "header_timeout_s",
        TRAFFIC,
        "20",
        "Seconds that a caller has to send a request head.",
        seconds(0.1, 600),
    ),
    Variable(
        "LLM_PROXY_BODY_TIMEOUT",
        "body_timeout_s",
        TRAFFIC,
        "60",
        "Seconds without a byte after which a half-sent request body is given up.",
        seconds(0.1, 3600),
    ),
    Variable(
        "LLM_PROXY_KEEP_ALIVE",
        "keep_alive_s",
        TRAFFIC,
        "75",
        "Seconds that an idle caller connection stays open.",
        seconds(1, 3600),
    ),
    Variable(
        "LLM_PROXY_SNAPSHOT_POLL",
        "snapshot_poll_s",
        TRAFFIC,
        "15",
        "Seconds between polls for changes, behind the notifications.",
        seconds(0.1, 600),
    ),
    Variable(
        "LLM_PROXY_ALLOW_PRIVATE_UPSTREAMS",
        "allow_private_upstreams",
        TRAFFIC,
        "false",
        "Let tenants' base URLs reach private and loopback addresses and plain http: for your own model servers, and "
        "only when you trust every tenant with your network.",
        flag,
    ),
    Variable(
        "LLM_PROXY_EGRESS_PROXY",
        "egress_proxy",
        TRAFFIC,
        None,
        "An HTTP proxy, `http://[user:password@]host:port`, through which providers are reached (CONNECT).",
        proxy_url,
        secret=True,
    ),
    Variable(
        "LLM_PROXY_NO_PROXY",
        "no_proxy",
        TRAFFIC,
        "",
        "Host names, comma-separated, that are reached without the proxy; their sub-domains too.",
        text,
    ),
    Variable(
        "LLM_PROXY_MAX_UPLOAD",
        "max_upload_bytes",
        TRAFFIC,
        "512MiB",
        "Largest multipart upload; it is relayed as it arrives.",
        size,
    ),
    Variable(
        "LLM_PROXY_MAX_UPSTREAM_CONNECTIONS",
        "max_upstream_connections",
        TRAFFIC,
        "1000",
        "Connections that one process holds to all providers together.",
        whole(1, 1_000_000),
    ),
    Variable(
        "LLM_PROXY_DRAIN",
        "drain_s",
        OPERATIONS,
        "30",
        "Seconds that requests in flight get after SIGTERM.",
        seconds(0, 3600),
    ),
    Variable(
        "LLM_PROXY_DRAIN_LEAD",
        "drain_lead_s",
        OPERATIONS,
        "1",
        "Seconds between `/readyz` turning 503 at SIGTERM and the end of accepting: give the balancer in front time.",
        seconds(0, 600),
    ),
    Variable(
        "LLM_PROXY_LOG_LEVEL",
        "log_level",
        OPERATIONS,
        "info",
        "`debug`, `info`, `warning` or `error`.",
        one_of("debug", "info", "warning", "error"),
    ),
    Variable(
        "LLM_PROXY_LOG_FORMAT",
        "log_format",
        OPERATIONS,
        "auto",
        "`json`, `human`, or `auto`: human on a terminal.",
        one_of("auto", "human", "json"),
    ),
    Variable("LLM_PROXY_HOME", "home", DEVELOPMENT, ".llm-proxy", "Where `dev` keeps its data and secrets.", Path),
    Variable(
        "EMBEDDED_PG_BIN",
        "embedded_pg_bin",
        DEVELOPMENT,
        None,
        "A PostgreSQL `bin` directory for the embedded server, instead of the packaged one.",
        Path,
    ),
    Variable(
        "LLM_PROXY_PROFILE",
        "profile",
        CLIENT,
        None,
        "A profile file for the managing commands; `$LLM_PROXY_HOME/dev.json` when not set.",
        Path,
    ),
    Variable("LLM_PROXY_URL", "url", CLIENT, None, "The gateway that the managing commands talk to.", http_url),
    Variable("LLM_PROXY_CLIENT_ID", "client_id", CLIENT, None, "The client id that they use.", text),
    Variable(
        "LLM_PROXY_CLIENT_SECRET",
        "client_secret",
        CLIENT,
        None,
        "The client secret that they use.",
        secret,
        secret=True,
    ),
)


def settings_from_environment() -> Settings:
    """Read this process's environment; the only place that does."""
    return read_settings(os.environ)


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
