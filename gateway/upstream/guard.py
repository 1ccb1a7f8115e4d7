"""Where tenants' base URLs may lead: pure checks of a URL and of the addresses behind its name (SSRF, CWE-918).

Two gates. `check_base_url` refuses on sight what no provider's URL looks like; `check_addresses` runs after every name
resolution, and the connection then goes to exactly the addresses it returned, so a name that changes its mind between
check and connect (DNS rebinding) gains nothing. Redirects are never followed, so there is no third place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from auth.errors import Invalid
from gateway.upstream.errors import AddressRefused
from gateway.upstream.message import Origin

MAX_URL = 512

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~:@!$'()*+,=-]+)*/?")
_QUERY = re.compile(r"api-version=[A-Za-z0-9.-]{1,32}")
_PRIVATE_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "home.arpa", "svc")

# Never, whatever the settings: link-local with the clouds' metadata services, this-network, multicast, reserved.
_FORBIDDEN = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.0/24", "224.0.0.0/4",
        "240.0.0.0/4", "::/128", "fe80::/10", "fec0::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::/32", "100::/64",
        "2001::/23", "2002::/16", "5f00::/16", "64:ff9b:1::/48", "3fff::/20",
    )
)  # fmt: skip
"""Source: IANA special-purpose address registries; metadata services of AWS, GCP, Azure, Alibaba. 6to4 and Teredo carry
an address of the sender's choice inside and are obsolete (RFC 7526)."""
_CREDENTIAL_SERVICES = frozenset(
    {"169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23"}
)
"""Instance metadata of AWS, Azure and GCP; container credentials of ECS; Pod Identity of EKS."""
_PRIVATE = tuple(
    ip_network(block)
    for block in (
        "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15",
        "192.0.2.0/24", "192.88.99.0/24", "198.51.100.0/24", "203.0.113.0/24", "::1/128", "fc00::/7", "2001:db8::/32",
    )
)  # fmt: skip
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")


class UnsafeUrl(Invalid):
    """A base URL that the gateway will not send requests to (422)."""

    code = "unsafe_base_url"


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """`allow_private` admits loopback and private networks, and plain http to them: development, or an operator whose
    tenants are its own staff and whose models run inside. Metadata services stay closed either way.

    `allow_metadata` admits the services that hand a workload its own cloud credentials: never for what tenants name,
    only for the operator's own key management.
    """

    allow_private: bool = False
    allow_metadata: bool = False


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """A base URL that passed: `path` without a trailing slash ("" at the root), `query` is `api-version=…` or ""."""

    origin: Origin
    path: str = ""
    query: str = ""


def _refuse(sentence: str, hint: str) -> UnsafeUrl:
    return UnsafeUrl(f"base_url {sentence}", hint=hint, errors=(("/base_url", sentence),))


def is_allowed(address: IPv4Address | IPv6Address, policy: EgressPolicy) -> bool:
    """Tell whether a connection may go to `address`; addresses inside addresses are judged by what they carry."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        embedded = address.ipv4_mapped
        if embedded is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)):
            embedded = IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_allowed(embedded, policy)
    if policy.allow_metadata and str(address) in _CREDENTIAL_SERVICES:
        return True
    if _inside(address, _FORBIDDEN):
        return False
    return policy.allow_private or not _inside(address, _PRIVATE)


def _inside(address: IPv4Address | IPv6Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def check_addresses(host: str, addresses: Iterable[str], policy: EgressPolicy) -> tuple[str, ...]:
    """Return `addresses` when every one may be connected to; AddressRefused otherwise, or when there is none.

    One bad address refuses the name as a whole: a public name that also points inside is an attack or a mistake.
    """
    checked = tuple(dict.fromkeys(addresses))
    if not checked:
        raise AddressRefused(f"{host} has no address")
    for text in checked:
        try:
            allowed = is_allowed(ip_address(text), policy)
        except ValueError:
            allowed = False
        if not allowed:
            raise AddressRefused(f"{host} leads to an address that base URLs must not reach")
    return checked


def check_base_url(url: str, policy: EgressPolicy) -> BaseUrl:
    """Take a base URL apart, or raise UnsafeUrl with the reason and the mend."""
    if (
        len(url) > MAX_URL
        or not url.isascii()
        or not url.isprintable()
        or any(char in url for char in " \\\"'<>^`{|}#")
    ):
        raise _refuse(
            "holds characters that no provider's URL needs",
            "Write it as https://host/path in plain ASCII, up to 512 characters; internationalised names in xn-- form.",
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise _refuse("is not a URL", "Write it as https://host/path.") from exc
    if parts.scheme not in {"https", "http"} or not parts.netloc:
        raise _refuse("is not an https URL", "Write it as https://host/path.")
    if parts.scheme == "http" and not policy.allow_private:
        raise _refuse("is not an https URL", "Keys travel over TLS only; plain http is for development settings.")
    if "%" in parts.netloc:
        raise _refuse("has an escape or a zone in its host", "Write the host name plainly.")
    if "@" in parts.netloc:
        raise _refuse("holds user information", "Leave out user:password@; give the key in its own field.")
    if port == 0 or parts.netloc.endswith(":"):
        raise _refuse("has no usable port", "Leave the port out or give one from 1 to 65535.")
    host = _check_host((parts.hostname or "").removesuffix("."), policy, bracketed=parts.netloc.startswith("["))
    if not _PATH.fullmatch(parts.path) or any(segment in {".", ".."} for segment in parts.path.split("/")):
        raise _refuse(
            "has a path with empty, dot or escaped segments", "Give the plain path that comes before /chat/completions."
        )
    if (parts.query and not _QUERY.fullmatch(parts.query)) or url.endswith("?"):
        raise _refuse("has a query", "Only ?api-version=… (Azure OpenAI) may follow the path.")
    origin = Origin(parts.scheme, host, port or (443 if parts.scheme == "https" else 80))
    return BaseUrl(origin, parts.path.rstrip("/"), parts.query)


def _check_host(host: str, policy: EgressPolicy, *, bracketed: bool) -> str:
    labels = host.split(".")
    if bracketed or _NUMBER.fullmatch(labels[-1]):
        # The WHATWG rule: a host that ends in a number is an address, in whatever base and with however many parts the
        # C library accepts (2130706433, 0x7f.1, 0177.0.0.1). Only the canonical spelling is taken.
        try:
            address = ip_address(host)
        except ValueError as exc:
            raise _refuse("spells an address in an unusual way", "Use a host name, or four decimal numbers.") from exc
        if not is_allowed(address, policy):
            raise _refuse("leads to a private or reserved address", "Base URLs must be reachable on the internet.")
        return str(address)
    if not host or len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refuse("has no valid host name", "Write it as https://host/path.")
    private = len(labels) == 1 or any(host == name or host.endswith("." + name) for name in _PRIVATE_NAMES)
    if private and not policy.allow_private:
        raise _refuse("names a private host", "Base URLs must be reachable on the internet under a full host name.")
    return host
