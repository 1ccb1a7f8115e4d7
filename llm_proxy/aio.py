"""`AsyncLoadBalancer`: the same balancer for programs that run an event loop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

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
from llm_proxy.balancer import Messages, read_document
from llm_proxy.calls import Call, chat_call, message_call
from llm_proxy.config import read_configuration
from llm_proxy.engine import Engine, Opened, Options, check_options, with_total
from llm_proxy.reading import Events, read_whole
from llm_proxy.stats import Stats
from llm_proxy.streams import AsyncStream

if TYPE_CHECKING:
    import anthropic
    import httpx
    import httpx2
    import openai


class AsyncLoadBalancer:
    """Balances calls over the keys of `config` on the running event loop. Close it, or use `async with`.

    Takes the configuration of `LoadBalancer` and raises the same errors. It belongs to one loop at a time; used again
    after that loop is over (a second `asyncio.run`), it opens new connections and keeps what it has learned.
    """

    def __init__(self, config: Mapping[str, Any], options: Options | None = None) -> None:
        self._options = options or Options()
        check_options(self._options)
        self._engine = Engine(read_configuration(config), self._options)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], options: Options | None = None) -> Self:
        """Read the configuration from a JSON file, the same that the gateway imports as a pool."""
        return cls(read_document(path), options)

    def __repr__(self) -> str:
        configuration = self._engine.configuration
        return f"<AsyncLoadBalancer {configuration.name!r}: {len(configuration.keys)} keys, {configuration.strategy}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    @overload
    async def complete(
        self,
        *,
        model: str,
        messages: Messages,
        stream: Literal[False] = False,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Completion: ...
    @overload
    async def complete(
        self,
        *,
        model: str,
        messages: Messages,
        stream: Literal[True],
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> AsyncStream[CompletionChunk]: ...
    @overload
    async def complete(
        self,
        *,
        model: str,
        messages: Messages,
        stream: bool,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Completion | AsyncStream[CompletionChunk]: ...
    async def complete(
        self, *, model: str, messages: Messages, stream: bool = False, timeout_s: float | None = None, **parameters: Any
    ) -> Completion | AsyncStream[CompletionChunk]:
        """Ask the chat completions API; `parameters` go into the request as they are, `timeout_s` bounds the call.

        Raises an `LLMProxyError`: `RateLimited`, `AllKeysRejected`, `ProviderError`, `Timeout`, ….
        """
        call = chat_call(model, messages, stream, parameters)
        opened = await self._open(call, timeout_s)
        if stream:
            return AsyncStream(await Events.begin(opened, read_chunk, call.est_input_tokens), self)
        return await read_whole(opened, read_completion)

    async def stream(
        self, *, model: str, messages: Messages, timeout_s: float | None = None, **parameters: Any
    ) -> AsyncStream[CompletionChunk]:
        """Do what `complete(stream=True)` does: iterate over the result, `chunk.text` is the new text."""
        return await self.complete(model=model, messages=messages, stream=True, timeout_s=timeout_s, **parameters)

    @overload
    async def messages(
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
    async def messages(
        self,
        *,
        model: str,
        messages: Messages,
        max_tokens: int,
        stream: Literal[True],
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> AsyncStream[MessageEvent]: ...
    @overload
    async def messages(
        self,
        *,
        model: str,
        messages: Messages,
        max_tokens: int,
        stream: bool,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Message | AsyncStream[MessageEvent]: ...
    async def messages(
        self,
        *,
        model: str,
        messages: Messages,
        max_tokens: int,
        stream: bool = False,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> Message | AsyncStream[MessageEvent]:
        """Ask Anthropic's messages API, on the keys of providers that speak it; otherwise as `complete`."""
        call = message_call(model, messages, max_tokens, stream, parameters)
        opened = await self._open(call, timeout_s)
        if stream:
            return AsyncStream(await Events.begin(opened, read_event, call.est_input_tokens), self)
        return await read_whole(opened, read_message)

    def stats(self) -> Stats:
        """Say what is known of each key now."""
        return self._engine.stats()

    def openai_client(self, **arguments: Any) -> openai.AsyncOpenAI:
        """Return the official asynchronous OpenAI client over this balancer; `arguments` are its own.

        Raises `MissingPackage` when `openai` is not installed.
        """
        from llm_proxy.transport import async_openai_client

        return async_openai_client(self, **arguments)

    def anthropic_client(self, **arguments: Any) -> anthropic.AsyncAnthropic:
        """Return the official asynchronous Anthropic client over this balancer; as `openai_client`."""
        from llm_proxy.transport import async_anthropic_client

        return async_anthropic_client(self, **arguments)

    @overload
    def transport(self, library: Literal["httpx"] = "httpx") -> httpx.AsyncBaseTransport: ...
    @overload
    def transport(self, library: Literal["httpx2"]) -> httpx2.AsyncBaseTransport: ...
    def transport(
        self, library: Literal["httpx", "httpx2"] = "httpx"
    ) -> httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport:
        """Return a transport for an asynchronous client of `library`; see `LoadBalancer.transport`."""
        from llm_proxy.transport import async_transport

        return async_transport(self, library)

    async def close(self) -> None:
        """End the calls that are under way and close all connections. Calling it again does nothing."""
        await self._engine.close()

    @property
    def engine(self) -> Engine:
        """The engine; to be used on the loop that uses this balancer."""
        return self._engine

    async def _open(self, call: Call, timeout_s: float | None) -> Opened:
        return await self._engine.open(call, with_total(self._options.deadlines, timeout_s))
