"""Vault's version 2 KV engine in memory, as `HttpCalls`: what it documents, check-and-set included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tenants.sources.protocol import HttpAnswer, SourceAway
from tests.tenants.kms_servers import TOKEN, answer


@dataclass
class Kv:
    """The engine mounted at `secret`; `entries` holds the newest version of each."""

    away: bool = False
    entries: dict[str, dict[str, str]] = field(default_factory=dict)

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        if self.away:
            raise SourceAway("no answer")
        if (headers or {}).get("x-vault-token") != TOKEN:
            return answer(403, {"errors": ["permission denied"]})
        parts = urlsplit(url)
        kind, _, name = parts.path.removeprefix("/v1/secret/").partition("/")
        if kind == "data" and method == "POST":
            sent = json.loads(body or b"{}")
            if sent["options"]["cas"] == 0 and name in self.entries:
                return answer(400, {"errors": ["check-and-set parameter did not match the current version"]})
            self.entries[name] = sent["data"]
            return answer(200, {"data": {"version": 1}})
        if kind == "data":
            found = self.entries.get(name)
            if found is None:
                return answer(404, {"errors": []})
            return answer(200, {"data": {"data": found, "metadata": {"version": 1}}})
        if method == "DELETE":
            self.entries.pop(name, None)
            return HttpAnswer(204, {}, b"")
        keys = [entry.removeprefix(f"{name}/") for entry in self.entries if entry.startswith(f"{name}/")]
        return answer(200, {"data": {"keys": keys}}) if parts.query == "list=true" and keys else answer(404, {})
