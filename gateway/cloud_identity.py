"""Which of the clouds' identities this process has, by what the environment names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tenants.errors import KeyringUnsafe
from tenants.wrappers.aws_identity import (
    ECS,
    AwsCredentials,
    AwsCredentialSource,
    container,
    fixed,
    instance,
    web_identity,
)
from tenants.wrappers.azure_identity import AzureTokens, application, managed
from tenants.wrappers.gcp_identity import TokenSource, from_file, from_metadata

if TYPE_CHECKING:
    from gateway.settings import Settings
    from tenants.sources.protocol import HttpCalls


def aws_credentials(settings: Settings, http: HttpCalls, region: str) -> AwsCredentialSource:
    """Return where AWS credentials come from; `KeyringUnsafe` when half of something is set."""
    key_id, secret, session = settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_session_token
    if (key_id is None) != (secret is None):
        raise KeyringUnsafe(
            "AWS credentials are needed: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together.",
            hint="Set both, or neither to use the workload's identity.",
        )
    if key_id is not None and secret is not None:
        return fixed(AwsCredentials(key_id, secret, session))
    role, token_path = settings.aws_role_arn, settings.aws_web_identity_token_path
    if token_path is not None:
        if role is None:
            raise KeyringUnsafe("AWS_WEB_IDENTITY_TOKEN_FILE is set without AWS_ROLE_ARN.", hint="Set the role too.")
        return web_identity(
            http,
            role_arn=role,
            token_path=token_path,
            session_name=settings.aws_role_session_name,
            region=region,
            now=_now,
            endpoint=None if settings.aws_sts_url is None else f"{settings.aws_sts_url}/",
        )
    url = settings.aws_container_url
    if url is None and settings.aws_container_path is not None:
        url = ECS + settings.aws_container_path
    if url is not None:
        return container(http, url, now=_now, token_path=settings.aws_container_token_path)
    return instance(http, now=_now)


def gcp_token(settings: Settings, http: HttpCalls) -> TokenSource:
    """Return where Google tokens come from."""
    path = settings.google_credentials_path
    return from_metadata(http, now=_now) if path is None else from_file(http, path, now=_now)


def azure_tokens(settings: Settings, http: HttpCalls) -> AzureTokens:
    """Return where Entra tokens come from; `KeyringUnsafe` when half of something is set."""
    proof = settings.azure_federated_token_path or settings.azure_client_secret
    if proof is None:
        return managed(http, now=_now, client_id=settings.azure_client_id)
    if settings.azure_directory_id is None or settings.azure_client_id is None:
        raise KeyringUnsafe(
            "AZURE_TENANT_ID and AZURE_CLIENT_ID are needed.", hint="Set both beside the token file or the secret."
        )
    return application(
        http,
        directory_id=settings.azure_directory_id,
        client_id=settings.azure_client_id,
        proof=proof,
        now=_now,
        authority=settings.azure_authority,
    )


def _now() -> datetime:
    return datetime.now(UTC)
