"""Each version remembers whose its reference is: a key may get another source while versions of the former live.

Revision 0015: one column. What has a reference so far is the key's present source's.
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

UP = (
    """
    alter table key_version
      add column source_id uuid,
      add constraint key_version_source foreign key (tenant_id, source_id) references key_source (tenant_id, id)
        on delete set null (source_id)
    """,
    "create index key_version_source on key_version (source_id) where source_id is not null",
    "select set_config('app.scope', 'platform', true)",
    """
    update key_version v set source_id = k.source_id from provider_key k
    where k.tenant_id = v.tenant_id and k.id = v.key_id and k.source_id is not null and v.provider_ref is not null
    """,
    "select set_config('app.scope', '', true)",
)


def upgrade() -> None:
    """Add the column and fill it."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it."""
    op.execute("alter table key_version drop column source_id")
