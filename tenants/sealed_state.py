"""What a data path process reads from Postgres, as one blob that only the key-encryption key opens.

With it a process can start and serve while Postgres is away. Provider keys in it stay in their own envelopes, data keys
stay wrapped; around them stands one more envelope, because what is not secret must not be changed either: whoever could
put a signing key of theirs in could make tokens.

    blob     = length of header (4, big-endian) ‖ header (JSON: scheme, key id, KEK, wrapped file key, time) ‖ envelope
    envelope = `tenants.envelope.seal` of the rows (MessagePack), bound to the issuer and the header
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from auth.principal import PLATFORM_TENANT_ID
from auth.revocations import Revocation
from auth.storage import Connections
from tenants.envelope import KEY_BYTES, Context, open_sealed, seal
from tenants.errors import SealBroken
from tenants.keyring import KeyWrapper, Wrapped
from tenants.snapshot import Row, SnapshotRows, by_tenant, read_rows

SCHEME: Final = "llm-proxy/state/1"
_LENGTH_BYTES: Final = 4
_MAX_HEADER_BYTES: Final = 64 * 1024
_IDS: Final = ("id", "tenant_id", "pool_id", "quota_id", "data_key_id")

_DATA_KEYS: Final = "select id, tenant_id, kek_uri, wrapped from data_key"
_SIGNING_KEYS: Final = (
    "select public_jwk::text as public_jwk from signing_key"
    " order by case state when 'active' then 0 when 'next' then 1 else 2 end, created_at desc"
)
_REVOCATIONS: Final = (
    "select jti, extract(epoch from revoked_at)::float8 as revoked_at,"
    " extract(epoch from expires_at)::float8 as expires_at from token_revocation where expires_at > now()"
)


@dataclass(frozen=True, slots=True)
class WrappedDataKey:
    """One tenant's data key as the database has it."""

    id: UUID
    tenant_id: UUID
    wrapped: Wrapped


@dataclass(frozen=True, slots=True)
class State:
    """Everything that serving needs, read at `taken_at` (Unix seconds); secrets in it are sealed."""

    taken_at: float
    rows: SnapshotRows
    data_keys: tuple[WrappedDataKey, ...]
    signing_keys: tuple[Mapping[str, Any], ...]
    """Public JWKs, the active ones first."""
    revocations: tuple[Revocation, ...]


async def read_state(connections: Connections, *, now: float) -> State:
    """Read the state of now, in one transaction."""
    async with connections.platform() as connection:
        rows = await read_rows(connection)
        data_keys = await connection.fetch(_DATA_KEYS)
        signing_keys = await connection.fetch(_SIGNING_KEYS)
        revocations = await connection.fetch(_REVOCATIONS)
    return State(
        taken_at=now,
        rows=rows,
        data_keys=tuple(map(_data_key, data_keys)),
        signing_keys=tuple(json.loads(row["public_jwk"]) for row in signing_keys),
        revocations=tuple(Revocation(row["jti"], row["revoked_at"], row["expires_at"]) for row in revocations),
    )


@dataclass(frozen=True, slots=True)
class FileKey:
    """The key of one process's blobs, and how it is stored in them."""

    id: UUID
    key: bytes
    wrapped: Wrapped


async def make_file_key(wrapper: KeyWrapper) -> FileKey:
    """Make a key and have the KEK wrap it; one key may seal many blobs, since each envelope derives its own."""
    key_id, key = uuid7(), os.urandom(KEY_BYTES)
    return FileKey(key_id, key, await wrapper.wrap(_wrap_context(key_id), key))


def seal_state(state: State, file_key: FileKey, issuer: str) -> bytes:
    """Return the blob of `state`; it opens for the same `issuer` only."""
    header = json.dumps(
        {
            "scheme": SCHEME,
            "key": str(file_key.id),
            "kek": file_key.wrapped.kek_uri,
            "wrapped": base64.b64encode(file_key.wrapped.blob).decode(),
            "taken_at": state.taken_at,
        }
    ).encode()
    envelope = seal(file_key.key, _context(file_key.id, issuer, header), msgspec.msgpack.encode(_plain(state)))
    return len(header).to_bytes(_LENGTH_BYTES, "big") + header + envelope


async def open_state(blob: bytes, wrapper: KeyWrapper, issuer: str) -> State:
    """Open what `seal_state` made.

    Raises `SealBroken` when anything of it was changed or it is another installation's, `KekUnavailable` or
    `KekDisabled` when the key-encryption key cannot be used.
    """
    size = int.from_bytes(blob[:_LENGTH_BYTES], "big")
    if not 0 < size <= _MAX_HEADER_BYTES:
        raise SealBroken("the state has no header")
    try:
        text = blob[_LENGTH_BYTES : _LENGTH_BYTES + size]
        header = json.loads(text)
        scheme, key_id, taken_at = header["scheme"], UUID(header["key"]), float(header["taken_at"])
        wrapped = Wrapped(str(header["kek"]), base64.b64decode(header["wrapped"], validate=True))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SealBroken(f"the state's header cannot be read: {error!r}") from None
    if scheme != SCHEME:
        raise SealBroken("the state was written by another release")
    key = await wrapper.unwrap(_wrap_context(key_id), wrapped)
    plain = open_sealed(key, _context(key_id, issuer, text), blob[_LENGTH_BYTES + size :])
    return _state(msgspec.msgpack.decode(plain), taken_at)


def _wrap_context(key_id: UUID) -> tuple[str, ...]:
    return ("state", str(key_id))


def _context(key_id: UUID, issuer: str, header: bytes) -> Context:
    return Context(key_id, PLATFORM_TENANT_ID, ("state", issuer, header.hex()))


def _plain(state: State) -> dict[str, Any]:
    rows = state.rows
    return {
        "tenants": _dictionaries([rows.tenants]),
        "pools": _dictionaries(rows.pools.values()),
        "quotas": _dictionaries(rows.quotas.values()),
        "keys": _dictionaries(rows.keys.values()),
        "data_keys": [
            {"id": each.id, "tenant_id": each.tenant_id, "kek_uri": each.wrapped.kek_uri, "wrapped": each.wrapped.blob}
            for each in state.data_keys
        ],
        "signing_keys": list(state.signing_keys),
        "revocations": [[each.key, each.revoked_at, each.expires_at] for each in state.revocations],
    }


def _state(plain: Mapping[str, Any], taken_at: float) -> State:
    return State(
        taken_at=taken_at,
        rows=SnapshotRows(
            tenants=[_typed(row) for row in plain["tenants"]],
            pools=by_tenant(map(_typed, plain["pools"])),
            quotas=by_tenant(map(_typed, plain["quotas"])),
            keys=by_tenant(map(_typed, plain["keys"])),
        ),
        data_keys=tuple(_data_key(_typed(row)) for row in plain["data_keys"]),
        signing_keys=tuple(plain["signing_keys"]),
        revocations=tuple(Revocation(*each) for each in plain["revocations"]),
    )


def _dictionaries(groups: Iterable[Iterable[Any]]) -> list[dict[str, Any]]:
    return [dict(row) for group in groups for row in group]


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    for name in _IDS:
        if name in row:
            row[name] = UUID(row[name])
    return row


def _data_key(row: Row) -> WrappedDataKey:
    return WrappedDataKey(row["id"], row["tenant_id"], Wrapped(row["kek_uri"], bytes(row["wrapped"])))
