"""What the management API works with, passed in by the gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from litestar.di import NamedDependency

from auth.client_secrets import Peppers
from auth.sealing import Sealer
from auth.storage import Sessions
from tenants.catalogue import Catalogue


def nothing_to_forget(_: UUID) -> None:
    """Stand in for `DataKeys.forget` where no plain data key is held."""


@dataclass(frozen=True, slots=True)
class TenantServices:
    """The parts; `now` gives the time with its zone, `forget` drops a deleted tenant's plain data keys from memory."""

    sessions: Sessions
    sealer: Sealer
    catalogue: Catalogue
    peppers: Peppers
    now: Callable[[], datetime]
    forget: Callable[[UUID], None] = nothing_to_forget


Services = NamedDependency[TenantServices]
"""The type of handlers' `services` parameters."""
