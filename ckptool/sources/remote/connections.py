"""Connections to web servers: kept open, checked, and never to a place that nobody named.

The standard library's ``http.client`` does all that ranges need. TLS certificates are always
verified. A server that a redirect leads to must have a public address, unless the server that the
user named has a private one too: a public server must not make this machine ask its own network.
The address that was checked is the one that is connected to. A proxy looks names up itself. There
the same holds for addresses in the URL, and for names that this machine can look up, too.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from http.client import HTTPConnection
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from ckptool.records import NamedTuple
from ckptool.sources.remote.base import TransferError
from ckptool.sources.remote.proxies import open_tunnel, proxy_for
from ckptool.sources.remote.retries import Patience

PORTS = {"http": 80, "https": 443}
KEPT = "%/:=&?~#+!$,;'@()*[]"  # characters of a URL that mean something, or are escaped already
NO_HOST = re.compile(r"[\x00-\x20\x7f]")  # characters that no host has
MAX_IDLE = 16  # connections that are kept for a server
OWN_AUTHORITY = (
    "for a certificate authority of your own set SSL_CERT_FILE; nothing turns the verification off"
)
CHECK_HOST = "check the host name, and whether this machine reaches it: curl -I shows it"


class Site(NamedTuple):
    """A server: scheme, host and port."""

    scheme: str
    host: str  # in ASCII
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def site_of(url: str) -> Site:
    """Return the server of a URL.

    Raises:
        TransferError: the URL has no valid host or port.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
        host = parts.hostname or ""
        host = host if host.isascii() else host.encode("idna").decode()
    except (ValueError, KeyError) as error:
        raise TransferError(
            "no valid URL: its host or port is none",
            "check its spelling; in a password, / ? # and @ are written %2F %3F %23 and %40",
        ) from error
    if not host or NO_HOST.search(host):
        raise TransferError("no valid URL: it names no host", "check its spelling")
    return Site(parts.scheme, host, port)


def target_of(parts: SplitResult) -> str:
    """Return the path and the query of a URL, as a request names them: spaces are escaped."""
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return quote(path, safe=KEPT)


def is_private(address: str) -> bool:
    """Return whether an IP address is not one of the public internet."""
    ip = ip_address(address.partition("%")[0])
    return not all(known.is_global for known in (_inside(ip) or [ip]))


def _inside(ip: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """Return the IPv4 address inside one of IPv6, to which a gateway would lead."""
    if ip.version == 4:
        return []
    packed = ip.packed
    found = [packed[12:]] if packed[:12] in _PREFIXES else []
    found += [packed[2:6]] if packed[:2] == _SIX_TO_FOUR else []
    return [IPv4Address(each) for each in found]


# Mapped, compatible (RFC 4291), NAT64 (RFC 6052); 6to4 (RFC 3056) has the address at its beginning.
_PREFIXES = (bytes(10) + b"\xff\xff", bytes(12), bytes.fromhex("0064ff9b") + bytes(8))
_SIX_TO_FOUR = b"\x20\x02"


class Connection(HTTPConnection):
    """A connection to one server, over TLS for ``https``."""

    def __init__(self, site: Site, patience: Patience, *, only_public: bool) -> None:
        super().__init__(site.host, site.port, timeout=patience.connect)
        self.site, self.proxy = site, proxy_for(*site)
        self.default_port = PORTS[site.scheme]  # the Host header names other ports
        self.is_to_private = False
        self._patience, self._only_public = patience, only_public

    @property
    def peer(self) -> str:
        """The server, for messages."""
        return f"{self.site.host} through the proxy {self.proxy}" if self.proxy else self.site.host

    def get(self, parts: SplitResult, fields: Mapping[str, str]) -> None:
        """Send a request for a URL of this server, or of all of it to a proxy without TLS.

        Raises:
            OSError: the connection failed.
        """
        target, sent = target_of(parts), dict(fields)
        if self.proxy is not None and self.site.scheme == "http":
            target = f"http://{self.site}{target}"
            sent |= self.proxy.fields
        self.request("GET", target, headers=sent)

    def connect(self) -> None:
        """Connect to the first address of the host, or of the proxy, that answers."""
        sock = self._connected()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.site.scheme == "https":
            try:
                if self.proxy is not None:
                    open_tunnel(sock, self.proxy, self.site.host, self.site.port)
                sock = verifying().wrap_socket(sock, server_hostname=self.site.host)
            except ssl.SSLCertVerificationError as error:
                sock.close()
                raise TransferError(
                    f"the TLS certificate of {self.site.host} does not verify: "
                    f"{error.verify_message}",
                    OWN_AUTHORITY,
                ) from error
            except ssl.SSLError as error:
                sock.close()
                reason = (error.reason or str(error)).replace("_", " ").lower()
                raise TransferError(
                    f"the server {self.site.host} does not answer by TLS on port "
                    f"{self.site.port}: {reason}",
                    "check the port; a server without TLS is named by http://",
                    is_transient=True,
                ) from error
            except OSError:
                sock.close()
                raise
        sock.settimeout(self._patience.silence)
        self.sock = sock

    def _connected(self) -> socket.socket:
        near = self.proxy or self.site
        try:
            found = socket.getaddrinfo(near.host, near.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            is_passing = getattr(error, "errno", None) == socket.EAI_AGAIN
            what = "proxy" if self.proxy else "host"
            raise TransferError(
                f"the {what} {near.host} is not known", CHECK_HOST, is_transient=is_passing
            ) from error
        if self._only_public and _is_inside(self._addresses() if self.proxy else found):
            raise TransferError(
                f"the server redirects to {self.site.host}, which is an address of a private "
                "network",
                "name that URL itself if you trust it",
            )
        failed: OSError = OSError("the host has no address")
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(self._patience.connect)
            try:
                sock.connect(address)
            except OSError as error:
                sock.close()
                failed = error
            else:
                self.is_to_private = self.proxy is None and is_private(str(address[0]))
                return sock
        raise failed

    def _addresses(self) -> Addresses:
        """Return the addresses of a server behind a proxy, if this machine knows them, too."""
        try:
            return socket.getaddrinfo(self.site.host, self.site.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            return []


Addresses = list[tuple[Any, Any, Any, Any, Any]]  # as ``socket.getaddrinfo`` returns them


def _is_inside(found: Addresses) -> bool:
    """Return whether an address is one of a private network."""
    return any(is_private(str(each[4][0])) for each in found)


@cache
def verifying() -> ssl.SSLContext:
    """Return the settings of TLS: certificates are verified by the system's authorities."""
    return ssl.create_default_context()


class Pool:
    """Idle connections to any number of servers; used by several threads."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._idle: dict[Site, list[Connection]] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def take(self, site: Site, *, only_public: bool) -> tuple[Connection, bool]:
        """Return a connection, and whether it was used before."""
        with self._lock:
            idle = self._idle.get(site)
            if idle:
                return idle.pop(), True
        return Connection(site, self._patience, only_public=only_public), False

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last answer was read to its end."""
        with self._lock:
            idle = self._idle.setdefault(connection.site, [])
            if len(idle) < MAX_IDLE and not self._is_closed:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle = [each for some in self._idle.values() for each in some]
            self._idle.clear()
            self._is_closed = True
        for connection in idle:
            with suppress(OSError):
                connection.close()
