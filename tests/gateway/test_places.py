"""Where callers are: databases in MaxMind's format, headers of trusted proxies, and what is believed of whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from auth.errors import Invalid
from gateway.balancing.countries import COUNTRIES
from gateway.balancing.regions import UNKNOWN_RTT_S, round_trip_s
from gateway.places import CallerPlaces, GeoDatabase, place_in

MUNICH = {"country": {"iso_code": "DE"}, "location": {"latitude": 48.14, "longitude": 11.58}}
NETWORKS: dict[str, Any] = {
    "192.0.2.0/24": MUNICH,
    "198.51.100.0/24": {"registered_country": {"iso_code": "JP"}},
    "203.0.113.0/25": {"country_code": "US"},
    "203.0.113.128/25": {"note": "nothing"},
    "2001:db8::/32": {"country": {"iso_code": "BR"}},
}


def write(path: Path, networks: dict[str, Any]) -> None:
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Test-City")
    for network, row in networks.items():
        writer.insert_network(IPSet([network]), row)
    # As a downloader does it: the new file takes the old one's place at once.
    writer.to_db_file(str(path) + ".new")
    Path(str(path) + ".new").replace(path)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geoip") / "test.mmdb"
    write(path, NETWORKS)
    return path


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.7", "@48,12"),
        ("198.51.100.1", "@JP"),
        ("203.0.113.5", "@US"),
        ("203.0.113.200", None),
        ("2001:db8::1", "@BR"),
        ("10.0.0.1", None),
        ("unix:", None),
        ("", None),
    ],
)
def test_addresses_are_looked_up(database: Path, address: str, place: str | None) -> None:
    assert GeoDatabase(database, Clock()).place_of(address) == place


def test_a_database_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "geo.mmdb", Clock()
    write(path, {"192.0.2.0/24": MUNICH})
    found = GeoDatabase(path, clock)
    assert found.place_of("192.0.2.1") == "@48,12"
    write(path, {"192.0.2.0/24": {"country": {"iso_code": "JP"}}})
    assert found.place_of("192.0.2.1") == "@48,12", "it is not looked at all the time"
    clock.now = 31.0
    assert found.place_of("192.0.2.1") == "@JP"
    path.write_bytes(b"half a file")
    clock.now = 62.0
    assert found.place_of("192.0.2.1") == "@JP", "the old one serves on"


@pytest.mark.parametrize("content", [None, b"no database"])
def test_a_database_that_cannot_be_read_stops_the_start_with_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "geo.mmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Invalid, match="LLM_PROXY_GEOIP_DATABASE"):
        GeoDatabase(path, Clock())


MEMBERS = st.sampled_from(["location", "country", "iso_code", "latitude", "longitude"])
ROWS = st.recursive(
    st.none() | st.integers() | st.text() | st.floats(), lambda x: st.dictionaries(MEMBERS, x), max_leaves=5
)


@settings(max_examples=60)
@given(ROWS, st.floats(), st.floats() | st.integers())
def test_no_row_breaks_it(row: Any, latitude: float, longitude: float) -> None:
    for each in (row, {"location": {"latitude": latitude, "longitude": longitude}}):
        found = place_in(each)
        assert found is None or found.startswith("@")


HEADERS = [(b"cf-ipcountry", b"FR"), (b"x-forwarded-for", b"192.0.2.9, 10.1.1.1")]
BELIEVED: list[tuple[str, list[tuple[bytes, bytes]], str | None]] = [
    ("10.0.0.1", HEADERS, "@FR"),
    ("10.0.0.1", HEADERS[1:], "@48,12"),
    ("10.0.0.1", [(b"cf-ipcountry", b"eu-west-1")], "eu-west-1"),
    ("10.0.0.1", [(b"cf-ipcountry", b"XX"), HEADERS[1]], "@48,12"),
    ("10.0.0.1", [(b"cf-ipcountry", b"FR"), *HEADERS], "@48,12"),
    ("198.51.100.4", HEADERS, "@JP"),
    ("198.51.100.4", [(b"x-forwarded-for", b"192.0.2.9")], "@JP"),
    ("10.0.0.1", [], None),
    ("", HEADERS, None),
]


@pytest.mark.parametrize(("peer", "headers", "place"), BELIEVED)
def test_only_trusted_proxies_are_believed(
    database: Path, peer: str, headers: list[tuple[bytes, bytes]], place: str | None
) -> None:
    places = CallerPlaces(trusted="10.0.0.0/8", header="CF-IPCountry", database=GeoDatabase(database, Clock()))
    assert places.place_of(peer, headers) == place


def test_without_a_database_headers_alone_tell() -> None:
    places = CallerPlaces(trusted="127.0.0.1", header="x-where", database=None)
    assert places.place_of("127.0.0.1", [(b"x-where", b"ap-south-1")]) == "ap-south-1"
    assert places.place_of("127.0.0.1", []) is None


NEARER: list[tuple[str, str, str]] = [
    ("@48,12", "eu-central-1", "us-east-1"),
    ("@JP", "ap-northeast-1", "eu-west-1"),
    ("@br", "sa-east-1", "eu-west-1"),
    ("@-34,151", "ap-southeast-2", "ap-northeast-1"),
]


@pytest.mark.parametrize(("here", "near", "far"), NEARER)
def test_places_have_distances(here: str, near: str, far: str) -> None:
    assert round_trip_s(here, near) < round_trip_s(here, far)


def test_what_is_no_place_is_as_far_as_the_unknown() -> None:
    assert {round_trip_s(here, "eu-west-1") for here in ("@", "@ZZ", "@x,y", "@1000,1", "@٣,٣")} == {UNKNOWN_RTT_S}
    assert all(-90 <= lat <= 90 and -180 <= lon <= 180 for lat, lon in COUNTRIES.values())
    assert len(COUNTRIES) > 180
    check: Callable[[str], bool] = str.isupper
    assert all(len(code) == 2 and check(code) for code in COUNTRIES)
