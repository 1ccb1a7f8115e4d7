"""The documentation page of the management API: plain HTML made from the OpenAPI document, no script, no CDN."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1.5rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}code,pre{font:14px/1.45 ui-monospace,monospace}
pre{background:var(--soft);padding:.8rem;overflow:auto;border-radius:6px}
.method{display:inline-block;min-width:4.2rem;font-weight:600}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid var(--line);padding:.3rem .5rem;text-align:left;
vertical-align:top}nav{display:flex;flex-wrap:wrap;gap:0 1rem}.dim{opacity:.7}
"""

_METHODS = ("get", "post", "put", "patch", "delete")


def docs_page(document: Mapping[str, Any]) -> str:
    """Render an OpenAPI 3.1 document; every text in it is escaped."""
    info = document.get("info", {})
    groups: dict[str, list[str]] = {}
    for path, item in document.get("paths", {}).items():
        for method in _METHODS:
            if method in item:
                operation = item[method]
                tag = (operation.get("tags") or ["Other"])[0]
                groups.setdefault(tag, []).append(_operation(path, method, operation))
    schemas = document.get("components", {}).get("schemas", {})
    nav = "".join(f'<a href="#{escape(_anchor(tag))}">{escape(tag)}</a>' for tag in [*groups, "Schemas"])
    body = "".join(
        f'<h2 id="{escape(_anchor(tag))}">{escape(tag)}</h2>{"".join(operations)}' for tag, operations in groups.items()
    )
    shapes = "".join(_schema(name, schema) for name, schema in sorted(schemas.items()))
    title = escape(str(info.get("title", "API")))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{title} <span class=dim>{escape(str(info.get('version', '')))}</span></h1>"
        f"<p>{_prose(info.get('description', ''))}</p>"
        f'<p><a href="/api/v1/openapi.json">The OpenAPI document</a> for tools.</p><nav>{nav}</nav>{body}'
        f'<h2 id="schemas">Schemas</h2>{shapes}</body></html>'
    )


def _prose(text: object) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(str(text)))


def _anchor(tag: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in tag.lower())


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<p>{_prose(operation.get('description', ''))}</p>"]
    parameters = operation.get("parameters") or []
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(str(each.get('name', '')))}</code></td><td>{escape(str(each.get('in', '')))}</td>"
            f"<td>{escape(_type(each.get('schema', {})))}</td><td>{_prose(each.get('description', ''))}</td></tr>"
            for each in parameters
        )
        parts.append(f"<table><tr><th>Parameter</th><th>In</th><th>Type</th><th>Meaning</th></tr>{rows}</table>")
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body <code>{escape(media)}</code>: {_link(content.get('schema', {}))}</p>")
    answers = []
    for status, answer in (operation.get("responses") or {}).items():
        shown = ", ".join(_link(content.get("schema", {})) for content in answer.get("content", {}).values())
        meaning = _prose(answer.get("description", ""))
        answers.append(f"<tr><td>{escape(str(status))}</td><td>{meaning}</td><td>{shown}</td></tr>")
    if answers:
        parts.append(f"<table><tr><th>Status</th><th>Meaning</th><th>Body</th></tr>{''.join(answers)}</table>")
    summary = escape(str(operation.get("summary", "")))
    return (
        f"<details><summary><span class=method>{method.upper()}</span> <code>{escape(path)}</code> "
        f"<span class=dim>{summary}</span></summary>{''.join(parts)}</details>"
    )


def _link(schema: Mapping[str, Any]) -> str:
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.rsplit("/", 1)[-1]
        return f'<a href="#schema-{escape(name)}">{escape(name)}</a>'
    return escape(_type(schema))


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    for word in ("oneOf", "anyOf"):
        if word in schema:
            return " or ".join(_type(each) for each in schema[word])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = schema.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return (
        # A target inside is what browsers open the element for.
        f'<details><summary><code>{escape(name)}</code></summary><pre id="schema-{escape(name)}">{text}</pre></details>'
    )
