"""Carries a plan out through the management API: in order, each change against the version that was compared.

Stopped half-way nothing is lost: what was made and not yet noted in the inventory is adopted by the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final
from uuid import UUID

from auth.etag import etag
from auth.scopes import CLIENTS_WRITE, KEYS_ROTATE, KEYS_WRITE, POOLS_WRITE
from auth.secret import Secret
from gateway.apply.document import Document
from gateway.apply.plan import INVENTORY, Plan, State, Step
from gateway.apply.reading import READING, TENANTS
from gateway.apply.resource import ORDER, Address, Wanted, patch_between
from gateway.http_client import ManagementClient

WRITING: Final = READING | {POOLS_WRITE, KEYS_WRITE, KEYS_ROTATE, CLIENTS_WRITE}
_PATHS: Final = {"tenant": TENANTS, "quota": "/api/v1/quotas", "pool": "/api/v1/pools", "key": "/api/v1/keys"}
_PATHS_AND_CLIENTS: Final = {**_PATHS, "client": "/api/v1/clients"}

Credentials = Callable[[Address, str, Secret], None]
"""Takes a new client's id and its secret, which is shown this once."""


class Execution:
    """One run: `done` is called after each step, `keep` with each new client's credentials."""

    def __init__(
        self,
        operator: ManagementClient,
        document: Document,
        wanted: Mapping[Address, Wanted],
        state: State,
        *,
        tenant_ids: Mapping[str, UUID],
        secrets: Mapping[Address, Secret],
        owner: str,
        keep: Credentials,
        done: Callable[[Step], None] = lambda _: None,
    ) -> None:
        self._operator = operator
        self._document = document
        self._wanted = wanted
        self._state = state
        self._secrets = secrets
        self._owner = owner
        self._keep = keep
        self._done = done
        self._ids = {address: found.id for address, found in state.found.items()}
        self._tenant_ids = dict(tenant_ids)
        self._tenants: dict[str, ManagementClient] = {}
        self._open = ExitStack()
        self._fallbacks: dict[Address, Any] = {}

    def run(self, plan: Plan) -> None:
        """Do every step, then note what is owned."""
        with self._open:
            for step in plan.steps:
                if step.operation == "remove":
                    self._set_fallbacks()
                self._do(step)
                self._done(step)
            self._set_fallbacks()
            for slug in self._document.tenants:
                self._note(slug, {address for address in plan.owned if address.tenant == slug})

    def _do(self, step: Step) -> None:
        if step.operation == "create":
            self._create(step.address)
        elif step.operation == "change":
            self._change(step.address, {name: after for name, (_, after) in step.changes.items()})
        elif step.operation == "rotate":
            self._rotate(step)
        elif step.operation == "remove":
            self._api(step.address).request("DELETE", self._path(step.address))

    def _set_fallbacks(self) -> None:
        """Say where pools fall back to, now that all of them exist: they may name each other."""
        while self._fallbacks:
            address, fallbacks = self._fallbacks.popitem()
            patch = {"settings": {"fallbacks": fallbacks}}
            self._api(address).request("PATCH", self._path(address), patch)

    def _api(self, address: Address) -> ManagementClient:
        """Return who asks: the operator for tenants, else the operator acting in the tenant."""
        if address.kind == "tenant":
            return self._operator
        if address.tenant not in self._tenants:
            tenant = self._document.tenants[address.tenant]
            # Nobody grants more than they hold: what declared clients get is asked for, and nothing else.
            granted = {scope for client in tenant.clients.values() for scope in client.scopes}
            held = {
                scope
                for each, found in self._state.found.items()
                if each.tenant == address.tenant and each.kind == "client"
                for scope in found.attributes["scopes"]
            }
            acting = self._operator.within(self._tenant_ids[address.tenant], WRITING | granted | held)
            self._tenants[address.tenant] = self._open.enter_context(acting)
        return self._tenants[address.tenant]

    def _path(self, address: Address) -> str:
        return f"{_PATHS_AND_CLIENTS[address.kind]}/{self._ids[address]}"

    def _create(self, address: Address) -> None:
        body: dict[str, Any] = dict(self._wanted[address].attributes)
        if address.kind == "tenant":
            self._create_tenant(address, body)
            return
        path = _PATHS_AND_CLIENTS[address.kind]
        body["name"] = address.name
        if address.kind == "pool" and "fallbacks" in body["settings"]:
            body["settings"] = dict(body["settings"])
            self._fallbacks[address] = body["settings"].pop("fallbacks")
        status = body.pop("status", "active")
        if address.kind == "key":
            path = f"/api/v1/pools/{self._ids[Address(address.tenant, 'pool', address.pool)]}/keys"
            body["name"] = address.name.partition("/")[2]
            body["api_key"] = self._secrets[address].reveal()
            quota = body.pop("quota")
            if quota is not None:
                body["quota_id"] = self._ids[Address(address.tenant, "quota", quota)]
        made = self._api(address).request("POST", path, body).data
        self._ids[address] = made["client_id"] if address.kind == "client" else made["id"]
        if address.kind == "client":
            if made["client_secret"] is not None:
                self._keep(address, made["client_id"], Secret(made["client_secret"]))
            if status != "active":
                self._api(address).request("PATCH", self._path(address), {"status": status})

    def _create_tenant(self, address: Address, body: dict[str, Any]) -> None:
        status = body.pop("status", "active")
        made = self._operator.request("POST", TENANTS, {**body, "slug": address.tenant}).data
        self._ids[address] = made["id"]
        self._tenant_ids[address.tenant] = UUID(made["id"])
        # It holds every scope and its secret goes nowhere: acting tokens do what it would be for.
        first = made["client"]
        with self._operator.within(UUID(made["id"]), {CLIENTS_WRITE, *first["scopes"]}) as tenant:
            tenant.request("DELETE", f"/api/v1/clients/{first['client_id']}")
        if status != "active":
            self._operator.request("PATCH", self._path(address), {"status": status})

    def _change(self, address: Address, changed: dict[str, Any]) -> None:
        found = self._state.found[address]
        api, kind = self._api(address), address.kind
        if kind == "key" and "limits" in changed:
            patch = {"limits": patch_between(found.attributes["limits"], changed.pop("limits"))}
            api.request("PATCH", f"/api/v1/quotas/{found.quota_id}", patch)
        if kind == "key" and "quota" in changed:
            changed["quota_id"] = self._ids[Address(address.tenant, "quota", changed.pop("quota"))]
        for name in {"settings", "limits"} & changed.keys():
            changed[name] = patch_between(found.attributes[name], changed[name])
        if kind == "pool" and "fallbacks" in changed.get("settings", {}):
            self._fallbacks[address] = changed["settings"].pop("fallbacks")
            if not changed["settings"]:
                del changed["settings"]
        if changed:
            api.request("PATCH", self._path(address), changed, if_match=etag(found.version))

    def _rotate(self, step: Step) -> None:
        body: dict[str, Any] = {"api_key": self._secrets[step.address].reveal()}
        if "base_url" in step.changes:
            body["base_url"] = step.changes["base_url"][1]
        self._api(step.address).request("POST", f"{self._path(step.address)}/rotate", body)

    def _note(self, slug: str, owned: set[Address]) -> None:
        items: dict[str, dict[str, str]] = {}
        for kind in ORDER[1:]:
            named = {address.name: self._ids[address] for address in owned if address.kind == kind}
            if named:
                items[kind] = dict(sorted(named.items()))
        before: dict[str, Any] = {"items": {}}
        if slug in self._state.owners:
            before["owner"] = self._state.owners[slug]
        for address, known in self._state.inventory.items():
            if address.tenant == slug:
                before["items"].setdefault(address.kind, {})[address.name] = known
        patch = patch_between(before, {"owner": self._owner, "items": items})
        if patch:
            address = Address(slug, "tenant")
            self._operator.request("PATCH", self._path(address), {"settings": {INVENTORY: patch}})
