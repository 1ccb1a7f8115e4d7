"""TLS ended by the server itself: its certificate, renewed while it runs, and the certificates of callers (RFC 8705).

Callers are asked for a certificate and may come without. Python's ssl lets no handshake pass whose certificate has no
trusted end, so self-signed certificates are trusted one by one, by those that clients registered: each counts for
itself alone (`X509_PARTIAL_CHAIN`). What makes a certificate `verified` is a chain that ends in the operators' own CA
file and nothing else: a registered certificate may be a CA of its own, and what it signs is nobody's.

Contexts cannot forget what they trust; a renewed one takes the place of the old for each handshake, before the server's
certificate is chosen (the SNI callback, which OpenSSL calls with or without SNI).
"""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from auth.certificates import ClientCertificate
from auth.errors import Invalid

if TYPE_CHECKING:
    from gateway.settings import Settings

log = logging.getLogger(__name__)

MAX_ANCHORS: Final = 20_000
_REMEMBERED: Final = 10_000


class TlsUnusable(Invalid):
    """The certificate, its key or the CA file cannot be used; the text says which and how to mend it."""

    code = "tls_unusable"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's chain, its key (None: in the same file), and the CAs of callers' certificates.

    `asks`: callers are asked for a certificate.
    """

    certificate: Path
    key: Path | None = None
    client_ca: Path | None = None
    asks: bool = False

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Tell the files' present state: it differs when one was written or replaced."""
        paths = [path for path in (self.certificate, self.key, self.client_ca) if path is not None]
        return tuple((info.st_mtime_ns, info.st_ino) for info in (path.stat() for path in paths))


@dataclass(frozen=True, slots=True)
class _Generation:
    context: ssl.SSLContext
    roots: frozenset[bytes]
    verified: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    """Digests of certificates that were verified: a resumed TLS 1.2 session brings no chain along."""


class ServerTls:
    """What the listener encrypts with. `front` is the context to listen with; raises `TlsUnusable` when made."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._anchors: tuple[bytes, ...] = ()
        self._stamp = _stamp_of(files)
        self._now = self._build()
        self.front = _bare_context(files)
        self.front.load_cert_chain(files.certificate, files.key)
        self.front.sni_callback = self._choose

    @property
    def asks(self) -> bool:
        """Tell whether callers are asked for a certificate."""
        return self._files.asks

    def is_outdated(self) -> bool:
        """Tell whether the files have changed since they were last read, whatever came of it."""
        try:
            return self._files.stamp() != self._stamp
        except OSError:
            return False  # in the middle of a renewal

    def reload(self) -> None:
        """Read the files again; `TlsUnusable` leaves what was there in use."""
        self._stamp = _stamp_of(self._files)
        self._now = self._build()

    def trust(self, certificates: Iterable[bytes]) -> None:
        """Let handshakes with exactly these self-signed certificates (DER) pass, and with no others any more."""
        anchors = tuple(sorted(set(certificates)))[:MAX_ANCHORS]
        if anchors != self._anchors:
            self._anchors = anchors
            self._now = self._build()

    def peer(self, connection: Any) -> ClientCertificate | None:
        """Return the certificate of a connection's caller, None without one; `connection` is its SSLObject."""
        der = connection.getpeercert(True)
        if der is None:
            return None
        now, digest = self._now, hashlib.sha256(der).digest()
        chain = _verified_chain(connection)
        verified = bool(chain) and chain[-1] in now.roots
        if verified:
            now.verified[digest] = None
            if len(now.verified) > _REMEMBERED:
                now.verified.popitem(last=False)
        return ClientCertificate(der, verified=verified or (not chain and digest in now.verified))

    def _choose(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._now.context

    def _build(self) -> _Generation:
        files = self._files
        context = _bare_context(files)
        try:
            context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            raise _unusable("LLM_PROXY_TLS_CERTIFICATE", "certificate chain and its key", error) from None
        if files.client_ca is not None:
            try:
                context.load_verify_locations(cafile=files.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise _unusable("LLM_PROXY_TLS_CLIENT_CA", "CA certificates", error) from None
        roots = frozenset(context.get_ca_certs(binary_form=True))
        for each in _without_namesakes(self._anchors, roots):
            context.load_verify_locations(cadata=each)
        return _Generation(context, roots)


def make_tls(settings: Settings) -> ServerTls | None:
    """Return what the listener encrypts with, None where something in front of it does."""
    if settings.tls_certificate is None:
        return None
    asks = settings.client_certificates == "server"
    return ServerTls(TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, asks=asks))


def _bare_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if files.asks:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # A ticket would outlive the trust that it was issued under.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _stamp_of(files: TlsFiles) -> tuple[tuple[int, int], ...]:
    try:
        return files.stamp()
    except OSError as error:
        raise _unusable("LLM_PROXY_TLS_CERTIFICATE", "files", error) from None


def _unusable(variable: str, what: str, error: Exception) -> TlsUnusable:
    reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
    sentence = f"{variable} names {what} that cannot be used: {reason}."
    return TlsUnusable(
        sentence,
        hint="PEM files: the server's certificate first, then the intermediate ones; the key unencrypted.",
        errors=((variable, sentence),),
    )


def _without_namesakes(anchors: Sequence[bytes], roots: frozenset[bytes]) -> list[bytes]:
    """Leave out what bears the name of one of the operators' CAs: OpenSSL would look for issuers there too."""
    taken = {x509.load_der_x509_certificate(root).subject for root in roots}
    kept = []
    for der in anchors:
        try:
            is_namesake = x509.load_der_x509_certificate(der).subject in taken
        except ValueError:
            continue
        if is_namesake:
            log.warning("a registered certificate bears the name of a CA and is not trusted")
            continue
        kept.append(der)
    return kept


def _verified_chain(connection: Any) -> list[bytes]:
    """Return the chain that OpenSSL built, the caller's certificate first; empty for a resumed session.

    The method is public from Python 3.13 on; before, the same one of the object below is reached for.
    """
    public = getattr(connection, "get_verified_chain", None)
    if public is not None:
        return list(public() or ())
    return [each.public_bytes(2) for each in connection._sslobj.get_verified_chain() or ()]  # 2: _ssl.ENCODING_DER
