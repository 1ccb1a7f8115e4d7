"""Pools that grow and shrink by themselves: what was asked for, and since when a pool has been busy or idle.

Revision 0014: one table, two columns.
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table pool_provisioning (
      pool_id uuid primary key,
      tenant_id uuid not null references tenant on delete cascade,
      source_id uuid not null,
      settings jsonb not null,
      look_at timestamptz not null,
      busy_since timestamptz,
      idle_since timestamptz,
      changed_at timestamptz,
      failures integer not null default 0,
      error text,
      version integer not null default 1,
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now(),
      foreign key (tenant_id, pool_id) references pool (tenant_id, id) on delete cascade,
      constraint pool_provisioning_source foreign key (tenant_id, source_id) references key_source (tenant_id, id)
    )
    """,
    "create index pool_provisioning_look on pool_provisioning (look_at)",
    """
    alter table provider_key
      add column provisioned boolean not null default false,
      add column retiring_at timestamptz
    """,
    "alter table pool_provisioning enable row level security",
    "alter table pool_provisioning force row level security",
    "create policy tenant_fence on pool_provisioning using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update, delete on pool_provisioning to {APP_ROLE}",
)


def upgrade() -> None:
    """Add what provisioning needs."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; the keys that were made stay."""
    op.execute("alter table provider_key drop column provisioned, drop column retiring_at")
    op.execute("drop table pool_provisioning")
