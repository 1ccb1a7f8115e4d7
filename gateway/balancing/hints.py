"""What a provider says about its limits in response headers, as numbers.

Headers come from outside: whatever is negative, not finite, absurdly large or not understood is as if it were absent,
and delays are clamped, so that no upstream can park a key for ever or open it wider than its configuration.

Sources: platform.openai.com/docs/guides/rate-limits; docs.anthropic.com/en/api/rate-limits; console.groq.com/docs/
rate-limits; learn.microsoft.com Azure OpenAI "429 token rate limit"; help.mistral.ai 392924; RFC 9110 section 10.2.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from gateway.balancing.value_type import value_type

MAX_COUNT = 10**12
"""Above this a limit or remainder is junk, not a quota."""
MAX_RESET_S = 31 * 86400.0
"""A month, the longest window any provider documents; what claims to be longer is junk."""
MAX_RETRY_AFTER_S = 3600.0
"""Longer delays are clamped: a key is asked again at least once an hour."""
_MAX_VALUE_CHARS = 64


@value_type(frozen=True, slots=True)
class WindowHint:
    """One limited dimension: the limit, what remains of it, and seconds until it is full again (None = not said)."""

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None


@value_type(frozen=True, slots=True)
class Hint:
    """All that one response told; `quota_name` is the organisation or project it was charged to, when named.

    What is not called daily counts per minute; `retry_after_s` is a delay from the arrival. `in_flight`: too many
    requests were under way at once.
    """

    retry_after_s: float | None = None
    requests: WindowHint | None = None
    tokens: WindowHint | None = None
    input_tokens: WindowHint | None = None
    output_tokens: WindowHint | None = None
    daily_requests: WindowHint | None = None
    daily_tokens: WindowHint | None = None
    quota_name: str | None = None
    in_flight: WindowHint | None = None


HINT_STYLES = ("openai", "azure", "anthropic", "mistral", "groq", "generic")
"""The styles that `parse_hint` knows; anything else is read as "generic"."""

_COUNT = re.compile(r"[0-9]{1,13}\Z")
_SECONDS = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?\Z")
_UNIX_TIME = re.compile(r"(?:[0-9]{10}|[0-9]{13})\Z")
_DURATION = re.compile(r"(?:[0-9]{1,10}(?:\.[0-9]{1,9})?(?:ns|us|µs|μs|ms|s|m|h|d))+\Z")
_DURATION_PART = re.compile(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h|d)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_count(value: str | None) -> int | None:
    """Read a limit or remainder: plain digits up to `MAX_COUNT`, else None."""
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 14):
        value = value.strip()
        if not _COUNT.match(value):
            return None
    count = int(value)
    return count if count <= MAX_COUNT else None


def parse_seconds(value: str | None) -> float | None:
    """Read a delay: seconds ("59.7") or a Go duration ("6m0s", "120ms"), in [0, `MAX_RESET_S`], else None."""
    return None if value is None or len(value) > _MAX_VALUE_CHARS else _duration(value)


@lru_cache(maxsize=2048)
def _duration(value: str) -> float | None:
    """A provider repeats the same few."""
    if value.isascii():
        # The two commonest forms, "120ms" and "59", need no pattern.
        if value[-2:] == "ms" and value[:-2].isdigit() and len(value) < 9:
            return int(value[:-2]) / 1000.0
        if value.isdigit() and len(value) < 7:
            return float(value)
    value = value.strip()
    if _SECONDS.match(value):
        seconds = float(value)
    elif _DURATION.match(value):
        try:
            seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(value))
        except ValueError:
            return None
    else:
        return None
    return seconds if math.isfinite(seconds) and seconds <= MAX_RESET_S else None


def parse_instant(value: str | None, *, now_unix: float) -> float | None:
    """Read an RFC 3339 instant as seconds from now, not below 0; None when absent or more than a month off."""
    if value is None or len(value) > _MAX_VALUE_CHARS:
        return None
    instant = _unix_time(value)
    return None if instant is None else _until(instant, now_unix)


def parse_retry_after(headers: Mapping[str, str], *, now_unix: float) -> float | None:
    """Read `retry-after-ms`, else `retry-after` (seconds or HTTP-date), clamped to `MAX_RETRY_AFTER_S`."""
    seconds: float | None = None
    millis = headers.get("retry-after-ms")
    if millis is not None:
        seconds = float(millis) / 1000.0 if len(millis) <= _MAX_VALUE_CHARS and _SECONDS.match(millis) else None
        if seconds is not None and seconds > MAX_RESET_S:
            seconds = None
    value = headers.get("retry-after")
    if seconds is None and value is not None and len(value) <= _MAX_VALUE_CHARS:
        seconds = parse_seconds(value)
        if seconds is None:
            try:
                seconds = _until(_timestamp(parsedate_to_datetime(value)), now_unix)
            except (ValueError, TypeError, OverflowError):
                return None
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


@lru_cache(maxsize=256)
def _unix_time(value: str) -> float | None:
    """Resets are told to the second: under load many answers name the same instant."""
    try:
        return _timestamp(datetime.fromisoformat(value.strip()))
    except (ValueError, OverflowError):
        return None


def _timestamp(instant: datetime) -> float:
    return (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).timestamp()


def _until(unix: float, now_unix: float) -> float | None:
    seconds = unix - now_unix
    return max(0.0, seconds) if abs(seconds) <= MAX_RESET_S else None


def _window(limit: int | None, remaining: int | None, reset_s: float | None) -> WindowHint | None:
    if limit == 0:
        # Servers without such a limit say so: whoever answers under a limit of none has none.
        return None
    if limit is not None and remaining is not None and remaining > limit:
        remaining = limit
    return None if limit is None and remaining is None else WindowHint(limit, remaining, reset_s)


def _names(pattern: str, dimension: str) -> tuple[str, str, str]:
    limit, remaining, reset = (pattern.format(what=what, of=dimension) for what in ("limit", "remaining", "reset"))
    return limit, remaining, reset


_REQUESTS, _TOKENS = (_names("x-ratelimit-{what}-{of}", of) for of in ("requests", "tokens"))
_ANTHROPIC = {
    of: _names("anthropic-ratelimit-{of}-{what}", of) for of in ("requests", "tokens", "input-tokens", "output-tokens")
}
_MISTRAL = ("x-ratelimitbysize-limit-minute", "x-ratelimitbysize-remaining-minute", "ratelimitbysize-reset")
_PLAIN = ("x-ratelimit", "ratelimit")
_OPENAI_QUOTA = ("openai-organization", "openai-project")
_ANTHROPIC_QUOTA = ("anthropic-organization-id",)
_QUOTA_NAMES = frozenset((*_OPENAI_QUOTA, *_ANTHROPIC_QUOTA))
_DELAYS = frozenset(("retry-after", "retry-after-ms"))


def _header_names(*rows: Iterable[str]) -> Mapping[bytes, str]:
    always = (*_DELAYS, *_QUOTA_NAMES)
    return {name.encode(): name for row in (always, *rows) for name in row}


_EVERY = _header_names(
    _REQUESTS,
    _TOKENS,
    *_ANTHROPIC.values(),
    [f"{name}-{what}" for name in _PLAIN for what in ("limit", "remaining", "reset")],
)
_BY_STYLE: Mapping[str, Mapping[bytes, str]] = {
    **dict.fromkeys(("openai", "azure", "groq"), _header_names(_REQUESTS, _TOKENS)),
    "anthropic": _header_names(*_ANTHROPIC.values()),
    "mistral": _header_names(_MISTRAL, ["x-ratelimitbysize-reset"]),
}


def header_names(style: str) -> Mapping[bytes, str]:
    """Give the (lower-cased) headers that `parse_hint` looks at for this style: of the others none need be decoded."""
    return _BY_STYLE.get(style, _EVERY)


@lru_cache(maxsize=1024)
def _known_limit(value: str) -> int | None:
    """Limits are the same in answer after answer."""
    return parse_count(value)


def _openai_window(headers: Mapping[str, str], names: tuple[str, str, str]) -> WindowHint | None:
    limit, remaining, reset = names
    told, left = headers.get(limit), headers.get(remaining)
    if told is None and left is None:
        return None
    return _window(
        None if told is None or len(told) > _MAX_VALUE_CHARS else _known_limit(told),
        parse_count(left),
        parse_seconds(headers.get(reset)),
    )


def _anthropic_window(headers: Mapping[str, str], dimension: str, now_unix: float) -> WindowHint | None:
    limit, remaining, reset = _ANTHROPIC[dimension]
    return _window(
        parse_count(headers.get(limit)),
        parse_count(headers.get(remaining)),
        parse_instant(headers.get(reset), now_unix=now_unix),
    )


def _plain_window(headers: Mapping[str, str], now_unix: float) -> WindowHint | None:
    """`x-ratelimit-*` or `ratelimit-*` without a dimension; a reset of 10 digits is a Unix time in s, of 13 in ms."""
    for prefix in _PLAIN:
        reset = headers.get(f"{prefix}-reset")
        reset_s = parse_seconds(reset)
        if reset is not None and _UNIX_TIME.match(reset):
            reset_s = max(0.0, (float(reset) / 1000.0 if len(reset) == 13 else float(reset)) - now_unix)
            reset_s = reset_s if reset_s <= MAX_RESET_S else None
        window = _window(
            parse_count(headers.get(f"{prefix}-limit")), parse_count(headers.get(f"{prefix}-remaining")), reset_s
        )
        if window is not None:
            return window
    return None


def _quota_name(headers: Mapping[str, str]) -> str | None:
    for names in (_OPENAI_QUOTA, _ANTHROPIC_QUOTA):
        parts = [told for name in names if (value := headers.get(name)) and (told := value.strip())]
        if parts and all(len(part) <= 128 and part.isprintable() for part in parts):
            return "/".join(parts)
    return None


NO_HINT = Hint()
"""The answer that tells nothing."""

_Told = tuple[float | None, str | None]
"""What every style may say: the delay, and the quota's name."""


