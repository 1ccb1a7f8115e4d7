"""The pages of signing in with an OpenID provider: plain HTML, no script, everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import quote, urlsplit

from auth.people_pages import document

_COMMAND = "<p>On the machine of the installation, <code>llm-proxy sign-in</code> prints a link that works once.</p>"


def sign_in_page(issuer: str | None, after: str) -> str:
    """Offer the provider at `issuer`; without one there are the command line's links alone."""
    if issuer is None:
        return document("Sign in", _COMMAND)
    return document("Sign in", f"<p>{_button(f'Sign in with {_host(issuer)}', '', after)}</p>{_COMMAND}")


def choose_page(slugs: Sequence[str], after: str) -> str:
    """Let somebody who belongs to several tenants choose; the provider, who knows them by now, asks nothing again."""
    buttons = "".join(f"<p>{_button(slug, slug, after)}</p>" for slug in slugs)
    return document("Where to?", f"<p>You belong to more than one tenant.</p>{buttons}")


def stranger_page(label: str, issuer: str, tenant: str) -> str:
    """Say that the person is known to the provider and to nobody here."""
    where = f" of the tenant {escape(tenant)}" if tenant else " here"
    return document(
        "You are not a member",
        f"<p>{escape(_host(issuer))} knows you as {escape(label)}, who is no member{where}.</p>"
        "<p>Ask whoever runs it to add you: POST /api/v1/members. An e-mail address counts once the provider has "
        "verified it.</p>",
    )


def failed_page(reason: str) -> str:
    """Say why nobody was signed in."""
    return document("Not signed in", f"<p>{escape(reason)}</p><p>{_button('Try again', '', '/me')}</p>")


def away_page() -> str:
    """Say that the provider is away."""
    return document("The sign-in provider does not answer", f"<p>Nobody was signed in. Try again later.</p>{_COMMAND}")


def slow_page(wait_s: int) -> str:
    """Ask for patience."""
    return document("Too many attempts", f"<p>Try again in {wait_s} s.</p>")


def signed_out_page(end_session: str | None, may_return: bool) -> str:
    """Say that the session is over, and offer to end the provider's own too."""
    more = ""
    if end_session is not None:
        link = f'<a rel="noreferrer" href="{escape(end_session)}">Sign out there too</a>'
        more += f"<p>{escape(_host(end_session))} may still know this browser. {link}.</p>"
    if may_return:
        more += f"<p>{_button('Sign in again', '', '/me')}</p>"
    return document("You are signed out", f"<p>This browser's session has ended.</p>{more}")


def _button(text: str, tenant: str, after: str) -> str:
    place = f"/sign-in/oidc?tenant={quote(tenant)}&after={quote(after)}"
    return f'<a class="button" href="{escape(place)}">{escape(text)}</a>'


def _host(url: str) -> str:
    return urlsplit(url).netloc
