"""People in a browser: one-time links, and the short sessions that they become.

Both are 256 random bits whose SHA-256 alone is stored. A link works once, for minutes; it is redeemed by a POST, so
that what previews links does not use it up. A session ends after half an hour without use, after eight hours at the
latest, and with the client that made its link: it stands on that client's token as an exchanged token would.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select
from uuid_utils.compat import uuid7

from auth.errors import NotFound
from auth.members import Role
from auth.models import WebSession
from auth.paging import Page, PageAsk, cut_page
from auth.principal import Principal
from auth.secret import Secret

LINK_S = 300
IDLE_S = 1800
SESSION_S = 8 * 3600
_TOUCH_S = 60
"""`last_used_at` is written at most this often."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session: `cookie` is its secret, shown to the browser once."""

    cookie: Secret
    caller: Principal


async def make_link(
    session: AsyncSession, maker: Principal, *, subject: str, scopes: frozenset[str], now: float
) -> tuple[Secret, datetime]:
    """Return a one-time secret that signs `subject` in with `scopes`, and when it ends."""
    secret = Secret(secrets.token_urlsafe(32))
    end = _moment(min(now + LINK_S, maker.expires_at))
    session.add(
        WebSession(
            id=uuid7(),
            digest=_digest(secret.reveal()),
            kind="link",
            tenant_id=maker.tenant_id,
            client_id=maker.client_id,
            lineage=[f"{maker.client_id}:{maker.token_id}", *maker.lineage],
            subject=subject,
            scopes=sorted(scopes),
            created_at=_moment(now),
            last_used_at=_moment(now),
            expires_at=end,
        )
    )
    await session.flush()
    return secret, end


async def redeem(session: AsyncSession, presented: str, *, now: float) -> Opened | None:
    """Turn a link into a session, once: of any number of racing callers one gets it. In a platform transaction."""
    taken = (
        await session.execute(
            sa.delete(WebSession)
            .where(
                col(WebSession.digest) == _digest(presented),
                col(WebSession.kind) == "link",
                col(WebSession.expires_at) > _moment(now),
            )
            .returning(WebSession)
        )
    ).scalar_one_or_none()
    if taken is None:
        return None
    return await _open(
        session,
        now,
        tenant_id=taken.tenant_id,
        client_id=taken.client_id,
        lineage=taken.lineage,
        subject=taken.subject,
        scopes=taken.scopes,
        # The link's moment: what was revoked before the person clicked stays revoked.
        created_at=taken.created_at,
    )


async def sign_in_as(session: AsyncSession, role: Role, subject: str, *, now: float) -> Opened:
    """Open a session for somebody whom the OpenID provider vouched for just now. In a platform transaction."""
    return await _open(
        session,
        now,
        tenant_id=role.tenant_id,
        client_id=role.client_id,
        lineage=list(role.lineage),
        subject=subject,
        scopes=sorted(role.scopes),
        created_at=_moment(now),
    )


async def _open(session: AsyncSession, now: float, **members: Any) -> Opened:
    cookie = Secret(secrets.token_urlsafe(32))
    opened = WebSession(
        id=uuid7(),
        digest=_digest(cookie.reveal()),
        kind="session",
        last_used_at=_moment(now),
        expires_at=_moment(now + SESSION_S),
        **members,
    )
    session.add(opened)
    await session.flush()
    return Opened(cookie, _caller(opened))


async def find(session: AsyncSession, cookie: str, *, now: float) -> Principal | None:
    """Return who a session's cookie stands for; revocation is the caller's check. In a platform transaction."""
    query = select(WebSession).where(
        col(WebSession.digest) == _digest(cookie),
        col(WebSession.kind) == "session",
        col(WebSession.expires_at) > _moment(now),
        col(WebSession.last_used_at) > _moment(now - IDLE_S),
    )
    row = (await session.execute(query)).scalar_one_or_none()
    if row is None:
        return None
    if now - row.last_used_at.timestamp() >= _TOUCH_S:
        row.last_used_at = _moment(now)
        await session.flush()
    return _caller(row)


