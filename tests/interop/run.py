"""Runs the npm clients against a gateway of its own: `make test-interop`."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from auth.certificates import thumbprint
from tests.e2e.conftest import free_port, run_dev

HERE = Path(__file__).parent


def certificate() -> bytes:
    """Make a self-signed certificate that is valid now (DER)."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name.from_rfc4514_string("CN=client.acme.example,O=Acme")
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.DER)


def main() -> int:
    """Return node's exit code."""
    der = certificate()
    provider = {
        "OIDC_ISSUER": f"http://127.0.0.1:{free_port()}",
        "OIDC_CLIENT_ID": "llm-proxy",
        "OIDC_CLIENT_SECRET": "a secret/with+signs",
    }
    with (
        tempfile.TemporaryDirectory(prefix="interop-") as directory,
        run_dev(
            Path(directory) / "home",
            LLM_PROXY_CLIENT_CERTIFICATES="client-cert",
            LLM_PROXY_SIGNING_ALGORITHMS="ES256,RS256,Ed25519",
            LLM_PROXY_OIDC_OPERATORS="email=root@ops.example",
            **{f"LLM_PROXY_{name}": value for name, value in provider.items()},
        ) as gateway,
    ):
        environment = {
            **os.environ,
            **provider,
            "ISSUER": gateway.base_url,
            "CLIENT_ID": gateway.client_id,
            "CLIENT_SECRET": gateway.client_secret,
            "CERTIFICATE": base64.b64encode(der).decode(),
            "CERTIFICATE_S256": thumbprint(der),
        }
        return subprocess.run(["npm", "test", "--silent"], cwd=HERE, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
