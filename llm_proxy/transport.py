"""The balancer as a transport for httpx and httpx2, and under the official SDKs; the one file here that knows them.

All of them are optional and imported when asked for. A balancer's own refusals come back as answers in the API's words
(429, 401, 404), so that each SDK raises its own exceptions; broken connections and timeouts as the library's errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from gateway.balancing.outcome import OutcomeKind
from gateway.upstream.errors import UpstreamError, UpstreamTimeout
from gateway.upstream.message import Deadlines
from llm_proxy.calls import Call, http_call
from llm_proxy.engine import Engine, Opened
from llm_proxy.errors import (
    AllKeysRejected,
    BalancerClosed,
    InvalidRequest,
    LLMProxyError,
    MissingPackage,
    ModelNotServed,
    ProviderUnreachable,
    RateLimited,
    RequestTooLarge,
    Timeout,
)
from llm_proxy.events import MAX_BODY_BYTES, EventReader, EventTooLong, UsageReader, is_last
from llm_proxy.reading import drain

if TYPE_CHECKING:
    import anthropic
    import httpx
    import httpx2
    import openai

    from llm_proxy.aio import AsyncLoadBalancer
    from llm_proxy.balancer import LoadBalancer

Library = Literal["httpx", "httpx2"]

PLACEHOLDER = "replaced-by-the-balancer"
BASE_URL = "https://balanced.invalid"
"""Never connected to (RFC 2606): the chosen key says where a request goes."""

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"proxy-authenticate", b"trailer", b"upgrade"}
)
_AS_ANSWERS: tuple[tuple[type[LLMProxyError], int, str], ...] = (
    (RateLimited, 429, "rate_limit_error"),
    (AllKeysRejected, 401, "authentication_error"),
    (ModelNotServed, 404, "not_found_error"),
    (RequestTooLarge, 413, "invalid_request_error"),
    (InvalidRequest, 404, "not_found_error"),
)


class _Relay:
    """One answer on its way through a client, read for usage in passing."""

    def __init__(self, opened: Opened, call: Call) -> None:
        self._opened = opened
        self._call = call
        self._usage = UsageReader()
        self._events = EventReader() if opened.answer.streaming else None
        self._body = b""
        self.headers = [header for header in opened.answer.headers if header[0] not in _HOP_BY_HOP]
        self.headers += [
            (b"x-llm-proxy-key", opened.key.name.encode()),
            (b"x-llm-proxy-provider", opened.key.provider.encode()),
            (b"x-llm-proxy-attempts", b"%d" % len(opened.served.attempts)),
        ]
        if opened.served.fallback is not None:
            self.headers.append((b"x-llm-proxy-fallback", f"model={opened.served.fallback}".encode("ascii", "replace")))
        self.status = opened.answer.status
        self.ended = False
        self._said_all = False

    async def next(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        answer = self._opened.answer
        try:
            chunk = await answer.read()
        except BaseException as error:
            if not isinstance(error, UpstreamError):
                self.close()
            raise
        if chunk:
            self._note(chunk)
        else:
            self._settle()
        return chunk

    def _settle(self) -> None:
        self.ended = True
        answer = self._opened.answer
        if answer.kind is not OutcomeKind.OK:
            answer.close()
        elif self._events is not None:
            answer.close(self._usage.settled(self._call.est_input_tokens))
        else:
            self._usage.feed(self._body)
            answer.close(self._usage.reported)

    def _note(self, chunk: bytes) -> None:
        if self._events is None:
            if len(self._body) + len(chunk) <= MAX_BODY_BYTES:
                self._body += chunk
            return
        try:
            for name, data in self._events.feed(chunk):
                self._usage.feed(data)
                self._said_all = is_last(name, data)
        except EventTooLong:
            self._events = EventReader()

    async def finish(self) -> None:
        """End it: SDKs stop reading at the last event, before the end of the body."""
        if self.ended:
            return
        if self._said_all:
            await drain(self._opened.answer)
            self._settle()
        else:
            self.close()

    def close(self) -> None:
        """End it early; after the end this does nothing."""
        if not self.ended:
            self.ended = True
            self._opened.answer.close(self._usage.reported, aborted=True)


def sync_transport(balancer: LoadBalancer, library: Library) -> httpx.BaseTransport | httpx2.BaseTransport:
    """Make a transport over `balancer` for clients of `library`."""
    http = _import(library)

    class Body:
        def __init__(self, relay: _Relay) -> None:
            self._relay = relay
            self._portal = balancer.portal()

        def __iter__(self) -> Iterator[bytes]:
            with _translated(http):
                while chunk := self._portal.run(self._relay.next):
                    yield chunk

        def close(self) -> None:
            if not self._relay.ended:
                with contextlib.suppress(BalancerClosed):
                    self._portal.run(self._relay.finish)

        def __del__(self) -> None:
            if not self._relay.ended:
                self._portal.post(self._relay.close)

    class Transport:
        def handle_request(self, request: Any) -> Any:
            body = request.read()

            def ask() -> Coroutine[Any, Any, _Relay]:
                return _open(balancer.engine, request, body)

            with _translated(http):
                try:
                    relay = balancer.run(ask)
                except LLMProxyError as error:
                    return _answer(http, error, request)
            return http.Response(relay.status, headers=relay.headers, stream=stream_type(relay))

    stream_type = type("BalancedStream", (Body, http.SyncByteStream), {})
    made: httpx.BaseTransport = type("BalancedTransport", (Transport, http.BaseTransport), {})()
    return made


def async_transport(
    balancer: AsyncLoadBalancer, library: Library
) -> httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport:
    """Make a transport over `balancer` for asynchronous clients of `library`."""
    http = _import(library)

    class Body:
        def __init__(self, relay: _Relay) -> None:
            self._relay = relay
            self._loop = asyncio.get_running_loop()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            with _translated(http):
                while chunk := await self._relay.next():
                    yield chunk

        async def aclose(self) -> None:
            await self._relay.finish()

        def __del__(self) -> None:
            if not self._relay.ended and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._relay.close)

    class Transport:
        async def handle_async_request(self, request: Any) -> Any:
            body = await request.aread()
            with _translated(http):
                try:
                    relay = await _open(balancer.engine, request, body)
                except LLMProxyError as error:
                    return _answer(http, error, request)
            return http.Response(relay.status, headers=relay.headers, stream=stream_type(relay))

    stream_type = type("BalancedStream", (Body, http.AsyncByteStream), {})
    made: httpx.AsyncBaseTransport = type("BalancedTransport", (Transport, http.AsyncBaseTransport), {})()
    return made


async def _open(engine: Engine, request: Any, body: bytes) -> _Relay:
    path, _, query = request.url.raw_path.partition(b"?")
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    call = http_call(request.method, path, query, headers, body)
    deadlines, answer_s = _deadlines(engine.options.deadlines, request.extensions.get("timeout") or {})
    return _Relay(await engine.open(call, deadlines, answer_s=answer_s), call)


def _deadlines(ours: Deadlines, asked: Mapping[str, float | None]) -> tuple[Deadlines, float | None]:
    """Take over the client's time limits; where it sets none, the balancer's hold."""
    read_s = asked.get("read")
    return (
        Deadlines(
            connect_s=asked.get("connect") or ours.connect_s,
            write_s=asked.get("write") or ours.write_s,
            first_byte_s=read_s or ours.first_byte_s,
            idle_s=read_s or ours.idle_s,
            total_s=ours.total_s,
        ),
        read_s,
    )


class _translated:  # noqa: N801 - a with-statement's word
    """Turns our errors into those of the HTTP library."""

    def __init__(self, http: ModuleType) -> None:
        self._http = http

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        match error:
            case Timeout() | UpstreamTimeout():
                raise self._http.ReadTimeout(str(error)) from error
            case ProviderUnreachable():
                raise self._http.ConnectError(str(error)) from error
            case UpstreamError() | BalancerClosed():
                raise self._http.ReadError(str(error)) from error


def _answer(http: ModuleType, error: LLMProxyError, request: Any) -> Any:
    """Write one of the balancer's refusals as the API would; others are raised again."""
    for kind, status, word in _AS_ANSWERS:
        if isinstance(error, kind):
            body: dict[str, Any] = {"error": {"message": str(error), "type": word, "param": None, "code": word}}
            if request.url.path.startswith("/v1/messages"):
                body = {"type": "error", "error": {"type": word, "message": str(error)}}
            headers = {"content-type": "application/json", "x-should-retry": "false"}
            if isinstance(error, RateLimited) and error.retry_after_s is not None:
                headers["retry-after"] = f"{error.retry_after_s:.3f}"
            return http.Response(status, headers=headers, content=msgspec.json.encode(body))
    raise error


