"""The variables of custody: key-encryption keys, tenants' shares, and the clouds' identities that reach a KMS."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.setting_values import http_url, kek, kek_shares, kek_spare, seconds, secret, text
from gateway.variable import Variable

CUSTODY: Final = "Custody"

CUSTODY_VARIABLES: Final = (
    Variable(
        "LLM_PROXY_KEK",
        "kek",
        CUSTODY,
        None,
        "Where the key-encryption keys are: `file:PATH` (mode 0600), `env`, `vault://host:8200/transit/key`, "
        "`awskms://region/key`, `gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/k` or `azurekv://vault/key`; "
        "several with commas while moving, the first one wraps. `vault+http://127.0.0.1:8200/…` is an agent on the "
        "same host. Needed by all but `dev`.",
        kek,
    ),
    Variable(
        "LLM_PROXY_KEK_KEYS",
        "kek_keys",
        CUSTODY,
        None,
        "With `LLM_PROXY_KEK=env`: 32 bytes in base64 a key, comma-separated, the current one first.",
        secret,
        secret=True,
    ),
    Variable(
        "LLM_PROXY_KEK_SPARE",
        "kek_spare",
        CUSTODY,
        None,
        "A break-glass KEK that every data key is wrapped under a second time: `rsa:PATH` of a public key in PEM, or "
        "another provider as in `LLM_PROXY_KEK`; `none` takes the spare wraps away at the next rewrap.",
        kek_spare,
    ),
    Variable(
        "LLM_PROXY_KEK_SHARES",
        "kek_shares",
        CUSTODY,
        None,
        "Where each tenant's share is kept, outside the database and its backups, so that deleting a tenant shreds its "
        "secrets in backups too: `file:DIR` on a volume that all processes mount, or `vault://host:8200/mount/path` of "
        "a version 2 KV engine.",
        kek_shares,
    ),
    Variable(
        "LLM_PROXY_KEK_POLL",
        "kek_poll_s",
        CUSTODY,
        "10",
        "Seconds between looks at whether a key-encryption key was disabled, or enabled again.",
        seconds(0.1, 600),
    ),
    Variable("VAULT_TOKEN", "vault_token", CUSTODY, None, "With `vault://`: the token.", secret, secret=True),
    Variable(
        "LLM_PROXY_VAULT_TOKEN_PATH",
        "vault_token_path",
        CUSTODY,
        None,
        "With `vault://`: a file that holds the token and that an agent renews; read at each use.",
        Path,
    ),
    Variable(
        "AWS_ACCESS_KEY_ID",
        "aws_access_key_id",
        CUSTODY,
        None,
        "With `awskms://`: a fixed key. Without one the workload's identity is used, in the order that follows.",
        text,
    ),
    Variable("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key", CUSTODY, None, "Its secret.", secret, secret=True),
    Variable(
        "AWS_SESSION_TOKEN",
        "aws_session_token",
        CUSTODY,
        None,
        "Its session token, if it is a temporary one.",
        secret,
        secret=True,
    ),
    Variable(
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "aws_web_identity_token_path",
        CUSTODY,
        None,
        "IRSA: the pod's projected token, exchanged at STS for the role. EKS sets it.",
        Path,
    ),
    Variable("AWS_ROLE_ARN", "aws_role_arn", CUSTODY, None, "IRSA: the role. EKS sets it.", text),
    Variable(
        "AWS_ROLE_SESSION_NAME",
        "aws_role_session_name",
        CUSTODY,
        "llm-proxy",
        "IRSA: what CloudTrail calls the session.",
        text,
    ),
    Variable(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "aws_container_url",
        CUSTODY,
        None,
        "EKS Pod Identity: the agent. EKS sets it.",
        text,
    ),
    Variable(
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "aws_container_path",
        CUSTODY,
        None,
        "ECS: the path at the task's agent. ECS sets it.",
        text,
    ),
    Variable(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "aws_container_token_path",
        CUSTODY,
        None,
        "EKS Pod Identity: the token for the agent. EKS sets it. Without any of these the instance's role is used.",
        Path,
    ),
    Variable(
        "AWS_ENDPOINT_URL_KMS",
        "aws_kms_url",
        CUSTODY,
        None,
        "Another endpoint than the region's for KMS, such as a VPC's.",
        http_url,
    ),
    Variable(
        "AWS_ENDPOINT_URL_STS", "aws_sts_url", CUSTODY, None, "Another endpoint than the region's for STS.", http_url
    ),
    Variable(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "google_credentials_path",
        CUSTODY,
        None,
        "With `gcpkms://`: a service account's key, or an external account (workload identity federation). Without it "
        "the metadata server is asked: GKE workload identity.",
        Path,
    ),
    Variable(
        "AZURE_TENANT_ID",
        "azure_directory_id",
        CUSTODY,
        None,
        "With `azurekv://`: the Entra tenant. The workload identity webhook sets it.",
        text,
    ),
    Variable(
        "AZURE_CLIENT_ID",
        "azure_client_id",
        CUSTODY,
        None,
        "The application, or which of the machine's managed identities.",
        text,
    ),
    Variable(
        "AZURE_FEDERATED_TOKEN_FILE",
        "azure_federated_token_path",
        CUSTODY,
        None,
        "Workload identity: the pod's projected token. The webhook sets it.",
        Path,
    ),
    Variable(
        "AZURE_CLIENT_SECRET",
        "azure_client_secret",
        CUSTODY,
        None,
        "The application's secret, where there is no workload identity. Without either the machine's managed identity "
        "is used.",
        secret,
        secret=True,
    ),
    Variable(
        "AZURE_AUTHORITY_HOST",
        "azure_authority",
        CUSTODY,
        "https://login.microsoftonline.com",
        "Entra's address in another cloud than the public one. The webhook sets it.",
        http_url,
    ),
    Variable(
        "LLM_PROXY_PEPPERS",
        "peppers",
        CUSTODY,
        None,
        "Keys of the client secrets' MACs, `version:base64` comma-separated, 32 bytes or more each; the highest "
        "version is used for new secrets. Needed by `serve` and `control`.",
        secret,
        secret=True,
    ),
)
