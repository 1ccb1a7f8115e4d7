"""The data path: from a caller's bytes to a provider's and back, without a framework, a database or a KMS on the way.

A request goes: path (`routes`), token (`credentials`, `Verifier`), tenant (`directory`), body (`intake`), pool and
permission (`choice`), key, sending and failover (`call`), answer (`stream`); and whatever happens, one usage row
(`record`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

import msgspec

from auth.bearer import ProofChecker, refuse_unbound
from auth.details import Detail, read_details
from auth.errors import Fault
from auth.principal import Principal
from gateway.metering.explanations import StoredExplanation
from gateway.metering.pricing import PriceTable
from gateway.policy.access import may_use_pool
from gateway.policy.allowance import Allowances, InMemoryAllowances
from gateway.proxy.asgi_channel import AsgiChannel, Receive, Scope, Send
from gateway.proxy.call import Call
from gateway.proxy.channel import CallerGone, Channel, HeaderList
from gateway.proxy.choice import choose_pool
from gateway.proxy.credentials import find_token
from gateway.proxy.dialects import Shape, error_answer, status_of
from gateway.proxy.directory import Directory
from gateway.proxy.fallback import Climb
from gateway.proxy.faults import (
    Broken,
    Forbidden,
    NoSuchPath,
    RequestFault,
    TenantSuspended,
    UnknownPool,
    WrongMethod,
)
from gateway.proxy.inquiry import Inquiry, Leaver
from gateway.proxy.intake import Intake, IntakeLimits, take_in
from gateway.proxy.model_list import list_body, models_of, one_body
from gateway.proxy.pool_state import state_body
from gateway.proxy.record import Recorder, RequestRecord
from gateway.proxy.routes import GET_MODEL, POOL_STATE, Unroutable, is_inference, match
from gateway.proxy.runtime import TenantRuntime
from gateway.proxy.spending import Spending
from gateway.proxy.stream import queue_headers, relay
from gateway.upstream.dispatch import Answer, Sender
from gateway.upstream.message import header_lines

logger = logging.getLogger(__name__)

__all__ = ["DataPath", "Verifier", "is_inference"]

_DETAILS_CACHE_BOUND = 4096


class Verifier(Protocol):
    """Turns a token into its principal; fulfilled by `auth.tokens.Verifier`."""

    def verify(self, token: str, *, digest: bytes = b"", jkt: str = "", x5t_s256: str = "") -> Principal:
        """Return the caller, or raise NotAuthenticated; a bound token needs its key's or certificate's thumbprint.

        `digest` is `auth.tokens.digest_of(token)`.
        """


class Places(Protocol):
    """Finds out where callers are."""

    def place_of(self, peer: str, headers: HeaderList) -> str | None:
        """Return a region or place (see `balancing.regions`), None where it is not known."""


class ExplanationSink(Protocol):
    """Keeps explanations; fulfilled by `ExplanationRecorder`."""

    def record(self, row: StoredExplanation) -> None:
        """Take one; must not block or raise."""


class DataPath:
    """The ASGI application of the inference paths; `serve` is the same for any other server.

    `clock` is monotonic seconds (the same as the balancers'), `unix_clock` Unix seconds. `in_flight` counts requests
    under way, `answered` all that ended.
    """

    def __init__(
        self,
        *,
        verifier: Verifier,
        proofs: ProofChecker,
        directory: Directory,
        upstream: Sender,
        recorders: Sequence[Recorder],
        prices: PriceTable,
        rng: Random,
        allowances: Allowances | None = None,
        explanations: ExplanationSink | None = None,
        places: Places | None = None,
        limits: IntakeLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._verifier = verifier
        self._proofs = proofs
        self._directory = directory
        self._upstream = upstream
        self._recorders = tuple(recorders)
        self._prices = prices
        self._explanations = explanations
        self._process = f"{rng.getrandbits(32):08x}"
        self._places = places
        self._rng = rng
        self._limits = limits or IntakeLimits()
        self._clock = clock
        self._unix_clock = unix_clock
        self._spending = Spending(
            InMemoryAllowances() if allowances is None else allowances, prices, unix_clock=unix_clock
        )
        self._details: dict[str, tuple[Detail, ...]] = {}
        self.in_flight = 0
        self.answered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI `http` scope."""
        await self.serve(AsgiChannel(scope, receive, send))

    async def serve(self, channel: Channel) -> None:
        """Answer one request. Returns normally whatever happens, except when this task is cancelled from outside."""
        record = RequestRecord(self._rng, self._recorders, self._prices, clock=self._clock, unix=self._unix_clock())
        leaver = Leaver()
        self.in_flight += 1
        try:
            await self._answer(channel, record, leaver)
        except CallerGone:
            pass
        except asyncio.CancelledError:
            if not leaver.is_gone:
                raise
            leaver.stay()
        finally:
            channel.close()
            self.in_flight -= 1
            self.answered += 1
            record.write()
            if record.explained is not None:
                self._keep_explanation(record)
            self._spending.settle(record)

    def _keep_explanation(self, record: RequestRecord) -> None:
        row = record.stored_explanation
        if row is not None and self._explanations is not None:
            self._explanations.record(row)

    async def _answer(self, channel: Channel, record: RequestRecord, leaver: Leaver) -> None:
        found = match(channel.method, channel.raw_path, is_anthropic=channel.head.is_anthropic)
        dialect = found.dialect if isinstance(found, Unroutable) else found.operation.dialect
        shape: Shape = "problem" if channel.head.wants_problem else dialect
        fault: Fault
        try:
            if isinstance(found, Unroutable):
                raise _unroutable(found)
            await self._serve_route(Inquiry(found, channel, record), leaver, shape)
            return
        except CallerGone:
            raise
        except Fault as error:
            fault = error.with_traceback(None)  # that leads to this frame: a cycle, which only the collector would free
            if error.debug or status_of(error) >= 500:
                logger.info("request refused: %s", error.code, extra=_log_extra(record, error.debug))
        except Exception as error:  # the request's boundary: logged, and answered without a word of it
            logger.error("request failed", exc_info=error, extra=_log_extra(record))
            fault = Broken("The gateway failed.", hint=f"Tell the operators the request id {record.request_id}.")
        if record.status != RequestRecord.UNANSWERED:
            channel.abort()  # the head is out already: all that is left is to show that the answer is cut
            return
        status, headers, body = error_answer(shape, fault, record.request_id)
        record.status = status
        if record.outcome == RequestRecord.ABANDONED:
            record.outcome = fault.code
        if record.explanation is not None:
            headers.append((b"x-llm-proxy-explain", record.explanation))
        if record.told is not None:
            headers += record.told
        if record.waited_s:
            headers += queue_headers(record)
        record.write()
        closes = (b"connection", b"close") in headers
        await channel.answer(status, header_lines(headers), body, closes=closes)

    async def _serve_route(self, inquiry: Inquiry, leaver: Leaver, shape: Shape) -> None:
        channel, record, operation = inquiry.channel, inquiry.record, inquiry.route.operation
        record.operation = operation.name
        principal = record.principal = self._caller(channel)
        if operation.scope not in principal.scopes:
            raise _no_scope(operation.scope)
        tenant = self._directory.get(principal.tenant_id)
        if tenant is None or not tenant.is_active:
            tenant = await self._find_tenant(principal, tenant)
        inquiry.admit(self._details_of(principal))
        if operation.body == "none":
            await self._answer_itself(tenant, inquiry)
            return
        deployment = None if operation.model_in_path else inquiry.route.model
        intake = await take_in(channel, operation, self._limits, deployment)
        record.model = intake.model or inquiry.route.model or ""
        leaver.watch(channel)
        answer = await self._send_as_it_is_now(tenant, inquiry, intake)
        if intake.replayable:
            # Streams are open for minutes, thousands at a time: what was sent is not needed any more.
            intake.held = b""
            if answer.streaming:
                channel.forget()
        est_input_tokens = 0 if operation.counts else intake.est_input_tokens
        await relay(channel, answer, record, shape=shape, est_input_tokens=est_input_tokens)

    async def _answer_itself(self, tenant: TenantRuntime, inquiry: Inquiry) -> None:
        """Answer what no provider is asked for."""
        if inquiry.route.operation.name == POOL_STATE:
            await self._send_state(tenant, inquiry)
            return
        body = self._models(tenant, inquiry)
        if body is None:
            body = self._models(await self._look_again(tenant), inquiry, is_last=True)
        await _send_json(inquiry.channel, inquiry.record, body or b"")

    async def _send_state(self, tenant: TenantRuntime, inquiry: Inquiry) -> None:
        record, named = inquiry.record, inquiry.named or ""
        pool = tenant.pools.get(named)
        if pool is None or not may_use_pool(inquiry.details, named):
            raise UnknownPool(f"There is no pool {named[:64]!r} for this token.", hint="GET /api/v1/pools lists them.")
        # Looking on is no use of the pool: no row.
        record.principal = None
        await _send_json(inquiry.channel, record, state_body(pool, now=self._clock(), process=self._process))

    def _caller(self, channel: Channel) -> Principal:
        head, query = channel.head, channel.query
        presented = head.presented
        if presented is None or query:
            presented = head.presented = find_token(head.credentials, query)
        token, digest, is_dpop = presented
        if not is_dpop:
            return self._verifier.verify(token, digest=digest, x5t_s256=channel.certificate)
        proofs = [value.decode("latin-1") for name, value in head.headers if name == b"dpop"]
        jkt = self._proofs.check(token, proofs, method=channel.method, path=channel.raw_path.decode("latin-1"))
        principal = self._verifier.verify(token, digest=digest, jkt=jkt, x5t_s256=channel.certificate)
        refuse_unbound(principal)
        return principal

    async def _find_tenant(self, principal: Principal, tenant: TenantRuntime | None) -> TenantRuntime:
        """Load the tenant, or look again at one that does not seem active."""
        tenant = tenant or await self._directory.find(principal.tenant_id)
        if tenant is not None and not tenant.is_active:
            tenant = await self._look_again(tenant)
        if tenant is None or not tenant.is_active:
            raise TenantSuspended(
                "The tenant of this token is suspended or was deleted.", hint="Ask the operators of the gateway."
            )
        return tenant

    async def _look_again(self, tenant: TenantRuntime) -> TenantRuntime:
        """Return the tenant as it is now: `tenant` itself if nothing has changed."""
        await self._directory.look_again(tenant.tenant_id)
        found = self._directory.get(tenant.tenant_id)
        return tenant if found is None else found

    def _models(self, tenant: TenantRuntime, inquiry: Inquiry, *, is_last: bool = False) -> bytes | None:
        """Return the answer's body; None (never at last) when there is nothing to tell yet."""
        route = inquiry.route
        dialect = route.operation.dialect
        try:
            models = models_of(tenant, inquiry.details, named=inquiry.named, dialect=dialect, now=self._unix_clock())
            if route.operation.name == GET_MODEL:
                return one_body(dialect, models, route.model or "")
        except RequestFault:
            if is_last:
                raise
            return None
        return list_body(dialect, models) if models or is_last else None

    async def _send_as_it_is_now(self, tenant: TenantRuntime, inquiry: Inquiry, intake: Intake) -> Answer:
        """Send; a refusal that may be outdated is checked against the tenant as it is now."""
        try:
            return await self._send(tenant, inquiry, intake)
        except RequestFault as refusal:
            if not refusal.may_be_outdated or not intake.replayable:
                raise
            refused = refusal.with_traceback(None)
        changed = await self._look_again(tenant)
        if changed is tenant:
            raise refused
        return await self._send(changed, inquiry, intake)

    async def _send(self, tenant: TenantRuntime, inquiry: Inquiry, intake: Intake) -> Answer:
        record, dialect = inquiry.record, inquiry.route.operation.dialect
        if self._places is not None:
            inquiry.place = self._places.place_of(inquiry.channel.peer, inquiry.channel.head.headers)
        choice = choose_pool(
            tenant,
            inquiry.details,
            named=inquiry.named,
            wishes=inquiry.wishes,
            model=record.model,
            dialect=dialect,
            now=self._unix_clock(),
        )
        record.pool = choice.pool
        if inquiry.details:  # nothing else limits what a token may use
            choice = await self._spending.admit_soon(choice, intake, record)
        record.priced_as = choice.model
        if choice.pool.rungs:
            climb = Climb(
                tenant,
                inquiry,
                intake,
                choice,
                spending=self._spending,
                clock=self._clock,
                unix=self._unix_clock(),
                rng=self._rng,
            )
            return await climb.send(self._upstream)
        call = Call(inquiry, intake, choice, clock=self._clock, rng=self._rng)
        return await call.send(self._upstream)

    def _details_of(self, principal: Principal) -> tuple[Detail, ...]:
        if not principal.details:
            return ()
        found = self._details.get(principal.token_id)
        if found is None:
            try:
                found = read_details(principal.details)
            except msgspec.ValidationError as error:
                # Written by a later version: what it narrows is not known here, so it admits nothing.
                raise Forbidden(
                    "The access token carries authorization_details that this gateway does not understand.",
                    hint="Get a new token.",
                    debug=str(error),
                ) from None
            if len(self._details) >= _DETAILS_CACHE_BOUND:
                self._details.clear()
            self._details[principal.token_id] = found
        return found


async def _send_json(channel: Channel, record: RequestRecord, body: bytes) -> None:
    identifier = record.request_id.encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", identifier),
        (b"x-llm-proxy-request-id", identifier),
    ]
    record.status, record.outcome = 200, "ok"
    record.write()
    await channel.answer(200, header_lines(headers), body)


def _unroutable(found: Unroutable) -> RequestFault:
    if found.status == 405:
        return WrongMethod(found.sentence, allow=found.allow)
    return NoSuchPath(found.sentence) if found.status == 404 else RequestFault(found.sentence)


def _no_scope(scope: str) -> Forbidden:
    return Forbidden(
        f"The access token lacks the scope {scope!r}.",
        hint=f"Request a token with scope={scope}, for a client that may have it.",
    )


def _log_extra(record: RequestRecord, debug: str = "") -> dict[str, str]:
    extra = {"request_id": record.request_id, "operation": record.operation}
    if debug:
        extra["debug"] = debug
    return extra
