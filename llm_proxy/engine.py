"""The engine under both balancers: the gateway's own balancing, exchange and connection pool, wired for one process.

Runs on one event loop. `LoadBalancer` drives it from other threads, `AsyncLoadBalancer` directly.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

from gateway.balancing.balancer import Balancer
from gateway.balancing.decision import Ask, Lease
from gateway.balancing.exchange import Exchange
from gateway.balancing.fallback import Cause, Ladder, Rung, cause_of_answer, cause_of_failure
from gateway.balancing.hedging import HedgePolicy, Hedging
from gateway.balancing.outcome import OutcomeKind
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.steps import BACKOFF, CallerGone, Failure, Pause
from gateway.balancing.strategies.cache_affinity import CacheAffinity
from gateway.balancing.strategies.registry import make_strategy
from gateway.upstream.affinity import affinity_of
from gateway.upstream.connect import DirectConnector, EgressProxy, tls_context
from gateway.upstream.dispatch import MIN_TOTAL_S, Answer, Prepared, dispatch
from gateway.upstream.filtered import was_filtered
from gateway.upstream.message import Deadlines, UpstreamRequest
from gateway.upstream.pool import ConnectionPool
from llm_proxy.answers import Attempt, Served
from llm_proxy.calls import Call, with_model
from llm_proxy.config import EGRESS, Configuration, Key
from llm_proxy.errors import BalancerClosed, ConfigurationError, LLMProxyError
from llm_proxy.failures import as_error, full
from llm_proxy.line import Lines, Place
from llm_proxy.stats import Stats, make_stats


@dataclass(frozen=True, slots=True)
class Options:
    """How calls are made; times in seconds.

    `deadlines` bounds the phases of an attempt, its `total_s` the whole call with all attempts. `max_wait_s` is how
    long a call may wait for capacity, `max_attempts` how many keys it may try (the first included). `hedge_share` of
    the calls may be sent to a second key when their answer is late (0: none). `fallback_models` maps a model to those
    that stand in for it, in order, where no key can serve it for one of the causes in `fallback_on` ("capacity",
    "outage", "context_length", "content_policy"). `egress_proxy` is http://[user:password@]host:port, `ca_file` adds a
    certificate authority to the public ones.
    """

    deadlines: Deadlines = field(default_factory=lambda: Deadlines(total_s=600.0))
    max_wait_s: float = 30.0
    max_attempts: int = 4
    hedge_share: float = 0.0
    fallback_models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fallback_on: Collection[str] = ("capacity", "outage")
    egress_proxy: str | None = field(default=None, repr=False)
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer that may be read: 2xx, or the provider's own final error. Its reader finishes or closes `answer`."""

    answer: Answer
    served: Served
    key: Key


