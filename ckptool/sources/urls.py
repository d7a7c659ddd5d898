"""URLs as paths.

A :class:`RemotePath` is a ``Path`` whose methods ask a server instead of the operating system, so
that a format lists the files of a directory and opens one beside another wherever they are. It is
no name for the operating system: functions of ``os`` see an invalid path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import Any, ClassVar, Self

from ckptool.records import NamedTuple
from ckptool.regex import regex

if sys.platform == "win32":
    from pathlib import WindowsPath as _Base
else:
    from pathlib import PosixPath as _Base

_OF_SCHEMES = frozenset("+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
SCHEMES = ("https", "http", "hf", "s3", "gs", "az")
WEB = frozenset({"https", "http"})
ELSEWHERE = frozenset("/\\\0")  # no letters of a name
QUERY = "?…"  # stands for a query
HOST = regex(r"(\[[0-9A-Fa-f:.]+\]|[^:]*)(:\d*)?")


class Status(NamedTuple):
    """The part of ``os.stat_result`` that is known of a remote file."""

    st_size: int  # bytes
    st_mtime: float  # seconds since 1970; 0: not known


class RemotePath(_Base):
    """A URL as a path.

    Its text shows neither the user's name and password nor the query, which may hold a signature:
    an ellipsis stands for the query.
    """

    find_store: ClassVar[Callable[[RemotePath], Any]]  # set by ``places.py``
    url: str  # as it was typed, with everything

    def __new__(cls, url: str) -> Self:
        """Make a path of the text that is shown."""
        return super().__new__(cls, shown(url))

    def __init__(self, url: str) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(shown(url))
        self.url = url

    @property
    def scheme(self) -> str:
        """The scheme, in lower case."""
        return self.url.partition("://")[0].lower()

    @property
    def store(self) -> Any:
        """The store that holds the file: a web server, the hub, a bucket."""
        return type(self).find_store(self)

    # ------------------------------------------------------------------------------ as text

    def __str__(self) -> str:
        return shown(self.url)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        raise ValueError(f"{self} is a URL, not a file of this machine")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __lt__(self, other: Any) -> bool:
        return str(self) < str(other)

    @property
    def name(self) -> str:
        """The last part, as a file would be called; escapes that would lead elsewhere stay."""
        last = shown(self._split()[0]).rstrip("/").rpartition("/")[2]
        plain = self._unquoted(last)
        leads_elsewhere = plain in {".", ".."} or not ELSEWHERE.isdisjoint(plain)
        return last.replace("..", "%2E%2E") if leads_elsewhere else plain

    @property
    def parent(self) -> RemotePath:
        """The directory; the topmost one is its own."""
        base, query = self._split()
        scheme = scheme_of(base)
        start = len(f"{scheme}://") if scheme else 0
        head, slash, _ = base.rstrip("/").rpartition("/")
        return RemotePath(head + query) if slash and len(head) > start else self

    @property
    def parents(self) -> Any:
        """All directories around it, from the inside out."""
        found: list[RemotePath] = []
        at = self
        while at.parent != at:
            at = at.parent
            found.append(at)
        return tuple(found)

    def __truediv__(self, key: Any) -> RemotePath:
        base, query = self._split()
        return RemotePath(f"{base.rstrip('/')}/{self._quoted(str(key))}{query}")

    def with_name(self, name: str) -> RemotePath:
        """Return the path of another file in the same directory."""
        return self.parent / name

    def _split(self) -> tuple[str, str]:
        """Return the URL without its query, and the query."""
        if self.scheme not in WEB:
            return self.url, ""
        base, mark, query = self.url.partition("?")
        return base, mark + query

    def _quoted(self, text: str) -> str:
        from urllib.parse import quote  # noqa: PLC0415 - for URLs only

        return quote(text, safe="/") if self.scheme in WEB else text

    def _unquoted(self, text: str) -> str:
        from urllib.parse import unquote  # noqa: PLC0415 - for URLs only

        return unquote(text) if self.scheme in WEB else text

    # ------------------------------------------------------------------- questions to the server

    def is_dir(self, **_options: bool) -> bool:
        """Return whether files lie below it, where the server lists them."""
        return bool(self.store.is_folder(self))

    def is_file(self, **_options: bool) -> bool:
        """Return whether the server has a file of this name."""
        return self.store.size_of(self) is not None

    def exists(self, **_options: bool) -> bool:
        """Return whether the server has a file or a directory of this name."""
        return self.is_file() or self.is_dir()

    def stat(self, **_options: bool) -> Any:
        """Return the size, and the time of the last change where it is known.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return self.store.status_of(self)

    def iterdir(self) -> Generator[RemotePath, None, None]:
        """Yield what lies in the directory.

        Raises:
            OSError: the server lists no files.
        """
        yield from (self / name for name in self.store.names_in(self))

    def glob(self, pattern: str, **_options: Any) -> Any:
        """Yield the files and directories below it that match a pattern."""
        from fnmatch import fnmatchcase  # noqa: PLC0415 - for URLs only

        first, _, rest = pattern.partition("/")
        if first == "**":
            yield from self.glob(rest)
            folders = [path for path in self.iterdir() if path.is_dir()]
            for folder in folders:
                yield from folder.glob(pattern)
            return
        for path in self.iterdir():
            if fnmatchcase(path.name, first):
                if not rest:
                    yield path
                elif path.is_dir():
                    yield from path.glob(rest)

    def samefile(self, other_path: Any) -> bool:
        """Return whether another path is the same URL."""
        return bool(self == other_path)

    def resolve(self, strict: bool = False) -> RemotePath:  # noqa: ARG002, FBT001
        """Return the path itself: a server has no links."""
        return self


def shown(url: str) -> str:
    """Return a URL without what may be secret: user and password, and the text of the query."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in WEB:
        return url
    base, mark, _ = rest.partition("?")
    host, slash, path = base.partition("/")
    host = host.rpartition("@")[2]
    if not HOST.fullmatch(host):  # maybe the beginning of a password with a ? or / in it
        return f"{scheme}://…"
    return f"{scheme}://{host}{slash}{path}{mark and QUERY}"


def is_url(text: str) -> bool:
    """Return whether a text begins like a URL."""
    return scheme_of(text) != ""


def scheme_of(text: str) -> str:
    """Return what stands before the ``://`` of a URL; an empty text for what is none."""
    scheme, mark, _ = text.partition("://")
    is_one = len(scheme) > 1 and scheme[0].isalpha() and _OF_SCHEMES.issuperset(scheme)
    return scheme if mark and is_one else ""
