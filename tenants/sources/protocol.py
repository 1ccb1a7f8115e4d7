"""Where new provider keys come from: the one face of every rotation driver, and its in-memory twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from auth.secret import Secret


class SourceAway(Exception):
    """The provider's admin API did not answer, or answered with a passing failure: the step is tried again later."""


class SourceRefused(Exception):
    """The admin API understood and refused: a wrong credential, a missing right, a limit. Nothing was made."""


class CredentialRefused(SourceRefused):
    """The admin credential does not have the shape that the driver needs."""


class SourceUnknown(SourceRefused):
    """It cannot be told whether a key was made: someone has to look at the provider's console."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do.

    `mints`: makes keys by itself. `finds`: can look a key up by its tag, so that a lost answer is recovered.
    `repeatable`: making a key twice for one tag is harmless (the second replaces or equals the first).
    `slots`: how many keys exist at the provider at all, None without such a bound: the idle one is overwritten.
    `keyless`: no secret is stored; what `create` gives is a short-lived token, which each process gets for itself.
    """

    mints: bool = True
    finds: bool = True
    repeatable: bool = False
    disables: bool = False
    revokes: bool = True
    slots: int | None = None
    keyless: bool = False


@dataclass(frozen=True, slots=True)
class ProviderKeyMade:
    """A key at the provider: `ref` names it there; `secret` is None when it was found and cannot be read again."""

    ref: str
    secret: Secret | None


class Driver(Protocol):
    """One provider's key administration, bound to its settings and its admin credential.

    Every call may raise `SourceAway` or `SourceRefused`. `disable`, `enable` and `revoke` of what is so already, or is
    gone, succeed: a step that was interrupted is simply done again.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this driver can do."""
        ...

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Make a key that carries `tag`; `in_use` is the ref of the current one, which must not be touched."""
        ...

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Look for the key that carries `tag`."""
        ...

    async def disable(self, ref: str) -> None:
        """Make the provider refuse the key, reversibly."""
        ...

    async def enable(self, ref: str) -> None:
        """Undo `disable`."""
        ...

    async def revoke(self, ref: str) -> None:
        """Delete the key at the provider for good."""
        ...


ProbeResult = Literal["works", "refused", "unclear"]


class Prober(Protocol):
    """Tries a key against its provider with a call that costs nothing."""

    async def probe(
        self,
        provider: str,
        base_url: str | None,
        secret: Secret,
        *,
        region: str | None = None,
        federation: str | None = None,
    ) -> ProbeResult:
        """Tell whether the provider takes the key; "unclear" when it did not answer. `region` fills a `{region}`.

        `federation` names whose short-lived token it is, None: it is a key.
        """
        ...


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer of an admin API; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Assertions(Protocol):
    """The gateway's own issuer, for drivers that have no admin credential."""

    async def sign(self, claims: Mapping[str, Any], *, algorithm: str | None = None) -> str:
        """Return a signed JWT of these claims; `Unavailable` when there is no key to sign with for now."""
        ...


class HttpCalls(Protocol):
    """The HTTP client that drivers are given: verified TLS, no redirects, deadlines of its own."""

    async def call(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        """Send one request; `SourceAway` when there is no answer."""
        ...


@dataclass(slots=True)
class RemoteKey:
    """A key inside `InMemorySource`."""

    ref: str
    tag: str
    secret: Secret
    enabled: bool = True


@dataclass(slots=True)
class InMemorySource:
    """The twin of a provider with a full admin API: `keys` by ref; what was revoked is gone.

    `shows_found` makes `find` return the secret too, as some providers do.
    """

    capabilities: Capabilities = field(default_factory=lambda: Capabilities(disables=True))
    shows_found: bool = False
    keys: dict[str, RemoteKey] = field(default_factory=dict)
    made: int = 0

    async def create(self, tag: str, *, in_use: str | None) -> ProviderKeyMade:
        """Make a key; a second one for a tag would be the leak that rotation must avoid."""
        del in_use
        self.made += 1
        ref = f"ref-{self.made}"
        self.keys[ref] = RemoteKey(ref, tag, Secret(f"sk-minted-{self.made:08d}-{tag}"))
        return ProviderKeyMade(ref, self.keys[ref].secret)

    async def find(self, tag: str) -> ProviderKeyMade | None:
        """Find by tag."""
        for key in self.keys.values():
            if key.tag == tag:
                return ProviderKeyMade(key.ref, key.secret if self.shows_found else None)
        return None

    async def disable(self, ref: str) -> None:
        """Disable."""
        if ref in self.keys:
            self.keys[ref].enabled = False

    async def enable(self, ref: str) -> None:
        """Enable."""
        if ref in self.keys:
            self.keys[ref].enabled = True

    async def revoke(self, ref: str) -> None:
        """Forget."""
        self.keys.pop(ref, None)

    async def probe(
        self,
        provider: str,
        base_url: str | None,
        secret: Secret,
        *,
        region: str | None = None,
        federation: str | None = None,
    ) -> ProbeResult:
        """Take exactly the enabled keys: the twin is its own provider."""
        del provider, base_url, region, federation
        return "works" if any(key.enabled and key.secret == secret for key in self.keys.values()) else "refused"


DriverSettings = Mapping[str, Any]
"""A driver's settings as the tenant gave them, checked by the driver's `parse`."""
