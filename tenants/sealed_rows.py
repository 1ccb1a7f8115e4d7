"""Everything that data keys seal, as one list of shelves: where the rows are and what each envelope is bound to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg

from auth.signing_keys import signing_context
from tenants.custody import key_context, source_context

BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Shelf:
    """One table of envelopes. `rows` selects id, tenant_id, data_key_id, blob and what `context` needs, by alias `s`.

    `first` is smaller than every id; `swap` replaces blob $2 of row $1 by data key $3 and blob $4 if it is still there.
    """

    name: str
    rows: str
    swap: str
    first: Any
    context: Callable[[asyncpg.Record], tuple[str, ...]]
    read_cursor: Callable[[str], Any]


SHELVES: Final = (
    Shelf(
        "keys",
        "select s.id, s.tenant_id, s.data_key_id, s.envelope as blob, s.number, k.id as key_id, k.pool_id, k.provider "
        "from key_version s join provider_key k on k.tenant_id = s.tenant_id and k.id = s.key_id "
        "where s.envelope is not null and s.id > $1",
        "update key_version set data_key_id = $3, envelope = $4 where id = $1 and envelope = $2",
        UUID(int=0),
        lambda row: key_context(row["pool_id"], row["key_id"], row["number"], row["provider"]),
        UUID,
    ),
    Shelf(
        "sources",
        "select s.id, s.tenant_id, s.data_key_id, s.sealed as blob, s.driver from key_source s "
        "where s.sealed is not null and s.id > $1",
        "update key_source set data_key_id = $3, sealed = $4 where id = $1 and sealed = $2",
        UUID(int=0),
        lambda row: source_context(row["id"], row["driver"]),
        UUID,
    ),
    Shelf(
        "signing_keys",
        "select s.kid as id, s.tenant_id, s.data_key_id, s.sealed as blob, s.alg from signing_key s where s.kid > $1",
        "update signing_key set data_key_id = $3, sealed = $4 where kid = $1 and sealed = $2",
        "",
        lambda row: signing_context(row["id"], row["alg"]),
        str,
    ),
)


def shelves_after(cursor: str) -> list[tuple[Shelf, object]]:
    """Return the shelves that are left, each with the id to go on after; `ValueError` for a malformed cursor."""
    if not cursor:
        return [(shelf, shelf.first) for shelf in SHELVES]
    name, _, identity = cursor.partition(":")
    names = [shelf.name for shelf in SHELVES]
    place = names.index(name)
    rest = [(shelf, shelf.first) for shelf in SHELVES[place + 1 :]]
    return [(SHELVES[place], SHELVES[place].read_cursor(identity)), *rest]


def page_query(shelf: Shelf, condition: str) -> str:
    """Return the query of the next batch of a shelf; `condition` narrows it."""
    key = "kid" if shelf.name == "signing_keys" else "id"
    return f"{shelf.rows}{condition} order by s.{key} limit {BATCH}"


async def count_rows(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], shelf: Shelf, condition: str, *arguments: object
) -> int:
    """Return how many rows of a shelf are left."""
    query = f"select count(*) from ({shelf.rows}{condition}) as sealed"  # noqa: S608 - made of this package's own text
    found: int = await connection.fetchval(query, *arguments)
    return found
