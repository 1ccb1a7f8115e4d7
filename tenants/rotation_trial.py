"""Tries a version's secret against its provider: opened, probed, forgotten."""

from __future__ import annotations

from auth.sealing import Sealer
from auth.secret import Secret
from tenants.custody import key_context
from tenants.models import KeyVersion
from tenants.rotation_job import Job, timed
from tenants.sources.protocol import Prober, ProbeResult, SourceRefused


class Trial:
    """What a provider says about stored secrets."""

    def __init__(self, sealer: Sealer, prober: Prober) -> None:
        self._sealer = sealer
        self._prober = prober

    async def of(self, job: Job, version: KeyVersion) -> ProbeResult:
        """Probe one version of the job's key; `SourceRefused` when it has no secret."""
        if version.envelope is None or version.data_key_id is None:
            raise SourceRefused("the version has no secret")
        context = key_context(job.key.pool_id, job.key.id, version.number, job.key.provider)
        plain = await self._sealer.open(version.tenant_id, version.data_key_id, context, version.envelope)
        return await self.of_secret(job, Secret(plain.decode()))

    async def of_secret(self, job: Job, secret: Secret, *, federation: str | None = None) -> ProbeResult:
        """Probe a secret that is stored nowhere; `federation` names whose short-lived token it is."""
        key = job.key
        return await timed(
            self._prober.probe(key.provider, key.base_url, secret, region=key.region, federation=federation)
        )
