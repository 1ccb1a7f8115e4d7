"""Shredding: which deleted tenants' shares are to be destroyed, and which were.

Revision 0006: one table. Its rows outlive their tenants, so nothing refers to them.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table tenant_shredding (
      tenant_id uuid primary key,
      slug text not null,
      requested_at timestamptz not null,
      shared boolean not null,
      done_at timestamptz,
      attempts integer not null default 0,
      error text
    )
    """,
    "create index tenant_shredding_pending on tenant_shredding (requested_at) where done_at is null",
    "alter table tenant_shredding enable row level security",
    "alter table tenant_shredding force row level security",
    "create policy tenant_fence on tenant_shredding using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update on tenant_shredding to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; what is left to shred must be done before."""
    op.execute("drop table tenant_shredding")
