"""The corpus of hostile providers against the running program: the caller's answer, the next caller's, and memory."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import free_port
from tests.hostile.conftest import Target
from tests.hostile.provider import Provider, Seen, Wire, good_answer
from tests.hostile.provider import whole as whole_answer
from tests.hostile.upstreams import BOMB, HEAD, MIB, UPSTREAMS, Upstream
from tests.hostile.wire import Answer, Caller, Flood, Until, Wait, ident, identities, post

BAD, GOOD = "sk-hostile-bad-000000000", "sk-hostile-good-00000000"
DEADLINES = {"connect_s": 0.5, "first_byte_s": 0.4, "idle_s": 0.4, "total_s": 10.0}
GROWTH_MIB = 16


def make_pool(target: Target, name: str, *keys: dict[str, Any], deadlines: object = DEADLINES) -> bytes:
    """Create a pool whose first key is tried first, by its weight; return its path for chat."""
    base = f"http://127.0.0.1:{target.port}/api/v1"
    with httpx2.Client(headers={"authorization": f"Bearer {target.token.decode()}"}) as client:
        pool = client.post(
            f"{base}/pools",
            json={
                "name": name,
                "strategy": "weighted",
                "settings": {"deadlines": deadlines},
            },
        )
        assert pool.status_code == 201, pool.text
        for place, key in enumerate(keys):
            key["api_key"] += f"-{name}"  # what breaks under one secret is known of it in every pool
            fields = {"name": f"key-{place}", "provider": "simulated", "weight": 1 if place else 100, **key}
            made = client.post(f"{base}/pools/{pool.json()['id']}/keys", json=fields)
            assert made.status_code == 201, made.text
    return f"/pools/{name}/v1/chat/completions".encode()


def ask(target: Target, path: bytes, identity: bytes, extra: bytes = b"") -> tuple[Answer, Caller]:
    """Send one request over a connection of its own; return the answer, whole or cut."""
    caller = Caller(target.port, target.token)
    caller.send(post(identity, b"connection: close\r\n", target=path, extra=extra))
    (answer,) = caller.read_answers(1, to_the_end=True)
    caller.close()
    return answer, caller


def check(case: Upstream, answer: Answer, identity: bytes) -> None:
    assert answer.status == case.alone, answer.body
    assert case.holds in answer.body
    assert answer.whole is (case.ending != "cut")
    assert identities(answer.body) <= {identity}
    assert b"SMUGGLED" not in answer.body
    assert b"smuggled" not in b" ".join(answer.headers.values())
    assert b"location" not in answer.headers
    if case.alone == 204:
        assert not {b"content-length", b"transfer-encoding"} & answer.headers.keys()
    if case.ending == "error event":
        last = answer.body.strip().rsplit(b"\n\n", 1)[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["request_id"]


@pytest.mark.parametrize("case", UPSTREAMS, ids=lambda case: case.name)
def test_alone(case: Upstream, target: Target) -> None:
    slug = "u-" + ident(case.name).decode()[3:15]
    path = make_pool(target, slug, {"base_url": target.provider.base_url, "api_key": BAD})
    first, second, after = (ident(f"{case.name}: {which}") for which in ("first", "second", "after"))
    target.provider.scripts[first] = target.provider.scripts[second] = case.script
    before = target.forget_peak()
    extra = b',"stream":true' if case.stream else b""
    for identity in (first, second):
        answer, _ = ask(target, path, identity, extra)
        check(case, answer, identity)
        time.sleep(case.pause_s)
    answer, _ = ask(target, b"/v1/chat/completions", after)
    assert (answer.status, identities(answer.body)) == (200, {after}), "what it sent has reached another request"
    assert target.peak_mib() - before < GROWTH_MIB


@pytest.mark.parametrize("case", [case for case in UPSTREAMS if case.saved], ids=lambda case: case.name)
def test_with_a_good_key_beside_it(case: Upstream, target: Target) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        if BAD.encode() in seen.header(b"authorization"):
            tried.append(seen)
            await case.script(wire, seen)
        else:
            await good_answer(wire, seen)

    tried: list[Seen] = []
    slug = "s-" + ident(case.name).decode()[3:15]
    keys = [{"base_url": target.provider.base_url, "api_key": key} for key in (BAD, GOOD)]
    path = make_pool(target, slug, *keys)
    for number in range(8):
        identity = ident(f"{case.name}: saved {number}")
        target.provider.scripts[identity] = script
        answer, _ = ask(target, path, identity, b',"stream":true' if case.stream else b"")
        assert (answer.status, answer.whole, identities(answer.body)) == (200, True, {identity})
        if tried:
            break
    assert tried, "the bad key was never tried"


@pytest.mark.parametrize("how", ["reset", "fin"])
def test_a_kept_connection_that_ends_as_it_is_used_again_is_replaced(how: str, target: Target) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        served.append(wire.served)
        if not wire.served:
            await good_answer(wire, seen)
        elif how == "reset":
            wire.reset()
        else:
            wire.writer.close()

    served: list[int] = []
    provider = Provider()  # of its own: nobody else's connection is kept to it
    provider.start()
    try:
        path = make_pool(target, f"kept-{how}", {"base_url": provider.base_url, "api_key": BAD})
        for identity in (ident(f"kept, {how}: first"), ident(f"kept, {how}: second")):
            provider.scripts[identity] = script
            answer, _ = ask(target, path, identity)
            assert (answer.status, identities(answer.body)) == (200, {identity})
    finally:
        provider.stop()
    assert served == [0, 1, 0], "the second goes out on the kept connection, then on a new one"


def test_nobody_listens(target: Target) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    path = make_pool(target, "nobody", {"base_url": gone, "api_key": BAD})
    answer, _ = ask(target, path, ident("nobody listens"))
    assert (answer.status, b"upstream_failed" in answer.body) == (502, True)
    path = make_pool(
        target, "nobody-2", {"base_url": gone, "api_key": BAD}, {"base_url": target.provider.base_url, "api_key": GOOD}
    )
    answers = [ask(target, path, ident(f"somebody listens {number}"))[0] for number in range(8)]
    assert {answer.status for answer in answers} == {200}
    assert max(int(answer.headers[b"x-llm-proxy-attempts"]) for answer in answers) > 1


@pytest.mark.parametrize("kind", ["self-signed", "no TLS at all", "a handshake that never ends"])
def test_tls_that_fails(kind: str, target: Target, tmp_path: Path) -> None:
    context = None
    if kind == "self-signed":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self_signed(tmp_path))
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(2):
                raw, _ = listening.accept()
                with raw:
                    raw.settimeout(5)
                    try:
                        connection = context.wrap_socket(raw, server_side=True) if context else raw
                        if kind == "no TLS at all":
                            connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                        while data := connection.recv(65536):
                            heard.append(data)
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        path = make_pool(target, f"tls-{kind[:2].lower()}-x".replace(" ", ""), {"base_url": url, "api_key": BAD})
        answer, _ = ask(target, path, ident(f"tls {kind}"))
    assert answer.status in (502, 504)
    assert BAD.encode() not in b"".join(heard), "the key was sent before the certificate was known"


def self_signed(directory: Path) -> Path:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = directory / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


async def _large(wire: Wire, seen: Seen) -> None:
    await wire.say(HEAD + b"content-length: %d\r\n\r\n" % (300 * MIB))
    for _ in range(300):
        await wire.say(bytes(MIB))


def test_300_mb_pass_in_bounded_memory(target: Target) -> None:
    identity = ident("300 MB")
    target.provider.scripts[identity] = _large
    before = target.forget_peak()
    caller = Caller(target.port, target.token)
    caller.send(post(identity))
    caller.run((Until(b"\r\n\r\n"),))
    body = len(caller.received.partition(b"\r\n\r\n")[2])
    while body < 300 * MIB:
        data = caller.socket.recv(1 << 20)
        assert data
        body += len(data)
    caller.close()
    assert body == 300 * MIB
    assert target.peak_mib() - before < GROWTH_MIB


def test_a_reader_that_stops_holds_back_the_provider(target: Target) -> None:
    identity = ident("300 MB and no reader")
    target.provider.scripts[identity] = _large
    left, before = target.provider.left, target.forget_peak()
    caller = Caller(target.port, target.token)
    caller.send(post(identity))
    caller.run((Until(b"\r\n\r\n"), Wait(0.7)))
    assert target.peak_mib() - before < GROWTH_MIB
    caller.close()
    target.provider.wait_for_departure(left)


def test_a_reader_of_one_byte_a_time_gets_its_own_bytes(target: Target) -> None:
    identity = ident("byte by byte reader")
    caller = Caller(target.port, target.token)
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.send(post(identity, b"connection: close\r\n", extra=b',"stream":true'))
    received = b""
    while data := caller.socket.recv(1):
        received += data
    assert received.endswith(b"0\r\n\r\n")
    assert identities(received) == {identity}
    caller.close()


def test_a_compressed_bomb_passes_unopened(target: Target) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        assert seen.header(b"accept-encoding") == b"identity"
        await wire.say(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(BOMB), BOMB))

    identity = ident("a bomb")
    target.provider.scripts[identity] = script
    before = target.forget_peak()
    answer, _ = ask(target, b"/v1/chat/completions", identity)
    assert (answer.status, answer.body) == (200, BOMB)
    assert answer.headers[b"content-encoding"] == b"gzip"
    assert target.peak_mib() - before < GROWTH_MIB


@pytest.mark.parametrize(("how", "statuses"), [("polite", {413}), ("reset", {413, 502})])
def test_an_answer_before_the_upload_is_over(how: str, statuses: set[int], target: Target) -> None:
    """Who resets while it is still being sent to takes its own answer away: then 502 is the truth."""

    async def script(wire: Wire, seen: Seen) -> None:
        body = b'{"error":{"message":"too large"}}'
        await wire.say(whole_answer(body, b"connection: close\r\n", b"413 Too Large"))
        if how == "reset":
            wire.reset()
        else:
            wire.writer.write_eof()
            await wire.gone.wait()

    identity = ident(f"an early answer, {how}")
    target.provider.early[identity] = script
    form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n' + (
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="%b"\r\n\r\n' % identity
    )
    caller = Caller(target.port, target.token)
    caller.send(
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: g\r\nauthorization: Bearer @token@\r\n"
        b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 3900000\r\n\r\n" + form
    )
    caller.run((Flood(bytes(65536), 40),))
    answers = caller.read_answers(1)
    assert {answer.status for answer in answers} <= statuses
    assert len(answers) == 1
    caller.close()


def test_our_key_never_comes_back_from_a_provider_that_echoes_it(target: Target) -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        key = seen.header(b"authorization")
        body = b'{"error":{"message":"Incorrect API key provided: %b","code":"%b"}}' % (key, key[7:])
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        head += b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n"
        whole = head % (key, len(body)) + body
        for at in range(0, len(whole), 33):
            await wire.say(whole[at : at + 33])
            await asyncio.sleep(0.005)

    identity = ident("an echo")
    target.provider.scripts[identity] = script
    path = make_pool(target, "echo", {"base_url": target.provider.base_url, "api_key": BAD})
    answer, caller = ask(target, path, identity)
    assert (answer.status, answer.whole) == (400, True)
    assert b"Incorrect API key provided: Bearer ****" in answer.body
    assert BAD.encode() not in caller.received
