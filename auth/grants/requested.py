"""What a token request asks for, cut to what its source holds: scope, details, audience. Shared by every grant."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from auth.details import Detail, DetailsRefused, narrow, parse_details
from auth.form import Form
from auth.oauth_errors import InvalidDetails, InvalidScopeError, InvalidTarget, plain
from auth.scopes import format_scope, parse_scope


def scopes(form: Form, held: frozenset[str], default: frozenset[str]) -> frozenset[str]:
    """Return the scopes to grant: those requested, all within `held`, else `default` (RFC 6749 section 3.3)."""
    raw = form.get("scope")
    if raw is None:
        if not default:
            raise InvalidScopeError(description=f"Name the scope. Available: {format_scope(held)}.")
        return default
    asked = parse_scope(raw)
    if asked is None:
        raise InvalidScopeError(description="scope is malformed: names with single spaces between.")
    if beyond := asked - held:
        names = plain(" ".join(sorted(beyond)))[:200]
        raise InvalidScopeError(description=f"Not available here: {names}. Available: {format_scope(held)}.")
    return asked


def details(form: Form, held: Sequence[Detail], token_id: str) -> tuple[Detail, ...]:
    """Return the details of the token `token_id`: what is requested, within what is held (RFC 9396 section 6)."""
    raw = form.get("authorization_details")
    try:
        return narrow(held, () if raw is None else parse_details(raw), token_id)
    except DetailsRefused as error:
        raise InvalidDetails(description=plain(f"{error.public} {error.hint}")) from None


def audience(form: Form, served: Collection[str], default: str) -> str | tuple[str, ...]:
    """Return the token's `aud`: the requested resources, each of which must be this gateway (RFC 8707 section 2)."""
    asked = dict.fromkeys((*form.resources, *form.audiences))
    for each in asked:
        try:
            parts = urlsplit(each)
            absolute = bool(parts.scheme and parts.netloc)
        except ValueError:
            absolute, parts = False, urlsplit("")
        if not absolute or "#" in each:
            raise InvalidTarget(description="resource must be an absolute URI without a fragment.")
        if each.rstrip("/") not in {one.rstrip("/") for one in served}:
            raise InvalidTarget(description=f"This server issues tokens for {plain(default)} only.")
    found = tuple(dict.fromkeys(next(one for one in served if one.rstrip("/") == each.rstrip("/")) for each in asked))
    if not found:
        return default
    return found[0] if len(found) == 1 else found
