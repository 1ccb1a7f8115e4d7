"""Rates of tokens, told between processes.

Revision 0013: one table. Its rows live for a minute and mix all tenants' buckets, so it is the platform's.
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table token_rate_use (
      id bigint generated always as identity primary key,
      process uuid not null,
      uses bytea not null,
      recorded_at timestamptz not null default clock_timestamp()
    )
    """,
    "create index token_rate_use_recorded on token_rate_use (recorded_at)",
    "alter table token_rate_use enable row level security",
    "alter table token_rate_use force row level security",
    """
    create policy platform_only on token_rate_use
      using (coalesce(current_setting('app.scope', true), '') = 'platform')
      with check (coalesce(current_setting('app.scope', true), '') = 'platform')
    """,
    f"grant select, insert, delete on token_rate_use to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; each process counts for itself then."""
    op.execute("drop table token_rate_use")
