"""/api/v1/requests: what became of one request, and why."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from litestar import Response, Router, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath
from msgspec import Struct

from auth.errors import NotFound
from auth.guards import requires
from auth.scopes import USAGE_READ
from auth.storage import Connections
from gateway.metering.explanations import KEPT_DAYS, PostgresExplanationStore
from gateway.metering.reports import RequestReport, read_report
from tenants.api.call import Caller, provide_call, reply

Database = NamedDependency[Any]
"""`Connections`, which is a protocol that Litestar cannot check."""


class ExplanationOut(Struct, frozen=True):
    """Why a request went where it went: for each pool that was tried its candidates, what excluded each, the scores."""

    request_id: str
    at: datetime
    pools: list[dict[str, Any]]


@get("/{request_id:str}", summary="Read what became of a request", guards=[requires(USAGE_READ)])
async def read_request(request_id: FromPath[str], call: Caller, database: Database) -> Response[RequestReport]:
    """`residency` proves where it went: the regions that were allowed, and those of every attempt.

    `request_id` is what the answer's `x-llm-proxy-request-id` said; rows are written about a second later.
    """
    found = await read_report(database, call.tenant_id, request_id)
    if found is None:
        raise NotFound(
            "There is no such request.", hint="Send the id of `x-llm-proxy-request-id`; rows appear within a second."
        )
    return reply(found)


@get("/{request_id:str}/explanation", summary="Read why a request went there", guards=[requires(USAGE_READ)])
async def read_explanation(request_id: FromPath[str], call: Caller, database: Database) -> Response[ExplanationOut]:
    """Of requests that asked with `x-llm-proxy-explain`, and of the share that a pool's `explain_share` samples."""
    found = await PostgresExplanationStore(database).read(call.tenant_id, request_id)
    if found is None:
        raise NotFound(
            "No explanation of this request is stored.",
            hint=f"They are kept for {KEPT_DAYS} days, for requests with the header x-llm-proxy-explain and for the "
            "share in the pool's setting explain_share.",
        )
    return reply(ExplanationOut(found.request_id, found.at, found.pools))


def make_requests_router(database: Connections, *, path: str = "/api/v1/requests") -> Router:
    """Return the router; requests arrive with a verified `Principal` in their scope."""
    return Router(
        path=path,
        route_handlers=[read_request, read_explanation],
        tags=["requests"],
        dependencies={
            "call": Provide(provide_call),
            "database": Provide(lambda: database, sync_to_thread=False),
        },
    )
