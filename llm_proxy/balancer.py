"""`LoadBalancer`: a pool of provider keys as one reliable key, callable from any thread."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from llm_proxy.answers import (
    Completion,
    CompletionChunk,
    Message,
    MessageEvent,
    read_chunk,
    read_completion,
    read_event,
    read_message,
)
from llm_proxy.calls import Call, chat_call, message_call
from llm_proxy.config import read_configuration
from llm_proxy.engine import Engine, Opened, Options, check_options, with_total
from llm_proxy.errors import BalancerClosed, ConfigurationError
from llm_proxy.portal import Portal
from llm_proxy.reading import Events, read_whole
from llm_proxy.stats import Stats
from llm_proxy.streams import Stream

if TYPE_CHECKING:
    import anthropic
    import httpx
    import httpx2
    import openai

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]


class LoadBalancer:
    """Balances calls over the keys of `config`; any thread may call it. Close it, or use it as a context manager.

        balancer = LoadBalancer({"providers": [{"name": "openai-primary", "api_key": "…", "weight": 50}, …],
                                 "strategy": "weighted_round_robin", "failover": True})
        response = balancer.complete(model="gpt-4o", messages=[{"role": "user", "content": "Hello!"}])

    Raises `ConfigurationError` with every problem of the configuration. One engine runs on a private event loop in a
    thread that starts with the first call; after a fork the child starts afresh, with what was learned forgotten.
    """

    def __init__(self, config: Mapping[str, Any], options: Options | None = None) -> None:
        self._configuration = read_configuration(config)
        self._options = options or Options()
        check_options(self._options)
        self._engine = Engine(self._configuration, self._options)
        self._portal: Portal | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer: weakref.finalize[[Portal, Engine], LoadBalancer] | None = None
        _BALANCERS.add(self)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], options: Options | None = None) -> Self:
        """Read the configuration from a JSON file, the same that the gateway imports as a pool."""
        return cls(read_document(path), options)

    def __repr__(self) -> str:
        return _shown(self, self._engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @overload
    def complete(
        self,
        *,
        model: str,
        messages: Messages,
        stream: Literal[False] = False,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Completion: ...
    @overload
    def complete(
        self,
        *,
        model: str,
        messages: Messages,
        stream: Literal[True],
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Stream[CompletionChunk]: ...
    @overload
    def complete(
        self,
        *,
        model: str,
        messages: Messages,
        stream: bool,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Completion | Stream[CompletionChunk]: ...
    def complete(
        self, *, model: str, messages: Messages, stream: bool = False, timeout_s: float | None = None, **parameters: Any
    ) -> Completion | Stream[CompletionChunk]:
        """Ask the chat completions API; `parameters` go into the request as they are, `timeout_s` bounds the call.

        Raises an `LLMProxyError`: `RateLimited`, `AllKeysRejected`, `ProviderError`, `Timeout`, ….
        """
        call = chat_call(model, messages, stream, parameters)
        if stream:
            return self._stream(call, timeout_s, lambda opened: Events.begin(opened, read_chunk, call.est_input_tokens))
        return self._whole(call, timeout_s, lambda opened: read_whole(opened, read_completion))

    def stream(
        self, *, model: str, messages: Messages, timeout_s: float | None = None, **parameters: Any
    ) -> Stream[CompletionChunk]:
        """Do what `complete(stream=True)` does: iterate over the result, `chunk.text` is the new text."""
        return self.complete(model=model, messages=messages, stream=True, timeout_s=timeout_s, **parameters)

    @overload
    def messages(
        self,
        *,
        model: str,
        messages: Messages,
        max_tokens: int,
        stream: Literal[False] = False,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Message: ...
    @overload
    def messages(
        self,
        *,
        model: str,
        messages: Messages,
        max_tokens: int,
        stream: Literal[True],
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Stream[MessageEvent]: ...
    @overload
    def messages(
        self,
        *,
        model: str,
        messages: Messages,
        max_tokens: int,
        stream: bool,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Message | Stream[MessageEvent]: ...
    def messages(
        self,
        *,
        model: str,
        messages: Messages,
        max_tokens: int,
        stream: bool = False,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Message | Stream[MessageEvent]:
        """Ask Anthropic's messages API, on the keys of providers that speak it; otherwise as `complete`."""
        call = message_call(model, messages, max_tokens, stream, parameters)
        if stream:
            return self._stream(call, timeout_s, lambda opened: Events.begin(opened, read_event, call.est_input_tokens))
        return self._whole(call, timeout_s, lambda opened: read_whole(opened, read_message))

    def stats(self) -> Stats:
        """Say what is known of each key now. BalancerClosed after `close`."""
        engine = self._engine

        async def ask() -> Stats:
            return engine.stats()

        with self._lock:
            self._require_open()
            started = self._portal is not None
        return self.run(ask) if started else engine.stats()

    def openai_client(self, **arguments: Any) -> openai.OpenAI:
        """Return the official OpenAI client over this balancer; `arguments` are its own, its retries are off.

        Raises `MissingPackage` when `openai` is not installed.
        """
        from llm_proxy.transport import openai_client

        return openai_client(self, **arguments)

    def anthropic_client(self, **arguments: Any) -> anthropic.Anthropic:
        """Return the official Anthropic client over this balancer; as `openai_client`."""
        from llm_proxy.transport import anthropic_client

        return anthropic_client(self, **arguments)

    @overload
    def transport(self, library: Literal["httpx"] = "httpx") -> httpx.BaseTransport: ...
    @overload
    def transport(self, library: Literal["httpx2"]) -> httpx2.BaseTransport: ...
    def transport(self, library: Literal["httpx", "httpx2"] = "httpx") -> httpx.BaseTransport | httpx2.BaseTransport:
        """Return a transport for a client of `library`: whatever it is asked for goes to a key of the pool.

        Host and credentials of requests are replaced by the chosen key's; only paths that any key can answer are taken.
        """
        from llm_proxy.transport import sync_transport

        return sync_transport(self, library)

    def close(self) -> None:
        """End the calls that are under way, close all connections, stop the thread. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer()

    # --- what streams and transports stand on

    @property
    def engine(self) -> Engine:
        """The engine; to be used inside `run` only."""
        return self._engine

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run what `make` gives on the engine's loop and wait for it."""
        return self.portal().run(make)

    def portal(self) -> Portal:
        """Return the way to the engine's loop, started when there is none yet."""
        with self._lock:
            self._require_open()
            if self._portal is None:
                self._portal = Portal(f"llm-proxy-{self._configuration.name}")
                self._finalizer = weakref.finalize(self, _stop, self._portal, self._engine)
            return self._portal

    def _require_open(self) -> None:
        if self._closed:
            raise BalancerClosed("The balancer is closed.", hint="Make a new one, or keep it open while it is used.")

    def _whole(self, call: Call, timeout_s: float | None, read: Callable[[Opened], Coroutine[Any, Any, T]]) -> T:
        engine, deadlines = self._engine, with_total(self._options.deadlines, timeout_s)

        async def ask() -> T:
            return await read(await engine.open(call, deadlines))

        return self.run(ask)

    def _stream(
        self, call: Call, timeout_s: float | None, begin: Callable[[Opened], Coroutine[Any, Any, Events[T]]]
    ) -> Stream[T]:
        return Stream(self._whole(call, timeout_s, begin), self.portal(), self)

    def _after_fork(self) -> None:
        # The child has neither the thread nor a right to the sockets, and locks may be held by nobody: all is new.
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        _ABANDONED.append((self._portal, self._engine))
        self._portal, self._lock = None, threading.Lock()
        self._engine = Engine(self._configuration, self._options)


_BALANCERS: weakref.WeakSet[LoadBalancer] = weakref.WeakSet()
_ABANDONED: list[object] = []
"""Parents' engines in forked children: collecting them would touch what the parent still uses."""


def _stop(portal: Portal, engine: Engine) -> None:
    portal.stop(engine.close)


def _after_fork() -> None:
    for balancer in list(_BALANCERS):
        balancer._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a configuration's JSON, or raise `ConfigurationError`."""
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigurationError([("", f"{os.fspath(path)} cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        detail = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        raise ConfigurationError([("", f"{os.fspath(path)} is not JSON ({detail})")]) from None
    if not isinstance(document, dict):
        raise ConfigurationError([("", 'must be an object such as {"providers": […]}')])
    return document


def _shown(balancer: object, engine: Engine) -> str:
    configuration = engine.configuration
    return (
        f"<{type(balancer).__name__} {configuration.name!r}: {len(configuration.keys)} keys, {configuration.strategy}>"
    )
