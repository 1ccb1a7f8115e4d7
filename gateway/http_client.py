"""The management API's client, for the command line and for `dev`; the one file that imports httpx.

It never follows a redirect and never retries a write: what it did is what was asked once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import httpx

from auth.errors import Fault, Unavailable
from auth.secret import Secret

_RENEW_EARLY_S: Final = 30.0


class ApiRefused(Fault):
    """The gateway answered with a problem; `status` and `errors` are its own, `request_id` finds it in the logs."""

    code = "api_refused"

    def __init__(
        self,
        public: str,
        *,
        status: int,
        hint: str = "",
        request_id: str = "",
        errors: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(public, hint=hint)
        self.status = status
        self.request_id = request_id
        self.errors = errors


class Unreachable(Unavailable):
    """The gateway does not answer."""

    code = "unreachable"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a gateway is and who asks."""

    base_url: str
    client_id: str
    client_secret: Secret


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: decoded JSON (None when empty) and its ETag."""

    status: int
    data: Any
    etag: str | None


class ManagementClient:
    """Asks the management API as one OAuth client; gets its token on first use. A context manager."""

    def __init__(self, credentials: Credentials, *, timeout_s: float = 30.0) -> None:
        self._credentials = credentials
        self._http = httpx.Client(base_url=credentials.base_url, timeout=timeout_s, trust_env=False)
        self._token: str | None = None
        self._token_ends = 0.0
        self._acting: tuple[ManagementClient, UUID, tuple[str, ...]] | None = None

    def within(self, tenant_id: UUID, scopes: Iterable[str]) -> ManagementClient:
        """Return a client that acts in a tenant with `scopes` and no others, as an operator who holds `tenants:act`."""
        inner = ManagementClient(self._credentials, timeout_s=self._http.timeout.read or 30.0)
        inner._acting = (self, tenant_id, tuple(sorted(scopes)))
        return inner

    @property
    def base_url(self) -> str:
        """Where the gateway is."""
        return self._credentials.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def issue_token(self, scope: str | None = None) -> Mapping[str, Any]:
        """Get an access token (RFC 6749 section 4.4) and return the whole answer."""
        form = {"grant_type": "client_credentials"}
        if scope:
            form["scope"] = scope
        who = (self._credentials.client_id, self._credentials.client_secret.reveal())
        response = self._send("POST", "/oauth2/token", data=form, auth=who)
        answer: Mapping[str, Any] = _decode(response)
        return answer

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str | int] | None = None,
        if_match: str | None = None,
    ) -> Answer:
        """Send one request; raises `ApiRefused` or `Unreachable`."""
        headers = {"authorization": f"Bearer {self._current_token()}"}
        if if_match is not None:
            headers["if-match"] = if_match
        content = None
        if body is not None:
            headers["content-type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
            content = json.dumps(body).encode()
        response = self._send(method, path, content=content, headers=headers, params=params)
        return Answer(
            response.status_code, _decode(response) if response.content else None, response.headers.get("etag")
        )

    def _current_token(self) -> str:
        if self._token is None or time.monotonic() >= self._token_ends:
            if self._acting is None:
                answer = self.issue_token()
            else:
                operator, tenant_id, scopes = self._acting
                body = {"tenant_id": str(tenant_id), "scopes": list(scopes)}
                answer = operator.request("POST", "/api/v1/tokens/acting", body).data
            self._token = str(answer["access_token"])
            self._token_ends = time.monotonic() + max(1.0, float(answer.get("expires_in", 3600)) - _RENEW_EARLY_S)
        return self._token

    def items(self, path: str, *, limit: int = 200) -> Iterator[dict[str, Any]]:
        """Walk a list to its end, page by page."""
        cursor: str | None = None
        while True:
            params: dict[str, str | int] = {"limit": limit}
            if cursor:
                params["cursor"] = cursor
            page = self.request("GET", path, params=params).data
            yield from page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def lines(self, path: str) -> Iterator[str]:
        """Read an answer of JSON lines as it comes."""
        headers = {"authorization": f"Bearer {self._current_token()}"}
        try:
            with self._http.stream("GET", path, headers=headers) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                yield from response.iter_lines()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        return Unreachable(
            f"The gateway at {self._credentials.base_url} does not answer.",
            hint="Start it (llm-proxy dev), or point LLM_PROXY_URL at the right address.",
            debug=f"{type(error).__name__}: {error}",
        )

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_success:
            return response
        raise _refusal(response)


def _decode(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        raise ApiRefused(
            f"The answer of {response.url.path} is not JSON.",
            status=response.status_code,
            hint="Check that LLM_PROXY_URL names an LLM Proxy gateway.",
        ) from None


def _refusal(response: httpx.Response) -> ApiRefused:
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    listed = problem.get("errors")
    errors = tuple(
        (str(entry.get("pointer", "")), str(entry.get("detail", "")))
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, dict)
    )
    # RFC 9457 at the management API, RFC 6749 section 5.2 at the token endpoint.
    text = problem.get("detail") or problem.get("error_description") or problem.get("error")
    return ApiRefused(
        str(text or f"The gateway answered {response.status_code}."),
        status=response.status_code,
        hint=str(problem.get("hint", "")),
        request_id=str(problem.get("request_id", "") or response.headers.get("x-llm-proxy-request-id", "")),
        errors=errors,
    )
