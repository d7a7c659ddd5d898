"""Proxies: tunnels for ``https`` (``CONNECT``, RFC 9110, section 9.3.6), whole URLs for ``http``.

The environment names them as for ``curl`` and ``pip``, and ``NO_PROXY`` the hosts that are asked
directly. This machine always is. The proxy resolves the name of the server; the certificate is the
server's own, and is verified as without a proxy. The user and the password of a proxy are sent to
the proxy alone, and no message has them.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import unquote, urlsplit

from ckptool.records import NamedTuple
from ckptool.sources.remote.base import TransferError
from ckptool.sources.remote.credentials import hosts_without_proxy, proxy_setting

Address = IPv4Address | IPv6Address
PORT = 80  # of a proxy whose setting names none
LATER = frozenset({408, 429, 500, 502, 503, 504})  # refusals that may pass
LOGIN = "user and password belong into the setting: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"


class Proxy(NamedTuple):
    """A proxy, and the fields of requests that are for it alone."""

    host: str
    port: int
    fields: Mapping[str, str]  # user and password

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def proxy_for(scheme: str, host: str, port: int) -> Proxy | None:
    """Return the proxy through which a server is asked; None: it is asked directly.

    Raises:
        TransferError: the setting names no proxy that can be used.
    """
    setting = proxy_setting(scheme)
    if not setting or _is_direct(host.lower().rstrip("."), port):
        return None
    hint = f"correct {scheme.upper()}_PROXY; NO_PROXY={host} lets ckptool ask that host directly"
    try:
        parts = urlsplit(setting if "://" in setting else f"http://{setting}")
        at = parts.port or PORT
    except ValueError as error:
        raise TransferError("the address of the proxy is no URL", hint) from error
    if parts.scheme != "http" or not parts.hostname:
        raise TransferError(
            f"proxies of {parts.scheme:.20}:// are not supported, but those of http://", hint
        )
    user = unquote(parts.netloc.rpartition("@")[0]).encode()
    login = {"Proxy-Authorization": f"Basic {b64encode(user).decode()}"} if user else {}
    return Proxy(parts.hostname, at, login)


def _is_direct(host: str, port: int) -> bool:
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_covers(entry, host, address, port) for entry in hosts_without_proxy())


def _covers(entry: str, host: str, address: Address | None, port: int) -> bool:
    """Return whether an entry of ``NO_PROXY`` names a host, a domain around it, or its network."""
    if address is not None:
        with suppress(ValueError):
            return address in ip_network(entry.strip("[]"), strict=False)
    name, _, only = entry.rpartition(":") if ":" in entry else (entry, "", str(port))
    name = name.removeprefix("*").strip("[].")
    is_inside = host == name or (address is None and host.endswith(f".{name}"))
    return entry == "*" or (is_inside and only == str(port))


def _address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def open_tunnel(sock: Any, proxy: Proxy, host: str, port: int) -> None:
    """Have a proxy connect a socket to a server.

    Raises:
        TransferError: it does not.
        OSError: the connection to the proxy failed.
    """
    server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    fields = {"Host": server, "User-Agent": "ckptool", **proxy.fields}
    lines = [f"CONNECT {server} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    sock.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    with HTTPResponse(sock, method="CONNECT") as answer:
        try:
            answer.begin()
        except HTTPException as error:
            raise TransferError(f"the proxy {proxy} answers with no HTTP", LOGIN) from error
        if answer.status == 407:
            raise TransferError(f"the proxy {proxy} asks for a login (407)", LOGIN)
        if answer.status // 100 != 2:
            raise TransferError(
                f"the proxy {proxy} refuses the connection to {server}: {answer.status} "
                f"{answer.reason:.80}".rstrip(),
                f"NO_PROXY={host} lets ckptool ask that host directly",
                is_transient=answer.status in LATER,
            )
