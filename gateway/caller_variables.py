"""The environment variables about callers: where they are, and what proxies may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.setting_values import networks, one_of, region, text
from gateway.variable import Variable

LISTEN: Final = "Listening and identity"

CALLER_VARIABLES: Final = (
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
        "LLM_PROXY_REGION_HEADER",
        "region_header",
        LISTEN,
        None,
        "A header in which the trusted proxies say where a caller is, for the strategy `geographic`: a region's name "
        "or a country's code, such as `CF-IPCountry`. From anybody else it is not believed.",
        text,
    ),
    Variable(
        "LLM_PROXY_GEOIP_DATABASE",
        "geoip_database",
        LISTEN,
        None,
        "A file in MaxMind's format (GeoLite2 City or Country, DB-IP, …) that tells where a caller's address is, where "
        "neither the token nor a header does; read again when it is replaced.",
        Path,
    ),
    Variable(
        "LLM_PROXY_TRUSTED_PROXIES",
        "trusted_proxies",
        LISTEN,
        "127.0.0.1",
        "Addresses or networks, comma-separated, whose `X-Forwarded-For` and `-Proto` are believed.",
        networks,
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
)