class Engine:
    """One configuration at work: its keys' state, their connections, and the calls that wait."""

    def __init__(
        self,
        configuration: Configuration,
        options: Options,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        rng: Random | None = None,
    ) -> None:
        self.configuration = configuration
        self.options = options
        self._clock = clock
        self._unix_clock = unix_clock
        self._rng = rng or Random()  # noqa: S311 - choices and jitter, no secrets
        self._lines = Lines(clock)
        keys = configuration.keys.values()
        strategy = make_strategy(configuration.strategy)
        self._has_affinity = isinstance(strategy, CacheAffinity)
        self._balancer = Balancer(
            [key.endpoint for key in keys],
            [key.quota for key in keys],
            strategy,
            rng=self._rng,
            now=clock(),
            unix_offset_s=unix_clock() - clock(),
            on_freed=self._lines.freed,
        )
        self._policy = RetryPolicy(
            max_attempts=options.max_attempts, failover=configuration.failover, max_pause_s=options.max_wait_s
        )
        self._budget = RetryBudget()
        self._hedging = Hedging(HedgePolicy(options.hedge_share)) if options.hedge_share > 0.0 else None
        self._connector = _connector(options)
        self._connections: ConnectionPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exchanges: list[Exchange] = []
        self._closed = False

    async def open(self, call: Call, deadlines: Deadlines | None = None, *, answer_s: float | None = None) -> Opened:
        """Send `call` on the keys that may serve it until one answers; raises an `LLMProxyError` when none does.

        `answer_s` bounds the time to the answer's head over all attempts (default: `deadlines.total_s`).
        """
        deadlines = deadlines or self.options.deadlines
        began = self._clock()
        deadline = began + (deadlines.total_s if answer_s is None else min(answer_s, deadlines.total_s))
        model = call.model or self._any_model(call.dialect)
        rungs = self._rungs(model)
        ladder = Ladder(rungs, pool="", model=model)
        tried: list[Attempt] = []
        total_s = deadlines.total_s
        while True:
            # While a stand-in for want of capacity is left, nobody waits for the model that is full.
            patience_s = ladder.patience_s(Cause.CAPACITY)
            wait_s = self._policy.max_pause_s if patience_s is None else min(patience_s, self._policy.max_pause_s)
            if tried:
                deadlines = replace(deadlines, total_s=max(MIN_TOTAL_S, began + total_s - self._clock()))
            found = await self._try(call, model, deadlines, deadline, wait_s)
            tried += found.attempts
            cause = found.cause
            if found.answer is not None and rungs:
                try:
                    if found.answer.kind is not OutcomeKind.OK:
                        cause = cause_of_answer(found.answer.status, await found.answer.peek())
                    elif ladder.patience_s(Cause.CONTENT_POLICY) is not None and await was_filtered(found.answer):
                        cause = Cause.CONTENT_POLICY
                except BaseException:
                    found.answer.close(aborted=True)
                    raise
            place = ladder.climb(cause, replayable=True, now=self._clock(), deadline=deadline)
            following = None if place is None else with_model(call, place[1])
            if place is None or following is None:
                if found.answer is None:
                    raise found.error or AssertionError("neither an answer nor an error")
                fallback = model if ladder.cause is not None else None
                return self._opened(found.answer, tried, fallback)
            if found.answer is not None:
                found.answer.close()
            call, model = following, place[1]

    def _rungs(self, model: str) -> list[Rung]:
        """Give the models that stand in for `model`: those of the options, then those of the configuration."""
        causes = frozenset(map(Cause, self.options.fallback_on))
        rungs = [Rung(model=each, causes=causes) for each in self.options.fallback_models.get(model, ())]
        for rung in self.configuration.rungs:
            stand_in = rung.model_for(model)
            if stand_in is not None and model:
                rungs.append(Rung(model=stand_in, causes=rung.causes, after_s=rung.after_s))
        return rungs

    async def _try(self, call: Call, model: str, deadlines: Deadlines, deadline: float, wait_s: float) -> _Found:
        connections, now = self._pool(), self._clock()
        hedging = self._hedging
        exchange = Exchange(
            self._balancer,
            Ask(
                model=model,
                dialect=call.dialect,
                est_input_tokens=call.est_input_tokens,
                est_output_tokens=call.est_output_tokens,
                deadline=deadline,
                output_unset=call.output_unset,
                affinity=affinity_of(call.body) if self._has_affinity else None,
            ),
            self._policy if wait_s >= self._policy.max_pause_s else replace(self._policy, max_pause_s=wait_s),
            self._budget,
            rng=self._rng,
            hedge=None if hedging is None or self._lines.size else hedging.begin(model, now),
        )
        self._remember(exchange)
        until = min(deadline, now + wait_s)
        attempt = _Attempts(self, call, deadlines, Place(self._lines, (call.dialect, model)), until)
        try:
            if (call.dialect, model) in self._lines.waiting and not await attempt.stand(deadline):
                return _Found(error=full(self.configuration.name, model, None), cause=Cause.CAPACITY)
            found = await dispatch(
                exchange,
                attempt.prepare,
                connections,
                clock=self._clock,
                park=attempt.park,
                unix_clock=self._unix_clock,
            )
        finally:
            attempt.place.leave()
        if isinstance(found, Failure):
            if self._closed:
                raise BalancerClosed("The balancer was closed during the call.")
            error = as_error(found, self.configuration.name, model, len(exchange.attempts))
            return _Found(error=error, cause=cause_of_failure(found), attempts=_attempts(exchange, None))
        if hedging is not None:
            served = found.lease.endpoint.id if found.kind is OutcomeKind.OK else None
            hedging.ended(model, exchange.attempts, served)
        return _Found(answer=found, attempts=_attempts(exchange, found))

    def _opened(self, answer: Answer, attempts: Sequence[Attempt], fallback: str | None) -> Opened:
        key = self.configuration.keys[answer.lease.endpoint.id]
        request_id = next((v for n, v in answer.headers if n in (b"x-request-id", b"request-id")), None)
        served = Served(
            key=key.name,
            provider=key.provider,
            request_id=None if request_id is None else request_id.decode("latin-1"),
            attempts=tuple(attempts),
            fallback=fallback,
        )
        return Opened(answer, served, key)

    def stats(self) -> Stats:
        """Say what is known now."""
        connections = self._connections.view() if self._connections is not None else None
        return make_stats(
            self._balancer.view(self._clock()),
            waiting=self._lines.size,
            open_connections=connections.open if connections else 0,
            idle_connections=connections.idle if connections else 0,
        )

    async def close(self) -> None:
        """End the calls that are under way and close every connection; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._connections is not None and self._loop is asyncio.get_running_loop():
            await self._connections.close()

    @property
    def closed(self) -> bool:
        """Tell whether `close` was called."""
        return self._closed

    def _pool(self) -> ConnectionPool:
        """Return the connections, which belong to the running loop."""
        if self._closed:
            raise BalancerClosed("The balancer is closed.", hint="Make a new one, or keep it open while it is used.")
        loop = asyncio.get_running_loop()
        if self._connections is None or self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    "An AsyncLoadBalancer belongs to one event loop at a time: use one for each loop, or LoadBalancer, "
                    "which any thread may call."
                )
            # The loop it was used on is over (as after asyncio.run): its sockets are too; what was learned stays.
            self._connections, self._loop = ConnectionPool(self._connector), loop
            self._lines.waiting.clear()
            self._give_up()
        return self._connections

    def _remember(self, exchange: Exchange) -> None:
        """Keep hold of a call, as long as it is under way."""
        if len(self._exchanges) >= 64 + 2 * self._balancer.in_flight:
            self._exchanges = [each for each in self._exchanges if not each.is_over]
        self._exchanges.append(exchange)

    def _give_up(self) -> None:
        """Give back what calls of a loop that is over still hold: their streams cannot be closed any more."""
        left, self._exchanges = self._exchanges, []
        for exchange in left:
            if not exchange.is_over:
                exchange.step(CallerGone(), self._clock())

    def _any_model(self, dialect: str) -> str:
        """Name a model for calls that name none: one that as many keys as possible serve."""
        globs = [key.endpoint.models for key in self.configuration.keys.values() if dialect in key.endpoint.dialects]
        return "" if not globs or not all(globs) else globs[0][0]

    @property
    def clock(self) -> Callable[[], float]:
        """The monotonic clock that deadlines are given in."""
        return self._clock


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of one model's keys: an answer, or the error to raise and why another model might do better."""

    answer: Answer | None = None
    error: LLMProxyError | None = None
    cause: Cause | None = None
    attempts: Sequence[Attempt] = ()