async def end(session: AsyncSession, caller: Principal, *, everywhere: bool) -> None:
    """End the caller's session, or all sessions and links of that person in the tenant."""
    mine = col(WebSession.id) == UUID(caller.token_id.removeprefix("session:"))
    whole = sa.and_(col(WebSession.tenant_id) == caller.tenant_id, col(WebSession.subject) == caller.subject)
    await session.execute(sa.delete(WebSession).where(whole if everywhere else mine))


async def end_presented(session: AsyncSession, cookie: str) -> None:
    """End the session whose cookie a browser still has while it signs in anew. In a platform transaction."""
    await session.execute(sa.delete(WebSession).where(col(WebSession.digest) == _digest(cookie)))


async def list_sessions(session: AsyncSession, tenant_id: UUID, ask: PageAsk, *, now: float) -> Page[WebSession]:
    """Return one page of the tenant's live sessions and unused links, oldest first."""
    query = select(WebSession).where(
        col(WebSession.tenant_id) == tenant_id,
        col(WebSession.expires_at) > _moment(now),
        sa.or_(col(WebSession.kind) == "link", col(WebSession.last_used_at) > _moment(now - IDLE_S)),
    )
    if ask.after is not None:
        query = query.where(col(WebSession.id) > ask.after)
    rows = (await session.execute(query.order_by(col(WebSession.id)).limit(ask.fetch))).scalars().all()
    return cut_page(rows, ask, key=lambda row: row.id)


async def end_session(session: AsyncSession, tenant_id: UUID, session_id: UUID) -> WebSession:
    """End one of the tenant's sessions or links; `NotFound` for another tenant's too."""
    ended = (
        await session.execute(
            sa.delete(WebSession)
            .where(col(WebSession.tenant_id) == tenant_id, col(WebSession.id) == session_id)
            .returning(WebSession)
        )
    ).scalar_one_or_none()
    if ended is None:
        raise NotFound(
            f"There is no session {session_id} in this tenant.", hint="List the sessions with GET /api/v1/sessions."
        )
    return ended


async def purge_sessions(session: AsyncSession, *, now: datetime) -> int:
    """Forget what has ended; returns how many."""
    result = await session.execute(sa.delete(WebSession).where(col(WebSession.expires_at) < now))
    return int(getattr(result, "rowcount", 0))


def is_same_origin(headers: Mapping[str, str], origin: str) -> bool:
    """Tell whether a request that changes something was sent by a page of `origin` (CSRF).

    Browsers send `Sec-Fetch-Site` and `Origin` with every POST; pages of other sites can forge neither. A request that
    has neither comes from no browser that holds our cookie, and is refused too. `Origin: null` is what a page gives
    whose referrer policy hides it (Fetch, section 3.2): then `Sec-Fetch-Site` alone decides.
    """
    site, given = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site == "same-origin" and given in (None, "null", origin)
    return given == origin


def cookie_name(origin: str, kind: str = "session") -> str:
    """Return the cookie's name: `__Host-` ties it to this host, its root path and TLS (RFC 6265bis section 4.1.3).

    `kind` is `session`, or `attempt` while a person is at the OpenID provider.
    """
    return f"__Host-llm-proxy-{kind}" if origin.startswith("https://") else f"llm-proxy-{kind}"


def cookie_header(origin: str, value: str, *, max_age_s: int, kind: str = "session") -> str:
    """Return a Set-Cookie value; only on a loopback http address, where browsers demand it, without Secure.

    `Lax`: the person comes back from the OpenID provider, and from links, with a top-level navigation.
    """
    secure = "; Secure" if origin.startswith("https://") else ""
    return f"{cookie_name(origin, kind)}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{secure}"


def _caller(row: WebSession) -> Principal:
    return Principal(
        tenant_id=row.tenant_id,
        client_id=row.client_id,
        scopes=frozenset(row.scopes),
        token_id=f"session:{row.id}",
        expires_at=row.expires_at.timestamp(),
        subject=row.subject,
        lineage=tuple(row.lineage),
        issued_at=row.created_at.timestamp(),
    )


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _moment(unix: float) -> datetime:
    return datetime.fromtimestamp(unix, UTC)
