"""Reaching an origin: checked addresses only, verified TLS, several addresses, the egress proxy."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.upstream.connect import DirectConnector, EgressProxy, interleave, race, tls_context
from gateway.upstream.errors import AddressRefused, ConnectFailed
from gateway.upstream.guard import EgressPolicy
from gateway.upstream.message import Deadlines, Origin
from tests.collector import collector_off, of_the_gateway
from tests.upstream.servers import DEV, FAST, Wire, drain, ok, pooling, post, replying, serving


class Names:
    """A resolver with a script; remembers what it was asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CA file and a server's chain with key, for provider.test and 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("provider.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca, chain = folder / "ca.pem", folder / "chain.pem"
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    ca.write_bytes(pem)
    chain.write_bytes(
        pem
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ca, chain


def server_tls(chain: Path, alpn: list[str] | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


async def test_https_with_a_verified_name(authority: tuple[Path, Path]) -> None:
    ca, chain = authority
    names = Names(["127.0.0.1"])
    connector = DirectConnector(DEV, resolver=names, tls=tls_context(str(ca)))
    script, tls = replying(ok(b"secure"), ok(b"kept")), server_tls(chain, ["http/1.1"])
    async with serving(script, tls=tls) as server, pooling(connector=connector) as pool:
        origin = Origin("https", "provider.test", server.origin.port)
        assert await drain(await pool.send(origin, post(), FAST)) == b"secure"
        assert await drain(await pool.send(origin, post(), FAST)) == b"kept"
    assert names.asked == ["provider.test"]


@pytest.mark.parametrize(("trusted", "host"), [(False, "provider.test"), (True, "other.test")])
async def test_a_wrong_certificate_ends_it_before_the_key_is_sent(
    authority: tuple[Path, Path], trusted: bool, host: str
) -> None:
    ca, chain = authority
    connector = DirectConnector(
        DEV, resolver=Names(["127.0.0.1"]), tls=tls_context(str(ca)) if trusted else tls_context()
    )
    got: list[bytes] = []

    async def script(wire: Wire) -> None:
        got.append(await wire.reader.read())

    async with serving(script, tls=server_tls(chain)) as server, pooling(connector=connector) as pool:
        with pytest.raises(ConnectFailed, match="TLS failed: CERTIFICATE_VERIFY_FAILED"):
            await pool.send(Origin("https", host, server.origin.port), post(), FAST)
        assert pool.view().open == 0
    assert b"".join(got) == b""


async def test_plain_http_needs_the_development_setting() -> None:
    async with serving(replying(ok())) as server:
        async with pooling(connector=DirectConnector(EgressPolicy())) as pool:
            with pytest.raises(ConnectFailed, match="not https"):
                await pool.send(server.origin, post(), FAST)
        assert server.wires == []


async def test_a_name_that_flips_to_an_inner_address_is_not_connected_to() -> None:
    # The look-up that was checked is the one that is connected to; the next look-up is checked anew.
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    connector = DirectConnector(DEV, resolver=names)
    async with serving(replying(ok(b"x", b"connection: close\r\n"))) as server, pooling(connector=connector) as pool:
        origin = Origin("http", "rebind.test", server.origin.port)
        for _ in range(3):
            assert await drain(await pool.send(origin, post(), FAST)) == b"x"
        assert names.asked == ["rebind.test"]
        connector._resolved.clear()
        with pytest.raises(AddressRefused):
            await pool.send(origin, post(), FAST)
        assert len(server.wires) == 3


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"]]
)
async def test_inner_addresses_behind_a_public_name_are_refused(addresses: list[str]) -> None:
    async with pooling(connector=DirectConnector(EgressPolicy(), resolver=Names(addresses))) as pool:
        with pytest.raises(AddressRefused) as caught:
            await pool.send(Origin("https", "api.example.com", 443), post(), FAST)
        assert not any(address in str(caught.value) for address in addresses)


async def test_a_redirect_is_an_answer_not_an_order() -> None:
    async with serving(replying(ok())) as canary:
        redirect = (
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:%d/\r\ncontent-length: 0\r\n\r\n" % canary.origin.port
        )
        async with serving(replying(redirect)) as server, pooling() as pool:
            assert (await pool.send(server.origin, post(), FAST)).status == 302
        assert canary.wires == []


async def test_the_next_address_is_tried_when_one_fails() -> None:
    async with serving(replying(ok())) as server:
        sock = await race(["127.0.0.9", "::1", "127.0.0.1"], server.origin.port)
        assert sock.getpeername()[0] == "127.0.0.1"
        sock.close()
    with pytest.raises(OSError, match=r"Connect call failed|refused"):
        await race(["127.0.0.1", "::1"], server.origin.port)


def test_families_alternate() -> None:
    assert interleave(["::1", "::2", "::3", "1.1.1.1"]) == ["::1", "1.1.1.1", "::2", "::3"]
    assert interleave(["1.1.1.1", "::1", "2.2.2.2", "::2"]) == ["1.1.1.1", "::1", "2.2.2.2", "::2"]


async def test_addresses_that_failed_are_looked_up_again() -> None:
    names = Names(["127.0.0.9"], ["127.0.0.1"])
    async with serving(replying(ok())) as server, pooling(connector=DirectConnector(DEV, resolver=names)) as pool:
        origin = Origin("http", "moved.test", server.origin.port)
        with pytest.raises(ConnectFailed):
            await pool.send(origin, post(), FAST)
        assert await drain(await pool.send(origin, post(), FAST)) == b"hello"


async def test_a_provider_that_moved_is_found_by_the_request_that_notices() -> None:
    names = Names(["127.0.0.1"])
    connector = DirectConnector(DEV, resolver=names)
    async with serving(replying(ok())) as server, pooling(connector=connector) as pool:
        origin = Origin("http", "moved.test", server.origin.port)
        connector._resolved["moved.test", origin.port] = (float("inf"), ("127.0.0.9",))
        assert await drain(await pool.send(origin, post(), FAST)) == b"hello"
        assert names.asked == ["moved.test"]


async def test_a_provider_that_is_down_is_asked_once_and_looked_up_once() -> None:
    names = Names(["127.0.0.9"])
    connector = DirectConnector(DEV, resolver=names)
    connector._resolved["down.test", 9] = (float("inf"), ("127.0.0.9",))
    async with pooling(connector=connector) as pool:
        with pytest.raises(ConnectFailed, match="Refused"):
            await pool.send(Origin("http", "down.test", 9), post(), FAST)
    assert (names.asked, connector._resolved) == (["down.test"], {})


async def test_a_remembered_address_that_swallows_everything_is_forgotten() -> None:
    connector = DirectConnector(DEV, resolver=Names(["127.0.0.1"]))
    with socket.socket() as full:
        # A queue of one that is taken: further connections are not answered.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        connector._resolved["silent.test", port] = (float("inf"), ("127.0.0.1",))
        taken = [socket.socket() for _ in range(3)]
        for each in taken:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        async with pooling(connector=connector) as pool:
            with pytest.raises(ConnectFailed, match="not reached in"):
                await pool.send(Origin("http", "silent.test", port), post(), Deadlines(connect_s=0.05))
        for each in taken:
            each.close()
    assert connector._resolved == {}


async def test_a_name_that_does_not_resolve() -> None:
    async def none(host: str, port: int) -> Sequence[str]:
        raise OSError("no such host")

    async with pooling(connector=DirectConnector(DEV, resolver=none)) as pool:
        with pytest.raises(ConnectFailed):
            await pool.send(Origin("https", "nowhere.test", 443), post(), FAST)


async def test_a_connection_that_was_not_made_is_freed_at_once(authority: tuple[Path, Path]) -> None:
    ca, chain = authority
    names = Names(["127.0.0.2", "127.0.0.3"], ["127.0.0.1"])
    async with (
        serving(replying(ok(b"secret")), tls=server_tls(chain)) as server,
        pooling(connector=DirectConnector(DEV, resolver=names, tls=tls_context(str(ca)))) as pool,
    ):

        async def ask(name: str, why: str) -> None:
            with pytest.raises(ConnectFailed, match=why):
                await pool.send(Origin("https", name, server.origin.port), post(), FAST)

        with collector_off() as left:
            await ask("nobody-listens.test", "cannot be reached")
            if type(asyncio.get_running_loop()).__module__.startswith("uvloop"):  # asyncio's TLS makes a cycle
                await ask("other.test", "TLS failed")
            await asyncio.sleep(0.05)
    assert not of_the_gateway(left)


async def test_connecting_has_a_deadline() -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with pooling(connector=DirectConnector(DEV, resolver=never)) as pool:
        with pytest.raises(ConnectFailed, match="not reached in"):
            await pool.send(Origin("https", "slow.test", 443), post(), Deadlines(connect_s=0.02))
        assert pool.view().open == 0


async def relay(wire: Wire, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    await asyncio.gather(pump(wire.reader, writer), pump(reader, wire.writer))


async def test_an_egress_proxy_tunnels_tls(authority: tuple[Path, Path]) -> None:
    ca, chain = authority
    async with serving(replying(ok(b"tunnelled")), tls=server_tls(chain)) as server:

        async def proxy(wire: Wire) -> None:
            head, _ = await wire.request()
            assert head.startswith(b"CONNECT provider.test:%d HTTP/1.1\r\n" % server.origin.port)
            assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in head
            await wire.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await relay(wire, server.origin.port)

        async with serving(proxy) as egress:
            connector = DirectConnector(
                DEV,
                tls=tls_context(str(ca)),
                proxy=EgressProxy.parse(f"http://user:p%40ss@127.0.0.1:{egress.origin.port}", "direct.test"),
            )
            async with pooling(connector=connector) as pool:
                response = await pool.send(Origin("https", "provider.test", server.origin.port), post(), FAST)
                assert await drain(response) == b"tunnelled"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"x" * 20_000]
)
async def test_a_proxy_that_refuses_is_a_connect_failure(answer: bytes) -> None:
    async with serving(replying(answer)) as egress:
        proxy = EgressProxy.parse(f"http://127.0.0.1:{egress.origin.port}")
        async with pooling(connector=DirectConnector(DEV, proxy=proxy)) as pool:
            with pytest.raises(ConnectFailed, match="egress proxy"):
                await pool.send(Origin("https", "provider.test", 443), post(), FAST)
            assert pool.view().open == 0


def test_proxy_settings() -> None:
    proxy = EgressProxy.parse("http://p.example:8080", " .internal.example, *.svc ,direct.test")
    assert (proxy.host, proxy.port, proxy.authorization) == ("p.example", 8080, None)
    assert [proxy.serves(host) for host in ("api.openai.com", "notdirect.test")] == [True, True]
    assert [proxy.serves(host) for host in ("a.internal.example", "x.svc", "direct.test")] == [False] * 3
    assert "p@ss" not in repr(EgressProxy.parse("http://user:p%40ss@p.example"))
    with pytest.raises(ValueError, match="egress proxy"):
        EgressProxy.parse("socks5://p.example")
