"""Rotation: where new keys come from, when they are due, and how far each one got; a spare wrap for data keys.

Revision 0002: columns and one table, nothing rewritten.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table key_source (
      id uuid primary key,
      tenant_id uuid not null references tenant on delete cascade,
      name text not null check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
      driver text not null,
      config jsonb not null default '{}',
      data_key_id uuid,
      sealed bytea,
      version integer not null default 1,
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now(),
      unique (tenant_id, name),
      unique (tenant_id, id),
      foreign key (tenant_id, data_key_id) references data_key (tenant_id, id)
    )
    """,
    """
    alter table provider_key
      add column source_id uuid,
      add column rotation jsonb not null default '{}',
      add column due_at timestamptz,
      add column failures integer not null default 0,
      add constraint provider_key_source foreign key (tenant_id, source_id) references key_source (tenant_id, id)
    """,
    """
    alter table key_version
      add column provider_ref text,
      add column step_at timestamptz,
      add column attempts integer not null default 0,
      add column successes integer not null default 0,
      add column error text
    """,
    "alter table data_key add column spare_uri text, add column spare_wrapped bytea",
    "create index provider_key_due on provider_key (due_at) where due_at is not null",
    "create index key_version_step on key_version (step_at) where step_at is not null",
    (
        "create unique index key_version_one_in_flight on key_version (key_id) "
        "where state in ('pending', 'created', 'probing')"
    ),
    "alter table key_source enable row level security",
    "alter table key_source force row level security",
    "create policy tenant_fence on key_source using (app_sees(tenant_id)) with check (app_sees(tenant_id))",
    f"grant select, insert, update, delete on key_source to {APP_ROLE}",
    # The engine's bookkeeping changes often and means nothing to a data path: only what is served is announced.
    "drop trigger announce on key_version",
    (
        "create trigger announce after insert or delete or update of state, envelope, data_key_id, number "
        "on key_version for each row execute function announce_change()"
    ),
    "drop trigger announce on provider_key",
    (
        "create trigger announce after insert or delete or update of pool_id, quota_id, name, provider, base_url, "
        "region, tier, weight, models, model_map, max_in_flight, enabled on provider_key "
        "for each row execute function announce_change()"
    ),
)

DOWN = (
    "drop trigger announce on provider_key",
    (
        "create trigger announce after insert or update or delete on provider_key "
        "for each row execute function announce_change()"
    ),
    "drop trigger announce on key_version",
    (
        "create trigger announce after insert or update or delete on key_version "
        "for each row execute function announce_change()"
    ),
    "drop index key_version_one_in_flight, key_version_step, provider_key_due",
    "alter table data_key drop column spare_uri, drop column spare_wrapped",
    (
        "alter table key_version drop column provider_ref, drop column step_at, drop column attempts, "
        "drop column successes, drop column error"
    ),
    "alter table provider_key drop column source_id, drop column rotation, drop column due_at, drop column failures",
    "drop table key_source",
)


def upgrade() -> None:
    """Add what rotation needs."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove it; the keys and their versions stay."""
    for statement in DOWN:
        op.execute(statement)
