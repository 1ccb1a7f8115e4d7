"""Authlib's authorization server over our clients, keys and tokens: it dispatches grants and shapes answers.

The client is authenticated before (`client_authentication`, asynchronous and in the database); what runs inside Authlib
is synchronous, does no IO and never sees credentials: no second parser of them can disagree, no log of it can leak.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from authlib.oauth2.rfc6749 import AuthorizationServer
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload, OAuth2Request

from auth.client_authentication import AuthenticatedClient
from auth.client_metadata import GRANT_TYPES
from auth.details import Detail, latest_end, write_details
from auth.form import Form
from auth.grants.client_credentials import ClientCredentialsGrant
from auth.grants.token_exchange import TokenExchangeGrant
from auth.oauth_errors import InvalidRequestError, InvalidScopeError, OAuth2Error, UnsupportedGrant
from auth.principal import Principal
from auth.scopes import format_scope
from auth.signing_keys import SigningKeys
from auth.tokens import Grant, Verifier, mint

logging.getLogger("authlib").setLevel(logging.INFO)  # its DEBUG lines hold access tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of an OAuth endpoint: `body` is sent as JSON, or as it is when it is text."""

    status: int
    body: Mapping[str, Any] | str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Issuance:
    """What was issued, for the audit log and the metrics: never the token itself."""

    client: AuthenticatedClient
    grant_type: str
    token_id: str
    subject: str
    scopes: frozenset[str]
    expires_at: int


class GrantRequest(OAuth2Request):  # type: ignore[misc]
    """A token request whose client is authenticated.

    `confirmation` is what the token gets bound to, `held` what the caller proved to hold: the two differ when a
    certificate was shown that the client's registration does not bind tokens to.
    """

    def __init__(
        self,
        uri: str,
        form: Form,
        client: AuthenticatedClient,
        issuer: str,
        *,
        confirmation: Mapping[str, str],
        held: Mapping[str, str],
    ) -> None:
        super().__init__("POST", uri)
        self.payload = BasicOAuth2Payload(dict(form.values))
        self.form_data = form
        self.client = client
        self.issuer = issuer
        self.confirmation = confirmation
        self.held = held
        self.issued: Issuance | None = None


class GrantServer(AuthorizationServer):  # type: ignore[misc]
    """Runs the registered grants; one instance serves all requests, as a request carries all that is its own."""

    def __init__(
        self,
        keys: SigningKeys,
        verifier: Verifier,
        clock: Callable[[], float],
        *,
        audience: str,
        audiences: tuple[str, ...],
    ) -> None:
        super().__init__()
        self._keys = keys
        self._verifier = verifier
        self.now = clock
        self.audience = audience
        self.audiences = audiences
        self.register_grant(ClientCredentialsGrant)
        self.register_grant(TokenExchangeGrant)

    def respond(self, request: GrantRequest) -> Answer:
        """Answer a token request (RFC 6749 sections 5.1 and 5.2)."""
        grant_type = request.form_data.get("grant_type")
        error: OAuth2Error | None = None
        if grant_type is None:
            error = InvalidRequestError(description="The parameter grant_type is missing.")
        elif grant_type not in GRANT_TYPES:
            error = UnsupportedGrant(description=f"Choose from {', '.join(GRANT_TYPES)}.")
        if error is not None:
            return self.handle_response(*error())
        answer: Answer = self.create_token_response(request)
        return answer

    def verify(self, token: str, request: GrantRequest) -> Principal:
        """Verify a token that a grant was given; a bound one needs the proof that this request brought."""
        return self._verifier.verify(
            token,
            jkt=request.held.get("jkt", ""),
            x5t_s256=request.held.get("x5t#S256", ""),
        )

    def issue(
        self,
        request: GrantRequest,
        *,
        token_id: str,
        subject: str,
        scopes: frozenset[str],
        details: tuple[Detail, ...],
        audience: str | tuple[str, ...],
        lifetime_s: int,
        actors: tuple[str, ...] = (),
        lineage: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Mint an access token and return the answer's members; it ends with its details at the latest."""
        client, now = request.client, self.now()
        end = latest_end(details)
        if end is not None:
            lifetime_s = min(lifetime_s, end - int(now))
            if lifetime_s < 1:
                raise InvalidScopeError(description="The authorization_details have expired.")
        written = write_details(details)
        grant = Grant(
            issuer=request.issuer,
            audience=audience,
            tenant_id=client.tenant_id,
            client_id=client.client_id,
            subject=subject,
            scopes=scopes,
            lifetime_s=lifetime_s,
            details=tuple(written),
            actors=actors,
            lineage=lineage,
            confirmation=request.confirmation,
        )
        signer = self._keys.signer(client.metadata.get("access_token_signed_response_alg"))
        request.issued = Issuance(
            client, request.form_data.need("grant_type"), token_id, subject, scopes, int(now) + lifetime_s
        )
        body: dict[str, Any] = {
            "access_token": mint(signer, grant, now=now, token_id=token_id),
            "token_type": "DPoP" if "jkt" in request.confirmation else "Bearer",
            "expires_in": lifetime_s,
            "scope": format_scope(scopes),
        }
        if written:
            body["authorization_details"] = written
        return body

    # What Authlib asks of a framework:

    def query_client(self, client_id: str) -> None:
        """Never asked: clients are authenticated before."""
        raise NotImplementedError

    def authenticate_client(self, request: GrantRequest, *_: Any) -> AuthenticatedClient:
        """Return the client that was authenticated before."""
        client: AuthenticatedClient = request.client
        return client

    def create_oauth2_request(self, request: GrantRequest) -> GrantRequest:
        """Return the request, which has Authlib's form already."""
        return request

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> Answer:
        """Shape an answer."""
        return Answer(status, body, tuple(headers))

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Signals are not used."""
