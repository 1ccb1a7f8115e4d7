"""One request to an OAuth endpoint, read strictly from its raw body (RFC 6749 section 3.2 and Appendix B)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from auth.certificates import ClientCertificate
from auth.oauth_errors import InvalidRequestError, plain
from auth.secret import Secret

MAX_BODY_BYTES = 65_536
MAX_FIELDS = 64
REPEATABLE = frozenset({"resource", "audience"})
"""The parameters that may occur more than once (RFC 8707 section 2, RFC 8693 section 2.1)."""

_BODY_ONLY = frozenset(
    {
        "access_token",
        "assertion",
        "client_assertion",
        "client_id",
        "client_secret",
        "grant_type",
        "password",
        "refresh_token",
        "subject_token",
        "actor_token",
        "token",
    }
)


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request as its raw parts; `headers` have lower-case names, in order, repetitions kept.

    `path` is the path below the issuer. `address` is the caller's as trusted proxies tell it, "" when unknown.
    """

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    address: str = ""
    request_id: str = ""
    certificate: ClientCertificate | None = None

    def header(self, name: str) -> str | None:
        """Return the one value of a header, None if it is absent; `InvalidRequestError` if it is repeated."""
        values = [value for each, value in self.headers if each == name]
        if len(values) > 1:
            raise InvalidRequestError(description=f"The header {name} occurs more than once.")
        return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a request: empty ones are omitted ones; `resources` and `audiences` keep their repetitions."""

    values: Mapping[str, str] = field(repr=False)
    resources: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()

    def get(self, name: str) -> str | None:
        """Return a parameter, None when it is absent or empty."""
        return self.values.get(name)

    def need(self, name: str) -> str:
        """Return a parameter that the request cannot do without."""
        found = self.values.get(name)
        if found is None:
            raise InvalidRequestError(description=f"The parameter {name} is missing.")
        return found

    def secret(self, name: str) -> Secret | None:
        """Return a parameter that must not be printed."""
        found = self.values.get(name)
        return None if found is None else Secret(found)


def parse_form(call: Call) -> Form:
    """Read the parameters of `call`; every deviation is an `InvalidRequestError` that says what is wrong."""
    if call.method != "POST":
        raise InvalidRequestError(description="Use POST.", status_code=405)
    for name, _ in _fields(call.query, "query"):
        if name in _BODY_ONLY:
            raise InvalidRequestError(description=f"{name} belongs in the body, never in the URL, which servers log.")
    kind = (call.header("content-type") or "").split(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InvalidRequestError(description="Send the parameters as application/x-www-form-urlencoded.")
    if len(call.body) > MAX_BODY_BYTES:
        raise InvalidRequestError(description=f"The body is larger than {MAX_BODY_BYTES} bytes.", status_code=413)
    values: dict[str, str] = {}
    repeated: dict[str, list[str]] = {"resource": [], "audience": []}
    seen = set()
    for name, value in _fields(call.body, "body"):
        if name in REPEATABLE:
            if value:
                repeated[name].append(value)
            continue
        if name in seen:
            raise InvalidRequestError(description=f"The parameter {plain(name)[:60]} occurs more than once.")
        seen.add(name)
        if value:
            values[name] = value
    return Form(values, tuple(repeated["resource"]), tuple(repeated["audience"]))


def _fields(raw: bytes, where: str) -> list[tuple[str, str]]:
    try:
        text = raw.decode("utf-8")
        fields = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise InvalidRequestError(description=f"The {where} is not valid UTF-8.") from None
    except ValueError:
        raise InvalidRequestError(description=f"The {where} has more than {MAX_FIELDS} parameters.") from None
    if any("\x00" in name or "\x00" in value for name, value in fields):
        raise InvalidRequestError(description=f"The {where} contains a NUL character.")
    return fields
