"""What the management API works with, passed in by the gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from litestar.di import NamedDependency

from auth.client_secrets import Peppers
from auth.sealing import Sealer
from auth.storage import Connections, Sessions
from tenants.catalogue import Catalogue
from tenants.datakeys import DataKeys
from tenants.shares.protocol import ShareStore
from tenants.sources.protocol import Prober


def nothing_to_forget(_: UUID) -> None:
    """Stand in for `DataKeys.forget` where no plain data key is held."""


@dataclass(frozen=True, slots=True)
class CustodyParts:
    """What the jobs over key-encryption keys and data keys work with; `shares` when the installation keeps them."""

    connections: Connections
    data_keys: DataKeys
    shares: ShareStore | None = None


@dataclass(frozen=True, slots=True)
class TenantServices:
    """The parts; `now` gives the time with its zone, `forget` drops a deleted tenant's plain data keys from memory.

    Without `custody` the API of key-encryption keys is not there; without `prober` a dry run does not try the secret.
    `issuer` is who vouches for tenants whose keys have no secret.
    """

    sessions: Sessions
    sealer: Sealer
    catalogue: Catalogue
    peppers: Peppers
    now: Callable[[], datetime]
    forget: Callable[[UUID], None] = nothing_to_forget
    custody: CustodyParts | None = None
    prober: Prober | None = None
    issuer: str = ""

    @property
    def custody_parts(self) -> CustodyParts:
        """The custody parts, where they are known to be there; `LookupError` otherwise."""
        if self.custody is None:
            raise LookupError("the API of key-encryption keys was mounted without its parts")
        return self.custody


Services = NamedDependency[TenantServices]
"""The type of handlers' `services` parameters."""
