"""Requests to web servers: connections, redirects, and credentials for whom they are meant."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from urllib.parse import urljoin, urlsplit

from ckptool.records import NamedTuple
from ckptool.sources.remote.base import NotThereError, TransferError
from ckptool.sources.remote.connections import (
    CHECK_HOST,
    Connection,
    Pool,
    Site,
    site_of,
)
from ckptool.sources.remote.proxies import LOGIN
from ckptool.sources.remote.retries import Patience
from ckptool.sources.urls import shown

MAX_REDIRECTS = 5
MAX_DRAINED = 1 << 16  # bytes of an answer of no use that are read to keep its connection
REDIRECTS = frozenset({301, 302, 303, 307, 308})
DOWNLOAD = "download the file, for instance with curl -L -O, and name it"


class Answer(NamedTuple):
    """The head of an answer, and the connection on which its body is still to be read."""

    response: HTTPResponse
    connection: Connection
    url: str


class Web:
    """Requests to web servers: redirects, and credentials for the server that they are meant for.

    Credentials go to the server of the first URL alone (scheme, host and port).
    """

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.pool = Pool(patience)
        self._private: dict[Site, bool] = {}  # whether a server that was named has such an address

    def ask(
        self, url: str, fields: Mapping[str, str], secrets: Mapping[str, str], start: str = ""
    ) -> Answer:
        """Return the answer to a GET request, after redirects.

        Args:
            url: the address that the user named.
            fields: fields of the request.
            secrets: fields for the server of ``url`` alone.
            start: the address to ask, where a redirect led before.

        Raises:
            TransferError: there is none.
        """
        home, at = site_of(url), start or url
        only_public = False
        if start and site_of(start) != home:
            only_public = not self.is_private(url)
        for _ in range(MAX_REDIRECTS + 1):
            own = secrets if site_of(at) == home else {}
            answer = self._once(at, {**fields, **own}, only_public=only_public)
            status = answer.response.status
            if status not in REDIRECTS:
                return answer
            to = answer.response.headers.get("Location", "")
            self._private[home] = self._private.get(home, answer.connection.is_to_private)
            self.discard(answer)
            at = _followed(at, to)
            only_public = site_of(at) != home and not self._private[home]
        raise TransferError(
            f"more than {MAX_REDIRECTS} redirects", "check the URL: curl -IL shows where it leads"
        )

    def is_private(self, url: str) -> bool:
        """Return whether the server of a URL is known to have a private address."""
        return self._private.get(site_of(url), False)

    def _once(self, url: str, fields: Mapping[str, str], *, only_public: bool) -> Answer:
        site, parts = site_of(url), urlsplit(url)
        while True:
            connection, is_used = self.pool.take(site, only_public=only_public)
            try:
                connection.get(parts, fields)
                return Answer(connection.getresponse(), connection, url)
            except TransferError:
                connection.close()
                raise
            except (OSError, HTTPException) as error:
                connection.close()
                if is_used and not isinstance(error, TimeoutError):
                    continue  # the server closed it while it was idle
                raise broken(error, connection.peer) from error

    def text(self, answer: Answer, most: int) -> bytes:
        """Return the body of an answer of an API.

        Raises:
            TransferError: the status is another one than 200, or the body is too long.
        """
        response = answer.response
        try:
            refuse_status(response, {200})
            data = response.read(most + 1)
        except (OSError, HTTPException) as error:
            self.drop(answer)
            if isinstance(error, TransferError):
                raise
            raise broken(error, answer.connection.site.host) from error
        if len(data) > most:
            self.drop(answer)
            raise TransferError(f"an answer of more than {most:,} bytes", "name a file")
        self.done(answer)
        return data

    def discard(self, answer: Answer) -> None:
        """Read the rest of an answer of no use, and keep its connection, if the rest is short."""
        response = answer.response
        length = response.length
        try:
            if length is not None and length <= MAX_DRAINED:
                response.read()
                self.done(answer)
                return
        except (OSError, HTTPException):
            pass
        self.drop(answer)

    def done(self, answer: Answer) -> None:
        """Keep the connection of an answer that was read to its end."""
        if answer.response.isclosed() and not answer.response.will_close:
            self.pool.give_back(answer.connection)
        else:
            self.drop(answer)

    @staticmethod
    def drop(answer: Answer) -> None:
        """Close the connection of an answer, whatever is still to come."""
        answer.response.close()
        answer.connection.close()

    def close(self) -> None:
        """Close the connections."""
        self.pool.close()


def _followed(url: str, location: str) -> str:
    """Return the address that a redirect leads to.

    Raises:
        TransferError: it leads nowhere, to another scheme, or out of TLS.
    """
    own = urlsplit(url).scheme
    try:
        to = urljoin(url, location)
        scheme = urlsplit(to).scheme
    except ValueError:
        to = scheme = ""
    if not location or scheme not in {"http", "https"} or (own, scheme) == ("https", "http"):
        where = shown(to) if to and location else "nowhere"
        raise TransferError(f"the server redirects to {where}", DOWNLOAD)
    return to


def broken(error: Exception, host: str) -> TransferError:
    """Return the error of a connection that failed, which may succeed the next time."""
    if isinstance(error, TimeoutError):
        message = f"the server {host} does not answer"
    else:
        message = f"the connection to {host} failed: {_words(error)}"
    return TransferError(message, CHECK_HOST, is_transient=True)


def _words(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)[:200]


# --------------------------------------------------------------- refusals

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSALS = {
    401: ("the server asks for a login (401)", "give a token or a signed URL: docs/remote.md"),
    403: ("the server forbids it (403)", "check the token or the signed URL, which may be expired"),
    404: ("no such file (404)", "check the URL"),
    407: ("the proxy asks for a login (407)", LOGIN),
    410: ("the file is gone (410)", "check the URL"),
    416: ("the server has no such range (416)", DOWNLOAD),
}


def refuse_status(response: HTTPResponse, fine: Collection[int]) -> None:
    """Refuse an answer whose status is none of those that are fine.

    Raises:
        TransferError: the server refuses, or will answer later.
    """
    status = response.status
    if status in fine:
        return
    plain = f"the server answers {status} {response.reason:.80}".rstrip()
    if status in TRANSIENT:
        wait = _wait(response.headers.get("Retry-After", ""))
        raise TransferError(plain, "try again later", is_transient=True, wait=wait)
    message, hint = _REFUSALS.get(status, (plain, DOWNLOAD))
    raise (NotThereError if status in {404, 410} else TransferError)(message, hint)


def _wait(text: str) -> float | None:
    """Return the seconds of ``Retry-After``: a number, or a date."""
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        then = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, then - time.time())
