"""TLS ended by the server: who gets in with which certificate, what counts as verified, and renewal while it runs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from uuid_utils.compat import uuid7

from auth.certificates import is_self_signed, thumbprint
from auth.client_metadata import check
from auth.principal import PLATFORM_TENANT_ID
from gateway.database import Postgres
from gateway.forwarded import certificate_of
from gateway.preflight import static_findings
from gateway.registered_certificates import MAX_PER_TENANT, RegisteredCertificates
from gateway.server import make_server, open_socket
from gateway.settings import Settings, read_settings
from gateway.tls import ServerTls, TlsFiles, TlsUnusable

SETTINGS = replace(read_settings({}), drain_lead_s=0.0, drain_s=1.0)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def save(self, path: Path) -> Path:
        kind, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(
            self.certificate.public_bytes(kind) + self.key.private_bytes(kind, private, serialization.NoEncryption())
        )
        return path


def issue(name: str, *, by: Pair | None = None, is_ca: bool = False) -> Pair:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name.from_rfc4514_string(f"CN={name}")
    built = (
        x509.CertificateBuilder(
            by.certificate.subject if by else subject, subject, key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    return Pair(built.sign(by.key if by else key, hashes.SHA256()), key)


CA = issue("the operators' CA", is_ca=True)
SERVER, PKI = issue("localhost", by=CA), issue("client", by=CA)
OWN, OWN_CA = issue("a tenant's own"), issue("a tenant's own CA", is_ca=True)
FORGED = issue("client", by=OWN_CA)
NAMESAKE = issue("the operators' CA", is_ca=True)


class Running:
    """A TLS server that says which certificate its application saw."""

    def __init__(self, directory: Path, *, settings: Settings = SETTINGS, **files: Any) -> None:
        self.directory = directory
        CA.save(directory / "ca.pem")
        SERVER.save(directory / "server.pem")
        self.tls = ServerTls(TlsFiles(directory / "server.pem", **files))
        self.socket = open_socket("127.0.0.1", 0)
        self.port: int = self.socket.getsockname()[1]
        self.server = make_server(self.app, settings, on_drain=lambda: None, tls=self.tls)
        self.task = asyncio.create_task(self.server._serve([self.socket]))

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for answer in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{answer}.complete"})
            return
        found = certificate_of(scope)
        body = json.dumps(
            [scope["scheme"], None if found is None else thumbprint(found.der), found is not None and found.verified]
        ).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _ask(self, pair: Pair | None, version: ssl.TLSVersion, name: str, header: str) -> Any:
        context = ssl.create_default_context(cafile=self.directory / "ca.pem")
        context.minimum_version = context.maximum_version = version
        context.check_hostname = name == "localhost"
        if pair is not None:
            context.load_cert_chain(pair.save(self.directory / "client.pem"))
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=10) as raw,
                context.wrap_socket(raw, server_hostname=name) as connection,
            ):
                self.shown = connection.getpeercert(True)
                connection.sendall(f"GET / HTTP/1.1\r\nhost: x\r\n{header}connection: close\r\n\r\n".encode())
                answer = b""
                while part := connection.recv(65536):
                    answer += part
        except (ssl.SSLError, ConnectionError):
            return None
        return json.loads(answer.partition(b"\r\n\r\n")[2]) if answer else None

    async def ask(
        self,
        pair: Pair | None = None,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        name: str = "localhost",
        header: str = "",
    ) -> Any:
        """Return what the application saw, None when TLS let nobody in."""
        async with asyncio.timeout(10):
            while not self.server.started:
                await asyncio.sleep(0)
        return await asyncio.to_thread(self._ask, pair, version, name, header)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Running]]:
    made: list[Running] = []

    def begin(**files: Any) -> Running:
        made.append(Running(tmp_path, **files))
        return made[-1]

    yield begin
    for each in made:
        each.server.should_exit = each.server.force_exit = True
        await each.task


def with_ca(directory: Path) -> dict[str, Any]:
    return {"client_ca": directory / "ca.pem", "asks": True}


VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize("version", VERSIONS)
async def test_who_gets_in_and_as_whom(start: Callable[..., Running], tmp_path: Path, version: ssl.TLSVersion) -> None:
    running = start(**with_ca(tmp_path))
    assert await running.ask(None, version) == ["https", None, False]
    assert await running.ask(PKI, version) == ["https", thumbprint(PKI.der), True]
    assert await running.ask(OWN, version) is None, "a certificate that nobody registered"
    running.tls.trust([OWN.der, OWN_CA.der])
    assert await running.ask(OWN, version) == ["https", thumbprint(OWN.der), False]
    assert await running.ask(OWN, version, name="127.0.0.1") == ["https", thumbprint(OWN.der), False], "without SNI"
    assert await running.ask(PKI, version) == ["https", thumbprint(PKI.der), True]
    running.tls.trust([OWN_CA.der])
    assert await running.ask(OWN, version) is None, "it is registered no more"


async def test_what_a_registered_certificate_signs_is_never_verified(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    """A tenant registers a CA of its own and signs a certificate with another client's name."""
    running = start(**with_ca(tmp_path))
    running.tls.trust([OWN_CA.der])
    seen = await running.ask(FORGED)
    assert seen is None or seen[2] is False


