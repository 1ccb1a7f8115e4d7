"""Where callers are, by the network that they come from: what trusted proxies say, else a MaxMind-format database.

Only a peer that is a trusted proxy is believed, as with `X-Forwarded-For`, which also names the address to look up. A
database that cannot be read tells nothing: nearness is a preference, never a reason to refuse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from auth.errors import Invalid
from gateway.balancing.countries import COUNTRIES

if TYPE_CHECKING:
    import maxminddb

    from gateway.proxy.channel import HeaderList
    from gateway.settings import Settings

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 30.0
_MAX_NAME: Final = 63


class GeoDatabase:
    """One database file; looked at every half minute and read again when it was replaced. `clock` is in seconds."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        try:
            import maxminddb
        except ImportError:
            raise Invalid(
                "LLM_PROXY_GEOIP_DATABASE needs the package maxminddb.", hint="pip install 'llm-proxy[geoip]'"
            ) from None
        self._open = maxminddb.open_database
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._stamp = self._stamped()
        try:
            self._reader: maxminddb.Reader = self._open(path)
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            raise Invalid(
                f"LLM_PROXY_GEOIP_DATABASE: {path} cannot be read ({error}).",
                hint="Name a file in MaxMind's format, such as GeoLite2-City.mmdb.",
            ) from None
        self._find = lru_cache(maxsize=16_384)(self._look_up)

    def place_of(self, address: str) -> str | None:
        """Return where `address` is, None where the database does not say."""
        now = self._clock()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._renew()
        return self._find(address)

    def _stamped(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _renew(self) -> None:
        stamp = self._stamped()
        if stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            reader = self._open(self._path)
        except Exception as error:  # noqa: BLE001 - half a file says so in many ways: the old one serves on
            log.warning("the GeoIP database was replaced by one that cannot be read", extra={"error": repr(error)})
            return
        # The old reader is left to the collector: a look-up may be using it.
        self._reader = reader
        self._find.cache_clear()
        log.info("the GeoIP database was read again")

    def _look_up(self, address: str) -> str | None:
        try:
            return place_in(self._reader.get(address))
        except ValueError:
            return None  # no address, or IPv6 in a database of IPv4


def place_in(row: Any) -> str | None:
    """Read a database's row: coordinates (City), else the country (Country, and files that have it at the top)."""
    if not isinstance(row, dict):
        return None
    location = row.get("location")
    if isinstance(location, dict):
        latitude, longitude = location.get("latitude"), location.get("longitude")
        if _is_degree(latitude) and _is_degree(longitude):
            return f"@{round(latitude)},{round(longitude)}"
    for found in (row.get("country"), row.get("registered_country"), row.get("country_code")):
        code = found.get("iso_code") if isinstance(found, dict) else found
        if isinstance(code, str) and code.upper() in COUNTRIES:
            return f"@{code.upper()}"
    return None


def _is_degree(value: Any) -> TypeGuard[float]:
    return isinstance(value, float | int) and -180 <= value <= 180


class CallerPlaces:
    """`Places` of the data path; `trusted` as LLM_PROXY_TRUSTED_PROXIES has it."""

    def __init__(self, *, trusted: str, header: str | None, database: GeoDatabase | None) -> None:
        self._trusted = ProxyHeadersMiddleware(_no_app, trusted).trusted_hosts
        self._header = header.strip().lower().encode() if header else None
        self._database = database

    def place_of(self, peer: str, headers: HeaderList) -> str | None:
        """Return where the caller is, None where nothing says it."""
        address = peer
        if peer and peer in self._trusted:
            told, forwarded = [], ""
            for name, value in headers:
                if name == self._header:
                    told.append(value)
                elif name == b"x-forwarded-for":
                    forwarded = value.decode("latin-1")
            if len(told) == 1 and (named := _named(told[0].decode("latin-1").strip())) is not None:
                return named
            if forwarded:
                address = self._trusted.get_trusted_client_address(forwarded)[0]
        return self._database.place_of(address) if self._database is not None and address else None


def _named(text: str) -> str | None:
    """Read what a proxy says: two letters in capitals are a country, all else is a region's name."""
    if len(text) == 2 and text.isupper():
        return f"@{text}" if text in COUNTRIES else None
    return text if 0 < len(text) <= _MAX_NAME and text.isascii() and text.isprintable() else None


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    raise NotImplementedError


def places_of(settings: Settings, clock: Callable[[], float]) -> CallerPlaces | None:
    """Return what the settings ask for; None when callers' places are not asked for at all."""
    if settings.region_header is None and settings.geoip_database is None:
        return None
    database = None if settings.geoip_database is None else GeoDatabase(settings.geoip_database, clock)
    return CallerPlaces(trusted=settings.trusted_proxies, header=settings.region_header, database=database)
