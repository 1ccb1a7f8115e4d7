"""Backups by the schema's owner: the fence's functions name their schema.

Revision 0016: three functions. `pg_dump` and `pg_restore` work with an empty search path, and the owner of fenced
tables may read them only through the fence: it names `app.scope` and asks as everybody does.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


_FUNCTIONS = (
    """
    create or replace function app_sees(row_tenant uuid) returns boolean language sql stable as $$
      select row_tenant = public.app_tenant() or coalesce(current_setting('app.scope', true), '') = 'platform'
    $$
    """,
    """
    create or replace function announce_change() returns trigger language plpgsql as $$
    declare
      changed uuid := case when tg_op = 'DELETE' then old.tenant_id else new.tenant_id end;
    begin
      update public.tenant set config_revision = nextval('public.config_revision_seq') where id = changed;
      perform pg_notify('llm_proxy', json_build_object('table', tg_table_name, 'tenant_id', changed)::text);
      return null;
    end $$
    """,
    """
    create or replace function announce_tenant() returns trigger language plpgsql as $$
    begin
      if tg_op = 'UPDATE' then
        new.config_revision := nextval('public.config_revision_seq');
      end if;
      perform pg_notify('llm_proxy', json_build_object('table', 'tenant', 'tenant_id', coalesce(new.id, old.id))::text);
      return coalesce(new, old);
    end $$
    """,
)


def upgrade() -> None:
    """Name the schema."""
    for function in _FUNCTIONS:
        op.execute(function)


def downgrade() -> None:
    """Leave it to the search path."""
    for function in _FUNCTIONS:
        op.execute(function.replace("public.", ""))
