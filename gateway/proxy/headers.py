"""Which headers cross the gateway, in either direction: allow-lists. Pure.

Towards the provider (`head.RequestHead.forwarded`): what its API reads. Never the caller's credential, cookies,
forwarding or tracing headers, nor anything that `Connection` names (RFC 9110 section 7.6.1).

Towards the caller: what describes the content, and what SDKs read: the provider's `x-request-id` / `request-id` stay,
so that a support case with the provider can name them; `retry-after*` stay, up to an hour. Rate-limit headers do not
cross: they describe one key of the pool, which the caller neither chose nor may know. Nor do organisation names and
cookies.
The gateway adds

    x-llm-proxy-request-id   this request, in the gateway's logs and usage
    x-llm-proxy-pool         the pool's name          x-llm-proxy-key        the key's name, never the key
    x-llm-proxy-provider     the provider             x-llm-proxy-region     the key's region, if it has one
    x-llm-proxy-attempts     how many keys were tried, the answering one included
    x-llm-proxy-queued-ms    how long the request waited for capacity, if it did
    x-llm-proxy-explain      why that key, to those who ask and may know (see `explanation`)
"""

from __future__ import annotations

from gateway.balancing.hints import MAX_RETRY_AFTER_S, parse_retry_after
from gateway.proxy.channel import HeaderList

FORWARDED = frozenset(
    {
        b"accept", b"content-type", b"user-agent", b"idempotency-key", b"openai-beta", b"anthropic-version",
        b"anthropic-beta", b"http-referer", b"x-title",
    }
)  # fmt: skip
"""Sent to a provider as the caller sent them."""

RETURNED = frozenset(
    {
        b"content-type", b"content-length", b"content-encoding", b"content-disposition", b"content-language",
        b"cache-control", b"retry-after", b"retry-after-ms", b"x-should-retry", b"x-request-id", b"request-id",
        b"apim-request-id", b"openai-processing-ms", b"openai-version", b"openai-model",
    }
)  # fmt: skip
"""Sent to the caller as the provider sent them."""

DELAYS = frozenset({b"retry-after", b"retry-after-ms"})

IDENTITY = (b"accept-encoding", b"identity")
"""Answers are asked for uncompressed, so that usage can be read as it passes."""
PLAIN_CONNECTION = frozenset({b"keep-alive", b"close"})
"""Values of `Connection` that name no header."""


def with_capped_delays(headers: HeaderList, *, now_unix: float) -> HeaderList:
    """Return `headers` without delays that are none, and with none above `MAX_RETRY_AFTER_S`.

    Callers' SDKs sleep as they are told: no provider may put them to sleep for years.
    """
    found: HeaderList = []
    for name, value in headers:
        if name not in DELAYS:
            found.append((name, value))
            continue
        delay_s = parse_retry_after({name.decode(): value.decode("latin-1")}, now_unix=now_unix)
        if delay_s is not None and delay_s >= MAX_RETRY_AFTER_S:
            found.append((name, b"%d" % (MAX_RETRY_AFTER_S * (1000 if name == b"retry-after-ms" else 1))))
        elif delay_s is not None:
            found.append((name, value))
    return found


def with_beta(headers: HeaderList, flag: bytes) -> HeaderList:
    """Return `headers` with `flag` in `anthropic-beta`, beside the caller's own; as they are for an empty one."""
    if not flag:
        return headers
    given = [value for name, value in headers if name == b"anthropic-beta"]
    others = [header for header in headers if header[0] != b"anthropic-beta"]
    if any(flag in value.replace(b" ", b"").split(b",") for value in given):
        return headers
    return [*others, (b"anthropic-beta", b",".join([*given, flag]))]
