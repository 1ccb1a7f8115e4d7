"""The one table of environment variables: docs/configuration.md is made from it, `gateway.settings` reads by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.setting_values import (
    flag,
    http_url,
    issuer_url,
    kek,
    kek_shares,
    kek_spare,
    oidc_scope,
    one_of,
    operator_rules,
    postgres_url,
    proxy_url,
    region,
    seconds,
    secret,
    signing_algorithms,
    size,
    text,
    whole,
)


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


LISTEN, PEOPLE, DATABASE, CUSTODY = "Listening and identity", "People", "Database", "Custody"
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
        "LLM_PROXY_REGION",
        "region",
        LISTEN,
        None,
        "Where this process runs, such as `eu-west-1`: the strategy `geographic` prefers keys near it, unless a pool's "
        "`home_region` or the caller says another.",
        region,
    ),
    Variable(
        "LLM_PROXY_TRUSTED_PROXIES",
        "trusted_proxies",
        LISTEN,
        "127.0.0.1",
        "Addresses or networks, comma-separated, whose `X-Forwarded-For` and `-Proto` are believed.",
        text,
    ),
    Variable(
        "LLM_PROXY_TLS_CERTIFICATE",
        "tls_certificate",
        LISTEN,
        None,
        "A PEM file with the server's certificate and the intermediate ones: then the server ends TLS (1.2 or newer) "
        "itself. Renewed files are taken up within ten seconds, or at SIGHUP.",
        Path,
    ),
    Variable(
        "LLM_PROXY_TLS_KEY",
        "tls_key",
        LISTEN,
        None,
        "The PEM file of its private key, unless that is in the same file.",
        Path,
    ),
    Variable(
        "LLM_PROXY_TLS_CLIENT_CA",
        "tls_client_ca",
        LISTEN,
        None,
        "With `LLM_PROXY_CLIENT_CERTIFICATES=server`: a PEM file of the CAs whose certificates clients of the method "
        "`tls_client_auth` may have.",
        Path,
    ),
    Variable(
        "LLM_PROXY_CLIENT_CERTIFICATES",
        "client_certificates",
        LISTEN,
        "off",
        "Where callers' TLS certificates (RFC 8705) come from: `server` (it ends TLS and asks for them), or trusted "
        "proxies, as `client-cert` (RFC 9440, verified chains alone) or `nginx` (`X-SSL-Client-Cert` escaped, "
        "`X-SSL-Client-Verify`); `off` for nowhere. A proxy must drop these headers from what it receives.",
        one_of("off", "server", "client-cert", "nginx"),
    ),
    Variable(
        "LLM_PROXY_SIGNING_ALGORITHMS",
        "signing_algorithms",
        LISTEN,
        "ES256,RS256",
        "The algorithms that keys are kept for, comma-separated, out of ES256, RS256 and Ed25519; the first one signs "
        "tokens unless a client asks for another.",
        signing_algorithms,
    ),
    Variable(
        "LLM_PROXY_OIDC_ISSUER",
        "oidc_issuer",
        PEOPLE,
        None,
        "The OpenID provider that people sign in at, exactly as its discovery document names it. Register "
        "`<LLM_PROXY_ISSUER>/sign-in/callback` there as the redirect URI. Without it the pages open by "
        "`llm-proxy sign-in` alone.",
        issuer_url,
    ),
    Variable("LLM_PROXY_OIDC_CLIENT_ID", "oidc_client_id", PEOPLE, None, "The client id that the provider gave.", text),
    Variable(
        "LLM_PROXY_OIDC_CLIENT_SECRET",
        "oidc_client_secret",
        PEOPLE,
        None,
        "The client secret that the provider gave; not set for a public client (PKCE is always used).",
        secret,
        secret=True,
    ),
    Variable(
        "LLM_PROXY_OIDC_SCOPE",
        "oidc_scope",
        PEOPLE,
        "openid email profile",
        "What the provider is asked for; add `groups` or the like for rules that go by groups.",
        oidc_scope,
    ),
    Variable(
        "LLM_PROXY_OIDC_OPERATORS",
        "oidc_operators",
        PEOPLE,
        "",
        "Who operates the installation: `claim=value` rules, comma-separated, such as `email=ada@example.com` (an "
        "address that the provider verified) or `groups=llm-operators`; inside objects: `realm_access.roles=llm`.",
        operator_rules,
    ),
    Variable(
        "LLM_PROXY_OIDC_ALLOW_PRIVATE",
        "oidc_allow_private",
        PEOPLE,
        "false",
        "Let the provider have a private address, as one inside your own network has.",
        flag,
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
        "Where the key-encryption keys are: `file:PATH` (mode 0600), `env`, `vault://host:8200/transit/key` or "
        "`awskms://region/key`; several with commas while moving, the first one wraps. Needed by all but `dev`.",
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
        "LLM_PROXY_KEK_SPARE",
        "kek_spare",
        CUSTODY,
        None,
        "A break-glass KEK that every data key is wrapped under a second time: `rsa:PATH` of a public key in PEM, or "
        "another provider as in `LLM_PROXY_KEK`; `none` takes the spare wraps away at the next rewrap.",
        kek_spare,
    ),
    Variable(
        "LLM_PROXY_KEK_SHARES",
        "kek_shares",
        CUSTODY,
        None,
        "Where each tenant's share is kept, outside the database and its backups, so that deleting a tenant shreds its "
        "secrets in backups too: `file:DIR` on a volume that all processes mount, or `vault://host:8200/mount/path` of "
        "a version 2 KV engine.",
        kek_shares,
    ),
    Variable("VAULT_TOKEN", "vault_token", CUSTODY, None, "With `vault://`: the token.", secret, secret=True),
    Variable(
        "LLM_PROXY_VAULT_TOKEN_PATH",
        "vault_token_path",
        CUSTODY,
        None,
        "With `vault://`: a file that holds the token and that an agent renews; read at each use.",
        Path,
    ),
    Variable("AWS_ACCESS_KEY_ID", "aws_access_key_id", CUSTODY, None, "With `awskms://`.", text),
    Variable("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key", CUSTODY, None, "With `awskms://`.", secret, secret=True),
    Variable("AWS_SESSION_TOKEN", "aws_session_token", CUSTODY, None, "With `awskms://`.", secret, secret=True),
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
        "LLM_PROXY_STATE_PATH",
        "state_path",
        TRAFFIC,
        None,
        "Where the data path keeps what it has read from Postgres, sealed under the key-encryption key, to start and "
        "serve from while Postgres is away. The directory must exist; the processes of one machine may share the file.",
        Path,
    ),
    Variable(
        "LLM_PROXY_STATE_MAX_AGE",
        "state_max_age_s",
        TRAFFIC,
        "86400",
        "Seconds after which a sealed state is too old to start from: what was revoked since it was written is not "
        "known until Postgres is back.",
        seconds(60, 2_592_000),
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
