"""OpenAI's chat completions and completions, whole and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.text import Answer, Prompt, answer
from gateway.simulation.wire import BadRequest, Call, Reply, Stream, event, json_reply

_IMAGE_TOKENS = 85
_MESSAGE_TOKENS = 4
_MAX_CHOICES = 16
DONE = b"data: [DONE]\n\n"
STREAM_ERROR = event(
    {
        "error": {
            "message": "The server had an error while processing your request. Sorry about that!",
            "type": "server_error",
            "param": None,
            "code": None,
        }
    }
)


def prompt_of_chat(request: Mapping[str, Any]) -> Prompt:
    """Read a chat completion request; raises BadRequest."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("Invalid 'messages': expected a non-empty array of messages.", "messages")
    texts: list[str] = []
    images = 0
    last_user, last_role = "", ""
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise BadRequest(f"Missing required parameter: 'messages[{place}].role'.", f"messages[{place}].role")
        text, more = text_of(message.get("content"))
        images += more
        texts.append(text)
        last_role = str(message["role"])
        if last_role == "user":
            last_user = text
    limit = request.get("max_completion_tokens", request.get("max_tokens"))
    return Prompt(
        text="\n".join(texts),
        last=last_user,
        extra_tokens=images * _IMAGE_TOKENS + _MESSAGE_TOKENS * len(messages),
        max_tokens=whole_or_none(limit, "max_tokens"),
        tool=_tool(request) if last_role == "user" else None,
        schema=_schema(request.get("response_format")),
    )


def text_of(content: Any) -> tuple[str, int]:
    """Return the text of a message's content and how many parts are not text."""
    if content is None:
        return "", 0
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        raise BadRequest("Invalid type for 'content': expected a string or an array of parts.", "messages")
    texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return "\n".join(texts), len(content) - len(texts)


def whole_or_none(value: Any, param: str) -> int | None:
    """Return a limit that may be absent; raises BadRequest unless it is a positive whole number."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"Invalid '{param}': integer below minimum value. Expected a value >= 1.", param)
    return value


def _tool(request: Mapping[str, Any]) -> str | None:
    choice = request.get("tool_choice", "auto")
    tools = request.get("tools")
    if not tools or choice == "none":
        return None
    if isinstance(choice, Mapping):
        return str(choice.get("function", {}).get("name", choice.get("name", "")))
    first = tools[0]
    return str(first.get("function", first).get("name", "tool"))


def _schema(response_format: Any) -> Mapping[str, Any] | None:
    if not isinstance(response_format, Mapping):
        return None
    if response_format.get("type") == "json_object":
        return {}
    if response_format.get("type") == "json_schema":
        found = response_format.get("json_schema", response_format).get("schema", {})
        return found if isinstance(found, Mapping) else {}
    return None


def usage_shape(usage: TokenUsage) -> dict[str, Any]:
    """Write usage as chat completions do."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat(call: Call) -> Reply | Stream:
    """Answer POST /v1/chat/completions."""
    prompt = prompt_of_chat(call.request)
    said = answer(prompt, tokens=call.output_tokens)
    choices = min(_MAX_CHOICES, whole_or_none(call.request.get("n"), "n") or 1)
    usage = TokenUsage(prompt.tokens, said.tokens * choices, call.cached_tokens)
    finish = _finish(said)
    head = {"id": f"chatcmpl-{call.ident}", "created": call.created, "model": call.model, "service_tier": "default"}
    if call.request.get("stream"):
        return _chat_stream(call, head, said, choices, usage)
    message: dict[str, Any] = {"role": "assistant", "content": None if said.tool else said.text, "refusal": None}
    if said.tool:
        message["tool_calls"] = [_tool_call(call, said)]
    return json_reply(
        {
            **head,
            "object": "chat.completion",
            "choices": [
                {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
                for index in range(choices)
            ],
            "usage": usage_shape(usage),
            "system_fingerprint": "fp_simulated",
        },
        usage,
    )


def _finish(said: Answer) -> str:
    if said.tool:
        return "tool_calls"
    return "length" if said.truncated else "stop"


def _tool_call(call: Call, said: Answer) -> dict[str, Any]:
    return {
        "id": f"call_{call.ident}",
        "type": "function",
        "function": {"name": said.tool, "arguments": said.arguments},
    }


def _chat_stream(call: Call, head: dict[str, Any], said: Answer, choices: int, usage: TokenUsage) -> Stream:
    wants_usage = bool((call.request.get("stream_options") or {}).get("include_usage"))

    def chunk(parts: list[dict[str, Any]], told: dict[str, Any] | None = None) -> bytes:
        body = {**head, "object": "chat.completion.chunk", "system_fingerprint": "fp_simulated", "choices": parts}
        if wants_usage:
            body["usage"] = told
        return event(body)

    def delta(index: int, what: dict[str, Any], reason: str | None = None) -> bytes:
        return chunk([{"index": index, "delta": what, "logprobs": None, "finish_reason": reason}])

    opening = {"role": "assistant", "content": None if said.tool else "", "refusal": None}
    events = [delta(index, opening) for index in range(choices)]
    content_at = len(events)
    for index in range(choices):
        if said.tool:
            start = _tool_call(call, said)
            start["function"] = {"name": said.tool, "arguments": ""}
            events.append(delta(index, {"tool_calls": [{"index": 0, **start}]}))
            events.append(delta(index, {"tool_calls": [{"index": 0, "function": {"arguments": said.arguments}}]}))
        events += [delta(index, {"content": piece}) for piece in said.pieces]
        events.append(delta(index, {}, _finish(said)))
    if wants_usage:
        events.append(chunk([], usage_shape(usage)))
    events.append(DONE)
    return Stream(tuple(events), usage, content_at, STREAM_ERROR)


def prompt_of_completion(request: Mapping[str, Any]) -> Prompt:
    """Read a (legacy) completion request; raises BadRequest."""
    given = request.get("prompt", "<|endoftext|>")
    if isinstance(given, list):
        given = "\n".join(str(part) for part in given)
    if not isinstance(given, str):
        raise BadRequest("Invalid type for 'prompt': expected a string or an array.", "prompt")
    limit = whole_or_none(request.get("max_tokens"), "max_tokens")
    return Prompt(text=given, last=given, max_tokens=16 if limit is None else limit)


def completion(call: Call) -> Reply | Stream:
    """Answer POST /v1/completions."""
    prompt = prompt_of_completion(call.request)
    said = answer(prompt, tokens=call.output_tokens)
    usage = TokenUsage(prompt.tokens, said.tokens, call.cached_tokens)
    head = {"id": f"cmpl-{call.ident}", "object": "text_completion", "created": call.created, "model": call.model}

    def body(text: str, reason: str | None, **more: Any) -> dict[str, Any]:
        return {**head, "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": reason}], **more}

    if not call.request.get("stream"):
        return json_reply(body(said.text, _finish(said), usage=usage_shape(usage)), usage)
    events = [event(body(piece, None)) for piece in said.pieces]
    events.append(event(body("", _finish(said))))
    if (call.request.get("stream_options") or {}).get("include_usage"):
        events.append(event({**head, "choices": [], "usage": usage_shape(usage)}))
    events.append(DONE)
    return Stream(tuple(events), usage, 0, STREAM_ERROR)
