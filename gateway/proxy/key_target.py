"""One version of a key, ready to be sent with: where to, with which credential, and what answers say about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from auth.errors import Invalid
from gateway.proxy.channel import HeaderList
from gateway.proxy.screen import key_in
from gateway.upstream.message import header_lines
from gateway.upstream.providers import PROVIDERS, TOKEN_BETA, Target, resolve, with_token
from tenants.snapshot import KeySnapshot, PoolSnapshot, TenantSnapshot

if TYPE_CHECKING:
    from gateway.proxy.runtime import Workshop

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Face:
    """One key as a dialect sees it: `fixed` holds its credential as header lines.

    `paths` keeps the request targets of operations that always have the same.
    """

    target: Target
    fixed: bytes
    beta: bytes = b""
    """An `anthropic-beta` flag that the credential needs, beside those that the caller sends."""
    paths: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeyTarget:
    """One version of one key: where its requests go, and what answers say about it."""

    key_id: UUID
    version: int
    name: str
    provider: str
    region: str | None
    model_map: Mapping[str, str]
    faces: Mapping[str, Face]
    source_id: UUID | None
    """Where its token came from, None for a stored secret."""
    answer_lines: bytes
    """`x-llm-proxy-pool`, `-key`, `-provider`, `-region`: the same in every answer."""
    screened: bytes = field(repr=False)
    """The key as answers are searched for it, b"" for one that is not (see `screen`)."""


def build_target(tenant: TenantSnapshot, pool: PoolSnapshot, key: KeySnapshot, workshop: Workshop) -> KeyTarget | None:
    """Return what `key` of `pool` is reached by; None, and a line in the log, when nothing can be sent with it now."""
    faces: dict[str, Face] = {}
    secret = key.secret
    if key.source is not None:
        secret = None if workshop.tokens is None else workshop.tokens.secret(key.source.source_id)
        if secret is None:
            return None  # out of service until there is a token
    if secret is None:
        raise ValueError("a key has a secret or a source of tokens")
    provider = PROVIDERS.get(key.provider)
    for dialect in sorted(provider.dialects) if provider else ():
        target = _resolve(key, dialect, workshop)
        if target is None:
            continue
        beta = b""
        if key.source is not None:
            target, beta = with_token(target), TOKEN_BETA.get(key.source.settings.provider, b"")
        try:
            faces[dialect] = Face(target, target.credential_block(secret), beta)
        except ValueError as error:
            logger.error("key left out: %s", error, extra=_names(tenant, pool, key))
    if not faces:
        logger.error("key left out: it has no usable address or secret", extra=_names(tenant, pool, key))
        return None
    headers: HeaderList = [
        (b"x-llm-proxy-pool", pool.name.encode()),
        (b"x-llm-proxy-key", key.name.encode()),
        (b"x-llm-proxy-provider", key.provider.encode()),
    ]
    if key.region:
        headers.append((b"x-llm-proxy-region", key.region.encode("latin-1", "replace")))
    try:
        answer_lines = header_lines(headers)
    except ValueError as error:
        logger.error("key left out: %s", error, extra=_names(tenant, pool, key))
        return None
    return KeyTarget(
        key_id=key.key_id,
        version=key.version,
        name=key.name,
        provider=key.provider,
        region=key.region,
        model_map=dict(key.model_map),
        faces=faces,
        source_id=None if key.source is None else key.source.source_id,
        answer_lines=answer_lines,
        screened=next(key_in(face.fixed) for face in faces.values()),
    )


def _resolve(key: KeySnapshot, dialect: str, workshop: Workshop) -> Target | None:
    place = (key.provider, dialect, key.base_url, key.region)
    if place in workshop.resolved:
        return workshop.resolved[place]
    try:
        target = resolve(key.provider, dialect, base_url=key.base_url, region=key.region, policy=workshop.egress)
    except Invalid as error:
        logger.warning("a key's address is refused: %s", error.public, extra={"key": key.name, "dialect": dialect})
        target = None
    if len(workshop.resolved) > 50_000:
        workshop.resolved.clear()
    workshop.resolved[place] = target
    return target


def _names(tenant: TenantSnapshot, pool: PoolSnapshot, key: KeySnapshot) -> dict[str, str]:
    return {"tenant": tenant.slug, "pool": pool.name, "key": key.name}
