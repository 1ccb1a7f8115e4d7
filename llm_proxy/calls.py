"""What is asked of a provider: path, body and what the balancer must know of it. Pure.

Only operations that any key can answer are balanced. Files, batches, assistants and stored responses live in one
account: sent to another key they would not be found, so they are refused with a sentence that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from gateway.balancing.prompt_size import prompt_tokens
from llm_proxy.errors import InvalidRequest

Dialect = Literal["openai", "anthropic", "gemini"]
Headers = Sequence[tuple[bytes, bytes]]

DEFAULT_OUTPUT_TOKENS = 512
"""What is reserved for an answer whose request sets no maximum, where the provider reserves no default of its own."""
MAX_OUTPUT_TOKENS = 1_000_000
MAX_INPUT_TOKENS = 1_000_000

_JSON_HEADERS: Headers = (
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"llm-proxy-python"),
)
_GENERATING = frozenset({"chat/completions", "completions", "responses", "messages"})
_OPENAI = _GENERATING - {"messages"} | {
    "embeddings", "moderations", "images/generations", "images/edits", "images/variations", "audio/speech",
    "audio/transcriptions", "audio/translations", "models",
}  # fmt: skip
_ANTHROPIC = frozenset({"messages", "messages/count_tokens"})
_GEMINI_CALL = re.compile(
    r"models/([A-Za-z0-9][A-Za-z0-9._-]{0,127}):(generateContent|streamGenerateContent|embedContent|"
    r"batchEmbedContents|countTokens)"
)
_MULTIPART_MODEL = re.compile(
    rb'content-disposition:[^\r\n]*;\s*name="?model"?(?=[;\r\n])[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n--',
    re.IGNORECASE,
)
_NOT_FORWARDED = frozenset({
    b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection", b"te",
    b"trailer", b"upgrade", b"expect", b"accept-encoding", b"cookie", b"proxy-authorization",
    b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"openai-organization", b"openai-project",
})  # fmt: skip
"""Framing is the connection's, credentials and organisations are the chosen key's."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, the same for every key. `model` "" means that any key will do; `path` begins at the dialect's root.

    `est_*` are tokens that are reserved before sending. `output_unset`: it sets no maximum, the output is a guess.
    """

    dialect: Dialect
    method: str
    path: str
    headers: Headers
    body: bytes
    model: str
    est_input_tokens: int
    est_output_tokens: int
    output_unset: bool = False


class _Fields(msgspec.Struct):
    model: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    generation_config: Any = msgspec.field(default=None, name="generationConfig")


def json_call(dialect: Dialect, path: str, parameters: Mapping[str, Any]) -> Call:
    """Write a call with a JSON body of `parameters`; InvalidRequest when they cannot be written as JSON."""
    model = parameters.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model must be the name of a model.", hint='Pass model="gpt-4o", for example.')
    try:
        body = msgspec.json.encode(parameters)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"The arguments cannot be written as JSON: {error}.", hint="Pass strings, numbers, lists and dicts."
        ) from None
    output = _output_tokens(msgspec.convert(parameters, _Fields)) if path in _GENERATING else 0
    return Call(
        dialect=dialect,
        method="POST",
        path=f"/v1/{path}",
        headers=_JSON_HEADERS,
        body=body,
        model=model,
        est_input_tokens=prompt_tokens(body),
        est_output_tokens=DEFAULT_OUTPUT_TOKENS if output is None else output,
        output_unset=output is None,
    )


def with_model(call: Call, model: str) -> Call | None:
    """Return the call for another model; None where its model cannot be replaced (an upload, or it names none)."""
    if call.dialect == "gemini":
        at = call.path.rfind(f"models/{call.model}:")
        if at < 0:
            return None
        path = f"{call.path[:at]}models/{model}:{call.path[at + len(f'models/{call.model}:') :]}"
        return replace(call, path=path, model=model)
    try:
        parameters = msgspec.json.decode(call.body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if parameters.get("model") != call.model:
        return None
    return replace(call, body=msgspec.json.encode({**parameters, "model": model}), model=model)


def chat_call(model: str, messages: Sequence[Any], stream: bool, parameters: Mapping[str, Any]) -> Call:
    """Write a call of the chat completions API."""
    return json_call("openai", "chat/completions", _body(model, messages, stream, parameters))


def message_call(
    model: str, messages: Sequence[Any], max_tokens: int, stream: bool, parameters: Mapping[str, Any]
) -> Call:
    """Write a call of Anthropic's messages API."""
    body = _body(model, messages, stream, {"max_tokens": max_tokens, **parameters})
    return json_call("anthropic", "messages", body)


def _body(model: str, messages: Sequence[Any], stream: bool, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise InvalidRequest("messages must be a list.", hint='Pass [{"role": "user", "content": "Hello!"}].')
    body = {"model": model, "messages": messages, **parameters}
    if stream:
        body["stream"] = True
    return body


def http_call(method: str, raw_path: bytes, query: bytes, headers: Headers, body: bytes) -> Call:
    """Recognise an HTTP request that an SDK wrote; InvalidRequest when it is none that can be balanced.

    `headers` have lower-case names; those that belong to the caller's own account are left out.
    """
    path = raw_path.decode("ascii", "replace")
    is_gemini = path.startswith("/v1beta/")
    operation = path.removeprefix("/v1beta/" if is_gemini else "/v1/")
    gemini = _GEMINI_CALL.fullmatch(operation) if is_gemini else None
    known = gemini is not None if is_gemini else path.startswith("/v1/") and operation in _OPENAI | _ANTHROPIC
    wanted = "GET" if operation == "models" else "POST"
    if not known or method != wanted:
        raise InvalidRequest(
            f"{method} {path[:100]} is not balanced: it belongs to one account, not to a pool of keys.",
            hint="Use a client with that account's own key for it.",
        )
    dialect: Dialect = "gemini" if is_gemini else "anthropic" if operation in _ANTHROPIC else "openai"
    kept = [header for header in headers if header[0] not in _NOT_FORWARDED]
    kept.append((b"accept-encoding", b"identity"))
    model, fields = _described(headers, body)
    suffix = "?alt=sse" if gemini is not None and b"alt=sse" in query.split(b"&") else ""
    generates = operation in _GENERATING or (gemini is not None and "enerateContent" in operation)
    output = _output_tokens(fields) if generates and fields is not None else 0
    return Call(
        dialect=dialect,
        method=method,
        path=path + suffix,
        headers=kept,
        body=body,
        model=gemini.group(1) if gemini is not None else model,
        est_input_tokens=min(prompt_tokens(body), MAX_INPUT_TOKENS) if fields is not None else 256,
        est_output_tokens=DEFAULT_OUTPUT_TOKENS if output is None else output,
        output_unset=output is None,
    )


def _described(headers: Headers, body: bytes) -> tuple[str, _Fields | None]:
    content_type = next((value for name, value in headers if name == b"content-type"), b"").lower()
    if content_type.startswith(b"multipart/"):
        found = _MULTIPART_MODEL.search(body)
        return (found[1].decode("utf-8", "replace") if found else ""), None
    if not body:
        return "", None
    try:
        fields = msgspec.json.decode(body, type=_Fields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", None  # the provider says best what is wrong with it
    return (fields.model if isinstance(fields.model, str) else ""), fields


def _output_tokens(fields: _Fields) -> int | None:
    config = fields.generation_config if isinstance(fields.generation_config, dict) else {}
    for value in (
        fields.max_completion_tokens,
        fields.max_output_tokens,
        fields.max_tokens,
        config.get("maxOutputTokens"),
    ):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, MAX_OUTPUT_TOKENS)
    return None
