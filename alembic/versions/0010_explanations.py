"""Explanations of requests, and where each attempt of a request went.

Revision 0010: one table; two columns of the usage rows, which older processes leave empty.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    "alter table usage_event add column regions text, add column residency text",
    """
    create table request_explanation (
      tenant_id uuid not null references tenant on delete cascade,
      request_id text not null,
      at timestamptz not null,
      pools jsonb not null,
      primary key (tenant_id, request_id)
    )
    """,
    "create index request_explanation_at on request_explanation (at)",
    "alter table request_explanation enable row level security",
    "alter table request_explanation force row level security",
    "create policy tenant_fence on request_explanation using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, delete on request_explanation to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table and the columns."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove them, with what they hold."""
    op.execute("drop table request_explanation")
    op.execute("alter table usage_event drop column regions, drop column residency")
