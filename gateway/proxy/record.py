"""Collects what one request's usage row says, while the request goes on, and writes it exactly once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, NamedTuple, Protocol

from auth.principal import Principal
from gateway.balancing.hedging import Hedging
from gateway.balancing.outcome import TokenUsage
from gateway.metering.event import UsageEvent
from gateway.metering.explanations import StoredExplanation
from gateway.metering.pricing import PriceTable
from gateway.policy.allowance import Taken
from gateway.proxy.channel import HeaderList
from gateway.proxy.key_target import KeyTarget
from gateway.proxy.runtime import PoolRuntime
from gateway.proxy.sizing import Sized

_NOTHING = TokenUsage(reported=False)
_MAX_TEXT = 256
_62_BITS = (1 << 62) - 1
_ANYWHERE = frozenset[str]()


class Recorder(Protocol):
    """Takes finished rows; fulfilled by `UsageRecorder`, and by whatever counts for metrics."""

    def record(self, row: UsageEvent) -> None:
        """Take one row; must not block or raise."""


class GivenUp(NamedTuple):
    """An attempt of a request that was given up, another one having answered first."""

    hedging: Hedging
    provider: str
    model: str
    est_input_tokens: int

    def estimate(self, usage: TokenUsage, prices: PriceTable, *, streamed: bool) -> None:
        """Estimate what the provider charges for it by what the one that answered used.

        The prompt was the same. A provider that answers in one piece has mostly made all of it by then; a stream is
        ended before its first content.
        """
        input_tokens, output_tokens = usage.input or self.est_input_tokens, 0 if streamed else usage.output
        estimate = TokenUsage(input_tokens, output_tokens, reported=False)
        self.hedging.gave_up(input_tokens, output_tokens, prices.cost_nanos(self.provider, self.model, estimate))


class RequestRecord:
    """What is known so far; `write` makes the row of it. Without `principal` there is nobody to charge, and no row.

    `regions` are those of every attempt where there was more than one, `residency` the only ones that were allowed.
    `explained` is why it went where it went, a document for each pool. `priced_as` is what the caller's name for the
    model means, or the model that stands in for it; `told` are further headers of the answer. `status` stays
    UNANSWERED, `outcome` ABANDONED, when the caller left first. `clock` is monotonic seconds, `id` a UUID's hexadecimal
    digits. The row is written before the answer's last bytes leave: whoever was answered has a row, whatever ends this
    process in the next moment. `given_up`: an attempt that was hedged and lost.
    """

    UNANSWERED: Final = 499
    ABANDONED: Final = "abandoned"

    __slots__ = (
        "_arrived",
        "_clock",
        "_prices",
        "_recorders",
        "_written",
        "attempts",
        "cost_nanos",
        "explained",
        "explanation",
        "first_byte_at",
        "given_up",
        "id",
        "model",
        "operation",
        "outcome",
        "pool",
        "priced_as",
        "principal",
        "queued_behind",
        "regions",
        "request_id",
        "residency",
        "served_model",
        "sized",
        "status",
        "streamed",
        "taken",
        "target",
        "told",
        "unix",
        "usage",
        "waited_s",
    )

    def __init__(
        self,
        rng: Random,
        recorders: tuple[Recorder, ...],
        prices: PriceTable,
        *,
        clock: Callable[[], float],
        unix: float,
    ) -> None:
        self._recorders = recorders
        self._prices = prices
        self.id = f"{new_id(rng, unix):032x}"
        self.request_id = "req_" + self.id
        self.unix = unix
        self._clock = clock
        self._arrived = clock()
        self._written = False
        self.principal: Principal | None = None
        self.operation = ""
        self.model = ""
        self.served_model: str | None = None
        self.pool: PoolRuntime | None = None
        self.target: KeyTarget | None = None
        self.status = self.UNANSWERED
        self.outcome = self.ABANDONED
        self.attempts = 0
        self.streamed = False
        self.waited_s = 0.0
        self.queued_behind: int | None = None
        self.sized: Sized | None = None
        self.given_up: GivenUp | None = None
        self.priced_as: str | None = None
        self.told: HeaderList | None = None
        self.cost_nanos: int | None = None
        self.taken: Taken | None = None
        self.explanation: bytes | None = None
        self.explained: list[dict[str, Any]] | None = None
        self.regions: list[str] | None = None
        self.residency: frozenset[str] = _ANYWHERE
        self.usage = _NOTHING
        self.first_byte_at: float | None = None

    def write(self) -> None:
        """Hand the row to the recorders; only the first call does."""
        principal = self.principal
        if self._written or principal is None:
            return
        self._written = True
        pool, target, usage, first = self.pool, self.target, self.usage, self.first_byte_at
        key_id = key_version = provider = region = None
        if self.served_model:
            self.served_model = _storable(self.served_model)
        if target is not None:
            key_id, key_version, provider, region = target.key_id, target.version, target.provider, target.region
            if usage.input or usage.output:
                self.cost_nanos = self._cost_nanos(target.provider, usage)
        arrived = self._arrived
        # By position: of more than 15 arguments by name CPython makes a dictionary first.
        row = UsageEvent(
            self.id,
            principal.tenant_id,
            datetime.fromtimestamp(self.unix, UTC),
            self.request_id,
            principal.client_id,
            principal.token_id,
            None if pool is None else pool.pool_id,
            key_id,
            key_version,
            provider,
            region,
            self.operation,
            _storable(self.model),
            self.served_model or None,
            self.status,
            self.outcome,
            self.attempts,
            self.streamed,
            usage.input,
            usage.output,
            usage.cached_input,
            usage.reported,
            self.cost_nanos,
            None if first is None else (first - arrived) * 1000.0,
            (self._clock() - arrived) * 1000.0,
            ",".join(self.regions) if self.regions else None,
            ",".join(sorted(self.residency)) if self.residency else None,
        )
        for recorder in self._recorders:
            recorder.record(row)
        if self.given_up is not None:
            self.given_up.estimate(usage, self._prices, streamed=self.streamed)

    def _cost_nanos(self, provider: str, usage: TokenUsage) -> int | None:
        asked = self.priced_as or self.model
        if self.served_model:
            cost = self._prices.cost_nanos(provider, self.served_model, usage)
            if cost is not None:
                return cost
            # Deployments and dated snapshots go by names that no price list has; the caller's name may be in it.
        return self._prices.cost_nanos(provider, asked, usage)

    @property
    def stored_explanation(self) -> StoredExplanation | None:
        """What is kept of why it went where it went; None when nothing was explained."""
        principal, pools = self.principal, self.explained
        if principal is None or pools is None:
            return None
        at = datetime.fromtimestamp(self.unix, UTC)
        return StoredExplanation(tenant_id=principal.tenant_id, request_id=self.request_id, at=at, pools=pools)


def new_id(rng: Random, unix: float) -> int:
    """Return a UUID of version 7 as a number (RFC 9562 section 5.7): Unix milliseconds, then 74 random bits."""
    drawn = rng.getrandbits(74)
    return int(unix * 1000.0) << 80 | 7 << 76 | (drawn >> 62) << 64 | 2 << 62 | drawn & _62_BITS


def _storable(text: str) -> str:
    """Postgres takes no NUL, and a provider's answer is not trusted to be short."""
    return text[:_MAX_TEXT].replace("\0", "") if "\0" in text or len(text) > _MAX_TEXT else text
