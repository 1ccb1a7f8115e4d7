"""/api/v1/clients: the tenant's OAuth clients and their secrets, within what the caller itself may do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.params import FromPath, HeaderParameter, JSONBody

from auth import clients
from auth.clients import ClientSpec
from auth.deps import AnyRequest, Cursor, Limit, Services
from auth.errors import Invalid, NotPermitted
from auth.etag import etag
from auth.guards import principal_of, requires
from auth.idempotency import once
from auth.models import ClientSecret, OAuthClient
from auth.paging import page_ask
from auth.principal import Principal
from auth.schemas import ClientCreated, ClientIn, ClientOut, ClientPage, ClientPatch, SecretCreated, SecretIn, SecretOut
from auth.scopes import CLIENTS_READ, CLIENTS_WRITE, SCOPES, format_scope

MAX_SECRET_LIFETIME_S = 10 * 366 * 86_400
IfMatch = Annotated[str | None, HeaderParameter(name="if-match", description="The ETag that the change is meant for")]


@post("/", summary="Register a client", guards=[requires(CLIENTS_WRITE)])
async def create_client(data: JSONBody[ClientIn], request: AnyRequest, services: Services) -> Response[ClientCreated]:
    """The answer shows the secret, once; a client may hold no scope that its creator lacks."""
    caller = _manager(request)
    _within(caller, data.scopes)
    spec = ClientSpec(**{name: getattr(data, name) for name in ClientSpec.__slots__})
    async with services.sessions.tenant(caller.tenant_id) as session:

        async def work() -> ClientCreated:
            made = await clients.create_client(
                session, caller.tenant_id, spec, peppers=services.peppers, now=services.now()
            )
            shown = _out(made.client, await clients.list_secrets(session, made.client))
            about = {"name": data.name, "scopes": list(data.scopes)}
            await services.record(session, request, caller, "client.create", f"client:{shown.client_id}", **about)
            secret = made.secret.reveal() if made.secret else None
            return ClientCreated(client_secret=secret, **msgspec.structs.asdict(shown))

        shown, repeated = await once(
            services, session, request, caller, shape=ClientCreated, work=work, hidden="client_secret"
        )
    location = f"/api/v1/clients/{shown.client_id}"
    return _reply(shown, shown.version, status=201, location=location, repeated=repeated)


@get("/", summary="List the clients", guards=[requires(CLIENTS_READ)])
async def list_clients(
    request: AnyRequest, services: Services, limit: Limit = None, cursor: Cursor = None
) -> Response[ClientPage]:
    """Oldest first."""
    caller, ask = principal_of(request), page_ask(limit, cursor)
    async with services.sessions.tenant(caller.tenant_id) as session:
        page = await clients.list_clients(session, caller.tenant_id, ask)
    return _reply(ClientPage([_out(each, ()) for each in page.items], page.next_cursor))


@get("/{client_id:str}", summary="Read a client", guards=[requires(CLIENTS_READ)])
async def read_client(client_id: FromPath[str], request: AnyRequest, services: Services) -> Response[ClientOut]:
    """With its secrets by prefix, expiry and last use."""
    caller = principal_of(request)
    async with services.sessions.tenant(caller.tenant_id) as session:
        client = await clients.get_client(session, caller.tenant_id, client_id)
        secrets = await clients.list_secrets(session, client)
    return _reply(_out(client, secrets), client.version)


@patch("/{client_id:str}", summary="Change a client", guards=[requires(CLIENTS_WRITE)])
async def update_client(
    client_id: FromPath[str],
    data: JSONBody[ClientPatch],
    request: AnyRequest,
    services: Services,
    if_match: IfMatch = None,
) -> Response[ClientOut]:
    """Disabling a client or narrowing it revokes the tokens that it has got."""
    caller = _manager(request)
    changes = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not msgspec.UNSET}
    _within(caller, changes.get("scopes", ()))
    async with services.sessions.tenant(caller.tenant_id) as session:
        before = await clients.get_client(session, caller.tenant_id, client_id, lock=True)
        _within(caller, before.scopes)
        client = await clients.update_client(
            session, caller.tenant_id, client_id, changes, if_match=if_match, now=services.now()
        )
        secrets = await clients.list_secrets(session, client)
        shown: dict[str, Any] = {name: changes[name] for name in ("name", "status") if name in changes}
        if "scopes" in changes:
            shown["scopes"] = list(client.scopes)
        await services.record(
            session, request, caller, "client.update", f"client:{client_id}", changed=sorted(changes), **shown
        )
    return _reply(_out(client, secrets), client.version)


@delete("/{client_id:str}", summary="Delete a client", guards=[requires(CLIENTS_WRITE)])
async def delete_client(
    client_id: FromPath[str], request: AnyRequest, services: Services, if_match: IfMatch = None
) -> None:
    """Its secrets stop working and its tokens are refused."""
    caller = _manager(request)
    async with services.sessions.tenant(caller.tenant_id) as session:
        _within(caller, (await clients.get_client(session, caller.tenant_id, client_id, lock=True)).scopes)
        await clients.delete_client(session, caller.tenant_id, client_id, if_match=if_match, now=services.now())
        await services.record(session, request, caller, "client.delete", f"client:{client_id}")


@post("/{client_id:str}/secrets", summary="Add a secret", guards=[requires(CLIENTS_WRITE)])
async def add_secret(
    client_id: FromPath[str], request: AnyRequest, services: Services, data: JSONBody[SecretIn | None] = None
) -> Response[SecretCreated]:
    """Two secrets may live at once, so that rotating one breaks nobody; the answer shows the new one, once."""
    caller, wanted = _manager(request), data or SecretIn()
    for name, least in (("expires_in_s", 60), ("retire_others_in_s", 0)):
        value = getattr(wanted, name)
        if value is not None and not least <= value <= MAX_SECRET_LIFETIME_S:
            raise Invalid(
                f"{name} must be between {least} and {MAX_SECRET_LIFETIME_S} seconds.",
                hint="Leave it out for no end.",
                errors=((f"/{name}", "is out of range"),),
            )
    async with services.sessions.tenant(caller.tenant_id) as session:
        _within(caller, (await clients.get_client(session, caller.tenant_id, client_id, lock=True)).scopes)

        async def work() -> SecretCreated:
            row, secret = await clients.add_secret(
                session,
                caller.tenant_id,
                client_id,
                peppers=services.peppers,
                now=services.now(),
                expires_in_s=wanted.expires_in_s,
                retire_others_in_s=wanted.retire_others_in_s,
            )
            await services.record(
                session, request, caller, "client_secret.create", f"client:{client_id}", secret=str(row.id)
            )
            return SecretCreated(client_secret=secret.reveal(), **msgspec.structs.asdict(_secret_out(row)))

        shown, repeated = await once(
            services, session, request, caller, shape=SecretCreated, work=work, hidden="client_secret"
        )
    return _reply(shown, status=201, repeated=repeated)


@delete("/{client_id:str}/secrets/{secret_id:uuid}", summary="Delete a secret", guards=[requires(CLIENTS_WRITE)])
async def delete_secret(
    client_id: FromPath[str], secret_id: FromPath[UUID], request: AnyRequest, services: Services
) -> None:
    """It stops working at once; tokens got with it live on until they expire."""
    caller = _manager(request)
    async with services.sessions.tenant(caller.tenant_id) as session:
        _within(caller, (await clients.get_client(session, caller.tenant_id, client_id, lock=True)).scopes)
        await clients.delete_secret(session, caller.tenant_id, client_id, secret_id)
        await services.record(
            session, request, caller, "client_secret.delete", f"client:{client_id}", secret=str(secret_id)
        )


def client_router() -> Router:
    """The router."""
    handlers: Sequence[Any] = [
        create_client,
        list_clients,
        read_client,
        update_client,
        delete_client,
        add_secret,
        delete_secret,
    ]
    return Router(path="/clients", route_handlers=handlers, tags=["clients"])


def _manager(request: AnyRequest) -> Principal:
    """Return the caller, who must act for itself: a token handed out to somebody else makes no lasting credentials."""
    caller = principal_of(request)
    if caller.actors or caller.details:
        raise NotPermitted(
            "A narrowed or exchanged token cannot manage clients.",
            hint="Use a token that the client got for itself, without authorization_details.",
        )
    return caller


def _within(caller: Principal, scopes: Iterable[str]) -> None:
    if beyond := (set(scopes) & set(SCOPES)) - caller.scopes:  # an unknown one is refused as invalid, not as too much
        raise NotPermitted(
            f"The client holds or would hold scopes that this token lacks: {format_scope(beyond)}.",
            hint="Use a token that has them: nobody hands out more than they hold.",
        )


def _secret_out(row: ClientSecret) -> SecretOut:
    return SecretOut(row.id, row.prefix, row.created_at, row.expires_at, row.last_used_at)


def _out(client: OAuthClient, secrets: Sequence[ClientSecret]) -> ClientOut:
    return ClientOut(
        client_id=client.client_id,
        name=client.name,
        scopes=client.scopes,
        auth_method=client.auth_method,
        grant_types=client.grant_types,
        authorization_details=client.authorization_details,
        token_lifetime_s=client.token_lifetime_s,
        metadata=client.client_metadata,
        status=client.status,
        version=client.version,
        created_at=client.created_at,
        updated_at=client.updated_at,
        secrets=[_secret_out(each) for each in secrets],
    )


def _reply(
    body: Any, version: int | None = None, *, status: int = 200, location: str = "", repeated: bool = False
) -> Response[Any]:
    headers = {"cache-control": "no-store"}
    if repeated:
        headers["idempotent-replayed"] = "true"
    if version is not None:
        headers["etag"] = etag(version)
    if location:
        headers["location"] = location
    return Response(body, status_code=status, headers=headers)
