"""The client credentials grant (RFC 6749 section 4.4): a tenant's client gets a token for itself."""

from __future__ import annotations

from typing import Any

from authlib.consts import default_json_headers
from authlib.oauth2.rfc6749.grants import BaseGrant, TokenEndpointMixin

from auth.client_metadata import CLIENT_CREDENTIALS
from auth.grants import requested
from auth.oauth_errors import UnauthorizedClientError
from auth.tokens import new_token_id


class ClientCredentialsGrant(BaseGrant, TokenEndpointMixin):  # type: ignore[misc]
    """Issues an access token and never a refresh token (section 4.4.3).

    `scope` left out means every scope of the client; `authorization_details` narrow what the client holds (RFC 9396
    section 6); `resource` must be this gateway (RFC 8707). The subject is the client itself (RFC 9068 section 2.2).
    """

    GRANT_TYPE = CLIENT_CREDENTIALS

    def validate_token_request(self) -> None:
        """Check that the authenticated client may use this grant."""
        client = self.authenticate_token_endpoint_client()
        if not client.check_grant_type(self.GRANT_TYPE):
            raise UnauthorizedClientError(description="The client is not registered for client_credentials.")

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """Mint the token (section 5.1)."""
        client, form, token_id = self.request.client, self.request.form_data, new_token_id()
        body = self.server.issue(
            self.request,
            token_id=token_id,
            subject=client.client_id,
            scopes=requested.scopes(form, client.scopes, client.scopes),
            details=requested.details(form, client.details, token_id),
            audience=requested.audience(form, self.server.audiences, self.server.audience),
            lifetime_s=client.token_lifetime_s,
        )
        return 200, body, default_json_headers