def _openai(headers: Mapping[str, str], told: _Told, now_unix: float) -> Hint:
    del now_unix
    return Hint(told[0], _openai_window(headers, _REQUESTS), _openai_window(headers, _TOKENS), quota_name=told[1])


def _groq(headers: Mapping[str, str], told: _Told, now_unix: float) -> Hint:
    del now_unix
    requests, tokens = _openai_window(headers, _REQUESTS), _openai_window(headers, _TOKENS)
    return Hint(told[0], tokens=tokens, daily_requests=requests, quota_name=told[1])


def _anthropic(headers: Mapping[str, str], told: _Told, now_unix: float) -> Hint:
    return Hint(
        told[0],
        requests=_anthropic_window(headers, "requests", now_unix),
        tokens=_anthropic_window(headers, "tokens", now_unix),
        input_tokens=_anthropic_window(headers, "input-tokens", now_unix),
        output_tokens=_anthropic_window(headers, "output-tokens", now_unix),
        quota_name=told[1],
    )


def _mistral(headers: Mapping[str, str], told: _Told, now_unix: float) -> Hint:
    del now_unix
    tokens = _window(
        parse_count(headers.get(_MISTRAL[0])),
        parse_count(headers.get(_MISTRAL[1])),
        parse_seconds(headers.get(_MISTRAL[2]) or headers.get("x-ratelimitbysize-reset")),
    )
    return Hint(told[0], tokens=tokens, quota_name=told[1])


def _any(headers: Mapping[str, str], told: _Told, now_unix: float) -> Hint:
    if "anthropic-ratelimit-requests-limit" in headers or "anthropic-ratelimit-tokens-limit" in headers:
        return _anthropic(headers, told, now_unix)
    return Hint(
        told[0],
        requests=_openai_window(headers, _REQUESTS) or _plain_window(headers, now_unix),
        tokens=_openai_window(headers, _TOKENS),
        quota_name=told[1],
    )


_READERS = {"openai": _openai, "azure": _openai, "groq": _groq, "anthropic": _anthropic, "mistral": _mistral}


def parse_hint(headers: Mapping[str, str], style: str, *, now_unix: float) -> Hint | None:
    """Read a response's limit headers (`headers` with lower-cased names); None when they say nothing usable.

    `style` is one of `HINT_STYLES`; `now_unix` (seconds) turns instants into delays. Never raises on header contents.
    """
    told = (
        None if _DELAYS.isdisjoint(headers) else parse_retry_after(headers, now_unix=now_unix),
        None if _QUOTA_NAMES.isdisjoint(headers) else _quota_name(headers),
    )
    hint = _READERS.get(style, _any)(headers, told, now_unix)
    return None if hint.requests is None and hint == NO_HINT else hint
