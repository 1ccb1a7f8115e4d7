"""The attack list for base URLs and addresses (SSRF, rebinding, absolute URLs, traversal)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.errors import AddressRefused
from gateway.upstream.guard import EgressPolicy, UnsafeUrl, check_addresses, check_base_url, is_allowed
from gateway.upstream.message import Origin

PUBLIC = EgressPolicy()
DEV = EgressPolicy(allow_private=True)


@pytest.mark.parametrize(
    ("url", "origin", "path", "query"),
    [
        ("https://api.example.com", "https://api.example.com", "", ""),
        ("https://API.Example.com./v1/", "https://api.example.com", "/v1", ""),
        ("https://api.example.com:8443/a/b", "https://api.example.com:8443", "/a/b", ""),
        ("https://8.8.8.8/v1", "https://8.8.8.8", "/v1", ""),
        ("https://[2606:4700::1111]/v1", "https://[2606:4700::1111]", "/v1", ""),
        ("https://r.openai.azure.com/openai/deployments/gpt-4o?api-version=2024-10-21", "https://r.openai.azure.com",
         "/openai/deployments/gpt-4o", "api-version=2024-10-21"),
    ],
)  # fmt: skip
def test_takes_what_providers_have(url: str, origin: str, path: str, query: str) -> None:
    base = check_base_url(url, PUBLIC)
    assert (str(base.origin), base.path, base.query) == (origin, path, query)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example.com",
        "//api.example.com",
        "ftp://api.example.com",
        "file:///etc/passwd",
        "gopher://api.example.com",
        "http://api.example.com",
        "https://",
        "https:///v1",
        "https://user@api.example.com",
        "https://user:pass@api.example.com",
        "https://api.example.com@169.254.169.254/",
        "https://api.example.com#@evil.com",
        "https://api.example.com\\@evil.com",
        "https://api.example.com%2f@evil.com",
        "https://api.example.com%00.evil.com",
        "https://api.example.com/\r\nx: y",
        "https://api.example.com/\tx",
        " https://api.example.com",
        "https://api.example.com:0",
        "https://api.example.com:99999",
        "https://api.example.com:",
        "https://api.example.com:80a",
        "https://ａｐｉ.example.com",
        "https://api.example.com/v1/../admin",
        "https://api.example.com/./v1",
        "https://api.example.com//v1",
        "https://api.example.com/%2e%2e/v1",
        "https://api.example.com/..%2fv1",
        "https://api.example.com/v1?key=x",
        "https://api.example.com/v1?",
        "https://api.example.com/v1?api-version=1&x=http://evil",
        "https://api.example.com/v1#f",
        "https://-bad.example.com",
        "https://a..example.com",
        "https://" + "a" * 64 + ".com",
        "https://api.example.com/" + "a" * 600,
        "https://localhost",
        "https://foo.localhost",
        "https://LOCALHOST.",
        "https://printer",
        "https://db.internal",
        "https://metadata.google.internal",
        "https://kubernetes.default.svc",
        "https://x.svc.cluster.local",
    ],
)
def test_refuses_on_sight(url: str) -> None:
    with pytest.raises(UnsafeUrl) as caught:
        check_base_url(url, PUBLIC)
    assert caught.value.public.startswith("base_url ")
    assert caught.value.hint
    assert caught.value.errors[0][0] == "/base_url"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0X7F.0.0.1", "0177.0.0.1", "017700000001",
        "127.0.0.1.", "0", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
        "2852039166",
        "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "224.0.0.1", "255.255.255.255", "198.18.0.1", "1.2.3",
        "1.2.3.4.5", "256.1.1.1", "example.0x7f", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:169.254.169.254]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2001::1]", "[fe80::1]", "[fec0::1]", "[fc00::1]",
        "[fd00:ec2::254]", "[fd20:ce::254]", "[ff02::1]", "[2001:db8::1]", "[fe80::1%25eth0]", "[::1", "[v1.fe80::1]",
    ],
)  # fmt: skip
def test_refuses_every_spelling_of_an_inner_address(host: str) -> None:
    with pytest.raises(UnsafeUrl):
        check_base_url(f"https://{host}/v1", PUBLIC)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000",
        "http://localhost:11434/v1",
        "http://[::1]:8000",
        "http://vllm:8000",
        "http://models.svc.cluster.local:80/v1",
        "https://10.1.2.3/v1",
    ],
)
def test_development_may_reach_private_hosts(url: str) -> None:
    assert check_base_url(url, DEV).origin.port


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "100.100.100.200", "0.0.0.0", "127.1",
     "[fe80::1]", "168.63.129.16", "[2002:a9fe:a9fe::]", "[64:ff9b::a9fe:a9fe]"],
)  # fmt: skip
def test_metadata_stays_closed_even_in_development(host: str) -> None:
    with pytest.raises(UnsafeUrl):
        check_base_url(f"http://{host}/latest/meta-data", DEV)


def test_one_inner_address_refuses_the_name() -> None:
    assert check_addresses("a.example", ["8.8.8.8", "2606:4700::1111", "8.8.8.8"], PUBLIC) == (
        "8.8.8.8",
        "2606:4700::1111",
    )
    for bad in (["8.8.8.8", "10.0.0.1"], [], ["not an address"], ["fe80::1%eth0"], ["64:ff9b::a00:1"]):
        with pytest.raises(AddressRefused):
            check_addresses("a.example", bad, PUBLIC)


def test_nat64_of_a_public_address_is_public() -> None:
    assert is_allowed(ip_address("64:ff9b::808:808"), PUBLIC)


@given(st.ip_addresses())
def test_never_wider_than_the_standard_library(address) -> None:  # type: ignore[no-untyped-def]
    if is_allowed(address, PUBLIC):
        assert not address.is_private
        assert not address.is_multicast
        assert not address.is_link_local
        assert not address.is_unspecified
        assert not address.is_loopback


@given(st.text(max_size=60))
def test_any_text_is_a_clean_verdict(text: str) -> None:
    for url in (text, f"https://{text}", f"https://api.example.com/{text}"):
        try:
            base = check_base_url(url, PUBLIC)
        except UnsafeUrl:
            continue
        assert base.origin.scheme == "https"
        assert isinstance(base.origin, Origin)
