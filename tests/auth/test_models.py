"""The models say what the migrated tables are."""

from __future__ import annotations

from sqlalchemy import Connection, inspect
from sqlmodel import SQLModel

from auth import models
from gateway.control.orm import OrmSessions

MODELS: list[type[SQLModel]] = [
    models.OAuthClient,
    models.ClientSecret,
    models.SigningKey,
    models.TokenRevocation,
    models.SeenProof,
    models.ApiToken,
    models.WebSession,
    models.Member,
]


async def test_columns_match_the_migration(sessions: OrmSessions) -> None:
    tables = [SQLModel.metadata.tables[str(model.__tablename__)] for model in MODELS]

    def columns(connection: Connection) -> dict[str, dict[str, tuple[str, bool]]]:
        found = inspect(connection)
        return {
            table.name: {
                column["name"]: (_family(column["type"]), column["nullable"])
                for column in found.get_columns(table.name)
            }
            for table in tables
        }

    async with sessions.engine.connect() as connection:
        stored = await connection.run_sync(columns)
    for table in tables:
        declared = {column.name: (_family(column.type), bool(column.nullable)) for column in table.columns}
        assert declared == stored[table.name]


def _family(kind: object) -> str:
    name = type(kind).__name__.lower()
    return {
        "text": "string",
        "varchar": "string",
        "autostring": "string",
        "largebinary": "bytea",
        "datetime": "timestamp",
        "biginteger": "bigint",
    }.get(name, name)