def openai_client(balancer: LoadBalancer, **arguments: Any) -> openai.OpenAI:
    """Make the official client over `balancer`."""
    sdk = _import("openai")
    http = _library_of(sdk.DefaultHttpxClient)
    client = http.Client(transport=sync_transport(balancer, _name(http)), timeout=sdk.DEFAULT_TIMEOUT)
    return cast("openai.OpenAI", sdk.OpenAI(**_arguments("/v1", client, arguments)))


def async_openai_client(balancer: AsyncLoadBalancer, **arguments: Any) -> openai.AsyncOpenAI:
    """Make the official asynchronous client over `balancer`."""
    sdk = _import("openai")
    http = _library_of(sdk.DefaultAsyncHttpxClient)
    client = http.AsyncClient(transport=async_transport(balancer, _name(http)), timeout=sdk.DEFAULT_TIMEOUT)
    return cast("openai.AsyncOpenAI", sdk.AsyncOpenAI(**_arguments("/v1", client, arguments)))


def anthropic_client(balancer: LoadBalancer, **arguments: Any) -> anthropic.Anthropic:
    """Make the official client over `balancer`."""
    sdk = _import("anthropic")
    http = _library_of(sdk.DefaultHttpxClient)
    client = http.Client(transport=sync_transport(balancer, _name(http)), timeout=sdk.DEFAULT_TIMEOUT)
    return cast("anthropic.Anthropic", sdk.Anthropic(**_arguments("", client, arguments)))


