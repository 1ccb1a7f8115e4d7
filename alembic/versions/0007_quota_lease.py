"""Shares of quotas between processes.

Revision 0007: one unlogged table. Its rows change about once a second, mean nothing a minute later, and are put back
from memory after a crash; the log need not carry them. Half-filled pages keep the updates on their page.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create unlogged table quota_lease (
      tenant_id uuid not null,
      quota_id text not null,
      version bigint not null,
      state bytea not null,
      updated_at timestamptz not null default now(),
      primary key (tenant_id, quota_id)
    ) with (
      fillfactor = 50,
      autovacuum_vacuum_scale_factor = 0.02,
      autovacuum_vacuum_threshold = 500,
      autovacuum_vacuum_cost_delay = 0
    )
    """,
    "alter table quota_lease alter column state set storage main",
    "alter table quota_lease enable row level security",
    "alter table quota_lease force row level security",
    "create policy tenant_fence on quota_lease using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update, delete on quota_lease to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; every process takes the whole of each quota for its own again."""
    op.execute("drop table quota_lease")
