"""Budgets of tokens, added up over all processes.

Revision 0009: one table.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table token_budget (
      tenant_id uuid not null references tenant on delete cascade,
      bucket text not null,
      period text not null check (period in ('hour', 'day', 'month', 'total')),
      index bigint not null,
      nanos bigint not null,
      ends_at timestamptz,
      recorded_at timestamptz not null default clock_timestamp(),
      primary key (bucket, period)
    ) with (fillfactor = 70)
    """,
    "create index token_budget_recorded on token_budget (recorded_at)",
    "alter table token_budget enable row level security",
    "alter table token_budget force row level security",
    "create policy tenant_fence on token_budget using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update, delete on token_budget to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; every period begins anew."""
    op.execute("drop table token_budget")
