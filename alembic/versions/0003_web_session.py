"""People: one-time sign-in links and the sessions that they become.

Revision 0003: one table.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table web_session (
      id uuid primary key,
      digest bytea not null unique,
      kind text not null check (kind in ('link', 'session')),
      tenant_id uuid not null references tenant on delete cascade,
      client_id text not null,
      lineage jsonb not null default '[]',
      subject text not null,
      scopes jsonb not null default '[]',
      created_at timestamptz not null,
      last_used_at timestamptz not null,
      expires_at timestamptz not null
    )
    """,
    "create index web_session_expiry on web_session (expires_at)",
    "create index web_session_owner on web_session (tenant_id, subject)",
    "alter table web_session enable row level security",
    "alter table web_session force row level security",
    "create policy tenant_fence on web_session using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update, delete on web_session to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; everybody signs in again."""
    op.execute("drop table web_session")
