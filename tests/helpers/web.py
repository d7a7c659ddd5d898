"""A web server on the loopback that knows ranges, counts what it is asked, and can misbehave."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ckptool.sources.remote import ahead, file, http, retries

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Asked:
    """A request, as the server got it, and what it sent."""

    path: str
    headers: dict[str, str]
    range: tuple[int, int] | None = None  # as sent
    sent: int = 0  # bytes of the body


Fault = Callable[["Handler", bytes], bool]  # returns whether it answered the request


@dataclass(repr=False)
class Site:
    """Files by their paths, and the record of all requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)  # by the number of the request
    every: Fault | None = None  # for each request
    latency: float = 0.0  # seconds before each answer
    has_etags: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""
    _digests: dict[int, tuple[bytes, str]] = field(default_factory=dict)

    def digest(self, data: bytes) -> str:
        """Return a name of a version of a file, computed once."""
        held = self._digests.get(id(data))
        if held is None or held[0] is not data:
            held = self._digests[id(data)] = data, hashlib.sha256(data).hexdigest()[:20]
        return held[1]

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(each.sent for each in self.asked)

    def forget(self) -> None:
        """Begin to count anew."""
        self.asked.clear()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    site: Site

    def log_message(self, *_args) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.site.lock:
            number = len(self.site.asked)
            self.asked = Asked(self.path, dict(self.headers.items()))
            self.site.asked.append(self.asked)
            fault = self.site.faults.get(number)
        if self.site.latency:
            time.sleep(self.site.latency)
        data = self.site.files.get(path)
        if self.site.every and self.site.every(self, data or b""):
            return
        if fault and fault(self, data or b""):
            return
        data = self.site.files.get(path)  # it may have been replaced
        if data is None:
            self.answer(404, b"nothing here")
        else:
            self.answer_range(data)

    do_HEAD = do_GET  # noqa: N815 - the name that the base class asks for

    def etag(self, data: bytes) -> str:
        return f'"{self.site.digest(data)}"'

    def wanted(self, size: int) -> tuple[int, int] | None:
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            return None
        first, last = match.groups()
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1 if last else size)

    def answer_range(self, data: bytes, **fields: str) -> None:
        """Answer as a good server does."""
        if self.site.has_etags:
            fields["ETag"] = self.etag(data)
            condition = self.headers.get("If-Match")
            if condition not in {None, fields["ETag"]}:
                self.answer(412, b"")
                return
        place = self.wanted(len(data))
        if place is None:
            self.answer(200, data, **fields)
        elif place[0] >= place[1]:
            self.answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"}, **fields)
        else:
            start, stop = place
            self.asked.range = place
            fields["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            self.answer(206, memoryview(data)[start:stop], **fields)

    def answer(self, status: int, body, **fields: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | fields).items():
            self.send_header(name, value)
        self.end_headers()
        self.send(body)

    def send(self, body) -> None:
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body)
            self.asked.sent += len(body)
        except OSError:  # the reader has gone
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_args) -> None:
        """Say nothing: connections that break off are meant."""


@contextmanager
def serving(site: Site | None = None, context=None, kind: type = Handler) -> Iterator[Site]:
    """Run a server for as long as the block; ``context`` is for TLS, ``kind`` answers."""
    site = site or Site()
    server = Server(("127.0.0.1", 0), type("Own", (kind,), {"site": site}))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if context is not None else "http"
    name = "localhost" if context is not None else "127.0.0.1"
    site.url = f"{scheme}://{name}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ------------------------------------------------------------------------------------------ faults


def reset(handler: Handler, _data: bytes) -> bool:
    """Close the connection at once, with a reset."""
    _reset(handler)
    return True


def _reset(handler: Handler) -> None:
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.close_connection = True


def short(handler: Handler, data: bytes) -> bool:
    """Send half of the body, then close the connection."""
    start, stop = handler.wanted(len(data))
    handler.send_response(206)
    handler.send_header("Content-Length", str(stop - start))
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("ETag", handler.etag(data))
    handler.end_headers()
    handler.send(data[start : start + (stop - start) // 2])
    handler.close_connection = True
    return True


def wrong_range(handler: Handler, data: bytes) -> bool:
    """Answer with the bytes of another place, and say so."""
    start, stop = handler.wanted(len(data))
    by = 1 if stop < len(data) else -1
    start, stop = max(0, start + by), stop + by
    fields = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    handler.answer(206, data[start:stop], ETag=handler.etag(data), **fields)
    return True


def longer(handler: Handler, data: bytes) -> bool:
    """State the range that was asked for, and send one byte more."""
    start, stop = handler.wanted(len(data))
    fields = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    handler.answer(206, data[start:stop] + b"x", ETag=handler.etag(data), **fields)
    return True


def status(code: int, **fields: str) -> Fault:
    """Answer with a status."""

    def fault(handler: Handler, _data: bytes) -> bool:
        handler.answer(code, b"no", **{k.replace("_", "-"): v for k, v in fields.items()})
        return True

    return fault


def replaced(with_: bytes) -> Fault:
    """Put another file in the place of the one that is asked for, then answer."""

    def fault(handler: Handler, _data: bytes) -> bool:
        handler.site.files[handler.path.partition("?")[0]] = with_
        return False

    return fault


def no_ranges(handler: Handler, data: bytes) -> bool:
    """Send the whole file whatever was asked for."""
    handler.answer(200, data, ETag=handler.etag(data))
    return True


def packed(handler: Handler, data: bytes) -> bool:
    """Send the range, said to be compressed."""
    handler.answer_range(data, **{"Content-Encoding": "gzip"})
    return True


def page(handler: Handler, _data: bytes) -> bool:
    """Send a web page."""
    body = b"<!DOCTYPE html><html>Log in" + b" " * (9 << 20)
    handler.answer(200, body, **{"Content-Type": "text/html; charset=utf-8"})
    return True


def drip(handler: Handler, data: bytes) -> bool:
    """Send a byte now and then."""
    start, stop = handler.wanted(len(data))
    handler.send_response(206)
    handler.send_header("Content-Length", str(stop - start))
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("ETag", handler.etag(data))
    handler.end_headers()
    try:
        for at in range(start, stop):
            handler.wfile.write(data[at : at + 1])
            time.sleep(0.02)
    except OSError:
        pass
    handler.close_connection = True
    return True


def no_tls(handler: Handler, _data: bytes) -> bool:
    """Send plain text on a connection on which TLS is spoken, then close it."""
    os.write(handler.connection.fileno(), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    handler.close_connection = True
    return True


def moved(to: Callable[[str], str]) -> Fault:
    """Redirect to the URL that ``to`` makes of the path."""

    def fault(handler: Handler, _data: bytes) -> bool:
        handler.answer(302, b"", Location=to(handler.path))
        return True

    return fault


# -------------------------------------------------------------------------------- for small files


def cut_small(monkeypatch) -> None:
    """As if the files were large: nearly all that is read is a request."""
    for module, name, value in (
        (file, "TAIL", 1024), (file, "HEAD", 4096), (file, "WINDOW", 512),
        (file, "MAX_WINDOW", 4096), (ahead, "CHUNK", 9000), (ahead, "HELD", ahead.Held()),
        (ahead, "MIN_GAP", 0), (http, "MAX_WHOLE", 16),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


def be_quick(monkeypatch, silence: float = 2) -> None:
    """Make no pauses between attempts, and wait for a silent server no longer than that."""
    patience = retries.PATIENCE._replace(silence=silence, sleep=lambda _seconds: None)
    monkeypatch.setattr(retries, "PATIENCE", patience)
