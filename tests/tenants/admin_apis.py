"""The providers' admin APIs in memory, as an `HttpCalls`: statuses, shapes and semantics as documented by each."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tenants.sources.protocol import HttpAnswer, SourceAway

CREDENTIAL = "sk-admin-0123456789abcdef"
Reply = tuple[int, Any]


@dataclass
class AdminApis:
    """Answers every provider's host; `fail_next` is a status for the next call, 0 for no answer at all."""

    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=lambda: {"Key1": "first-key-of-azure", "Key2": "second-key-of-azure"})
    fail_next: int | None = None
    page: int = 2
    calls: list[str] = field(default_factory=list)
    made: int = 0

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        parts = urlsplit(url)
        self.calls.append(f"{method} {parts.path}")
        if self.fail_next is not None:
            status, self.fail_next = self.fail_next, None
            if status == 0:
                raise SourceAway("no answer")
            return HttpAnswer(status, {}, b'{"error": {"message": "as the test wants"}}')
        host = parts.hostname or ""
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        status, answer = self._route(host, method, parts.path, query, dict(headers or {}), body or b"")
        return HttpAnswer(status, {}, b"" if answer is None else json.dumps(answer).encode())

    def _route(  # noqa: PLR0917 -- the parts of a request
        self, host: str, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> Reply:
        if host == "hooks.example":
            return self._webhook(headers, body)
        if host == "login.microsoftonline.com":
            form = parse_qs(body.decode())
            return (200, {"access_token": "entra"}) if form["client_secret"] == [CREDENTIAL] else (401, {})
        sent = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if sent != ("entra" if host == "management.azure.com" else CREDENTIAL):
            return 401, {"error": {"message": "wrong credential"}}
        document = json.loads(body) if body else {}
        steps = path.strip("/").split("/")
        match host, method, steps:
            case "api.openai.com", "POST", [*_, "projects", "p1", "service_accounts"]:
                key = self._make(document["name"])
                return 200, {"id": key["id"], "name": key["name"], "api_key": {"id": "k", "value": key["secret"]}}
            case "api.openai.com", "GET", [*_, "projects", "p1", "service_accounts"]:
                rows, more = self._page(query.get("after"))
                listed = [{"id": row["id"], "name": row["name"]} for row in rows]
                return 200, {"data": listed, "has_more": more, "last_id": rows[-1]["id"] if rows else None}
            case "api.openai.com", "DELETE", [*_, "service_accounts", ref]:
                return self._delete(ref)
            case "openrouter.ai", "POST", ["api", "v1", "keys"]:
                key = self._make(document["name"])
                return 201, {"data": {"hash": key["id"], "name": key["name"]}, "key": key["secret"]}
            case "openrouter.ai", "GET", ["api", "v1", "keys"]:
                offset = int(query["offset"])
                rows = list(self.keys.values())[offset : offset + self.page]
                return 200, {"data": [{"hash": row["id"], "name": row["name"]} for row in rows]}
            case "openrouter.ai", "PATCH", ["api", "v1", "keys", ref]:
                return self._switch(ref, enabled=not document["disabled"])
            case "openrouter.ai", "DELETE", ["api", "v1", "keys", ref]:
                return self._delete(ref)
            case "management-api.x.ai", "POST", ["auth", "teams", "t1", "api-keys"]:
                key = self._make(document["name"])
                return 200, {"apiKeyId": key["id"], "name": key["name"], "apiKey": key["secret"]}
            case "management-api.x.ai", "GET", ["auth", "teams", "t1", "api-keys"]:
                rows, more = self._page(query.get("paginationToken"))
                listed = [{"apiKeyId": row["id"], "name": row["name"]} for row in rows]
                return 200, {"apiKeys": listed, "paginationToken": rows[-1]["id"] if more else ""}
            case "management-api.x.ai", "PUT", ["auth", "api-keys", ref]:
                return self._switch(ref, enabled=not document["apiKey"]["disabled"])
            case "management-api.x.ai", "DELETE", ["auth", "api-keys", ref]:
                return self._delete(ref)
            case "management.azure.com", "POST", [*_, "accounts", "a1", "regenerateKey"]:
                self.made += 1
                self.slots[document["keyName"]] = f"regenerated-{self.made}"
                return 200, {"key1": self.slots["Key1"], "key2": self.slots["Key2"]}
            case "api.anthropic.com", "POST", ["v1", "organizations", "api_keys", ref]:
                return self._switch(ref, enabled=document["status"] == "active")
        return 404, {"error": {"message": "no such address"}}

    def _webhook(self, headers: dict[str, str], body: bytes) -> Reply:
        stamp, mac = headers["llm-proxy-signature"].removeprefix("t=").split(",v1=")
        right = hmac.new(CREDENTIAL.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(mac, right):
            return 401, {}
        document = json.loads(body)
        found = next((key for key in self.keys.values() if key["name"] == document.get("tag")), None)
        match document["action"]:
            case "create":
                key = found or self._make(document["tag"])
                return 200, {"ref": key["id"], "secret": key["secret"]}
            case "find":
                return 200, {"ref": found["id"], "secret": found["secret"]} if found else {}
            case "revoke":
                self.keys.pop(document["ref"], None)
            case word if document["ref"] in self.keys:
                self.keys[document["ref"]]["enabled"] = word == "enable"
        return 204, None

    def _make(self, name: str) -> dict[str, Any]:
        self.made += 1
        ref = f"id-{self.made}"
        self.keys[ref] = {"id": ref, "name": name, "secret": f"sk-made-{self.made:012d}", "enabled": True}
        return self.keys[ref]

    def _page(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        rows = list(self.keys.values())
        start = next((i + 1 for i, row in enumerate(rows) if row["id"] == after), 0)
        return rows[start : start + self.page], len(rows) > start + self.page

    def _delete(self, ref: str) -> Reply:
        return (200, {"deleted": True}) if self.keys.pop(ref, None) else (404, {"error": {"message": "not found"}})

    def _switch(self, ref: str, *, enabled: bool) -> Reply:
        if ref not in self.keys:
            return 404, {"error": {"message": "not found"}}
        self.keys[ref]["enabled"] = enabled
        return 200, {"data": {"hash": ref, "disabled": not enabled}}