class _Attempts:
    """What `dispatch` asks of one call: a request for each lease, and a place to wait in."""

    __slots__ = ("_call", "_deadlines", "_engine", "_until", "place")

    def __init__(self, engine: Engine, call: Call, deadlines: Deadlines, place: Place, until: float) -> None:
        self._engine = engine
        self._call = call
        self._deadlines = deadlines
        self._until = until
        self.place = place

    def prepare(self, lease: Lease) -> Prepared:
        self.place.leave()
        call = self._call
        face = self._engine.configuration.keys[lease.endpoint.id].faces[call.dialect]
        named = {name for name, _ in call.headers}
        defaults = [header for header in face.target.face.defaults if header[0] not in named]
        return Prepared(
            face.target.origin,
            UpstreamRequest(
                method=call.method.encode(),
                target=face.target.path(call.path),
                headers=[*call.headers, *defaults] if defaults else call.headers,
                body=call.body,
                fixed=face.fixed,
            ),
            face.target.hint_style,
            self._deadlines,
        )

    async def park(self, pause: Pause) -> bool:
        if pause.reason == BACKOFF:
            # Not for want of capacity: standing in line would hold up those whom this failure does not concern.
            await asyncio.sleep(max(0.0, pause.until - self._engine.clock()))
            return True
        return await self.stand(pause.until)

    async def stand(self, until: float) -> bool:
        return await self.place.wait(until, self._until)


def _attempts(exchange: Exchange, answer: Answer | None) -> list[Attempt]:
    answering = OutcomeKind.OK if answer is None else answer.kind
    first_byte_s = 0.0 if answer is None else answer.first_byte_s
    return [
        Attempt(
            attempt.endpoint_id,
            str(attempt.kind or answering),
            attempt.status,
            first_byte_s if attempt.total_s is None else attempt.total_s,
            attempt.hedge,
        )
        for attempt in exchange.attempts
    ]


@cache
def _public_tls() -> ssl.SSLContext:
    """Reading the roots takes longer than everything else about a balancer: once a process."""
    return tls_context()


def _connector(options: Options) -> DirectConnector:
    proxy = None
    if options.egress_proxy is not None:
        try:
            proxy = EgressProxy.parse(options.egress_proxy)
        except ValueError as error:
            raise ConfigurationError([("/egress_proxy", str(error))]) from None
    try:
        tls = _public_tls() if options.ca_file is None else tls_context(options.ca_file)
    except OSError as error:
        raise ConfigurationError([("/ca_file", f"cannot be read as certificates: {error.strerror or error}")]) from None
    return DirectConnector(EGRESS, tls=tls, proxy=proxy)


def check_options(options: Options) -> None:
    """Raise `ConfigurationError` for options that no call could be made with."""
    times = {f"deadlines.{name}": getattr(options.deadlines, name) for name in Deadlines.__dataclass_fields__}
    problems = [(f"/{name}", "must be more than 0 seconds") for name, value in times.items() if not value > 0]
    if not options.max_wait_s >= 0:
        problems.append(("/max_wait_s", "must be 0 seconds or more"))
    if options.max_attempts < 1:
        problems.append(("/max_attempts", "must be 1 or more"))
    if not 0.0 <= options.hedge_share <= 0.5:
        problems.append(("/hedge_share", "must be a share of the calls, 0 to 0.5"))
    if unknown := set(options.fallback_on) - set(Cause):
        problems.append(("/fallback_on", f"has {min(unknown)!r}; the causes are {', '.join(Cause)}"))
    for model, others in options.fallback_models.items():
        if isinstance(others, str) or not others or model in others:
            problems.append(("/fallback_models", f"must list the models that stand in for {model!r}, not itself"))
    if problems:
        raise ConfigurationError(problems)


def with_total(deadlines: Deadlines, timeout_s: float | None) -> Deadlines:
    """Return `deadlines` for a call that may take `timeout_s` in all (None: as configured)."""
    return deadlines if timeout_s is None else replace(deadlines, total_s=timeout_s)
