"""Whether anything is still under way on a draining version, by what the serving processes say."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.models import KeyVersion

_QUIET: Final = text(
    """
    select count(*) > 0 and count(*) filter (where r.in_flight is distinct from 0) = 0
    from serving_process p
    left join drain_report r on r.process_id = p.id and r.version_id = :version_id and r.since = :since
    """
)


async def is_quiet(session: AsyncSession, version: KeyVersion) -> bool:
    """Tell whether every serving process has said that nothing is under way on `version` in its present drain.

    Needs a platform transaction. Without any process that speaks up nothing is known, which is not quiet.
    """
    answer = await session.execute(_QUIET, {"version_id": version.id, "since": version.state_changed_at})
    return bool(answer.scalar_one())
