"""Tenants, custody, clients, tokens, audit and usage, with row-level security.

Revision 0001: the schema from empty.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APP_ROLE = "llm_proxy_app"

CONTEXT = """
create function app_tenant() returns uuid language sql stable
  as $$ select nullif(current_setting('app.tenant_id', true), '')::uuid $$;
create function app_sees(row_tenant uuid) returns boolean language sql stable
  as $$ select row_tenant = app_tenant() or coalesce(current_setting('app.scope', true), '') = 'platform' $$;
create sequence config_revision_seq;
"""

TENANTS = """
create table tenant (
  id uuid primary key,
  slug text not null unique check (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  name text not null,
  status text not null default 'active' check (status in ('active', 'suspended')),
  settings jsonb not null default '{}',
  version integer not null default 1,
  config_revision bigint not null default nextval('config_revision_seq'),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create table data_key (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  version integer not null check (version > 0),
  kek_uri text not null,
  wrapped bytea not null,
  state text not null default 'active' check (state in ('active', 'retired')),
  created_at timestamptz not null default now(),
  unique (tenant_id, version),
  unique (tenant_id, id)
);
create unique index data_key_one_active on data_key (tenant_id) where state = 'active';
create table pool (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  name text not null check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
  strategy text not null,
  is_default boolean not null default false,
  settings jsonb not null default '{}',
  version integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (tenant_id, name),
  unique (tenant_id, id)
);
create unique index pool_one_default on pool (tenant_id) where is_default;
create table quota (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  name text not null,
  provider text not null,
  limits jsonb not null default '{}',
  version integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (tenant_id, name),
  unique (tenant_id, id)
);
create table provider_key (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  pool_id uuid not null,
  quota_id uuid not null,
  name text not null check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
  provider text not null,
  base_url text,
  region text,
  tier integer not null default 0 check (tier between 0 and 9),
  weight integer not null default 1 check (weight between 0 and 10000),
  models jsonb not null default '[]',
  model_map jsonb not null default '{}',
  max_in_flight integer check (max_in_flight > 0),
  enabled boolean not null default true,
  version integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (pool_id, name),
  unique (tenant_id, id),
  foreign key (tenant_id, pool_id) references pool (tenant_id, id) on delete cascade,
  foreign key (tenant_id, quota_id) references quota (tenant_id, id)
);
create index provider_key_quota on provider_key (quota_id);
create table key_version (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  key_id uuid not null,
  number integer not null check (number > 0),
  state text not null check (state in ('pending', 'created', 'probing', 'current', 'draining', 'disabled', 'revoked',
                                       'failed', 'orphaned')),
  data_key_id uuid,
  envelope bytea,
  prefix text not null default '',
  fingerprint text not null default '',
  created_at timestamptz not null default now(),
  state_changed_at timestamptz not null default now(),
  unique (key_id, number),
  foreign key (tenant_id, key_id) references provider_key (tenant_id, id) on delete cascade,
  foreign key (tenant_id, data_key_id) references data_key (tenant_id, id)
);
create unique index key_version_one_current on key_version (key_id) where state = 'current';
create index key_version_data_key on key_version (data_key_id);
create table idempotency_key (
  tenant_id uuid not null references tenant on delete cascade,
  key text not null,
  request_hash bytea not null,
  status integer,
  response jsonb,
  created_at timestamptz not null default now(),
  primary key (tenant_id, key)
);
"""

AUTH = """
create table oauth_client (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  client_id text not null unique,
  name text not null,
  auth_method text not null default 'client_secret_basic',
  grant_types jsonb not null default '["client_credentials"]',
  scopes jsonb not null default '[]',
  authorization_details jsonb not null default '[]',
  metadata jsonb not null default '{}',
  token_lifetime_s integer not null default 3600 check (token_lifetime_s between 60 and 86400),
  status text not null default 'active' check (status in ('active', 'disabled')),
  version integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (tenant_id, id)
);
create table client_secret (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  client_pk uuid not null,
  mac bytea not null,
  pepper_version integer not null,
  prefix text not null,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  last_used_at timestamptz,
  foreign key (tenant_id, client_pk) references oauth_client (tenant_id, id) on delete cascade
);
create index client_secret_client on client_secret (client_pk);
create table signing_key (
  kid text primary key,
  tenant_id uuid not null references tenant on delete cascade,
  alg text not null,
  public_jwk jsonb not null,
  data_key_id uuid not null,
  sealed bytea not null,
  state text not null check (state in ('next', 'active', 'retired')),
  created_at timestamptz not null default now(),
  activated_at timestamptz,
  retire_at timestamptz
);
create unique index signing_key_one_active on signing_key (alg) where state = 'active';
create table token_revocation (
  jti text primary key,
  tenant_id uuid not null references tenant on delete cascade,
  expires_at timestamptz not null,
  revoked_at timestamptz not null default now(),
  recorded_at timestamptz not null default clock_timestamp()
);
create index token_revocation_recorded on token_revocation (recorded_at);
create table seen_proof (
  digest bytea primary key,
  tenant_id uuid not null references tenant on delete cascade,
  expires_at timestamptz not null
);
create index seen_proof_expiry on seen_proof (expires_at);
create table api_token (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  jti text not null unique,
  name text not null,
  client_id text not null,
  subject text not null,
  scopes jsonb not null default '[]',
  authorization_details jsonb not null default '[]',
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  revoked_at timestamptz,
  last_used_at timestamptz
);
create index api_token_tenant on api_token (tenant_id, id);
create table audit_event (
  id uuid primary key,
  tenant_id uuid not null references tenant on delete cascade,
  seq bigint not null,
  at timestamptz not null,
  actor text not null,
  action text not null,
  subject text not null,
  address text,
  request_id text,
  detail jsonb not null default '{}',
  previous_hash bytea not null,
  hash bytea not null,
  unique (tenant_id, seq)
);
"""

USAGE = """
create table usage_event (
  id uuid not null,
  tenant_id uuid not null,
  at timestamptz not null,
  request_id text not null,
  client_id text not null,
  token_id text not null,
  pool_id uuid,
  key_id uuid,
  key_version integer,
  provider text,
  region text,
  operation text not null,
  model text not null,
  served_model text,
  status integer not null,
  outcome text not null,
  attempts integer not null,
  streamed boolean not null,
  input_tokens integer not null,
  output_tokens integer not null,
  cached_input_tokens integer not null,
  usage_reported boolean not null,
  cost_usd_nanos bigint,
  first_byte_ms real,
  total_ms real not null,
  primary key (at, id)
) partition by range (at);
create index usage_event_tenant on usage_event (tenant_id, at);
create function usage_partitions(first_day date, days integer) returns integer
  language plpgsql security definer set search_path = public, pg_temp set timezone = 'UTC' as $$
declare
  made integer := 0;
  d date;
begin
  for d in select first_day + n from generate_series(0, days - 1) as n loop
    if to_regclass(format('usage_event_%s', to_char(d, 'YYYYMMDD'))) is null then
      execute format('create table usage_event_%s partition of usage_event for values from (%L) to (%L)',
                     to_char(d, 'YYYYMMDD'), d::timestamptz, (d + 1)::timestamptz);
      made := made + 1;
    end if;
  end loop;
  return made;
end $$;
"""

# Every table of a tenant, and the column that names the tenant.
FENCED = {
    "tenant": "id",
    "data_key": "tenant_id",
    "pool": "tenant_id",
    "quota": "tenant_id",
    "provider_key": "tenant_id",
    "key_version": "tenant_id",
    "idempotency_key": "tenant_id",
    "oauth_client": "tenant_id",
    "client_secret": "tenant_id",
    "signing_key": "tenant_id",
    "token_revocation": "tenant_id",
    "seen_proof": "tenant_id",
    "api_token": "tenant_id",
    "audit_event": "tenant_id",
    "usage_event": "tenant_id",
}

# What a data path holds in memory: a change to any of these tells every process at commit.
ANNOUNCED = (
    "data_key",
    "pool",
    "quota",
    "provider_key",
    "key_version",
    "oauth_client",
    "signing_key",
    "token_revocation",
)

ANNOUNCE = """
create function announce_change() returns trigger language plpgsql as $$
declare
  changed uuid := case when tg_op = 'DELETE' then old.tenant_id else new.tenant_id end;
begin
  update tenant set config_revision = nextval('config_revision_seq') where id = changed;
  perform pg_notify('llm_proxy', json_build_object('table', tg_table_name, 'tenant_id', changed)::text);
  return null;
end $$;
create function announce_tenant() returns trigger language plpgsql as $$
begin
  if tg_op = 'UPDATE' then
    new.config_revision := nextval('config_revision_seq');
  end if;
  perform pg_notify('llm_proxy', json_build_object('table', 'tenant', 'tenant_id', coalesce(new.id, old.id))::text);
  return coalesce(new, old);
end $$;
create trigger announce before insert or update or delete on tenant for each row execute function announce_tenant();
"""


def _statements(sql: str) -> None:
    """Run a script of several statements: asyncpg prepares one statement at a time, so `$$` bodies are kept whole."""
    for statement in _split(sql):
        op.execute(statement)


def _split(sql: str) -> list[str]:
    parts, quoted, current = [], False, ""
    for line in sql.strip().splitlines():
        current += line + "\n"
        if line.count("$$") % 2:
            quoted = not quoted
        if line.rstrip().endswith(";") and not quoted:
            parts.append(current)
            current = ""
    return parts


def upgrade() -> None:
    """Create everything; the role that the gateway connects as may read and write rows and nothing else."""
    for script in (CONTEXT, TENANTS, AUTH, USAGE, ANNOUNCE):
        _statements(script)
    for table in ANNOUNCED:
        op.execute(
            f"create trigger announce after insert or update or delete on {table} "
            "for each row execute function announce_change()"
        )
    op.execute(
        "insert into tenant (id, slug, name) "
        "values ('00000000-0000-0000-0000-000000000000', 'platform', 'The operators of this installation')"
    )
    for table, column in FENCED.items():
        op.execute(f"alter table {table} enable row level security")
        op.execute(f"alter table {table} force row level security")
        op.execute(f"create policy tenant_fence on {table} using (app_sees({column})) with check (app_sees({column}))")
    op.execute(
        f"do $$ begin if not exists (select from pg_roles where rolname = '{APP_ROLE}') then "
        f"create role {APP_ROLE} nologin nosuperuser nobypassrls; end if; end $$"
    )
    op.execute(f"grant usage on schema public to {APP_ROLE}")
    op.execute(f"grant select, insert, update, delete on all tables in schema public to {APP_ROLE}")
    op.execute(f"grant usage on all sequences in schema public to {APP_ROLE}")
    op.execute(f"revoke update, delete on audit_event from {APP_ROLE}")
    op.execute(f"revoke insert, update, delete on alembic_version from {APP_ROLE}")


def downgrade() -> None:
    """Remove everything but the role, which other databases of the cluster may use."""
    for table in reversed(FENCED):
        op.execute(f"drop table if exists {table} cascade")
    for function in (
        "announce_change()",
        "announce_tenant()",
        "app_sees(uuid)",
        "app_tenant()",
        "usage_partitions(date, integer)",
    ):
        op.execute(f"drop function {function}")
    op.execute("drop sequence config_revision_seq")
