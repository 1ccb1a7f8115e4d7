"""The composition root: builds a process's parts, starts and stops them, and hands each request to the right one.

Inference paths go to the data path, `/livez`, `/readyz` and `/metrics` to `Health`, the rest to the control plane.
A process without a control plane never imports Litestar, SQLAlchemy or Authlib.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from auth.dpop import ProofCache
from auth.errors import Invalid
from auth.keyset import KeySet, PublicKey
from auth.proof_sharing import TABLE as USED_PROOFS
from auth.proof_sharing import ProofSharing
from auth.revocations import Revocations
from auth.signing_keys import SigningKeys
from auth.token_uses import TokenUses
from auth.tokens import Verifier
from auth.vouching import AssertionSigner
from gateway.custody import make_data_keys, make_shares
from gateway.database import Change, DatabaseAway, Postgres
from gateway.guarded_calls import GuardedCalls
from gateway.health import PATHS as HEALTH_PATHS
from gateway.health import Health
from gateway.kek_fit import KekFit
from gateway.preflight import database_findings
from gateway.proxy.routes import is_inference
from gateway.registered_certificates import RegisteredCertificates
from gateway.settings import Settings
from gateway.state_file import StateFile, preload
from gateway.teardown import STEPS_S, Teardown, stop
from gateway.telemetry import Metrics, new_request_id
from gateway.trust import Trust
from gateway.upstream.connect import DirectConnector
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool
from tenants.datakeys import DataKeys

if TYPE_CHECKING:
    from gateway.data_path import DataPathParts
    from gateway.relay_channel import Serve
    from gateway.tls import ServerTls

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Any
"""An ASGI application; each framework has types of its own for the same three arguments."""

_SCHEMA_CHECK_S = 2.0
_LEAVE_S = 2.0
"""How long tasks may take to leave off."""


class Gateway:
    """One process as an ASGI application; `data_path` and `control` say which halves it has.

    Parts are built at start-up, on the running loop. `health` may be given further conditions before that.
    """

    def __init__(
        self, settings: Settings, *, data_path: bool = True, control: bool = True, tls: ServerTls | None = None
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._has_data_path = data_path
        self._has_control = control
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self._inference: App | None = None
        self._control: App | None = None
        self._data_path: DataPathParts | None = None
        self._interrupted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._teardown = Teardown()

    def find_relay(self) -> Serve | None:
        """Give what serves inference requests over a channel of the server's own; None without a data path."""
        return None if self._data_path is None else self._data_path.app.serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if self._inference is not None and is_inference(scope["raw_path"]):
            await self._inference(scope, receive, send)
        elif path in HEALTH_PATHS:
            await self.health(scope, receive, send)
        elif self._control is not None:
            await self._serve_control(self._control, scope, receive, send)
        else:
            await _not_here(send)

    async def _serve_control(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started: list[int] = []

        async def named(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                started.append(message["status"])
                message["headers"] = [*message.get("headers", ()), (b"x-llm-proxy-request-id", request_id.encode())]
            await send(message)

        try:
            await app(scope, receive, named)
        finally:
            status = str(started[0]) if started else "none"
            self.metrics.control_requests.labels(scope["method"], status).inc()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        starting = asyncio.create_task(self.start(), name="start")
        interrupted = asyncio.create_task(self._interrupted.wait(), name="end during the start")
        await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if not starting.done():
            log.info("told to end before the start was done")
            await stop([starting], _LEAVE_S)
        elif (error := starting.exception()) is not None:
            log.error("start-up failed", exc_info=error)
            await self.close()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.health.drain()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    def interrupt_start(self) -> None:
        """Leave off starting, if it still does: what is to be done next is to end."""
        self._interrupted.set()

    async def start(self) -> None:
        """Build the parts and start them. Postgres may be away: the process becomes ready when it is back."""
        settings = self._settings
        if settings.database_url is None or settings.issuer is None or settings.token_audience is None:
            raise Invalid("DATABASE_URL and LLM_PROXY_ISSUER are needed.", hint="Run `llm-proxy config check`.")
        direct = settings.database_direct_url
        postgres = Postgres(
            settings.database_url.reveal(),
            direct_url=direct.reveal() if direct else None,
            max_size=settings.database_pool_size,
            statement_cache_size=settings.statement_cache_size,
        )
        self._teardown.add("postgres", postgres.close)
        loop = asyncio.get_running_loop()
        self.metrics.watch_gauge("llm_proxy_tasks", "asyncio tasks alive.", lambda: len(asyncio.all_tasks(loop)))
        # The operator's KMS may be on a private network, which tenants' addresses must not reach: a pool of its own.
        private = EgressPolicy(allow_private=True, allow_metadata=True)
        kms = ConnectionPool(DirectConnector(private))
        self._teardown.add("kms", kms.close)
        kms_calls = GuardedCalls(kms, private, repeatable=True)
        data_keys = make_data_keys(settings, postgres, kms_calls)
        keys, revocations = KeySet(), Revocations()
        verifier = Verifier(settings.issuer, settings.token_audience, keys, revocations, time.time)
        proofs = ProofCache()
        sharing = ProofSharing(proofs, postgres, clock=time.time, poll_s=settings.snapshot_poll_s)
        self._run(sharing.run(), "used proofs")
        uses = TokenUses(postgres)
        self._teardown.add("token uses", uses.close)
        self._run(uses.run(), "token uses")
        signing = (
            SigningKeys(postgres, data_keys, keys, algs=settings.signing_algorithms) if self._has_control else None
        )
        trust = Trust(postgres, keys, revocations, clock=time.time, signing=signing, poll_s=settings.snapshot_poll_s)
        self.health.require("signing keys", lambda: None if trust.is_ready else "No signing key is loaded yet.")
        first = asyncio.Event()
        self._run(trust.run(first), "trust")
        await first.wait()
        file = (
            StateFile(settings.state_path, data_keys.wrapper, settings.issuer, max_age_s=settings.state_max_age_s)
            if settings.state_path is not None and self._has_data_path
            else None
        )
        state = await file.load() if file is not None and trust.failures and not trust.is_ready else None
        if state is not None:
            trust.adopt(map(PublicKey.from_jwk, state.signing_keys), state.revocations)
        assertions = AssertionSigner(postgres, data_keys, algorithms=settings.signing_algorithms, signing=signing)
        if self._has_data_path:
            from gateway.data_path import DataPathParts

            self._data_path = DataPathParts(
                settings,
                postgres=postgres,
                sealer=data_keys,
                verifier=verifier,
                metrics=self.metrics,
                health=self.health,
                assertions=assertions,
                proofs=proofs,
                uses=uses,
            )
            self._teardown.add("data path", self._data_path.close, within_s=STEPS_S)
            await self._data_path.start()
            if state is not None:
                await preload(data_keys, state)
                await self._data_path.adopt(state)
                self._run(self._see_schema(), "schema")
            self._inference = self._data_path.app
        if state is None:  # one that was opened is proof
            fit = KekFit(postgres, data_keys.wrapper)
            self.health.require("key-encryption key", fit.check)
            await fit.look()
            self._run(fit.run(), "key-encryption key's fit")
        if signing is not None:
            from gateway.control.parts import ControlParts

            parts = ControlParts(
                settings,
                postgres=postgres,
                data_keys=data_keys,
                shares=make_shares(settings, kms_calls),
                signing=signing,
                verifier=verifier,
                metrics=self.metrics,
                assertions=assertions,
                proofs=proofs,
                uses=uses,
            )
            self._teardown.add("control plane's connections", parts.close, within_s=1.0)
            await self._hold(parts.app.lifespan(), "control plane")
            self._control = parts.app
            self._run(parts.jobs.run(), "jobs")
            self._run(parts.failures.run(), "failed authentications")

        certificates = None
        if self._tls is not None and self._tls.asks:
            certificates = RegisteredCertificates(postgres, self._tls, poll_s=settings.snapshot_poll_s)
            self._run(certificates.run(), "registered certificates")

        def heard(change: Change) -> None:
            sharing.changed(change.table)
            if change.table == USED_PROOFS:
                return  # told often, and nothing else depends on it
            if certificates is not None:
                certificates.changed(change)
            trust.changed(change)
            if change.table == "data_key" and change.tenant_id is not None:
                data_keys.forget(change.tenant_id)
            if self._data_path is not None:
                self._data_path.changed(change)
            if file is not None:
                file.changed(change)

        if file is not None:
            self._watch_state(file)
            self._run(file.run(postgres), "sealed state")
        others = self._data_path.notices if self._data_path is not None else {}
        self._run(postgres.listen(heard, also=others), "notifications")
        self._run(self._watch_keks(data_keys), "key-encryption keys")

    async def close(self) -> None:
        """Stop everything, in the reverse order of its start, within `CLOSE_S`."""
        # All at once: while the database says nothing each of them takes its time to leave.
        await stop(self._tasks, _LEAVE_S)
        await self._teardown.run()

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _hold(self, context: AbstractAsyncContextManager[None], name: str) -> None:
        """Enter `context` now and leave it at close, both in one task of its own, as cancel scopes demand."""
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        leave = asyncio.Event()

        async def hold() -> None:
            try:
                async with context:
                    entered.set_result(None)
                    await leave.wait()
            except Exception as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        task = asyncio.create_task(hold(), name=name)
        await entered

        async def end() -> None:
            leave.set()
            await task

        self._teardown.add(name, end)

    def _watch_state(self, file: StateFile) -> None:
        counter, gauge = self.metrics.watch_counter, self.metrics.watch_gauge
        counter("llm_proxy_state_writes", "Sealed states written.", lambda: file.writes)
        counter("llm_proxy_state_failures", "Sealed states that could not be written.", lambda: file.failures)
        gauge(
            "llm_proxy_state_age_seconds",
            "Age of the sealed state; -1: none yet.",
            lambda: -1.0 if file.age_s is None else file.age_s,
        )

    async def _see_schema(self) -> None:
        """Once Postgres is back, stay ready only if its schema and role suit: there was none to look at before."""
        sentence: str | None = None
        self.health.require("schema", lambda: sentence)
        while True:
            try:
                found = await database_findings(self._settings)
            except DatabaseAway:
                await asyncio.sleep(_SCHEMA_CHECK_S)
                continue
            if not found:
                sentence = None
                return
            if sentence is None:
                log.error("the database does not suit", extra={"reason": found[0][1]})
            sentence = found[0][1]
            await asyncio.sleep(_SCHEMA_CHECK_S)

    async def _watch_keks(self, data_keys: DataKeys) -> None:
        while True:
            await asyncio.sleep(self._settings.kek_poll_s)
            data_keys.drop_stale()
            try:
                concerned = await data_keys.drop_disabled()
            except Exception as error:  # noqa: BLE001 - a loop's boundary: the next look may tell
                log.warning("key-encryption keys not looked at", extra={"reason": f"{type(error).__name__}: {error}"})
                continue
            for tenant_id in concerned:
                if self._data_path is not None:
                    self._data_path.changed(Change("data_key", tenant_id))


async def _not_here(send: Send) -> None:
    request_id = new_request_id()
    body = json.dumps(
        {
            "type": "urn:llm-proxy:problem:not_found",
            "title": "Not Found",
            "status": 404,
            "detail": "This process serves inference paths only.",
            "hint": "Ask the control plane for tokens and the management API.",
            "code": "not_found",
            "request_id": request_id,
        }
    ).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-llm-proxy-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": body})