def async_anthropic_client(balancer: AsyncLoadBalancer, **arguments: Any) -> anthropic.AsyncAnthropic:
    """Make the official asynchronous client over `balancer`."""
    sdk = _import("anthropic")
    http = _library_of(sdk.DefaultAsyncHttpxClient)
    client = http.AsyncClient(transport=async_transport(balancer, _name(http)), timeout=sdk.DEFAULT_TIMEOUT)
    return cast("anthropic.AsyncAnthropic", sdk.AsyncAnthropic(**_arguments("", client, arguments)))


def _arguments(path: str, client: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The balancer has retried already: a client that retries too would only multiply the load."""
    ours = {"api_key": PLACEHOLDER, "base_url": BASE_URL + path, "max_retries": 0, "http_client": client}
    for name in ("api_key", "base_url", "http_client"):
        if name in arguments:
            raise InvalidRequest(f"{name} is the balancer's to set.", hint="Leave it out.")
    return {**ours, **arguments}


def _library_of(client: type) -> ModuleType:
    """Find which HTTP library an SDK's client is made of."""
    for base in client.__mro__:
        root = base.__module__.partition(".")[0]
        if root in ("httpx", "httpx2"):
            return _import(root)
    raise MissingPackage("This version of the SDK uses an HTTP library that is not known.", hint="Update llm-proxy.")


def _name(http: ModuleType) -> Library:
    return "httpx2" if http.__name__ == "httpx2" else "httpx"


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingPackage(f"{name} is not installed.", hint=f"Install it: pip install {name}") from None
