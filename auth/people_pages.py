"""The pages of signing in: plain HTML, no script, everything escaped."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

from auth.principal import Principal

POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;margin:10vh auto;max-width:34rem;padding:0 1rem}"
    "button,.button{font:inherit;padding:.4rem 1rem}"
    ".button{display:inline-block;border:1px solid;border-radius:.3rem;color:inherit;text-decoration:none}"
    "dt{opacity:.7}dd{margin:0 0 .6rem}form{display:inline}"
)


def confirm_page(token: str) -> str:
    """Ask before a link is used: programs that preview links send GET, a person presses the button."""
    return document(
        "Sign in",
        "<p>This link signs this browser in, once.</p><p>Go on only if you have just asked for it yourself.</p>"
        f'<form method="post" action="/sign-in"><input type="hidden" name="token" value="{escape(token)}">'
        '<button type="submit">Sign in</button></form>',
    )


def refused_page() -> str:
    """Say that a link is no good, whatever the reason."""
    return document(
        "This link does not work",
        "<p>It was used before, or is older than five minutes. Make a new one: <code>llm-proxy sign-in</code>.</p>",
    )


def nobody_page() -> str:
    """Say how to sign in."""
    return document("You are not signed in", '<p><a class="button" href="/sign-in">Sign in</a></p>')


def foreign_page() -> str:
    """Refuse a form that another site sent."""
    return document("This form came from another site", "<p>Nothing was done. Open the page here and try again.</p>")


def me_page(caller: Principal) -> str:
    """Say who is signed in, as what, and until when."""
    until = datetime.fromtimestamp(caller.expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = (
        ("You are", caller.subject),
        ("Tenant", str(caller.tenant_id)),
        ("By client", caller.client_id),
        ("You may", ", ".join(sorted(caller.scopes))),
        ("Until", f"{until}, or half an hour without use"),
    )
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return document(
        "Signed in",
        f"<dl>{rows}</dl>"
        '<form method="post" action="/sign-out"><button type="submit">Sign out</button></form> '
        '<form method="post" action="/sign-out"><input type="hidden" name="everywhere" value="1">'
        '<button type="submit">Sign out everywhere</button></form>',
    )


def document(title: str, body: str) -> str:
    """Return a whole page; `body` is HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · LLM Proxy</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )
