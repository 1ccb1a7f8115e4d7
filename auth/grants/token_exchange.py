"""Token exchange (RFC 8693): a client trades a token for a narrower one, to hand it to its own apps and customers.

The new token lies within the old one in scope, details and lifetime, never leaves the tenant, names the exchanging
client in `act`, and is refused as soon as a token that it came from is revoked. Chains end at `MAX_CHAIN` links.
"""

from __future__ import annotations

import re
from typing import Any

from authlib.consts import default_json_headers
from authlib.oauth2.rfc6749.grants import BaseGrant, TokenEndpointMixin

from auth.client_metadata import TOKEN_EXCHANGE
from auth.details import read_details
from auth.form import Form
from auth.grants import requested
from auth.oauth_errors import InvalidRequestError, UnauthorizedClientError, plain
from auth.principal import Principal
from auth.scopes import INFERENCE, TOKENS_ISSUE
from auth.tokens import TokenRefused, new_token_id

ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a registered name, no secret
JWT_TYPE = "urn:ietf:params:oauth:token-type:jwt"
MAX_CHAIN = 4
MAX_SUBJECT_CHARS = 512

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")


class TokenExchangeGrant(BaseGrant, TokenEndpointMixin):  # type: ignore[misc]
    """Issues a token that can do a part of what `subject_token` can.

    `scope` left out means `inference` alone. `requested_subject` names whom the token is for: it is appended to the
    subject, so that usage can be told apart by customer and no label can pass for another subject.
    """

    GRANT_TYPE = TOKEN_EXCHANGE

    def validate_token_request(self) -> None:
        """Check that the client may hand out tokens: the grant type and the scope `tokens:issue`."""
        client = self.authenticate_token_endpoint_client()
        if not client.check_grant_type(self.GRANT_TYPE) or TOKENS_ISSUE not in client.scopes:
            raise UnauthorizedClientError(
                description=f"The client needs the token-exchange grant type and the scope {TOKENS_ISSUE}."
            )
        kind = self.request.form_data.get("requested_token_type")
        if kind not in {None, ACCESS_TOKEN_TYPE, JWT_TYPE}:
            raise InvalidRequestError(description=f"requested_token_type must be {ACCESS_TOKEN_TYPE}.")

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """Mint the narrower token (RFC 8693 section 2.2)."""
        form: Form = self.request.form_data
        client = self.request.client
        source = self._token(form, "subject_token")
        if source is None:
            raise InvalidRequestError(description="The parameter subject_token is missing.")
        actor = self._token(form, "actor_token")
        if actor is not None and actor.client_id != client.client_id:
            raise InvalidRequestError(description="The actor token must be one of the client itself.")
        if len(source.actors) >= MAX_CHAIN:
            raise InvalidRequestError(description=f"The subject token was exchanged {MAX_CHAIN} times already.")
        remaining_s = int(source.expires_at - self.server.now())
        if remaining_s < 1:
            raise InvalidRequestError(description="The subject token has expired.")
        token_id = new_token_id()
        body = self.server.issue(
            self.request,
            token_id=token_id,
            subject=self._subject(form, source),
            scopes=requested.scopes(form, source.scopes, source.scopes & {INFERENCE}),
            details=requested.details(form, read_details(source.details), token_id),
            audience=requested.audience(form, self.server.audiences, self.server.audience),
            lifetime_s=min(remaining_s, client.token_lifetime_s),
            actors=(actor.subject if actor else client.client_id, *source.actors),
            lineage=(f"{source.client_id}:{source.token_id}", *source.lineage),
        )
        return 200, {**body, "issued_token_type": ACCESS_TOKEN_TYPE}, default_json_headers

    def _token(self, form: Form, name: str) -> Principal | None:
        """Verify a token parameter; its type is required with it and forbidden without it (section 2.1)."""
        token, kind = form.get(name), form.get(f"{name}_type")
        if token is None:
            if kind is not None:
                raise InvalidRequestError(description=f"{name}_type comes without {name}.")
            return None
        if kind not in {ACCESS_TOKEN_TYPE, JWT_TYPE}:
            raise InvalidRequestError(description=f"{name}_type must be {ACCESS_TOKEN_TYPE}.")
        try:
            found: Principal = self.server.verify(token, self.request)
        except TokenRefused as error:
            raise InvalidRequestError(description=plain(f"{name}: {error.public}")) from None
        if found.tenant_id != self.request.client.tenant_id:
            raise InvalidRequestError(description=f"{name}: The access token is not one of this tenant.")
        return found

    @staticmethod
    def _subject(form: Form, source: Principal) -> str:
        label = form.get("requested_subject")
        if label is None:
            return source.subject
        if not _LABEL.fullmatch(label) or len(source.subject) + len(label) >= MAX_SUBJECT_CHARS:
            raise InvalidRequestError(description="requested_subject needs 1 to 128 of letters, digits and ._:@-")
        return f"{source.subject}/{label}"
