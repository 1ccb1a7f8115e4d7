"""What an OpenID provider says about a person, and whom that makes them: claims, rules, roles. Pure.

A rule is `claim=value`. It holds when the claim is that string, or a list that has it; members of objects are named
with dots (`realm_access.roles=llm`). `email` counts only where the provider says that it verified it. Claims that
people change by themselves never make anybody anything.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from auth.errors import Fault

SKEW_S = 30.0
MAX_AGE_S = 600.0
"""An id_token is used at once after it was issued: an older one was kept by somebody."""

MAX_FACTS = 512
MAX_DEPTH = 3
UNTRUSTED = frozenset(
    {
        "name", "given_name", "family_name", "middle_name", "nickname", "preferred_username", "profile", "picture",
        "website", "gender", "birthdate", "zoneinfo", "locale", "address", "phone_number", "email_verified",
        "phone_number_verified", "updated_at",
        "iss", "aud", "azp", "exp", "iat", "nbf", "nonce", "jti", "sid", "acr", "amr", "at_hash", "c_hash", "auth_time",
    }
)  # fmt: skip
"""OpenID Connect Core section 5.1's self-asserted claims, and those of the token itself."""

_CLAIM = re.compile(r"[\x21-\x3c\x3e-\x7e]{1,200}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")


class SignInRefused(Fault):
    """The provider's answer does not sign anybody in; `public` is for the person, `debug` for the log and the trail."""

    code = "sign_in_refused"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who is meant: people whose `claim` is, or has, `value`."""

    claim: str
    value: str

    def __str__(self) -> str:
        return f"{self.claim}={self.value}"

    @property
    def name(self) -> str:
        """A client id for those whom the rule admits: sessions stand on it and end with the rule."""
        return "operator-" + hashlib.sha256(str(self).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody whom the provider at `issuer` vouches for; `facts` are what rules may name."""

    issuer: str
    subject: str
    facts: frozenset[tuple[str, str]]

    @property
    def email(self) -> str:
        """The verified address, "" without one."""
        return next((value for claim, value in self.facts if claim == "email"), "")

    @property
    def label(self) -> str:
        """What pages and audit call the person: the verified address, else the subject, which cannot pass for one."""
        return self.email if _LABEL.fullmatch(self.email) else f"sub:{self.subject}"

    def fits(self, rule: Rule) -> bool:
        """Tell whether `rule` means this person."""
        return (rule.claim, rule.value) in self.facts


def make_rule(claim: str, value: str) -> Rule:
    """Check and normalise a rule; `ValueError` completes "a rule …"."""
    if not _CLAIM.fullmatch(claim):
        raise ValueError("needs a claim of up to 200 visible ASCII characters")
    if not value or len(value) > 512 or not value.isprintable():
        raise ValueError("needs a value of up to 512 printable characters")
    if claim in UNTRUSTED:
        raise ValueError(f"cannot go by {claim}, which says nothing that the provider vouches for; use email or sub")
    if claim == "email":
        if value.count("@") != 1 or value.startswith("@") or value.endswith("@") or " " in value:
            raise ValueError("needs a whole e-mail address")
        return Rule(claim, value.lower())
    return Rule(claim, value)


def make_person(issuer: str, claims: Mapping[str, Any]) -> Person:
    """Collect what the verified `claims` say; whatever is beyond `MAX_FACTS` is not looked at."""
    facts: set[tuple[str, str]] = set()
    for claim, value in _walk("", claims, 0):
        if len(facts) >= MAX_FACTS:
            break
        if claim not in UNTRUSTED and claim != "email" and 0 < len(value) <= 512:
            facts.add((claim, value))
    email = claims.get("email")
    # Some providers write the flag as a string; anything else, its absence too, means that nobody checked.
    if isinstance(email, str) and 0 < len(email) <= 320 and claims.get("email_verified") in (True, "true"):
        facts.add(("email", email.lower()))
    return Person(issuer, str(claims.get("sub", "")), frozenset(facts))


def check_id_token(claims: Mapping[str, Any], *, issuer: str, client_id: str, nonce: str, now: float) -> str | None:
    """Return what is wrong with an id_token's claims, None if nothing is (OpenID Connect Core section 3.1.3.7)."""
    if claims.get("iss") != issuer:
        return "iss is another issuer"
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or client_id not in audiences:
        return "aud is another client"
    if claims.get("azp", client_id) != client_id or (len(audiences) > 1 and "azp" not in claims):
        return "azp is another client"
    expires, issued, not_before = claims.get("exp"), claims.get("iat"), claims.get("nbf", 0)
    for each in (expires, issued, not_before):
        if not isinstance(each, int | float) or isinstance(each, bool):
            return "exp and iat are required and must be numbers"
    if float(expires or 0) <= now - SKEW_S:
        return "exp has passed"
    if max(issued or 0, not_before) > now + SKEW_S or float(issued or 0) < now - MAX_AGE_S:
        return "iat is not the present time"
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
        return "nonce is not the one that this browser was sent with"
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 1 <= len(subject) <= 255 or not subject.isprintable():
        return "sub is required"
    return None


def safe_place(given: str) -> str:
    """Return `given` if it is a path on this very site, else "/me": no open redirect (CWE-601).

    Browsers take a backslash for a slash and drop control characters, so only plain paths pass.
    """
    plain = re.fullmatch(r"/(?![/\\])[A-Za-z0-9._~!$&'()*+,;=:@/%?-]{0,500}", given)
    return given if plain else "/me"


def _walk(prefix: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield prefix, value
    elif isinstance(value, list):
        yield from ((prefix, each) for each in _strings(value))
    elif isinstance(value, Mapping) and depth < MAX_DEPTH:
        for name, inner in value.items():
            yield from _walk(f"{prefix}.{name}" if prefix else str(name), inner, depth + 1)


def _strings(values: Iterable[Any]) -> Iterator[str]:
    return (each for each in values if isinstance(each, str))
