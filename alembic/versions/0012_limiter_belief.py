"""What was learned of limiters, over restarts.

Revision 0012: one table, a row a quota and model family.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table limiter_belief (
      tenant_id uuid not null references tenant on delete cascade,
      quota_id uuid not null references quota on delete cascade,
      family text not null,
      state jsonb not null,
      report jsonb not null,
      updated_at timestamptz not null default now(),
      primary key (quota_id, family)
    ) with (fillfactor = 70)
    """,
    "create index limiter_belief_tenant on limiter_belief (tenant_id)",
    "alter table limiter_belief enable row level security",
    "alter table limiter_belief force row level security",
    "create policy tenant_fence on limiter_belief using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update, delete on limiter_belief to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; limiters are learned anew after each start."""
    op.execute("drop table limiter_belief")
