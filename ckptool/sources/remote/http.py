"""Objects on web servers, read by ``Range`` requests (RFC 9110, section 14).

The first request asks for the last bytes, which tells the size and the version: a strong ``ETag``,
or else a weak one or the date of the last change. Each further request states the version
(``If-Match``, ``If-Unmodified-Since``), and each answer is compared with it, since not every server
knows these fields. Nothing is accepted but the range that was asked for, unpacked.

Redirects are followed a few times, and the place that they lead to is asked from then on. It is
asked for anew if it no longer answers: signed addresses of storage services expire.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse
from urllib.parse import unquote, urlsplit

from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.remote.base import RemoteObject, ReplacedError, TransferError
from ckptool.sources.remote.web import DOWNLOAD, Answer, Web, broken, refuse_status

MAX_WHOLE = 8 << 20  # bytes of a file that is read as a whole where the server knows no ranges
PIECE = 1 << 20  # bytes of an answer that are received at a time, at most
RANGE = regex(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class Validator(NamedTuple):
    """The version of an object, as a server states it."""

    etag: str
    modified: str

    @property
    def conditions(self) -> dict[str, str]:
        """The fields of a request that is answered for this version alone."""
        if self.etag and not self.etag.startswith("W/"):  # weak ones never match
            return {"If-Match": self.etag}
        return {} if self.etag or not self.modified else {"If-Unmodified-Since": self.modified}

    def is_of(self, other: Validator) -> bool:
        """Return whether an answer is of the version that was opened, which it has to state too."""
        if other.etag:
            return self.etag == other.etag
        return not other.modified or self.modified == other.modified


Headers = Callable[[str], Mapping[str, str]]  # for a URL: the credentials, and the like


def no_headers(_url: str) -> Mapping[str, str]:
    """Return no fields."""
    return {}


class HttpObject(RemoteObject):
    """See the module's docstring."""

    def __init__(self, url: str, web: Web, headers: Headers = no_headers) -> None:
        self.url, self._userinfo = _without_user(url)
        self.size = 0
        self._web, self._headers = web, headers
        self._at = ""  # where redirects led
        self._validator: Validator | None = None

    def close(self) -> None:
        """Close the connections."""
        self._web.close()

    @property
    def version(self) -> str:
        """The ETag, or the date of the last change."""
        found = self._validator
        return (found.etag or found.modified) if found else ""

    # ------------------------------------------------------------------------------- requests

    def last(self, nbytes: int) -> bytes:
        """Return the last bytes."""
        answer = self._ask(f"bytes=-{nbytes}")
        status = answer.response.status
        if status == 416 and _size_of_nothing(answer.response) == 0:
            self._web.discard(answer)
            return b""
        if status in {400, 416, 501}:  # it knows no ranges from the end
            self._web.discard(answer)
            return self._last_by_two(nbytes)
        if status == 200:
            return self._whole(answer)
        self._refuse(answer)
        start, stop, self.size = self._range(answer)
        if stop != self.size or stop - start != min(nbytes, self.size):
            raise self._wrong_range(answer)
        self._remember(answer)
        data = bytearray(stop - start)
        self._body(answer, memoryview(data), is_whole=True)
        return bytes(data)

    def get(self, buffer: memoryview, offset: int) -> int:
        """Fill the beginning of ``buffer`` by one request."""
        answer = self._ask(f"bytes={offset}-{offset + len(buffer) - 1}")
        status = answer.response.status
        if status == 412:
            self._web.discard(answer)
            raise ReplacedError
        if status == 416:
            self._web.discard(answer)
            raise ReplacedError("the file became shorter while it was read")
        if status == 200:
            self._web.drop(answer)
            told = self._told_by(answer.response)
            if any(told) and not told.is_of(self._known):  # a page about an error tells nothing
                raise ReplacedError
            raise TransferError("the server sends the whole file where a part is asked", DOWNLOAD)
        self._refuse(answer)
        start, stop, size = self._range(answer)
        if not self._told_by(answer.response).is_of(self._known) or size != self.size:
            self._web.drop(answer)
            raise ReplacedError
        if start != offset or not 0 < stop - start <= len(buffer):
            raise self._wrong_range(answer)
        return self._body(answer, buffer[: stop - start])

    def _ask(self, wanted: str) -> Answer:
        """Ask for a range, where redirects led before; ask anew where that place has expired."""
        fields = {"Range": wanted, "Accept-Encoding": "identity", "User-Agent": "ckptool"}
        if self._validator is not None:
            fields |= self._validator.conditions
        secrets = {**self._userinfo, **self._headers(self.url)}
        answer = self._web.ask(self.url, fields, secrets, self._at)
        if self._at and answer.response.status in {401, 403, 404, 410}:
            self._web.discard(answer)
            self._at = ""
            answer = self._web.ask(self.url, fields, secrets)
        self._at = answer.url if answer.url != self.url else ""
        return answer

    def _last_by_two(self, nbytes: int) -> bytes:
        """Find out the size by the first byte, then return the last bytes."""
        answer = self._ask("bytes=0-0")
        if answer.response.status == 200:
            return self._whole(answer)
        self._refuse(answer)
        _, _, self.size = self._range(answer)
        self._remember(answer)
        self._web.discard(answer)
        data = bytearray(min(nbytes, self.size))
        at, view = self.size - len(data), memoryview(data)
        while view:
            count = self.get(view, at)
            view, at = view[count:], at + count
        return bytes(data)

    def _whole(self, answer: Answer) -> bytes:
        """Return a short file that the server sends as a whole; refuse a long one."""
        response = answer.response
        self._refuse_packed(answer)
        length = response.length
        if length is None or length > MAX_WHOLE:
            self._web.drop(answer)
            if _is_page(response):
                raise TransferError(
                    "a web page, not a checkpoint: a login, a licence to accept, or a page about "
                    "the file",
                    "use the URL of the download itself; curl -IL shows what it answers",
                )
            raise TransferError(
                "the server knows no ranges: it would send the whole file for each part", DOWNLOAD
            )
        self.size = length
        self._remember(answer)
        data = bytearray(length)
        self._body(answer, memoryview(data), is_whole=True)
        return bytes(data)

    # -------------------------------------------------------------------------------- answers

    @property
    def _known(self) -> Validator:
        return self._validator or Validator("", "")

    def _remember(self, answer: Answer) -> None:
        self._validator = self._told_by(answer.response)

    @staticmethod
    def _told_by(response: HTTPResponse) -> Validator:
        told = response.headers
        return Validator(told.get("ETag", "").strip(), told.get("Last-Modified", "").strip())

    def _refuse(self, answer: Answer) -> None:
        """Refuse an answer that is no part of the object.

        Raises:
            TransferError: the server refuses, or will answer later.
        """
        response = answer.response
        status = response.status
        if status == 206:
            self._refuse_packed(answer)
            return
        self._web.discard(answer)
        refuse_status(response, set())

    def _refuse_packed(self, answer: Answer) -> None:
        packing = answer.response.headers.get("Content-Encoding", "identity").strip().lower()
        if packing not in {"", "identity"}:
            self._web.drop(answer)
            raise TransferError(
                f"the server sends the file compressed ({packing:.20}), though asked not to",
                DOWNLOAD,
            )

    def _range(self, answer: Answer) -> tuple[int, int, int]:
        """Return start, stop and size of the object, as the answer states them."""
        match = RANGE.fullmatch(answer.response.headers.get("Content-Range", "").strip())
        if match is None:
            raise self._wrong_range(answer)
        start, last, size = map(int, match.groups())
        length = answer.response.length
        if not start <= last < size or (length is not None and length != last + 1 - start):
            raise self._wrong_range(answer)
        return start, last + 1, size

    def _wrong_range(self, answer: Answer) -> TransferError:
        self._web.drop(answer)
        told = answer.response.headers.get("Content-Range", "")
        return TransferError(
            f"the server answers with another range than was asked for ({told!r:.60})", DOWNLOAD
        )

    def _body(self, answer: Answer, buffer: memoryview, *, is_whole: bool = False) -> int:
        """Read the body of an answer into ``buffer``, which it fills.

        Raises:
            TransferError: the connection broke off, or the server sends next to nothing.
        """
        response, patience = answer.response, self._web.patience
        begun, at = time.monotonic(), 0
        try:
            while at < len(buffer):
                count = _received(response, buffer[at : at + PIECE])
                if not count:
                    raise ConnectionResetError("it ended too soon")
                at += count
                passed = time.monotonic() - begun
                if passed > patience.silence and at < patience.rate * passed:
                    raise TimeoutError
            is_longer = bool(response.read(1))  # a chunked body has no length but its end
        except (OSError, HTTPException) as error:
            self._web.drop(answer)
            raised = broken(error, answer.connection.site.host)
            if isinstance(error, TimeoutError):
                raised = TransferError(
                    f"the server {answer.connection.site.host} sends next to nothing",
                    "try again later, or download the file with a tool that waits longer",
                    is_transient=True,
                )
            raised.received = 0 if is_whole else at
            raise raised from error
        if is_longer:
            self._web.drop(answer)
            raise TransferError("the server sends more bytes than it announced", DOWNLOAD)
        self._web.done(answer)
        return at


def _received(response: HTTPResponse, buffer: memoryview) -> int:
    """Receive what has come so far into ``buffer``; return the number of bytes, 0 at the end.

    Where the length is known, the bytes pass through no other memory: ``HTTPResponse.readinto``
    would wait until the buffer is full, however slowly it fills.
    """
    if response.length is None:
        data = response.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)
    count = response.fp.readinto1(buffer[: response.length])
    response.length -= count
    return count


def _without_user(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without user and password, and the field of a request that has them."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, {}
    from base64 import b64encode  # noqa: PLC0415 - seldom

    user, _, host = parts.netloc.rpartition("@")
    token = b64encode(unquote(user).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {token}"}


def _is_page(response: HTTPResponse) -> bool:
    return response.headers.get_content_type() in {"text/html", "application/xhtml+xml"}


def _size_of_nothing(response: HTTPResponse) -> int | None:
    """Return the size that an answer without a range states."""
    match = re.fullmatch(r"bytes \*/(\d{1,19})", response.headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None
