"""Members: who signs in to a tenant by OpenID Connect.

Revision 0005: one table.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table member (
      id uuid primary key,
      tenant_id uuid not null references tenant on delete cascade,
      issuer text not null,
      claim text not null,
      value text not null,
      scopes jsonb not null default '[]',
      created_at timestamptz not null default now(),
      unique (tenant_id, issuer, claim, value)
    )
    """,
    "create index member_fact on member (issuer, claim, value)",
    "alter table member enable row level security",
    "alter table member force row level security",
    "create policy tenant_fence on member using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update, delete on member to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; members can no longer sign in."""
    op.execute("drop table member")
