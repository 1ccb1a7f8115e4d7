"""What custody is made of: a token that an agent is just replacing is an absence and no defect."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.custody import make_keks
from gateway.preflight import NoCalls
from gateway.settings import read_settings
from tenants.errors import KekUnavailable

KEK = "vault://vault.internal:8200/transit/key"


async def test_a_vault_token_that_cannot_be_read_counts_as_a_provider_that_is_away(tmp_path: Path) -> None:
    settings = read_settings({"LLM_PROXY_KEK": KEK, "LLM_PROXY_VAULT_TOKEN_PATH": str(tmp_path / "token")})

    with pytest.raises(KekUnavailable):
        await make_keks(settings, NoCalls()).status(f"{KEK}#v1")
