"""Storage services on the loopback: the servers that others wrote, behind one that counts.

Each is a row of ``SERVICES``. Commands ask the front, which passes requests on, and can misbehave
before it does.
"""

from __future__ import annotations

import hmac
import shutil
import socket
import subprocess
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.client import HTTPConnection
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import pytest

from helpers.web import Asked, Handler, Site, serving

BUCKET = "models"
SECRET = "wJalrXUtnFEMI"  # of S3
ACCOUNT = "devstoreaccount1"  # of Azurite, which publishes its key
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Running(NamedTuple):
    """A service for as long as a test takes."""

    scheme: str
    front: Site  # its record of requests, and faults by their numbers
    put: Callable[[str, bytes], None]  # an object, past the front
    variables: Mapping[str, str]  # of the environment, which lead commands to it
    # Has the credentials of the commands be wrong ones, and right again; None: it checks none.
    mistrust: Callable[[pytest.MonkeyPatch], None] | None = None
    trust: Callable[[], None] = lambda: None

    def url(self, key: str = "") -> str:
        """The URL of an object or a prefix."""
        return f"{self.scheme}://{BUCKET}/{key}".rstrip("/")


class Front(Handler):
    """Passes requests on to ``to``, a server of this machine."""

    to: tuple[str, int]

    def do_GET(self) -> None:  # noqa: N802 - the name that the base class asks for
        with self.site.lock:
            number = len(self.site.asked)
            self.asked = Asked(self.path, dict(self.headers.items()))
            self.site.asked.append(self.asked)
            fault = self.site.faults.get(number)
        if not (fault and fault(self, b"")):
            self.pass_on()

    do_HEAD = do_GET  # noqa: N815

    def pass_on(self) -> None:
        far = HTTPConnection(*self.to)
        try:
            far.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                far.putheader(name, value)
            far.endheaders()
            answer = far.getresponse()
            body = answer.read()
        finally:
            far.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "keep-alive", "transfer-encoding"}:
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.send(body)


def send(to: tuple[str, int], method: str, path: str, body: bytes = b"", **fields: str) -> None:
    """Send a request to a server; it has to succeed."""
    far = HTTPConnection(*to, timeout=30)
    far.request(method, path, body, {k.replace("_", "-"): v for k, v in fields.items()})
    answer = far.getresponse()
    said = answer.read()
    far.close()
    assert answer.status < 300, (answer.status, said)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def process(*words: str, port: int) -> Iterator[None]:
    """Run a server in a process of its own, from when it listens."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            for _ in range(300):
                assert running.poll() is None, f"{words[0]} has ended"
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield
        finally:
            running.terminate()


@contextmanager
def in_front_of(to: tuple[str, int]) -> Iterator[Site]:
    with serving(kind=type("To", (Front,), {"to": to})) as site:
        yield site


# --------------------------------------------------------------------------------------------- S3


# Moto looks at the form alone, unless it is told to ask IAM.
AS_OWNER = (
    "AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, "
    "Signature=0"
)


@contextmanager
def moto() -> Iterator[Running]:
    """S3 by moto, in threads of this process."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        to = server.get_host_and_port()
        send(to, "PUT", f"/{BUCKET}")
        with in_front_of(to) as front:
            yield Running(
                "s3",
                front,
                lambda key, data: send(
                    to, "PUT", f"/{BUCKET}/{quote(key)}", data, Authorization=AS_OWNER
                ),
                {
                    "AWS_ENDPOINT_URL": front.url,
                    "AWS_ACCESS_KEY_ID": "AKIA",
                    "AWS_SECRET_ACCESS_KEY": SECRET,
                    "AWS_REGION": "us-east-1",
                },
                # It asks IAM, which knows no key.
                lambda _patch: send(to, "POST", "/moto-api/reset-auth", b"0"),
                lambda: send(to, "POST", "/moto-api/reset-auth", b"inf"),
            )
    finally:
        server.stop()


# ------------------------------------------------------------------------------------------ Azure


def signed(method: str, path: str, fields: Mapping[str, str], length: int, query: str = "") -> str:
    """The authorization of a request by shared key, of version 2021-08-06."""
    given = "".join(f"{name}:{value}\n" for name, value in sorted(fields.items()))
    size = str(length) if length else ""
    text = f"{method}\n\n\n{size}\n\n\n\n\n\n\n\n\n{given}/{ACCOUNT}{path}{query}"
    code = hmac.digest(b64decode(KEY), text.encode(), "sha256")
    return f"SharedKey {ACCOUNT}:{b64encode(code).decode()}"


@contextmanager
def azurite() -> Iterator[Running]:
    """Azure's blobs by Azurite, a program of npm."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on the path: npm install -g azurite")
    to = ("127.0.0.1", free_port())

    def ask(path: str, data: bytes = b"", query: str = "", **more: str) -> None:
        fields = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06", **more}
        name, _, value = query.partition("=")
        shown = f"\n{name}:{value}" if query else ""
        login = signed("PUT", path, fields, len(data), shown)
        mark = f"?{query}" if query else ""
        send(to, "PUT", f"{path}{mark}", data, Authorization=login, **fields)

    with (
        process(
            program, "--blobPort", str(to[1]), "--inMemoryPersistence", "--silent",
            "--skipApiVersionCheck", "--disableTelemetry", port=to[1],
        ),
        in_front_of(to) as front,
    ):  # fmt: skip
        ask(f"/{ACCOUNT}/{BUCKET}", query="restype=container")
        yield Running(
            "az",
            front,
            lambda key, data: ask(
                f"/{ACCOUNT}/{BUCKET}/{quote(key)}", data, **{"x-ms-blob-type": "BlockBlob"}
            ),
            {
                "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": KEY,
                "AZURE_STORAGE_ENDPOINT": f"{front.url}/{ACCOUNT}",
            },
            lambda patch: patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", b64encode(b"other").decode()),
        )


# ----------------------------------------------------------------------------------------- Google


@contextmanager
def fake_gcs() -> Iterator[Running]:
    """Google's buckets by fake-gcs-server, a program written in Go."""
    program = shutil.which("fake-gcs-server")
    if program is None:
        pytest.skip("fake-gcs-server is not on the path")
    to = ("127.0.0.1", free_port())
    with in_front_of(to) as front:
        own = urlsplit(front.url).netloc  # the host for which it knows the XML API
        words = ("-scheme", "http", "-host", to[0], "-port", str(to[1]), "-backend", "memory")
        with process(program, *words, "-public-host", own, port=to[1]):
            send(to, "POST", "/storage/v1/b?project=tests", f'{{"name": "{BUCKET}"}}'.encode())
            yield Running(
                "gs",
                front,
                lambda key, data: send(
                    to,
                    "POST",
                    f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}",
                    data,
                ),
                {"GOOGLE_BASE_URL": front.url, "GOOGLE_SKIP_SIGNATURE": "true"},
            )


SERVICES = {"moto": moto, "azurite": azurite, "fake-gcs-server": fake_gcs}
