"""What a provider's 429 says of its limits in the body, where several say more than in headers, or all they say.

| provider  | said where                                                                  | what               |
|-----------|-----------------------------------------------------------------------------|--------------------|
| Gemini    | `error.details[]`: QuotaFailure (`quotaId`, `quotaValue`), RetryInfo        | limit, delay       |
| OpenAI    | "… on tokens per min (TPM): Limit 30000, Used 29937, … try again in 644ms"  | limit, rest, delay |
| Groq      | the same, also of limits that no header tells (tokens a day)                | limit, rest, delay |
| Anthropic | "… rate limit … of 20,000 input tokens per minute"                          | limit              |
| Azure     | "… Please retry after 60 seconds"                                           | delay              |
| Bedrock   | "Too many tokens per day, …"                                                | the day is spent   |
| Anthropic | "Number of concurrent connections has exceeded your rate limit …"           | too many at once   |
| Moonshot  | "… reached max organization concurrency: 3", "… organization max RPM: 3"    | limit              |

A body is as little to be trusted as a header: what is not understood, cut off or out of bounds is as if it were absent.

Sources: google/rpc/error_details.proto; ai.google.dev/gemini-api/docs/rate-limits; platform.openai.com/docs/guides/
rate-limits; console.groq.com/docs/rate-limits; docs.anthropic.com/en/api/errors; Azure OpenAI quota how-to; Amazon
Bedrock runtime API, ThrottlingException; and the answers themselves, which their documentation shows only in part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from gateway.balancing.hints import MAX_RETRY_AFTER_S, Hint, WindowHint, parse_count, parse_seconds

_LIMIT = re.compile(
    r"\bon (?P<unit>requests|tokens|input tokens|output tokens) per (?P<per>min|minute|day)\b[^:]{0,16}: "
    r"Limit (?P<limit>[0-9]{1,13})(?:, Used (?P<used>[0-9]{1,13}))?"
)
_RATE = re.compile(
    r"\brate limit\b.{0,120}? of (?P<limit>[0-9][0-9,]{0,16}) (?P<unit>requests|tokens|input tokens|output tokens) "
    r"per (?P<per>minute|day)\b"
)
_DELAY = re.compile(
    r"\b(?:try again|retry) (?:in|after) (?:(?P<go>(?:[0-9]{1,10}(?:\.[0-9]{1,9})?(?:ms|s|m|h|d))+)\b"
    r"|(?P<number>[0-9]{1,10}(?:\.[0-9]{1,9})?) (?P<unit>second|minute|hour)s?\b)",
    re.IGNORECASE,
)
_SHORT = re.compile(r"\bmax (?P<short>RPM|TPM|TPD|RPD): ?(?P<limit>[0-9]{1,13})\b")
_SHORT_FIELDS = {"RPM": "requests", "TPM": "tokens", "RPD": "daily_requests", "TPD": "daily_tokens"}
_IN_FLIGHT = re.compile(
    r"\b(?:concurrent (?:connections|requests|sessions|calls)|max(?:imum)?[a-z ]{0,32} concurrency|concurrency limit)\b"
    r"(?:[^0-9]{0,4} ?(?P<after>[0-9]{1,6})\b)?",
    re.IGNORECASE,
)
_IN_FLIGHT_LIMIT = re.compile(
    r"\b(?:limit|maximum|max)(?: is| of)?:? (?P<limit>[0-9]{1,6}) concurrent\b", re.IGNORECASE
)
_DAY_SPENT = re.compile(r"\AToo many (requests|tokens) per day\b")
_UNIT = {"second": "s", "minute": "m", "hour": "h"}
_FIELDS = {
    ("requests", "minute"): "requests",
    ("requests", "day"): "daily_requests",
    ("tokens", "minute"): "tokens",
    ("tokens", "day"): "daily_tokens",
    ("input tokens", "minute"): "input_tokens",
    # Gemini's tokens a day are its input tokens: what a day counts is the provider's semantics.
    ("input tokens", "day"): "daily_tokens",
    ("output tokens", "minute"): "output_tokens",
}


def with_body(head: Hint | None, body: bytes) -> Hint | None:
    """Add what a 429's body says (`body`: its beginning) to what its head told; the head's word goes first."""
    said = parse_error_hint(body)
    if head is None or said is None:
        return said if head is None else head
    both = {each.name: getattr(head, each.name) for each in fields(Hint)}
    return Hint(**{name: getattr(said, name) if value is None else value for name, value in both.items()})


def parse_error_hint(body: bytes) -> Hint | None:
    """Read the body of a 429 in any provider's form; None when it says nothing usable. Never raises."""
    error = _error_of(body)
    message = error.get("message")
    text = message if isinstance(message, str) else ""
    windows: dict[str, Any] = {}
    delay_s: float | None = None
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict):
            for field, window in _violations(detail.get("violations")):
                windows[field] = _tighter(windows.get(field), window)
            retry = detail.get("retryDelay")
            if delay_s is None and isinstance(retry, str):
                delay_s = parse_seconds(retry)
    for field, window in _worded(text):
        windows.setdefault(field, window)
    if not windows and (at_once := _IN_FLIGHT.search(text)) is not None:
        # A message that names another limit gives advice when it speaks of concurrency.
        named = _IN_FLIGHT_LIMIT.search(text)
        told = at_once["after"] if named is None else named["limit"]
        windows["in_flight"] = WindowHint(parse_count(told), 0)
    if delay_s is None:
        delay_s = _delay(text)
    if delay_s is None and not windows:
        return None
    return Hint(None if delay_s is None else min(delay_s, MAX_RETRY_AFTER_S), **windows)


