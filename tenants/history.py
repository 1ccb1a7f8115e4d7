"""What the audit trail says of keys against what the tables say: rows that were put back in SQL, or by half a restore.

An old envelope does not open under a newer number, but a whole row of an older version does. The trail knows better: it
says which version was put into service last, and which were revoked.
"""

from __future__ import annotations

from typing import Final

from auth.storage import Connections

_SERVING: Final = """
with said as (
  select distinct on (tenant_id, subject) tenant_id, subject, seq, action,
         case action when 'key.create' then 1
                     when 'key.revoke' then (detail ->> 'serving')::integer
                     else (detail ->> 'number')::integer end as number
  from audit_event
  where action in ('key.create', 'key.rotate', 'key.rollback')
     or action = 'key.revoke' and detail ->> 'serving' is not null
  order by tenant_id, subject, seq desc
)
select k.id, v.number as serving, said.number, said.seq
from provider_key k
join key_version v on v.tenant_id = k.tenant_id and v.key_id = k.id and v.state = 'current'
join said on said.tenant_id = k.tenant_id and said.subject = 'key:' || k.id
where v.number <> said.number
order by k.id
"""
_REVOKED: Final = """
select v.key_id, v.number, v.state, max(e.seq) as seq
from key_version v
join audit_event e on e.tenant_id = v.tenant_id and e.subject = 'key:' || v.key_id and e.action = 'key.revoke'
                  and (e.detail ->> 'number')::integer = v.number
where v.state not in ('revoked', 'orphaned', 'failed') or v.envelope is not null
group by v.key_id, v.number, v.state
order by v.key_id, v.number
"""


async def contradictions(connections: Connections) -> dict[str, str]:
    """Return what does not agree, by `history:<key id>`: empty when the tables are where the trail left them."""
    found = {}
    async with connections.platform() as connection:
        for row in await connection.fetch(_SERVING):
            found[f"history:{row['id']}"] = (
                f"version {row['serving']} is in service, and by audit event {row['seq']} it should be {row['number']}"
            )
        for row in await connection.fetch(_REVOKED):
            found[f"history:{row['key_id']}:{row['number']}"] = (
                f"version {row['number']} is {row['state']}, and audit event {row['seq']} revoked it"
            )
    return found
