"""Makes the side that signs people in from the settings: one OpenID provider for the installation, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auth.relying_party import ProviderConfig, RelyingParty
from auth.remote_keys import RemoteKeys
from gateway.guarded_calls import GuardedCalls
from gateway.published_keys import GuardedJwks, GuardedWeb
from gateway.settings import is_loopback
from gateway.upstream.connect import DirectConnector, EgressProxy
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.pool import ConnectionPool, PoolLimits

if TYPE_CHECKING:
    from auth.client_secrets import Peppers
    from gateway.settings import Settings

_CONNECTIONS = 8


def make_people(settings: Settings, peppers: Peppers) -> tuple[RelyingParty, ConnectionPool] | None:
    """Return the relying party and the connections that it calls over, which the caller closes; None without one.

    The provider is the operators' choice, so they may allow it a private address; tenants have no say in it.
    """
    if settings.oidc_issuer is None or settings.oidc_client_id is None or settings.issuer is None:
        return None
    policy = EgressPolicy(allow_private=settings.oidc_allow_private or is_loopback(settings.oidc_issuer))
    proxy = None
    if settings.egress_proxy is not None and not policy.allow_private:
        proxy = EgressProxy.parse(settings.egress_proxy.reveal(), settings.no_proxy)
    pool = ConnectionPool(DirectConnector(policy, proxy=proxy), PoolLimits(total=_CONNECTIONS))
    calls = GuardedCalls(pool, policy)
    config = ProviderConfig(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        redirect_uri=settings.issuer.rstrip("/") + "/sign-in/callback",
        scope=settings.oidc_scope,
        operators=settings.oidc_operators,
    )
    party = RelyingParty(config, GuardedWeb(calls), RemoteKeys(GuardedJwks(calls)), key=peppers.derive(b"sign-in"))
    return party, pool
