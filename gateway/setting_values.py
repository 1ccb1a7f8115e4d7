"""How the text of one environment variable becomes a value; each `ValueError` completes "NAME …"."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network
from urllib.parse import urlsplit

from auth.identity import Rule, make_rule
from auth.secret import Secret
from gateway.cores import usable_cores

SIGNING_ALGORITHMS = ("ES256", "RS256", "Ed25519")
"""`auth.keyset.ALGORITHMS`, spelled out: that module costs the command line 50 ms of cryptography."""


def text(value: str) -> str:
    """Take it as it is."""
    return value


def secret(value: str) -> Secret:
    """Hide it."""
    return Secret(value)


def one_of(*words: str) -> Callable[[str], str]:
    """Accept one of `words`, in any case."""

    def parse(value: str) -> str:
        if value.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value.lower()

    return parse


def flag(value: str) -> bool:
    """Read a yes or no."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value.lower() not in words:
        raise ValueError("must be true or false")
    return words[value.lower()]


def networks(value: str) -> str:
    """Accept addresses and networks with commas between; one that is neither would match nobody in silence."""
    for each in value.split(","):
        try:
            ip_network(each.strip())
        except ValueError:
            raise ValueError(
                f"must be addresses or networks with commas between, such as 127.0.0.1,10.0.0.0/8;"
                f" {each.strip()[:64]!r} is neither"
            ) from None
    return value


def region(value: str) -> str:
    """Accept the name of a region, as keys carry it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError("must be the name of a region, such as eu-west-1")
    return value


def whole(low: int, high: int) -> Callable[[str], int]:
    """Accept a whole number between `low` and `high`, both included."""

    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,15}", value) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def workers(value: str) -> int:
    """Read a number of processes; `auto`: as many as this process may use cores."""
    if value.lower() == "auto":
        return usable_cores()
    return whole(1, 256)(value)


def seconds(low: float, high: float) -> Callable[[str], float]:
    """Accept a number of seconds between `low` and `high`, both included."""

    def parse(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value) or not low <= float(value) <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def size(value: str) -> int:
    """Read a number of bytes, with k, M or G for powers of 1024; less than a KiB is a unit forgotten."""
    match = re.fullmatch(r"([0-9]{1,12})\s*(k|m|g)?i?b?", value.strip().lower())
    found = 0 if match is None else int(match.group(1)) << {None: 0, "k": 10, "m": 20, "g": 30}[match.group(2)]
    if found < 1024:
        raise ValueError("must be a size of 1KiB or more, such as 32MiB or 33554432")
    return found


def postgres_url(value: str) -> Secret:
    """Accept a libpq URL; it carries a password."""
    parts = urlsplit(value)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("must be a URL such as postgresql://user:password@host:5432/database")
    for host in parts.netloc.rpartition("@")[2].split(","):
        port = re.search(r":([^:\]]+)$", host)
        if port is not None and not port[1].isdecimal():  # not shown: it may be half a password
            raise ValueError("has a port that is no number: is the password percent-encoded (/ is %2F, # is %23)?")
    return Secret(value)


def http_url(value: str) -> str:
    """Accept a plain http(s) URL; a trailing slash is dropped."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("must be a plain http or https URL without user, query or fragment")
    return value.rstrip("/")


def issuer_url(value: str) -> str:
    """Accept an issuer exactly as written: a trailing slash is part of some providers' names."""
    http_url(value)
    return value


def oidc_scope(value: str) -> str:
    """Accept scopes with single spaces between, `openid` among them (OpenID Connect Core section 3.1.2.1)."""
    if (
        not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*", value)
        or "openid" not in value.split()
    ):
        raise ValueError("must be scopes with spaces between, openid among them")
    return value


def operator_rules(value: str) -> tuple[Rule, ...]:
    """Read `claim=value` rules, comma-separated."""
    rules = []
    for each in value.split(","):
        if not each.strip():
            continue
        claim, equals, wanted = each.strip().partition("=")
        if not equals:
            raise ValueError(f"needs claim=value instead of {each.strip()!r}")
        try:
            rules.append(make_rule(claim.strip(), wanted.strip()))
        except ValueError as error:
            raise ValueError(f"has {each.strip()!r}: a rule {error}") from None
    return tuple(rules)


def proxy_url(value: str) -> Secret:
    """Accept an http proxy URL; it may carry a password."""
    parts = urlsplit(value)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("must be a URL such as http://proxy.internal:3128")
    return Secret(value)


def signing_algorithms(value: str) -> tuple[str, ...]:
    """Read the names of signature algorithms, the default first."""
    names = tuple(name.strip() for name in value.split(","))
    if not set(names) <= set(SIGNING_ALGORITHMS) or len(set(names)) < len(names):
        raise ValueError(f"must hold some of {', '.join(SIGNING_ALGORITHMS)}, comma-separated, each once")
    return names


def kek(value: str) -> str:
    """Accept the places of the key-encryption keys, the one that wraps first."""
    for place in value.split(","):
        if not re.fullmatch(r"env|file:.+|(vault|vault\+http|awskms|gcpkms|azurekv)://.+", place.strip()):
            raise ValueError(
                "must be file:PATH, env, vault://host:8200/transit/key, awskms://region/key, "
                "gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/k or azurekv://vault/key"
            )
    return value


def kek_spare(value: str) -> str:
    """Accept the place of the break-glass key, or `none`."""
    if value == "none" or re.fullmatch(r"rsa:.+", value):
        return value
    if "," in value:
        raise ValueError("must name one place")
    return kek(value)


def kek_shares(value: str) -> str:
    """Accept the place of the tenants' shares."""
    if not re.fullmatch(r"file:.+|vault(\+http)?://.+", value):
        raise ValueError("must be file:DIR or vault://host:8200/mount/path")
    return value
