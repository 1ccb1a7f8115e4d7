"""Anthropic's messages API, whole and streamed, and token counting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.text import Answer, Prompt, answer
from gateway.simulation.wire import BadRequest, Call, Reply, Stream, event, json_reply

_IMAGE_TOKENS = 1_500
_MESSAGE_TOKENS = 3


def prompt_of_message(request: Mapping[str, Any], *, needs_limit: bool = True) -> Prompt:
    """Read a messages request; raises BadRequest in Anthropic's words."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: at least one message is required")
    limit = request.get("max_tokens")
    if limit is None and needs_limit:
        raise BadRequest("max_tokens: Field required")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise BadRequest("max_tokens: Input should be greater than or equal to 1")
    system, pictures = _text(request.get("system"))
    texts = [system]
    last, answers_tool = "", False
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ("user", "assistant"):
            raise BadRequest(f"messages.{place}.role: Input should be 'user' or 'assistant'")
        text, more = _text(message.get("content"))
        pictures += more
        texts.append(text)
        if message["role"] == "user":
            last = text
            content = message.get("content")
            answers_tool = isinstance(content, list) and any(
                isinstance(part, Mapping) and part.get("type") == "tool_result" for part in content
            )
    choice = request.get("tool_choice") or {"type": "auto"}
    tools = request.get("tools") or []
    tool = None
    if tools and choice.get("type") != "none" and not answers_tool:
        tool = str(choice.get("name") or tools[0].get("name"))
    return Prompt(
        text="\n".join(texts),
        last=last,
        extra_tokens=pictures * _IMAGE_TOKENS + _MESSAGE_TOKENS * len(messages),
        max_tokens=limit,
        tool=tool,
    )


def _text(content: Any) -> tuple[str, int]:
    if content is None:
        return "", 0
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        raise BadRequest("messages: Input should be a valid string or list")
    texts: list[str] = []
    pictures = 0
    for part in content:
        if not isinstance(part, Mapping):
            raise BadRequest("messages: Input should be a valid dictionary")
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "tool_result":
            texts.append(_text(part.get("content"))[0])
        elif part.get("type") in ("image", "document"):
            pictures += 1
    return "\n".join(texts), pictures


def _usage(usage: TokenUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input - usage.cached_input,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_input,
        "output_tokens": usage.output,
        "service_tier": "standard",
    }


def messages(call: Call) -> Reply | Stream:
    """Answer POST /v1/messages."""
    prompt = prompt_of_message(call.request)
    said = answer(prompt, tokens=call.output_tokens)
    usage = TokenUsage(prompt.tokens, said.tokens, call.cached_tokens)
    content: list[dict[str, Any]]
    if said.tool:
        content = [
            {"type": "tool_use", "id": f"toolu_{call.ident}", "name": said.tool, "input": {"input": prompt.last[:100]}}
        ]
    else:
        content = [{"type": "text", "text": said.text}]
    message = {
        "id": f"msg_{call.ident}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": _stop(said),
        "stop_sequence": None,
        "usage": _usage(usage),
    }
    if not call.request.get("stream"):
        return json_reply(message, usage)
    return _stream(message, said, usage)


def _stop(said: Answer) -> str:
    if said.tool:
        return "tool_use"
    return "max_tokens" if said.truncated else "end_turn"


def _stream(message: dict[str, Any], said: Answer, usage: TokenUsage) -> Stream:
    def named(name: str, **fields: Any) -> bytes:
        return event({"type": name, **fields}, name)

    opening = {**message, "content": [], "stop_reason": None, "usage": {**_usage(usage), "output_tokens": 1}}
    block = message["content"][0]
    empty = {**block, "input": {}} if said.tool else {"type": "text", "text": ""}
    events = [
        named("message_start", message=opening),
        named("content_block_start", index=0, content_block=empty),
        named("ping"),
    ]
    content_at = len(events)
    if said.tool:
        delta = {"type": "input_json_delta", "partial_json": said.arguments}
        events.append(named("content_block_delta", index=0, delta=delta))
    events += [
        named("content_block_delta", index=0, delta={"type": "text_delta", "text": piece}) for piece in said.pieces
    ]
    events.append(named("content_block_stop", index=0))
    final = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events.append(named("message_delta", delta=final, usage={"output_tokens": usage.output}))
    events.append(named("message_stop"))
    overloaded = named("error", error={"type": "overloaded_error", "message": "Overloaded"})
    return Stream(tuple(events), usage, content_at, overloaded)


def count(call: Call) -> Reply:
    """Answer POST /v1/messages/count_tokens."""
    prompt = prompt_of_message(call.request, needs_limit=False)
    return json_reply({"input_tokens": prompt.tokens})


def models(names: tuple[str, ...]) -> Reply:
    """Answer GET /v1/models as Anthropic does."""
    data = [{"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"} for name in names]
    shown = {"data": data, "has_more": False, "first_id": names[0] if names else None}
    return json_reply({**shown, "last_id": names[-1] if names else None})
