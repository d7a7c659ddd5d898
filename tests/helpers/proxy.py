"""A proxy on the loopback: whatever host is named, it connects to one server of the tests."""

from __future__ import annotations

import select
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from helpers.web import Server, Site


@dataclass(repr=False)
class Relay:
    """What a proxy does, and what it was asked."""

    site: Site  # the server behind it
    login: str = ""  # user:password that it wants
    refusals: dict[int, int] = field(default_factory=dict)  # status by the number of the request
    asked: list[str] = field(default_factory=list)  # the targets of the requests
    logins: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """The setting that names it."""
        user = f"{self.login}@" if self.login else ""
        return f"http://{user}127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    relay: Relay

    def log_message(self, *_args) -> None:
        pass

    def is_let_through(self) -> bool:
        """Record the request; answer it where it is refused."""
        given = self.headers.get("Proxy-Authorization", "").removeprefix("Basic ")
        refusal = self.relay.refusals.get(len(self.relay.asked))
        self.relay.asked.append(self.path)
        self.relay.logins.append(b64decode(given).decode())
        if self.relay.login != self.relay.logins[-1]:
            refusal = 407
        if refusal:
            self.send_response(refusal)
            self.send_header("Content-Length", "0")
            self.end_headers()
        return not refusal

    @property
    def behind(self) -> tuple[str, int]:
        return "127.0.0.1", urlsplit(self.relay.site.url).port or 0

    def do_CONNECT(self) -> None:
        if not self.is_let_through():
            return
        with socket.create_connection(self.behind) as far:
            self.send_response(200)
            self.end_headers()
            splice(self.connection, far)
        self.close_connection = True

    def do_GET(self) -> None:
        if not self.is_let_through():
            return
        parts = urlsplit(self.path)
        sent = {k: v for k, v in self.headers.items() if k.lower() != "proxy-authorization"}
        far = HTTPConnection(*self.behind)
        far.request("GET", f"{parts.path}?{parts.query}", headers=sent)
        answer = far.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"date", "server", "connection"}:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        far.close()


def splice(one: socket.socket, other: socket.socket) -> None:
    """Pass on what each of two connections sends, until one ends."""
    while True:
        for end in select.select([one, other], [], [])[0]:
            try:
                data = end.recv(1 << 16)
                (other if end is one else one).sendall(data)
            except OSError:
                return
            if not data:
                return


@contextmanager
def relaying(site: Site, login: str = "") -> Iterator[Relay]:
    """Run a proxy for as long as the block."""
    relay = Relay(site, login)
    server = Server(("127.0.0.1", 0), type("Own", (Handler,), {"relay": relay}))
    relay.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
