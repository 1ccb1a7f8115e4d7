"""The simulated provider as a plain ASGI application: one object, no framework, no global state."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec

from gateway.balancing.outcome import TokenUsage
from gateway.simulation import admin, anthropic_api, delivery, key_admin, openai_media, routes
from gateway.simulation.admin_federation import lend, oauth_error
from gateway.simulation.channel import BodyTooLarge, CallerLeft, Channel, Receive, Scope, Send
from gateway.simulation.config import ProviderConfig
from gateway.simulation.faults import Fault, FaultKind, parse_fault
from gateway.simulation.keysmith import Errand, Keysmith, refused
from gateway.simulation.ledger import Key, Ledger, Seen
from gateway.simulation.limits.model import Cost, LimitModel, Rejected, Ticket
from gateway.simulation.prompt_cache import PromptCache
from gateway.simulation.trust import Fetch, TrustedIssuers, Untrusted
from gateway.simulation.wire import BadRequest, Call, Dialect, Reply, refusal

_HEALTH = ("/", "/health", "/_sim/health")


@dataclass(slots=True)
class _Visit:
    """One request on its way through."""

    method: str
    path: str
    headers: Mapping[str, str]
    ident: str
    arrived: float
    dialect: Dialect
    key: Key | None = None
    model: str = ""
    streamed: bool = False
    fault: Fault | None = None
    told: tuple[tuple[str, str], ...] = ()


class SimulatedProvider:
    """Speaks OpenAI, Anthropic and Gemini with the limits, headers, errors and faults of the real ones.

    `clock` is Unix seconds and decides limits and time stamps; `rng` draws ids, jitter and faults with a rate. `ledger`
    holds keys and counts, `smith` what the admin APIs made. `fetch` gets the keys of trusted issuers. One event loop
    at a time drives it.
    """

    def __init__(
        self,
        config: ProviderConfig,
        *,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        self.config = config
        self.ledger = Ledger(config)
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - ids of a simulation
        self.smith = Keysmith(self.ledger, self._rng, clock, works_after_s=config.works_after_s)
        self.trust = TrustedIssuers(fetch or _no_fetch, clock)
        self.trust.rules = config.trusted_issuers
        self._cache = PromptCache()
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End every hanging request, so that the server can stop at once; call it on the loop."""
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"the simulated provider speaks HTTP only, not {scope['type']}")
        channel = Channel(scope, receive, send, self._closing)
        try:
            await self._serve(scope, channel)
        except CallerLeft:
            pass
        finally:
            await channel.aclose()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, channel: Channel) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path: str = scope["path"]
        visit = _Visit(
            method=scope["method"],
            path=path,
            headers=headers,
            ident=f"{self._rng.getrandbits(96):024x}",
            arrived=self._clock(),
            dialect=_dialect(path, headers),
        )
        try:
            body = await channel.read_body(self.config.max_body_bytes)
        except BodyTooLarge:
            message = f"The request body is over {self.config.max_body_bytes} bytes."
            await self._send(channel, visit, refusal(visit.dialect, 413, message))
            return
        if path.startswith(admin.PREFIX) and path not in _HEALTH:
            reply = admin.handle(self.ledger, self.smith, self.trust, visit.method, path, body, now=visit.arrived)
            await delivery.plain(channel, reply, ())
            return
        if path in _HEALTH and visit.method != "POST":
            await delivery.plain(channel, Reply(b'{"status":"ok"}'), ())
            return
        query: bytes = scope.get("query_string", b"")
        errand = key_admin.find(visit.method, path, query, headers, body)
        if errand is not None:
            await self._administer(channel, visit, errand)
            return
        key = visit.key = self.ledger.find(_credential(headers, query))
        if key is None or key.revoked or not key.works_from <= visit.arrived < key.works_until:
            await self._turn_away(channel, visit)
            return
        # Kept by reference: a reset in between gives the key new counts, and these go with the old ones.
        use = key.use
        use.requests += 1
        use.in_flight += 1
        use.max_in_flight = max(use.max_in_flight, use.in_flight)
        try:
            await self._answer(channel, visit, key, body)
        except CallerLeft:
            use.caller_left += visit.fault is None
            raise
        finally:
            use.in_flight -= 1

    async def _administer(self, channel: Channel, visit: _Visit, errand: Errand) -> None:
        self.smith.calls[errand.step.value] += 1
        early = self.smith.draw(errand.step, late=False)
        if early is not None and await self._fail_early(channel, visit, early):
            return
        if errand.assertion is not None:
            try:
                bearer = await self.trust.check(errand.assertion)
            except Untrusted as error:
                await self._send(channel, visit, oauth_error(400, "invalid_grant", f"The assertion: {error}."))
                return
            reply = lend(self.smith, bearer, bearer.lifetime_s)
        elif errand.credential != "" and not key_admin.allowed(errand, visit.headers, self.config.admin_secret):
            refuse = errand.refuse or partial(refused, 401, "The admin credential is not valid.")
            await self._send(channel, visit, refuse())
            return
        else:
            reply = errand.run(self.smith)
        late = self.smith.draw(errand.step, late=True)
        if late is None or not await self._fail_early(channel, visit, late):
            await self._send(channel, visit, reply)

    async def _turn_away(self, channel: Channel, visit: _Visit) -> None:
        if visit.key is None:
            self.ledger.unknown_key_requests += 1
        else:
            visit.key.use.requests += 1
        message = {
            Dialect.ANTHROPIC: "invalid x-api-key",
            Dialect.GEMINI: "API key not valid. Please pass a valid API key.",
        }.get(visit.dialect, "Incorrect API key provided. You can find your API key in your provider's console.")
        status = 400 if visit.dialect is Dialect.GEMINI else 401
        await self._send(channel, visit, refusal(visit.dialect, status, message, code="invalid_api_key"))

    async def _answer(self, channel: Channel, visit: _Visit, key: Key, body: bytes) -> None:
        try:
            wish = visit.headers.get("x-sim-fault")
            visit.fault = parse_fault(wish) if wish else key.faults.draw(self._rng)
            tokens = _whole(visit.headers.get("x-sim-output-tokens"), self.config.answer_tokens)
        except ValueError as error:
            await self._send(channel, visit, refusal(visit.dialect, 400, str(error)))
            return
        if visit.fault is not None:
            key.use.faulted += 1
            if await self._fail_early(channel, visit, visit.fault):
                return
        if visit.method == "GET":
            await self._send(channel, visit, self._models(visit))
            return
        found = routes.match(visit.path) if visit.method == "POST" else None
        if found is None:
            message = f"Unknown request URL: {visit.method} {visit.path}."
            await self._send(channel, visit, refusal(visit.dialect, 404, message, code="unknown_url"))
            return
        ticket: Ticket | None = None
        limits: LimitModel | None = None
        usage: TokenUsage | None = None
        try:
            request = _decode(found.route, visit.headers.get("content-type", ""), body)
            visit.model = self._model(found.model or request.get("model"), found.route)
            visit.streamed = bool(request.get("stream")) if found.streamed is None else found.streamed
            prompt = routes.read_prompt(found.route, request)
            cached = min(self._cache.look_up(key.config.quota, visit.model, prompt.text), prompt.tokens)
            if found.route.limited:
                limits = self.ledger.quota(key, visit.dialect)
                answer = limits.admit(Cost(visit.model, prompt.tokens, prompt.max_tokens, cached), visit.arrived)
                visit.told = answer.headers
                if isinstance(answer, Rejected):
                    reply = Reply(msgspec.json.encode(answer.body), status=answer.status)
                    await self._send(channel, visit, reply)
                    return
                ticket = answer.ticket
            call = Call(request, visit.model, visit.ident, int(visit.arrived), cached, tokens)
            produced = found.route.answer(call)
            usage = produced.usage
            await self._deliver(channel, visit, key, produced)
            key.use.charge(usage)
        except BadRequest as error:
            await self._send(channel, visit, refusal(visit.dialect, 400, error.message, param=error.param))
        except _UnknownModel as error:
            await self._send(channel, visit, refusal(visit.dialect, 404, str(error), code="model_not_found"))
        finally:
            if ticket is not None and limits is not None:
                limits.settle(ticket, usage, self._clock())

    async def _fail_early(self, channel: Channel, visit: _Visit, fault: Fault) -> bool:
        """Carry out the faults that come before any work; False: the request goes on."""
        match fault.kind:
            case FaultKind.STATUS:
                if fault.retry_after_s is not None:
                    visit.told = (("retry-after", f"{fault.retry_after_s:g}"),)
                reply = refusal(visit.dialect, fault.status, delivery.fault_message(fault.status))
                await self._send(channel, visit, reply)
                return True
            case FaultKind.RESET:
                self._record(visit, 0)
                await channel.cut()
            case FaultKind.HANG:
                self._record(visit, 0)
                await channel.wait(fault.delay_s)
                await channel.cut()
            case FaultKind.DELAY:
                await channel.wait(1.0 if fault.delay_s is None else fault.delay_s)
            case _:
                pass
        return False

    async def _deliver(self, channel: Channel, visit: _Visit, key: Key, produced: delivery.Produced) -> None:
        spread = 1 + self.config.latency.jitter * self._rng.uniform(-1, 1)
        pace = delivery.Pace(self.config.latency.first_byte_s * spread, self.config.latency.per_token_s * spread)
        key.use.streams += visit.streamed
        status = delivery.status_of(produced, visit.fault)
        self._record(visit, status)
        key.use.by_status[status] += 1
        headers = self._headers(visit, pace.first_byte_s)
        await delivery.deliver(channel, produced, headers, pace=pace, fault=visit.fault, dialect=visit.dialect)

    async def _send(self, channel: Channel, visit: _Visit, reply: Reply) -> None:
        self._record(visit, reply.status)
        if visit.key is not None:
            visit.key.use.by_status[reply.status] += 1
        await delivery.plain(channel, reply, self._headers(visit, 0.0))

    def _record(self, visit: _Visit, status: int) -> None:
        self.ledger.log.append(
            Seen(
                request_id=f"req_{visit.ident}",
                key=visit.key.config.name if visit.key else None,
                method=visit.method,
                path=visit.path,
                model=visit.model,
                streamed=visit.streamed,
                headers=tuple(sorted(visit.headers)),
                status=status,
            )
        )

    def _headers(self, visit: _Visit, processing_s: float) -> tuple[tuple[str, str], ...]:
        organisation = visit.key.config.quota if visit.key else ""
        if visit.dialect is Dialect.ANTHROPIC:
            own: tuple[tuple[str, str], ...] = (("request-id", f"req_{visit.ident}"),)
            if organisation:
                own += (("anthropic-organization-id", organisation),)
        elif visit.dialect is Dialect.GEMINI:
            own = (("server-timing", f"gfet4t7; dur={processing_s * 1000:.0f}"),)
        else:
            own = (("x-request-id", f"req_{visit.ident}"),)
            own += (("openai-version", "2020-10-01"), ("openai-processing-ms", f"{processing_s * 1000:.0f}"))
            if organisation:
                own += (("openai-organization", organisation),)
        return own + visit.told

    def _models(self, visit: _Visit) -> Reply:
        name = routes.models_path(visit.path)
        if name is None:
            return refusal(visit.dialect, 404, f"Unknown request URL: GET {visit.path}.", code="unknown_url")
        if name == "":
            if visit.dialect is Dialect.ANTHROPIC:
                return anthropic_api.models(self.config.listed_models)
            return openai_media.models(self.config.listed_models, int(visit.arrived))
        if not self.config.serves(name):
            return refusal(visit.dialect, 404, f"The model '{name}' does not exist", code="model_not_found")
        return openai_media.model(name, int(visit.arrived))

    def _model(self, name: Any, route: routes.Route) -> str:
        if name is None and route.default_model is not None:
            return route.default_model
        if not isinstance(name, str) or not name:
            raise BadRequest("you must provide a model parameter", "model")
        if not self.config.serves(name):
            if route.dialect is Dialect.OPENAI:
                raise _UnknownModel(f"The model `{name}` does not exist or you do not have access to it.")
            raise _UnknownModel(f"model: {name}")
        return name


