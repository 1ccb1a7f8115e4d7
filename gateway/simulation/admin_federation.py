"""The token endpoints of workload identity federation: a JWT of a trusted issuer for a short-lived token.

    POST /oauth/token          OpenAI      RFC 8693, JSON       identity_provider_id, service_account_id
    POST /v1/oauth/token       Anthropic   RFC 7523, JSON       federation_rule_id, organization_id, service_account_id
    POST /api/v1/oauth/token   OpenRouter  RFC 8693, form       federation_policy_id

Errors are OAuth's (RFC 6749 section 5.2). Sources: each provider's reference of workload identity federation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.simulation.keysmith import AdminCall, Errand, Keysmith, Step, done, refused
from gateway.simulation.trust import Bearer
from gateway.simulation.wire import Reply

_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_BEARER_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_JWT = "urn:ietf:params:oauth:token-type:jwt"


def errand(call: AdminCall) -> Errand | None:
    """Say what a call wants, or None when it is not one of these."""
    match call.method, call.steps:
        case "POST", ["oauth", "token"]:
            return _exchange(call.document, ("identity_provider_id", "service_account_id"))
        case "POST", ["api", "v1", "oauth", "token"]:
            return _exchange(call.form, ("federation_policy_id",))
        case "POST", ["v1", "oauth", "token"]:
            document = call.document
            needs = ("federation_rule_id", "organization_id", "service_account_id")
            if "oidc-federation" not in call.headers.get("anthropic-beta", ""):
                return _refusal("unsupported_grant_type", "This grant needs its beta header.")
            return _read(document, {"grant_type": _BEARER_GRANT}, needs, document.get("assertion"))
    return None


def _exchange(given: Mapping[str, Any], needs: tuple[str, ...]) -> Errand:
    fixed = {"grant_type": _EXCHANGE, "subject_token_type": _JWT}
    return _read(given, fixed, needs, given.get("subject_token"))


def _read(given: Mapping[str, Any], fixed: Mapping[str, str], needs: tuple[str, ...], assertion: Any) -> Errand:
    wrong = [name for name, value in fixed.items() if given.get(name) != value]
    missing = [name for name in needs if not isinstance(given.get(name), str) or not given[name]]
    if wrong or missing or not isinstance(assertion, str):
        return _refusal("invalid_request", f"Missing or wrong: {', '.join([*wrong, *missing]) or 'the token'}.")
    return Errand(Step.EXCHANGE, _nobody, assertion=assertion)


def lend(smith: Keysmith, bearer: Bearer, lifetime_s: float) -> Reply:
    """Answer with a token for whom the assertion vouches, which ends no later than the assertion."""
    lifetime_s = min(lifetime_s, bearer.ends_in_s)
    token = smith.lend(bearer.subject, bearer.subject, lifetime_s)
    return done({"access_token": token, "token_type": "Bearer", "expires_in": int(lifetime_s)})


def _nobody(_: Keysmith) -> Reply:
    return refused(500, "nobody was vouched for")


def _refusal(error: str, description: str) -> Errand:
    reply = oauth_error(400, error, description)
    return Errand(Step.EXCHANGE, lambda _: reply, credential="")


def oauth_error(status: int, error: str, description: str) -> Reply:
    """Write an OAuth error."""
    reply = done({"error": error, "error_description": description})
    return Reply(reply.body, status=status)