async def test_a_namesake_of_the_operators_ca_breaks_nobody(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start(**with_ca(tmp_path))
    running.tls.trust([NAMESAKE.der, OWN.der])
    assert await running.ask(PKI) == ["https", thumbprint(PKI.der), True]
    assert await running.ask(NAMESAKE) is None
    assert await running.ask(OWN) is not None


async def test_headers_of_a_proxy_mean_nothing_where_the_server_asks_itself(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start(**with_ca(tmp_path))
    header = f"client-cert: :{base64.b64encode(PKI.der).decode()}:\r\n"
    assert await running.ask(header=header) == ["https", None, False]


async def test_without_asking_no_certificate_is_seen(start: Callable[..., Running]) -> None:
    assert await start().ask(PKI) == ["https", None, False]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_old_versions_are_refused(start: Callable[..., Running], version: ssl.TLSVersion) -> None:
    assert await start().ask(None, version) is None


async def test_a_handshake_that_does_not_come_is_given_up(start: Callable[..., Running]) -> None:
    running = start(settings=replace(SETTINGS, header_timeout_s=0.2))
    assert await running.ask() is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    async with asyncio.timeout(30):
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_a_renewed_certificate_is_taken_up_while_connections_go_on(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start(**with_ca(tmp_path))
    running.tls.trust([OWN.der])
    await running.ask()
    assert running.shown == SERVER.der
    assert not running.tls.is_outdated()
    renewed = issue("localhost", by=CA)
    renewed.save(tmp_path / "new.pem").replace(tmp_path / "server.pem")
    assert running.tls.is_outdated()
    running.tls.reload()
    assert not running.tls.is_outdated()
    assert await running.ask(OWN) == ["https", thumbprint(OWN.der), False], "what was trusted is so still"
    assert running.shown == renewed.der


async def test_a_broken_renewal_changes_nothing(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start()
    (tmp_path / "server.pem").write_text("nonsense")
    with pytest.raises(TlsUnusable, match="LLM_PROXY_TLS_CERTIFICATE"):
        running.tls.reload()
    assert not running.tls.is_outdated(), "it is not tried again until the files change"
    assert await running.ask() is not None
    assert running.shown == SERVER.der
    (tmp_path / "server.pem").unlink()
    assert not running.tls.is_outdated()


async def test_sighup_reads_the_files_again(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start()
    await running.ask()
    renewed = issue("localhost", by=CA)
    renewed.save(tmp_path / "server.pem")
    with running.server.capture_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    async with asyncio.timeout(10):
        while await running.ask() is not None and running.shown != renewed.der:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("files", "variable"),
    [
        ({"LLM_PROXY_TLS_CERTIFICATE": "missing.pem"}, "LLM_PROXY_TLS_CERTIFICATE"),
        ({"LLM_PROXY_TLS_CERTIFICATE": "server.pem", "LLM_PROXY_TLS_KEY": "ca.pem"}, "LLM_PROXY_TLS_CERTIFICATE"),
        ({"LLM_PROXY_TLS_KEY": "server.pem"}, "LLM_PROXY_TLS_CERTIFICATE"),
        ({"LLM_PROXY_CLIENT_CERTIFICATES": "server"}, "LLM_PROXY_TLS_CERTIFICATE"),
        (
            {"LLM_PROXY_TLS_CERTIFICATE": "server.pem", "LLM_PROXY_TLS_CLIENT_CA": "ca.pem"},
            "LLM_PROXY_TLS_CLIENT_CA",
        ),
        (
            {
                "LLM_PROXY_TLS_CERTIFICATE": "server.pem",
                "LLM_PROXY_TLS_CLIENT_CA": "empty.pem",
                "LLM_PROXY_CLIENT_CERTIFICATES": "server",
            },
            "LLM_PROXY_TLS_CLIENT_CA",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, files: dict[str, str], variable: str) -> None:
    SERVER.save(tmp_path / "server.pem")
    CA.save(tmp_path / "ca.pem")
    (tmp_path / "empty.pem").touch()
    environment = {name: str(tmp_path / value) if ".pem" in value else value for name, value in files.items()}
    found = dict(static_findings(read_settings(environment)))
    assert variable in found
    assert found[variable].startswith("LLM_PROXY_TLS")


def metadata_of(*pairs: Pair) -> dict[str, Any]:
    point = [pair.key.public_key().public_numbers() for pair in pairs]
    return {
        "jwks": {
            "keys": [
                {
                    "kty": "EC",
                    "crv": "P-256",
                    "x": base64.urlsafe_b64encode(each.x.to_bytes(32)).rstrip(b"=").decode(),
                    "y": base64.urlsafe_b64encode(each.y.to_bytes(32)).rstrip(b"=").decode(),
                    "x5c": [base64.b64encode(pair.der).decode()],
                }
                for pair, each in zip(pairs, point, strict=True)
            ]
        }
    }


def test_only_self_signed_certificates_are_registered() -> None:
    assert [is_self_signed(pair.der) for pair in (OWN, OWN_CA, PKI, FORGED)] == [True, True, False, False]
    assert check("self_signed_tls_client_auth", metadata_of(OWN)) == []
    wrong_ones: list[dict[str, Any]] = [
        metadata_of(PKI),
        metadata_of(OWN, FORGED),
        {},
        {"jwks": {"keys": []}},
        {"jwks": 7},
    ]
    for each in wrong_ones:
        assert check("self_signed_tls_client_auth", each)
    broken = metadata_of(OWN)
    for wrong in ("!", ["!"], [7], [base64.b64encode(b"no certificate").decode()], []):
        broken["jwks"]["keys"][0]["x5c"] = wrong
        assert check("self_signed_tls_client_auth", broken)


async def test_the_registered_certificates_are_those_of_active_clients(database: Postgres, tmp_path: Path) -> None:
    CA.save(tmp_path / "ca.pem")
    tls = ServerTls(TlsFiles(SERVER.save(tmp_path / "server.pem"), client_ca=tmp_path / "ca.pem", asks=True))
    seen: list[list[bytes]] = []
    tls.trust = lambda certificates: seen.append(list(certificates))  # type: ignore[method-assign]
    certificates = RegisteredCertificates(database, tls, poll_s=15)

    async def register(pair: Pair, method: str = "self_signed_tls_client_auth", status: str = "active") -> UUID:
        identifier = uuid7()
        async with database.platform() as connection:
            await connection.execute(
                "insert into oauth_client (id, tenant_id, client_id, name, auth_method, status, metadata)"
                " values ($1, $2, $3, 'x', $4, $5, $6::text::jsonb)",
                identifier,
                PLATFORM_TENANT_ID,
                str(identifier),
                method,
                status,
                json.dumps(metadata_of(pair)),
            )
        return identifier

    kept = await register(OWN)
    await register(OWN_CA, status="disabled")
    await register(PKI, method="private_key_jwt")
    await certificates.refresh()
    async with database.platform() as connection:
        await connection.execute("delete from oauth_client where id = $1", kept)
    await certificates.refresh()
    assert seen == [[OWN.der], []]
    assert MAX_PER_TENANT >= 100