def _error_of(body: bytes) -> dict[str, Any]:
    """Give the object that describes the error; Gemini wraps it in a list where it would have streamed."""
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(decoded, list) and decoded:
        decoded = decoded[0]
    if not isinstance(decoded, dict):
        return {}
    error = decoded.get("error", decoded)
    return error if isinstance(error, dict) else {"message": error}


def _violations(violations: object) -> Iterator[tuple[str, WindowHint]]:
    """Read a QuotaFailure.

    That no request is left is sure, and a day that it names counts as spent. Of a minute's tokens less is left than
    this request wanted, and nobody says how much: there only the limit is taken, and the delay says when.
    """
    for violation in violations if isinstance(violations, list) else ():
        if not isinstance(violation, dict):
            continue
        field = _quota(violation.get("quotaId")) or _quota(violation.get("quotaMetric"))
        if field is not None:
            value = violation.get("quotaValue")
            limit = parse_count(str(value)) if isinstance(value, str | int) else None
            is_day = field.startswith("daily")
            if is_day or limit is not None:
                yield field, WindowHint(limit, 0 if is_day or field == "requests" else None)


def _quota(name: object) -> str | None:
    """Give what a quota counts, by its name (GenerateRequestsPerDayPerProjectPerModel-FreeTier)."""
    if not isinstance(name, str):
        return None
    plain = name.replace("_", "").lower()
    per = "day" if "perday" in plain else "minute" if "perminute" in plain else ""
    for unit, sign in (("input tokens", "inputtoken"), ("output tokens", "outputtoken"), ("tokens", "token")):
        if sign in plain:
            return _FIELDS.get((unit, per))
    return _FIELDS.get(("requests", per)) if "request" in plain else None


def _tighter(known: WindowHint | None, window: WindowHint) -> WindowHint:
    if known is None or known.limit is None:
        return window
    return known if window.limit is None or known.limit <= window.limit else window


def _worded(text: str) -> Iterator[tuple[str, WindowHint]]:
    """Read a message that names a limit in words."""
    for found in (*_LIMIT.finditer(text), *_RATE.finditer(text)):
        field = _FIELDS.get((found["unit"], "day" if found["per"] == "day" else "minute"))
        limit = parse_count(found["limit"].replace(",", ""))
        if field is not None and limit is not None:
            used = parse_count(found.groupdict().get("used"))
            yield field, WindowHint(limit, None if used is None else max(0, limit - used))
    for found in _SHORT.finditer(text):
        yield _SHORT_FIELDS[found["short"]], WindowHint(parse_count(found["limit"]), None)
    spent = _DAY_SPENT.match(text)
    if spent is not None:
        yield _FIELDS[spent[1], "day"], WindowHint(None, 0)


def _delay(text: str) -> float | None:
    """Read the first delay of a message, in seconds."""
    found = _DELAY.search(text)
    if found is None:
        return None
    return parse_seconds(found["go"].lower() if found["go"] else found["number"] + _UNIT[found["unit"].lower()])
