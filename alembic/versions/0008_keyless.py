"""Keys without a secret: a data path is told when a key's source changes. And each version's alert is raised once.

Revision 0008: a trigger's columns, one column.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_WATCHED = (
    "pool_id, quota_id, name, provider, base_url, region, tier, weight, models, model_map, max_in_flight, enabled"
)


def _announce(columns: str) -> None:
    op.execute("drop trigger announce on provider_key")
    op.execute(
        f"create trigger announce after insert or delete or update of {columns} on provider_key "
        "for each row execute function announce_change()"
    )


def upgrade() -> None:
    """Watch the source too."""
    _announce(f"{_WATCHED}, source_id")
    op.execute("alter table key_version add column alerted_at timestamptz")


def downgrade() -> None:
    """Watch what was watched before."""
    op.execute("alter table key_version drop column alerted_at")
    _announce(_WATCHED)
