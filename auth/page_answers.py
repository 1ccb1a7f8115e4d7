"""How the pages for people answer: HTML and redirects with the headers that keep them from being misused."""

from __future__ import annotations

from urllib.parse import urlsplit

from litestar import MediaType, Response
from litestar.datastructures import Cookie

from auth import people
from auth.deps import AuthServices
from auth.people_pages import POLICY

ATTEMPT = "attempt"


def origin_of(services: AuthServices) -> str:
    """Return the pages' own origin, from the configuration and never from the Host header."""
    parts = urlsplit(services.config.issuer)
    return f"{parts.scheme}://{parts.netloc}"


def page(text: str, *, status: int = 200, drop: Cookie | None = None) -> Response[str]:
    """Answer with a page; nobody may frame, keep or script it. `drop` is a cookie to end."""
    # With the API's no-referrer, browsers would send our own forms as `Origin: null`.
    headers = {"content-security-policy": POLICY, "cache-control": "no-store", "referrer-policy": "same-origin"}
    cookies = [] if drop is None else [drop]
    return Response(text, status_code=status, media_type=MediaType.HTML, headers=headers, cookies=cookies)


def see_other(place: str, cookie: str, *, drop: Cookie | None = None) -> Response[str]:
    """Send the browser on, with a Set-Cookie value; `place` is one of ours, or the configured provider's."""
    headers = {"location": place, "set-cookie": cookie, "cache-control": "no-store"}
    cookies = [] if drop is None else [drop]
    return Response("", status_code=303, media_type=MediaType.TEXT, headers=headers, cookies=cookies)


def ended_attempt(origin: str) -> Cookie:
    """Return the cookie that takes the attempt's away: it is good for one answer of the provider."""
    return Cookie(
        key=people.cookie_name(origin, ATTEMPT),
        value="",
        max_age=0,
        path="/",
        httponly=True,
        samesite="lax",
        secure=origin.startswith("https://"),
    )
