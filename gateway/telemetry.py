"""Logs that never carry a secret, the Prometheus metrics of a process, and request ids."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

REDACTED: Final = "[redacted]"

_SECRETS: Final = re.compile(
    r"(?P<keep>(?:postgres(?:ql)?|https?)(?:\+\w+)?://[^\s:/@]+:)[^\s@]+(?=@)"  # a password in a URL
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"  # a JWT
    r"|\b(?:sk|pk|rk|lps|gsk|xai|sim|AIza|AKIA|ASIA|ghp|glpat|hf)[-_]?(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{12,}"
    r"|(?i:\b(?P<scheme>bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}"
)
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def redact(text: str) -> str:
    """Blank whatever looks like a credential: the last net behind `auth.secret.Secret`, not a reason to log one."""
    return _SECRETS.sub(
        lambda match: (match["keep"] or "") + (f"{match['scheme']} " if match["scheme"] else "") + REDACTED, text
    )


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, the record's extras, `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(entry, default=str, ensure_ascii=False))


class HumanLines(logging.Formatter):
    """Time, level, message and the extras as `name=value`, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        extras = "".join(f"  {name}={value}" for name, value in _extras(record).items())
        line = f"{clock} {record.levelname:<7} {record.getMessage()}{extras}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def configure_logging(level: str, form: str, *, stream: TextIO | None = None) -> None:
    """Send every logger of the process to `stream` (standard error); `form`: json, human or auto."""
    target = stream or sys.stderr
    human = form == "human" or (form == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(HumanLines() if human else JsonLines())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "litestar"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("asyncio", "httpx", "httpcore", "sqlalchemy", "alembic"):
        logging.getLogger(name).setLevel("WARNING")


def new_request_id() -> str:
    """Return a fresh request id: `req_` and 128 random bits, the same form on every path."""
    return f"req_{secrets.token_hex(16)}"


class Metrics:
    """The metrics of one process, in a registry of its own: tests make as many as they like.

    Labels are bounded words only (operation, provider, outcome, status): never a tenant, model or key.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._before: list[Callable[[], Awaitable[None]]] = []
        self.control_requests = Counter(
            "llm_proxy_control_requests",
            "Control plane requests, by method and status.",
            ("method", "status"),
            registry=self.registry,
        )
        self.job_runs = Counter(
            "llm_proxy_job_runs", "Runs of jobs, by task and result.", ("task", "result"), registry=self.registry
        )
        self.alerts = Counter(
            "llm_proxy_alerts", "Events that a person should look at, by event.", ("event",), registry=self.registry
        )
        self.leader = Gauge("llm_proxy_leader", "1 in the process that runs the jobs.", registry=self.registry)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        # Resident memory moves with the allocator's arenas; a leak of objects shows here first.
        self.watch_gauge("python_allocated_blocks", "Memory blocks that Python has allocated.", sys.getallocatedblocks)

    def watch_gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Publish a value that is read when the metrics are scraped."""
        self.registry.register(_Read(lambda: [GaugeMetricFamily(name, meaning, value=read())]))

    def watch_counter(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Publish a count that another object keeps, read when the metrics are scraped."""
        self.registry.register(_Read(lambda: [CounterMetricFamily(name, meaning, value=read())]))

    def watch_labelled(self, name: str, meaning: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Publish counts that another object keeps, by one label whose values are bounded words."""

        def collect() -> Iterable[Metric]:
            family = CounterMetricFamily(name, meaning, labels=[label])
            for value, count in read().items():
                family.add_metric([value], count)
            return [family]

        self.registry.register(_Read(collect))

    def before_scrape(self, prepare: Callable[[], Awaitable[None]]) -> None:
        """Let `prepare` bring up to date what the others read, where that takes too long for one turn of the loop."""
        self._before.append(prepare)

    async def scrape(self) -> bytes:
        """Return the text exposition format, for `/metrics`."""
        for prepare in self._before:
            await prepare()
        return self.render()

    def render(self) -> bytes:
        """Return what `scrape` does, as of the last one where something has to be prepared."""
        return generate_latest(self.registry)


class _Read(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()
