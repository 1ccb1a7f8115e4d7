"""/api/v1/requests: what became of one request, by the id that its answer carried."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

from litestar import Response, Router, get
from litestar.params import FromPath
from sqlalchemy import text

from auth.errors import NotFound
from auth.guards import requires
from auth.scopes import USAGE_READ
from tenants.api.call import Caller, reply
from tenants.api.services import Services
from tenants.schemas import RequestOut

_ID = re.compile(r"(?:req_)?(0[0-9a-f]{11}7[0-9a-f]{19})")
"""A UUID of version 7 as it will look until the year 2527."""
_SLACK = timedelta(seconds=1)
_ROW = """
select u.request_id, u.at, u.client_id, u.token_id, u.pool_id, p.name as pool, u.key_id, k.name as key, u.key_version,
       u.provider, u.region, u.operation, u.model, u.served_model, u.status, u.outcome, u.attempts, u.input_tokens,
       u.output_tokens, u.cost_usd_nanos, u.total_ms
from usage_event u
left join pool p on p.tenant_id = u.tenant_id and p.id = u.pool_id
left join provider_key k on k.tenant_id = u.tenant_id and k.id = u.key_id
where u.tenant_id = :tenant_id and u.id = :id and u.at between :first and :last
"""


@get("/{request_id:str}", summary="Read what became of a request", guards=[requires(USAGE_READ)])
async def read_request(request_id: FromPath[str], call: Caller, services: Services) -> Response[RequestOut]:
    """Who sent it, and which version of which key served it. `request_id` is the answer's `x-llm-proxy-request-id`.

    Rows are written some seconds after the answer. The id begins with the time of arrival (UUID version 7), so one
    partition is looked at.
    """
    found = _ID.fullmatch(request_id)
    row = None
    if found is not None:
        identity = UUID(found[1])
        arrived = datetime.fromtimestamp((identity.int >> 80) / 1000, UTC)
        arguments = {
            "tenant_id": call.tenant_id,
            "id": identity,
            "first": arrived - _SLACK,
            "last": arrived + _SLACK,
        }
        async with services.sessions.tenant(call.tenant_id) as session:
            row = (await session.execute(text(_ROW), arguments)).mappings().first()
    if row is None:
        raise NotFound(
            "There is no such request.", hint="Give the x-llm-proxy-request-id of an answer, some seconds after it."
        )
    return reply(RequestOut(**row))


def router() -> Router:
    """The router."""
    return Router(path="/requests", route_handlers=[read_request], tags=["usage"])
