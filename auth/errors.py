"""The errors a caller can mend; `gateway/problems.py` alone gives them an HTTP shape."""

from __future__ import annotations


class Fault(Exception):
    """A refusal with three texts: `public` for the caller, `hint` how to mend it, `debug` for the operator's log.

    `code` is a stable snake_case word that clients may switch on. None of the texts ever holds a secret.
    """

    code = "fault"
    challenge = ""
    """The value of `WWW-Authenticate` (RFC 9110 section 11.6.1), where the status is 401 or a scope is missing."""

    def __init__(self, public: str, *, hint: str = "", debug: str = "") -> None:
        super().__init__(public)
        self.public = public
        self.hint = hint
        self.debug = debug


class NotAuthenticated(Fault):
    """No credentials, or credentials that do not verify (401)."""

    code = "not_authenticated"
    challenge = "Bearer"


class NotPermitted(Fault):
    """The caller is known and lacks a scope or a grant (403)."""

    code = "not_permitted"


class NotFound(Fault):
    """The thing does not exist for this caller (404); another tenant's thing does not exist either."""

    code = "not_found"


class Conflict(Fault):
    """The state forbids it: a name is taken, a reference is in use (409)."""

    code = "conflict"


class Stale(Fault):
    """If-Match names another version than the stored one (412)."""

    code = "precondition_failed"


class Invalid(Fault):
    """The request is understood and wrong (422); `errors` lists (JSON pointer, sentence)."""

    code = "invalid"

    def __init__(
        self, public: str, *, hint: str = "", debug: str = "", errors: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(public, hint=hint, debug=debug)
        self.errors = errors


class Unavailable(Fault):
    """A dependency (database, KMS) is away; trying again later may work (503)."""

    code = "unavailable"
