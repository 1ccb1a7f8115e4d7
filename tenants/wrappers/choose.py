"""Which KEK provider a URI means.

| URI | provider |
|---|---|
| `file:PATH` | a keyring file of mode 0600 |
| `env` | keys from the environment: the settings hand their value over |
| `vault://host:8200/transit/key` | HashiCorp Vault or OpenBao Transit |
| `awskms://region/key` | AWS KMS |
| `gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/k` | Google Cloud KMS |
| `azurekv://vault/key` | Azure Key Vault, managed HSM |
| `rsa:PATH` | an RSA key pair in PEM, for the spare wrap |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from auth.secret import Secret
from tenants.errors import KeyringUnsafe
from tenants.keyring import KeyWrapper, LocalKeyring, load_keyring_file, parse_keyring
from tenants.sources.protocol import HttpCalls
from tenants.wrappers.aws import AwsKms
from tenants.wrappers.aws_identity import AwsCredentialSource
from tenants.wrappers.azure import AzureKeyVault
from tenants.wrappers.azure_identity import AzureTokens
from tenants.wrappers.gcp import GcpKms
from tenants.wrappers.gcp_identity import TokenSource
from tenants.wrappers.rsa import load_rsa_kek
from tenants.wrappers.several import SeveralWrappers
from tenants.wrappers.vault import VaultTransit


@dataclass(frozen=True, slots=True)
class WrapperParts:
    """What the providers need beside their URI; only what the chosen ones use has to be there.

    Identities are looked for when their provider is chosen; AWS's is told the region.
    """

    now: Callable[[], datetime]
    keys: Secret | None = None
    http: HttpCalls | None = None
    vault_token: Callable[[], Secret] | None = None
    aws_credentials: Callable[[str], AwsCredentialSource] | None = None
    aws_endpoint: str | None = None
    gcp_token: Callable[[], TokenSource] | None = None
    azure_tokens: Callable[[], AzureTokens] | None = None


def make_wrapper(uris: str, parts: WrapperParts) -> KeyWrapper:
    """Build the provider of a URI, or of several separated by commas: the first wraps, all unwrap.

    Raises `KeyringUnsafe` with the mend when a URI is not known or something it needs is missing.
    """
    wrappers = [_one(uri.strip(), parts) for uri in uris.split(",") if uri.strip()]
    if not wrappers:
        raise KeyringUnsafe("No key-encryption key is configured.", hint="Name one, for example file:/path/to/keyring.")
    return wrappers[0] if len(wrappers) == 1 else SeveralWrappers(*wrappers)


def _one(uri: str, parts: WrapperParts) -> KeyWrapper:
    if uri == "env" or uri.startswith("env:"):
        if parts.keys is None:
            raise KeyringUnsafe("The environment holds no key-encryption keys.", hint="Set the variable of the keys.")
        return LocalKeyring(parse_keyring(parts.keys.reveal(), source="the environment"))
    if uri.startswith("file:"):
        return load_keyring_file(Path(uri.removeprefix("file://").removeprefix("file:")))
    if uri.startswith("rsa:"):
        return load_rsa_kek(Path(uri.removeprefix("rsa:")))
    if uri.startswith(("vault://", "vault+http://")):
        if parts.http is None or parts.vault_token is None:
            raise KeyringUnsafe("A Vault token is needed.", hint="Set the token, or the file that the agent renews.")
        place, scheme = vault_scheme(uri)
        return VaultTransit(place, parts.http, parts.vault_token, scheme=scheme)
    if uri.startswith("awskms://"):
        if parts.http is None or parts.aws_credentials is None:
            raise KeyringUnsafe("AWS credentials are needed.", hint="Set the access key, or run with an IAM role.")
        region = uri.removeprefix("awskms://").partition("/")[0]
        return AwsKms(uri, parts.http, parts.aws_credentials(region), now=parts.now, endpoint=parts.aws_endpoint)
    if uri.startswith("gcpkms://"):
        if parts.http is None or parts.gcp_token is None:
            raise KeyringUnsafe("Google credentials are needed.", hint="Set GOOGLE_APPLICATION_CREDENTIALS.")
        return GcpKms(uri, parts.http, parts.gcp_token())
    if uri.startswith("azurekv://"):
        if parts.http is None or parts.azure_tokens is None:
            raise KeyringUnsafe("Azure credentials are needed.", hint="Set AZURE_TENANT_ID and AZURE_CLIENT_ID.")
        return AzureKeyVault(uri, parts.http, parts.azure_tokens(), now=parts.now)
    scheme = uri.split(":", 1)[0]
    raise KeyringUnsafe(
        f"There is no key-encryption key provider {scheme[:20]!r}.",
        hint="Use file:, env, vault://, awskms://, gcpkms:// or azurekv://.",
    )


def vault_scheme(uri: str) -> tuple[str, str]:
    """Return a Vault's URI as `vault://…`, and "https", or "http" for `vault+http://…`: an agent on the same host."""
    if not uri.startswith("vault+http://"):
        return uri, "https"
    place = "vault://" + uri.removeprefix("vault+http://")
    if urlsplit(place).hostname not in {"localhost", "127.0.0.1"}:
        raise KeyringUnsafe(
            "vault+http:// names another host: the token would travel readable.",
            hint="Use vault:// (https), or an agent on 127.0.0.1.",
        )
    return place, "http"
