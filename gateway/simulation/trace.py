"""Traffic as it was: arrivals read from CSV, the gateway's own usage export included."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

DEFAULT_MODEL = "gpt-4o"
_COLUMNS = {
    "t": ("t", "time", "time_s", "timestamp", "started_at", "arrived_at", "at"),
    "input": ("inp", "input", "input_tokens", "prompt_tokens"),
    "output": ("out", "output", "output_tokens", "completion_tokens"),
    "cached": ("cached", "cached_tokens", "cached_input_tokens"),
    "model": ("model",),
    "tenant": ("kind", "tenant", "client", "client_id", "tenant_id"),
    "conversation": ("conversation", "conversation_id", "session", "session_id", "affinity"),
}
_REQUIRED = ("t", "input", "output")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: `t` seconds from the start of the trace, tokens as they turned out.

    `cached_tokens` could be read from a prompt cache, where the same `conversation` was served shortly before.
    """

    t: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    tenant: str = ""
    model: str = DEFAULT_MODEL
    conversation: str = ""


class BadTrace(ValueError):
    """The file is no trace; the message names the line and says what is expected."""


def read_trace(path: Path, *, limit: int | None = None) -> list[Arrival]:
    """Read a CSV file, gzip or plain, in order of time; `limit` keeps the first so many. Raises BadTrace, OSError."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with (
        gzip.open(path, "rb") if packed else path.open("rb") as binary,
        io.TextIOWrapper(binary, encoding="utf-8", newline="") as text,
    ):
        try:
            return parse_trace(text, limit=limit)
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise BadTrace(f"this is not a CSV file in UTF-8 (plain or gzip): {error}") from error


def parse_trace(lines: Iterable[str], *, limit: int | None = None) -> list[Arrival]:
    """Read CSV lines with a header: time, input and output tokens; cached, model and tenant if there are any."""
    reader = csv.reader(lines)
    header = [name.strip().lower() for name in next(reader, [])]
    places = {
        field: next((header.index(name) for name in names if name in header), None) for field, names in _COLUMNS.items()
    }
    missing = [field for field in _REQUIRED if places[field] is None]
    if missing:
        wanted = "; ".join(f"{field}: {', '.join(_COLUMNS[field])}" for field in missing)
        raise BadTrace(f"line 1: columns are missing. Expected one name of each ({wanted}), found: {', '.join(header)}")
    arrivals: list[Arrival] = []
    for row in reader:
        if row:
            arrivals.append(_arrival(row, places, reader.line_num))
        if limit is not None and len(arrivals) >= limit:
            break
    if not arrivals:
        raise BadTrace("the trace has a header and no requests")
    arrivals.sort(key=lambda arrival: arrival.t)
    start = arrivals[0].t
    if start > 86_400:
        # Absolute times (Unix or ISO): what counts is the time since the first request.
        arrivals = [_moved(arrival, -start) for arrival in arrivals]
    return arrivals


def _moved(arrival: Arrival, by_s: float) -> Arrival:
    return Arrival(
        arrival.t + by_s,
        arrival.input_tokens,
        arrival.output_tokens,
        arrival.cached_tokens,
        arrival.tenant,
        arrival.model,
        arrival.conversation,
    )


def _arrival(row: Sequence[str], places: dict[str, int | None], line: int) -> Arrival:
    def cell(field: str) -> str:
        place = places[field]
        return row[place].strip() if place is not None and place < len(row) else ""

    return Arrival(
        t=_time(cell("t"), line),
        input_tokens=_count(cell("input"), "input", line),
        output_tokens=_count(cell("output"), "output", line),
        cached_tokens=_count(cell("cached") or "0", "cached", line),
        tenant=cell("tenant"),
        model=cell("model") or DEFAULT_MODEL,
        conversation=cell("conversation"),
    )


def _time(text: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise BadTrace(f"line {line}: {text[:40]!r} is neither seconds nor an ISO 8601 time") from None
        value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(value) or value < 0:
        raise BadTrace(f"line {line}: the time {text[:40]!r} is not a number of seconds, 0 or more")
    return value


def _count(text: str, field: str, line: int) -> int:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10**9:
        raise BadTrace(f"line {line}: {field} tokens {text[:40]!r} are not a whole number, 0 or more")
    return int(value)


def write_trace(arrivals: Iterable[Arrival]) -> Iterator[str]:
    """Give the lines of a CSV file that `parse_trace` reads."""
    yield "t,input_tokens,output_tokens,cached_tokens,tenant,model,conversation\n"
    for each in arrivals:
        yield (
            f"{each.t:.3f},{each.input_tokens},{each.output_tokens},{each.cached_tokens},{each.tenant},{each.model},"
            f"{each.conversation}\n"
        )
