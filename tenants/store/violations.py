"""Turns the database's constraint names into sentences."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

from sqlalchemy.exc import IntegrityError

from auth.errors import Conflict

SENTENCES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "tenant_slug_key": ("A tenant with this slug exists.", "Choose another slug."),
        "pool_tenant_id_name_key": ("A pool with this name exists.", "Choose another name, or change that pool."),
        "pool_one_default": ("Another pool is the default.", "Try again: someone changed the default just now."),
        "quota_tenant_id_name_key": ("A quota with this name exists.", "Choose another name, or change that quota."),
        "provider_key_pool_id_name_key": (
            "The pool has a key with this name.",
            "Choose another name; to replace that key's secret, rotate it.",
        ),
        "provider_key_tenant_id_pool_id_fkey": ("The pool does not exist any more.", "List the pools and try again."),
        "provider_key_tenant_id_quota_id_fkey": (
            "Keys draw on this quota, or it does not exist any more.",
            "Move the keys to another quota first, or choose a quota that exists.",
        ),
        "key_version_key_id_number_key": ("The key is being rotated by someone else.", "Read the key and try again."),
        "key_version_one_current": ("The key is being rotated by someone else.", "Read the key and try again."),
        "key_version_one_in_flight": (
            "A version of the key is being made.",
            "Wait until it is current or failed, or revoke that version to give it up.",
        ),
        "key_source_tenant_id_name_key": (
            "A source with this name exists.",
            "Choose another name, or delete the other first.",
        ),
        "pool_provisioning_source": (
            "A pool grows by this source.",
            "Give the pool another source, or end its provisioning, first.",
        ),
        "provider_key_source": (
            "Keys take their versions from this source, or it does not exist any more.",
            "Give the keys another source first.",
        ),
        "key_version_tenant_id_key_id_fkey": ("The key does not exist any more.", "List the keys and try again."),
        "key_version_tenant_id_data_key_id_fkey": ("The data key was replaced just now.", "Send the request again."),
    }
)


@asynccontextmanager
async def conflicts() -> AsyncIterator[None]:
    """Raise `Conflict` with a sentence for a known constraint; an unknown one is a defect and passes through."""
    try:
        yield
    except IntegrityError as error:
        constraint = str(getattr(getattr(error.orig, "__cause__", None), "constraint_name", None))
        if constraint not in SENTENCES:
            raise
        public, hint = SENTENCES[constraint]
        raise Conflict(public, hint=hint, debug=constraint) from error