async def _no_fetch(url: str) -> bytes:
    raise Untrusted(f"{url} cannot be reached from here")


class _UnknownModel(Exception):
    pass


def _dialect(path: str, headers: Mapping[str, str]) -> Dialect:
    found = routes.match(path)
    if found is not None:
        return found.route.dialect
    # GET /v1/models is the same path at OpenAI and Anthropic: Anthropic's SDKs always send their version.
    return Dialect.ANTHROPIC if "anthropic-version" in headers else Dialect.OPENAI


def _credential(headers: Mapping[str, str], query: bytes) -> str:
    authorization = headers.get("authorization", "")
    if authorization[:7].lower() == "bearer ":
        return authorization[7:].strip()
    for name in ("x-api-key", "api-key", "x-goog-api-key"):
        if name in headers:
            return headers[name]
    return parse_qs(query.decode("latin-1")).get("key", [""])[0]


def _whole(text: str | None, default: int | None) -> int | None:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"x-sim-output-tokens: {text!r} is not a whole number")
    return int(text)


def _decode(route: routes.Route, content_type: str, body: bytes) -> Mapping[str, Any]:
    if route.form and content_type.lower().startswith("multipart/form-data"):
        return openai_media.read_form(content_type, body)
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise BadRequest(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            "library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
        ) from None
