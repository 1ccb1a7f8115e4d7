"""What can be wrong with an inference request, each with its HTTP status, a stable code and how to mend it."""

from __future__ import annotations

from auth.errors import Fault


class RequestFault(Fault):
    """An answer that the gateway gives itself. `status` is HTTP's; `retry_after_s` tells when trying again may help.

    `may_be_outdated`: the tenant's configuration is the reason, so it is looked at again before anyone is told.
    """

    code = "invalid_request"
    status = 400
    may_be_outdated = False

    def __init__(self, public: str, *, hint: str = "", debug: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(public, hint=hint, debug=debug)
        self.retry_after_s = retry_after_s


class NoSuchPath(RequestFault):
    """The path is none that the gateway serves."""

    code = "unknown_path"
    status = 404


class WrongMethod(RequestFault):
    """The path is served with another method; `allow` names it."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, public: str, *, allow: str) -> None:
        super().__init__(public)
        self.allow = allow


class BadBody(RequestFault):
    """The body is not what the operation takes."""

    code = "invalid_body"


class BodyTooLarge(RequestFault):
    """The body exceeds the bound."""

    code = "request_too_large"
    status = 413


class BodyTooSlow(RequestFault):
    """The body did not arrive in time."""

    code = "request_timeout"
    status = 408


class WrongContentType(RequestFault):
    """The body's media type is none that the operation takes."""

    code = "unsupported_media_type"
    status = 415


class UnknownModel(RequestFault):
    """No pool that the caller may use serves the model."""

    code = "model_not_found"
    status = 404
    may_be_outdated = True


class UnknownPool(RequestFault):
    """The named pool does not exist for this caller."""

    code = "pool_not_found"
    status = 404
    may_be_outdated = True


class NoKeyInRegion(RequestFault):
    """Keys serve the model, none where tenant or caller allow it to be served."""

    code = "no_key_in_region"
    status = 404
    may_be_outdated = True


class Forbidden(RequestFault):
    """The token is valid and does not allow this."""

    code = "not_permitted"
    status = 403


class NoPoolReached(Forbidden):
    """The token is narrowed to pools that the tenant does not have."""

    may_be_outdated = True


class NoSuchDialect(BadBody):
    """The request names no model, and no key speaks its dialect."""

    may_be_outdated = True


class TenantSuspended(RequestFault):
    """The tenant was suspended by the operators."""

    code = "tenant_suspended"
    status = 403
    may_be_outdated = True


class NoCapacity(RequestFault):
    """Every key is at its limit for longer than the request may wait."""

    code = "rate_limit_exceeded"
    status = 429


class TokenLimitReached(RequestFault):
    """A rate or budget of the token refuses; with `retry_after_s` it opens again by itself."""

    code = "token_limit_reached"
    status = 429
    is_passing = False
    """Whether it is only not known yet what the other processes admit: the next exchange may tell that it fits."""


class NoUsableKey(RequestFault):
    """The pool has no key that could serve now."""

    code = "no_usable_key"
    status = 503
    may_be_outdated = True


class UpstreamFailed(RequestFault):
    """The provider could not be reached, or broke, and no other key saved the request."""

    code = "upstream_failed"
    status = 502


class UpstreamSlow(RequestFault):
    """The provider, or all waiting together, exceeded the deadline."""

    code = "upstream_timeout"
    status = 504


class NotLoaded(RequestFault):
    """The tenant's configuration cannot be read for now."""

    code = "temporarily_unavailable"
    status = 503


class Broken(RequestFault):
    """A fault of the gateway itself; the log has the rest under the request id."""

    code = "internal_error"
    status = 500
