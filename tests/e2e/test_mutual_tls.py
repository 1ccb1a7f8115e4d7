"""TLS ended by the processes themselves: clients prove who they are with a certificate, and tokens are bound to it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2

from auth.certificates import thumbprint
from tests.e2e.conftest import free_port
from tests.e2e.production import Installation, installation
from tests.gateway.test_tls import CA, OWN, PKI, SERVER, Pair, issue, metadata_of


def caller(directory: Path, pair: Pair | None = None) -> httpx2.Client:
    """Return a client that trusts our CA and shows `pair`; a new one for each certificate."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    if pair is not None:
        context.load_cert_chain(pair.save(directory / "client.pem"))
    return httpx2.Client(verify=context, timeout=10)


async def start(setup: Installation, directory: Path, command: str, port: int) -> str:
    process, log = setup.spawn(command, port)
    url = f"https://localhost:{port}"

    def wait() -> None:
        give_up = time.monotonic() + 60
        with caller(directory) as http:
            while time.monotonic() < give_up and process.poll() is None:
                try:
                    if http.get(f"{url}/readyz").status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                time.sleep(0.05)
        raise AssertionError(log.read_text())

    await asyncio.to_thread(wait)
    return url


def token(http: httpx2.Client, url: str, client_id: str) -> httpx2.Response:
    return http.post(f"{url}/oauth2/token", data={"grant_type": "client_credentials", "client_id": client_id})


async def test_certificates_reach_control_plane_and_data_path(tmp_path: Path) -> None:
    SERVER.save(tmp_path / "server.pem")
    CA.save(tmp_path / "ca.pem")
    port = free_port()
    variables = {
        "LLM_PROXY_HOST": "localhost",
        "LLM_PROXY_ISSUER": f"https://localhost:{port}",
        "LLM_PROXY_TLS_CERTIFICATE": str(tmp_path / "server.pem"),
        "LLM_PROXY_TLS_CLIENT_CA": str(tmp_path / "ca.pem"),
        "LLM_PROXY_CLIENT_CERTIFICATES": "server",
    }
    async with installation(tmp_path, port, **variables) as setup:
        control = await start(setup, tmp_path, "control", port)
        gateway = await start(setup, tmp_path, "gateway", free_port())
        await asyncio.to_thread(_use, setup, tmp_path, control, gateway)


def _use(setup: Installation, directory: Path, control: str, gateway: str) -> None:
    with caller(directory) as http:
        secret = setup.operator["client_id"], setup.operator["client_secret"]
        grant = {"grant_type": "client_credentials"}
        operator = http.post(f"{control}/oauth2/token", data=grant, auth=secret).json()["access_token"]
        made = http.post(
            f"{control}/api/v1/tenants", json={"slug": "acme"}, headers={"authorization": f"Bearer {operator}"}
        ).json()["client"]
        owner = http.post(
            f"{control}/oauth2/token", data=grant, auth=(made["client_id"], made["client_secret"])
        ).json()["access_token"]
        headers = {"authorization": f"Bearer {owner}"}
        pool = {"name": "main", "strategy": "round_robin", "is_default": True}
        assert http.post(f"{control}/api/v1/pools", json=pool, headers=headers).status_code == 201
        bound = {"tls_client_certificate_bound_access_tokens": True}
        own, pki = (
            http.post(
                f"{control}/api/v1/clients",
                json={"name": method, "auth_method": method, "metadata": {**metadata, **bound}},
                headers=headers,
            ).json()["client_id"]
            for method, metadata in (
                ("self_signed_tls_client_auth", metadata_of(OWN)),
                ("tls_client_auth", {"tls_client_auth_subject_dn": "CN=client"}),
            )
        )
        assert token(http, control, own).status_code == 401, "no certificate, no token"
    for pair, mine, other in ((OWN, own, pki), (PKI, pki, own)):
        with caller(directory, pair) as http, caller(directory) as bare:
            answer = _when_trusted(partial(token, http, control, mine))
            access = {"authorization": f"Bearer {answer.json()['access_token']}"}
            assert token(http, control, other).status_code == 401, "another client's certificate"
            _when_trusted(partial(http.get, f"{gateway}/v1/models", headers=access))
            chat = {"model": "gpt-4o", "messages": []}
            statuses = [
                each.post(f"{gateway}/v1/chat/completions", json=chat, headers=access).status_code
                for each in (http, bare)
            ]
            assert statuses == [503, 401], "with its certificate the request gets as far as a pool without keys"
            assert bare.get(f"{gateway}/v1/models", headers=access).status_code == 401, thumbprint(pair.der)
            assert bare.get(f"{control}/api/v1/pools", headers=access).status_code == 401
    renewed = issue("localhost", by=CA)
    renewed.save(directory / "new.pem").replace(directory / "server.pem")
    give_up = time.monotonic() + 30
    address = ("localhost", int(control.rpartition(":")[2]))
    for process in setup.processes:
        process.send_signal(1)
    while ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address)) != renewed.der:
        assert time.monotonic() < give_up, "the renewed certificate was not taken up"
        time.sleep(0.05)


def _when_trusted(call: Callable[[], httpx2.Response]) -> httpx2.Response:
    """Processes hear of a new certificate within moments: try until TLS lets it in."""
    give_up = time.monotonic() + 20
    while True:
        try:
            answer = call()
        except httpx2.TransportError:
            assert time.monotonic() < give_up
            time.sleep(0.05)
            continue
        assert answer.status_code == 200, answer.text
        return answer
