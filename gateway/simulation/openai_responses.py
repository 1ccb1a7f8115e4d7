"""OpenAI's responses API, whole and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.balancing.outcome import TokenUsage
from gateway.simulation.openai_chat import text_of, whole_or_none
from gateway.simulation.text import Answer, Prompt, answer
from gateway.simulation.wire import BadRequest, Call, Reply, Stream, event, json_reply


def prompt_of_response(request: Mapping[str, Any]) -> Prompt:
    """Read a responses request; raises BadRequest."""
    given = request.get("input", "")
    texts = [str(request.get("instructions") or "")]
    last, answers_tool = "", False
    if isinstance(given, str):
        last = given
        texts.append(given)
    elif isinstance(given, list):
        for item in given:
            if not isinstance(item, Mapping):
                raise BadRequest("Invalid type for 'input': expected a string or an array of items.", "input")
            text = str(item.get("output", "")) if "output" in item else text_of(item.get("content"))[0]
            texts.append(text)
            answers_tool = item.get("type") == "function_call_output"
            if item.get("role") == "user":
                last = text
    else:
        raise BadRequest("Invalid type for 'input': expected a string or an array of items.", "input")
    functions = [tool for tool in request.get("tools") or () if tool.get("type") == "function"]
    wants_tool = functions and request.get("tool_choice", "auto") != "none" and not answers_tool
    wanted = (request.get("text") or {}).get("format") or {}
    schema = {"json_object": {}, "json_schema": wanted.get("schema", {})}.get(str(wanted.get("type")))
    return Prompt(
        text="\n".join(texts),
        last=last,
        max_tokens=whole_or_none(request.get("max_output_tokens"), "max_output_tokens"),
        tool=str(functions[0].get("name")) if wants_tool else None,
        schema=schema,
    )


def responses(call: Call) -> Reply | Stream:
    """Answer POST /v1/responses."""
    prompt = prompt_of_response(call.request)
    said = answer(prompt, tokens=call.output_tokens)
    usage = TokenUsage(prompt.tokens, said.tokens, call.cached_tokens)
    item = _item(call, said)
    if not call.request.get("stream"):
        return json_reply(_body(call, said, [item], usage), usage)
    return _stream(call, said, item, usage)


def _item(call: Call, said: Answer, status: str = "completed") -> dict[str, Any]:
    if said.tool:
        return {
            "id": f"fc_{call.ident}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_{call.ident}",
            "name": said.tool,
            "arguments": said.arguments if status == "completed" else "",
        }
    part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
    content = [part] if status == "completed" else []
    return {"id": f"msg_{call.ident}", "type": "message", "status": status, "role": "assistant", "content": content}


def _body(call: Call, said: Answer, output: list[dict[str, Any]], usage: TokenUsage | None) -> dict[str, Any]:
    status = "in_progress" if usage is None else ("incomplete" if said.truncated else "completed")
    return {
        "id": f"resp_{call.ident}",
        "object": "response",
        "created_at": call.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": call.request.get("instructions"),
        "max_output_tokens": call.request.get("max_output_tokens"),
        "metadata": call.request.get("metadata") or {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": call.request.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": call.request.get("text") or {"format": {"type": "text"}},
        "tool_choice": call.request.get("tool_choice", "auto"),
        "tools": call.request.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None
        if usage is None
        else {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached_input, "cache_write_tokens": 0},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input + usage.output,
        },
    }


def _stream(call: Call, said: Answer, item: dict[str, Any], usage: TokenUsage) -> Stream:
    events: list[bytes] = []

    def add(kind: str, /, **fields: Any) -> None:
        events.append(event({"type": kind, **fields, "sequence_number": len(events)}, kind))

    place = {"item_id": item["id"], "output_index": 0}
    add("response.created", response=_body(call, said, [], None))
    add("response.in_progress", response=_body(call, said, [], None))
    add("response.output_item.added", output_index=0, item=_item(call, said, "in_progress"))
    if said.tool:
        content_at = len(events)
        add("response.function_call_arguments.delta", **place, delta=said.arguments)
        add("response.function_call_arguments.done", **place, name=said.tool, arguments=said.arguments)
    else:
        place["content_index"] = 0
        blank = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        add("response.content_part.added", **place, part=blank)
        content_at = len(events)
        for piece in said.pieces:
            add("response.output_text.delta", **place, delta=piece, logprobs=[])
        add("response.output_text.done", **place, text=said.text, logprobs=[])
        add("response.content_part.done", **place, part={**blank, "text": said.text})
    add("response.output_item.done", output_index=0, item=item)
    final = "response.incomplete" if said.truncated else "response.completed"
    add(final, response=_body(call, said, [item], usage))
    broken = {
        "type": "error",
        "code": "server_error",
        "message": "The server had an error while processing your request. Sorry about that!",
        "param": None,
        "sequence_number": content_at,
    }
    return Stream(tuple(events), usage, content_at, event(broken, "error"))
