"""Drains that end with their last request: which processes serve, and what they still have under way on an old secret.

Revision 0004: two tables.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"
PLATFORM = "00000000-0000-0000-0000-000000000000"

UP = (
    # Processes are nobody's: the fence lets the platform's transactions through and no tenant's.
    """
    create table serving_process (
      id uuid primary key,
      started_at timestamptz not null default now(),
      seen_at timestamptz not null default now()
    )
    """,
    """
    create table drain_report (
      process_id uuid not null references serving_process on delete cascade,
      version_id uuid not null references key_version on delete cascade,
      tenant_id uuid not null references tenant on delete cascade,
      since timestamptz not null,
      in_flight integer not null check (in_flight >= 0),
      primary key (process_id, version_id)
    )
    """,
    "create index drain_report_version on drain_report (version_id)",
    "create index key_version_draining on key_version (tenant_id) where state = 'draining'",
    "alter table serving_process enable row level security",
    "alter table serving_process force row level security",
    (
        f"create policy platform_fence on serving_process using (app_sees('{PLATFORM}')) "
        f"with check (app_sees('{PLATFORM}'))"
    ),
    "alter table drain_report enable row level security",
    "alter table drain_report force row level security",
    "create policy tenant_fence on drain_report using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update, delete on serving_process, drain_report to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the tables."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove them; drains last until their deadline again."""
    op.execute("drop index key_version_draining")
    op.execute("drop table drain_report, serving_process")
