"""DPoP proofs that were used, told between processes.

Revision 0011: one table. It holds digests of nobody in particular, so it is the platform's and no tenant's.
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

UP = (
    """
    create table used_proofs (
      id bigint generated always as identity primary key,
      process uuid not null,
      digests bytea not null,
      recorded_at timestamptz not null default clock_timestamp(),
      expires_at timestamptz not null
    )
    """,
    "create index used_proofs_recorded on used_proofs (recorded_at)",
    "alter table used_proofs enable row level security",
    "alter table used_proofs force row level security",
    """
    create policy platform_only on used_proofs
      using (coalesce(current_setting('app.scope', true), '') = 'platform')
      with check (coalesce(current_setting('app.scope', true), '') = 'platform')
    """,
    """
    create function announce_proofs() returns trigger language plpgsql as $$
    begin
      perform pg_notify('llm_proxy', json_build_object('table', tg_table_name, 'tenant_id', null)::text);
      return null;
    end $$
    """,
    "create trigger announce after insert on used_proofs for each statement execute function announce_proofs()",
    f"grant select, insert, delete on used_proofs to {APP_ROLE}",
)


def upgrade() -> None:
    """Add the table and its notices."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Remove them; a proof is good once in each process then."""
    op.execute("drop table used_proofs")
    op.execute("drop function announce_proofs()")
