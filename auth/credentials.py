"""Which credentials a request carries: exactly one mechanism, or none (RFC 6749 section 2.3)."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from urllib.parse import unquote_plus

from auth.assertions import read_unverified
from auth.form import Call, Form
from auth.oauth_errors import InvalidClient, InvalidRequestError
from auth.secret import Secret

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
MAX_CLIENT_ID_CHARS = 200


@dataclass(frozen=True, slots=True)
class SecretCredentials:
    """HTTP Basic or body parameters (RFC 6749 section 2.3.1)."""

    method: str
    client_id: str
    secret: Secret


@dataclass(frozen=True, slots=True)
class AssertionCredentials:
    """A signed JWT (RFC 7523 section 2.2); `client_id` is the parameter beside it, if any."""

    assertion: Secret
    client_id: str | None


@dataclass(frozen=True, slots=True)
class CertificateCredentials:
    """A TLS client certificate and the client it claims to be (RFC 8705 section 2)."""

    client_id: str


Credentials = SecretCredentials | AssertionCredentials | CertificateCredentials


def read_credentials(call: Call, form: Form) -> Credentials:
    """Return the credentials of a request; two are an invalid_request, none is an InvalidClient."""
    authorization = call.header("authorization")
    secret, assertion, kind = (
        form.secret("client_secret"),
        form.secret("client_assertion"),
        form.get("client_assertion_type"),
    )
    claimed = form.get("client_id")
    if sum((authorization is not None, secret is not None, assertion is not None or kind is not None)) > 1:
        raise InvalidRequestError(description="The request uses more than one way to authenticate the client.")
    if authorization is not None:
        return _basic(authorization, claimed)
    if assertion is not None or kind is not None:
        if assertion is None or kind != ASSERTION_TYPE:
            raise InvalidRequestError(description=f"client_assertion needs client_assertion_type {ASSERTION_TYPE}.")
        return AssertionCredentials(assertion, claimed)
    if claimed is None or len(claimed) > MAX_CLIENT_ID_CHARS:
        raise InvalidClient
    if secret is not None:
        return SecretCredentials("client_secret_post", claimed, secret)
    if call.certificate is not None:
        return CertificateCredentials(claimed)
    raise InvalidClient


def claimed_client(credentials: Credentials) -> str:
    """Return whom the credentials claim to be, before anything is checked: for counting failures, nothing else."""
    if isinstance(credentials, AssertionCredentials):
        token = read_unverified(credentials.assertion.reveal())
        return str(token.claims.get("sub", ""))[:MAX_CLIENT_ID_CHARS] if token else ""
    return credentials.client_id


def _basic(authorization: str, claimed: str | None) -> SecretCredentials:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise InvalidClient
    try:
        # Both halves are form-encoded before they are joined and base64-encoded (section 2.3.1 and Appendix B).
        pair = base64.b64decode(encoded.strip().encode("ascii"), validate=True).decode("utf-8")
        name, colon, secret = pair.partition(":")
        client_id, password = unquote_plus(name, errors="strict"), unquote_plus(secret, errors="strict")
    except (UnicodeError, binascii.Error):
        raise InvalidRequestError(description="The Basic credentials are not base64 of UTF-8 text.") from None
    if not colon or not client_id or not password or len(client_id) > MAX_CLIENT_ID_CHARS or "\x00" in client_id:
        raise InvalidClient
    if claimed is not None and claimed != client_id:
        raise InvalidRequestError(description="client_id in the body differs from the one in the Authorization header.")
    return SecretCredentials("client_secret_basic", client_id, Secret(password))
