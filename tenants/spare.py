"""The spare wrap: each data key wrapped a second time under a break-glass KEK, so that losing the first is survived.

The spare is never used to serve. `llm-proxy kek recover` opens it, deliberately, with what the operator fetches from
the safe, and wraps the data keys under the KEK that is configured then.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from tenants.errors import KekDisabled, KekUnavailable
from tenants.keyring import KeyWrapper, Wrapped
from tenants.shares.layer import wrap_context

TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpareKek:
    """`wrapper` makes the spare wraps; `clear`: none are wanted any more and a rewrap takes them away.

    Without either, spare wraps stay as they are: a command that was run without the variable must not remove them.
    """

    wrapper: KeyWrapper | None = None
    clear: bool = False


NO_SPARE: Final = SpareKek()


async def wrap_spare(spare: SpareKek, tenant_id: UUID, data_key_id: UUID, key: bytes) -> Wrapped | None:
    """Return the spare wrap of a new data key; None without a spare, or when its provider is away.

    A missing one shows in `kek status` and is made up for by the next rewrap: it must not stop a tenant from working.
    """
    if spare.wrapper is None:
        return None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await spare.wrapper.wrap(wrap_context(tenant_id, data_key_id), key)
    except (KekUnavailable, KekDisabled, TimeoutError) as error:
        _log.error("data key %s has no spare wrap yet: %r", data_key_id, error)
        return None
